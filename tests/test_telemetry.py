"""Telemetry: counters, sensors over fake drivers and folders, the sampler, recordings, and `qeil top`."""

from __future__ import annotations

import itertools
import json
import math
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qeil_compile.cli import main
from qeil_compile.cli import top as top_module
from qeil_compile.errors import InputError, OutputError
from qeil_compile.telemetry import (
    UNITS,
    Channel,
    Missing,
    Recorded,
    Recorder,
    Sampler,
    SensorLost,
    Snapshot,
    find_sensors,
)
from qeil_compile.telemetry.counters import Counter, CounterSensor, counter_for, hwmon, joules, perf, rapl
from qeil_compile.telemetry.host import HostSensor
from qeil_compile.telemetry.hwmon import hwmon_sensors
from qeil_compile.telemetry.nvml import nvml_sensors
from qeil_compile.telemetry.snapshot import Rate, channel

Capture = pytest.CaptureFixture[str]
LOAD, POWER = channel("cpu", "load", "test"), channel("gpu0", "power", "test")
ENERGY, HEAT = channel("gpu0", "energy", "test"), channel("gpu0", "temperature", "test")


def write(folder: Path, **files: object) -> Path:
    """A folder of one-line files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scripted:
    """A sensor that reads `values` one after the other; an exception is raised."""

    values: Sequence[Any]
    channels: Sequence[Channel] = (POWER,)
    name: str = "scripted"
    reads: int = 0

    def read(self) -> Sequence[float]:
        value = self.values[min(self.reads, len(self.values) - 1)]
        self.reads += 1
        if isinstance(value, Exception):
            raise value
        return value


def sampled(sensor: Any, times: Sequence[float], **more: Any) -> tuple[Sampler, list[Snapshot]]:
    """A sampler after one snapshot at each time."""
    clock = Clock()
    sampler = Sampler([sensor], clock=clock, **({"cpu": lambda: 0.0} | more))
    snapshots = []
    for clock.now in times:
        snapshots.append(sampler.sample())
    return sampler, snapshots


# Snapshots


def test_a_snapshot_gives_the_first_value_that_is_there() -> None:
    second = channel("gpu0", "power", "another")
    snapshot = Snapshot(1.0, {POWER: math.nan, second: 7.0, LOAD: math.nan})
    assert snapshot.of("gpu0", "power") == 7.0
    assert snapshot.of("cpu", "load") is None and snapshot.of("gpu1", "power") is None
    assert channel("x", "clock", "").unit == UNITS["clock"] == "Hz"


def test_a_rate_needs_two_readings_and_spans_the_steps_of_a_counter() -> None:
    rate = Rate(span=1.0)
    assert math.isnan(rate.of(0.0, 5.0)) and math.isnan(rate.of(0.0, 5.0))
    assert rate.of(0.5, 5.0) == 0.0
    # A counter that ticks once a second by 10: never 0 or 20 once a second has passed.
    found = [rate.of(t / 4, 5.0 + 10.0 * (t // 4)) for t in range(4, 40)]
    assert all(v == pytest.approx(10.0, rel=0.21) for v in found)


# Energy counters


def test_rapl_counts_packages_in_joules_and_wraps(tmp_path: Path) -> None:
    packages = [tmp_path / f"intel-rapl:{k}" for k in (0, 1)]
    for folder, name in ((packages[0], "package-0"), (packages[1], "package-1"), (tmp_path / "intel-rapl:0:0", "core")):
        write(folder, name=name, energy_uj=2_500_000, max_energy_range_uj=10_000_000)
    counter, reason = rapl(tmp_path)
    assert counter is not None and not reason
    assert counter.read() == pytest.approx(5.0)

    def call() -> None:
        write(packages[0], energy_uj=500_000)

    # One package went from 2.5 J over 10 J to 0.5 J, the other one stood still.
    assert joules(counter, call, 1e-4)["joules"] == pytest.approx(8.0)
    write(packages[1], energy_uj=0)
    assert counter.read() == pytest.approx(10.5 + 10.0)
    assert rapl(tmp_path, "dram") == (None, f"no RAPL domain dram below {tmp_path}")
    assert rapl(tmp_path / "nothing") == (None, f"no folder {tmp_path / 'nothing'}")
    (packages[0] / "energy_uj").unlink()
    counter, reason = rapl(tmp_path)
    assert counter is None and "No such file" in reason and "root" in reason


def test_hwmon_takes_the_socket_and_perf_needs_its_files(tmp_path: Path) -> None:
    chip = write(tmp_path / "hwmon0", name="amd_energy", energy1_input=1_000_000, energy2_input=7_000_000)
    counter, _ = hwmon(tmp_path)
    assert counter is not None
    assert counter.read() == pytest.approx(7.0)
    assert "amd_energy" in counter.name
    assert hwmon(chip) == (None, f"no chip with an energy counter below {chip}")
    assert perf(tmp_path) == (None, f"no event energy-pkg below {tmp_path}")
    write(chip, energy2_input="nonsense")
    assert hwmon(tmp_path)[0] is None


def test_a_counter_counts_up() -> None:
    ticks = iter([1.0, 4.0])
    spent = joules(Counter("test", lambda: next(ticks)), lambda: None, 1e-4)
    assert spent["joules"] == pytest.approx(3.0)
    assert spent["calls"] >= 1


def test_a_counter_as_a_sensor_gives_power_as_a_derivative() -> None:
    clock = Clock()
    sensor = CounterSensor(Counter("joules", lambda: 100.0 + 30.0 * clock.now), "cpu", clock)
    assert [c.quantity for c in sensor.channels] == ["energy", "power"]
    assert "derivative" in sensor.channels[1].source
    energy, power = sensor.read()
    assert energy == 100.0 and math.isnan(power)
    clock.now = 0.5
    assert sensor.read() == (pytest.approx(115.0), pytest.approx(30.0))


def test_no_counter_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert counter_for("torch", "cuda:0") is None
    assert counter_for("openvino", "NPU") is None


# NVML


class FakeError(Exception):
    """pynvml's base of errors."""


