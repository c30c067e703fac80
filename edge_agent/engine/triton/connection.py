"""A connection to an inference server by tritonclient, with a deadline on every call."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.distribution import install_command
from edge_agent.core.errors import ConfigError, EdgeAgentError, EngineUnavailable, InputError, ModelError
from edge_agent.core.files import MAX_TEXT_BYTES, read_file
from edge_agent.core.redaction import redact
from edge_agent.core.served import ServedModel, parse_served
from edge_agent.core.text import visible
from edge_agent.engine.base import Submission
from edge_agent.engine.graph.nodes import one_line
from edge_agent.engine.graph.prepared import PreprocessProfile
from edge_agent.engine.triton.contract import Served, read_served

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agent.core.config import EngineSettings
    from edge_agent.engine.triton.memory import Region, Slot

_GRACE_S = 1.0
"""Beyond the deadline, which gRPC itself keeps."""
_FORGET_S = 1.0
"""Deadline of calls that only tidy up."""
_CHANNEL = {
    # A server that vanished without closing the connection is noticed during a call. No pings between calls:
    # Triton closes connections that ping more than every five minutes without data.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.keepalive_permit_without_calls": 0,
    "grpc.http2.max_pings_without_data": 2,
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": 64 << 20,
    # Connections of their own, since a shared one waits up to two minutes after failures.
    "grpc.use_local_subchannel_pool": 1,
    "grpc.enable_retries": 0,
    "grpc.enable_http_proxy": 0,
}
_LONGEST = 500
"""Characters of a server's message that are shown."""
_LONGEST_VERSION = 32
_PERMANENT = {"NOT_FOUND": ModelError, "UNAUTHENTICATED": ConfigError, "PERMISSION_DENIED": ConfigError}
"""Answers that do not change by trying again: the model or the login must be changed first."""


@dataclass(slots=True)
class Run(Submission):
    """A batch in flight, in one request or several; `rows` are `(count, D)` once they were taken."""

    connection: Connection | None = field(default=None, kw_only=True)
    answers: list[Any] = field(default_factory=list, kw_only=True)
    left: int = field(default=0, kw_only=True)
    began: float = field(default=0.0, kw_only=True)
    ended: float = field(default=0.0, kw_only=True)
    done: threading.Event = field(default_factory=threading.Event, kw_only=True)
    rows: NDArray[np.float32] | None = field(default=None, kw_only=True)


