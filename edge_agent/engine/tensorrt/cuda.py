"""CUDA through pycuda: context, device and shared memory, streams, events, captured graphs.

A context and everything that is made in it belongs to the thread that entered it. TensorRT uses the primary
context of the device, so this module does too.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_agent.core.errors import EngineError

if TYPE_CHECKING:
    from pycuda import driver

ALIGNMENT = 256
"""Alignment of tensor addresses in bytes that TensorRT demands (NvInferRuntime.h, setTensorAddress)."""
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for CUDA's default stream; pycuda has no name for it."""
_POISON = 0xFF
"""Byte that fills an output before it is computed: four of them are a NaN that no arithmetic returns."""
_NO_GPU = (
    "Likely causes: the driver is not loaded or of another version than libcuda; on a Jetson, the user is "
    "not in the groups video and render; in a container, the NVIDIA runtime is not in use"
)


def probe() -> None:
    """Raise EngineError with the likely causes unless pycuda, the driver and a GPU are usable."""
    try:
        from pycuda import driver
    except ImportError as problem:
        raise EngineError(
            f"CUDA cannot be used: {problem}. Without libcuda.so.1 there is no NVIDIA driver here; without "
            "pycuda: pip install pycuda (on a Jetson, with the CUDA toolkit of JetPack: install.sh does it)"
        ) from problem
    try:
        driver.init()
        devices = driver.Device.count()
    except driver.Error as problem:
        raise EngineError(f"CUDA cannot be used: {problem}. {_NO_GPU}") from problem
    if not devices:
        raise EngineError(f"CUDA sees no GPU. {_NO_GPU}")


@dataclass(frozen=True, slots=True)
class Gpu:
    """Properties of the GPU; memory in bytes.

    Attributes:
        compute_capability: e.g. `(8, 7)` for Orin.
        multiprocessors: number of active ones; a Jetson's power mode may change it.
        integrated: whether it shares the memory of the CPU, as a Jetson's does.
        maps_host_memory: whether it can access pinned memory of the host.
        driver_version: newest CUDA that the driver supports, e.g. 12060 for 12.6.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    integrated: bool
    maps_host_memory: bool
    total_memory: int
    free_memory: int
    driver_version: int


class Context:
    """The primary context of the first GPU, current on the thread that entered it until it leaves.

    Entering raises EngineError as `probe` does, or when the context cannot be made.
    """

    def __init__(self) -> None:
        self._context: driver.Context | None = None

    def __enter__(self) -> Context:
        probe()
        from pycuda import driver

        try:
            self._context = driver.Device(0).retain_primary_context()
            self._context.push()
        except driver.Error as problem:
            raise EngineError(f"no CUDA context can be made: {problem}. {_NO_GPU}") from problem
        return self

    def __exit__(self, *_exception: object) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.detach()  # while it is current, or pycuda would push it again

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Make the context current on another thread during a `with`, to wait for an event."""
        assert self._context is not None  # an event exists only while the context does
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def gpu(self) -> Gpu:
        """Return the properties of the GPU."""
        from pycuda import driver

        device = driver.Device(0)
        attribute, names = device.get_attribute, driver.device_attribute
        free, total = driver.mem_get_info()
        return Gpu(
            name=device.name(),
            compute_capability=device.compute_capability(),
            multiprocessors=attribute(names.MULTIPROCESSOR_COUNT),
            integrated=bool(attribute(names.INTEGRATED)),
            maps_host_memory=bool(attribute(names.CAN_MAP_HOST_MEMORY)),
            total_memory=total,
            free_memory=free,
            driver_version=driver.get_driver_version(),
        )

    def stream(self) -> driver.Stream:
        """Make a stream; on the default stream TensorRT would wait for the whole device."""
        from pycuda import driver

        return driver.Stream(_NON_BLOCKING)

    def event(self, *, blocking: bool = False) -> driver.Event:
        """Make an event; `blocking`: waiting for it sleeps instead of polling."""
        from pycuda import driver

        return driver.Event(driver.event_flags.BLOCKING_SYNC if blocking else 0)