def errors(*names: str) -> dict[str, Any]:
    """Sub-classes by the names that pynvml gives them."""
    return {f"NVMLError_{n}": type(f"NVMLError_{n}", (FakeError,), {}) for n in names}


@dataclass
class FakeNvml:
    """Two boards; `broken` maps the name of a call to the error that it raises."""

    broken: dict[str, Exception] = field(default_factory=dict)
    boards: int = 2
    load: int = 40

    def __post_init__(self) -> None:
        self.NVMLError = FakeError
        self.NVML_TEMPERATURE_GPU = self.NVML_CLOCK_SM = self.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 0
        self.__dict__ |= errors("GpuIsLost", "Unknown", "NotSupported", "LibraryNotFound", "Timeout")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Any] = {
            "nvmlInit": None, "nvmlDeviceGetCount": self.boards, "nvmlDeviceGetHandleByIndex": object(),
            "nvmlDeviceGetPowerUsage": 123_000, "nvmlDeviceGetTotalEnergyConsumption": 5_000,
            "nvmlDeviceGetTemperature": 61, "nvmlDeviceGetClockInfo": 1500,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2e9, total=8e9),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=self.load), "nvmlDeviceGetEnforcedPowerLimit": 300_000,
            "nvmlDeviceGetTemperatureThreshold": 95,
        }  # fmt: skip
        if name not in answers:
            raise AttributeError(name)

        def call(*given: Any) -> Any:
            if name in self.broken:
                raise self.broken[name]
            return answers[name]

        return call


