from __future__ import annotations

import dataclasses
import json

import pytest

from hellofmt_kernels import config

aot = pytest.importorskip("hellofmt_kernels.aot")

pytestmark = pytest.mark.aot

CONFIGURATIONS = aot.configurations()


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    """Compile anew, and leave nothing in the user's own cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)
def test_every_shipped_kernel_keeps_its_budget(configuration):
    compiled = aot.compile_launch(configuration.launch, configuration.capability)
    assert aot.problems(configuration, compiled, aot.read_budget()) == []
    assert compiled.spills == 0
    if configuration.is_gemm:
        assert compiled.wgmma + compiled.mma > 0


def test_the_budget_names_what_is_shipped_and_nothing_else():
    names = [one.name for one in CONFIGURATIONS]
    assert sorted(names) == list(aot.read_budget())
    assert len(set(names)) == len(names)


def test_half_precision_on_hopper_uses_warp_groups_and_wide_stores():
    budget = aot.read_budget()
    for one in CONFIGURATIONS:
        if one.capability == (9, 0) and one.is_gemm and "fp32" not in one.name:
            assert budget[one.name]["wgmma"] > 0
            assert budget[one.name]["wide_stores"] > 0


@pytest.mark.parametrize("capability", ["sm_80", "sm_90"])
def test_a_second_output_of_views_costs_its_stores_and_little_else(capability):
    budget = aot.read_budget()
    one = budget[f"views fp32 224->224 planar {capability}"]
    for layout in ("planar", "channels_last"):
        two = budget[f"views fp32+fp16 224->224 planar+{layout} {capability}"]
        other = budget[f"views fp16 224->224 {layout} {capability}"]
        # The stores of both, as wide; the pixels are read and resampled once.
        assert two["wide_stores"] == one["wide_stores"] + other["wide_stores"]
        assert two["stores"] == one["stores"] + other["stores"]
        assert two["registers"] <= max(one["registers"], other["registers"]) + 8
        assert two["instructions"] < 1.2 * max(one["instructions"], other["instructions"])


def test_a_regression_is_found_in_every_number():
    one = next(one for one in CONFIGURATIONS if one.is_gemm and one.capability == (9, 0))
    budget = {one.name: aot.read_budget()[one.name] | {"wgmma": 4, "mma": 0, "wide_stores": 3}}
    good = aot.Compiled(**budget[one.name])
    assert aot.problems(one, good, budget) == []
    worse = {
        "registers": (good.registers + 9, f"registers {good.registers + 9}; expected at most"),
        "spills": (1, "spills 1; expected at most 0"),
        "shared_bytes": (good.shared_bytes + 1, "shared_bytes"),
        "instructions": (2 * good.instructions, "instructions"),
        "wide_stores": (2, "2 stores of 128 bits; expected at least 3"),
        "wgmma": (0, "no wgmma instruction; expected 4"),
    }
    for field, (value, text) in worse.items():
        bad = dataclasses.replace(good, **{field: value})
        (problem,) = aot.problems(one, bad, budget)
        assert problem.startswith(f"{one.name}: ")
        assert text in problem
    (problem,) = aot.problems(one, good, {})
    assert problem == f"{one.name}: not in the budget; run with --update and review"


def test_a_spilling_kernel_is_seen():
    """64 x 1024 classes in one program cannot stay in registers."""
    one = next(
        one for one in CONFIGURATIONS if one.name.startswith("labels fp16 1024x768x1000 sm_80")
    )
    constants = one.launch.constants | {"BLOCK_N": 64, "BLOCK_C": 1024, "BLOCK_D": 32}
    launch = dataclasses.replace(one.launch, constants=constants, num_stages=2)
    assert aot.compile_launch(launch, (8, 0)).spills > 0


def test_the_command_prints_a_table_and_fails_on_a_regression(monkeypatch, capsys):
    only = "normalise fp16 1024x1000 sm_90"
    assert aot.main(["--only", only]) == 0
    out, err = capsys.readouterr()
    assert only in out
    assert err == ""
    budget = json.loads(json.dumps(aot.read_budget()))
    budget[only]["registers"] = 1
    monkeypatch.setattr(aot, "read_budget", lambda: budget)
    assert aot.main(["--only", only]) == 1
    assert "registers" in capsys.readouterr().err


def test_update_rewrites_the_budget(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(aot, "__file__", str(tmp_path / "aot.py"))
    only = "normalise fp16 1024x1000 sm_90"
    assert aot.main(["--only", only, "--update"]) == 0
    [path] = tmp_path.glob("aot_budget*.json")
    written = json.loads(path.read_text())["configurations"]
    assert written.keys() == aot.read_budget().keys()
    assert written[only]["spills"] == 0
    assert only in capsys.readouterr().out


@pytest.mark.parametrize("one", CONFIGURATIONS, ids=lambda one: one.name)
def test_no_tile_exceeds_the_shared_memory_of_its_device(one):
    if "BLOCK_N" in one.launch.constants:
        constants = one.launch.constants
        tile = config.LabelTile(
            constants["BLOCK_N"],
            constants["BLOCK_C"],
            constants["BLOCK_D"],
            one.launch.num_warps,
            one.launch.num_stages,
        )
        itemsize = one.launch.arguments["x_ptr"].element_size()
        limit = {(8, 0): 163 * 1024, (9, 0): 227 * 1024}[one.capability]
        assert config.shared_bytes(tile, itemsize) <= limit
        assert aot.read_budget()[one.name]["shared_bytes"] <= limit
