"""Device profiles: every shipped number has a source and is plausible; every damaged profile is refused."""

from __future__ import annotations

import copy
import json
import sys
import types
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeil_compile.devices import (
    Coefficient,
    Placement,
    boundary_seconds,
    constants_of,
    engine_constants,
    engines,
    host_target,
    known_targets,
    load_target,
    parse_target,
    system_report,
)
from qeil_compile.devices import cpuinfo as cpuinfo_module
from qeil_compile.devices.cpuinfo import CpuFacts, cpu_facts, parse_cpuinfo
from qeil_compile.devices.estimate import cpu_rates
from qeil_compile.devices.nvml import nvidia_devices
from qeil_compile.devices.roofline import launch_seconds
from qeil_compile.errors import TargetError
from qeil_compile.ir import DTYPE_BYTES

SEED = "intel-285hx-rtx-pro-5000"
DEVICES = [pytest.param(d, id=f"{n}-{d.name}") for n in known_targets() for d in load_target(n).devices]


@dataclass(frozen=True)
class Seen:
    spec: str
    kind: str
    description: str = ""
    available: bool = True
    reason: str = ""


CPU_SEEN = [Seen("openvino:CPU", "cpu", "AMD EPYC"), Seen("torch:cpu", "cpu"), Seen("onnxruntime:CPU", "cpu")]


def coefficients(data: Any) -> list[dict[str, Any]]:
    if isinstance(data, dict):
        return [data] if "source" in data else [c for v in data.values() for c in coefficients(v)]
    return [c for v in data for c in coefficients(v)] if isinstance(data, list) else []


# -- shipped profiles


def test_the_targets_are_shipped_under_their_own_names() -> None:
    assert {"h200-server", SEED, "jetson-agx-orin", "lunar-lake-258v", "rtx-4090-workstation"} <= set(known_targets())
    for name in known_targets():
        assert load_target(name).name == name
        assert not load_target(name).host


@pytest.mark.parametrize("name", known_targets())
def test_every_number_has_a_source_and_an_assumed_one_a_range(name: str) -> None:
    found = coefficients(load_target(name).to_json())
    assert len(found) > 25
    for c in found:
        assert c["source"].strip()
        if c.get("assumed"):
            assert c["low"] <= c["value"] <= c["high"], c


@pytest.mark.parametrize("device", DEVICES)
def test_modelled_full_load_power_stays_near_the_tdp(device: Any) -> None:
    limit = 1.2 * device.tdp.value
    for dtype, peak in device.peak_flops.items():
        watts = device.power_const.value + peak.value * device.energy_per_flop[dtype].value
        assert 0.5 * device.tdp.value <= watts <= limit, (dtype, watts)
    assert device.power_const.value + device.memory_bandwidth.value * device.energy_per_byte.value <= limit
    assert device.power_idle.value <= device.power_const.value <= device.tdp.value


def test_energy_per_flop_orders_the_devices_as_physics_does() -> None:
    seed, lunar = load_target(SEED), load_target("lunar-lake-258v")
    for target in (seed, lunar):
        cpu, npu = target.device_of("cpu"), target.device_of("npu")
        assert cpu.energy("float32").value > 10 * npu.energy("float16").value
    hbm = load_target("h200-server").device_of("gpu").energy_per_byte.value
    assert hbm < seed.device_of("gpu").energy_per_byte.value


@pytest.mark.parametrize("name", known_targets())
def test_json_form_reads_back_as_the_same_target(name: str) -> None:
    target = load_target(name)
    assert parse_target(json.loads(json.dumps(target.to_json())), "again") == target


@pytest.mark.parametrize("device", DEVICES)
def test_every_dtype_of_the_graph_has_a_rate_and_an_energy(device: Any) -> None:
    for dtype in DTYPE_BYTES:
        assert device.flops(dtype).value > 0, dtype
        assert device.energy(dtype).value > 0, dtype


def test_fallbacks_say_what_the_dtype_runs_as() -> None:
    target = load_target(SEED)
    cpu, npu, gpu = target.device_of("cpu"), target.device_of("npu"), target.device_of("gpu")
    assert cpu.runs_as("bfloat16") == "fp32"
    assert cpu.flops("bfloat16").source.startswith("bfloat16 runs as fp32: ")
    assert npu.flops("float32").value == npu.peak_flops["fp16"].value
    assert "float32 runs as fp16" in npu.energy("float32").source
    assert gpu.flops("bfloat16") == gpu.peak_flops["bf16"]
    assert gpu.flops("fp8") == gpu.flops("float8_e4m3fn")
    only_int8 = replace(npu, peak_flops={"int8": npu.peak_flops["int8"]})
    with pytest.raises(TargetError, match="npu: no rate for float32: found int8"):
        only_int8.flops("float32")


