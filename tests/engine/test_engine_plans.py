"""The store of plans: only whole ones that this device built come back, whatever happened in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.host import this_host
from edge_agent.engine.plans.active import Active, ActiveEngine
from edge_agent.engine.plans.records import Machine, Order, Recipe, memory_class_gib
from edge_agent.engine.plans.store import PlanStore
from tests.conftest import REPO

HOST = "0123456789abcdef"
ORIN = Machine("10.3.0", "12.6", "Orin", "8.7", 16, 64)
FP16 = Recipe("a" * 64, "fp16", (1, 16, 64), None, (), None, False, ("FP16",), None, 1)
INT8 = replace(FP16, precision="int8", scales="b" * 64, flags=("FP16", "INT8"))
FACTS = {"model": "reid", "seconds": 12.5, "power_mode": "MAXN"}


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    return PlanStore(tmp_path / "engines", host=HOST)


def put(store: PlanStore, recipe: Recipe = FP16, data: bytes = b"plan", machine: Machine = ORIN) -> Order:
    order = Order(recipe, machine)
    store.put(order, data, FACTS)
    return order


def engine(store: PlanStore) -> ActiveEngine:
    return ActiveEngine(store.folder)


def reasons(store: PlanStore) -> list[str]:
    paths = sorted((store.folder / "quarantine").glob("*-reason.json"))
    return [json.loads(path.read_text())["why"] for path in paths]


def record(name: str, *files: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "precision": "fp16", "backend": "tensorrt", "files": list(files), **more}


def used_before(store: PlanStore, order: Order, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(store.folder / f"{order.key}.json", (moment, moment))


# --- the key ----------------------------------------------------------------------------------


def test_everything_that_a_plan_is_made_from_is_in_its_key() -> None:
    changes: list[Order] = [Order(FP16, ORIN)]
    for name, value in {
        "graph_sha256": "c" * 64, "precision": "fp32", "profiles": (1, 16), "scales": "d", "keep": ("pool",),
        "dla_core": 0, "gpu_fallback": True, "flags": (), "workspace_mb": 512, "builder": 2,
    }.items():  # fmt: skip
        changes.append(Order(replace(FP16, **{name: value}), ORIN))
    for name, value in {
        "tensorrt": "10.3.1", "driver": "12.7", "gpu": "Thor", "compute_capability": "11.0",
        "multiprocessors": 8, "memory_gib": 32,
    }.items():  # fmt: skip
        changes.append(Order(FP16, replace(ORIN, **{name: value})))
    assert len({order.key for order in changes}) == len(changes) == 17


def test_the_key_is_the_same_on_every_day() -> None:
    """A change of the key's form rebuilds every plan in the field: it must not happen by accident."""
    assert Order(FP16, ORIN).key == Order(replace(FP16), replace(ORIN)).key
    assert Order(FP16, ORIN).key == "bf696e81f2fdbb56af4a9b5cff6bb1b10510acf3deb2fc62f1968db7bb6a15d1"


def test_memory_classes() -> None:
    gib = 1 << 30
    found = [memory_class_gib(int(size * gib)) for size in (0.5, 3.8, 7.4, 14.9, 29.9, 30.6, 32, 61.4, 79.1)]
    assert found == [1, 4, 8, 16, 32, 32, 32, 64, 96]


def test_a_device_is_known_by_its_serial_number_else_its_machine_id(tmp_path: Path) -> None:
    assert this_host(tmp_path) is None
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("abc\n")
    by_id = this_host(tmp_path)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/serial-number").write_bytes(b"1421023040000\0")
    by_serial = this_host(tmp_path)
    assert by_id is not None
    assert by_serial is not None
    assert by_id != by_serial
    assert "1421023040000" not in by_serial


# --- keeping and finding ----------------------------------------------------------------------


def test_a_plan_comes_back_as_it_was_written(store: PlanStore) -> None:
    assert store.find(Order(FP16, ORIN)) is None
    assert not store.folder.exists(), "looking makes no folder"
    order = put(store, data=b"\0plan" * 1000)
    found = store.find(order)
    assert found is not None
    assert (found.data, found.key, found.facts) == (b"\0plan" * 1000, order.key, FACTS)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert (store.folder / f"{order.key}.plan").stat().st_mode & 0o077 == 0
    assert store.find(Order(INT8, ORIN)) is None
    manifest = json.loads((store.folder / f"{order.key}.json").read_text())
    assert manifest["kind"] == "plan"
    assert manifest["data"]["machine"]["gpu"] == "Orin"


