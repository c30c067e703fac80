"""A subscriber of a benchmark, which measures the delay of events.

It is a process of its own, as subscribers are: a thread would take the interpreter from the agent's driving
thread, 4 % of its time with 130 events a second.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import EngineError
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.structures import DecisionKind
from edge_agent.core.timing import parse_time
from edge_agent.deliver.subscriber import Subscriber

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

START_S = 30.0
"""Longest wait for its process, and for its answer at the end."""

_NO_ANSWER = "the subscriber of the benchmark does not answer"
_FRESH = (DecisionKind.MATCHED, DecisionKind.ENROLLED)
"""Decisions made on the frame whose time they name."""


class Arrivals:
    """Receives the events of all agents of a broker, from entering to leaving.

    Entering raises what `Subscriber` raises, and EngineError where the process does not start.
    """

    def __init__(self, broker: BrokerSettings) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._received = spawn.Value("q", 0)
        self._since = spawn.Value("d", math.inf)
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_receive, args=(broker, self._received, self._since, theirs), name="arrivals", daemon=True
        )
        self._latency_s: list[float] = []

    def __enter__(self) -> Arrivals:
        with ExitStack() as undo:
            undo.callback(self._end)
            self._process.start()
            problem = self._answer()
            if problem is not None:
                raise problem
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._pipe.send("end")
            self._latency_s = self._answer()
        except BrokenPipeError:
            raise EngineError(_NO_ANSWER) from None
        finally:
            self._end()

    def count_from(self, since: float) -> None:
        """Measure the delay of events of frames from now on, Unix seconds; before, of none."""
        self._since.value = since

    @property
    def received(self) -> int:
        """Number of events so far."""
        return int(self._received.value)

    @property
    def latency_s(self) -> list[float]:
        """Seconds from a frame to the arrival of its event, once it is left."""
        return self._latency_s

    def _answer(self) -> Any:  # noqa: ANN401 - an exception, None or delays
        try:
            if self._pipe.poll(START_S):
                return self._pipe.recv()
        except EOFError:
            pass
        raise EngineError(_NO_ANSWER)

    def _end(self) -> None:
        if self._process.is_alive():
            self._process.join(1.0)
            self._process.kill()
        self._pipe.close()


def _receive(broker: BrokerSettings, received: Any, since: Any, pipe: Connection) -> None:  # noqa: ANN401
    """Receive until `pipe` has a message, then send the delays through it."""
    latency_s = []
    with ExitStack() as stack:
        try:
            subscriber = stack.enter_context(Subscriber(broker, ("edge/v1/#",), limit=100_000))
        except Exception as problem:  # noqa: BLE001 - raised in the other process
            pipe.send(problem)
            return
        pipe.send(None)
        while not pipe.poll():
            message = subscriber.next(0.2)
            if message is None:
                continue
            now = time.time()
            received.value += 1
            if message.topic.endswith(tuple(f"/identity/{kind.value}" for kind in _FRESH)):
                at = parse_time(json.loads(message.payload)["data"]["frame_time"])
                if at >= since.value:
                    latency_s.append(now - at)
    pipe.send(latency_s)
