"""Settings: one frozen model per stage; each field has its unit in the name and a description.

Precedence, highest first: command-line options, environment (`EDGE_AGENT__SECTION__KEY`), secret files in
`$CREDENTIALS_DIRECTORY` (`mqtt__password`), the TOML file (`--config`, else `/etc/edge-agent/config.toml`
where it exists), the defaults below. An unknown key is an error at every level. `core.loading` reads them,
`core.reloading` compares them, and `core.setting_secrets` shows them without their secrets.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from edge_agent.core.delivery_settings import (
    KafkaSettings,
    MetropolisSettings,
    MqttSettings,
    OutboxSettings,
)
from edge_agent.core.detectors import AUTO, FORMS, KINDS_TEXT
from edge_agent.core.fleet_settings import FleetSettings
from edge_agent.core.installed import DEFAULT_STATE
from edge_agent.core.page_settings import PageSettings
from edge_agent.core.sections import Section, about
from edge_agent.core.served import checked_backend, require_tls
from edge_agent.core.setting_types import (
    Backend,
    Detector,
    EmbeddingSpace,
    FrameRate,
    Hours,
    Id,
    Label,
    LogFormat,
    Pixels,
    Positive,
    Preprocess,
    Seconds,
    Served,
    Share,
    Simulated,
    Token,
)
from edge_agent.core.timing import LATEST_TIME

file_values: ContextVar[dict[str, Any]] = ContextVar("file_values", default={})  # noqa: B039  never changed
"""Values of the TOML file for the `Settings` under construction."""

MOST_EXEMPLARS = 1000
"""Embeddings of one identity: which of them stay is decided by comparing each with each."""

PERSON_LABELS = ("person",)
"""Labels of people in DeepStream's messages unless `detector.external_labels` is set."""


class SourceSettings(Section):
    """One camera, stream, file or crop folder. An option that does not apply to its kind is an error."""

    id: Id | None = about(None, "id in topics and events; derived from the url when absent")
    url: str = Field(
        repr=False,
        description="file path, rtsp://, http(s)://, /dev/videoN or usb:N, csi:N, crops:FOLDER,"
        " deepstream:SENSOR",
    )
    enabled: bool = about(True, "a disabled source is published but not opened")
    fps: FrameRate | None = about(
        None,
        "file: frames per second, instead of the file's own times; crops: of their frame numbers;"
        " usb, csi: requested rate",
    )
    realtime: bool | None = about(None, "file: read at its own speed, like a camera")
    start_time: float | None = about(None, "file, crops: Unix time of the first frame", ge=0, le=LATEST_TIME)
    backend: Literal["auto", "ffmpeg", "gstreamer", "v4l2"] | None = about(None, "stream, usb: decoder")
    transport: Literal["tcp", "udp"] | None = about(None, "stream: RTSP transport")
    codec: Literal["h264", "h265"] | None = about(None, "stream: codec (GStreamer only)")
    pixels: Literal["mjpeg", "yuyv"] | None = about(None, "usb: pixel format of the camera")
    flip: int | None = about(None, "csi: nvvidconv flip-method, 2: by 180 degrees", ge=0, le=7)
    capture: tuple[int, int] | None = about(None, "usb, csi: requested width and height")
    size: tuple[int, int] | None = about(
        None, "stream, usb, csi: scaled width and height; deepstream: those of its nvstreammux"
    )
    max_fps: FrameRate | None = about(None, "stream, usb, csi: skip frames above this rate")
    open_timeout_ms: int | None = about(None, "stream: timeout to open", gt=0)
    read_timeout_ms: int | None = about(None, "stream: timeout for a packet", gt=0)
    latency_ms: int | None = about(None, "stream: jitter buffer of GStreamer", ge=0)
    decode_threads: int | None = about(
        None, "stream: FFmpeg threads; each after the first adds a delay of one frame", ge=1
    )
    poll_seconds: Positive | None = about(None, "crops: interval of folder scans")
    settle_seconds: Seconds | None = about(None, "crops: time without change until a file is complete")
    once: bool | None = about(None, "crops: end when all present files have been read")
    delete: bool | None = about(None, "crops: delete processed files")
    detector: Detector | None = about(None, "detector of this source, see detector.kind")
    motion: bool | None = about(None, "motion gate of this source, see motion.enabled")
    priority: int = about(0, "the lowest is closed first when the board is too hot")


