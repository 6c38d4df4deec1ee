"""Committed result pages are those of the committed result files."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks/report.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "report", module)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("cells", None)


PROFILES = sorted(path.stem.split("-", 1)[1] for path in RESULTS.glob("evidence-*.json"))


#: Scripts whose module makes a page of times, and the results that they wrote.
PAGES = {
    "archive": ("archive-cpu", "archive-codecs-cpu", "pack-cpu", "startup-cpu"),
    "bfloat16": ("bfloat16-cpu",),
    "kernels": ("kernels-cpu",),
    "loading": ("loading-cpu",),
    "making": ("making-cpu",),
    "making_runs": ("making-runs-cpu",),
    "step": ("step-cpu",),
    "streaming": ("streaming-cpu",),
}


@pytest.mark.parametrize("script", PAGES)
def test_a_page_of_times_is_that_of_its_results_file(script, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    # By its path: `kernels` is also the name of a folder at the root.
    page = runpy.run_path(str(ROOT / f"benchmarks/{script}.py"))["page"]
    for name in PAGES[script]:
        document = json.loads((RESULTS / f"{name}.json").read_text())
        assert page(document) == (RESULTS / f"{name}.md").read_text(), name


@pytest.mark.parametrize("profile", PROFILES)
def test_the_page_is_that_of_the_results_file(report, profile):
    document = json.loads((RESULTS / f"evidence-{profile}.json").read_text())
    page = (RESULTS / report.page_name(profile)).read_text()
    assert report.page(document, profile) == page


@pytest.mark.parametrize("profile", PROFILES)
def test_every_plot_of_the_page_is_there(report, profile):
    text = (RESULTS / report.page_name(profile)).read_text()
    named = [part.split(")")[0] for part in text.split("](")[1:]]
    # A page of tables alone links to nothing.
    assert named or profile != "small"
    assert [name for name in named if not (RESULTS / name).is_file()] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_every_cell_carries_what_made_it(profile):
    document = json.loads((RESULTS / f"evidence-{profile}.json").read_text())
    assert {"torch", "device", "cores"} <= document["machine"].keys()
    for name, cell in document["cells"].items():
        assert {"seconds", "settings", "key"} <= cell.keys(), name


def test_a_mean_and_its_spread(report):
    assert report.mean_text((1.0, 2.0, 4.0)) == "2.3 \u00b1 1.5"
    assert report.mean_text(()) == "not run"


def test_a_paired_difference_with_its_interval(report):
    # Differences 1, 2, 3: mean 2, standard deviation 1, t = 4.303 at two degrees of freedom.
    mean, half = report.paired({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert mean == 2.0
    assert half == pytest.approx(4.303 / 3**0.5)


def test_sources_whose_names_begin_alike_are_not_mixed_up(report):
    cells = {
        f"d/rivals/ipc1/{kind}/seed0": {"top1": 1.0, "seed": 0, "label_bytes": size}
        for kind, size in (("teacher-int8", 1), ("teacher", 4))
    }
    for cell in cells.values():
        cell["train_seconds"] = 1.0
    row = report.label_row(report.Found("d", cells), 1, "teacher")
    assert row["label bytes"] == "4 B"


def test_a_teacher_trained_again_leaves_no_cell_of_the_earlier_one(report):
    earlier = {"a/teacher": {"key": "1"}, "a/fit": {"key": "1"}, "b/teacher": {"key": "1"}}
    new = {"a/teacher": {"key": "2"}, "a/cost": {"key": "2"}}
    assert report.joined(earlier, new) == {**new, "b/teacher": {"key": "1"}}
    assert report.joined(earlier, {"a/cost": {"key": "2"}}).keys() == {*earlier, "a/cost"}


def test_a_cell_that_names_its_machine_is_not_said_to_be_of_another(report):
    old = {"device": "A", "cores": 2, "torch": "1", "python": "3"}
    cells = {"x": {"machine": {**old, "device": "B"}}, "y": {}}
    line = report.made_on(cells, {"machine": old})
    assert line == "Run on: A, 2 cores, torch 1, Python 3; B, 2 cores, torch 1, Python 3."


@pytest.fixture
def pool_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("pool_page")


def test_the_page_of_pools_is_that_of_its_results_file(pool_page):
    document = json.loads(pool_page.RESULT.read_text())
    assert pool_page.page(document) == pool_page.RESULT.with_suffix(".md").read_text()
    for name in pool_page.data_sets(document["cells"]):
        assert (RESULTS / f"{pool_page.plot_name(name)}.png").is_file()


def test_the_number_of_views_is_chosen_on_validation_images_of_every_data_set(pool_page):
    # One view is far behind on `b`, and four are behind by half a point; tests say the opposite.
    behind = {"a": {"k1": 0.1, "k4": 0.4, "k16": 0.0}, "b": {"k1": 2.0, "k4": 0.5, "k16": 0.0}}
    cells = {
        f"{name}/{arm}/seed{seed}": {
            "seed": seed,
            "top1": 9 * less,
            "validation": 40 + seed - less,
            "cpu_seconds": 10.0,
            "label_seconds": 2.0 if arm == "k16" else 1.0,
        }
        for name, arms in behind.items()
        for arm, less in {**arms, "unlimited": 0.0}.items()
        for seed in (0, 1)
    }
    assert pool_page.chosen(cells) == ("k4", True)
    cells["b/k4/seed1"]["validation"] -= 0.1
    assert pool_page.chosen(cells) == ("k16", True)
    # Where none is near, labels that add a quarter to all else cost too much, and a ninth does not.
    cells["b/k16/seed1"]["validation"] -= 2.0
    assert pool_page.chosen(cells) == ("k4", False)
    del cells["a/k4/seed0"], cells["a/k4/seed1"]
    assert pool_page.chosen(cells) == ("k1", False)


def public_cells(**scores):
    """Cells of one data set at 10 per class: top-1 of seed 0 by label source or choice."""
    settings = {"views": 2, "bfloat16": True}
    shared = {"method": "coverage", "steps": 9, "settings": settings, "seconds": 3600.0}
    return {
        f"d/rivals/ipc10/{kind.replace('_', '-')}/seed{seed}": {
            "top1": top1 + seed,
            "seed": seed,
            "label_bytes": 1000 if kind == "hello" else 100,
            "image_bytes": 5000,
            **shared,
        }
        for kind, top1 in scores.items()
        for seed in (0, 1, 2)
    }


def test_the_public_page_names_every_comparison_that_is_not_won(report):
    cells = public_cells(hard=5.0, hello=20.0, teacher=20.0, probe=25.0, random=20.0, topk=22.0)
    machine = {"device": "A", "cores": 2, "torch": "1", "python": "3"}
    text = report.page(
        {"cells": cells, "planned": [*cells, "d/cost"], "machine": machine}, "public"
    )
    _, lost = text.split("## Where it loses or ties")
    assert "loses to *linear probe on the base*, -5.0 (-5.0 to -5.0) points" in lost
    assert "loses to *stored, top 10 (TinyViT)*, -2.0" in lost
    assert "no better" not in lost.split("- d, 10 per class: loses to *stored")[0]
    assert "fewer bytes of labels have teacher, online (RDED), stored, top 10 (TinyViT)." in lost
    assert "| d | 10 | 6.0 ± 1.0 | 21.0 ± 1.0 | 21.0 ± 1.0 | +0.0 (+0.0 to +0.0) |" in text
    # The default choice is that of the label function's own cells.
    assert "| 21.0 ± 1.0 | not run | **21.0 ± 1.0** | not run | +0.0 (+0.0 to +0.0) |" in text
    assert "| d | PNG, 10 per class | 6 kB | 21.0 ± 1.0 |" in text
    assert "d/cost: 1 cells" in lost
