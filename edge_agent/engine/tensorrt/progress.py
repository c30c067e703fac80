"""Progress of a build: in steps where TensorRT counts them (from version 10 on), else in seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import tensorrt as trt

_TICK_S = 5.0


class Progress(Protocol):
    """Callback for the progress of a build, called from several threads; its exception ends the build."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` steps of a phase; `total` 0: seconds (before TensorRT 10), or unknown."""


def ignore_progress(phase: str, done: int, total: int) -> None:
    """Do nothing."""


class Watch:
    """Forwards progress; the build ends after the first `error` of the callback, or when `failed()`."""

    def __init__(self, progress: Progress, failed: Callable[[], bool]) -> None:
        self._progress = progress
        self._failed = failed
        self.error: BaseException | None = None

    def report(self, phase: str, done: int, total: int) -> bool:
        """Forward; return whether to continue. Raises nothing: the callers are TensorRT and a thread."""
        if self.error is None:
            try:
                self._progress(phase, done, total)
            except BaseException as problem:  # noqa: BLE001 - raised after the build
                self.error = problem
        return self.error is None and not self._failed()


@contextmanager
def watched(config: trt.IBuilderConfig, progress: Progress, failed: Callable[[], bool]) -> Iterator[Watch]:
    """Report the progress of the build that runs in the block."""
    import tensorrt as trt

    watch = Watch(progress, failed)
    base: Any = getattr(trt, "IProgressMonitor", None)  # from TensorRT 10 on
    if base is not None:
        monitor = _make_monitor(watch, base)
        untyped: Any = config
        untyped.progress_monitor = monitor
        yield watch
        del monitor  # TensorRT holds no reference, so this one lasts until here
        return
    ended = threading.Event()
    ticker = threading.Thread(target=_tick, args=(watch, ended), name="engine build", daemon=True)
    ticker.start()
    try:
        yield watch
    finally:
        ended.set()
        ticker.join()


def _tick(watch: Watch, ended: threading.Event) -> None:
    began = time.monotonic()
    while not ended.wait(_TICK_S):
        watch.report("building", round(time.monotonic() - began), 0)


def _make_monitor(watch: Watch, base: Any) -> object:  # noqa: ANN401 - a class of TensorRT
    class Monitor(base):  # type: ignore[misc]  # the class exists only where TensorRT has it
        def __init__(self) -> None:
            base.__init__(self)  # required by pybind11
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps
            watch.report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.report(phase_name, step + 1, self._steps.get(phase_name, 0))

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name, 0)
            watch.report(phase_name, steps, steps)

    return Monitor()
