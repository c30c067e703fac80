"""Running an agent on the main thread of a command, with a clean stop."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import structlog

from edge_agent.cli.output import show_cursor
from edge_agent.core.errors import EdgeAgentError
from edge_agent.core.private import exposed, remedy

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from edge_agent.agent.daemon import Agent
    from edge_agent.agent.results import Summary
    from edge_agent.core.config import Settings

_log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

START_GRACE_S = 1.5  # wait of a stop for the end of the start, of the 3 s that a stop may take


def one_blas_thread() -> None:
    """Run numpy's matrix products on the calling thread; call it before numpy is imported.

    Otherwise OpenBLAS runs one spinning thread per core for products of microseconds: 1,221 instead of 2,699
    crops a second, with a 64 x 384 x 256 product a batch on two busy cores. An existing OPENBLAS_NUM_THREADS
    is kept.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


STREAM_OPTIONS = "rtsp_flags;prefer_tcp|fpsprobesize;0"
"""Options of FFmpeg in OpenCV; the first is the default of OpenCV."""

RTSP_OPTIONS = f"{STREAM_OPTIONS}|allowed_media_types;video|analyzeduration;100000"
"""Also skips the seven frames that determine the reordering of H.264: 0.3 s instead of 0.8 s at 10 frames a
second. FFmpeg still waits for the first frame with the picture size; an audio stream would end that wait, so
HTTP does without these options."""


def open_streams_at_once(settings: Settings) -> None:
    """Stop FFmpeg from reading twenty frames of a stream to measure its frame rate, which is not used.

    A camera with 15 frames a second opens in 0.7 s instead of 2.1 s, without a first burst of frames with
    wrong capture times. OpenCV reads these options only from the environment, for all that
    it opens, and the rate of some recordings (.ts) needs the analysis, so they are set only if all sources
    are streams. An existing OPENCV_FFMPEG_CAPTURE_OPTIONS is kept.
    """
    from edge_agent.source.address import source_kind

    urls = [source.url for source in settings.sources if source.enabled]
    if urls and all(source_kind(url) == "stream" for url in urls):
        rtsp = all(url.lower().startswith("rtsp") for url in urls)
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", RTSP_OPTIONS if rtsp else STREAM_OPTIONS)


def stream_secrets(settings: Settings) -> frozenset[str]:
    """Return what the libraries that read streams must not write to standard error; none without a stream."""
    from edge_agent.core.setting_secrets import secrets_of
    from edge_agent.source.address import source_kind

    streams = any(source_kind(source.url) == "stream" for source in settings.sources if source.enabled)
    return secrets_of(settings) if streams else frozenset()


def run_until_stopped(agent: Agent, *, reload: Callable[[], Settings] | None = None) -> Summary:
    """Run until the end or a clean stop by SIGINT or SIGTERM; SIGHUP reloads the settings.

    If the initialisation of a network delays a stop during the start, the process exits at once with 0, since
    nothing has been read yet. A second SIGINT exits at once with 130. Call it from the main thread.
    """
    stop = threading.Event()
    agent.reread = reload
    if not faulthandler.is_enabled():
        faulthandler.enable()  # stacks of all threads at the watchdog's SIGABRT or a crash

    def act(number: int) -> None:
        if number == signal.SIGHUP:
            try:
                agent.reload_now()
            except EdgeAgentError as problem:
                _log.error("reload_refused", error=str(problem))
        elif not stop.is_set():
            _log.info("stopping", signal=signal.Signals(number).name)
            agent.asked_to_stop()
            stop.set()
            if not agent.opened.wait(START_GRACE_S):
                _leave(0)
        elif number == signal.SIGINT:
            _leave(130)

    with _signals(act):
        return agent.run(stop)


def _leave(code: int) -> NoReturn:
    show_cursor()
    os._exit(code)


def log_exposed(files: Iterable[Path]) -> None:
    """Warn of files with a secret that every user may read."""
    for path in exposed(files):
        _log.warning("secret_readable", file=str(path), advice=remedy(path))


@contextmanager
def _signals(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with every signal, on a separate thread.

    A Python signal handler runs on the main thread between two instructions: it may deadlock on a lock that
    this thread holds (of a logger, of an event), and does not run while the thread is inside a library. The
    wake-up byte that Python writes for every signal avoids both.
    """
    arrived, written = socket.socketpair()
    written.setblocking(False)

    def listen() -> None:
        while number := arrived.recv(1):
            act(number[0])

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    former = {number: signal.signal(number, _ignore) for number in _SIGNALS}
    former_fd = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former_fd)
        for number, handler in former.items():
            signal.signal(number, handler)
        written.close()
        thread.join()
        arrived.close()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: Python has written the wake-up byte."""
