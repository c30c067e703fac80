"""Runs inside a test's subprocess: a builder for TensorRT's real bindings, implemented in Python.

Usage there::

    from builder_stand_in import BuilderStub
    stub = BuilderStub()
    build_plan(...)             # as on a device
    stub.received               # calls in order: [("set_flag", 1), ...]

Building drives the calibrator and the progress monitor that it was given as TensorRT does: through the C++
objects that the bindings made of them. Its plans are those of `nvinfer.c`, so an engine can run them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import tensorrt as trt
from stand_in import Stub

__all__ = ["BuilderStub"]

_MAJOR = int(trt.__version__.split(".", maxsplit=1)[0])
_FIRST = 0 if _MAJOR < 10 else 4
"""Place of the first method of our classes: language, interface and destructors precede it from 10 on."""
_PLACES = 256
_INT8 = 2
"""DataType::kINT8, as which the bindings show memory."""
_WORD = ctypes.c_uint64
_POINTER = ctypes.c_void_p
_INT = ctypes.c_int32
_SIMPLE = _INT.__mro__[1]
"""Base class of the simple types of ctypes."""
_DIMENSION = ctypes.c_int64 if _MAJOR >= 10 else ctypes.c_int32


class _Dims(ctypes.Structure):
    _fields_ = (("count", _INT), ("sizes", _DIMENSION * 8))


class _Object:
    """A C++ object with its own function table, whose entries record calls at first."""

    def __init__(self, noting: list[int]) -> None:
        self._table = (_POINTER * (2 + _PLACES))(None, None, *noting)  # no type stands before the table
        self._words = (_POINTER * 64)()
        self.address = ctypes.addressof(self._words)
        self._words[0] = ctypes.addressof(self._table) + 2 * ctypes.sizeof(_POINTER)
        self._words[1] = self.address  # its implementation is itself
        self._kept: list[Any] = []

    def answer(self, place: int, function: Callable[..., Any], result: Any, *arguments: Any) -> None:
        callback = ctypes.CFUNCTYPE(result, _POINTER, *arguments)(lambda _, *given: function(*given))
        self._kept.append(callback)
        self._table[2 + place] = ctypes.cast(callback, _POINTER).value


class BuilderStub(Stub):
    """See above.

    Attributes:
        received: names and arguments of calls.
        plan: result of a build; None: it fails.
        says: log line of a failure.
        parses: whether the parser accepts a graph.
        layers: names of the network's layers.
        takes_timing: timing caches that are accepted.
        seconds: that a build takes.
        steps: of each phase of a build.
        batches: calibration batches that it reads at most.
        seen: contents of each calibration batch: bytes of its only input.
        cache: calibration cache that it writes.
        read: calibration cache that it read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hosted: list[Any] = []
        self.reset()
        self._answer()

    def reset(self) -> None:
        """Restore the initial state."""
        self.received: list[tuple[Any, ...]] = []
        self.plan: bytes | None = b"plan -1 16 8 4 3 1 16 64"
        self.says = "stub: no tactic was found"
        self.parses = True
        self.layers = ["conv", "pool", "fc"]
        self.takes_timing = {b"", b"timings"}
        self.seconds = 0.0
        self.steps = 3
        self.batches = 1 << 30
        self.seen: list[bytes] = []
        self.cache = b""
        self.read: bytes | None = None
        self.picture_bytes = 16 * 8 * 3
        self._calibrator = self._monitor = 0

    # --- places -------------------------------------------------------------------------------

    def _learn_builder(self) -> dict[str, int]:
        builder = trt.Builder(self.logger)
        network = builder.create_network(0)
        config = builder.create_builder_config()
        parser = trt.OnnxParser(network, self.logger)
        profile = builder.create_optimization_profile()
        layer, cache = network.get_layer(0), config.create_timing_cache(b"")
        host, error = builder.build_serialized_network(network, config), parser.get_error(0)
        methods: dict[str, Callable[[], object]] = {
            "create_network": lambda: builder.create_network(0),
            "create_builder_config": builder.create_builder_config,
            "create_optimization_profile": builder.create_optimization_profile,
            "build_serialized_network": lambda: builder.build_serialized_network(network, config),
            "builder_num_DLA_cores": lambda: builder.num_DLA_cores,
            "set_shape": lambda: profile.set_shape("x", (1,), (1,), (1,)),
            "set_memory_pool_limit": lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1),
            "set_flag": lambda: config.set_flag(trt.BuilderFlag.TF32),
            "clear_flag": lambda: config.clear_flag(trt.BuilderFlag.TF32),
            "add_optimization_profile": lambda: config.add_optimization_profile(profile),
            "default_device_type": lambda: setattr(config, "default_device_type", trt.DeviceType.DLA),
            "config_DLA_core": lambda: setattr(config, "DLA_core", 1),
            "can_run_on_DLA": lambda: config.can_run_on_DLA(layer),
            "create_timing_cache": lambda: config.create_timing_cache(b""),
            "set_timing_cache": lambda: config.set_timing_cache(cache, False),
            "get_timing_cache": config.get_timing_cache,
            "serialize": cache.serialize,
            "num_layers": lambda: network.num_layers,
            "get_layer": lambda: network.get_layer(0),
            "layer_name": lambda: layer.name,
            "parse": lambda: parser.parse(b"x"),
            "num_errors": lambda: parser.num_errors,
            "get_error": lambda: parser.get_error(0),
            "size": lambda: host.nbytes,
        }
        of_an_error = ("code", "node", "desc", "func", "node_name", "node_operator")
        methods |= {f"error_{name}": getattr(error, name) for name in of_an_error if hasattr(error, name)}
        if hasattr(trt, "IInt8Calibrator"):
            methods["int8_calibrator"] = lambda: setattr(config, "int8_calibrator", None)
            methods["set_calibration_profile"] = lambda: config.set_calibration_profile(profile)
        if hasattr(trt, "IProgressMonitor"):
            methods["progress_monitor"] = lambda: setattr(config, "progress_monitor", None)
        places = {name: self.place_of(call) for name, call in methods.items()}
        self.calls()
        memoryview(host)  # asks for type, size, type, data
        places["type"], _, _, places["data"] = (place for place, _ in self.calls())
        return places

    def _noting(self) -> list[int]:
        """Addresses of the functions that note, place by place."""
        self.calls()
        trt.Builder(self.logger).create_builder_config()
        anything = next(arguments[0] for _, arguments in self.calls())
        table = ctypes.cast(anything, ctypes.POINTER(_POINTER))[0]
        return list((_POINTER * _PLACES).from_address(table))

    # --- answers ------------------------------------------------------------------------------

    def _answer(self) -> None:
        places, noting = self._learn_builder(), self._noting()

        def new() -> _Object:
            made = _Object(noting)
            self._hosted.append(made)
            return made

        builder, network, config, parser, profile, timing = (new() for _ in range(6))
        layers = [new() for _ in range(8)]
        problem = new()

        def note(of: _Object, name: str, result: Any, *arguments: Any, gives: Any = None) -> None:
            def noted(*given: Any) -> Any:
                self.received.append((name, *given))
                return gives(*given) if callable(gives) else gives

            if name in places:
                of.answer(places[name], noted, result, *arguments)

        def host(data: bytes) -> int:
            made, memory = new(), ctypes.create_string_buffer(data, max(1, len(data)))
            self._hosted.append(memory)
            made.answer(places["data"], lambda: ctypes.addressof(memory), _POINTER)
            made.answer(places["size"], lambda: len(data), _WORD)
            made.answer(places["type"], lambda: _INT8, _INT)
            return made.address

        self._host = host
        # Builder
        note(builder, "create_network", _POINTER, ctypes.c_uint32, gives=network.address)
        builder.answer(places["create_builder_config"], lambda: config.address, _POINTER)
        builder.answer(places["create_optimization_profile"], lambda: profile.address, _POINTER)
        builder.answer(places["build_serialized_network"], self._build, _POINTER, _POINTER, _POINTER)
        builder.answer(places["builder_num_DLA_cores"], lambda: 2, _INT)
        # Profile
        dims = _Dims if _MAJOR < 10 else ctypes.POINTER(_Dims)  # by value, then by reference
        profile.answer(places["set_shape"], self._shape, ctypes.c_bool, ctypes.c_char_p, _INT, dims)
        # Configuration
        note(config, "set_memory_pool_limit", None, _INT, _WORD)
        note(config, "set_flag", None, _INT)
        note(config, "clear_flag", None, _INT)
        config.answer(places["add_optimization_profile"], lambda _: 0, _INT, _POINTER)
        note(config, "default_device_type", None, _INT)
        note(config, "config_DLA_core", None, _INT)
        config.answer(places["can_run_on_DLA"], lambda it: it != layers[1].address, ctypes.c_bool, _POINTER)
        config.answer(places["create_timing_cache"], self._timing(timing), _POINTER, _POINTER, _WORD)
        config.answer(places["set_timing_cache"], lambda *_: True, ctypes.c_bool, _POINTER, ctypes.c_bool)
        config.answer(places["get_timing_cache"], lambda: timing.address, _POINTER)
        timing.answer(places["serialize"], lambda: host(b"timings"), _POINTER)
        if "int8_calibrator" in places:
            config.answer(places["int8_calibrator"], self._take_calibrator, None, _POINTER)
            note(config, "set_calibration_profile", ctypes.c_bool, _POINTER, gives=True)
        if "progress_monitor" in places:
            config.answer(places["progress_monitor"], self._take_monitor, None, _POINTER)
        # Network
        network.answer(places["num_layers"], lambda: len(self.layers), _INT)
        network.answer(places["get_layer"], lambda index: layers[index].address, _POINTER, _INT)
        for index, layer in enumerate(layers):
            memory = ctypes.create_string_buffer((self.layers[index] if index < 3 else "").encode())
            self._hosted.append(memory)
            layer.answer(places["layer_name"], lambda it=memory: ctypes.addressof(it), _POINTER)
        # Parser
        parser.answer(places["parse"], self._parse, ctypes.c_bool, _POINTER, _WORD, _POINTER)
        parser.answer(places["num_errors"], lambda: 2, _INT)
        parser.answer(places["get_error"], lambda _: problem.address, _POINTER, _INT)
        for name, place in places.items():
            if name in {"error_code", "error_node"}:
                problem.answer(place, lambda: 1, _INT)
            elif name.startswith("error_"):
                text = b"no importer for operator Foo" if name == "error_desc" else b"it"
                memory = ctypes.create_string_buffer(text)
                self._hosted.append(memory)
                problem.answer(place, lambda it=memory: ctypes.addressof(it), _POINTER)
        _POINTER.in_dll(self.nvinfer, "stub_builder").value = builder.address
        _POINTER.in_dll(self.nvinfer, "stub_parser").value = parser.address

    def _shape(self, name: bytes, which: int, dims: Any) -> bool:
        found = dims if _MAJOR < 10 else dims.contents
        self.received.append(("set_shape", name.decode(), which, *found.sizes[: found.count]))
        return True

    def _parse(self, data: int, size: int, path: int) -> bool:
        self.received.append(("parse", ctypes.string_at(data, size).decode(errors="replace")))
        return self.parses

    def _timing(self, timing: _Object) -> Callable[[int, int], int | None]:
        def create(data: int, size: int) -> int | None:
            content = ctypes.string_at(data, size) if size else b""
            self.received.append(("create_timing_cache", content.decode()))
            return timing.address if content in self.takes_timing else None

        return create

    def _take_calibrator(self, calibrator: int) -> None:
        self._calibrator = calibrator

    def _take_monitor(self, monitor: int) -> None:
        self._monitor = monitor

    # --- building -----------------------------------------------------------------------------

    def _build(self, network: int, config: int) -> int | None:
        self.received.append(("build_serialized_network",))
        time.sleep(self.seconds)
        calibrator, monitor, self._calibrator, self._monitor = self._calibrator, self._monitor, 0, 0
        if calibrator:
            self._calibrate(calibrator)
        if monitor and not self._report(monitor):
            self.nvinfer.stub_say(1, b"stub: cancelled by the progress monitor")
            return None
        if self.plan is None:
            self.nvinfer.stub_say(1, self.says.encode())
            return None
        return int(self._host(self.plan))

    def _report(self, it: int) -> bool:
        """Call the progress monitor; return whether to continue."""
        _call(it, 0, None, ctypes.c_char_p(b"tactics"), ctypes.c_char_p(None), _INT(self.steps))
        for step in range(self.steps):
            if not _call(it, 1, ctypes.c_bool, ctypes.c_char_p(b"tactics"), _INT(step)):
                return False
        _call(it, 2, None, ctypes.c_char_p(b"tactics"))
        return True

    def _calibrate(self, it: int) -> None:
        """As TensorRT does: the cache is asked for first, then batches until there are no more."""
        size = _WORD(0)
        cache = _call(it, 2, _POINTER, ctypes.byref(size))
        self.read = ctypes.string_at(cache, size.value) if cache else None
        self.received.append(("algorithm", _call(it, 4, _INT)))
        if self.read is not None:
            return
        batch = int(_call(it, 0, _INT))
        self.received.append(("batch", batch))
        names = (ctypes.c_char_p * 1)(b"crops")
        pointers = (_POINTER * 2)(None, 0xDEAD)
        while len(self.seen) < self.batches and _call(it, 1, ctypes.c_bool, pointers, names, _INT(1)):
            self.seen.append(ctypes.string_at(pointers[0], batch * self.picture_bytes))
        assert pointers[1] == 0xDEAD, "more addresses were written than there are inputs"
        if self.cache:
            memory = ctypes.create_string_buffer(self.cache, len(self.cache))
            _call(it, 3, None, ctypes.byref(memory), _WORD(len(self.cache)))
            ctypes.memset(memory, 0xEE, len(self.cache))  # it is TensorRT's memory, and gone after the call


def _call(pointer: int, method: int, result: Any, *arguments: Any) -> Any:
    """Call a method of a C++ object that the bindings made of one of our classes."""
    table = ctypes.cast(pointer, ctypes.POINTER(_POINTER))[0]
    function = ctypes.cast(table, ctypes.POINTER(_POINTER))[_FIRST + method]
    kinds = [type(one) if isinstance(one, _SIMPLE) else _POINTER for one in arguments]
    given = [one if isinstance(one, _SIMPLE) else ctypes.cast(one, _POINTER) for one in arguments]
    return ctypes.CFUNCTYPE(result, _POINTER, *kinds)(function)(pointer, *given)
