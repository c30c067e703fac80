"""Errors: which of them a later attempt may overcome, and how their messages are written."""

from __future__ import annotations

from edge_agent.core import errors
from edge_agent.core.errors import DeliveryError, EdgeAgentError, MessageTooLarge, Retryable, SourceFailed


def test_which_errors_a_later_attempt_may_overcome() -> None:
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    retried = {one.__name__ for one in classes if issubclass(one, Retryable) and one is not Retryable}
    assert retried == {
        "SourceLost",
        SourceFailed.__name__,
        "DiskFull",
        "DownloadInterrupted",
        "BrokerUnreachable",
        "EngineUnavailable",
    }
    assert issubclass(MessageTooLarge, DeliveryError)
    assert all(issubclass(one, EdgeAgentError) for one in classes if one is not Retryable)


def test_each_argument_is_a_line() -> None:
    assert str(EdgeAgentError("one", 2)) == "one\n2"
