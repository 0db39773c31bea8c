"""The catalogue: rows of the table of devices, rules for what it lacks, power modes, a person's own profiles."""

from __future__ import annotations

import copy
import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeil_compile.cli import main
from qeil_compile.devices import (
    check_profile,
    known_devices,
    known_profiles,
    known_targets,
    load_target,
    parse_target,
    power_modes,
    uncertain,
    vary,
)
from qeil_compile.devices.modes import volts
from qeil_compile.devices.profile import Coefficient, DeviceProfile, flat
from qeil_compile.devices.rules import shipped_rules
from qeil_compile.errors import TargetError

ROOT = Path(__file__).parents[1]
ROWS = {r["name"]: r for r in csv.DictReader((ROOT / "benchmarks/data/devices/devices.csv").open(encoding="utf-8"))}
#: Rows that no profile stands for; docs/profiles.md gives the reasons.
UNUSABLE = {"Hailo-8L (on Pi 5 AI HAT+)"}
#: A row that is a power mode of another row's device.
MODES = {"NVIDIA Jetson Orin Nano 8GB (15 W mode)": "jetson-orin-nano@15W"}
NAMES = [*known_targets(), *known_devices()]
EVERY = [*NAMES, *(f"{n}@{m}" for n in NAMES for m in power_modes(n))]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a person's own profiles."""
    monkeypatch.setenv("QEIL_PROFILES", str(tmp_path))
    return tmp_path


def device(name: str) -> DeviceProfile:
    (found,) = load_target(name).devices
    return found


def row_device(row: str) -> DeviceProfile:
    by_title = {device(n).title: n for n in known_devices()}
    return device(MODES.get(row) or by_title[row])


def says(c: Coefficient, value: float) -> bool:
    """The table's figure is the value, or the bound that a better known, effective figure lies under."""
    return any(x is not None and x == pytest.approx(value, rel=1e-6) for x in (c.value, c.high))


# -- rows of the table


@pytest.mark.parametrize("row", sorted(ROWS))
def test_every_row_of_the_table_is_a_profile(row: str) -> None:
    if row in UNUSABLE:
        with pytest.raises(KeyError):
            row_device(row)
        assert row.split(" (")[0] in (ROOT / "docs/profiles.md").read_text()
        return
    r, d = ROWS[row], row_device(row)
    assert d.kind == r["kind"]
    assert says(d.memory_bandwidth, float(r["mem_bw_GBs"]) * 1e9)
    assert r["mem_GiB"] == "shared" or says(d.memory_bytes, float(r["mem_GiB"]) * 2**30)
    for dtype, rate in json.loads(r["peak_flops_by_dtype"]).items():
        # Engines run fp32 in fp32 unless told otherwise: the rates of tf32 and fp32_matrix have no operator.
        if dtype not in ("tf32", "fp32_matrix"):
            assert says(d.flops(dtype), rate), dtype
    for field, column in (("tdp", "tdp_W"), ("power_idle", "idle_W"), ("t_max", "tj_max_C")):
        if r[column]:
            assert says(getattr(d, field), float(r[column])), field
        else:
            assert getattr(d, field).assumed, field


def test_published_and_measured_coefficients_are_in_the_profiles() -> None:
    path = ROOT / "benchmarks/data/devices/coefficients.csv"
    table = {(r["coefficient"], r["platform"]): r for r in csv.DictReader(path.open(encoding="utf-8"))}
    for key, name, field, scale in (
        (("eps_flop_fp16_tensor", "RTX 3090 (Samsung 8N)"), "rtx-3090", "energy_per_flop.fp16", 1e-12),
        (("eps_mem_dram", "RTX 3090 GDDR6X"), "rtx-3090", "energy_per_byte", 1e-12),
        (("P_idle", "RTX 3090"), "rtx-3090", "power_idle", 1.0),
        (("P_const", "V100/QV100 12nm"), "v100-sxm2", "power_const", 1.0),
        (("P_idle", "V100 (Palmetto)"), "v100-sxm2", "power_idle", 1.0),
        (("P_idle", "A100 SXM4 40GB"), "a100-sxm4-40gb", "power_idle", 1.0),
    ):
        c, r = dict(flat(device(name)))[field], table[key]
        assert not c.assumed and c.value == pytest.approx(float(r["value"]) * scale), key
        if r["low"]:
            assert (c.low, c.high) == pytest.approx((float(r["low"]) * scale, float(r["high"]) * scale)), key
    fit = float(table["eps_flop / P0 (3-term fit)", "H100 SXM, vLLM decode"]["value"]) * 1e-12
    h100 = device("h100-sxm5").energy("fp16")
    assert h100.low is not None and h100.high is not None and h100.low < fit <= 1.01 * h100.high