class Connection:
    """A channel to a server, and one of its models; made by `connect`.

    Attributes:
        served: what the server states about the model.
        version: that of the answers, once there was one; an answer of another version is an error.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.model = parse_served(settings.backend)
        self.version = self.model.version
        self._timeout_s = settings.triton_timeout_ms / 1e3
        self._token = settings.triton_token
        self._grpc = _library()
        self._client = self._grpc.InferenceServerClient(
            self.model.authority, **_channel(self.model, settings)
        )
        self._shared: set[str] = set()
        self._counting = threading.Lock()
        self._ended = 0.0
        self.served: Served

    def open(self) -> Connection:
        """Ask for the model; return the connection.

        Raises:
            EngineUnavailable: the server does not answer.
            ModelError: it has no such model, or one of another kind.
            ConfigError: it refuses the login.
        """
        name, version = self.model.model, self.model.version
        metadata = self._ask(self._client.get_model_metadata, name, version)
        try:
            config = self._ask(self._client.get_model_config, name, version).config
        except _Unimplemented:
            config = None
        self.served = read_served(self.model, metadata, config)
        return self

    def close(self, *, lost: bool = False) -> None:
        """Close the channel; batches in flight fail. Unless `lost`, the server forgets shared memory."""
        if not lost:
            self.unshare(self._shared.copy())
        self._client.close()

    @property
    def shares(self) -> bool:
        """Whether the server reads shared memory."""
        return bool(self._shared)

    def share(self, region: Region) -> None:
        """Let the server read a region; EngineUnavailable, ModelError: it does not."""
        self.unshare([region.name])  # of an earlier connection to the same server
        self._ask(self._client.register_system_shared_memory, region.name, f"/{region.name}", region.size)
        self._shared.add(region.name)

    def unshare(self, names: Iterable[str]) -> None:
        """End `share` of regions, as far as the server answers within `_FORGET_S`."""
        with contextlib.suppress(EdgeAgentError):
            for name in names:
                self._shared.discard(name)
                self._ask(self._client.unregister_system_shared_memory, name, seconds=_FORGET_S)

    def begin(self, run: Run, slot: Slot, profile: PreprocessProfile) -> None:
        """Send the first `run.count` pictures of a slot, in as many requests as the model needs."""
        run.began = time.perf_counter()
        served, count = self.served, run.count
        tensor = slot.tensor(prepared=served.prepared)
        if not served.prepared:
            to_planes(slot.pixels[:count], tensor[:count], profile)
        most = served.most or count
        starts = range(0, count, most)
        run.answers, run.left = [None] * len(starts), len(starts)
        region = slot.regions.get(served.prepared)
        for index, start in enumerate(starts):
            self._send(run, index, tensor[start : start + min(most, count - start)], region, start)

    def _send(self, run: Run, index: int, tensor: NDArray[Any], region: Region | None, start: int) -> None:
        served = self.served
        source = self._grpc.InferInput(
            served.input, list(tensor.shape), "UINT8" if served.prepared else "FP32"
        )
        if region is not None and region.name in self._shared:
            source.set_shared_memory(region.name, tensor.nbytes, offset=start * tensor[0].nbytes)
        else:
            source.set_data_from_numpy(tensor)

        def answered(result: Any, error: Exception | None) -> None:  # noqa: ANN401 - InferResult
            with self._counting:
                run.answers[index] = result if error is None else error
                run.left -= 1
                if not run.left:
                    run.ended = time.perf_counter()
                    run.done.set()

        self._client.async_infer(
            served.model.model,
            [source],
            answered,
            model_version=served.model.version,
            outputs=[self._grpc.InferRequestedOutput(served.output)],
            timeout=int(self._timeout_s * 1e6),
            client_timeout=self._timeout_s,
            headers=self._headers(),
        )

    def rows(self, run: Run, dimension: int) -> NDArray[np.float32]:
        """Wait for a batch and return its rows, of length 1 where the model is not a prepared graph.

        Raises:
            EngineUnavailable, ModelError, ConfigError: the server gave no rows, or others than expected.
        """
        if not run.done.wait(self._timeout_s + _GRACE_S):
            raise EngineUnavailable(self._late())
        run.seconds = max(run.ended - max(run.began, self._ended), 1e-6)
        self._ended = run.ended
        rows = np.empty((run.count, dimension), np.float32)
        most = self.served.most or run.count
        for index, answer in enumerate(run.answers):
            if isinstance(answer, Exception):
                self._raise(answer)
            part = rows[index * most : (index + 1) * most]
            part[:] = self._checked(answer, part.shape)
        return rows if self.served.prepared else to_unit_length(rows)

    def _checked(self, answer: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:  # noqa: ANN401
        version = visible(answer.get_response().model_version, _LONGEST_VERSION)
        self.version = self.version or version
        if version != self.version:
            raise EngineUnavailable(f"the server went from version {self.version} of the model to {version}")
        try:
            found = answer.as_numpy(self.served.output)
        except (ValueError, TypeError) as problem:
            raise EngineUnavailable(f"the answer cannot be read: {one_line(problem)}") from problem
        if found is None or found.shape != shape or found.dtype != np.float32:
            given = "nothing" if found is None else f"{found.dtype.name} {list(found.shape)}"
            raise EngineUnavailable(f"the server gave {given}, expected float32 {list(shape)}")
        rows: NDArray[np.float32] = found
        return rows

    def _ask(self, call: Callable[..., Any], *words: object, seconds: float = 0.0) -> Any:  # noqa: ANN401
        """Return the protobuf message that answers a call; `seconds`: deadline, 0 for that of a batch."""
        try:
            return call(*words, headers=self._headers(), client_timeout=seconds or self._timeout_s)
        except Exception as problem:  # noqa: BLE001 - InferenceServerException, ValueError of a closed channel
            self._raise(problem)

    def _headers(self) -> dict[str, str]:
        return {} if self._token is None else {"authorization": f"Bearer {self._token.get_secret_value()}"}

    def _raise(self, problem: Exception) -> NoReturn:
        """Raise what an error of tritonclient means."""
        status = str(getattr(problem, "status", lambda: "")() or "").removeprefix("StatusCode.")
        stated = str(getattr(problem, "message", lambda: "")() or problem)
        secrets = () if self._token is None else (self._token.get_secret_value(),)
        message = visible(one_line(redact(stated, secrets)), _LONGEST)  # a proxy may repeat the header
        if status == "DEADLINE_EXCEEDED":
            raise EngineUnavailable(self._late()) from problem
        if status == "UNIMPLEMENTED":
            raise _Unimplemented(f"the server has no such call: {message}") from problem
        if status in _PERMANENT:
            why = "the server refuses the login: " if _PERMANENT[status] is ConfigError else ""
            raise _PERMANENT[status](f"{self.model}: {why}{status}: {message}") from problem
        raise EngineUnavailable(f"{status or type(problem).__name__}: {message}") from problem

    def _late(self) -> str:
        return f"no answer within {self._timeout_s:g} s (engine.triton_timeout_ms)"


class _Unimplemented(EngineUnavailable):
    """The server does not have this call."""


def _library() -> Any:  # noqa: ANN401 - a module without types
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is raised
    try:
        import tritonclient.grpc
    except ImportError as problem:
        raise ConfigError(
            f"the backend triton needs the extra triton ({one_line(problem)}); install it:"
            f" {install_command('triton')}"
        ) from problem
    return tritonclient.grpc


def _channel(model: ServedModel, settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments of the client: TLS, and options of the channel."""
    options = {"channel_args": list(_CHANNEL.items())}
    if not model.tls:
        return options
    import grpc

    def pem(path: Path | None) -> bytes | None:
        if path is None:
            return None
        try:
            return read_file(path, MAX_TEXT_BYTES)
        except InputError as problem:
            raise ConfigError(f"TLS to {model.authority}: {problem}") from problem

    authority, key, chain = map(
        pem, (settings.triton_ca_file, settings.triton_key_file, settings.triton_cert_file)
    )
    _check_tls(model, settings)
    credentials = grpc.ssl_channel_credentials(authority, key, chain)
    return {**options, "creds": credentials}


