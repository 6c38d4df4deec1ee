from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hellofmt_kernels.tiles import LabelTile, shared_bytes

aot = pytest.importorskip("aot")

pytestmark = pytest.mark.aot

CONFIGURATIONS = aot.configurations()
BUDGETS = {
    path.stem: json.loads(path.read_text())["configurations"]
    for path in Path(aot.__file__).parent.glob("aot_budget_*.json")
}
every_budget = pytest.mark.parametrize("version", BUDGETS)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    """Compile anew, and leave nothing in the user's own cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def marked(one):
    """A push compiles for Hopper, where a kernel has most to lose; `make test-long` for both."""
    return pytest.param(one, marks=[pytest.mark.slow] if one.capability == (8, 0) else [])


@pytest.mark.parametrize("one", list(map(marked, CONFIGURATIONS)), ids=lambda one: one.name)
def test_every_shipped_kernel_keeps_its_budget(one):
    compiled = aot.compile_launch(one.launch, one.capability)
    assert aot.problems(one, compiled, aot.read_budget()) == []


@every_budget
def test_a_budget_names_what_is_shipped_and_nothing_else(version):
    names = [one.name for one in CONFIGURATIONS]
    assert sorted(names) == list(BUDGETS[version])
    assert len(set(names)) == len(names)


@every_budget
def test_half_precision_on_hopper_uses_warp_groups_and_wide_stores(version):
    budget = BUDGETS[version]
    for one in CONFIGURATIONS:
        if one.capability == (9, 0) and one.is_gemm and "fp32" not in one.name:
            assert budget[one.name]["wgmma"] > 0
            assert budget[one.name]["wide_stores"] > 0


@every_budget
@pytest.mark.parametrize("capability", ["sm_80", "sm_90"])
def test_a_second_output_of_views_costs_its_stores_and_little_else(capability, version):
    budget = BUDGETS[version]
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
    numbers = next(iter(BUDGETS.values()))[one.name] | {"wgmma": 4, "mma": 0, "wide_stores": 3}
    budget = {one.name: numbers}
    good = aot.Compiled(**budget[one.name])
    assert aot.problems(one, good, budget) == []
    worse = {
        "registers": (good.registers + 9, f"registers {good.registers + 9}; expected at most"),
        "spills": (1, "spills 1; expected 0"),
        "shared_bytes": (good.shared_bytes + 1, "shared_bytes"),
        "instructions": (2 * good.instructions, "instructions"),
        "wide_stores": (2, "2 stores of 128 bits; expected at least 3"),
        "wgmma": (0, "no wgmma instruction; expected 4"),
    }
    for field, (value, text) in worse.items():
        # Whoever loses the warp groups' instructions still has those of single warps.
        bad = dataclasses.replace(good, **{"mma": 8, field: value})
        (problem,) = aot.problems(one, bad, budget)
        assert problem.startswith(f"{one.name}: ")
        assert text in problem
    (problem,) = aot.problems(one, good, {})
    assert problem == f"{one.name}: not in the budget; run with --update and review"


def test_without_a_budget_a_kernel_must_not_spill_nor_lose_its_tensor_cores():
    one = next(one for one in CONFIGURATIONS if one.is_gemm)
    good = aot.Compiled(**next(iter(BUDGETS.values()))[one.name])
    assert aot.problems(one, good, None) == []
    bad = dataclasses.replace(good, spills=2, wgmma=0, mma=0)
    assert aot.problems(one, bad, None) == [
        f"{one.name}: spills 2; expected 0",
        f"{one.name}: no tensor-core instruction",
    ]


def test_a_spilling_kernel_is_seen():
    """64 x 1024 classes in one program cannot stay in registers."""
    one = next(
        one for one in CONFIGURATIONS if one.name.startswith("labels fp16 1024x768x1000 sm_80")
    )
    constants = one.launch.constants | {"BLOCK_N": 64, "BLOCK_C": 1024, "BLOCK_D": 32}
    launch = dataclasses.replace(one.launch, constants=constants, num_stages=2)
    assert aot.compile_launch(launch, (8, 0)).spills > 0


ONLY = "normalise fp16 1024x768x1000 sm_90"


def test_the_command_prints_a_table_and_fails_on_a_regression(monkeypatch, capsys):
    monkeypatch.setattr(aot, "read_budget", lambda: None)
    assert aot.main(["--only", ONLY]) == 0
    out, err = capsys.readouterr()
    assert ONLY in out
    assert err.endswith("has no budget: only spills and tensor cores are checked\n")
    budget = json.loads(json.dumps(next(iter(BUDGETS.values()))))
    budget[ONLY]["registers"] = 1
    monkeypatch.setattr(aot, "read_budget", lambda: budget)
    assert aot.main(["--only", ONLY]) == 1
    assert "registers" in capsys.readouterr().err


def test_update_rewrites_the_budget(monkeypatch, tmp_path):
    path = tmp_path / aot._budget_path().name
    budget = next(iter(BUDGETS.values()))
    path.write_text(json.dumps({"configurations": budget | {ONLY: {}}}))
    monkeypatch.setattr(aot, "_budget_path", lambda: path)
    assert aot.main(["--only", ONLY, "--update"]) == 0
    written = json.loads(path.read_text())["configurations"]
    assert written.keys() == budget.keys()
    assert written[ONLY]["spills"] == 0
    assert aot.main(["--only", ONLY]) == 0


@pytest.mark.parametrize("one", CONFIGURATIONS, ids=lambda one: one.name)
def test_no_tile_exceeds_the_shared_memory_of_its_device(one):
    if "BLOCK_N" in one.launch.constants:
        constants = one.launch.constants
        tile = LabelTile(
            constants["BLOCK_N"],
            constants["BLOCK_C"],
            constants["BLOCK_D"],
            one.launch.num_warps,
            one.launch.num_stages,
        )
        itemsize = one.launch.arguments["x_ptr"].element_size()
        limit = {(8, 0): 163 * 1024, (9, 0): 227 * 1024}[one.capability]
        assert shared_bytes(tile, itemsize) <= limit
        assert all(budget[one.name]["shared_bytes"] <= limit for budget in BUDGETS.values())