def test_text_form_shows_sources_on_demand() -> None:
    target = load_target("lunar-lake-258v")
    assert "intel ARK 258V" in target.as_text(sources=True)
    assert "intel ARK 258V" not in target.as_text()
    assert "assumed" in target.as_text()
    link = load_target(SEED).as_text(sources=True)
    assert "cpu - gpu" in link and "PCIe 5.0 x8" in link
    assert Coefficient(2.0, "W", "x").as_text() == "2 W"
    assert Coefficient(0.5, "1", "x", 0.4, 0.6, True).as_text(True) == "0.5 (0.4 to 0.6, assumed) [x]"


# -- placements and links


def test_placements_split_engine_and_device_at_the_first_colon() -> None:
    target = load_target(SEED)
    last = target.placements[-1]
    assert (last.engine, last.device, last.spec) == ("torch", "cuda:0", "torch:cuda:0")
    assert target.device_of("torch:cuda:0") is last.profile is target.device_of("gpu")
    with pytest.raises(TargetError, match=r"found no device 'openvino:TPU', expected one of openvino:CPU"):
        target.device_of("openvino:TPU")


def test_links_are_free_inside_a_pool_and_shared_by_it() -> None:
    target = load_target(SEED)
    free = target.link("cpu", "openvino:NPU")
    assert free.seconds(1e9) == 0 and free.joules(1e9) == 0
    assert target.link("cpu", "cpu").seconds(1e9) == 0
    road = target.link("cpu", "gpu")
    assert road.seconds(31.5e9) == pytest.approx(1 + 1e-5)
    assert road.joules(1e9) == pytest.approx(0.3)
    assert target.link("gpu", "cpu") == road
    by_pool = target.link("openvino:NPU", "torch:cuda:0")
    assert (by_pool.a, by_pool.b, by_pool.bandwidth) == ("npu", "gpu", road.bandwidth)
    with pytest.raises(TargetError, match=r"no link between npu \(memory ddr5\) and gpu \(memory gddr7\)"):
        replace(target, links=()).link("npu", "gpu")


def test_boundaries_between_engines() -> None:
    assert set(engine_constants()) == {"torch", "onnxruntime", "openvino"}
    assert boundary_seconds("openvino", "openvino").value == pytest.approx(3e-6)
    mixed = boundary_seconds("openvino", "onnxruntime")
    assert mixed.value == pytest.approx(38e-6 + 12e-6)
    assert mixed.assumed and mixed.low is not None and mixed.low <= mixed.value
    assert boundary_seconds("onnxruntime", "openvino").value == mixed.value
    with pytest.raises(TargetError, match=r"engine 'openvin': unknown.*did you mean openvino"):
        boundary_seconds("openvin", "torch")


def test_an_engine_of_another_package_has_assumed_overheads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "known_engines", lambda: (*engine_constants(), "theirs"))
    found = constants_of("theirs")
    assert found.name == "theirs" and found.kernel_seconds.assumed and found.stage_seconds.value > 0
    assert boundary_seconds("theirs", "theirs").value == found.boundary_inside.value
    mixed = boundary_seconds("theirs", "onnxruntime")
    assert mixed.value == pytest.approx(found.boundary_outside.value + 12e-6)
    own = Placement("theirs", "CPU", load_target("lunar-lake-258v").devices[0])
    assert launch_seconds(own) > own.profile.launch_seconds.value


# -- damaged profiles

VALID = load_target(SEED).to_json()
OPTIONAL = {"low", "high", "assumed", "host", "link", "thermal", "units", "cache_bytes", "may_spill", "process"}


def paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [p for k, v in items for p in [(*at, k), *paths(v, (*at, k))]]


PATHS = paths(VALID)


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


TABLES = [p for p in [(), *PATHS] if isinstance(at(VALID, p), dict)]


