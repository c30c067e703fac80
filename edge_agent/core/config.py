"""Settings: one frozen model per stage, each field with its unit in the name and a line of description.

Read, strongest first: command-line short-cuts, environment (`EDGE_AGENT__SECTION__KEY`), secret files in
`$CREDENTIALS_DIRECTORY` (`mqtt__password`), the TOML file (`--config`, else `/etc/edge-agent/config.toml`
where it exists), the defaults below. An unknown key is an error at every level.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from edge_agent.core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "DEFAULT_CONFIG",
    "RELOADABLE",
    "DetectorSettings",
    "EngineSettings",
    "GallerySettings",
    "GovernorSettings",
    "IdentifySettings",
    "MotionSettings",
    "MqttSettings",
    "OutboxSettings",
    "QualitySettings",
    "Settings",
    "SourceSettings",
    "StorageSettings",
    "SupervisionSettings",
    "TelemetrySettings",
    "TrackerSettings",
    "changes",
    "fingerprint",
    "load",
    "shown",
]

DEFAULT_CONFIG = Path("/etc/edge-agent/config.toml")

_file_values: ContextVar[dict[str, Any]] = ContextVar("file_values", default={})  # noqa: B039  never changed
"""What the TOML file says, for the settings that are being built."""

_ID = re.compile(r"[a-z0-9_-]{1,64}")


def _check_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError("must be 1 to 64 characters of a-z, 0-9, _ and -")
    return value


Id = Annotated[str, AfterValidator(_check_id)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Simulated = Annotated[str, Field(pattern="^simulated:.+")]


class _Section(BaseModel):
    """Frozen, and closed to unknown keys (pydantic does not pass that on to nested models)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceSettings(_Section):
    """One camera, stream, file or crop folder; an option that its kind has not is refused."""

    id: Id | None = Field(None, description="name in topics and events; made from the url when absent")
    url: str = Field(description="file path, rtsp://, http(s)://, /dev/videoN or usb:N, csi:N, crops:FOLDER")
    enabled: bool = Field(True, description="a disabled source is announced but not opened")
    fps: Positive | None = Field(
        None, description="file or crops: frames per second where the header is wrong; usb, csi: wished rate"
    )
    realtime: bool | None = Field(None, description="file: play at its own speed, as if it were a camera")
    start_time: float | None = Field(None, description="file, crops: Unix time of the first frame")
    backend: Literal["auto", "ffmpeg", "gstreamer", "v4l2"] | None = Field(
        None, description="stream, usb: who decodes"
    )
    transport: Literal["tcp", "udp"] | None = Field(None, description="stream: RTSP transport")
    codec: Literal["h264", "h265"] | None = Field(None, description="stream: codec, for GStreamer")
    pixels: Literal["mjpeg", "yuyv"] | None = Field(None, description="usb: what the camera delivers")
    flip: int | None = Field(None, ge=0, le=7, description="csi: nvvidconv flip-method, 2 turns by 180")
    capture: tuple[int, int] | None = Field(None, description="usb, csi: width and height to ask for")
    size: tuple[int, int] | None = Field(None, description="stream, usb, csi: width and height to scale to")
    max_fps: Positive | None = Field(None, description="stream, usb, csi: leave out frames above this rate")
    open_timeout_ms: int | None = Field(None, gt=0, description="stream: longest wait to open")
    read_timeout_ms: int | None = Field(None, gt=0, description="stream: longest wait for a packet")
    latency_ms: int | None = Field(None, ge=0, description="stream: jitter buffer of GStreamer's reader")
    decode_threads: int | None = Field(
        None, ge=1, description="stream: threads of FFmpeg; each beyond the first delays every frame by one"
    )
    poll_seconds: Positive | None = Field(None, description="crops: between two looks at the folder")
    settle_seconds: Seconds | None = Field(None, description="crops: a file unchanged for so long is whole")
    once: bool | None = Field(None, description="crops: end when all that is there has been read")
    delete: bool | None = Field(None, description="crops: remove what has been dealt with")
    detector: str | None = Field(None, description="detector for this source alone, see detector.kind")
    motion: bool | None = Field(None, description="motion gate for this source alone, see motion.enabled")
    priority: int = Field(0, description="cameras of the lowest are closed first when the board is too hot")