@pytest.mark.parametrize("name", EVERY)
def test_every_number_has_a_source_a_range_if_assumed_and_is_plausible(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    for owner in (*target.devices, *target.links):
        for field, c in flat(owner):
            assert c.source.strip(), field
            assert not c.assumed or (c.low is not None and c.high is not None), field
            assert c.low is None or c.low <= c.value, field
            assert c.high is None or c.high >= c.value, field
    for d in target.devices:
        assert d.thermal is not None and d.process
        assert d.power_idle.value <= d.power_const.value < d.tdp.value
        for dtype, peak in d.peak_flops.items():
            assert d.power_const.value + peak.value * d.energy_per_flop[dtype].value <= 1.2 * d.tdp.value, dtype
    assert parse_target(json.loads(json.dumps(target.to_json())), "again") == target


def test_machines_share_one_pool_and_cards_spill() -> None:
    for name in ("meteor-lake-155h", "ryzen-ai-hx-370", "snapdragon-x-elite", "arrow-lake-285hx", "lunar-lake-258v"):
        target = load_target(name)
        assert [d.kind for d in target.devices] == ["cpu", "npu", "gpu"]
        assert len({d.pool for d in target.devices}) == 1 and not any(d.may_spill for d in target.devices)
        assert target.link("npu", "igpu").seconds(1e9) == 0
    desktop = load_target("rtx-4090-workstation")
    assert desktop.device_of("gpu").may_spill and not desktop.device_of("cpu").may_spill
    assert desktop.link("cpu", "gpu").seconds(31.5e9) == pytest.approx(1, rel=1e-3)


# -- rules


def test_full_load_at_the_reference_temperature_draws_the_rated_power() -> None:
    for name in ("t4", "raspberry-pi-5", "epyc-7443", "rtx-5090", "xdna2-npu"):
        d = device(name)
        assert d.thermal is not None
        for dtype, peak in d.peak_flops.items():
            dynamic = peak.value * d.energy_per_flop[dtype].value
            total = d.power_const.value + dynamic + d.thermal.leakage.value
            assert total == pytest.approx(d.tdp.value), (name, dtype)
    card = device("t4")
    assert card.thermal is not None
    hot = card.thermal.ambient.value + card.thermal.resistance.value * card.tdp.value
    assert hot == pytest.approx(card.thermal.reference.value) and hot == pytest.approx(0.85 * card.t_max.value)
    assert "derived: (tdp - power_const - leakage) / peak_flops" in card.energy("fp16").source


def test_leakage_of_the_rtx_3090_rises_as_measured() -> None:
    """dP/dT between 48 and 83 C lies within the measured quartiles, 0.35 to 1.77 W/K, at the middle of the span."""
    from math import exp

    t = device("rtx-3090").thermal
    assert t is not None
    kelvin, reference = 65.5 + 273.15, t.reference.value + 273.15
    leak = t.leakage.value * (kelvin / reference) ** 2 * exp(t.slope.value * (1 / reference - 1 / kelvin))
    assert 0.35 <= leak * (2 / kelvin + t.slope.value / kelvin**2) <= 1.77


SHORT = """
name = "{name}"
title = "A card of mine"
kind = "gpu"
engines = ["torch:cuda:0"]
rules = "gpu-card"
memory = "gddr6"
process = "TSMC 4N"
source = "its data-sheet"
memory_bandwidth = 5.0e11
memory_bytes = 17179869184
tdp = 200
[peak_flops]
fp32 = 2.0e13
[[mode]]
name = "100W"
source = "a limit"
tdp = 100
"""


def test_a_measured_number_replaces_the_rule(own: Path) -> None:
    text = SHORT.format(name="mine")
    (own / "mine.toml").write_text(text)
    derived = device("mine")
    measured = 'tdp = 200\nenergy_per_byte = { value = 5e-11, source = "x" }'
    (own / "mine.toml").write_text(text.replace("tdp = 200", measured))
    mine = device("mine")
    assert mine.energy_per_byte == Coefficient(5e-11, "J/B", "x")
    assert derived.energy_per_byte.value == pytest.approx(1.2e-10) and derived.energy_per_byte.assumed
    assert mine.tdp == Coefficient(200.0, "W", "its data-sheet")


# -- power modes


def test_a_jetson_at_15_w_is_another_device_than_at_60_w() -> None:
    full, small = load_target("jetson-agx-orin"), load_target("jetson-agx-orin@15W")
    gpu, less = full.device_of("gpu"), small.device_of("gpu")
    assert (less.tdp.value, less.units and less.units.value) == (15, 6)
    # 6 of 16 multiprocessors at 408 of 1300 MHz
    assert less.flops("float16").value == pytest.approx(42.5e12 * 6 / 16 * 408 / 1300, rel=1e-3)
    assert less.memory_bandwidth.value == pytest.approx(gpu.memory_bandwidth.value * 2133 / 3199, rel=1e-3)
    assert less.energy("float16").value == pytest.approx(gpu.energy("float16").value * 0.675**2)
    assert small.device_of("cpu").flops("float32").value == pytest.approx(4.22e11 * 4 / 12 * 1113.6 / 2201.6, rel=1e-3)
    for a, b in (("15W", "30W"), ("30W", "50W"), ("50W", "60W")):
        one, two = (load_target(f"jetson-agx-orin@{m}").device_of("gpu") for m in (a, b))
        assert one.flops("int8").value < two.flops("int8").value
        assert one.energy("int8").value <= two.energy("int8").value
    top = load_target("jetson-agx-orin@60W").device_of("gpu")
    assert top.flops("float16").value == gpu.flops("float16").value


@pytest.mark.parametrize(("name", "watts"), [("rtx-pro-5000-laptop@95W", 95), ("core-ultra-7-258v@17W", 17)])
def test_a_power_limit_alone_sets_the_highest_clock_that_it_holds(name: str, watts: float) -> None:
    full, d = device(name.partition("@")[0]), device(name)
    assert d.thermal is not None and full.thermal is not None
    dynamic = max(c.value * d.energy_per_flop[k].value for k, c in d.peak_flops.items())
    load = d.power_const.value + d.thermal.leakage.value + dynamic
    before = max(c.value * full.energy_per_flop[k].value for k, c in full.peak_flops.items())
    rated = full.power_const.value + full.thermal.leakage.value + before
    assert load / rated == pytest.approx(watts / full.tdp.value, rel=1e-6)
    share = d.flops("float32").value / full.flops("float32").value
    assert watts / full.tdp.value < share < 1
    rate = d.flops("float32")
    assert rate.assumed and rate.low is not None and rate.high is not None and rate.low < rate.value < rate.high
    assert d.memory_bandwidth == full.memory_bandwidth


def test_voltage_follows_the_clock() -> None:
    points = shipped_rules().voltage
    assert volts(0.1, points) == volts(0.5, points) == 0.675 and volts(1.0, points) == 1.0
    assert volts(0.71, points) == pytest.approx((0.7625 + 0.85) / 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jetson-agx-orin@16W", "found no power mode '16W', expected one of 15W, 30W, 50W, 60W, did you mean"),
        ("h200-server@300W", "expected none: it has no power modes"),
        ("raspberry-pi-6@5W", "did you mean raspberry-pi-5"),
    ],
)
def test_an_unknown_mode_is_refused(name: str, words: str) -> None:
    with pytest.raises(TargetError) as caught:
        load_target(name)
    assert words in str(caught.value)


