"""Committed result pages are those of the committed result files."""

import importlib.util
import json
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


def test_the_page_is_that_of_the_results_file(report):
    document = json.loads((RESULTS / "evidence-cpu.json").read_text())
    assert report.page(document, "cpu") == (RESULTS / "README.md").read_text()


def test_every_plot_of_the_page_is_there(report):
    text = (RESULTS / "README.md").read_text()
    named = [part.split(")")[0] for part in text.split("](")[1:]]
    assert named
    assert [name for name in named if not (RESULTS / name).is_file()] == []


def test_every_cell_carries_what_made_it():
    document = json.loads((RESULTS / "evidence-cpu.json").read_text())
    assert {"torch", "device", "cores"} <= document["machine"].keys()
    for name, cell in document["cells"].items():
        assert {"seconds", "settings", "key"} <= cell.keys(), name


def test_a_mean_and_its_spread(report):
    assert str(report.Mean((1.0, 2.0, 4.0))) == "2.3 \u00b1 1.5"
    assert str(report.Mean(())) == "not run"


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
    row = report.label_row(report.Found("d", cells), 1, "teacher", 2)
    assert row[3] == "4 B"
