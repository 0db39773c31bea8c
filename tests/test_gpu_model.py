"""The GPU kernel-time model: its limits, and what it must react to."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

from qeil_compile.devices.gpu import gpu_seconds
from qeil_compile.devices.gpu_spec import COEFFICIENTS, GpuSpec, coefficients
from qeil_compile.devices.loader import known_targets, load_target
from qeil_compile.devices.work import KernelTable
from qeil_compile.validation.gpu_data import table_of
from qeil_compile.validation.gpu_layers import Kernel, attention, conv, elementwise, gemm, norm, softmax

SPEC = GpuSpec("chip", {"fp32": 20e12, "fp16": 300e12}, bandwidth=1.5e12, units=100, cache_bytes=40e6, launch=4e-6)


def seconds(*kernels: Kernel, spec: GpuSpec = SPEC) -> np.ndarray:
    return gpu_seconds(spec, table_of(list(kernels)))


def test_a_large_product_comes_near_its_roof_and_never_beats_it() -> None:
    fp32, fp16 = seconds(gemm(1, 8192, 8192, 8192, 4), gemm(1, 8192, 8192, 8192, 2)) - SPEC.launch
    flops = 2.0 * 8192**3
    assert 1.0 <= fp32 / (flops / 20e12) < 1.4
    assert 1.0 <= fp16 / (flops / 300e12) < 1.8


def test_one_tile_more_than_the_units_hold_costs_a_wave() -> None:
    # Batched products use tiles of 128 x 64 at least: 100, 101 and 200 blocks of them for 100 units.
    work = (gemm(n, 128, 64, 4096, 4) for n in (100, 101, 200))
    full, more, doubled = seconds(*work, spec=replace(SPEC, bandwidth=1e15, peak={"fp32": 1e12})) - SPEC.launch
    assert more > 1.3 * full
    assert more == pytest.approx(doubled, rel=0.01)


def test_few_rows_are_limited_by_memory() -> None:
    one = seconds(gemm(1, 1, 8192, 8192, 2))[0] - SPEC.launch
    naive = 2.0 * 8192**2 / SPEC.bandwidth
    assert naive < one < 2.5 * naive
    assert seconds(gemm(1, 8, 8192, 8192, 2))[0] - SPEC.launch < 1.3 * one


def test_a_vector_on_the_lanes_streams() -> None:
    left, right, out = 4.0 * 8192, 4.0 * 8192**2, 4.0 * 8192
    vector: Kernel = ("gemv", (1, 1, 8192, 8192), "float32", "mv", 2.0 * 8192**2, left, right, out)
    assert 1.0 < (seconds(vector)[0] - SPEC.launch) / (right / SPEC.bandwidth) < 1.4


def test_a_short_inner_extent_wastes_the_units() -> None:
    short, long = seconds(gemm(1, 4096, 4096, 64, 2), gemm(1, 4096, 4096, 4096, 2)) - SPEC.launch
    assert short > 1.5 * long / 64


def test_the_power_limit_slows_what_computes_only() -> None:
    def at(tdp: float | None) -> np.ndarray:
        work = gemm(1, 8192, 8192, 8192, 4), elementwise(10**8, 2, 1.0, 4)
        return seconds(*work, spec=replace(SPEC, tdp=tdp, node=10.0))

    free, weak, half = at(None), at(125.0), at(70.0)
    assert at(10_000.0) == pytest.approx(free)
    assert weak[0] > 1.3 * free[0] and weak[1] == free[1]
    # Beyond the board's own share time follows the power that is left: (125 - 15) / (70 - 15) = 2.
    assert coefficients()["board_watts"] == 15
    assert (half[0] - SPEC.launch) / (weak[0] - SPEC.launch) == pytest.approx(2.0)
    assert seconds(gemm(1, 512, 512, 512, 4), spec=replace(SPEC, tdp=40.0, node=10.0, sustained=False)) <= seconds(
        gemm(1, 512, 512, 512, 4), spec=replace(SPEC, tdp=40.0, node=10.0)
    )


def test_units_of_128_lanes_need_less_power() -> None:
    work = gemm(1, 8192, 8192, 8192, 4)
    few, many = (seconds(work, spec=replace(SPEC, tdp=125.0, node=10.0, units=u))[0] for u in (50, 100))
    assert few < 0.7 * many


def test_winograd_is_used_where_it_can_be() -> None:
    unit, strided = conv(32, 256, 256, 3, 56, 1, 1), conv(32, 256, 256, 3, 112, 2, 1)
    assert unit[4] == strided[4]
    fast, slow = seconds(unit, strided)
    assert fast < 0.8 * slow
    assert slow > strided[4] / 20e12


def test_decode_streams_the_cache_and_prefill_computes() -> None:
    decode = attention(32 * 32, 1, 8192, 128, 32 * 8, 2, 8192.0)
    prefill = attention(32, 4096, 4096, 128, 8, 2, 4096 * 2048.5)
    t = seconds(decode, prefill) - SPEC.launch
    assert 1.0 <= t[0] / ((decode[5] + decode[7]) / SPEC.bandwidth) < 2.0
    assert 1.0 <= t[1] / (prefill[4] / 300e12) < 3.0


def test_rows_cost_norms_and_wide_softmax_is_read_again() -> None:
    wide, narrow = seconds(norm(1000, 8192, 4), norm(128_000, 64, 4))
    assert narrow > wide
    within, beyond = seconds(softmax(100_000, 1024, 4), softmax(50_000, 2048, 4))
    assert beyond > 1.05 * within


def test_what_stays_in_the_cache_moves_faster() -> None:
    small = elementwise(10**6, 1, 1.0, 4)
    assert seconds(small)[0] < seconds(small, spec=replace(SPEC, cache_bytes=1e5))[0]


def test_order_and_grouping_do_not_matter() -> None:
    kernels = [gemm(1, 64, 512, 512, 2), norm(64, 512, 4), gemm(2, 64, 512, 512, 4), elementwise(999, 2, 1.0, 2)]
    together = seconds(*kernels)
    assert together == pytest.approx([seconds(k)[0] for k in kernels])
    assert seconds(*reversed(kernels)) == pytest.approx(together[::-1])


def test_every_kind_has_a_finite_positive_time() -> None:
    kinds = ("gemm", "gemv", "conv", "attention", "recurrent", "norm", "softmax", "reduce", "gather", "movement")
    kinds += ("control", "quantize", "sort", "other")
    n = len(kinds)
    ones = np.full(n, 1000.0)
    table = KernelTable(kinds, ((),) * n, ("bfloat16",) * n, kinds, ones, ones, ones, ones, np.arange(n))
    t = gpu_seconds(SPEC, table)
    assert np.all(np.isfinite(t)) and np.all(t >= SPEC.launch)
    assert gpu_seconds(SPEC, table_of([gemm(1, 1, 1, 1, 4)])).shape == (1,)


@pytest.mark.parametrize("name", known_targets())
def test_shipped_gpus_are_priced(name: str) -> None:
    for device in load_target(name).devices:
        if device.kind == "gpu":
            bare = replace(device, units=None, cache_bytes=None)
            t = gpu_seconds(bare, table_of([gemm(1, 1024, 4096, 4096, 2)]))[0]
            peak = device.flops("float16").value
            assert 2.0 * 1024 * 4096**2 / peak < t < 1.0
            assert GpuSpec.of(bare).units >= 1


def test_every_coefficient_says_what_it_is() -> None:
    text = files("qeil_compile.devices").joinpath(COEFFICIENTS).read_text("utf-8")
    for name, entry in tomllib.loads(text)["coefficients"].items():
        assert entry["low"] <= entry["value"] <= entry["high"], name
        assert entry["unit"] and entry["meaning"] and entry["source"], name
        assert ("residual" in entry) == entry["source"].startswith("fitted"), name
