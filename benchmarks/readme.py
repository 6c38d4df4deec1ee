"""Rewrite the tables of README and documentation from the committed result files and the ledger.

    python benchmarks/readme.py

Each table lies between ``<!-- table NAME -->`` and ``<!-- end NAME -->``. People write the text
around them; ``tests/docs/test_figures.py`` checks its figures against the same files.
"""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pool_page
from found import Found, claims
from tables import RESULTS, mean_text, table

from hellofmt.ledger import plan
from hellofmt_cli.demo_students import COLUMNS
from hellofmt_cli.inspect_rows import percent

ROOT = RESULTS.parents[1]
POOL_COLUMNS = ("test top-1 %", "seeds", "labels add %")


def demo():
    """Return the table of the demo's accuracies."""
    found = json.loads((RESULTS / "demo-cpu.json").read_text())
    mean, spread = found["accuracy"], found["spread"]
    rows = []
    for ipc in (1, 10):
        means, spreads = mean[f"ipc{ipc}"], spread[f"ipc{ipc}"]
        means, spreads = means | {"full": mean["full"]}, spreads | {"full": spread["full"]}
        scores = {k: f"{means[k]:.1f} ± {spreads[k]:.1f}" for k in COLUMNS}
        scores["hello"] = f"**{scores['hello']}**"
        rows.append({"images per class": ipc} | {COLUMNS[k]: scores[k] for k in COLUMNS})
    return table(rows, texts=0)


def weights():
    """Return the table of label function bytes for ImageNet-1K against stored labels."""
    made = plan(1000, 50_000, 300)
    return table(
        [
            {
                "values as": each.precision,
                "values alone": f"{each.values_bytes:,}",
                "base public": f"{each.public:,}",
                "of the labels": percent(each.public / made.stored),
                "base charged": f"{each.charged:,}",
                "charged, of the labels": percent(each.charged / made.stored),
            }
            for each in made.functions
        ],
        texts=1,
    )


def evidence():
    """Return the table of hard labels, ours and the teacher's, where the public profile has all."""
    cells = json.loads((RESULTS / "evidence-public.json").read_text())["cells"]
    rows = []
    for name, ipc, scores, sizes in claims(cells):
        hard, ours, teacher = (mean_text(each.values()) for each in scores)
        rows.append(
            {
                "data": name,
                "images per class": ipc,
                "hard labels": hard,
                "label function": f"**{ours}**",
                "teacher, online": teacher,
                "bytes of the label function": f"{sizes[0]:,}",
                "bytes of the teacher": f"{sizes[1]:,}",
            }
        )
    return table(rows, texts=1)


def ablation():
    """Return the table of the paper's ablation, one part after the other."""
    cells = json.loads((RESULTS / "evidence-small.json").read_text())["cells"]
    names = {
        "hard": "hard labels",
        "probe": "linear probe",
        "weak": "+ weak teachers",
        "low-rank": "+ low-rank encoder",
        "text": "+ text start",
        "refined": "+ image update",
        "teacher": "the weak teachers' own labels",
    }
    found = Found("tiny100", cells)

    def mean(prefix):
        return np.mean(list(found.seeds(prefix).values()))

    return table(
        [
            {"labels": name}
            | {f"{ipc} per class": f"{mean(f'ablation/ipc{ipc}/{row}'):.1f}" for ipc in (1, 10)}
            for row, name in names.items()
        ],
        texts=1,
    )


def pools():
    """Return the table of students with a pool of views, beside stored labels and hard ones."""
    cells = json.loads(pool_page.RESULT.read_text())["cells"]
    rows = []
    for name in pool_page.data_sets(cells):
        found = Found(name, cells)
        for row in (pool_page.row(found, arm) for arm in pool_page.ARMS if found.seeds(arm)):
            shown = {"data": name, "labels": row["labels"]}
            rows.append(shown | {k: v for k, v in row.items() if k in POOL_COLUMNS})
    return table(rows, texts=2)


TABLES = {
    "README.md": [evidence],
    "docs/costs.md": [weights, pools],
    "docs/evidence.md": [evidence, ablation, demo],
}


def filled(page, text):
    """Return the text of a page with its tables rewritten."""
    for make in TABLES[page]:
        begin, end = f"<!-- table {make.__name__} -->", f"<!-- end {make.__name__} -->"
        parts = re.split(f"({begin}|{end})", text)
        if parts[1::2] != [begin, end]:
            sys.exit(f"{page}: expected one `{begin}` and then one `{end}`")
        text = "".join([*parts[:2], f"\n{make()}\n", *parts[3:]])
    return text


if __name__ == "__main__":
    for page in TABLES:
        path = ROOT / page
        path.write_text(filled(page, path.read_text()))
