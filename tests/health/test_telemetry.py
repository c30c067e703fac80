"""Telemetry against trees of several devices, this machine, and a jtop that fails in all its ways."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent.core.config import TelemetrySettings
from edge_agent.core.telemetry import TelemetryData
from edge_agent.health.telemetry import Reading, Telemetry
from edge_agent.health.telemetry.jtop import JtopReader, reading_of
from edge_agent.health.telemetry.reading import merged, total_power_w, zone_name
from edge_agent.health.telemetry.sysfs import (
    SysfsReader,
    nvme_command,
    nvme_controller,
    nvme_used_percent,
)

TREES = Path(__file__).parents[1] / "fixtures" / "sysfs"
ORIN_ZONES = {"cpu", "gpu", "cv0", "cv1", "cv2", "soc0", "soc1", "soc2", "tj"}
AGX_RAILS = {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}


def plant(name: str, root: Path) -> Path:
    """Lay out a recorded tree under `root`."""
    for line in (TREES / f"{name}.txt").read_text().splitlines():
        path, _, text = line.partition(" ")
        write(root / path, text.encode().decode("unicode_escape"))
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", ["agx-orin-jetpack5", "agx-orin-jetpack6", "agx-orin-jetpack7"])
def test_agx_orin_gives_the_same_on_every_jetpack(name: str, tmp_path: Path) -> None:
    reading = SysfsReader(plant(name, tmp_path)).read()

    assert set(reading.temperatures_c) == ORIN_ZONES
    assert all(reading.temperatures_c[unit] is None for unit in ("cv0", "cv1", "cv2"))  # asleep: no number
    assert set(reading.power_w) == AGX_RAILS  # neither NC nor the sum of shunt voltages
    assert reading.power_w["VDD_GPU_SOC"] == pytest.approx(19.640 * 0.312, abs=1e-3)
    assert reading.power_total_w == pytest.approx(19.640 * (0.312 + 0.160) + 4.928 * 0.872, abs=2e-3)
    assert reading.memory_total_bytes == 64323948 * 1024
    assert reading.memory_used_bytes == (64323948 - 57301960) * 1024
    assert reading.swap_used_bytes == (32161968 - 32100000) * 1024
    assert reading.process_memory_bytes == 412345 * 1024


def test_jetpack5_values(tmp_path: Path) -> None:
    reading = SysfsReader(plant("agx-orin-jetpack5", tmp_path)).read()

    assert reading.temperatures_c["cpu"] == 48.562
    assert (reading.hottest_zone, reading.hottest_c) == ("cpu", 48.562)
    assert reading.throttled is False
    assert reading.throttle_reasons == ()
    assert reading.gpu_percent == 36.7
    assert (reading.gpu_mhz, reading.gpu_max_mhz) == (612.0, 1300.5)
    assert (reading.cpu_mhz, reading.cpu_max_mhz) == (1190.4, 2201.6)
    assert reading.fan_percent == pytest.approx(25.88, abs=0.01)
    assert reading.fan_rpm == 1410
    assert reading.power_mode == "MAXN"
    assert reading.clocks_locked is False
    assert (reading.board, reading.l4t) == ("NVIDIA Orin Jetson-Small Developer Kit", "35.4.1")


def test_a_hot_board_is_throttled_and_reports_the_cause(tmp_path: Path) -> None:
    root = plant("agx-orin-jetpack6", tmp_path)
    reader = SysfsReader(root)

    assert reader.read().throttled is True
    assert reader.read().throttle_reasons == ("devfreq-17000000.gpu", "gpu-throttle-alert")
    assert reader.read().hottest_c == 99.062
    assert reader.read().power_mode == "MODE_50W"
    assert reader.read().l4t == "36.4.3"

    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        if (device / "type").read_text().strip() != "hot-surface-alert":  # which only warns
            (device / "cur_state").write_text("0\n")
    assert reader.read().throttled is False


def test_overcurrent_counts_as_throttling_until_the_next_reading(tmp_path: Path) -> None:
    root = plant("agx-orin-jetpack7", tmp_path)
    reader = SysfsReader(root)
    counter = next(path for path in root.glob("sys/class/hwmon/hwmon*/oc3_event_cnt"))

    assert reader.read().throttled is False
    counter.write_text("12\n")
    assert reader.read().throttle_reasons == ("over-current",)
    assert reader.read().throttled is False


def test_jetson_clocks_and_numberless_modes(tmp_path: Path) -> None:
    root = plant("agx-orin-jetpack7", tmp_path)
    assert SysfsReader(root).read().clocks_locked is True
    (root / "var/lib/nvpmodel/status").write_text("pmode:0009\n")
    assert SysfsReader(root).read().power_mode == "mode 9"
    (root / "var/lib/nvpmodel/status").unlink()
    assert SysfsReader(root).read().power_mode is None


def test_orin_nano_has_a_rail_for_the_whole_module(tmp_path: Path) -> None:
    reading = SysfsReader(plant("orin-nano-jetpack6", tmp_path)).read()
    assert reading.power_total_w == reading.power_w["VDD_IN"] == pytest.approx(4.928 * 1.040, abs=1e-3)
    assert reading.gpu_percent == 4.8  # found by the folder's name, without an of_node


def test_pc(tmp_path: Path) -> None:
    root = plant("pc", tmp_path)
    reader = SysfsReader(root)
    reading = reader.read()

    assert reading.temperatures_c == {
        "acpitz": 27.8,
        "acpitz2": 29.8,
        "x86_pkg_temp": 51.0,
        "iwlwifi_1": None,
        "nvme": 38.85,
    }
    assert reading.throttled is False  # TCC Offset is a setting, not an action
    assert reading.power_w == {}
    assert reading.power_total_w is None
    assert reading.fan_percent is None  # a case fan is not the device's
    assert reading.gpu_percent is None
    assert reading.clocks_locked is None
    assert reading.power_mode is None
    assert reading.board is None
    assert reading.l4t is None

    (root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count").write_text("18\n")
    assert reader.read().throttle_reasons == ("cpu-package",)


def test_nothing_is_known_of_an_empty_root(tmp_path: Path) -> None:
    assert SysfsReader(tmp_path).read() == Reading()


def test_files_that_vanish_or_are_damaged_give_none(tmp_path: Path) -> None:
    root = plant("agx-orin-jetpack6", tmp_path)
    reader = SysfsReader(root)
    shutil.rmtree(root / "sys")
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.write_bytes(b"\xff\xfe?")
    reading = reader.read()
    assert set(reading.temperatures_c.values()) == {None}
    assert set(reading.power_w.values()) == {None}
    assert reading.power_total_w is None
    assert reading.memory_total_bytes is None
    assert reading.cpu_percent is None


def test_cpu_load_is_of_the_time_between_two_readings(tmp_path: Path) -> None:
    root = plant("agx-orin-jetpack6", tmp_path)
    reader = SysfsReader(root)
    assert reader.read().cpu_percent is None  # there is no interval yet
    # 75 jiffies more of user time, 20 of idle, 5 of waiting; guest time is part of user time
    (root / "proc/stat").write_text("cpu  120075 2000 30000 900020 8005 0 2000 0 70 0\n")
    assert reader.read().cpu_percent == 75.0
    assert reader.read().cpu_percent is None


def test_emmc_wear_of_the_disk_that_holds_the_state(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    disk = tmp_path / "sys/devices/mmc0/mmcblk0"
    write(disk / "device/life_time", "0x02 0x05\n")
    write(disk / "mmcblk0p1/partition", "1\n")
    link = tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(disk / "mmcblk0p1")

    reading = SysfsReader(tmp_path, tmp_path).read()
    assert reading.disk_wear_percent == 50.0
    assert reading.disk_total_bytes is not None
    assert reading.disk_free_bytes is not None
    assert 0 < reading.disk_free_bytes <= reading.disk_total_bytes

    (disk / "device/life_time").write_text("0x00 0x00\n")  # not defined
    assert SysfsReader(tmp_path, tmp_path).read().disk_wear_percent is None
    assert SysfsReader(tmp_path, tmp_path / "gone").read().disk_free_bytes is None


@pytest.mark.parametrize(
    "name", ["agx-orin-jetpack5", "agx-orin-jetpack6", "agx-orin-jetpack7", "orin-nano-jetpack6"]
)
def test_each_zone_has_the_limit_at_which_the_kernel_throttles(name: str, tmp_path: Path) -> None:
    reading = SysfsReader(plant(name, tmp_path)).read()
    assert set(reading.limits_c) == ORIN_ZONES
    # `tj` has only trip points for the fan, and where a finger would be burnt is no limit.
    assert reading.limits_c == dict.fromkeys(ORIN_ZONES - {"tj"}, 99.0) | {"tj": None}


def test_invalid_trip_points(tmp_path: Path) -> None:
    limits = SysfsReader(plant("pc", tmp_path)).read().limits_c
    assert limits == {"acpitz": 109.0, "acpitz2": None, "x86_pkg_temp": None, "iwlwifi_1": None, "nvme": None}
    zone = tmp_path / "sys/class/thermal/thermal_zone1"
    write(zone / "trip_point_0_type", "hot\n")
    write(zone / "trip_point_0_temp", "85000\n")
    write(zone / "trip_point_1_type", "critical\n")
    write(zone / "trip_point_1_temp", "rubbish\n")
    assert SysfsReader(tmp_path).read().limits_c["acpitz2"] == 85.0
    write(zone / "trip_point_10_type", "passive\n")
    write(zone / "trip_point_10_temp", "80000\n")
    assert SysfsReader(tmp_path).read().limits_c["acpitz2"] == 80.0


def test_heat_is_read_with_the_other_sensors(tmp_path: Path) -> None:
    root = plant("agx-orin-jetpack6", tmp_path)
    with Telemetry(TelemetrySettings(jtop=False), root=root) as telemetry:
        temperatures, limits = telemetry.heat()
        assert (temperatures["gpu"], limits["gpu"], temperatures["cv0"]) == (99.062, 99.0, None)
        write(root / "sys/class/thermal/thermal_zone1/temp", "50000\n")
        assert telemetry.heat()[0]["gpu"] == 50.0


def test_other_engines(tmp_path: Path) -> None:
    root = plant("agx-orin-jetpack6", tmp_path)
    reader = SysfsReader(root)
    first = reader.read()
    assert first.engines_mhz == {"vic": 115.2, "nvdec": 793.6, "nvjpg": 115.2, "nvjpg2": 115.2}
    assert first.engines_percent == dict.fromkeys(["vic", "nvdec", "nvdla0", "nvdla1"])  # no interval yet
    time.sleep(0.05)
    units = root / "sys/bus/platform/devices"
    write(units / "15480000.nvdec/power/runtime_active_time", f"{120_000 + 10_000}\n")
    write(units / "15880000.nvdla0/power/runtime_active_time", "\n")
    second = reader.read()
    assert second.engines_percent == {"vic": 0.0, "nvdec": 100.0, "nvdla0": None, "nvdla1": 0.0}


def test_wear_of_an_nvme_disk(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    disk = tmp_path / "sys/devices/pci/nvme0/nvme0n1"
    write(disk / "nvme0n1p1/partition", "1\n")
    link = tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(disk / "nvme0n1p1")
    assert nvme_controller(link.resolve()) == "nvme0"
    assert SysfsReader(tmp_path, tmp_path).read().disk_wear_percent is None  # there is no such device
    write(tmp_path / "dev/nvme0", "a file")
    assert SysfsReader(tmp_path, tmp_path).read().disk_wear_percent is None  # it is none
    assert nvme_controller(tmp_path / "sys/devices/pci/ata1/block/sda") is None


def test_a_smart_log() -> None:
    """Percentage Used is byte 5 of the SMART log, in the NVMe specification."""
    log = bytearray(512)
    assert nvme_used_percent(bytes(log)) is None  # nothing was filled in
    log[0:7] = bytes([0, 0x35, 0x01, 100, 10, 7, 0])  # warnings, 309 K, spare, its threshold, used
    assert nvme_used_percent(bytes(log)) == 7.0
    assert nvme_used_percent(bytes(log[:64])) is None
    assert len(nvme_command(0)) == 72


def test_this_machine_answers_without_an_error(tmp_path: Path) -> None:
    with Telemetry(TelemetrySettings(), tmp_path) as telemetry:
        reading = telemetry.read()
    assert reading.memory_total_bytes
    assert reading.process_memory_bytes
    assert reading.disk_free_bytes
    with pytest.raises(RuntimeError, match="with"):
        telemetry.read()


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("CPU-therm", "cpu"),
        ("cpu-thermal", "cpu"),
        ("SOC0-therm\n", "soc0"),
        ("tj-thermal", "tj"),
        ("acpitz", "acpitz"),
    ],
)
def test_zone_names(raw: str, name: str) -> None:
    assert zone_name(raw) == name


def test_total_power_is_none_unless_it_is_known_how_rails_add_up() -> None:
    assert total_power_w({}) is None
    assert total_power_w({"VDD_GPU_SOC": 1.0, "VDD_CPU_CV": 2.0}) is None
    assert total_power_w({"VDD_GPU_SOC": 1.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": None}) is None
    assert (
        total_power_w({"VDD_GPU_SOC": 1.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": 3.0, "VDDQ_VDD2_1V8AO": 9.0})
        == 6.0
    )


def jtop_dump(**changes: Any) -> SimpleNamespace:
    """Values of jtop on an Orin Nano, by its documentation (MHz there are kHz, watts mW)."""
    content: dict[str, Any] = {
        "temperature": {
            "cpu": {"temp": 46.062, "online": True},
            "cv0": {"temp": -256, "online": False},
            "gpu": {"temp": -256, "online": True},
            "tj": {"temp": 47.0, "online": True},
            "nvme Composite": {"temp": 38.85, "online": True, "max": 81.85},
        },
        "power": {
            "rail": {
                "VDD_CPU_GPU_CV": {"volt": 4928, "curr": 216, "power": 1064, "avg": 806, "online": True}
            },
            "tot": {"power": 5133, "avg": 4800, "name": "VDD_IN"},
        },
        "gpu": {
            "gpu": {"type": "integrated", "status": {"load": 4.8}, "freq": {"cur": 306000, "max": 1020000}}
        },
        "memory": {"RAM": {"tot": 7802000, "used": 2801000}, "SWAP": {"tot": 3900000, "used": 0}},
        "fan": {"pwmfan": {"speed": [26.27], "rpm": [1145]}},
        "engine": {
            "APE": {"APE": {"online": False, "cur": 200000}},
            "NVDEC": {"NVDEC": {"online": True, "cur": 793600}},
        },
        "nvpmodel": "15W",
        "jetson_clocks": False,
    }
    return SimpleNamespace(**(content | changes))


def test_jtop_in_our_words() -> None:
    reading = reading_of(jtop_dump())
    assert reading.temperatures_c == {
        "cpu": 46.062,
        "cv0": None,
        "gpu": None,
        "tj": 47.0,
        "nvme composite": 38.85,
    }
    assert reading.power_w == {"VDD_CPU_GPU_CV": 1.064}
    assert reading.power_total_w == 5.133
    assert (reading.gpu_percent, reading.gpu_mhz, reading.gpu_max_mhz) == (4.8, 306.0, 1020.0)
    assert (reading.fan_percent, reading.fan_rpm) == (26.27, 1145)
    assert reading.engines_mhz == {"APE": None, "NVDEC": 793.6}
    assert reading.memory_used_bytes == 2801000 * 1024
    assert (reading.power_mode, reading.clocks_locked) == ("15W", False)


def test_jtop_sum_of_all_rails_is_not_taken_for_the_total() -> None:
    rails = {name: {"power": 1000} for name in AGX_RAILS}
    reading = reading_of(jtop_dump(power={"rail": rails, "tot": {"power": 4000, "avg": 4000}}))
    assert reading.power_total_w == 3.0


@pytest.mark.parametrize(
    "client",
    [
        SimpleNamespace(),
        jtop_dump(power={}, gpu={}, fan={}, memory=None, engine=[], nvpmodel=None, jetson_clocks=None),
        jtop_dump(temperature={"cpu": 3}, power={"rail": None, "tot": None}, gpu={"gpu": {"status": None}}),
    ],
)
def test_jtop_with_unknown_fields_gives_nulls_and_no_error(client: SimpleNamespace) -> None:
    reading = reading_of(client)
    assert reading.gpu_percent is None
    assert reading.power_total_w is None


def test_sysfs_comes_first_and_jtop_fills() -> None:
    sysfs = Reading(temperatures_c={"cpu": 40.0, "cv0": None}, power_w={"VDD_IN": None}, throttled=False)
    jtop = Reading(
        temperatures_c={"CPU": 41.0, "cv0": 33.0, "tj": 42.0},
        power_w={"VDD_IN": 5.0},
        power_mode="15W",
        throttled=True,
    )
    reading = merged(sysfs, jtop)
    assert reading.temperatures_c == {"cpu": 40.0, "cv0": 33.0, "tj": 42.0}
    assert reading.power_total_w == 5.0
    assert reading.power_mode == "15W"
    assert reading.throttled is False


class FlakyJtop:
    """Connects, gives data, loses the connection, refuses: as in the script."""

    def __init__(self, script: list[list[str]]) -> None:
        self.script = script
        self.clients = 0
        self.closed = 0

    @contextmanager
    def __call__(self, _interval: float) -> Iterator[Any]:
        if not self.script:
            raise RuntimeError("The jtop.service is not active. Please run:\nsudo jtop --install-service")
        steps = self.script.pop(0)
        self.clients += 1

        def ok() -> bool:
            if not steps:
                raise RuntimeError("Lost connection with jtop server")
            return steps.pop(0) == "ok"

        client = jtop_dump()
        client.ok = ok
        try:
            yield client
        finally:
            self.closed += 1


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_jtop_gets_a_new_client_after_each_error() -> None:
    flaky = FlakyJtop([["ok"], ["ok", "silent"], ["ok", "ok"]])
    with JtopReader(0.2, connect=flaky, first_wait_s=0.01) as reader:
        wait_for(lambda: flaky.clients == 3 and flaky.closed == 3)
        assert reader.read().power_mode == "15W"
        wait_for(lambda: reader.read() == Reading())  # values older than three intervals are dropped
    assert not any(thread.name == "jtop" for thread in threading.enumerate())


def test_without_jtop_the_thread_ends_at_once() -> None:
    def absent(_interval: float) -> Any:
        raise ImportError("No module named 'jtop'")

    with JtopReader(connect=absent) as reader:
        wait_for(lambda: not any(thread.name == "jtop" for thread in threading.enumerate()))
        assert reader.read() == Reading()


def test_a_jtop_that_hangs_does_not_hold_up_reading_or_the_end() -> None:
    release = threading.Event()

    @contextmanager
    def stuck(_interval: float) -> Iterator[Any]:
        release.wait(30)
        yield jtop_dump()

    began = time.monotonic()
    with JtopReader(connect=stuck) as reader:
        assert reader.read() == Reading()
    assert time.monotonic() - began < 20  # it waits for a second, not for jtop
    release.set()


def test_telemetry_data_has_every_value_that_is_known() -> None:
    reading = Reading(temperatures_c={"tj": 51.5, "cv0": None}, power_mode="MAXN", throttle_reasons=("heat",))
    data = reading.telemetry(uptime_s=1.0, state="online", crops_per_s=3.0)
    assert data.temperatures_c == {"tj": 51.5}
    assert (data.hottest_c, data.hottest_zone, data.power_mode) == (51.5, "tj", "MAXN")
    assert (data.throttle_reasons, data.throttled, data.crops_per_s) == (("heat",), None, 3.0)
    own = {field.name for field in fields(Reading)} - {"board", "l4t"}
    assert own <= {field.name for field in fields(TelemetryData)}