def test_nvml_reads_each_board_in_si_units() -> None:
    sensors, missing = nvml_sensors(FakeNvml())
    assert [s.name for s in sensors] == ["NVML GPU 0", "NVML GPU 1"] and not missing
    values = {c.quantity: v for c, v in zip(sensors[1].channels, sensors[1].read(), strict=True)}
    assert values == pytest.approx({
        "power": 123.0, "energy": 5.0, "temperature": 61.0, "clock": 1.5e9, "memory": 2e9, "load": 0.4, "limit": 300.0,
        "capacity": 8e9, "slowdown": 95.0,
    })  # fmt: skip
    assert {c.device for c in sensors[1].channels} == {"gpu1"}
    assert all(UNITS[c.quantity] == c.unit for c in sensors[1].channels)


def test_nvml_reads_a_board_that_idles_when_it_is_found() -> None:
    (sensor,), _ = nvml_sensors(FakeNvml(boards=1, load=0))
    assert dict(zip((c.quantity for c in sensor.channels), sensor.read(), strict=True))["load"] == 0.0


def test_nvml_names_what_a_board_does_not_tell() -> None:
    nvml = FakeNvml(boards=1)
    nvml.broken["nvmlDeviceGetTotalEnergyConsumption"] = nvml.NVMLError_NotSupported("Not Supported")  # type: ignore[attr-defined]
    (sensor,), missing = nvml_sensors(nvml)
    assert missing == [Missing("NVML GPU 0 energy", "Not Supported")]
    assert "energy" not in {c.quantity for c in sensor.channels}


def test_nvml_says_why_there_is_no_board() -> None:
    nvml = FakeNvml()
    nvml.broken["nvmlInit"] = nvml.NVMLError_LibraryNotFound("no library")  # type: ignore[attr-defined]
    assert nvml_sensors(nvml)[1] == [Missing("NVML", "NVML library not found (no NVIDIA driver on this machine)")]
    assert nvml_sensors(FakeNvml(boards=0))[1] == [Missing("NVML", "the driver reports no device")]
    nvml = FakeNvml()
    nvml.broken["nvmlDeviceGetHandleByIndex"] = nvml.NVMLError_Unknown("odd")  # type: ignore[attr-defined]
    assert nvml_sensors(nvml) == ([], [Missing("NVML GPU 0", "odd"), Missing("NVML GPU 1", "odd")])


@pytest.mark.parametrize("name", ["GpuIsLost", "Unknown"])
def test_a_board_that_falls_off_the_bus_is_lost(name: str) -> None:
    nvml = FakeNvml(boards=1)
    (sensor,), _ = nvml_sensors(nvml)
    nvml.broken["nvmlDeviceGetTemperature"] = getattr(nvml, f"NVMLError_{name}")("gone")
    with pytest.raises(SensorLost, match="gone"):
        sensor.read()
    # What passes is no loss.
    nvml.broken["nvmlDeviceGetTemperature"] = nvml.NVMLError_Timeout("later")  # type: ignore[attr-defined]
    values = dict(zip((c.quantity for c in sensor.channels), sensor.read(), strict=True))
    assert math.isnan(values["temperature"]) and values["power"] == pytest.approx(123.0)


# hwmon and psutil


def test_hwmon_takes_the_package_of_each_socket(tmp_path: Path) -> None:
    for k, package in enumerate((51_000, 63_000)):
        write(tmp_path / f"hwmon{k}", name="coretemp", temp1_label=f"Package id {k}", temp1_input=package,
              temp1_crit=100_000, temp2_label="Core 0", temp2_input=99_000)  # fmt: skip
    for k in (2, 3):
        write(tmp_path / f"hwmon{k}", name="amdgpu", temp1_label="edge", temp1_input=40_000 + k,
              power1_average=25_000_000)  # fmt: skip
    write(tmp_path / "hwmon4", name="acpitz", temp1_input="broken", temp2_input=30_000, temp3_input=35_000)
    write(tmp_path / "hwmon5", name="nothing")
    sensors, missing = hwmon_sensors(tmp_path)
    assert not missing
    found = {(c.device, c.quantity): v for s in sensors for c, v in zip(s.channels, s.read(), strict=True)}
    assert found == pytest.approx({
        ("cpu", "temperature"): 63.0, ("cpu", "slowdown"): 100.0, ("amdgpu", "temperature"): 40.002,
        ("amdgpu", "power"): 25.0, ("amdgpu hwmon3", "temperature"): 40.003, ("amdgpu hwmon3", "power"): 25.0,
        ("acpitz", "temperature"): 35.0,
    })  # fmt: skip
    assert hwmon_sensors(tmp_path / "hwmon5")[1][0].reason.startswith("no chip")
    assert hwmon_sensors(tmp_path / "no")[1] == [Missing("hwmon", f"no folder {tmp_path / 'no'}")]