# -- a person's own profiles


def test_own_profiles_are_found_by_name_listed_and_used(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "my-card.toml").write_text(SHORT.format(name="my-card"))
    (own / "my-pc.toml").write_text(
        'name = "my-pc"\ntitle = "My PC"\n[[device]]\nuse = "ryzen-9-7950x"\n[[device]]\nuse = "my-card"\n'
        'name = "card"\ntdp = { value = 180, source = "nvidia-smi -pl" }\n'
        '[[link]]\na = "cpu"\nb = "card"\nrules = "pcie"\nsource = "PCIe 4.0 x8"\nbandwidth = 1.6e10\n'
    )
    (own / "broken.toml").write_text("name = 3\n")
    pc = load_target("my-pc")
    assert [d.name for d in pc.devices] == ["cpu", "card"] and pc.device_of("card").tdp.value == 180
    assert pc.link("cpu", "card").seconds(1.6e10) == pytest.approx(1, rel=1e-3)
    assert set(power_modes("my-pc")) == {"65W", "100W"}
    assert device("my-card@100W").tdp.value == 100
    known = {p.name: p for p in known_profiles()}
    assert known["my-pc"].origin == str(own / "my-pc.toml") and known["broken"].problem
    assert main(["devices", "list"]) == 0
    seen = capsys.readouterr().out
    assert "my-pc" in seen and "broken.toml" in seen and "rtx-4090-workstation" in seen and "rtx-5090" not in seen
    assert main(["devices", "list", "--devices"]) == 0
    assert "rtx-5090" in capsys.readouterr().out


