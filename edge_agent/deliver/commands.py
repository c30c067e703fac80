"""Commands that come over MQTT: checked one after the other, carried out on a thread of their own, answered.

A command changes who is known, so everything about it is doubted. In this order it is refused when it

- was retained: it would be carried out again at every connect,
- is too large, or comes too often,
- names a verb that the settings do not allow,
- wants its answer on a topic of an agent, where it would look like an event,
- is no JSON object with the keys of that verb, and no others,
- is older than `max_age_s`, or was issued before this agent started,
- has the transaction of another command of the last minutes.

MQTT does not tell who sent a command: that is for the broker's access list (see `examples/mosquitto`).
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import structlog

from edge_agent.core.codec import from_wire
from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError
from edge_agent.core.events import COMMAND_TYPES, Command, CommandResultData, Event, new_event
from edge_agent.core.mqtt import Incoming
from edge_agent.deliver.pacing import TokenBucket
from edge_agent.deliver.topics import PREFIX, Topics

__all__ = ["CommandDesk", "Operation", "Reply"]

log = structlog.get_logger(__name__)

Operation: TypeAlias = Callable[[Any], Mapping[str, Any] | None]
"""Carries out one command, given its dataclass, and returns JSON values for the answer.

An EdgeAgentError that it raises becomes the answer's `error`."""

QUEUE = 32
"""Commands that may wait for the ones before them."""
BURST = 20
REFUSALS_PER_S = 5.0
"""Answers to refused commands: a flood of bad commands must not become a flood of answers."""
LONGEST_RESPONSE_TOPIC = 512
CLOCK_SET = 1_704_067_200.0
"""2024-01-01. A clock that shows less was never set, and cannot tell an old command."""


class Reply(Protocol):
    """Sends an answer; `Publisher.answer` is one."""

    def __call__(self, topic: str, event: Event, *, correlation: bytes | None = None) -> None:
        """Send `event` to `topic`."""