def test_hwmon_gives_nan_for_a_bad_file_and_is_lost_with_its_folder(tmp_path: Path) -> None:
    chip = write(tmp_path / "hwmon0", name="k10temp", temp1_label="Tctl", temp1_input=50_000)
    (sensor,), _ = hwmon_sensors(tmp_path)
    write(chip, temp1_input="")
    assert math.isnan(sensor.read()[0])
    for file in chip.iterdir():
        file.unlink()
    chip.rmdir()
    with pytest.raises(SensorLost, match="has gone"):
        sensor.read()


class FakePsutil:
    """Four cores, half of whose time is idle, on a system that may tell no temperature."""

    def __init__(self, clock: Clock, **more: Any) -> None:
        self.clock, self.asked = clock, 0
        self.__dict__ |= more

    def cpu_count(self) -> int:
        return 4

    def cpu_times(self) -> Any:
        return SimpleNamespace(idle=2.0 * self.clock.now, iowait=0.0)

    def virtual_memory(self) -> Any:
        self.asked += 1
        return SimpleNamespace(total=16e9, available=12e9)

    def cpu_freq(self) -> Any:
        return SimpleNamespace(current=3_000.0)

    def Process(self) -> Any:
        return SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=5e8))


def test_psutil_reads_the_host() -> None:
    clock = Clock()
    heat = {"coretemp": [SimpleNamespace(current=44.0), SimpleNamespace(current=47.0)],
            "nvme": [SimpleNamespace(current=80.0)]}  # fmt: skip
    module = FakePsutil(clock, sensors_temperatures=lambda: heat)
    sensor = HostSensor(True, module, clock)
    assert math.isnan(sensor.read()[0])
    clock.now = 0.5
    found = {(c.device, c.quantity): v for c, v in zip(sensor.channels, sensor.read(), strict=True)}
    assert found == pytest.approx({
        ("cpu", "load"): 0.5, ("memory", "memory"): 4e9, ("memory", "capacity"): 16e9, ("process", "memory"): 5e8,
        ("cpu", "clock"): 3e9, ("cpu", "temperature"): 47.0,
    })  # fmt: skip
    before = module.asked
    clock.now = 0.9
    sensor.read()
    assert module.asked == before
    clock.now = 1.1
    sensor.read()
    assert module.asked > before


def test_psutil_names_what_the_system_does_not_tell() -> None:
    sensor = HostSensor(True, FakePsutil(Clock()), Clock())
    assert [m.name for m in sensor.missing] == ["psutil cpu temperature"]
    assert "temperature" not in {c.quantity for c in sensor.channels}


