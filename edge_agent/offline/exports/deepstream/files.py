"""The settings files of an export for DeepStream, as text.

Keys and their meaning: nvinfer, `gst-nvinfer/gstnvinfer_property_parser.h`; nvtracker, "Gst-nvtracker" of the
DeepStream developer guide, table "Object Re-ID"; nvinferserver, `includes/nvdsinferserver_*.proto`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.engine.graph.prepared import BARE_INPUT
from edge_agent.offline.exports.deepstream.arithmetic import Arithmetic
from edge_agent.offline.exports.text_format import Word, text_format
from edge_agent.offline.exports.triton import TAO_MODEL_NAME

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
    return "[property]\n" + "".join(f"{line}\n" for line in _commented(values, comments, "="))


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
    return "ReID:\n" + "".join(f"  {line}\n" for line in _commented(values, comments, ": "))


def _commented(values: Mapping[str, object], comments: Mapping[str, str], sign: str) -> Iterator[str]:
    """Yield a line for each setting, after its comment where it has one."""
    for key, value in values.items():
        if key in comments:
            yield f"# {comments[key]}"
        yield f"{key}{sign}{value}"


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
                    "model_name": TAO_MODEL_NAME,
                    "version": -1,
                    "grpc": {"url": "localhost:8001", "enable_cuda_buffer_sharing": False},
                }
            },
            "preprocess": {
                "network_format": Word(f"IMAGE_FORMAT_{bundle.arithmetic.colour.upper()}"),
                "tensor_order": Word("TENSOR_ORDER_LINEAR"),
                "tensor_name": BARE_INPUT,
                "maintain_aspect_ratio": int(bundle.arithmetic.keep_aspect),
                "symmetric_padding": 0,
                "frame_scaling_hw": Word("FRAME_SCALING_HW_GPU"),
                "frame_scaling_filter": 1,
                "normalize": {
                    "scale_factor": Word(number(bundle.arithmetic.scale)),
                    "channel_offsets": [Word(offset) for offset in bundle.offsets],
                },
            },
            "postprocess": {"other": {}},
        },
        "input_control": {
            "process_mode": Word("PROCESS_MODE_CLIP_OBJECTS"),
            "operate_on_gie_id": 1,
            "operate_on_class_ids": [PERSON_CLASS],
        },
        "output_control": {"output_tensor_meta": True},
    }
    return "\n".join(text_format(settings)) + "\n"