def test_the_folder_of_own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QEIL_PROFILES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "qeil" / "profiles"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(SHORT.format(name="mine"))
    assert load_target("mine").name == "mine"


def test_own_profiles_may_not_shadow_or_misname(own: Path) -> None:
    (own / "rtx-4090.toml").write_text(SHORT.format(name="rtx-4090"))
    with pytest.raises(TargetError, match=r"rtx-4090\.toml: found a profile named rtx-4090, which is shipped"):
        load_target("rtx-4090")
    assert load_target("rtx-4090-workstation").device_of("gpu").title == "NVIDIA GeForce RTX 4090"
    (own / "other.toml").write_text(SHORT.format(name="mine"))
    with pytest.raises(TargetError, match="name: found 'mine', expected 'other', as the file is called"):
        load_target("other")
    (own / "loop.toml").write_text('name = "loop"\ntitle = "x"\n[[device]]\nuse = "loop"\n')
    with pytest.raises(TargetError, match=r"device\[0\]\.use: found 'loop', expected a device of the catalogue"):
        load_target("loop")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tdp = 200", "tdp = -1", "tdp: found -1, expected a number from 0"),
        ("tdp = 200", "", "tdp: found nothing, expected a value, which the rules start from"),
        ("tdp = 200", "tdp = 1e-3\nlaunch_seconds = true", "launch_seconds: found True"),
        ("gpu-card", "gpu-cart", "rules: found 'gpu-cart', expected one of"),
        ('"gddr6"', '"gddr9"', "memory: found 'gddr9', expected one of"),
        ('source = "its data-sheet"', "", "source: found nothing"),
        ("fp32 = 2.0e13", "fp33 = 2.0e13", "peak_flops.fp33: found an unknown key"),
        ("tdp = 100", "tdb = 100", "mode[0].tdb: found an unknown key"),
        ("tdp = 100", "", "mode[0]: found 'a mode that changes nothing'"),
        ("tdp = 100", "clock = 1.5", "mode[0].clock: found 1.5, expected a share of the full clock"),
        ("tdp = 100", "tdp = 1", "found a limit of 1 W, expected more than"),
        ("tdp = 200", 'tdp = 200\npower_const = { value = 190, source = "x" }', "tdp: found 200.0, expected more than"),
    ],
)
def test_messages_name_file_and_field(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = SHORT.format(name="mine")
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new))
    problems = check_profile(file)
    assert any(words in p for p in problems), problems