def test_find_sensors_finds_all_and_reasons_for_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "cap" / "intel-rapl:0", name="package-0", energy_uj=1, max_energy_range_uj=100)
    write(tmp_path / "chips" / "hwmon0", name="coretemp", temp1_label="Package id 0", temp1_input=41_000)
    sensors, missing = find_sensors(
        nvml=FakeNvml(boards=1), powercap=tmp_path / "cap", events=tmp_path, chips=tmp_path / "chips",
        host=FakePsutil(Clock(), sensors_temperatures=lambda: {"coretemp": [SimpleNamespace(current=1.0)]}),
    )  # fmt: skip
    channels = [(c.device, c.quantity) for s in sensors for c in s.channels]
    assert len(set(channels)) == len(channels)  # psutil's temperature is not read a second time
    assert {("gpu0", "power"), ("cpu", "energy"), ("cpu", "temperature"), ("process", "memory")} <= set(channels)
    assert [m.as_text() for m in missing] == [f"RAPL of the memory: no RAPL domain dram below {tmp_path / 'cap'}"]
    nowhere = tmp_path / "no"
    broken = FakeNvml()
    broken.broken["nvmlInit"] = FakeError("driver not loaded")
    _, missing = find_sensors(
        nvml=broken, powercap=nowhere, events=nowhere, chips=nowhere, host=FakePsutil(Clock())
    )
    assert [m.name for m in missing] == ["NVML", "RAPL (powercap)", "RAPL (perf)", "hwmon energy", "RAPL of the memory",
                                         "hwmon", "psutil cpu temperature"]  # fmt: skip
    assert all(m.reason for m in missing) and missing[0].reason == "driver not loaded"


def test_this_machine_has_sensors() -> None:
    sensors, _ = find_sensors()
    assert all(len(s.read()) == len(s.channels) for s in sensors)
    names = [s.name for s in sensors]
    assert len(set(names)) == len(names)


# The sampler


def test_history_and_what_is_kept() -> None:
    sampler, _ = sampled(Scripted([[1.0], [math.nan], [3.0], [4.0]]), [0.0, 1.0, 2.0, 3.0], keep_seconds=2.5)
    times, values = sampler.history("gpu0", "power")
    assert times.tolist() == [2.0, 3.0] and values.tolist() == [3.0, 4.0]
    latest = sampler.latest()
    assert latest is not None and latest.time == 3.0
    assert [len(a) for a in sampler.history("cpu", "power")] == [0, 0]


def test_joules_by_the_counter_or_the_integral_of_power() -> None:
    counted = Scripted([[10.0, 1e9], [14.0, 1e9], [22.0, 1e9]], (ENERGY, POWER))
    sampler, _ = sampled(counted, [0.0, 1.0, 2.0])
    assert sampler.joules("gpu0", 0.5) == pytest.approx(10.0)
    sampler, _ = sampled(Scripted([[10.0], [20.0], [20.0]]), [0.0, 1.0, 3.0])
    assert sampler.joules("gpu0", 0.0) == pytest.approx(15.0 + 40.0)
    assert sampler.joules("gpu0", 2.0) == pytest.approx(20.0)
    assert sampler.joules("gpu0", -1.0) is None and sampler.joules("cpu", 0.0) is None


def test_a_lost_sensor_is_named_and_asked_again() -> None:
    sensor = Scripted([[1.0], SensorLost("fell off the bus"), [3.0]])
    sampler, seen = sampled(sensor, [0.0, 1.0, 2.0])
    assert [s.of("gpu0", "power") for s in seen] == [1.0, None, None]
    assert sensor.reads == 2
    lost = sampler.lost["scripted"]
    assert (lost.reason, lost.time) == ("fell off the bus", 1.0)
    clock = Clock(6.0)
    sampler._clock = clock
    assert sampler.sample().of("gpu0", "power") == 3.0
    assert not sampler.lost


@pytest.mark.parametrize("bad", [TypeError("a bug"), [1.0, 2.0]])
def test_no_sensor_ends_the_sampler(bad: Any) -> None:
    good = Scripted([[5.0]], (LOAD,), "good")
    sampler = Sampler([Scripted([bad]), good], clock=Clock())
    assert sampler.sample().of("cpu", "load") == 5.0
    assert "Error" in sampler.lost["scripted"].reason


def test_a_listener_that_raises_is_dropped() -> None:
    sampler = Sampler([Scripted([[1.0]])], clock=Clock())
    calls: list[Snapshot] = []

    def bad(snapshot: Snapshot) -> None:
        calls.append(snapshot)
        raise OSError("disk full")

    sampler.listen("recording", bad)
    sampler.listen("other", calls.append)
    sampler.sample()
    sampler.sample()
    assert len(calls) == 3
    assert sampler.lost["recording"].reason == "disk full"