def damaged(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(VALID)
    at(data, path[:-1])[path[-1]] = value
    return data


def last_name(path: tuple[Any, ...]) -> str:
    return next(str(k) for k in reversed(path) if isinstance(k, str))


def refused(data: Any) -> str:
    with pytest.raises(TargetError) as caught:
        parse_target(data, "file.toml")
    text = str(caught.value)
    assert text.startswith("file.toml: ") and "found" in text and "expected" in text
    assert "\n" not in text
    return text


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([p for p in PATHS if isinstance(p[-1], str) and p[-1] not in OPTIONAL]))
def test_a_missing_field_is_named(path: tuple[Any, ...]) -> None:
    data = copy.deepcopy(VALID)
    del at(data, path[:-1])[path[-1]]
    if path[-2:-1] in (("peak_flops",), ("energy_per_flop",)):
        assert "energy_per_flop" in refused(data)
    else:
        text = refused(data)
        assert path[-1] in text and "found nothing" in text


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(TABLES), st.text("abcdefgh_", min_size=3, max_size=9))
def test_an_unknown_field_is_named(path: tuple[Any, ...], extra: str) -> None:
    if extra in at(VALID, path):
        return
    text = refused(damaged((*path, extra), 1))
    assert extra in text and "unknown key" in text


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PATHS), st.data())
def test_a_wrong_type_is_named(path: tuple[Any, ...], data: st.DataObject) -> None:
    junk = {
        bool: ["yes", 1, []],
        str: [17, True, [], {}, "  "],
        float: ["1", True, [], -1.0, float("nan"), float("inf"), 10**400],
        list: ["openvino:CPU", 3, {}],
        dict: ["text", 3, True],
    }
    bad = data.draw(st.sampled_from(junk[type(at(VALID, path))]))
    assert last_name(path) in refused(damaged(path, bad))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PATHS), json_values)
def test_any_change_is_accepted_or_refused_but_never_crashes(path: tuple[Any, ...], value: Any) -> None:
    try:
        target = parse_target(damaged(path, value), "file.toml")
    except TargetError as exc:
        assert "file.toml" in str(exc)
    else:
        assert target.as_text(sources=True)


FIRST = ("device", 0)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ((*FIRST, "kind"), "tpu", r"device\[0\].kind: found 'tpu', expected one of cpu, gpu, npu"),
        ((*FIRST, "name"), "npu", r"device\[1\].name: found 'npu', expected a name that no other"),
        ((*FIRST, "name"), "a b", r"device\[0\].name: found 'a b', expected letters"),
        ((*FIRST, "engines"), ["opnvino:CPU"], r"engines: found 'opnvino:CPU'.*did you mean openvino\?"),
        ((*FIRST, "engines"), ["openvino"], "expected engine:DEVICE"),
        ((*FIRST, "engines"), ["openvino:NPU"], r"device\[1\].engines: found 'openvino:NPU'.*cpu"),
        ((*FIRST, "engines"), ["torch:cpu", "torch:cpu"], r"device\[0\].engines"),
        ((*FIRST, "t_max", "unit"), "K", r"device\[0\].t_max.unit: found 'K', expected 'C'"),
        ((*FIRST, "tdp", "value"), 0, r"tdp.value: found 0.0, expected a number above 0"),
        ((*FIRST, "efficiency_memory", "value"), 1.5, "efficiency_memory.value: found 1.5, expected a share"),
        ((*FIRST, "launch_seconds", "low"), 1.0, "launch_seconds.low: found 1.0, expected at most the value"),
        ((*FIRST, "launch_seconds", "high"), 0.0, "launch_seconds.high: found 0.0, expected at least the"),
        ((*FIRST, "memory_bytes", "value"), 5e10, r"device\[1\].memory_bytes: .*which shares pool ddr5"),
        ((*FIRST, "peak_flops"), {}, r"device\[0\].peak_flops: found .*expected at least one of fp64"),
        (("link", 0, "b"), "dgpu", r"link\[0\].b: found 'dgpu', expected one of cpu, npu, igpu, gpu"),
        (("link", 0, "b"), "cpu", r"link\[0\].b: found 'cpu', expected another device than a"),
        (("device",), [], r"device: found \[\], expected at least one \[\[device\]\]"),
        (("name",), "../x", r"name: found '../x'"),
    ],
)
def test_messages_name_field_found_and_expected(path: tuple[Any, ...], value: Any, expected: str) -> None:
    with pytest.raises(TargetError, match=expected):
        parse_target(damaged(path, value), "file.toml")


def test_misspelt_key_is_corrected() -> None:
    assert "did you mean launch_seconds?" in refused(damaged((*FIRST, "launch_second"), 1))


