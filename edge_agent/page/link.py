"""The page's connections to the agent of a state folder, by the messages of `core.local_socket`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.core.local_socket import LENGTHS, PAGE_SOCKET, BadMessage, lengths, pack, short_name, unpack
from edge_agent.page.errors import Refused, agent_away

ANSWER_S = 15.0
"""Longest wait for an answer: a command waits up to 10 s for the agent's driving thread."""


class Channel:
    """One connection to the agent, opened when it is used; questions wait for each other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, op: str, attached: bytes = b"", **values: object) -> tuple[dict[str, Any], bytes]:
        """Ask the agent; return the values and bytes of its answer.

        Refused: no agent runs, it does not answer, or it answers with an error.
        """
        async with self._turn:
            # Not `wait_for`, which may swallow a cancellation before Python 3.12: closing ends the wait too.
            limit = asyncio.get_running_loop().call_later(ANSWER_S, self.close)
            try:
                found, data = await self._exchange(op, values, attached)
            except (OSError, EOFError, BadMessage):
                self.close()
                raise agent_away() from None
            except BaseException:  # cancelled between question and answer
                self.close()
                raise
            finally:
                limit.cancel()
        if found.get("ok") is not True:
            code = str(found.get("code") or "failed")
            raise Refused(500 if code == "internal" else 400, code, str(found.get("error") or "it failed"))
        return found, data

    async def _exchange(
        self, op: str, values: Mapping[str, object], attached: bytes
    ) -> tuple[dict[str, Any], bytes]:
        if self._streams is None:
            with short_name(self._path) as name:
                self._streams = await asyncio.open_unix_connection(name)
        reader, writer = self._streams
        writer.write(pack({"op": op, **values}, attached))
        await writer.drain()
        text, size = lengths(await reader.readexactly(LENGTHS.size))
        return unpack(await reader.readexactly(text)), await reader.readexactly(size)

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._streams is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._streams[1].close()
            self._streams = None


class AgentLink:
    """Opens channels to the agent of a state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def channel(self) -> Channel:
        """Return a connection of its own, for questions that follow each other."""
        return Channel(self.state / PAGE_SOCKET)

    async def ask(self, op: str, attached: bytes = b"", **values: object) -> tuple[dict[str, Any], bytes]:
        """Ask one question; see `Channel.ask`."""
        channel = self.channel()
        try:
            return await channel.ask(op, attached, **values)
        finally:
            channel.close()

    async def command(
        self, verb: str, fields: Mapping[str, object], *, by: str, attached: bytes = b""
    ) -> dict[str, Any]:
        """Run a command of the agent in the name of a user; return its data. Refused: it failed."""
        found, _ = await self.ask("command", attached, verb=verb, fields=dict(fields), by=by)
        data = found.get("data")
        return data if isinstance(data, dict) else {}