def test_the_rate_is_halved_while_it_costs_too_much() -> None:
    clock = Clock()
    spent = {"share": 0.04}
    sampler = Sampler([Scripted([[1.0]])], hertz=20.0, clock=clock, cpu=lambda: spent["share"] * clock.now)
    for k in range(100):
        clock.now = k * 0.05
        sampler.sample()
    # 5 s at 4 %: looked at after 2 s and after 4 s.
    assert sampler.hertz == 5.0
    assert [(s.hertz, s.share) for s in sampler.slowed] == [(10.0, pytest.approx(0.04)), (5.0, pytest.approx(0.04))]
    assert sampler.cost == pytest.approx(0.04)
    cheap, _ = sampled(Scripted([[1.0]]), np.arange(0, 10, 0.05).tolist(), cpu=lambda: 0.009 * clock.now)
    assert cheap.hertz == 20.0 and not cheap.slowed


def test_the_thread_samples_and_stops() -> None:
    sampler = Sampler([Scripted([[1.0]])], hertz=200.0)
    enough = threading.Event()
    seen: list[Snapshot] = []
    sampler.listen("count", lambda s: (seen.append(s), enough.set() if len(seen) == 5 else None))
    with sampler:
        assert enough.wait(20.0)
        names = {t.name for t in threading.enumerate() if t.daemon}
        assert "qeil telemetry" in names
    assert "qeil telemetry" not in {t.name for t in threading.enumerate()}
    assert all(a.time < b.time for a, b in itertools.pairwise(seen))
    assert sampler.cost >= 0


# Recordings


def recording(path: Path, rows: Sequence[tuple[float, Sequence[float]]]) -> Path:
    """Write a recording of power and temperature."""
    with Recorder(path, (POWER, HEAT)) as recorder:
        for t, values in rows:
            recorder(Snapshot(t, dict(zip((POWER, HEAT), values, strict=True))))
    return path


def test_a_recording_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [(10.0, (200.0, 60.5)), (10.5, (math.nan, 61.0)), (11.0, (210.123456, math.inf))]
    recorded = Recorded(recording(tmp_path / "r.jsonl", rows), realtime=False)
    assert recorded.channels == (POWER, HEAT)
    seen = list(recorded.snapshots())
    assert [s.time for s in seen] == [10.0, 10.5, 11.0]
    assert [s.of("gpu0", "power") for s in seen] == [200.0, None, 210.123456]
    assert [s.of("gpu0", "temperature") for s in seen] == [60.5, 61.0, None]


def test_a_recording_replays_with_its_own_clock(tmp_path: Path) -> None:
    recorded = Recorded(recording(tmp_path / "r.jsonl", [(5.0, (1.0, 2.0)), (3605.0, (3.0, 4.0))]), realtime=False)
    sampler = Sampler([recorded], keep_seconds=math.inf, clock=recorded.clock)
    while not recorded.over:
        sampler.sample()
    times, values = sampler.history("gpu0", "temperature")
    assert times.tolist() == [5.0, 3605.0] and values.tolist() == [2.0, 4.0]
    assert math.isnan(sampler.sample().values[POWER])
    assert "is over after 3600 s" in sampler.lost["recording r.jsonl"].reason


def test_a_recording_replays_in_real_time(tmp_path: Path) -> None:
    clock = Clock(100.0)
    rows = [(5.0, (1.0, 0.0)), (6.0, (2.0, 0.0)), (8.0, (3.0, 0.0))]
    recorded = Recorded(recording(tmp_path / "r.jsonl", rows), clock=clock)
    seen = []
    for clock.now in (100.0, 100.9, 101.0, 102.9, 103.0, 104.4):
        seen.append(recorded.read()[0])
        assert not recorded.over
    assert seen == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    clock.now = 104.6  # rows are 1.5 s apart on average
    assert recorded.over
    with pytest.raises(SensorLost):
        recorded.read()


