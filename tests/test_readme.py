"""The figures of the README are those of the committed results."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DEMO = json.loads((ROOT / "benchmarks/results/demo-cpu.json").read_text())


def test_the_table_is_that_of_the_demo():
    cells = {ipc: [] for ipc in ("1", "10")}
    for line in README.splitlines():
        row = re.match(r"\| (1|10) \| (.*) \|$", line)
        if row:
            cells[row[1]] = [cell.strip(" *") for cell in row[2].split("|")]
    for ipc, found in cells.items():
        mean, spread = DEMO["accuracy"], DEMO["spread"]
        key = f"ipc{ipc}"
        wanted = [
            *((mean[key][c], spread[key][c]) for c in ("hard", "hello", "teacher")),
            (mean["full"], spread["full"]),
        ]
        assert found == [f"{m:.1f} \u00b1 {s:.1f}" for m, s in wanted]


def test_the_bytes_are_those_of_the_demo():
    for name, fewest in (("ipc1", "up to {} epochs"), ("ipc10", "and {} at 10")):
        found = DEMO["bytes"][name]
        assert f"({found['payload']:,} bytes)" in README
        text = fewest.format(found["break_even_epochs"] - 1)
        assert text in " ".join(README.split())


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target
