"""Commands over MQTT: checked one after the other, run on a thread of their own, and answered.

A command changes the gallery, so all of its input is checked. In this order it is refused when it

- was retained: it would run again at every connect,
- is too large, or comes too soon after others,
- has a verb that the settings do not allow,
- requests its answer on a topic that is neither below this device's own nor below `mqtt.response_prefix` (a
  sender of commands must not publish elsewhere in the name of the agent), or on one of events, states or
  commands,
- is not a JSON object with the keys of its verb, and no others,
- is not fresh (`freshness`),
- has the transaction of another command of the last minutes.

MQTT does not identify the sender of a command: access is controlled by the broker's access list (see
`examples/mosquitto`).
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from edge_agent.core.codec import from_wire
from edge_agent.core.commands import COMMAND_TYPES, Command
from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError
from edge_agent.core.events import CommandResultData, Event, new_event
from edge_agent.core.mqtt import Incoming
from edge_agent.core.text import is_visible
from edge_agent.deliver.freshness import MAX_AGE_S, Freshness
from edge_agent.deliver.pacing import TokenBucket
from edge_agent.deliver.topics import PREFIX, Topics

if TYPE_CHECKING:
    from edge_agent.core.clock import Clock
    from edge_agent.core.delivery_settings import MqttSettings

log = structlog.get_logger(__name__)

Operation: TypeAlias = Callable[[Any], Mapping[str, Any] | None]
"""Runs one command, given its dataclass, and returns JSON values for the answer.

An EdgeAgentError that it raises becomes the `error` of the answer."""

Reply: TypeAlias = Callable[[str, Event, bytes | None], None]
"""Sends an event to a topic, with correlation data, as `Pump.answer` does."""

MAX_BYTES = 512 << 10
"""Largest payload."""
COMMANDS_PER_S = 5.0
"""Commands that are checked further; the others are refused."""
QUEUE = 32
"""Commands that may wait for those before them."""
BURST = 20
REFUSALS_PER_S = 5.0
"""Answers to refused commands: a flood of bad commands must not cause a flood of answers."""
LONGEST_RESPONSE_TOPIC = 512
"""Bytes."""
LONGEST_CORRELATION = 1024
"""Bytes."""


class _Refused(Exception):
    """A command is not run; `code` is for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def open_commands(
    settings: MqttSettings,
    operations: Mapping[str, Operation],
    clock: Clock,
    session: str,
    stack: contextlib.ExitStack,
) -> CommandDesk | None:
    """Start to take commands from the broker; None where no broker is set or no command is allowed."""
    if settings.broker is None or not settings.commands:
        return None
    return stack.enter_context(CommandDesk(settings, operations, clock, session))


class CommandDesk:
    """Takes commands from the publisher, which calls `accept`, while it is entered. `session`: of this run.

    Raises:
        ConfigError: an allowed verb is unknown, or has no operation.
    """

    def __init__(
        self,
        settings: MqttSettings,
        operations: Mapping[str, Operation],
        clock: Clock,
        session: str,
    ) -> None:
        for verb in settings.commands:
            if verb not in COMMAND_TYPES or verb not in operations:
                known = ", ".join(sorted(set(COMMAND_TYPES) & set(operations)))
                raise ConfigError(f"mqtt.commands: {verb!r} is not a command; valid: {known}")
        self._topics = Topics(settings.site, settings.device)
        self._places = [place for place in (self._topics.root, settings.response_prefix) if place]
        """Beginnings of the response topics that are allowed."""
        self._operations = operations
        self._allowed = frozenset(settings.commands)
        self._clock = clock
        self._session = session
        self._freshness = Freshness(clock)
        self._allowance = TokenBucket(COMMANDS_PER_S, BURST)
        self._refusals = TokenBucket(REFUSALS_PER_S, BURST)
        self._transactions: OrderedDict[str, float] = OrderedDict()
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._work, name="commands", daemon=True)
        self.accepted = 0
        """Commands that were run, also those that failed."""
        self.refused = 0
        """Commands that were not run."""

    def __enter__(self) -> CommandDesk:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a moment for the running command; those in the queue are dropped."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join(1.0)

    def accept(self, message: Incoming, reply: Reply) -> None:
        """Check a message from a command topic and queue it, or answer why not. Does not block or raise."""
        verb = self._topics.verb_of(message.topic)
        transaction: str | None = None
        try:
            self._check_outside(message, verb)
            found = _json_object(message.payload)
            transaction = _transaction(found)
            command = self._read(verb, found)
            self._check_time(command)
            self._queue.put_nowait(lambda: self._run_command(verb, command, message, reply))
        except (_Refused, queue.Full) as problem:
            code = problem.code if isinstance(problem, _Refused) else "busy"
            self._refuse(
                verb, transaction, code, str(problem) or "too many commands are waiting", message, reply
            )

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
        """Check all but the content of the payload."""
        if message.retained:
            raise _Refused("retained", "a retained command is refused: publish it without retain")
        if len(message.payload) > MAX_BYTES:
            raise _Refused("too-large", f"{len(message.payload)} bytes; the limit is {MAX_BYTES}")
        if not self._allowance.take():
            raise _Refused("too-many", "too many commands; wait a second")
        if verb not in self._allowed:
            listed = ", ".join(sorted(self._allowed))
            raise _Refused("not-allowed", f"this command is not allowed; allowed: {listed}")
        if not self._is_usable(message.response_topic):
            places = " or ".join(f"{place}/..." for place in self._places)
            raise _Refused(
                "malformed", f"the response topic is not allowed; allowed: {places}, but no event's"
            )
        if message.correlation is not None and len(message.correlation) > LONGEST_CORRELATION:
            raise _Refused("malformed", f"more than {LONGEST_CORRELATION} bytes of correlation data")

    def _is_usable(self, topic: str | None) -> bool:
        """Whether a result may go to this topic; None is the default topic."""
        if topic is None:
            return True
        plain = topic.isprintable() and not any(mark in topic for mark in "+#") and not topic.endswith("/")
        if not plain or len(topic.encode()) > LONGEST_RESPONSE_TOPIC:
            return False
        if topic.startswith(f"{PREFIX}/") and not topic.startswith(f"{self._topics.root}/"):
            return False
        allowed = topic.startswith(tuple(f"{place}/" for place in self._places))
        return allowed and not self._topics.is_taken(topic)

    def _read(self, verb: str, found: dict[str, Any]) -> Command:
        try:
            return read_command(verb, found)
        except InputError as problem:
            raise _Refused("malformed", str(problem)[:300]) from problem

    def _check_time(self, command: Command) -> None:
        """Refuse a command that is old or was received before."""
        now = self._clock.now()
        while self._transactions and next(iter(self._transactions.values())) < now - 2 * MAX_AGE_S:
            self._transactions.popitem(last=False)
        if command.transaction in self._transactions:
            raise _Refused("replayed", "a command with this transaction came before")
        if command.session not in (None, self._session):
            raise _Refused("expired", "for another run of this agent; its status names the present one")
        if problem := self._freshness.problem(command.issued, names_run=command.session is not None):
            raise _Refused("expired", problem)
        self._transactions[command.transaction] = now

    # --- running ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            task()

    def _run_command(self, verb: str, command: Command, message: Incoming, reply: Reply) -> None:
        self.accepted += 1
        transaction = command.transaction
        try:
            found = self._operations[verb](command)
            data = CommandResultData(verb, transaction, "ok", data=None if found is None else dict(found))
            log.info("command done", verb=verb, transaction=transaction)
        except EdgeAgentError as problem:
            data = CommandResultData(verb, transaction, "error", "failed", str(problem))
            log.warning("command failed", verb=verb, transaction=transaction)
        except Exception:  # a bug in one command must not end the thread that runs all of them
            text = "internal error; see the agent's log"
            data = CommandResultData(verb, transaction, "error", "failed", text)
            log.exception("command failed unexpectedly", verb=verb, transaction=transaction)
        self._answer(data, message, reply)

    def _answer(self, data: CommandResultData, message: Incoming, reply: Reply) -> None:
        own = self._topics.result(data.verb)
        topic = message.response_topic if self._is_usable(message.response_topic) else None
        event = new_event("command-result", data, detail=None, time=self._clock.label())
        correlation = message.correlation
        if correlation is not None and len(correlation) > LONGEST_CORRELATION:
            correlation = None
        reply(topic or own, event, correlation)


def read_command(verb: str, found: Mapping[str, Any]) -> Command:
    """Return the command of a verb with these keys and values; InputError: they are not those of the verb."""
    wanted = COMMAND_TYPES.get(verb)
    if wanted is None:
        raise InputError(f"{verb[:64]!r} is not a command")
    known = {entry.name for entry in fields(wanted)}
    if unknown := sorted(set(found) - known):
        raise InputError(f"unknown key {unknown[0][:64]!r}; valid: {', '.join(sorted(known))}")
    command = from_wire(wanted, dict(found))
    for entry in fields(command):
        value = getattr(command, entry.name)
        if isinstance(value, str) and entry.name != "crop" and not is_visible(value):
            raise InputError(f"{entry.name} has characters that cannot be seen")
    return command


def _json_object(payload: bytes) -> dict[str, Any]:
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as problem:
        raise _Refused("malformed", "the payload is not JSON") from problem
    if not isinstance(found, dict):
        raise _Refused("malformed", "the payload is not a JSON object")
    return found


def _transaction(found: dict[str, Any]) -> str | None:
    """The transaction, if it is valid."""
    value = found.get("transaction")
    return value if isinstance(value, str) and 0 < len(value) <= 128 else None