def test_a_device_with_only_integers_is_refused() -> None:
    data = copy.deepcopy(VALID)
    for key in ("peak_flops", "energy_per_flop"):
        data["device"][1][key] = {"int8": data["device"][1][key]["int8"]}
    assert "device[1].peak_flops: found 'int8', expected at least one of fp32, fp16, bf16" in refused(data)


def test_target_files(tmp_path: Any) -> None:
    with pytest.raises(TargetError, match=r"did you mean lunar-lake-258v\?"):
        load_target("lunar-lake-258")
    with pytest.raises(TargetError, match="did you mean jetson-agx-orin"):
        load_target(str(tmp_path / "jetson-orin.toml"))
    for content in (b"\xff\xfe", b"a = ", b"[" * 20000, b"a = " + b"9" * 5000):
        bad = tmp_path / "bad.toml"
        bad.write_bytes(content)
        with pytest.raises(TargetError, match=r"bad\.toml"):
            load_target(str(bad))
    for unreadable in (str(tmp_path), "a\0b", "x" * 5000, ""):
        with pytest.raises(TargetError):
            load_target(unreadable)


def test_a_users_own_file_is_read(tmp_path: Any) -> None:
    from importlib.resources import files

    own = tmp_path / "own.toml"
    own.write_bytes(files("qeil_compile.devices.profiles").joinpath("h200-server.toml").read_bytes())
    assert load_target(str(own)) == load_target("h200-server")


# -- this machine

X86 = """processor\t: 0
model name\t: Test CPU
cpu MHz\t\t: 3000.5
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 fma

processor\t: 1
model name\t: Test CPU
cpu MHz\t\t: 3500.0
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 fma
"""


def test_cpuinfo_of_x86_and_arm() -> None:
    assert parse_cpuinfo(X86) == ("Test CPU", 1, frozenset({"avx", "avx2", "fma"}), 3.5e9)
    arm = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd\n"
    assert parse_cpuinfo(arm) == ("", 2, frozenset({"asimd", "asimddp"}), 0.0)
    assert parse_cpuinfo("garbage") == ("", 0, frozenset(), 0.0)


@pytest.mark.parametrize("system", ["darwin", "linux", "freebsd"])
def test_facts_without_proc(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(cpuinfo_module, "_read", lambda path: "")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delattr("os.sysconf")
    facts = cpu_facts()
    assert facts.cores >= 1 and facts.model and not facts.clock_known
    assert facts.memory_bytes == cpuinfo_module.DEFAULT_MEMORY


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        ({"avx", "avx2", "fma"}, {"fp32": 32, "int8": 64}),
        ({"avx2", "avx_vnni"}, {"fp32": 32, "int8": 128}),
        ({"avx512f", "avx512_vnni", "avx512_bf16"}, {"fp32": 64, "bf16": 128, "int8": 256}),
        ({"avx512f", "amx_bf16", "amx_int8"}, {"fp32": 64, "bf16": 1024, "int8": 2048}),
        ({"asimd", "asimdhp", "asimddp"}, {"fp32": 16, "fp16": 32, "int8": 64}),
        (set(), {"fp32": 8, "int8": 16}),
    ],
)
def test_vector_flags_set_the_rates(flags: set[str], rates: dict[str, float]) -> None:
    assert cpu_rates(CpuFacts("x", 2, frozenset(flags), 1e9, True, 1e9)) == rates


def test_host_target_puts_engines_of_one_cpu_under_one_profile() -> None:
    target = host_target(None, [*CPU_SEEN, Seen("openvino:NPU", "npu", "", False, "no driver")])
    assert target.host and [d.name for d in target.devices] == ["cpu"]
    assert [p.spec for p in target.placements] == [s.spec for s in CPU_SEEN]
    peak = target.devices[0].flops("float32")
    assert peak.assumed and "estimated" in peak.source and peak.value > 1e9
    assert parse_target(target.to_json(), "host") == target


def test_host_target_keeps_the_order_asked_for() -> None:
    target = host_target(["torch:cpu", "openvino:CPU", "torch:cpu"], CPU_SEEN)
    assert [p.spec for p in target.placements] == ["torch:cpu", "openvino:CPU"]


