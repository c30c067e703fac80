"""Small real ONNX networks, made in the test: enough to be wrong in every way that matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH = 256, 128


def reid(
    path: Path,
    *,
    dimension: int | None = 8,
    opset: int = 13,
    shape: tuple[object, ...] = ("batch", 3, HEIGHT, WIDTH),
    output_shape: tuple[object, ...] | None = None,
    half: bool = False,
    names: tuple[str, str] = ("input", "fc_pred"),
    weights_as_inputs: bool = False,
    extra_nodes: list[onnx.NodeProto] | None = None,
    extra_weights: list[onnx.TensorProto] | None = None,
    extra_outputs: tuple[str, ...] = (),
    extra_inputs: tuple[str, ...] = (),
    scale: float = 1.0,
    seed: int = 0,
) -> Path:
    """Mean colours of an 8 x 4 grid, mixed by random weights into `dimension` numbers.

    `extra_nodes` go between `mixed` and the output; the last of them must make the output.
    """
    source, target = names
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    numbers = np.float16 if half else np.float32
    channels_last = shape[-1] == 3
    nodes = []
    planes = source
    if channels_last:
        nodes.append(helper.make_node("Transpose", [source], ["planes"], perm=[0, 3, 1, 2]))
        planes = "planes"
    nodes += [
        helper.make_node("AveragePool", [planes], ["grid"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Flatten", ["grid"], ["flat"], axis=1),
    ]
    height, width = (shape[1:3] if channels_last else shape[2:4]) if len(shape) == 4 else (HEIGHT, WIDTH)
    cells = 3 * (_size(height, HEIGHT) // 32) * (_size(width, WIDTH) // 32)
    rng = np.random.default_rng(seed)
    mix = (rng.normal(size=(cells, dimension or 8)) * scale).astype(numbers)
    weights = [numpy_helper.from_array(mix, "mix"), *(extra_weights or [])]
    nodes.append(helper.make_node("MatMul", ["flat", "mix"], ["mixed" if extra_nodes else target]))
    nodes += extra_nodes or []
    inputs = [helper.make_tensor_value_info(source, kind, shape)]
    inputs += [helper.make_tensor_value_info(name, kind, shape) for name in extra_inputs]
    if weights_as_inputs:
        inputs += [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights]
    wanted = ("batch", dimension) if output_shape is None else output_shape
    outputs = [helper.make_tensor_value_info(target, kind, wanted)]
    outputs += [helper.make_tensor_value_info(name, kind, None) for name in extra_outputs]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def convolutional(path: Path, *, dimension: int = 32, seed: int = 0) -> Path:
    """Four convolutions: `[N, 3, 256, 128]` -> stem, residual block, last, global pooling -> `[N, D]`."""
    rng = np.random.default_rng(seed)

    def kernel(name: str, outputs: int, inputs: int, size: int) -> onnx.TensorProto:
        values = rng.normal(size=(outputs, inputs, size, size)) / np.sqrt(inputs * size * size)
        return numpy_helper.from_array(values.astype(np.float32), name)

    weights = [
        kernel("stem_w", 16, 3, 8),
        kernel("first_w", 16, 16, 3),
        kernel("second_w", 16, 16, 3),
        kernel("last_w", dimension, 16, 4),
    ]
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["input", "stem_w"], ["stem"], "stem", kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Relu", ["stem"], ["stem_relu"], "stem_relu"),
        helper.make_node("Conv", ["stem_relu", "first_w"], ["first"], "block/first", **same),
        helper.make_node("Relu", ["first"], ["first_relu"], "block/relu"),
        helper.make_node("Conv", ["first_relu", "second_w"], ["second"], "block/second", **same),
        helper.make_node("Add", ["second", "stem_relu"], ["sum"], "block/add"),
        helper.make_node("Relu", ["sum"], ["sum_relu"], "block/out"),
        helper.make_node(
            "Conv", ["sum_relu", "last_w"], ["maps"], "last", kernel_shape=[4, 4], strides=[4, 4]
        ),
        helper.make_node("Relu", ["maps"], ["maps_relu"], "last_relu"),
        helper.make_node("GlobalAveragePool", ["maps_relu"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["fc_pred"], "flatten", axis=1),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", 3, HEIGHT, WIDTH))]
    outputs = [helper.make_tensor_value_info("fc_pred", TensorProto.FLOAT, ("batch", dimension))]
    graph = helper.make_graph(nodes, "tiny_residual", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def _size(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def undefined_for_dark(path: Path, *, output: str = "fc_pred") -> Path:
    """A network whose embedding is NaN for black pictures: the logarithm of a negative number.

    To be used with profile `openvino-raw`, whose pixels lie in 0..255.
    """
    nodes = [
        helper.make_node("ReduceMean", ["flat"], ["light"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["light", "one"], ["above"]),
        helper.make_node("Log", ["above"], ["log"]),
        helper.make_node("Mul", ["mixed", "log"], [output]),
    ]
    weights = [numpy_helper.from_array(np.ones((1, 1), np.float32), "one")]
    return reid(path, extra_nodes=nodes, extra_weights=weights, names=("input", output))


def fails_for_three(path: Path) -> Path:
    """A network that fails on three pictures, as a shape baked in by an export would.

    It reshapes to 8 + (batch == 3) columns: 24 numbers do not fit rows of 9.
    """
    nodes = [
        helper.make_node("Shape", ["mixed"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["count"], axis=0),
        helper.make_node("Equal", ["count", "three"], ["is_three"]),
        helper.make_node("Cast", ["is_three"], ["extra"], to=TensorProto.INT64),
        helper.make_node("Add", ["eight", "extra"], ["columns"]),
        helper.make_node("Concat", ["any", "columns"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["mixed", "wanted"], ["fc_pred"]),
    ]
    numbers = {"first": 0, "three": 3, "eight": 8, "any": -1}
    weights = [numpy_helper.from_array(np.asarray([v], np.int64), name) for name, v in numbers.items()]
    return reid(path, extra_nodes=nodes, extra_weights=weights)


def mixes_batch(path: Path) -> Path:
    """A network whose embeddings depend on the other pictures of the batch."""
    nodes = [
        helper.make_node("ReduceMean", ["mixed"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["mean", "most"], ["shift"]),
        helper.make_node("Sub", ["mixed", "shift"], ["fc_pred"]),
    ]
    weights = [numpy_helper.from_array(np.asarray([[0.9]], np.float32), "most")]
    return reid(path, extra_nodes=nodes, extra_weights=weights)


def resnet(
    path: Path,
    *,
    stages: tuple[int, ...] = (2, 1),
    width: int = 8,
    dimension: int = 16,
    size: tuple[int, int] = (64, 32),
    gate: bool = False,
    depthwise: bool = False,
    named: bool = True,
    seed: int = 0,
) -> Path:
    """A ResNet of bottlenecks with random weights, BNNeck and final Gemm.

    `stages=(3, 4, 6, 3)`, `width=64` is ResNet-50. `gate` puts a squeeze-and-excitation after the first
    stage, `depthwise` a depthwise convolution before the head. Nodes are named as in a PyTorch export, or
    not at all.
    """
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        output = f"/{name}/{kind}_output_0"
        nodes.append(
            helper.make_node(kind, inputs, [output], name=f"/{name}/{kind}" if named else "", **attributes)
        )
        return output

    def weight(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(name: str, given: str, ins: int, outs: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        fan = ins // group * kernel * kernel
        kernels = rng.normal(size=(outs, ins // group, kernel, kernel)) * (1.6 / fan) ** 0.5
        inputs = [
            given,
            weight(f"{name}.weight", kernels),
            weight(f"{name}.bias", rng.normal(size=outs) / 20),
        ]
        pads = [kernel // 2] * 4
        return add(
            "Conv", name, inputs, kernel_shape=[kernel, kernel], strides=[stride] * 2, pads=pads, group=group
        )

    data = add("Relu", "relu", [conv("conv1", "input", 3, width, 7, 2)])
    data = add("MaxPool", "maxpool", [data], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    ins = width
    for stage, count in enumerate(stages):
        middle = width * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            inner = add("Relu", f"{name}/relu", [conv(f"{name}/conv1", data, ins, middle, 1)])
            inner = conv(f"{name}/conv2", inner, middle, middle, 3, stride)
            inner = conv(f"{name}/conv3", add("Relu", f"{name}/relu_1", [inner]), middle, 4 * middle, 1)
            skip = data if block else conv(f"{name}/downsample", data, ins, 4 * middle, 1, stride)
            data = add("Relu", f"{name}/relu_2", [add("Add", name, [inner, skip])])
            ins = 4 * middle
        if gate and not stage:
            pooled = add("GlobalAveragePool", "gate/pool", [data])
            pooled = add("Relu", "gate/relu", [conv("gate/fc1", pooled, ins, 4, 1)])
            data = add("Mul", "gate", [data, add("Sigmoid", "gate", [conv("gate/fc2", pooled, 4, ins, 1)])])
    if depthwise:
        data = add("Relu", "dw/relu", [conv("dw", data, ins, ins, 3, group=ins)])
    data = add("Flatten", "flat", [add("GlobalAveragePool", "pool", [data])])
    mix = weight("fc.weight", rng.normal(size=(dimension, ins)) / ins**0.5)
    data = add("Gemm", "fc", [data, mix, weight("fc.bias", rng.normal(size=dimension))], transB=1)
    neck = [weight(f"neck.{i}", abs(rng.normal(size=dimension)) + 0.5) for i in range(4)]
    nodes.append(helper.make_node("BatchNormalization", [data, *neck], ["fc_pred"], name="/neck"))
    graph = helper.make_graph(
        nodes,
        "resnet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *size])],
        [helper.make_tensor_value_info("fc_pred", TensorProto.FLOAT, ["batch", dimension])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def yolox(
    path: Path, *, size: int = 64, columns: int = 7, rows: int | None = None, batch: object = 1
) -> Path:
    """A network with the outer shape of a YOLOX: pictures in, one row per anchor out.

    The rows are stored in the file's weight `rows`, so a test can choose what is "found"; a bright picture
    adds a little to the objectness.
    """
    anchors = sum((size // s) ** 2 for s in (8, 16, 32))
    found = np.zeros((1, rows or anchors, columns), np.float32)
    found[..., 5:] = 0.1
    shift = np.zeros_like(found)
    shift[..., 4] = np.linspace(0, 1e-6, shift.shape[1])
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Squeeze", ["mean", "last"], ["light"]),
        helper.make_node("Mul", ["light", "shift"], ["more"]),
        helper.make_node("Add", ["rows", "more"], ["output"]),
    ]
    weights = [
        numpy_helper.from_array(found, "rows"),
        numpy_helper.from_array(shift, "shift"),
        numpy_helper.from_array(np.asarray([3], np.int64), "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_yolox",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, rows or anchors, columns])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
