"""The settings files of an export for DeepStream, as text.

Keys and their meaning: nvinfer, `gst-nvinfer/gstnvinfer_property_parser.h`; nvtracker, "Gst-nvtracker" of the
DeepStream developer guide, table "Object Re-ID"; nvinferserver, `includes/nvdsinferserver_*.proto`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.engine.graph.prepared import BARE_INPUT
from edge_agent.offline.exports.deepstream.arithmetic import Arithmetic

ONNX = "reid.onnx"
NVINFER = "config_infer_secondary_reid.txt"
TRACKERS = {"reid_NvDCF.yml": 2, "reid_NvDeepSORT.yml": 1}
"""Tracker sections by file name: `reidType` 2 re-associates tracks, 1 associates boxes by NvDeepSORT."""
INFERSERVER = "config_inferserver_reid.txt"
TABLE = "calibration.table"
README = "README.md"
MANIFEST = "manifest.json"

SECONDARY_BATCH, TRACKER_BATCH = 16, 100
"""People in a batch, as in NVIDIA's samples for ReIdentificationNet."""
PERSON_CLASS = 0
"""Label of people of NVIDIA's PeopleNet."""
_GPU = 0
_MODES = {"fp32": (0, 0), "fp16": (2, 1), "int8": (1, 2)}
"""Precision -> `network-mode` of nvinfer, `networkMode` of nvtracker: their numbers differ."""
_COLOURS = {"rgb": 0, "bgr": 1}
TRITON_MODEL = "re_identification_tao"
"""Name of the model in NVIDIA's Triton apps."""


def engine_name(batch: int, precision: str) -> str:
    """Return the file name under which DeepStream stores, and looks for, the engine that it builds."""
    return f"{ONNX}_b{batch}_gpu{_GPU}_{precision}.engine"


OWN = (
    ONNX,
    NVINFER,
    *TRACKERS,
    INFERSERVER,
    TABLE,
    README,
    MANIFEST,
    *(engine_name(batch, mode) for batch in (SECONDARY_BATCH, TRACKER_BATCH) for mode in _MODES),
)
"""Files that an export may have. The engines are DeepStream's, and worthless once the network is replaced."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the settings state: arithmetic, `(height, width)`, numbers of an embedding, precision, folder."""

    arithmetic: Arithmetic
    size: tuple[int, int]
    dimension: int
    precision: str
    folder: Path

    @property
    def offsets(self) -> list[str]:
        """Offsets as text."""
        return [number(value) for value in self.arithmetic.offsets]


def number(value: float) -> str:
    """Return a number with the digits that a float32 can hold, and no more."""
    return f"{value:.9g}"


def nvinfer(bundle: Bundle) -> str:
    """Return the settings of nvinfer as a secondary engine that attaches its tensor to each person."""
    height, width = bundle.size
    values: dict[str, object] = {
        "gpu-id": _GPU,
        "gie-unique-id": 2,
        "process-mode": 2,
        "operate-on-gie-id": 1,
        "operate-on-class-ids": PERSON_CLASS,
        "network-type": 100,
        "output-tensor-meta": 1,
        "onnx-file": ONNX,
        "model-engine-file": engine_name(SECONDARY_BATCH, bundle.precision),
        "network-mode": _MODES[bundle.precision][0],
        "batch-size": SECONDARY_BATCH,
        "infer-dims": f"3;{height};{width}",
        "model-color-format": _COLOURS[bundle.arithmetic.colour],
        "net-scale-factor": number(bundle.arithmetic.scale),
        "offsets": ";".join(bundle.offsets),
        "maintain-aspect-ratio": int(bundle.arithmetic.keep_aspect),
        "symmetric-padding": 0,
        "scaling-filter": 1,
        "scaling-compute-hw": 1,
    }
    if bundle.precision == "int8":
        values["int8-calib-file"] = TABLE
    comments = {
        "operate-on-gie-id": "boxes of the primary engine with this id, of this class (PeopleNet: 0)",
        "network-type": "100: no post-processing; the tensor goes to NVDSINFER_TENSOR_OUTPUT_META",
        "network-mode": "0: FP32, 1: INT8, 2: FP16 (nvtracker counts otherwise)",
        "net-scale-factor": "y = net-scale-factor * (x - offsets)",
        "maintain-aspect-ratio": "another resize rule is another embedding space, see README.md",
        "scaling-filter": "1: bilinear; scaling-compute-hw 1: on the GPU",
    }
    lines = ["[property]"]
    for key, value in values.items():
        lines += [f"# {comments[key]}"] if key in comments else []
        lines.append(f"{key}={value}")
    return "\n".join(lines) + "\n"


