"""A server of KServe v2 inside the test, for answers that no real server gives at will.

It speaks real gRPC by the stubs of tritonclient, and runs the network by ONNX Runtime.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import onnxruntime
from tritonclient.grpc import service_pb2, service_pb2_grpc

from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.triton import contract

Rows = np.ndarray[Any, Any]


@dataclass
class Fake(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The model `reid`, a prepared graph; its attributes may change while it runs."""

    prepared: PreparedGraph
    version: str = "1"
    parameters: dict[str, str] = field(default_factory=dict)
    has_config: bool = True
    most: int = 16
    change: Callable[[Rows], Rows] = lambda rows: rows
    """What happens to the rows of an answer."""
    shape: tuple[int, ...] = (-1, 256, 128, 3)
    tokens: list[str] = field(default_factory=list)
    """The header `authorization` of each call."""
    refusal: str = ""
    """Message of an error in place of answers; `{}` in it is the header."""
    refuses: bool = False
    """Whether it takes no token."""
    gate: threading.Event = field(default_factory=threading.Event)
    """While it is not set, answers wait."""

    def __post_init__(self) -> None:
        self.gate.set()
        self._session = onnxruntime.InferenceSession(self.prepared.onnx, providers=["CPUExecutionProvider"])
        self.parameters = self.parameters or {
            contract.SPACE: self.prepared.space,
            contract.SHA256: self.prepared.source_sha256,
            contract.PROFILE: "tao",
        }

    def _note(self, context: grpc.ServicerContext) -> None:
        if self.refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no valid token\x1b[31m")
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        if self.refusal:
            context.abort(grpc.StatusCode.UNAVAILABLE, self.refusal.format(self.tokens[-1]))

    def ModelMetadata(self, _request: Any, context: grpc.ServicerContext) -> Any:
        self._note(context)
        found = service_pb2.ModelMetadataResponse(name="reid", versions=[self.version], platform="fake")
        found.inputs.add(name="crops", datatype="UINT8", shape=self.shape)
        found.outputs.add(name="embedding", datatype="FP32", shape=[-1, self.prepared.dimension])
        return found

    def ModelConfig(self, _request: Any, context: grpc.ServicerContext) -> Any:
        self._note(context)
        if not self.has_config:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        found = service_pb2.ModelConfigResponse()
        found.config.max_batch_size = self.most
        for key, value in self.parameters.items():
            found.config.parameters[key].string_value = value
        return found

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note(context)
        self.gate.wait(10)
        pixels = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)
        rows = self.change(self._session.run(None, {"crops": pixels})[0])
        kind = {"float32": "FP32", "float64": "FP64"}[rows.dtype.name]
        found = service_pb2.ModelInferResponse(model_name="reid", model_version=self.version)
        found.outputs.add(name="embedding", datatype=kind, shape=rows.shape)
        found.raw_output_contents.append(rows.tobytes())
        return found


@contextmanager
def serving(fake: Fake, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> Iterator[int]:
    """Serve during a block; give the port on loopback."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    address = f"127.0.0.1:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    server.start()
    try:
        yield port
    finally:
        fake.gate.set()
        server.stop(None).wait(5)
