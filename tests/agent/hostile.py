"""Feeds a thousand hostile pictures, sidecars and `enrol` commands to one process; prints its memory.

`python -m tests.agent.hostile FOLDER`: one line of JSON with the growth of the peak of resident memory in
MiB, and counts.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import structlog

from edge_agent.agent.command_handlers import CommandHandlers
from edge_agent.core.commands import EnrolCommand
from edge_agent.core.config import QualitySettings
from edge_agent.core.errors import InputError
from edge_agent.embed.quality import QualityGate
from edge_agent.source.crops import CropFolderOptions, CropFolderSource
from tests.core.test_files import KINDS, make
from tests.core.test_pictures import HOSTILE, PLAIN, PROGRESSIVE, damaged

COUNT = 1000
LONG_AGO = 1_700_000_000.0
SIDECARS = (
    "[" * 30_000,
    '{"frame": ' + "9" * 30_000 + "}",
    '{"box": [NaN, 1, 2, 3]}',
    '{"time": 1e999}',
    r'{"camera": "\ud800"}',
    " " * 70_000,
    "\xff",
    json.dumps({"camera": "x" * 60_000}),
    json.dumps({str(number): [] for number in range(6000)}),
)


def peak_mib(process: int | str = "self") -> float:
    [line] = [
        line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


def pictures() -> list[bytes]:
    """Hostile pictures of at most 100 KB each, and a few large ones that are whole."""
    rng = np.random.default_rng(3)
    made = [one for one in (make() for make in HOSTILE.values()) if len(one) < 100_000]
    kinds = ("cut", "cut, with an end marker", "zeros", "zeros to the end", "noise", "twelve bytes")
    made += [
        damaged(source, kind, rng) for source in (PLAIN, PROGRESSIVE) for kind in kinds for _ in range(5)
    ]
    made += [rng.bytes(3000), b"\xff\xd8" + rng.bytes(3000), b"\x89PNG\r\n\x1a\n" + rng.bytes(3000)]
    made.append(cv2.imencode(".png", np.zeros((4000, 3990), np.uint8))[1].tobytes())  # 48 MB decoded
    return made


def read_folder(folder: Path, found: list[bytes]) -> int:
    crops = folder / "crops"
    crops.mkdir()
    chance = random.Random(1)
    for number in range(COUNT):
        path = crops / f"{number:04d}_c1s1_{number:06d}_01.jpg"
        path.write_bytes(found[number % len(found)])
        os.utime(path, (LONG_AGO, LONG_AGO))
        sidecar = path.with_suffix(".json")
        if number % 10 == 0:
            make(chance.choice(KINDS), sidecar)
        elif number % 3 == 0:
            sidecar.write_text(chance.choice(SIDECARS), encoding="latin-1")
    source = CropFolderSource("yard", crops, folder / "state.sqlite", CropFolderOptions(once=True))
    read = 0
    for batch in source.frames():
        if batch is not None:
            read += len(batch.images)
            source.done(batch)
    return read


def enrol(found: list[bytes]) -> Counter[str]:
    tasks: Any = SimpleNamespace(call=lambda task: task(), put=lambda task: None)
    gallery: Any = SimpleNamespace(
        enrol=lambda *_, **__: SimpleNamespace(number=1),
        get=lambda _: SimpleNamespace(id="p", name="", exemplars=1),
        crops=SimpleNamespace(most=0),
    )
    nothing: Any = None
    handlers = CommandHandlers(
        gallery=gallery, identifier=nothing, embed=lambda _: np.zeros((1, 8), np.float32),
        gate=QualityGate(QualitySettings()), tasks=tasks, erasure=nothing, reload=list, delivery=nothing,
        state=Path(sys.argv[1]),
    )  # fmt: skip
    answers: Counter[str] = Counter()
    for number in range(COUNT):
        text = base64.b64encode(found[number % len(found)]).decode()
        crop = "!" + text if number % 50 == 0 else text + "\u00e9" if number % 51 == 0 else text
        command = EnrolCommand(transaction=str(number), issued=0.0, name="Ada", crop=crop)
        try:
            handlers.enrol(command)
            answers["ok"] += 1
        except InputError:
            answers["refused"] += 1
    return answers


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found = pictures()
    before = peak_mib()
    read, answers = read_folder(Path(sys.argv[1]), found), enrol(found)
    print(json.dumps({"grown_mib": peak_mib() - before, "read": read, **answers}))


if __name__ == "__main__":
    main()