class DeviceMemory:
    """GPU memory of `size` bytes; `pointer` is its address on the device, a multiple of `ALIGNMENT`."""

    def __init__(self, size: int) -> None:
        from pycuda import driver

        self._memory: driver.DeviceAllocation | None = driver.mem_alloc(size)
        self.pointer = _aligned(int(self._memory))

    def upload(self, host: NDArray[Any], stream: driver.Stream) -> None:
        """Copy a pinned array to the beginning, in stream order."""
        from pycuda import driver

        driver.memcpy_htod_async(self.pointer, host, stream)

    def download(self, host: NDArray[Any], stream: driver.Stream) -> None:
        """Fill a pinned array from the beginning, in stream order."""
        from pycuda import driver

        driver.memcpy_dtoh_async(host, self.pointer, stream)

    def poison(self, size: int, stream: driver.Stream) -> None:
        """Overwrite the first `size` bytes with a NaN that no computation returns, in stream order."""
        from pycuda import driver

        driver.memset_d8_async(self.pointer, _POISON, size, stream)

    def free(self) -> None:
        """Free the memory, on the thread of the context."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.free()


class Buffer:
    """A tensor of host and GPU, rows first: `mapped` in shared memory, else in two memories with copies.

    `pointer` is its address for the GPU, a multiple of `ALIGNMENT`.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, *, mapped: bool) -> None:
        from pycuda import driver

        flags = driver.host_alloc_flags.DEVICEMAP if mapped else 0
        self._host: NDArray[Any] | None = driver.pagelocked_empty(shape, dtype, mem_flags=flags)
        self._host.fill(0)
        self._device = None if mapped else DeviceMemory(self._host.nbytes)
        shared = self._host.base.get_device_pointer() if mapped else 0
        self.pointer = self._device.pointer if self._device else _aligned(int(shared))

    @property
    def host(self) -> NDArray[Any]:
        """The tensor in host memory. Use it only while the GPU does not."""
        assert self._host is not None  # the buffer lives as long as the engine is entered
        return self._host

    def upload(self, rows: int, stream: driver.Stream) -> None:
        """Copy the first rows to the GPU, in stream order, where memory is not shared."""
        if self._device is not None:
            self._device.upload(self.host[:rows], stream)

    def download(self, rows: int, stream: driver.Stream) -> None:
        """Copy the first rows to the host, in stream order, where memory is not shared."""
        if self._device is not None:
            self._device.download(self.host[:rows], stream)

    def poison(self, rows: int, stream: driver.Stream) -> None:
        """Overwrite the first rows, so that rows of an earlier run are not mistaken for a result."""
        part = self.host[:rows]
        part.view(np.uint8).fill(_POISON)
        if self._device is not None:
            self._device.poison(part.nbytes, stream)

    def poisoned(self, rows: int) -> bool:
        """Return whether one of the first rows ends in what `poison` wrote: the GPU did not write it."""
        ends = np.ascontiguousarray(self.host[:rows].reshape(rows, -1)[:, -1:]).view(np.uint8)
        return bool((ends == _POISON).all(axis=1).any())

    def free(self) -> None:
        """Free the memory, on the thread of the context; host memory only once no array uses it any more."""
        if self._device is not None:
            self._device.free()
        if self._host is None:
            return
        allocation: Any = self._host.base
        held = weakref.ref(self._host)
        self._host = None
        if held() is None:
            allocation.free()


def _aligned(pointer: int) -> int:
    """Return the pointer; EngineError where TensorRT would refuse it."""
    if pointer % ALIGNMENT:
        raise EngineError(f"CUDA returned memory at {pointer:#x}, which is not a multiple of {ALIGNMENT}")
    return pointer


class Graph:
    """Captured work of a stream, launched as a whole: an executable graph of `cuda.bindings.driver`."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 - its type exists only with the package
        self._handle = handle

    def launch(self, stream: driver.Stream) -> None:
        """Repeat the captured work, in stream order; EngineError where CUDA refuses."""
        from cuda.bindings import driver as api

        _succeed(api.cuGraphLaunch(self._handle, stream.handle), "launch a captured graph")

    def free(self) -> None:
        """Free the graph, on the thread of the context."""
        from cuda.bindings import driver as api

        _succeed(api.cuGraphExecDestroy(self._handle), "free a captured graph")


def capture(work: Callable[[], None], stream: driver.Stream) -> Graph:
    """Capture what `work` puts on the stream. It must have run once before, outside of a capture.

    Raises:
        EngineError: the package `cuda-bindings` is missing, or the work cannot be captured. The stream
            remains usable.
    """
    try:
        from cuda.bindings import driver as api
    except ImportError as problem:
        raise EngineError(f"CUDA graphs need the package cuda-bindings: {problem}") from problem
    mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _succeed(api.cuStreamBeginCapture(stream.handle, mode), "capture a graph")
    try:
        work()
    except BaseException:
        api.cuStreamEndCapture(stream.handle)  # returns an error, since the capture is invalid
        raise
    graph = _succeed(api.cuStreamEndCapture(stream.handle), "capture a graph")
    try:
        return Graph(_succeed(api.cuGraphInstantiate(graph, 0), "make a captured graph executable"))
    finally:
        api.cuGraphDestroy(graph)


def _succeed(result: tuple[Any, ...], what: str) -> Any:  # noqa: ANN401 - as the package returns it
    """Return the value of a `cuda.bindings.driver` result (status, value or nothing), or raise its error."""
    status, *value = result
    if int(status) != 0:
        raise EngineError(f"CUDA could not {what}: {status.name}")
    return value[0] if value else None