def test_host_target_with_every_kind_of_device() -> None:
    found = [
        *CPU_SEEN,
        Seen("openvino:NPU", "npu", "Intel(R) AI Boost"),
        Seen("openvino:GPU.0", "gpu", "Intel(R) Graphics (iGPU)"),
        Seen("openvino:GPU.1", "gpu", "Intel(R) Arc(TM) A770 (dGPU)"),
        Seen("torch:mps", "gpu", ""),
    ]
    target = host_target(None, found)
    assert [d.name for d in target.devices] == ["cpu", "npu", "igpu", "dgpu1", "gpu-mps"]
    assert target.link("cpu", "npu").seconds(1e9) == 0
    assert target.link("npu", "dgpu1").seconds(1.2e10) == pytest.approx(1 + 1e-5)
    assert all(c.get("assumed") for c in coefficients(target.device_of("npu").to_json()["peak_flops"]))
    assert parse_target(target.to_json(), "host") == target


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "openvino:NPU",
            ["openvino:NPU", "no NPU driver", "available here: openvino:CPU", "lunar-lake-258v"],
        ),
        ("openvino:CPO", ["reported by no engine", "did you mean openvino:CPU?"]),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_its_reason(spec: str, words: list[str]) -> None:
    with pytest.raises(TargetError) as caught:
        host_target([spec], [*CPU_SEEN, Seen("openvino:NPU", "npu", "", False, "no NPU driver")])
    for word in [*words, "can be compiled for without the device"]:
        assert word in str(caught.value)


def test_no_device_at_all_is_refused() -> None:
    with pytest.raises(TargetError, match="torch:cpu: broken"):
        host_target(None, [Seen("torch:cpu", "cpu", "", False, "broken")])
    with pytest.raises(TargetError, match="no engine is installed"):
        host_target(None, [])
    with pytest.raises(TargetError, match="empty list"):
        host_target([], CPU_SEEN)


