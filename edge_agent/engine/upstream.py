"""No network: the embeddings are computed by an upstream pipeline, and come in its messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from edge_agent.core.errors import EngineError
from edge_agent.core.structures import EngineInfo
from edge_agent.engine.base import Engine

UPSTREAM = "upstream"
"""Name of this backend in `EngineInfo`; it cannot be chosen, but follows from the sources."""


class UpstreamEngine(Engine):
    """States the embedding space of the messages; computes nothing."""

    def __init__(self, space: str, dimension: int) -> None:
        super().__init__(name=UPSTREAM, input_size=(1, 1), unit_length=True, max_batch=1)
        self._space, self._dimension = space, dimension

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        return EngineInfo(
            backend=UPSTREAM,
            precision="fp32",
            model="computed upstream",
            model_sha256="",
            space=self._space,
            dimension=self._dimension,
            max_batch=1,
            device=UPSTREAM,
        )

    def _load(self) -> None:
        """There is nothing to load."""

    def _release(self) -> None:
        """There is nothing to free."""

    def check(self, test: Callable[[Engine], None]) -> None:
        """There is nothing to test."""

    def submit(self, count: int) -> NoReturn:  # noqa: ARG002 - as in `Engine`
        """Refuse pictures.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "no network runs here, since the embeddings are computed upstream: a picture cannot be embedded."
            " Enrol a track that is present, or pictures with `edge-agent gallery enrol` and the same network"
        )

    def _rows(self, run: Any) -> NoReturn:  # noqa: ANN401, ARG002
        raise AssertionError