class DetectorSettings(_Section):
    """Who finds people."""

    kind: str = Field(
        "hog", description="hog, hog:FACTOR, yolox:FILE.onnx, external (boxes over MQTT) or none"
    )
    high: float | None = Field(None, description="score of a sure detection; the detector's own when absent")
    low: float | None = Field(None, description="score below which boxes are ignored; likewise")
    new_track: float | None = Field(None, description="score that starts a track; likewise")
    external_topics: tuple[str, ...] = Field((), description="MQTT topics with boxes, for kind external")
    external_format: Literal["edge-agent", "deepstream"] = Field("edge-agent", description="their format")
    external_match: Literal["auto", "frame", "time"] = Field("auto", description="how boxes find their frame")
    external_cameras: dict[str, str] = Field({}, description="their name of a camera: our source id")
    external_size: tuple[int, int] | None = Field(
        None, description="deepstream: width and height that boxes refer to; the frame's own when absent"
    )
    external_tolerance_ms: int = Field(
        50, ge=0, description="largest difference in time between box and frame"
    )
    external_wait_ms: int = Field(200, ge=0, description="how long a frame waits for its boxes")


class MotionSettings(_Section):
    """Whether the detector rests while nothing moves. `docs/operations.md` says what that saves."""

    enabled: bool = Field(False, description="for every source whose people are found here, by hog or yolox")
    hold_s: Seconds = Field(2.0, description="the detector works for so long after the last movement")
    refresh_s: Positive = Field(1.0, description="between two looks while somebody stands still")
    look_s: Positive = Field(30.0, description="between two looks while nobody is there")
    rest_fps: Positive = Field(5.0, description="most frames a second that a camera gives meanwhile")


class TrackerSettings(_Section):
    """How boxes become tracks."""

    max_cost: Positive = Field(0.9, description="dearest pair of the first round; higher joins more boldly")
    lost_s: Positive = Field(3.0, description="an unseen track ends after this; higher bridges longer gaps")
    confirm_hits: int = Field(2, ge=1, description="detections before a track is reported")
    live_gate: Positive = Field(0.8, description="looks gate of live tracks: 0 genuine, 1 impostor")
    lost_gate: Positive = Field(0.6, description="looks gate of tracks that were lost for a while")
    appearance_weight: Share = Field(0.3, description="share of looks in the cost; 0: overlap alone")


class QualitySettings(_Section):
    """Which crops are good enough to be embedded."""

    min_height: int = Field(48, gt=0, description="pixels; smaller people are tracked, not identified")
    min_width: int = Field(16, gt=0, description="pixels")
    min_aspect: Positive = Field(1.2, description="height over width; below it a box holds no whole person")
    max_aspect: Positive = Field(5.0, description="height over width")
    min_sharpness: float = Field(0.05, ge=0, description="see docs/models.md; 0 refuses nothing")
    max_truncation: Share = Field(0.25, description="largest share of the box outside the image")
    max_overlap: Share = Field(0.6, description="largest share of the box behind a nearer person")

    @model_validator(mode="after")
    def _ordered(self) -> QualitySettings:
        if self.min_aspect >= self.max_aspect:
            raise ValueError("min_aspect must be below max_aspect")
        return self