def test_a_newer_plan_replaces_an_older(store: PlanStore) -> None:
    put(store, data=b"old")
    order = put(store, data=b"new")
    found = store.find(order)
    assert found is not None
    assert found.data == b"new"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda plan, manifest: plan.write_bytes(b"plaN"), "sha256 differs"),
        (lambda plan, manifest: plan.write_bytes(b"pla"), "sha256 differs"),
        (lambda plan, manifest: plan.unlink(), "missing"),
        (lambda plan, manifest: manifest.write_text("{"), "not JSON"),
        (lambda plan, manifest: manifest.write_text('{"kind": "gallery"}'), "describes 'gallery'"),
        (lambda plan, manifest: change(manifest, ("version",), 99), "layout version 99"),
        (lambda plan, manifest: change(manifest, ("data", "key"), "0" * 64), "another plan"),
        (lambda plan, manifest: change(manifest, ("data", "facts"), 3), "not an object"),
        (lambda plan, manifest: change(manifest, ("data", "host"), "f" * 16), "another device"),
        (lambda plan, manifest: change(manifest, ("data", "host"), None), "another device"),
        (
            lambda plan, manifest: change(manifest, ("data", "machine", "gpu"), "A30"),
            "GPU A30 instead of Orin",
        ),
    ],
)
def test_damaged_and_foreign_plans_are_refused(store: PlanStore, damage: Any, why: str) -> None:
    order = put(store)
    plan, manifest = (store.folder / f"{order.key}.{ending}" for ending in ("plan", "json"))
    damage(plan, manifest)
    assert store.find(order) is None
    assert len(reasons(store)) == 1
    assert why in reasons(store)[0]
    assert not plan.exists(), "refused once, not at every start"
    assert not manifest.exists()
    assert store.find(order) is None
    assert len(reasons(store)) == 1
    put(store)
    assert store.find(order) is not None


def change(path: Path, keys: tuple[str, ...], value: Any) -> None:
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document))


def test_plans_that_came_with_a_copied_folder_are_not_loaded(store: PlanStore) -> None:
    order = put(store)
    elsewhere = PlanStore(store.folder, host="f" * 16)
    assert elsewhere.find(order) is None
    assert "another device" in reasons(store)[0]


def test_the_quarantine_stays_small(store: PlanStore) -> None:
    for number in range(7):
        order = put(store, data=bytes([number]) * 100)
        store.quarantine(order.key, f"refused {number}")
    assert reasons(store) == [f"refused {number}" for number in range(3, 7)]
    assert len(list((store.folder / "quarantine").glob("*.plan"))) == 4


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"):
        put(PlanStore(occupied / "engines", host=HOST))


# --- interruptions ----------------------------------------------------------------------------

KILLED = """
import os, signal
from pathlib import Path
from edge_agent.engine.plans.records import Machine, Order, Recipe
from edge_agent.engine.plans.store import PlanStore

calls, rename = [0], Path.replace

def replace(self, target):
    calls[0] += 1
    for when in ("before", "after"):
        if {when!r} == f"{{when}} rename {{calls[0]}}":
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "before":
            rename(self, target)

Path.replace = replace
PlanStore(Path({folder!r}), host={host!r}).put({order!r}, b"new" * 1000, {{}})
"""


@pytest.mark.parametrize("before", [b"old"])
@pytest.mark.parametrize("when", ["before rename 1", "after rename 1", "before rename 2", "after rename 2"])
def test_a_write_that_is_killed_leaves_a_whole_plan_or_none(
    store: PlanStore, when: str, before: bytes | None
) -> None:
    order = Order(FP16, ORIN)
    if before is not None:
        put(store, data=before)
    code = KILLED.format(folder=str(store.folder), host=HOST, order=order, when=when)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    found = store.find(order)
    assert (found.data if found else None) == (b"new" * 1000 if when == "after rename 2" else None)
    assert not reasons(store), "an interruption is no damage"
    put(store, data=b"again")  # the lock died with its owner
    found = store.find(order)
    assert found is not None
    assert found.data == b"again"
    store.prune()
    assert not list(store.folder.glob(".*.tmp"))