class FakeNvml(types.ModuleType):
    """Two boards; the second tells nothing but its name."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    nvmlDeviceGetCount = staticmethod(lambda: 2)
    nvmlDeviceGetHandleByIndex = staticmethod(lambda i: i)
    nvmlDeviceGetName = staticmethod(lambda h: ["NVIDIA H200", b"NVIDIA Odd"][h])
    nvmlInit = nvmlShutdown = staticmethod(lambda: None)

    def _first(self, handle: int, value: Any) -> Any:
        if handle:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlDeviceGetMemoryInfo(self, h: int) -> Any:
        return self._first(h, types.SimpleNamespace(total=150_754_820_096))

    def nvmlDeviceGetPowerManagementLimit(self, h: int) -> Any:
        return self._first(h, 700_000)

    def nvmlDeviceGetMaxClockInfo(self, h: int, which: int) -> Any:
        return self._first(h, {1: 1980, 2: 3201}[which])

    def nvmlDeviceGetCudaComputeCapability(self, h: int) -> Any:
        return self._first(h, (9, 0))

    def nvmlDeviceGetMemoryBusWidth(self, h: int) -> Any:
        return self._first(h, 6144)

    def nvmlDeviceGetNumGpuCores(self, h: int) -> Any:
        return self._first(h, 16896)


CUDA_SEEN = [
    Seen("torch:cuda:0", "gpu", "NVIDIA H200"),
    Seen("onnxruntime:CUDA", "gpu"),
    Seen("torch:cuda:1", "gpu", "NVIDIA Odd"),
]


def test_nvidia_boards_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))
    target = host_target(None, [*CPU_SEEN, *CUDA_SEEN])
    assert [d.name for d in target.devices] == ["cpu", "cuda0", "cuda1"]
    h200, odd = target.device_of("onnxruntime:CUDA"), target.device_of("torch:cuda:1")
    shipped = load_target("h200-server").device_of("gpu")
    assert h200.engines == ("torch:cuda:0", "onnxruntime:CUDA")
    assert h200.tdp.value == 700 and h200.memory_bytes.value == 150_754_820_096
    for ours, sheet in (
        (h200.flops("float32"), shipped.flops("float32")),
        (h200.flops("bfloat16"), shipped.flops("bfloat16")),
        (h200.memory_bandwidth, shipped.memory_bandwidth),
    ):
        assert ours.value == pytest.approx(sheet.value, rel=0.05)
    assert not h200.flops("bfloat16").assumed and h200.flops("bfloat16") == shipped.flops("bfloat16")
    assert h200.units == shipped.units and h200.thermal == shipped.thermal
    assert odd.title == "NVIDIA Odd" and odd.flops("float32").assumed and odd.thermal is None
    for d in (h200, odd):
        watts = [d.power_const.value + c.value * d.energy_per_flop[k].value for k, c in d.peak_flops.items()]
        assert max(watts) <= 1.2 * d.tdp.value
    assert target.link("cuda0", "cuda1").seconds(1e9) > 0
    rows = {r.device: r for r in system_report(CUDA_SEEN)}
    assert rows["NVIDIA 0: NVIDIA H200"].engines == ("torch:cuda:0", "onnxruntime:CUDA")
    assert rows["NVIDIA 1: NVIDIA Odd"].engines == ("torch:cuda:1",)
    assert "700 W limit" in rows["NVIDIA 0: NVIDIA H200"].details


def test_a_board_below_its_rated_power_runs_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml("pynvml")
    monkeypatch.setattr(fake, "nvmlDeviceGetPowerManagementLimit", lambda h: 400_000, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    board, shipped = host_target(["torch:cuda:0"], CUDA_SEEN).devices[0], load_target("h200-sxm").devices[0]
    assert board.tdp.value == 400
    assert 400 / 700 < board.flops("float16").value / shipped.flops("float16").value < 1
    assert board.energy("float16").value < shipped.energy("float16").value
    assert board.memory_bandwidth == shipped.memory_bandwidth


def test_a_board_that_the_catalogue_lacks_follows_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml("pynvml")
    monkeypatch.setattr(fake, "nvmlDeviceGetName", lambda h: "NVIDIA Unheard Of", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    board, h200 = host_target(["torch:cuda:0"], CUDA_SEEN).devices[0], load_target("h200-sxm").devices[0]
    assert board.title == "NVIDIA Unheard Of" and board.tdp.value == 700 and board.may_spill
    assert board.flops("float32").value == pytest.approx(h200.flops("float32").value, rel=0.05)
    assert board.memory_bandwidth.value == pytest.approx(h200.memory_bandwidth.value, rel=0.05)
    full = board.power_const.value + board.flops("float16").value * board.energy("float16").value
    assert full == pytest.approx(700)


def test_nvidia_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_devices() == ([], "NVML: Python package nvidia-ml-py is not installed")
    target = host_target(["torch:cuda:0"], CUDA_SEEN)
    assert target.devices[0].title == "NVIDIA H200"
    assert all(c.get("assumed") for c in coefficients(target.devices[0].to_json()))

    broken = FakeNvml("pynvml")
    for error, text in (
        (
            FakeNvml.NVMLError_LibraryNotFound("x"),
            "NVML library not found (no NVIDIA driver on this machine)",
        ),
        (FakeNvml.NVMLError("Driver/library version mismatch"), "NVML: Driver/library version mismatch"),
    ):
        monkeypatch.setattr(broken, "nvmlInit", lambda e=error: (_ for _ in ()).throw(e), raising=False)
        monkeypatch.setitem(sys.modules, "pynvml", broken)
        assert nvidia_devices() == ([], text)
        row = next(r for r in system_report(CPU_SEEN) if r.device == "NVIDIA")
        assert row.details == f"NVIDIA: {text}" and not row.engines


def test_report_names_each_device_and_each_lack() -> None:
    found = [
        *CPU_SEEN,
        Seen("torch:cuda:0", "gpu", "", False, "torch is built without CUDA"),
        Seen("openvino:NPU", "npu", "", False, "no NPU driver"),
        Seen("onnxruntime:CoreML", "npu", "Apple Neural Engine", False, "only on macOS"),
    ]
    rows = {r.device: r for r in system_report(found)}
    assert next(iter(rows)) == "CPU" and rows["CPU"].engines == tuple(s.spec for s in CPU_SEEN)
    assert rows["Intel NPU"].missing == ("openvino:NPU: no NPU driver",)
    assert rows["Intel GPU"].details.startswith("Intel GPU: not seen by OpenVINO")
    assert rows["other (onnxruntime)"].missing == ("onnxruntime:CoreML: only on macOS",)
    shown = [s for r in rows.values() for s in (*r.engines, *(m.rsplit(": ", 1)[0] for m in r.missing))]
    assert "torch:cuda:0: torch is built without CUDA" in str([r.missing for r in rows.values()])
    assert len(shown) == len(found)
    assert "OpenVINO reports no devices" in next(r for r in system_report([]) if r.kind == "npu").details