HEAD = json.dumps({"format": "qeil telemetry", "version": 1,
                   "channels": [{"device": "cpu", "quantity": "load", "unit": "1", "source": ""}]})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("line 1", "expected", "qeil telemetry")),
        ("not json\n", ("line 1", "'not json'")),
        (HEAD.replace('"version": 1', '"version": 2') + "\n[0, 1]\n", ("line 1", '"version": 1')),
        (HEAD.replace('"1"', '"W"') + "\n[0, 1]\n", ("line 1", "quantities and units")),
        (HEAD.replace('"source"', '"sauce"') + "\n[0, 1]\n", ("line 1", "sauce")),
        ('{"format": "qeil telemetry", "version": 1}\n[0]\n', ("line 1", "a list of channels")),
        (HEAD + "\n", ("line 2", "no snapshot")),
        (HEAD + "\n[0, 1]\n[1, 2, 3]\n", ("line 3", "[1, 2, 3]", "a time and 1 numbers")),
        (HEAD + "\n[0, 1]\n[null, 2]\n", ("line 3",)),
        (HEAD + '\n[0, "1"]\n', ("line 2",)),
        (HEAD + "\n[0, NaN]\n", ("line 2",)),
        (HEAD + "\n[1, 1]\n[0.5, 1]\n", ("line 3", "a time from 1 s")),
        (HEAD + "\n[0, 1]\n[1, 0.", ("line 3", "[1, 0.")),
    ],
)
def test_a_malformed_recording_names_file_and_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        Recorded(path)
    for word in (str(path), *words):
        assert word in str(error.value)


def test_recordings_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Recorded(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        Recorded(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        Recorder(tmp_path / "no" / "r.jsonl", (POWER,))


# qeil top


def test_top_shows_what_is_there_and_what_is_missing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Scripted([[250.0, 71.0]], (POWER, HEAT))
    monkeypatch.setattr(top_module, "find_sensors", lambda: ([sensor], [Missing("RAPL (perf)", "not permitted")]))
    path = tmp_path / "r.jsonl"
    assert main(["top", "--seconds", "0.3", "--record", str(path)]) == 0
    seen = capsys.readouterr().out
    for word in ("(measured)", "RAPL (perf)", "not permitted", "gpu0: power [W] 250, temperature [C] 71",
                 "sampling at 20 Hz", "of a core", f"wrote {path}"):  # fmt: skip
        assert word in seen, word
    assert main(["top", "--seconds", "0.1", "--record", str(path)]) == 1
    assert "exists already" in capsys.readouterr().err
    # What was recorded is replayed.
    assert main(["top", "--replay", str(path), "--seconds", "0.15"]) == 0
    seen = capsys.readouterr().out
    assert "(recorded)" in seen and "gpu0: power [W] 250, temperature [C] 71" in seen and "RAPL" not in seen


def test_top_ends_with_its_recording_and_sums_up_as_json(tmp_path: Path, capsys: Capture) -> None:
    rows = [(0.0, (1.0, math.nan)), (0.2, (3.0, math.nan)), (0.4, (3.0, math.nan))]
    path = recording(tmp_path / "r.jsonl", rows)
    assert main(["top", "--replay", str(path), "--hertz", "50", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["label"] == "recorded" and data["missing"] == []
    power, heat = data["channels"]
    assert (power["least"], power["most"], power["last"], power["unit"]) == (1.0, 3.0, 3.0, "W")
    assert 1.0 < power["mean"] < 3.0 and "last" not in heat
    assert data["sampler"]["hertz"] == 50.0
    assert data["lost"][0]["reason"].startswith("the recording is over")


def test_top_refuses_a_bad_recording(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("[]\n")
    assert main(["top", "--replay", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "line 1" in error and error.count("\n") == 1


def test_top_ends_at_an_interrupt(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_module, "find_sensors", lambda: ([Scripted([[1.0]])], []))

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(top_module.time, "sleep", interrupted)
    assert main(["top"]) == 0
    assert "sampling at 20 Hz" in capsys.readouterr().out