class _Refused(Exception):
    """A command is not carried out; `code` is for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class CommandDesk:
    """Takes commands from the publisher, which calls `accept`, while it is entered.

    Args:
        site, device: who is commanded.
        operations: what carries each verb out.
        allowed: verbs that the settings allow; the others are refused.
        max_bytes: largest payload.
        per_s: commands per second that are looked at; the others are refused.
        max_age_s: older commands are refused, and no transaction may come twice in this time.
        clock: Unix seconds.

    Raises:
        ConfigError: an allowed verb is unknown, or nothing carries it out.
    """

    def __init__(
        self,
        *,
        site: str,
        device: str,
        operations: Mapping[str, Operation],
        allowed: Collection[str],
        max_bytes: int = 512 << 10,
        per_s: float = 5.0,
        max_age_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        for verb in allowed:
            if verb not in COMMAND_TYPES or verb not in operations:
                known = ", ".join(sorted(set(COMMAND_TYPES) & set(operations)))
                raise ConfigError(f"mqtt.commands: {verb!r} is no command; there are {known}")
        self._topics = Topics(site, device)
        self._operations = operations
        self._allowed = frozenset(allowed)
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._started = clock()
        self._allowance = TokenBucket(per_s, BURST)
        self._refusals = TokenBucket(REFUSALS_PER_S, BURST)
        self._transactions: OrderedDict[str, float] = OrderedDict()
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._work, name="commands", daemon=True)
        self.accepted = 0
        """Commands that were carried out, or tried."""
        self.refused = 0
        """Commands that were not."""

    def __enter__(self) -> CommandDesk:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits a moment for the command under way; the ones that wait are dropped."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join(1.0)

    def accept(self, message: Incoming, reply: Reply) -> None:
        """Check a message from a command topic and queue it, or answer why not. Never waits, never raises."""
        verb = self._topics.verb_of(message.topic)
        transaction: str | None = None
        try:
            self._check_outside(message, verb)
            found = _json_object(message.payload)
            transaction = _transaction(found)
            command = self._read(verb, found)
            self._check_time(command)
            self._queue.put_nowait(lambda: self._carry_out(verb, command, message, reply))
        except (_Refused, queue.Full) as problem:
            code = problem.code if isinstance(problem, _Refused) else "busy"
            self._refuse(verb, transaction, code, str(problem) or "too many commands wait", message, reply)

    def _refuse(
        self, verb: str, transaction: str | None, code: str, text: str, message: Incoming, reply: Reply
    ) -> None:
        self.refused += 1
        if not self._refusals.take():
            return
        log.warning("command refused", verb=verb[:64], code=code, reason=text)
        known = verb if verb in COMMAND_TYPES else "unknown"
        data = CommandResultData(known, transaction, "error", code, text)
        self._answer(data, message, reply)

    # --- checks -------------------------------------------------------------------------------------------

    def _check_outside(self, message: Incoming, verb: str) -> None:
        """What can be said without reading the payload."""
        if message.retained:
            raise _Refused("retained", "a retained command is refused: publish it without retain")
        if len(message.payload) > self._max_bytes:
            raise _Refused("too-large", f"{len(message.payload)} bytes; at most {self._max_bytes} are read")
        if not self._allowance.take():
            raise _Refused("too-many", "commands come too fast; wait a second")
        if verb not in self._allowed:
            listed = ", ".join(sorted(self._allowed))
            raise _Refused("not-allowed", f"this command is not allowed here; allowed are: {listed}")
        if not self._is_fit(message.response_topic):
            raise _Refused("malformed", "the response topic has wildcards, is too long, or is an agent's own")

    def _is_fit(self, topic: str | None) -> bool:
        if topic is None:
            return True
        wild = any(mark in topic for mark in "+#\0")
        return (
            not wild
            and 0 < len(topic) <= LONGEST_RESPONSE_TOPIC
            and not topic.startswith((f"{PREFIX}/", "$"))
        )

    def _read(self, verb: str, found: dict[str, Any]) -> Command:
        wanted = COMMAND_TYPES[verb]
        known = {entry.name for entry in fields(wanted)}
        unknown = sorted(set(found) - known)
        if unknown:
            raise _Refused(
                "malformed", f"unknown key {unknown[0][:64]!r}; known are {', '.join(sorted(known))}"
            )
        try:
            command = from_wire(wanted, found)
        except InputError as problem:
            raise _Refused("malformed", str(problem)[:300]) from problem
        _check_printable(command)
        return command

    def _check_time(self, command: Command) -> None:
        """Refuse what is old, or was seen before."""
        now = self._clock()
        if now < CLOCK_SET:
            raise _Refused("expired", "the clock of this device is not set, so no command can be checked")
        if abs(now - command.issued) > self._max_age_s:
            raise _Refused(
                "expired", f"issued {now - command.issued:.0f} s ago; {self._max_age_s:.0f} s are allowed"
            )
        if command.issued < self._started - 1.0:
            raise _Refused("expired", "issued before this agent started; send it again")
        while self._transactions and next(iter(self._transactions.values())) < now - 2 * self._max_age_s:
            self._transactions.popitem(last=False)
        if command.transaction in self._transactions:
            raise _Refused("replayed", "a command with this transaction came before")
        self._transactions[command.transaction] = now

    # --- carrying out -------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            task()

    def _carry_out(self, verb: str, command: Command, message: Incoming, reply: Reply) -> None:
        self.accepted += 1
        try:
            found = self._operations[verb](command)
            data = CommandResultData(
                verb, command.transaction, "ok", data=None if found is None else dict(found)
            )
            log.info("command done", verb=verb, transaction=command.transaction)
        except EdgeAgentError as problem:
            data = CommandResultData(verb, command.transaction, "error", "failed", str(problem))
            log.warning("command failed", verb=verb, transaction=command.transaction)
        except Exception:  # a fault in one command must not end the thread that runs them all
            data = CommandResultData(
                verb, command.transaction, "error", "failed", "internal error; see the agent's log"
            )
            log.exception("command failed unexpectedly", verb=verb, transaction=command.transaction)
        self._answer(data, message, reply)

    def _answer(self, data: CommandResultData, message: Incoming, reply: Reply) -> None:
        own = self._topics.result(data.verb)
        topic = message.response_topic if self._is_fit(message.response_topic) else None
        event = new_event("command-result", data, detail=None, time=self._clock())
        reply(topic or own, event, correlation=message.correlation)


def _json_object(payload: bytes) -> dict[str, Any]:
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as problem:
        raise _Refused("malformed", "the payload is not JSON") from problem
    if not isinstance(found, dict):
        raise _Refused("malformed", "the payload is not a JSON object")
    return found


def _transaction(found: dict[str, Any]) -> str | None:
    """The transaction as far as it can be echoed."""
    value = found.get("transaction")
    return value if isinstance(value, str) and 0 < len(value) <= 128 else None


def _check_printable(command: Command) -> None:
    """Refuse texts with control characters."""
    for entry in fields(command):
        value = getattr(command, entry.name)
        if isinstance(value, str) and entry.name != "crop" and not value.isprintable():
            raise _Refused("malformed", f"{entry.name} has characters that cannot be shown")