class EngineSettings(_Section):
    """Which network makes embeddings, and on what."""

    model: Path | None = Field(None, description="ReID ONNX; the shipped default model when absent")
    preprocess: Literal["tao", "imagenet", "openvino-raw", "swin"] | None = Field(
        None, description="preprocess profile; the model's own manifest, else tao, when absent"
    )
    backend: Literal["auto", "onnxruntime", "tensorrt"] | Simulated = Field(
        "auto",
        description="who runs the network; auto: TensorRT where there is an NVIDIA GPU;"
        " simulated:TABLE only takes its time (docs/performance.md)",
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto", description="auto: what `edge-agent calibrate` chose; without it FP16 on TensorRT, else FP32"
    )
    max_batch: int = Field(64, ge=1, le=1024, description="largest batch for all cameras together")
    max_delay_ms: int = Field(20, ge=0, description="longest wait for more crops before a batch goes")
    packing: Literal["auto", "here", "beside"] = Field(
        "auto",
        description="where crops are resized: beside: in a process of its own; auto: there, unless the engine"
        " needs the CPU itself",
    )
    overload: Literal["thin", "drop"] = Field(
        "thin",
        description="crops of live cameras that the engine has no time for: embed those that help most"
        " (docs/overload.md), or all of them and drop frames",
    )
    threads: int = Field(0, ge=0, description="CPU threads of ONNX Runtime, 0: its own choice")
    folder: Path | None = Field(
        None, description="calibrations and TensorRT plans; `engines` in the state folder when absent"
    )
    zero_copy: Literal["auto", "on", "off"] = Field(
        "auto", description="TensorRT: crops and rows in mapped pinned memory; auto: where the GPU shares RAM"
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        "auto", description="TensorRT: replay a captured graph; auto: where cuda-bindings is installed"
    )
    dla_core: int | None = Field(
        None, ge=0, le=1, description="TensorRT: run on this deep-learning accelerator; null: on the GPU"
    )
    workspace_mb: int | None = Field(
        None, ge=16, description="TensorRT: most memory for tactics of a build; null: half of what is free"
    )


class GallerySettings(_Section):
    """The people that the agent knows."""

    capacity: int = Field(10_000, ge=1, description="identities; the longest unseen goes first")
    max_exemplars: int = Field(16, ge=1, description="embeddings kept for one identity")
    ttl_hours: Positive | None = Field(
        72.0, description="an identity that nobody named is erased so long after it was seen; null: never"
    )
    enrolled_ttl_hours: Positive | None = Field(
        None, description="the same for people whom somebody named or enrolled; null: never"
    )
    index: Literal["auto", "exact", "faiss"] = Field(
        "auto",
        description="search beyond exact_up_to: exact; faiss: by short codes, which may miss somebody; "
        "auto: faiss where it is installed",
    )
    exact_up_to: int = Field(100_000, ge=1000, description="identities that are searched exactly in any case")


class IdentifySettings(_Section):
    """When two tracks are the same person. `docs/identity.md` says what raising each value does."""

    enrolment: Literal["auto", "watchlist"] = Field(
        "auto", description="auto: unknown people become identities; watchlist: only enrolled ones match"
    )
    threshold: float | None = Field(None, ge=-1, le=1, description="fixed cosine threshold, instead of rules")
    target_fmr: float = Field(1e-3, gt=0, lt=0.5, description="false-match rate that thresholds aim at")
    decide_crops: int = Field(6, ge=1, description="good crops before a track is matched")
    enrol_crops: int = Field(8, ge=1, description="good crops before an unknown person is enrolled")
    crop_interval_s: Seconds = Field(0.08, description="crops of a track nearer in time count as one")
    pool_crops: int = Field(30, ge=1, description="crops pooled for one track")
    fuse_crops: int = Field(15, ge=1, description="good crops before two identities may be fused")
    margin: float = Field(0.02, ge=0, description="lead of the best identity over the second")
    covisible_frames: int = Field(5, ge=1, description="frames together that make two tracks two people")
    publish_unknown: bool = Field(False, description="publish identity/unknown events")


class MqttSettings(_Section):
    """The broker, and who the agent is on it."""

    broker: str | None = Field(
        None, repr=False, description="mqtt://HOST:PORT or mqtts://HOST:PORT; null: none"
    )
    site: Id = Field("site", description="first id in every topic")
    device: Id = Field("device", description="second id in every topic")
    version: Literal["5", "3.1.1"] = Field("5", description="MQTT protocol version")
    username: str | None = Field(None, description="user name on the broker")
    password: SecretStr | None = Field(None, description="better as credential file mqtt__password")
    ca_file: Path | None = Field(None, description="CA certificates, PEM; the system's when absent")
    cert_file: Path | None = Field(None, description="client certificate, PEM, for mutual TLS")
    key_file: Path | None = Field(None, description="its key, PEM")
    keepalive_s: int = Field(15, ge=5, le=3600, description="a dead broker is noticed after about twice this")
    commands: tuple[str, ...] = Field((), description="command verbs that are accepted over MQTT")
    home_assistant: bool | Literal["remove"] = Field(
        False, description="true: announce the device to Home Assistant; remove: take that back"
    )


