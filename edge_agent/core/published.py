"""Networks that others publish and `edge-agent model fetch` installs: address, digest, licence.

None is part of this project. A file is used only with the digest that is stated here or given by the user;
decision 054 has the sources of the digests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_YOLOX_RELEASE = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"
_NGC_MODELS = "https://api.ngc.nvidia.com/v2/models/org/nvidia/team/tao"


@dataclass(frozen=True, slots=True)
class Published:
    """A network that can be fetched by name.

    Attributes:
        name: as in `edge-agent model fetch NAME`.
        role: what the agent uses it for.
        kind: of a detector, one of `core.detectors.NETWORKS`; of a ReID network, its preprocess profile.
        file: its file name.
        url: address, as its publisher documents it.
        sha256: 64 hex digits; None where no digest of the file is known.
        bytes: size of the file; None where it is not known.
        licence: name of the licence of the file.
    """

    name: str
    role: Literal["detector", "reid"]
    kind: str
    file: str
    url: str
    sha256: str | None
    bytes: int | None
    licence: str


_ALL = (
    Published(
        "yolox-nano",
        role="detector",
        kind="yolox",
        file="yolox_nano.onnx",
        url=f"{_YOLOX_RELEASE}/yolox_nano.onnx",
        sha256="c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d",
        bytes=3_659_407,
        licence="Apache-2.0",
    ),
    Published(
        "yolox-tiny",
        role="detector",
        kind="yolox",
        file="yolox_tiny.onnx",
        url=f"{_YOLOX_RELEASE}/yolox_tiny.onnx",
        sha256="427cc366d34e27ff7a03e2899b5e3671425c262ea2291f88bb942bc1cc70b0f7",
        bytes=20_219_662,
        licence="Apache-2.0",
    ),
    Published(
        "peoplenet",
        role="detector",
        kind="peoplenet",
        file="resnet34_peoplenet.onnx",
        url=f"{_NGC_MODELS}/peoplenet/deployable_quantized_onnx_v2.6.3/files"
        "?redirect=true&path=resnet34_peoplenet.onnx",
        sha256=None,
        bytes=None,
        licence="NVIDIA model licence",
    ),
    Published(
        "reidentificationnet",
        role="reid",
        kind="tao",
        file="resnet50_market1501_aicity156.onnx",
        url=f"{_NGC_MODELS}/reidentificationnet/deployable_v1.2/files"
        "?redirect=true&path=resnet50_market1501_aicity156.onnx",
        sha256="0e21d09278508ec835955f422a9fdd3cd59b2a6ecdef98d705f388f33cebac2b",
        bytes=96_398_132,
        licence="NVIDIA model licence",
    ),
)

PUBLISHED: dict[str, Published] = {one.name: one for one in _ALL}

SUGGESTED_DETECTOR = "yolox-nano"
"""The detector that messages suggest instead of HOG."""
