"""The WebSocket of the page: pictures on request, and events as they come.

The browser asks for the next picture of a camera with `{"picture": CAMERA}` and gets one binary message:
four bytes with the length of a JSON object, the object, and a JPEG. It asks again when it has shown the
picture, so a slow viewer gets fewer, and costs nothing while it waits. What the agent sent for one viewer
serves the others. Everything else comes as JSON texts with a `type`.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.websockets import WebSocket, WebSocketDisconnect

from edge_agent.page.errors import Refused
from edge_agent.page.link import AgentLink, Channel

if TYPE_CHECKING:
    from edge_agent.page.app import Page

WAIT_S = 1.0
"""Of one question for a picture."""
SEND_S = 10.0
"""A viewer that takes nothing for this time is disconnected."""
CHECK_S = 2.0
"""Interval at which the session is checked."""
MAX_VIEWERS = 16
MOST_WAITING = 300
"""Texts that may wait for a viewer; then it is told to load everything again."""
MOST_ASKING = 16
"""Cameras that are asked for at a time: an agent admits 32 connections, and commands need some of them."""
LONGEST_REQUEST = 1000
SESSION_OVER, TOO_MANY = 4401, 4429
"""Codes of the end of a WebSocket."""

Shown: TypeAlias = tuple[int, bytes, float]
"""Number of a picture, its message, and when it came (`time.monotonic`)."""
FRESH_S = 0.3
"""A picture that came within this time serves other viewers too."""


class Cameras:
    """The newest picture of each camera that somebody watches."""

    def __init__(self, link: AgentLink) -> None:
        self._link = link
        self._channels: list[Channel] = []
        self._free: list[Channel] = []
        self._turns = asyncio.Semaphore(MOST_ASKING)
        self._newest: dict[str, Shown] = {}
        self._asking: dict[str, asyncio.Task[Shown | None]] = {}

    async def next(self, camera: str, after: int) -> Shown | None:
        """Return a picture with another number than `after`; None: there was none within a second."""
        newest = self._newest.get(camera)
        if newest is not None and newest[0] != after and time.monotonic() - newest[2] < FRESH_S:
            return newest
        task = self._asking.get(camera)
        if task is None:
            task = self._asking[camera] = asyncio.create_task(self._ask(camera))
            task.add_done_callback(lambda _: self._asking.pop(camera, None))
        return await asyncio.shield(task)

    async def _ask(self, camera: str) -> Shown | None:
        async with self._turns:
            if not self._free:
                self._free.append(self._link.channel())
                self._channels.append(self._free[-1])
            channel = self._free.pop()
            number = self._newest[camera][0] if camera in self._newest else 0
            try:
                found, jpeg = await channel.ask("picture", camera=camera, after=number, wait_s=WAIT_S)
            finally:
                self._free.append(channel)
        if found["picture"] is None:
            return None
        text = json.dumps(found["picture"], separators=(",", ":")).encode()
        message = struct.pack(">I", len(text)) + text + jpeg
        self._newest[camera] = shown = (int(found["number"]), message, time.monotonic())
        return shown

    def rest(self) -> None:
        """Nobody watches any more: close the connections, and drop the pictures."""
        for channel in self._channels:
            channel.close()
        self._newest.clear()


@dataclass(slots=True)
class Viewer:
    """One WebSocket: what it waits for, and what waits for it."""

    page: Page
    socket: WebSocket
    token: str | None
    _texts: deque[dict[str, Any]] = field(default_factory=deque)
    _shown: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Number of the picture shown last, and when it was sent."""
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _pictures: deque[tuple[str, Shown]] = field(default_factory=deque)

    async def run(self) -> None:
        """Serve until the browser or the session ends."""
        self.page.events.listeners.add(self.tell)
        self.tell({"type": "agent", "online": self.page.events.online, "session": self.page.events.session})
        parts = [asyncio.create_task(part()) for part in (self._receive, self._send, self._check)]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.page.events.listeners.discard(self.tell)
            for task in (*parts, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(*parts, *self._tasks.values(), return_exceptions=True)

    def tell(self, message: dict[str, Any]) -> None:
        """Queue a text; a viewer that does not keep up loads everything again."""
        if len(self._texts) >= MOST_WAITING:
            self._texts.clear()
            message = {"type": "reload"}
        self._texts.append(message)
        self._news.set()

    async def _check(self) -> None:
        """End with the session."""
        while self.page.session_of(self.token) is not None:
            await asyncio.sleep(CHECK_S)
        await self._within(self.socket.close(SESSION_OVER))

    async def _receive(self) -> None:
        try:
            while True:
                text = await self.socket.receive_text()
                wanted = json.loads(text) if len(text) <= LONGEST_REQUEST else None
                if isinstance(wanted, dict) and isinstance(camera := wanted.get("picture"), str):
                    self._want(camera)
        except (WebSocketDisconnect, ValueError, KeyError, RuntimeError, RecursionError):
            return

    def _want(self, camera: str) -> None:
        queued = any(waiting == camera for waiting, _ in self._pictures)  # of a viewer that reads nothing
        if queued or camera in self._tasks or not self.page.knows_camera(camera):
            return
        task = self._tasks[camera] = asyncio.create_task(self._fetch(camera))
        task.add_done_callback(lambda _: self._tasks.pop(camera, None))

    async def _fetch(self, camera: str) -> None:
        """Wait for the next picture of a camera, at most `fps` a second, and queue it."""
        number, sent = self._shown.get(camera, (0, 0.0))
        due = sent + 1.0 / self.page.settings.fps
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        shown: Shown | None = None
        while shown is None or shown[0] == number:
            try:
                shown = await self.page.cameras.next(camera, number)
            except Refused:
                await asyncio.sleep(WAIT_S)
        self._shown[camera] = shown[0], max(due, time.monotonic() - 0.5 / self.page.settings.fps)
        self._pictures.append((camera, shown))
        self._news.set()

    async def _send(self) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._texts or self._pictures:
                    if self._texts:
                        await self._within(self.socket.send_text(json.dumps(self._texts.popleft())))
                    if self._pictures:
                        await self._within(self.socket.send_bytes(self._pictures.popleft()[1][1]))
        except (WebSocketDisconnect, RuntimeError, OSError, asyncio.TimeoutError):
            return

    @staticmethod
    async def _within(sending: Coroutine[Any, Any, None]) -> None:
        """Wait for the end of a sending, at most `SEND_S`.

        Not by `wait_for`, which may swallow a cancellation before Python 3.12.
        """
        task = asyncio.create_task(sending)
        try:
            done, _ = await asyncio.wait((task,), timeout=SEND_S)
        finally:
            task.cancel()  # no effect where it is done
        if not done:
            raise asyncio.TimeoutError
        task.result()


def websocket(page: Page) -> Callable[[WebSocket], Awaitable[None]]:
    """Return the endpoint of the WebSocket; the guard has checked host and origin."""
    viewers: set[int] = set()

    async def serve(socket: WebSocket) -> None:
        token = page.token(socket)
        if page.session_of(token) is None:
            await socket.close(SESSION_OVER)
            return
        await socket.accept()
        if len(viewers) >= MAX_VIEWERS:
            await socket.close(TOO_MANY)
            return
        viewers.add(id(socket))
        try:
            await Viewer(page, socket, token).run()
        finally:
            viewers.discard(id(socket))
            if not viewers:
                page.cameras.rest()

    return serve
