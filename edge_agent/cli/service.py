"""Running an agent on the main thread of a command, with a clean stop."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import EdgeAgentError

if TYPE_CHECKING:
    from types import FrameType

    from edge_agent.agent.daemon import Agent, Summary
    from edge_agent.core.config import Settings

_log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

START_GRACE_S = 1.5
"""How long a stop waits for the start-up to come to an end of its own, of the 3 s that a stop may take."""


def one_blas_thread() -> None:
    """Keep numpy's matrix products on the calling thread; call it before numpy is imported.

    OpenBLAS lets one thread per core spin on products that take microseconds, and takes the cores from
    decoding and packing: 286 instead of 17 microseconds of CPU per crop, and 1,221 instead of 2,699 crops a
    second, with a 64 x 384 x 256 product a batch on two busy cores. OPENBLAS_NUM_THREADS, where it is set,
    stays as it is.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


STREAM_OPTIONS = "rtsp_flags;prefer_tcp|fpsprobesize;0"
"""For OpenCV's FFmpeg: the first is what OpenCV itself sets where the variable is absent."""

RTSP_OPTIONS = f"{STREAM_OPTIONS}|allowed_media_types;video|analyzeduration;100000"
"""Also without the seven frames that tell how far H.264 reorders: .8 s to .3 s at 10 frames a second. FFmpeg
still waits for the first frame that tells the picture's size; sound beside it, which is why HTTP must do
without, would end that wait."""


def open_streams_at_once(settings: Settings) -> None:
    """Let FFmpeg not watch a stream for twenty frames to learn its frame rate, which nobody here asks for.

    A camera of 15 frames a second opened after 0.7 instead of 2.1 s, and the frames that were watched do not
    come in one heap afterwards, as if they had been taken at that moment. OpenCV takes such options from the
    environment alone, for everything that it opens, and the rate of some recordings (.ts) can be learnt in no
    other way; so only where nothing but streams is read. OPENCV_FFMPEG_CAPTURE_OPTIONS, where it is set,
    stays.
    """
    from edge_agent.source import source_kind

    urls = [source.url for source in settings.sources if source.enabled]
    if urls and all(source_kind(url) == "stream" for url in urls):
        rtsp = all(url.lower().startswith("rtsp") for url in urls)
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", RTSP_OPTIONS if rtsp else STREAM_OPTIONS)


def run_until_stopped(agent: Agent, *, reload: Callable[[], Settings] | None = None) -> Summary:
    """Run with SIGINT and SIGTERM as a clean stop, and SIGHUP as a reload of the settings.

    A stop during start-up that a network's initialisation holds up ends the process at once, with 0: nothing
    has been read yet. So does a second SIGINT at any time, with 130. Call it from the main thread.
    """
    stop = threading.Event()
    agent.reread = reload
    if not faulthandler.is_enabled():
        faulthandler.enable()  # at a watchdog's SIGABRT or a crash in a library: where every thread stands

    def act(number: int) -> None:
        if number == signal.SIGHUP:
            _reload(agent)
        elif not stop.is_set():
            _log.info("stopping", signal=signal.Signals(number).name)
            agent.asked_to_stop()
            stop.set()
            if not agent.opened.wait(START_GRACE_S):
                os._exit(0)
        elif number == signal.SIGINT:
            os._exit(130)

    with _signals(act):
        return agent.run(stop)


def _reload(agent: Agent) -> None:
    try:
        agent.reload_now()
    except EdgeAgentError as problem:
        _log.error("reload_refused", error=str(problem))


@contextmanager
def _signals(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with every signal, on a thread of its own.

    A handler of Python's own runs on the main thread, between two of its instructions: it must take no lock
    that this thread may hold just then (a logger's, an event's), and it does not run while the main thread
    is inside a library. The byte that Python writes at every signal has neither trouble.
    """
    arrived, written = socket.socketpair()
    written.setblocking(False)

    def listen() -> None:
        while number := arrived.recv(1):
            act(number[0])

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    former = {number: signal.signal(number, _only_noted) for number in _SIGNALS}
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


def _only_noted(_number: int, _frame: FrameType | None) -> None:
    """The byte has been written."""
