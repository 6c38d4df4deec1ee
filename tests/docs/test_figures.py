"""The figures of README and documentation are those of the committed results."""

import importlib
import json
import re
import runpy
from pathlib import Path

import numpy as np

from hellofmt.ledger import PRECISIONS, plan
from hellofmt.ledger.towers import RESNET18_GFLOP
from hellofmt_cli.inspect_rows import percent

ROOT = Path(__file__).resolve().parents[2]
README, COSTS, DOCUMENTED = (
    (ROOT / page).read_text() for page in ("README.md", "docs/costs.md", "docs/evidence.md")
)
WORDS = " ".join((README + COSTS + DOCUMENTED).split())
EVIDENCE, SMALL = (
    json.loads((ROOT / f"benchmarks/results/evidence-{profile}.json").read_text())["cells"]
    for profile in ("public", "small")
)
DEMO = json.loads((ROOT / "benchmarks/results/demo-cpu.json").read_text())


def test_the_table_is_that_of_the_demo():
    cells = {ipc: [] for ipc in ("1", "10")}
    for line in DOCUMENTED.splitlines():
        row = re.match(r"\| (1|10) \| (.*) \|$", line)
        if row:
            cells[row[1]] = [cell.strip(" *") for cell in row[2].split("|")]
    for ipc, found in cells.items():
        mean, spread = DEMO["accuracy"], DEMO["spread"]
        key = f"ipc{ipc}"
        wanted = [
            *((mean[key][c], spread[key][c]) for c in ("hard", "random", "hello", "teacher")),
            (mean["full"], spread["full"]),
        ]
        assert found == [f"{m:.1f} \u00b1 {s:.1f}" for m, s in wanted]


def test_the_bytes_are_those_of_the_demo():
    for name, fewest in (("ipc1", "up to {} epochs"), ("ipc10", "and {} at 10")):
        found = DEMO["bytes"][name]
        assert f"({found['payload']:,} bytes)" in DOCUMENTED
        text = fewest.format(found["break_even_epochs"] - 1)
        assert text in WORDS


def test_the_table_of_bytes_is_that_of_the_plan():
    made = plan(1000, 50_000, 300)
    rows = re.findall(r"^\| (float32|float16|int8|int4) \| (.*) \|$", COSTS, re.MULTILINE)
    assert [name for name, _ in rows] == list(PRECISIONS)
    for (_, cells), ours in zip(rows, made.functions, strict=True):
        assert cells.split(" | ") == [
            f"{ours.values_bytes:,}",
            f"{ours.public:,}",
            percent(ours.public / made.stored),
            f"{ours.charged:,}",
            percent(ours.charged / made.stored),
        ]


def test_the_words_on_bytes_are_those_of_the_plan():
    made, small = plan(1000, 50_000, 300), plan(10, 100, 300)
    int8, int4 = made.functions[2:]
    least, most = plan(1000, 1000, 300).stored / 1e9, plan(1000, 200_000, 300).stored / 1e9
    shared = [f"{number:.1f}" for number in made.data_sets.values()]
    for text in (
        (
            f"{made.stored / 1e9:.0f} GB of float16 labels ({least:.1f} GB at 1 image per class, "
            f"{most:.0f} GB at 200)"
        ),
        f"its {made.values:,} values alone",
        f"{int8.adapter + int8.head:,} bytes in int8 and {int4.adapter + int4.head:,} in int4",
        (
            f"(ResNet-18 in int8: {made.teacher_parameters:,} bytes); {shared[0]} data sets that "
            f"share the base break even, {shared[1]} if each stores its text rows, {shared[2]} "
            "with the text tower"
        ),
        f"{made.tower.gflop:.2f} GFLOP a label",
        f"training step takes {3 * RESNET18_GFLOP:.1f}.",
        f"{small.stored:,} bytes of labels against {small.function.public:,}.",
    ):
        assert text in WORDS
    assert percent(int8.public / made.stored) == "0.00295 %"
    assert int8.charged > made.teacher_parameters
    assert small.stored < small.function.public