class OutboxSettings(_Section):
    """Events that the broker has not acknowledged."""

    synchronous: Literal["NORMAL", "FULL"] = Field(
        "NORMAL", description="FULL survives power loss at the price of one fsync an event"
    )
    max_rows: int = Field(1_000_000, ge=100, description="oldest go first, and leave a gap record")
    max_megabytes: int = Field(1024, ge=1, description="likewise")
    max_age_hours: Positive = Field(168.0, description="likewise")


class StorageSettings(_Section):
    """How gallery and outbox stand on the disk."""

    key: SecretStr | None = Field(
        None,
        description="encrypts gallery and outbox (SQLCipher): 64 hexadecimal digits, as credential file"
        " storage__key; null: plain",
    )


class TelemetrySettings(_Section):
    """Thermals, power and load."""

    interval_s: Positive = Field(10.0, description="seconds between telemetry messages")
    jtop: bool = Field(True, description="use jetson-stats where its service answers")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="Prometheus on loopback; null: off")


class SupervisionSettings(_Section):
    """When the agent counts as stuck, sick or unlucky. `docs/supervision.md` says what follows."""

    stuck_after_s: Positive = Field(
        60.0, description="a stage that shows no sign of life for so long is stuck: the watchdog starves"
    )
    ready_after_s: Seconds = Field(
        30.0, description="systemd is told that the agent is ready without any source after this"
    )
    memory_mb: Positive | None = Field(
        None, description="alert above this; null: nine tenths of what systemd's MemoryMax allows, if any"
    )
    memory_growth_mb: Positive = Field(
        64.0, description="alert when memory grows by more than this an hour, all through an hour"
    )
    crashes: int = Field(5, ge=1, description="so many crashed runs within crash_window_min brake the start")
    crash_window_min: Positive = Field(10.0, description="minutes; also how long a braked run must hold")


