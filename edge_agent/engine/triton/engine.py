"""Backend `triton`: a network on a server, which may restart, be slow, vanish, or serve something else.

A batch without rows is lost, and its connection is given up. A thread then connects anew, with back-off,
and repeats all checks and the self-test, before another batch is sent. Until then every batch fails at once.
Reasons: `docs/decisions/045-networks-on-an-inference-server.md`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EdgeAgentError, EngineUnavailable
from edge_agent.core.served import parse_served
from edge_agent.core.structures import EngineInfo
from edge_agent.engine.base import DEPTH, Engine
from edge_agent.engine.graph.nodes import one_line
from edge_agent.engine.triton.connection import Connection, Run
from edge_agent.engine.triton.memory import Slot

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings
    from edge_agent.engine.triton.contract import Network

_log = structlog.get_logger(__name__)

RETRY_S = (0.5, 10.0)
"""Shortest and longest wait between attempts to connect."""
_TESTED = 8
"""Pictures of a buffer of the self-test."""


class _Remote(Engine):
    """Sends batches to `_connection`, if there is one: the engine, and the self-test of a connection."""

    def __init__(self, settings: EngineSettings, network: Network, *, max_batch: int, shared: bool) -> None:
        super().__init__(
            name=network.name, input_size=network.input_size, unit_length=True, max_batch=max_batch
        )
        self._settings, self._network, self._shared = settings, network, shared
        self._connection: Connection | None = None
        self._precision: str = "fp32" if settings.precision == "auto" else settings.precision
        self._slots_made: list[Slot] = []
        self._reason = "not connected yet"

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`; the precision is the wanted one until the server was asked."""
        network = self._network
        return EngineInfo(
            backend="triton",
            precision=self._precision,
            model=network.name,
            model_sha256=network.sha256,
            space=network.space,
            dimension=network.dimension,
            max_batch=self._max_batch,
            device=self._settings.backend.partition(":")[2],
        )

    def _load(self) -> None:
        self._slots_made = [Slot(self._max_batch, self.input_size, shared=self._shared) for _ in range(DEPTH)]
        self._begin()

    def _release(self) -> None:
        self._end()
        for slot in self._slots_made:
            slot.close()
        self._slots_made = []

    def _begin(self) -> None:
        """Start to use the slots."""

    def _end(self) -> None:
        """Stop using the slots."""

    def _slots(self) -> Iterable[Slot]:
        return self._slots_made

    def _pixels(self, slot: Slot) -> NDArray[np.uint8]:
        return slot.pixels

    def _start(self, slot: Slot, count: int) -> Run:
        run = Run(slot, count, connection=self._connection)
        try:
            if run.connection is None:
                raise EngineUnavailable(self._reason)  # noqa: TRY301 - the same end as a failure to send
            run.connection.begin(run, slot, self._network.profile)
        except Exception as problem:  # noqa: BLE001 - raised by `collect`
            run.error = problem
        return run

    def _wait(self, run: Run) -> None:
        if run.error is None and run.connection is not None:
            try:
                run.rows = run.connection.rows(run, self._network.dimension)
            except Exception as problem:  # noqa: BLE001 - raised by `collect`
                run.error = problem
        if run.error is not None:
            run.error = EngineUnavailable(one_line(run.error))
            if run.connection is not None:
                self._lose(run.connection, str(run.error))

    def _rows(self, run: Run) -> NDArray[np.float32]:
        assert run.rows is not None  # else there is an error
        return run.rows

    def _lose(self, connection: Connection, reason: str) -> None:
        """A batch on this connection has failed."""


class _Trial(_Remote):
    """An engine on a new connection, for the self-test."""

    def __init__(
        self, settings: EngineSettings, network: Network, connection: Connection, *, shared: bool
    ) -> None:
        super().__init__(settings, network, max_batch=min(_TESTED, settings.max_batch), shared=shared)
        self._connection = connection
        self._precision = connection.served.precision(settings.precision)

    def _begin(self) -> None:
        assert self._connection is not None
        share(self._slots_made, self._connection)

    def _end(self) -> None:
        assert self._connection is not None
        self._connection.unshare(
            [region.name for slot in self._slots_made for region in slot.regions.values()]
        )


class TritonEngine(_Remote):
    """Runs `network` on the server of `settings.backend`, in requests of what the model takes at once.

    The pictures of a batch go through shared memory where the server is on this machine and accepts it.
    `patient`: a server that does not answer on entering is no error; the engine connects later.
    """

    def __init__(self, settings: EngineSettings, network: Network, *, max_batch: int, patient: bool) -> None:
        Connection(settings).close()  # finds wrong settings early
        local = parse_served(settings.backend).is_loopback and settings.triton_shared_memory == "auto"
        super().__init__(settings, network, max_batch=max_batch, shared=local)
        self._patient = patient
        self._test: Callable[[Engine], None] = _nothing
        self._sharing = local
        self._trying: Connection | None = None
        self._changing = threading.Lock()
        self._lost_at = 0.0
        self._wake, self._leaving = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def _begin(self) -> None:
        self._wake, self._leaving = threading.Event(), threading.Event()

    @property
    def away(self) -> bool:
        """See `Engine.away`."""
        return self._connection is None

    def check(self, test: Callable[[Engine], None]) -> None:
        """Connect, and run the self-test on this and every later connection.

        Raises:
            EngineUnavailable: the server does not answer, unless the engine is patient.
            ModelError, ConfigError: the server does not have this network, or refuses the login.
        """
        self._test = test
        self._lost_at = time.monotonic()
        try:
            self._connect()
        except EngineUnavailable as problem:
            if not self._patient:
                raise EngineUnavailable(f"{self._settings.backend}: {problem}") from problem
            self._report(str(problem))
            self._wake.set()
        self._thread = threading.Thread(
            target=self._reconnect, args=(self._wake, self._leaving), name=f"engine {self._name}", daemon=True
        )
        self._thread.start()

    def _end(self) -> None:
        self._leaving.set()
        self._wake.set()
        with self._changing:
            open_now = [one for one in (self._trying, self._connection) if one is not None]
            self._trying = self._connection = None
        for connection in open_now:
            connection.close()
        if self._thread is not None:
            self._thread.join(2 * self._settings.triton_timeout_ms / 1e3)
            self._thread = None

    def _connect(self) -> None:
        """Make a connection, check it, and use it from now on; raises what is wrong."""
        connection = Connection(self._settings)
        try:
            self._trying = connection
            connection.open().served.check(self._network)
            if self._leaving.is_set():
                raise EngineUnavailable("the engine is closed")  # noqa: TRY301
            precision = connection.served.precision(self._settings.precision)
            sharing = self._sharing
            self._sharing = False  # if the self-test fails: the next attempt is without
            with _Trial(self._settings, self._network, connection, shared=sharing) as trial:
                self._test(trial)
            self._sharing = self._shared
            if sharing:
                share(self._slots_made, connection)
            with self._changing:
                self._trying = None
                if self._leaving.is_set():
                    raise EngineUnavailable("the engine is closed")  # noqa: TRY301
                self._connection, self._precision = connection, precision
        except BaseException:
            self._trying = None
            connection.close()
            raise
        away_s = round(time.monotonic() - self._lost_at, 1)
        _log.info(
            "engine_connected", server=self._settings.backend, version=connection.version, after_s=away_s,
            shared_memory=connection.shares,
        )  # fmt: skip
        self._report("")

    def _lose(self, connection: Connection, reason: str) -> None:
        with self._changing:
            if connection is not self._connection:
                return  # an older one, or lost already
            self._connection = None
            self._reason, self._lost_at = reason, time.monotonic()
        connection.close(lost=True)
        _log.warning("batch_failed", server=self._settings.backend, reason=reason)
        self._wake.set()

    def _reconnect(self, wake: threading.Event, leaving: threading.Event) -> None:
        """Connect whenever the connection was lost, until the engine is left."""
        while wake.wait() and not leaving.is_set():
            wake.clear()
            wait = RETRY_S[0]
            while not leaving.is_set():
                try:
                    self._connect()
                    break
                except Exception as problem:  # noqa: BLE001 - whatever it is, the next attempt may work
                    self._report(one_line(problem))
                leaving.wait(random.uniform(0.5, 1.0) * wait)  # noqa: S311 - devices must not return at once
                wait = min(2 * wait, RETRY_S[1])

    def _report(self, problem: str) -> None:
        """Store and report what prevents rows, "" when nothing does."""
        self._reason = problem or self._reason
        if problem == self.problem or self._leaving.is_set():
            return
        if problem:
            _log.warning("engine_unavailable", server=self._settings.backend, reason=problem)
        self.problem = problem
        try:
            self.on_problem(problem)
        except Exception as error:  # noqa: BLE001 - its errors must not end the connection
            _log.error("problem_not_reported", problem=problem, error=one_line(error))


def share(slots: Iterable[Slot], connection: Connection) -> None:
    """Let the server read the slots' memory that the model takes; where it does not, the bytes are sent."""
    for slot in slots:
        slot.tensor(prepared=connection.served.prepared)
        region = slot.regions.get(connection.served.prepared)
        if region is not None:
            try:
                connection.share(region)
            except EdgeAgentError as problem:
                _log.debug("no_shared_memory", server=str(connection.model), reason=str(problem))


def _nothing(_: Engine) -> None:
    """Test nothing."""