def test_the_tables_are_those_that_the_benchmarks_write(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    filled = runpy.run_path(str(ROOT / "benchmarks/readme.py"))["filled"]
    for page in ("README.md", "docs/costs.md", "docs/evidence.md"):
        text = (ROOT / page).read_text()
        assert filled(page, text) == text


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if target.startswith("repo:"):
                assert (ROOT / target.removeprefix("repo:")).exists(), (page.name, target)
            elif not target.startswith("https://") and "format" not in page.parts:
                there = (page.parent / target).resolve()
                assert there.exists(), (page.name, target)
                # Pages reach what is outside of the documentation as `repo:`, pictures apart.
                inside = page.name == "README.md" or there.is_relative_to(ROOT / "docs")
                inside |= there.suffix == ".png"
                assert inside, (page.name, target)


def scores_of(data, ipc, kind):
    start = f"{data}/rivals/ipc{ipc}/{kind}/seed"
    return np.array([cell["top1"] for name, cell in EVIDENCE.items() if name.startswith(start)])


def test_the_table_of_heavier_data_is_that_of_the_evidence():
    rows = re.findall(r"^\| (tiny100|cifar10|digits) \| (\d+) \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 9
    behind = []
    for data, ipc, cells in rows:
        scores = [scores_of(data, ipc, kind) for kind in ("hard", "hello", "teacher")]
        sizes = [
            EVIDENCE[f"{data}/rivals/ipc{ipc}/{kind}/seed0"]["label_bytes"]
            for kind in ("hello", "teacher")
        ]
        assert [cell.strip("*") for cell in cells.split(" | ")] == [
            *(f"{each.mean():.1f} \u00b1 {each.std(ddof=1):.1f}" for each in scores),
            *(f"{size:,}" for size in sizes),
        ]
        behind.append(abs(scores[1].mean() - scores[2].mean()))
    assert f"within {max(behind):.1f} points" in WORDS


def test_the_words_on_the_choice_of_images_are_those_of_the_evidence():
    chosen = {
        (data, ipc): scores_of(data, ipc, "hello")[:3].mean()
        for data in ("tiny100", "cifar10", "digits")
        for ipc in (1, 10, 50)
    }
    gains = {
        method: [mean - scores_of(*key, method).mean() for key, mean in chosen.items()]
        for method in ("random", "rded")
    }
    ahead = [gain for gain in gains["random"] if gain > 0.05]
    words = "at random in {} of {} rows, by {:.1f} to {:.1f} points in the mean"
    assert words.format(len(ahead), len(chosen), min(ahead), max(ahead)) in WORDS
    assert f"RDED's in all, by {min(gains['rded']):.1f} to {max(gains['rded']):.1f}." in WORDS


def test_the_words_on_lengths_are_those_of_the_evidence():
    longer = [EVIDENCE[f"tiny100/length/{steps}/seed0"]["top1"] for steps in (1200, 2400)]
    assert "1,200 steps give {:.1f} and 2,400 {:.1f} % (seed 0)".format(*longer) in WORDS


def test_the_words_on_the_function_itself_are_those_of_the_evidence():
    top1, fit = EVIDENCE["tiny100/teacher"]["top1"], EVIDENCE["tiny100/fit/main"]
    full, int8 = (
        next(row for row in fit["storages"] if row["storage"] == name)
        for name in ("float32", "int8")
    )
    assert (
        f"{int8['top1']:.1f} of {top1:.1f} % on tiny100, {100 * int8['top1'] / top1:.0f} %, in "
        f"{int8['bytes']:,} bytes of int8 ({full['top1']:.1f} % in float32)"
    ) in WORDS
    assert f"a teacher of {SMALL['tiny100/teacher']['top1']:.1f} %" in WORDS
    assert f"rank {fit['rank']}, {fit['epochs']:g} epochs" in WORDS
    assert int8["bytes"] < 1e6


def test_the_words_on_the_published_figure_are_those_of_the_evidence():
    cells = [SMALL[f"cifar10/rded/seed{seed}"] for seed in (1, 2, 3)]
    best, last = (np.mean([cell[key] for cell in cells]) for key in ("best", "top1"))
    teacher = SMALL["cifar10/rded/teacher"]
    assert f"{best:.1f} % (the last step {last:.1f} %)" in WORDS
    assert f"published are {cells[0]['published']} %" in WORDS
    assert f"teacher of {teacher['top1']:.1f} % after {teacher['epochs']:g} epochs" in WORDS


def test_the_words_on_pools_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page, found = (importlib.import_module(name) for name in ("pool_page", "found"))
    cells = json.loads(page.RESULT.read_text())["cells"]
    data = [found.Found(name, cells) for name in page.data_sets(cells)]
    low, high = sorted(page.added(each, "k32").mean for each in data)
    assert f"labels add {low:.0f} to {high:.0f} %" in WORDS
    assert min(page.added(each, "unlimited").mean for each in data) > 100
    lost = {each.name: -page.points(each, "k32").mean for each in data}
    assert lost["tiny100"] < 0.05
    assert f"lost nothing with 100 classes, {lost['cifar10']:.1f} points with 10" in WORDS