def test_writers_and_readers_side_by_side_see_whole_plans(store: PlanStore) -> None:
    order = Order(FP16, ORIN)
    payloads = [bytes([number]) * 20_000 for number in range(4)]

    def write(data: bytes) -> None:
        own = PlanStore(store.folder, host=HOST)
        for _ in range(10):
            own.put(order, data, FACTS)

    def read(_: int) -> int:
        own, seen = PlanStore(store.folder, host=HOST), 0
        for _ in range(30):
            if (found := own.find(order)) is not None:
                assert found.data in payloads
                seen += 1
        return seen

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, data) for data in payloads]
        readers = [pool.submit(read, number) for number in range(4)]
        for job in [*writers, *readers]:
            job.result(60)
    assert store.find(order) is not None
    assert not reasons(store)


def test_one_build_at_a_time(store: PlanStore) -> None:
    reported: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with store.building():

            def second() -> None:
                with PlanStore(store.folder, host=HOST).building(lambda: reported.append("waits")):
                    reported.append("builds")

            job = pool.submit(second)
            while not reported:
                time.sleep(0.005)
            time.sleep(0.05)
            assert reported == ["waits"]
        job.result(10)
    assert reported == ["waits", "builds"]


# --- timing caches ----------------------------------------------------------------------------


def test_timing_caches_are_kept_by_version_and_gpu(store: PlanStore) -> None:
    assert store.read_timing(ORIN) == b""
    store.write_timing(ORIN, b"timings")
    assert store.read_timing(ORIN) == b"timings"
    assert store.read_timing(replace(ORIN, driver="12.9")) == b"timings"
    assert store.read_timing(replace(ORIN, tensorrt="10.4.0")) == b""
    assert store.read_timing(replace(ORIN, gpu="Thor")) == b""


# --- the active engine ------------------------------------------------------------------------


def test_switch_and_roll_back(store: PlanStore) -> None:
    assert engine(store).read() == Active(None, None)
    with pytest.raises(InputError, match="no engine from before"):
        engine(store).rollback()
    first, second = put(store), put(store, INT8)
    one = record("reid fp16", f"{first.key}.plan", f"{first.key}.json", gate={"passed": True})
    two = record("reid int8", f"{second.key}.plan", f"{second.key}.json")
    assert engine(store).switch(one) == Active(one, None)
    with pytest.raises(InputError, match="no engine from before"):
        engine(store).rollback()
    assert engine(store).switch(two) == Active(two, one)
    assert engine(store).switch(two) == Active(two, one), "the same engine again is no switch"
    assert engine(store).rollback() == engine(store).read() == Active(one, two)
    assert engine(store).rollback() == Active(two, one), "a second rollback undoes the first"


