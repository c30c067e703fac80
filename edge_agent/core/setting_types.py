"""Types of settings that have limits or checks."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from edge_agent.core.detectors import parse_detector

SHORTEST_TTL_HOURS = 0.001
"""Of one person."""
LONGEST_TTL_HOURS = 8_760_000.0
"""A thousand years; what should stay for longer stays for ever."""
LEAST_TOKEN = 16
"""Characters of a bearer token."""
_ID = re.compile(r"[a-z0-9_-]{1,64}")
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
KAFKA_TOPIC = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,249}")
"""What Kafka takes as the name of a topic."""


def fits_id(value: str) -> bool:
    """Return whether a text may be the `Id` of a camera or a device."""
    return _ID.fullmatch(value) is not None


def _check_id(value: str) -> str:
    if not fits_id(value):
        raise ValueError("must be 1 to 64 characters of a-z, 0-9, _ and -")
    return value


def _check_detector(value: str) -> str:
    parse_detector(value)
    return value


def _check_token(value: SecretStr) -> SecretStr:
    token = value.get_secret_value()
    if len(token) < LEAST_TOKEN or not all("!" <= letter <= "~" for letter in token):
        raise ValueError(f"must be {LEAST_TOKEN} or more letters, digits and signs, without spaces")
    return value


def check_topic(topic: str) -> str:
    """Return an MQTT topic; ValueError: it cannot be one of the user."""
    if any(mark in topic for mark in "+#") or not topic.isprintable():
        raise ValueError("must have no wildcards and no control characters")
    if topic.startswith("$") or (topic + "/").startswith("edge/v1/"):
        raise ValueError("must not be a topic of the broker ($...) or of the agents (edge/v1/...)")
    if len(topic.encode()) > 256:
        raise ValueError("must have at most 256 bytes")
    return topic


def _check_prefix(value: str) -> str:
    return check_topic(value.removesuffix("/"))


def _check_kafka_broker(value: str) -> str:
    if not _HOST_PORT.fullmatch(value) or not 0 < int(value.rpartition(":")[2]) < 1 << 16:
        raise ValueError("must be HOST:PORT; a login belongs in username and password")
    return value


Id = Annotated[str, AfterValidator(_check_id)]
ResponsePrefix = Annotated[str, AfterValidator(_check_prefix)]
"""Beginning of topics, whole levels; "" for none."""
KafkaBroker = Annotated[str, AfterValidator(_check_kafka_broker)]
"""`HOST:PORT`; an IPv6 address is in brackets."""
Token = Annotated[SecretStr, AfterValidator(_check_token)]
Detector = Annotated[str, AfterValidator(_check_detector)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
FrameRate = Annotated[float, Field(ge=1e-5)]
"""Frames per second; the least is about one frame a day, since times must stay within the calendar."""
Hours = Annotated[float, Field(gt=0, le=LONGEST_TTL_HOURS)]
LogFormat = Literal["auto", "text", "json", "journald"]
Pixels = Annotated[int, Field(gt=0)]
EmbeddingSpace = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]
"""Id of a space of embeddings: 16 hex digits for a network that this project can run, else any word."""
Label = Annotated[str, Field(pattern=r"^[^|]*[^|\s][^|]*$", max_length=64)]
Backend = Literal["auto", "onnxruntime", "tensorrt"]
"""Backends that run a network. `auto`: TensorRT where TensorRT and a GPU are usable, else ONNX Runtime."""
Preprocess = Literal["tao", "imagenet", "openvino-raw", "swin"]
Simulated = Annotated[str, Field(pattern="^simulated:.+")]
Served = Annotated[str, Field(pattern="^tritons?:.+")]
"""A network on an inference server, in the form of `core.served`."""