def tracker(bundle: Bundle, reid_type: int) -> str:
    """Return the section `ReID` of a tracker's settings."""
    height, width = bundle.size
    values: dict[str, str] = {
        "reidType": str(reid_type),
        "outputReidTensor": "1",
        "addFeatureNormalization": "1",
        "reidFeatureSize": str(bundle.dimension),
        "reidHistorySize": "100",
        "batchSize": str(TRACKER_BATCH),
        "workspaceSize": "1000",
        "onnxFile": _quoted(bundle.folder / ONNX),
        "modelEngineFile": _quoted(bundle.folder / engine_name(TRACKER_BATCH, bundle.precision)),
        "networkMode": str(_MODES[bundle.precision][1]),
        "inferDims": f"[3, {height}, {width}]",
        "inputOrder": "0",
        "colorFormat": str(_COLOURS[bundle.arithmetic.colour]),
        "netScaleFactor": number(bundle.arithmetic.scale),
        "offsets": f"[{', '.join(bundle.offsets)}]",
        "keepAspc": str(int(bundle.arithmetic.keep_aspect)),
        "useVPICropScaler": "1",
    }
    if bundle.precision == "int8":
        values["calibrationTableFile"] = _quoted(bundle.folder / TABLE)
    comments = {
        "reidType": "1: NvDeepSORT, 2: re-association, 3: both",
        "outputReidTensor": "attach the vector to each object, where deepstream-test5 finds it",
        "addFeatureNormalization": "length 1; the network's own rows have any length",
        "networkMode": "0: FP32, 1: FP16, 2: INT8 (nvinfer counts otherwise)",
        "keepAspc": "another resize rule is another embedding space, see README.md",
        "useVPICropScaler": "with 0, tracker-width and tracker-height must be multiples of 32",
    }
    lines = ["ReID:"]
    for key, value in values.items():
        lines += [f"  # {comments[key]}"] if key in comments else []
        lines.append(f"  {key}: {value}")
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def inferserver(bundle: Bundle) -> str:
    """Return the settings of nvinferserver, for the network on a Triton server, in protobuf's text form."""
    settings: dict[str, Any] = {
        "infer_config": {
            "unique_id": 2,
            "gpu_ids": [_GPU],
            "max_batch_size": SECONDARY_BATCH,
            "backend": {
                "triton": {
                    "model_name": _Text(TRITON_MODEL),
                    "version": -1,
                    "grpc": {"url": _Text("localhost:8001"), "enable_cuda_buffer_sharing": _flag(False)},
                }
            },
            "preprocess": {
                "network_format": f"IMAGE_FORMAT_{bundle.arithmetic.colour.upper()}",
                "tensor_order": "TENSOR_ORDER_LINEAR",
                "tensor_name": _Text(BARE_INPUT),
                "maintain_aspect_ratio": int(bundle.arithmetic.keep_aspect),
                "symmetric_padding": 0,
                "frame_scaling_hw": "FRAME_SCALING_HW_GPU",
                "frame_scaling_filter": 1,
                "normalize": {
                    "scale_factor": number(bundle.arithmetic.scale),
                    "channel_offsets": list(bundle.offsets),
                },
            },
            "postprocess": {"other": {}},
        },
        "input_control": {
            "process_mode": "PROCESS_MODE_CLIP_OBJECTS",
            "operate_on_gie_id": 1,
            "operate_on_class_ids": [PERSON_CLASS],
        },
        "output_control": {"output_tensor_meta": _flag(True)},
    }
    return "\n".join(_block(settings, "")) + "\n"


class _Text(str):
    """A text that is written in quotation marks."""

    __slots__ = ()


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _block(values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key} {{", *_block(value, indent + "  "), f"{indent}}}"]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines.append(f"{indent}{key}: [ {', '.join(str(item) for item in value)} ]")
        else:
            lines.append(f"{indent}{key}: {json.dumps(value) if isinstance(value, _Text) else value}")
    return lines