class GovernorSettings(_Section):
    """When the load is lowered, so that the board need not throttle. `docs/telemetry.md` names the steps."""

    enabled: Literal["auto", "on", "off"] = Field(
        "auto", description="auto: where a thermal zone tells its limit; on: alert where none does"
    )
    limit_c: float | None = Field(
        None, gt=0, description="limit of every zone in degrees Celsius; null: each zone's own trip point"
    )
    margin_c: Positive = Field(5.0, description="the load is lowered this much below the limit")
    hysteresis_c: Positive = Field(4.0, description="and raised again this much below that")


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="EDGE_AGENT__",
        env_nested_delimiter="__",
        allow_inf_nan=False,
    )

    state_dir: Path = Field(
        Path("~/.local/state/edge-agent"), description="gallery, outbox and engines; made when absent"
    )
    sources: tuple[SourceSettings, ...] = Field((), description="where pictures come from")
    detector: DetectorSettings = DetectorSettings()
    motion: MotionSettings = MotionSettings()
    tracker: TrackerSettings = TrackerSettings()
    quality: QualitySettings = QualitySettings()
    engine: EngineSettings = EngineSettings()
    gallery: GallerySettings = GallerySettings()
    identify: IdentifySettings = IdentifySettings()
    mqtt: MqttSettings = MqttSettings()
    outbox: OutboxSettings = OutboxSettings()
    storage: StorageSettings = StorageSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    supervision: SupervisionSettings = SupervisionSettings()
    governor: GovernorSettings = GovernorSettings()
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")

    @field_validator("state_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @model_validator(mode="after")
    def _unique_sources(self) -> Settings:
        ids = [source.id for source in self.sources if source.id is not None]
        twice = {name for name in ids if ids.count(name) > 1}
        if twice:
            raise ValueError(f"two sources have the id {sorted(twice)[0]!r}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  no .env files: one place less to look
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, secret files, TOML; each stronger than the next."""
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if folder and Path(folder).is_dir():
            secrets = NestedSecretsSettingsSource(
                file_secret_settings, secrets_dir=folder, secrets_nested_delimiter="__", secrets_prefix=""
            )
            # systemd 249 has no optional credentials: an empty one stands for one that is not there
            secrets.env_vars = {name: text for name, text in secrets.env_vars.items() if text}
            sources.append(secrets)
        sources.append(InitSettingsSource(settings_cls, init_kwargs=_file_values.get()))
        return tuple(sources)


RELOADABLE = frozenset(
    {
        "identify",
        "log_level",
        "telemetry.interval_s",
        "gallery.ttl_hours",
        "gallery.enrolled_ttl_hours",
        "supervision",
        "governor",
    }
)
"""Dotted keys (or sections) that a running daemon takes over; the others need a restart."""


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def changes(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Keys that differ: those that may change while running, and those that need a restart."""
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump())
    differ = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    live = [key for key in differ if key in RELOADABLE or key.split(".")[0] in RELOADABLE]
    return live, [key for key in differ if key not in live]


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, secrets and the credentials in addresses masked."""
    values = settings.model_dump(mode="json")
    for source in values["sources"]:
        source["url"] = _mask(source["url"])
    if values["mqtt"]["broker"]:
        values["mqtt"]["broker"] = _mask(values["mqtt"]["broker"])
    return values


def fingerprint(settings: Settings) -> str:
    """SHA-256 of the settings without secrets, 16 hex digits."""
    text = json.dumps(shown(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _mask(url: str) -> str:
    """Hide `user:password@` of an address, and secrets among its parameters."""
    hidden = re.sub(r"//\S*@", "//***@", url)
    return re.sub(r"(?i)\b(password|passwd|pwd|token|key|secret)=[^&\s]+", r"\1=***", hidden)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Valid keys of the section that holds the last part of `location`."""
    model: Any = Settings
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            return []
        annotation = field.annotation
        model = SourceSettings if part == "sources" else annotation
        if not hasattr(model, "model_fields"):
            return []
    return list(model.model_fields)


def _explain(error: ValidationError, origin: str) -> str:
    """Every fault on a line: where, which key, what is wrong, and the nearest valid key."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False):
        location = fault["loc"]
        key = ".".join(str(part) for part in location)
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), _known_keys(location), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(_known_keys(location))}"
            lines.append(f"{origin}: unknown key {key!r}{hint}")
        else:
            lines.append(f"{origin}: {key or 'settings'}: {fault['msg']}")
    return "\n".join(lines)


def _default_file() -> Path | None:
    """The settings of the service, where there are any.

    Raises:
        ConfigError: they are not for this user. To go on without would be to act for another agent.
    """
    try:
        return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None
    except PermissionError:
        raise ConfigError(
            f"{DEFAULT_CONFIG} is not for this user: run it as the service's "
            "(sudo -u edge-agent edge-agent ...), or name a file with --config"
        ) from None


def _refuse_unknown_sections() -> None:
    """An unknown key is an error everywhere; what begins no section at all, pydantic passes over.

    Raises:
        ConfigError: a variable or credential file with our prefix names no section.
    """
    prefix = "EDGE_AGENT__"
    names = {name: name[len(prefix) :] for name in os.environ if name.upper().startswith(prefix)}
    folder = Path(os.environ.get("CREDENTIALS_DIRECTORY", ""))
    if os.environ.get("CREDENTIALS_DIRECTORY") and folder.is_dir():
        # One without `__` may be meant for somebody else; ours have a section.
        names |= {str(file): file.name for file in folder.iterdir() if "__" in file.name}
    known = list(Settings.model_fields)
    for where, name in sorted(names.items()):
        section = name.split("__")[0].lower()
        if section not in known:
            near = difflib.get_close_matches(section, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(known)}"
            raise ConfigError(f"{where}: there is no section or key {section!r}; {hint}")


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Build the settings.

    Args:
        config: TOML file; `DEFAULT_CONFIG` is used where it exists when this is None.
        overrides: nested values of the command line, stronger than everything else.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; names file and key.
    """
    path = config if config is not None else _default_file()
    values = _read_toml(path) if path is not None else {}
    origin = str(path) if path is not None else "settings"
    _refuse_unknown_sections()
    token = _file_values.set(values)
    try:
        return Settings(**(overrides or {}))
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from None
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from None
    finally:
        _file_values.reset(token)