def _check_tls(model: ServedModel, settings: EngineSettings) -> None:
    """Raise ConfigError where OpenSSL cannot use the files; gRPC does not state what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority, certificate, key = settings.triton_ca_file, settings.triton_cert_file, settings.triton_key_file
    wrong = f"engine.triton_ca_file {authority}"
    try:
        if authority is not None:
            context.load_verify_locations(authority)
        if certificate is not None:
            wrong = f"engine.triton_cert_file {certificate}, engine.triton_key_file {key}"
            context.load_cert_chain(certificate, key, password="")  # else OpenSSL asks for one
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"TLS to {model.authority}: {wrong}: not usable as PEM: {one_line(problem)}"
        ) from problem


def to_planes(pixels: NDArray[np.uint8], planes: NDArray[Any], profile: PreprocessProfile) -> None:
    """Compute `PreprocessProfile.apply` into `planes` `(N, 3, H, W)` float32, one channel after the other."""
    for channel in range(3):
        source = pixels[..., 2 - channel if profile.order == "rgb" else channel]
        target = planes[:, channel]
        np.subtract(source, profile.offsets[channel], out=target)
        np.multiply(target, profile.factors[channel], out=target)


def to_unit_length(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows divided by their length; one of zeros stays, one with NaN or infinity has NaN."""
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        unit: NDArray[np.float32] = (wide / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit
