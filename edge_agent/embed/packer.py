"""Packing: the sharpness of crops of any size, and their resized copies for the network.

Pixels are half of the host's work for an engine that is not on the CPU, and a second thread would gain
nothing: OpenCV releases and takes Python's interpreter lock with every call. So `SubprocessPacker` has its
own process. Crops and pictures are in shared memory without a name in any file system, sizes in pipes.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.embed.quality import sharpness
from edge_agent.engine.graph.prepared import PreprocessProfile

Pixels = NDArray[np.uint8]
Two = tuple[int, int]

PARCEL = 16
"""Crops of one `begin` at most. They are packed while the next ones are copied, stay in the cache of the
other process, and fill the engine's batch together with those of other frames."""
_HEAD = struct.Struct("<IIQ")
"""Of a request: slot, crops, bytes of the slot's memory. Heights and widths follow."""
_DONE = struct.Struct("<II")
"""Of an answer: slot, pictures."""
_END_S = 5.0
"""Longest wait for the end of the process before it is killed."""


def _pack(
    crops: Sequence[Pixels], targets: Pixels, profile: PreprocessProfile, least: float
) -> NDArray[np.float32]:
    sharp = np.array([sharpness(crop) for crop in crops], np.float32)
    sharp_enough = (crop for crop, enough in zip(crops, (sharp >= least).tolist(), strict=True) if enough)
    for crop, target in zip(sharp_enough, targets, strict=False):
        profile.fit(crop, target)
    return sharp


class InlinePacker:
    """Packs on the caller's thread, in order; crops below the `least` sharpness get no picture."""

    room = 0
    """How many calls of `begin` may wait for their `finish` while the next is made."""

    def __init__(self, profile: PreprocessProfile, least: float) -> None:
        self._profile, self._least = profile, least
        self._begun: deque[Sequence[Pixels]] = deque()

    def __enter__(self) -> InlinePacker:
        return self

    def __exit__(self, *_: object) -> None:
        self._begun.clear()

    def begin(self, crops: Sequence[Pixels]) -> None:
        """Queue N crops `(h, w, 3)` uint8, at most `PARCEL`."""
        self._begun.append(crops)

    def ready(self) -> bool:
        """Whether `finish` would not wait."""
        return bool(self._begun)

    def finish(self, targets: Pixels) -> NDArray[np.float32]:
        """Pack the oldest crops: return their sharpness `(N,)` float32, see `quality.sharpness`.

        Writes pictures of the sharp ones to `targets`, `(M, H, W, 3)` uint8, one after another.

        Raises:
            EngineError: the packer has failed; these crops are lost, the next are not.
        """
        return _pack(self._begun.popleft(), targets, self._profile, self._least)


@dataclass(slots=True)
class _SharedMemory:
    """Memory without a name that two processes share, and that grows."""

    handle: int
    map: mmap.mmap | None = None

    def bytes(self, least: int) -> Pixels:
        """Return all of it, at least `least` bytes. Arrays returned before stay valid."""
        if self.map is None or len(self.map) < least:
            if os.fstat(self.handle).st_size < least:
                os.ftruncate(self.handle, 1 << max(least - 1, 1).bit_length())
            self.map = mmap.mmap(self.handle, os.fstat(self.handle).st_size)
        return np.frombuffer(self.map, np.uint8)

    def close(self) -> None:
        os.close(self.handle)
        self.map = None  # the memory is freed with the last array on it


@dataclass(slots=True)
class _Slot:
    """One parcel: crops one after another, and the results."""

    crops: _SharedMemory
    packed: _SharedMemory

    def results(self, size: Two) -> tuple[NDArray[np.float32], Pixels]:
        """Return `(PARCEL,)` float32 sharpness, and `(PARCEL, H, W, 3)` uint8 pictures."""
        begin, end = 4 * PARCEL, 4 * PARCEL + PARCEL * size[0] * size[1] * 3
        memory = self.packed.bytes(end)
        return memory[:begin].view(np.float32), memory[begin:end].reshape(PARCEL, *size, 3)