def test_check_says_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    text = SHORT.format(name="mine")
    file.write_text(text)
    assert main(["devices", "check", str(file)]) == 0
    assert "no problem: mine with A card of mine" in capsys.readouterr().out
    bad = text.replace("tdp = 200", "tdp = 0\nspeed = 3").replace('kind = "gpu"', 'kind = "tpu"')
    file.write_text(bad.replace("tdp = 100", "clock = 2"))
    assert main(["devices", "check", str(file)]) == 1
    seen = capsys.readouterr().out.splitlines()
    assert len(seen) == 4
    for line, word in zip(seen, ("kind", "tdp", "mode[0].clock", "speed"), strict=True):
        assert str(file) in line and word in line
    with pytest.raises(TargetError, match="and 3 more: `qeil devices check`"):
        load_target(str(file))
    assert check_profile(tmp_path / "absent.toml")[0].endswith("expected a TOML file")


def test_show_has_modes_thermal_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "show", "jetson-agx-orin", "--sources"]) == 0
    seen = capsys.readouterr().out
    for word in ("thermal.slope: 3489 K (921 to 7201, assumed)", "jetson-agx-orin@15W: cpu", "fixstars"):
        assert word in seen, word
    assert main(["devices", "show", "jetson-agx-orin@15W", "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert data.pop("modes") == []
    assert parse_target(data, "shown") == load_target("jetson-agx-orin@15W")


# -- ranges


def test_ranges_name_what_is_uncertain_and_vary_changes_only_that() -> None:
    target = load_target("rtx-4090-workstation")
    found = uncertain(target)
    named = {(device, field) for device, field, _ in found}
    assert {("gpu", "energy_per_flop.fp16"), ("gpu", "thermal.slope"), ("cpu - gpu", "energy_per_byte")} <= named
    assert ("gpu", "efficiency_compute") not in named and ("gpu", "tdp") not in named
    for name, field, c in found:
        assert c.low is not None and c.high is not None and c.low < c.high
        other = vary(target, name, field, c.high)
        changed = [(n, f) for (n, f, x), (_, _, y) in zip(found, uncertain(other), strict=True) if x != y]
        assert changed in ([(name, field)], []) and (other != target or c.high == c.value)
    assert vary(target, "gpu", "energy_per_byte", 1e-9).device_of("gpu").energy_per_byte.high == 1e-9
    assert ("gpu", "energy_per_flop.fp16") in {(d, f) for d, f, _ in uncertain(load_target("rtx-3090"))}


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [("dgpu", "tdp", "found no device 'dgpu'"), ("gpu", "energy_per_flop.fp32x", "did you mean energy_per_flop.fp32")],
)
def test_vary_refuses_what_is_not_there(name: str, field: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        vary(load_target("rtx-4090-workstation"), name, field, 1.0)


# -- damaged short forms

MINE = {
    "name": "pc",
    "title": "PC",
    "device": [{"use": "ryzen-9-7950x"}, {**tomllib.loads(SHORT.format(name="card")), "package_tdp": 300}],
    "link": [{"a": "cpu", "b": "card", "rules": "pcie", "source": "x", "bandwidth": 1e10}],
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [p for k, v in items for p in [(*at, k), *paths(v, (*at, k))]]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(paths(MINE)), st.booleans(), json_values)
def test_any_change_of_a_short_form_is_accepted_or_refused_but_never_crashes(
    path: tuple[Any, ...], removed: bool, value: Any
) -> None:
    data: Any = copy.deepcopy(MINE)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if removed:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    try:
        target = parse_target(data, "file.toml")
    except TargetError as exc:
        assert str(exc).startswith("file.toml: ") and "found" in str(exc) and "expected" in str(exc)
    else:
        assert parse_target(target.to_json(), "again") == target


def test_the_short_form_is_whole() -> None:
    assert [d.name for d in parse_target(MINE, "file.toml").devices] == ["cpu", "card"]