class DetectorSettings(Section):
    """Detection of people."""

    kind: Detector = about(AUTO, f"{FORMS}; {KINDS_TEXT}")
    input_size: tuple[int, int] | None = about(
        None,
        "width and height of pictures for a network whose input size is dynamic;"
        " null: as exported, else that of its kind",
    )
    high: float | None = about(None, "score of a reliable detection; null: as the detector")
    low: float | None = about(None, "lower scores are ignored; null: as the detector")
    new_track: float | None = about(None, "least score of a new track; null: as the detector")
    external_transport: Literal["mqtt", "kafka"] = about(
        "mqtt", "where messages come from, for kind external and sources deepstream:SENSOR"
    )
    external_topics: tuple[str, ...] = about((), "topics with these messages")
    external_format: Literal["edge-agent", "deepstream"] = about("edge-agent", "message format")
    external_match: Literal["auto", "frame", "time"] = about("auto", "match of boxes to frames")
    external_cameras: dict[str, str] = about({}, "camera name in these messages: source id")
    external_size: tuple[Pixels, Pixels] | None = about(
        None, "deepstream: width and height of its nvstreammux; null: those of the frame"
    )
    external_labels: tuple[Label, ...] = about(
        PERSON_LABELS, "deepstream: labels of people, in any case; other objects are ignored", min_length=1
    )
    external_space: EmbeddingSpace | None = about(
        None,
        "sources deepstream:SENSOR: id of the space of the embeddings in the messages, as printed by"
        " `edge-agent export --deepstream`",
    )
    external_dimension: int = about(256, "length of these embeddings", ge=2, le=8192)
    external_tolerance_ms: int = about(50, "greatest time difference of boxes and frame", ge=0)
    external_wait_ms: int = about(200, "timeout of a frame for its boxes", ge=0)


class MotionSettings(Section):
    """Pause the detector while nothing moves. See `docs/operations.md`."""

    enabled: bool = about(False, "for every source whose pictures the agent searches itself")
    hold_s: Seconds = about(2.0, "the detector runs for this time after the last movement")
    refresh_s: Positive = about(1.0, "detection interval while a person stands still")
    look_s: Positive = about(30.0, "detection interval while nobody is present")
    rest_fps: FrameRate = about(5.0, "frame rate limit of the camera while the detector is paused")


class TrackerSettings(Section):
    """Association of boxes to tracks."""

    max_cost: Positive = about(0.9, "cost limit of the first round; higher matches more")
    lost_s: Positive = about(3.0, "time without detection until a track ends")
    confirm_hits: int = about(2, "detections before a track is reported", ge=1)
    live_gate: Positive = about(0.8, "appearance limit of live tracks: 0 genuine, 1 impostor")
    lost_gate: Positive = about(0.6, "appearance limit of lost tracks")
    appearance_weight: Share = about(0.3, "weight of appearance in the cost; 0: overlap only")


class QualitySettings(Section):
    """Quality that a crop needs to be embedded."""

    min_height: int = about(
        24, "pixels; smaller people are tracked, not identified; below 48, see docs/identity.md", gt=0
    )
    min_width: int = about(8, "pixels", gt=0)
    min_aspect: Positive = about(1.2, "height over width; a box below this shows no whole person")
    max_aspect: Positive = about(5.0, "height over width")
    min_sharpness: float = about(0.05, "see docs/models.md; 0 accepts every crop", ge=0)
    max_truncation: Share = about(0.25, "greatest share of the box outside the image")
    max_overlap: Share = about(0.6, "greatest share of the box behind a nearer person")

    @model_validator(mode="after")
    def _ordered(self) -> QualitySettings:
        if self.min_aspect >= self.max_aspect:
            raise ValueError("min_aspect must be below max_aspect")
        return self