class SubprocessPacker:
    """Packs in a process of its own, which starts with the first crops, and again after it has died.

    The methods are those of `InlinePacker`. `size` is `(height, width)` of a picture in pixels; two engine
    batches may wait.
    """

    def __init__(self, profile: PreprocessProfile, least: float, size: tuple[int, int], batch: int) -> None:
        self._profile, self._least, self._size = profile, least, size
        self.room = 2 * math.ceil(batch / PARCEL)
        self._slots: list[_Slot] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._answers = -1
        self._begun: deque[tuple[int, int, int]] = deque()  # slot, crops, and generation of the process
        self._next_slot = self._generation = 0

    def __enter__(self) -> SubprocessPacker:
        names = ("edge-agent crops", "edge-agent pictures")
        self._slots = [
            _Slot(*(_SharedMemory(os.memfd_create(name)) for name in names)) for _ in range(self.room + 1)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        while self._slots:
            slot = self._slots.pop()
            slot.crops.close()
            slot.packed.close()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def begin(self, crops: Sequence[Pixels]) -> None:
        """See `InlinePacker.begin`; copies the crops."""
        if len(self._begun) > self.room:
            raise EngineError(f"{len(self._begun)} parcels of crops wait already")
        if self._process is None:
            self._start()
        slot = self._next_slot
        self._next_slot = (slot + 1) % len(self._slots)
        total = sum(crop.size for crop in crops)
        memory, at = self._slots[slot].crops.bytes(total), 0
        for crop in crops:
            np.copyto(memory[at : at + crop.size].reshape(crop.shape), crop)
            at += crop.size
        sizes = np.array([crop.shape[:2] for crop in crops], np.uint32)
        self._begun.append((slot, len(crops), self._generation))
        with contextlib.suppress(BrokenPipeError):  # `finish` reports why
            os.write(self._requests, _HEAD.pack(slot, len(crops), len(memory)) + sizes.tobytes())

    def ready(self) -> bool:
        """Whether an answer, or the end of the process, can be read."""
        if not self._begun or self._process is None:
            return bool(self._begun)
        return bool(self._poll.poll(0))

    def finish(self, targets: Pixels) -> NDArray[np.float32]:
        """See `InlinePacker.finish`."""
        slot, count, generation = self._begun.popleft()
        if self._process is None or generation != self._generation:
            raise EngineError("the process that packed these crops has ended")
        answer = os.read(self._answers, _DONE.size)  # pipes move so few bytes in one piece
        if not answer:
            code = self._end()
            raise EngineError(f"the process that packs crops has ended with {code}; another is started")
        _, pictures = _DONE.unpack(answer)
        sharp, packed = self._slots[slot].results(self._size)
        np.copyto(targets[:pictures], packed[:pictures])
        return np.array(sharp[:count])

    def _start(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        handles = [(slot.crops.handle, slot.packed.handle) for slot in self._slots]
        task = (asdict(self._profile), self._least, self._size, (requests, answers), handles)
        self._process = subprocess.Popen(  # noqa: S603 - this module, by the interpreter that runs it
            [sys.executable, "-m", "edge_agent.embed.packer", json.dumps(task)],
            pass_fds=[requests, answers, *(handle for pair in handles for handle in pair)],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._generation += 1
        os.close(requests)
        os.close(answers)

    def _end(self) -> int | None:
        """End the process and drop its unfinished crops; return its exit code."""
        if self._process is None:
            return None
        os.close(self._requests)
        os.close(self._answers)
        process, self._process = self._process, None
        try:
            return process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


Packer = InlinePacker | SubprocessPacker


def _serve(profile: PreprocessProfile, least: float, size: Two, pipes: Two, memory: Sequence[Two]) -> None:
    # Ctrl-C and a service manager's signal go to the whole group: the last frames are packed all the same,
    # and the process ends with the pipe.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(1)
    slots = [_Slot(*map(_SharedMemory, handles)) for handles in memory]
    with os.fdopen(pipes[0], "rb") as requests:
        while head := requests.read(_HEAD.size):
            slot, count, length = _HEAD.unpack(head)
            sizes = np.frombuffer(requests.read(8 * count), np.uint32).reshape(count, 2)
            pixels, at, crops = slots[slot].crops.bytes(length), 0, []
            for height, width in sizes.tolist():
                crops.append(pixels[at : at + height * width * 3].reshape(height, width, 3))
                at += height * width * 3
            sharp, pictures = slots[slot].results(size)
            found = _pack(crops, pictures, profile, least)
            sharp[: len(found)] = found
            with contextlib.suppress(BrokenPipeError):
                os.write(pipes[1], _DONE.pack(slot, int(np.count_nonzero(found >= least))))


if __name__ == "__main__":
    profile, *arguments = json.loads(sys.argv[1])  # `asdict`, with lists for tuples
    _serve(PreprocessProfile(**profile), *arguments)
