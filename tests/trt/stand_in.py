"""Runs inside a test's subprocess: configures the stub of libnvinfer for real bindings of any version.

Usage there::

    import stand_in
    stub = stand_in.Stub()      # finds the methods of this version
    engine = TensorRTEngine(...)

NVIDIA's headers are not needed: each method is called once on an object that records which entry of its
table was used (`nvinfer.c`).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray

__all__ = ["Stub", "rows"]

_DESTRUCTOR = 1
"""Place of the destructor that `delete` calls, in every table (Itanium C++ ABI)."""


def rows(batch: NDArray[np.uint8], numbers: int) -> NDArray[np.float32]:
    """Return what the stub computes of `(N, H, W, 3)` pictures: `compute` of `nvinfer.c`."""
    pixels = batch.reshape(len(batch), -1).astype(np.int64)
    places = np.arange(pixels.shape[1], dtype=np.uint32)
    signs = np.where(places * np.uint32(2654435761) >> np.uint32(31), -1, 1)
    return np.stack([(signs * pixels)[:, k::numbers].sum(axis=1) for k in range(numbers)], axis=1).astype(
        np.float32
    )


class _Call(ctypes.Structure):
    _fields_ = (("place", ctypes.c_uint64), ("arguments", ctypes.c_uint64 * 6))


class Stub:
    """The stub of libnvinfer, and of libcuda where it is preloaded.

    Attributes:
        places: place of every method that was learnt, by name.
    """

    def __init__(self) -> None:
        self.nvinfer = ctypes.CDLL(f"libnvinfer.so.{trt.__version__.split('.', maxsplit=1)[0]}")
        everything = ctypes.CDLL(None)
        self.cuda = everything if hasattr(everything, "fake_told") else None
        self.logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        self.places: dict[str, int] = {}
        self._learn()

    def calls(self) -> list[tuple[int, list[int]]]:
        """Return places and arguments of the calls since the last time."""
        buffer = (_Call * 256)()
        count = self.nvinfer.stub_calls(ctypes.byref(buffer))
        return [(int(call.place), list(call.arguments)) for call in buffer[:count]]

    def place_of(self, call: Callable[[], object]) -> int:
        """Place of the one method of a table that `call` uses."""
        self.calls()
        with contextlib.suppress(UnicodeDecodeError, RuntimeError):  # results are nonsense while learning
            call()
        places = {place for place, _ in self.calls()}
        assert len(places) == 1, f"one method was expected, these places were called: {sorted(places)}"
        return places.pop()

    def _learn(self) -> None:
        for name, call in _methods(self.logger).items():
            self.places[name] = self.place_of(call)
        self.places |= dict.fromkeys(("destroy_runtime", "destroy_engine", "destroy_context"), _DESTRUCTOR)
        for name, place in self.places.items():
            assert self.nvinfer.stub_bind(name.encode(), place), f"nvinfer.c has nothing for {name}"
        self.nvinfer.stub_ready()

    # --- the driver ---------------------------------------------------------------------------

    def events(self) -> list[str]:
        """Return the events on the GPU since the last call, in order."""
        self.cuda.fake_told.restype = ctypes.c_char_p
        lines = self.cuda.fake_told().decode().splitlines()
        self.cuda.fake_forget()
        return lines

    def live(self) -> int:
        """Contexts, streams, events, graphs and pieces of memory that exist."""
        return int(self.cuda.fake_live())

    def forget_live(self) -> None:
        """Do not count the present objects: a test left them on purpose."""
        self.cuda.fake_count(-self.live())

    def no_faults(self) -> None:
        """Remove all faults."""
        self.cuda.fake_no_faults()

    def fail(self, function: str, code: int = 1, *, skip: int = 0, times: int = 1) -> None:
        """Let a function of CUDA or TensorRT fail `times` times, after `skip` successes."""
        self.cuda.fake_fail(function.encode(), code, skip, times)


def _methods(logger: trt.Logger) -> dict[str, Callable[[], object]]:
    """A call of every method that `nvinfer.c` can stand in for."""
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(b"x")
    context = engine.create_execution_context()
    return {
        "deserialize_cuda_engine": lambda: runtime.deserialize_cuda_engine(b"x"),
        "num_DLA_cores": lambda: runtime.num_DLA_cores,
        "DLA_core": lambda: setattr(runtime, "DLA_core", 1),
        "num_io_tensors": lambda: engine.num_io_tensors,
        "get_tensor_name": lambda: engine.get_tensor_name(0),
        "get_tensor_mode": lambda: engine.get_tensor_mode("x"),
        "get_tensor_dtype": lambda: engine.get_tensor_dtype("x"),
        "get_tensor_shape": lambda: engine.get_tensor_shape("x"),
        "get_tensor_profile_shape": lambda: engine.get_tensor_profile_shape("x", 0),
        "num_optimization_profiles": lambda: engine.num_optimization_profiles,
        "create_execution_context": engine.create_execution_context,
        "set_optimization_profile_async": lambda: context.set_optimization_profile_async(0, 0),
        "set_input_shape": lambda: context.set_input_shape("x", (1, 2, 3)),
        "set_tensor_address": lambda: context.set_tensor_address("x", 256),
        "execute_async_v3": lambda: context.execute_async_v3(0),
    }
