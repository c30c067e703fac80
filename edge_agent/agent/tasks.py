"""Functions that other threads give to the driving thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import TypeVar

from edge_agent.core.errors import EngineError

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
"""How long `TaskQueue.call` waits for the driving thread."""


@dataclass(slots=True)
class TaskQueue:
    """Functions of other threads; the driving thread runs them between two rounds."""

    _tasks: deque[Callable[[], object]] = field(default_factory=deque)
    _closed: bool = False

    def put(self, task: Callable[[], object]) -> None:
        """Queue `task`; its result is not used."""
        self._tasks.append(task)

    def take(self) -> Callable[[], object] | None:
        """Remove the oldest task; None if there is none."""
        return self._tasks.popleft() if self._tasks else None

    def call(self, task: Callable[[], T]) -> T:
        """Run `task` on the driving thread; return its result or raise its error.

        Raises:
            EngineError: the agent is stopping, or it did not run the task within `CALL_TIMEOUT_S`.
        """
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(task())
            except BaseException as error:  # noqa: BLE001  raised in the calling thread
                done.set_exception(error)

        self._tasks.append(run)
        if self._closed:
            raise EngineError("the agent is stopping")
        try:
            return done.result(CALL_TIMEOUT_S)
        except FutureTimeout:
            raise EngineError(f"the agent was too busy for {CALL_TIMEOUT_S:.0f} s; try again") from None

    def close(self) -> None:
        """Run the tasks that are queued, and refuse further calls."""
        self._closed = True
        while (task := self.take()) is not None:
            task()