class EngineSettings(Section):
    """Network for embeddings, and the device that runs it."""

    model: Path | None = about(
        None,
        "ReID ONNX; the shipped default model when absent; with triton: reference of the self-test, absent:"
        " as the server states (docs/triton.md)",
    )
    preprocess: Preprocess | None = about(
        None,
        "preprocess profile; when absent, that of the model; an error where none is known (docs/models.md)",
    )
    backend: Backend | Simulated | Served = about(
        "auto",
        "onnxruntime (CPU); tensorrt (NVIDIA GPU); triton:HOST:PORT/MODEL (inference server, docs/triton.md);"
        " simulated:TABLE only takes the time (docs/performance.md); auto: tensorrt where it can be used,"
        " else onnxruntime",
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = about(
        "auto", "auto: as calibrated; without calibration FP16 on TensorRT, else FP32"
    )
    max_batch: int = about(64, "largest batch, over all cameras", ge=1, le=1024)
    max_delay_ms: int = about(20, "longest wait to fill a batch", ge=0)
    packing: Literal["auto", "here", "beside"] = about(
        "auto",
        "process that resizes crops; here: this one; beside: another; auto: another,"
        " unless the engine runs on the CPU",
    )
    overload: Literal["thin", "drop"] = about(
        "thin",
        "when the engine cannot keep up with live cameras; thin: embed the most useful crops"
        " (docs/overload.md); drop: embed all crops and drop frames",
    )
    threads: int = about(0, "CPU threads of ONNX Runtime; 0: its default", ge=0)
    shadow_model: Path | None = about(
        None,
        "second ReID ONNX that is compared with the first on some crops, on the CPU while the first is idle"
        " (docs/replay.md); null: none",
    )
    shadow_preprocess: Preprocess | None = about(
        None, "its preprocess profile; when absent, that of the model"
    )
    shadow_share: Share = about(0.1, "share of the crops that it gets")
    folder: Path | None = about(None, "calibrations, plans; `engines` in the state folder when absent")
    zero_copy: Literal["auto", "on", "off"] = about(
        "auto", "TensorRT: input and output in mapped memory; auto: where the GPU shares the RAM"
    )
    cuda_graphs: Literal["auto", "off"] = about(
        "auto", "TensorRT: replay a captured graph; auto: where cuda-bindings is installed"
    )
    dla_core: int | None = about(
        None, "TensorRT: run on this deep-learning accelerator; null: GPU", ge=0, le=1
    )
    workspace_mb: int | None = about(
        None, "TensorRT: workspace limit of a build; null: half of the free memory", ge=16
    )
    triton_timeout_ms: int = about(
        5000, "triton: longest wait for the rows of a batch, which is then dropped", ge=10, le=30_000
    )
    triton_shared_memory: Literal["auto", "off"] = about(
        "auto", "triton: crops go through shared memory; auto: to a server on this machine that takes it"
    )
    triton_token: Token | None = about(
        None, "tritons: bearer token; prefer the credential file engine__triton_token"
    )
    triton_ca_file: Path | None = about(None, "tritons: CA certificates, PEM; those of gRPC when absent")
    triton_cert_file: Path | None = about(None, "tritons: client certificate, PEM, for mutual TLS")
    triton_key_file: Path | None = about(None, "tritons: key of the client certificate, PEM")

    _check_backend = field_validator("backend", mode="before")(checked_backend)

    @model_validator(mode="after")
    def _check_server(self) -> EngineSettings:
        files = (self.triton_ca_file, self.triton_cert_file, self.triton_key_file)
        require_tls(self.backend, files, token=self.triton_token is not None)
        return self


class GallerySettings(Section):
    """Storage of known people."""

    capacity: int = about(10_000, "limit of identities; the longest unseen is removed first", ge=1)
    max_exemplars: int = about(16, "embeddings kept for one identity", ge=1, le=MOST_EXEMPLARS)
    ttl_hours: Hours | None = about(
        72.0, "unnamed identities are erased this time after they were last seen; null: never"
    )
    enrolled_ttl_hours: Hours | None = about(None, "the same for named or enrolled people; null: never")
    keep_crops: int = about(
        0,
        "pictures kept of one identity, for the operator's page and a change of network; 0: none, and those"
        " kept or recorded before are erased",
        ge=0,
        le=16,
    )
    crops_mb: int = about(256, "MiB of all these pictures; those of the longest unseen go first", ge=1)
    index: Literal["auto", "exact", "faiss"] = about(
        "auto",
        "search beyond exact_up_to; exact; faiss: approximate, may miss a person; "
        "auto: faiss where it is installed",
    )
    exact_up_to: int = about(100_000, "limit of identities for exact search", ge=1000)


PAIR_RATE = 1e-3
"""False-match rate of two crops at the threshold of a calibration."""


class IdentifySettings(Section):
    """Decision whether two tracks show the same person. `docs/identity.md` explains each value."""

    enrolment: Literal["auto", "watchlist"] = about(
        "auto", "auto: unknown people become identities; watchlist: only enrolled ones match"
    )
    threshold: float | None = about(None, "fixed cosine threshold; null: by rules", ge=-1, le=1)
    target_fmr: float = about(
        0.05, "target probability that somebody new is taken for a known person", gt=0, lt=0.5
    )
    decide_crops: int = about(6, "crops 0.1 s apart needed to match a track; slow cameras need fewer", ge=1)
    enrol_crops: int = about(8, "crops 0.1 s apart needed to enrol an unknown person", ge=1)
    crop_interval_s: Seconds = about(0.08, "crops of a track within this time count as one")
    pool_crops: int = about(30, "crops pooled for one track", ge=1)
    fuse_crops: int = about(15, "crops needed to fuse two identities", ge=1)
    margin: float = about(0.02, "least lead of the best identity over the second", ge=0)
    covisible_frames: int = about(5, "shared frames that prove two people", ge=1)
    publish_unknown: bool = about(False, "publish identity/unknown events")


class StorageSettings(Section):
    """Encryption of gallery and outbox on the disk."""

    key: SecretStr | None = about(
        None,
        "key of gallery and outbox (SQLCipher), 64 hexadecimal digits, as credential file"
        " storage__key; null: not encrypted",
    )


class RecordSettings(Section):
    """Recording of tracks, embeddings and decisions, for `edge-agent replay`. See `docs/replay.md`."""

    enabled: bool = about(
        False,
        "record into `recordings` in the state folder, encrypted like the gallery; pictures only with"
        " gallery.keep_crops",
    )
    max_mb: int = about(1024, "size limit of all recordings; the oldest are removed", ge=16)
    hours: Hours = about(
        24.0, "recordings are removed after this time, or after gallery.ttl_hours if shorter"
    )


class TelemetrySettings(Section):
    """Temperatures, power and load."""

    interval_s: Positive = about(10.0, "seconds between telemetry messages")
    jtop: bool = about(True, "use jetson-stats where its service runs")
    metrics_port: int | None = about(None, "Prometheus port on loopback; null: off", ge=1, le=65535)
    http_token: Token | None = about(None, "bearer token of the HTTP API on that port; null: no API")

    @model_validator(mode="after")
    def _check_port(self) -> TelemetrySettings:
        if self.http_token is not None and self.metrics_port is None:
            raise ValueError("http_token needs metrics_port, the port of the HTTP API")
        return self


class SupervisionSettings(Section):
    """Limits of the watchdog, of memory and of crash loops. See `docs/supervision.md`."""

    stuck_after_s: Positive = about(
        60.0, "a stage without heartbeat for this time is stuck: no more watchdog signals"
    )
    ready_after_s: Seconds = about(
        30.0, "after this time the agent reports READY to systemd even without a source"
    )
    memory_mb: Positive | None = about(
        None, "alert above this; null: nine tenths of systemd's MemoryMax, if set"
    )
    memory_growth_mb: Positive = about(
        64.0, "alert when memory grows faster than this per hour throughout an hour"
    )
    crashes: int = about(5, "crashes within crash_window_min that delay a start", ge=1)
    crash_window_min: Positive = about(10.0, "minutes; also time until a delayed run is stable")

    @property
    def crash_window_s(self) -> float:
        """`crash_window_min` in seconds."""
        return 60 * self.crash_window_min


class GovernorSettings(Section):
    """Reduce the load before the board throttles. `docs/telemetry.md` lists the steps."""

    enabled: Literal["auto", "on", "off"] = about(
        "auto", "auto: where a thermal zone has a known limit; on: also alert where none has"
    )
    limit_c: float | None = about(
        None, "limit of every zone in degrees Celsius; null: trip point of each zone", gt=0
    )
    margin_c: Positive = about(5.0, "the load is reduced at this distance below the limit")
    hysteresis_c: Positive = about(4.0, "the load is raised again this much below that")


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="EDGE_AGENT__",
        env_nested_delimiter="__",
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    state_dir: Path = about(DEFAULT_STATE, "gallery, outbox and engines; created when absent")
    sources: tuple[SourceSettings, ...] = about((), "cameras, streams, files and crop folders")
    detector: DetectorSettings = DetectorSettings()
    motion: MotionSettings = MotionSettings()
    tracker: TrackerSettings = TrackerSettings()
    quality: QualitySettings = QualitySettings()
    engine: EngineSettings = EngineSettings()
    gallery: GallerySettings = GallerySettings()
    identify: IdentifySettings = IdentifySettings()
    mqtt: MqttSettings = MqttSettings()
    kafka: KafkaSettings = KafkaSettings()
    metropolis: MetropolisSettings = MetropolisSettings()
    outbox: OutboxSettings = OutboxSettings()
    storage: StorageSettings = StorageSettings()
    record: RecordSettings = RecordSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    supervision: SupervisionSettings = SupervisionSettings()
    governor: GovernorSettings = GovernorSettings()
    page: PageSettings = PageSettings()
    fleet: FleetSettings = FleetSettings()
    log_level: Literal["debug", "info", "warning", "error"] = about("info", "lowest level logged")
    log_format: LogFormat = about(
        "auto",
        "text; json: one object per line; journald: the same with the priority in front;"
        " auto: text on a terminal, journald for the journal, else json",
    )

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

    @model_validator(mode="after")
    def _reads_no_copies(self) -> Settings:
        if self.metropolis.transport == self.detector.external_transport:
            for topic in filter(self.metropolis.goes_to, self.detector.external_topics):
                raise ValueError(
                    f"metropolis.topic {self.metropolis.topic!r} is among detector.external_topics"
                    f" ({topic!r}): the agent would take its own copies for people"
                )
        return self

    @model_validator(mode="after")
    def _has_own_names(self) -> Settings:
        if self.fleet.enabled and self.mqtt.names_problem:
            raise ValueError(f"fleet.enabled: {self.mqtt.names_problem}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  .env files are not used
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, secret files, TOML; highest precedence first."""
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if folder and Path(folder).is_dir():
            secrets = NestedSecretsSettingsSource(
                file_secret_settings, secrets_dir=folder, secrets_nested_delimiter="__", secrets_prefix=""
            )
            # systemd 249 has no optional credentials: an empty file means an absent credential.
            secrets.env_vars = {name: text for name, text in secrets.env_vars.items() if text}
            sources.append(secrets)
        sources.append(InitSettingsSource(settings_cls, init_kwargs=file_values.get()))
        return tuple(sources)