def test_an_engine_without_its_files_does_not_become_active(store: PlanStore) -> None:
    first, second = put(store), put(store, INT8)
    one, two = record("one", f"{first.key}.plan"), record("two", f"{second.key}.plan")
    engine(store).switch(one)
    with pytest.raises(InputError, match=r"needs .*nothing\.plan"):
        engine(store).switch(record("three", "nothing.plan"))
    engine(store).switch(two)
    store.quarantine(first.key, "refused")
    with pytest.raises(InputError, match=r"edge-agent calibrate"):
        engine(store).rollback()
    assert engine(store).read() == Active(two, one)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "x", "precision": "fp16", "backend": "tensorrt"},
        record("x", "../gallery.db"),
        record("x", "/etc/passwd"),
        {**record("x"), "files": "abc"},
        record("x", graphs="abc"),
    ],
)
def test_records_that_are_refused(store: PlanStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not a record of an engine"):
        engine(store).switch(wrong)


def test_a_damaged_active_file_stops_pruning_and_is_mended_by_a_switch(store: PlanStore) -> None:
    order = put(store)
    (store.folder / "active.json").write_text('{"kind": "active-engine", "version": 1, "current": 3}')
    for use in (engine(store).read, store.entries, store.prune, engine(store).rollback):
        with pytest.raises(InputError, match="edge-agent calibrate"):
            use()
    assert store.find(order) is not None
    one = record("one", f"{order.key}.plan")
    assert engine(store).switch(one) == Active(one, None)
    assert "damaged" in reasons(store)[0]


# --- looking after them -----------------------------------------------------------------------


def test_pruning_keeps_files_of_the_active_and_the_previous_engine(store: PlanStore) -> None:
    recipes = [replace(FP16, profiles=(number,)) for number in range(1, 6)]
    orders = [put(store, recipe) for recipe in recipes]
    (store.folder / "model.onnx").write_bytes(b"onnx")
    engine(store).switch(record("previous", f"{orders[0].key}.plan"))
    engine(store).switch(record("current", f"{orders[1].key}.plan", "model.onnx"))
    store.quarantine(orders[2].key, "refused")
    store.write_timing(ORIN, b"timings")
    used_before(store, orders[3], 10 * 86_400)

    gone = store.prune(unused_s=5 * 86_400)
    assert gone.plans == (orders[3].key,)
    assert gone.others == 3
    assert gone.bytes > 8
    assert store.find(orders[4]) is not None, "used a moment ago"

    assert store.prune().plans == (orders[4].key,)
    assert [store.find(order) is not None for order in orders] == [True, True, False, False, False]
    assert (store.folder / "model.onnx").exists()
    assert store.read_timing(ORIN) == b"timings"
    assert not reasons(store)


def test_pruning_keeps_plans_of_the_graphs_that_run(store: PlanStore) -> None:
    """Plans are built when an engine opens, after it became the active one, and again after an update."""
    engine(store).switch(record("previous", graphs=["1" * 64]))
    engine(store).switch(record("current", graphs=["2" * 64, "3" * 64]))
    kept = [put(store, replace(FP16, graph_sha256=digit * 64)) for digit in "123"]
    kept.append(put(store, replace(FP16, graph_sha256="2" * 64), machine=replace(ORIN, tensorrt="10.7.0")))
    other = put(store, replace(FP16, graph_sha256="4" * 64))
    assert store.prune().plans == (other.key,)
    roles = {entry.key: entry.role for entry in store.entries()}
    assert [roles[order.key] for order in kept] == ["previous", "current", "current", "current"]


def test_pruning_takes_orphans(store: PlanStore, tmp_path: Path) -> None:
    assert PlanStore(tmp_path / "nothing").prune().plans == ()
    order = put(store)
    (store.folder / f"{order.key}.json").unlink()
    (store.folder / f".{order.key}.plan.1234.tmp").write_bytes(b"half")
    gone = store.prune()
    assert gone.plans == (order.key,)
    assert gone.others == 1
    assert gone.bytes == 8


def test_entries_show_what_may_be_loaded(store: PlanStore) -> None:
    assert store.entries() == []
    good, old = put(store), put(store, machine=replace(ORIN, tensorrt="8.6.1"))
    other, bad, half = (put(store, replace(FP16, profiles=(number,))) for number in (1, 2, 3))
    change(store.folder / f"{other.key}.json", ("data", "host"), "f" * 16)
    (store.folder / f"{bad.key}.plan").write_bytes(b"plaN")
    (store.folder / f"{half.key}.json").unlink()
    engine(store).switch(record("x", f"{good.key}.plan"))
    used_before(store, good, -5)

    found = store.entries(ORIN, digests=True)
    assert found[0].key == good.key, "the last used first"
    by_key = {entry.key: entry for entry in found}
    verdicts = {order.key: by_key[order.key].verdict for order in (good, old, other, bad, half)}
    assert list(verdicts.values()) == ["ok", "stale", "foreign", "damaged", "damaged"]
    assert by_key[good.key].role == "current"
    assert by_key[good.key].model == "reid"
    assert by_key[good.key].bytes == 4
    assert by_key[good.key].profiles == (1, 16, 64)
    assert by_key[old.key].problem == "it was built for TensorRT 8.6.1 instead of 10.3.0"
    assert "interrupted" in by_key[half.key].problem

    unread = {entry.key: entry.verdict for entry in store.entries()}
    assert [unread[order.key] for order in (good, old, other, bad, half)] == [
        "unchecked", "unchecked", "foreign", "unchecked", "damaged",
    ]  # fmt: skip
