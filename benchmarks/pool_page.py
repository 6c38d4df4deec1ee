"""Write the page and the plots of ``pool.py``, a pure function of its results file."""

from __future__ import annotations

from collections import Counter

import numpy as np
from figures import axes, legend_below, save, style, ticks_along
from found import STORED_EPOCHS, Found
from tables import NONE, RESULTS, bytes_text, mean_text, paired, table

RESULT = RESULTS / "pool-cpu.json"
# The goals: points behind a new view every time, and processor time of a run on hard labels.
POINTS, TIMES = 0.5, 1.15
# Name and views per image; 0 of hard labels, which do not depend on it.
ARMS = {
    "hard": ("hard labels", 0),
    "k1": ("pool of 1 view", 1),
    "k4": ("pool of 4 views", 4),
    "k16": ("pool of 16 views", 16),
    "k32": ("pool of 32 views", 32),
    "k64-bfloat16": ("pool of 64 views, labels in bfloat16", 64),
    "unlimited": ("a new view every time", STORED_EPOCHS),
    "stored": ("stored, float16 (FKD)", STORED_EPOCHS),
    "pruned": ("stored, top 10 of a tenth (LPQLD)", STORED_EPOCHS // 10),
}
POOLS = [arm for arm in ARMS if arm.startswith("k")]
BFLOAT16 = [arm for arm in POOLS if arm.endswith("bfloat16")]


def data_sets(cells):
    """Return the data sets that have a finished student."""
    return sorted({name.split("/")[0] for name, cell in cells.items() if "top1" in cell})


def points(found, arm, part="top1"):
    """Return the points of an arm above a new view every time, paired over seeds."""
    return paired(found.seeds(arm, part), found.seeds("unlimited", part))


def times(found, arm):
    """Return how many times the processor seconds of hard labels an arm took."""
    hard, seconds = (found.seeds(name, "cpu_seconds") for name in ("hard", arm))
    ratio = {seed: seconds[seed] / hard[seed] for seed in hard.keys() & seconds.keys()}
    return paired(ratio, dict.fromkeys(ratio, 0.0))


def added(found, arm):
    """Return what labels add to all else of the same runs, in percent of it."""
    seconds, labels = (found.seeds(arm, f"{part}_seconds") for part in ("cpu", "label"))
    share = {seed: 100 * labels[seed] / (seconds[seed] - labels[seed]) for seed in labels}
    return paired(share, dict.fromkeys(share, 0.0))


def chosen(cells):
    """Return the pool to use, and whether its students are near those of a new view every time.

    It is the least K, of labels in float32, whose students are within the goal on the validation
    images of every data set; if there is none, the largest whose labels add no more than the other
    goal. None without cells.
    """
    found = [Found(name, cells) for name in data_sets(cells)]
    pools = [
        arm
        for arm in POOLS
        if arm not in BFLOAT16 and found and all(points(each, arm) for each in found)
    ]
    for arm in pools:
        if all(points(each, arm, "validation").mean >= -POINTS for each in found):
            return arm, True
    cheap = [
        arm for arm in pools if all(added(each, arm).mean <= 100 * (TIMES - 1) for each in found)
    ]
    return (cheap[-1] if cheap else None), False


def row(found, arm):
    one, classes = found.first(f"{arm}/"), found.get("functions")["classes"]
    name, views = ARMS[arm]
    kept = one["label_bytes"]
    if arm in POOLS:
        kept = 2 * views * classes * one["steps"] * one["batch"] // STORED_EPOCHS
    seconds, labels = (
        float(np.mean(list(found.seeds(arm, f"{part}_seconds").values())))
        for part in ("cpu", "label")
    )
    difference, ratio = points(found, arm), times(found, arm)
    return {
        "labels": name,
        "test top-1 %": mean_text(found.seeds(arm).values()),
        "points against a new view every time (95 %)": difference.text()
        if difference and arm != "unlimited"
        else NONE,
        "validation top-1 %": mean_text(found.seeds(arm, "validation").values()),
        "seeds": len(found.seeds(arm)),
        "s for labels": f"{labels:.1f}",
        "s for all else": f"{seconds - labels:.1f}",
        "labels add %": f"{added(found, arm).mean:.1f}",
        "whole run, times hard labels (95 %)": ratio.text(".2f")
        if ratio and arm != "hard"
        else NONE,
        "labels kept": bytes_text(kept),
    }


def verdict(cells):
    arm, is_near = chosen(cells)
    if arm is None:
        return "No pool is measured on every data set."
    goal = f"within {POINTS} point of those with a new view every time"
    if is_near:
        first = f"On validation images, **{ARMS[arm][1]}** is the least K whose students are {goal}"
    else:
        first = (
            f"On validation images, students of no pool measured are {goal} on every data set. "
            f"**{ARMS[arm][1]}** is the largest K whose labels add at most "
            f"{100 * (TIMES - 1):.0f} % to all else"
        )
    lines = [f"{first}, in the mean. On test images:\n"]
    for name in data_sets(cells):
        found = Found(name, cells)
        lines += [
            f"- {name}, {ARMS[each][0]}: {against_goal(found, each, difference)}"
            for each in (arm, *BFLOAT16)
            if (difference := points(found, each))
        ]
    return "\n".join(lines)


def against_goal(found, arm, difference):
    more = added(found, arm)
    is_met = difference.mean >= -POINTS and more.mean <= 100 * (TIMES - 1)
    return (
        f"{difference.text()} points; labels add {more.text('.1f')} % to all else of the same "
        f"runs, those of hard labels {added(found, 'hard').mean:.1f} % (goal {-POINTS} points at "
        f"{100 * (TIMES - 1):.0f} %: {'reached in the mean' if is_met else '**missed**'})."
    )


def page(document):
    cells, facts = document["cells"], document["machine"]
    parts = [
        f"""# A pool of views

`{document["command"]}`:
{facts["device"]}, one thread of {facts["cores"]} cores that many other programs shared.
Python {facts["python"]}, torch {facts["torch"]}, hellofmt {facts["hellofmt"]}.

A student need not see a new view in every epoch. With a pool, epoch e shows view e mod K of an
image, and each view is labelled once. {STORED_EPOCHS} epochs; one student, recipe, order and number
of steps in every row; views as in [the other tables](README.md). Pools and "a new view every time"
take the labels of one label function, the stored rows those of its teacher. Mean ± standard
deviation over seeds; intervals are paired over the seeds of both (Student's t).

Seconds are processor seconds of a whole training, the labeler's start included, without what it
took to store labels. "Labels add" compares labels with all else of the same run, which the load of
the machine slows alike; "times hard labels" compares with another run of the same seed, so its
interval is mostly that of the load. K is chosen on validation images cut from the training part, of
which teacher, label function and distilled images know nothing; test images choose nothing.

{verdict(cells)}
"""
    ]
    for name in data_sets(cells):
        found = Found(name, cells)
        functions, one = found.get("functions"), found.first("hard/")
        run = f"{one['student']}, {one['steps']} steps of {one['batch']}"
        images = one["steps"] * one["batch"] // STORED_EPOCHS
        rows = [row(found, arm) for arm in ARMS if found.first(f"{arm}/")]
        parts.append(
            f"""## {name}

{images // functions["classes"]} per class; {run}.
The teacher reaches {functions["teacher"]:.1f} % on the test images, the label function
{functions["function"]:.1f} %; {functions["validation"]:,} validation images.

{table(rows, texts=1)}

![students of {name} by views per image and by seconds]({plot_name(name)}.png)
"""
        )
    missing = Counter(n.rsplit("/", 1)[0] for n in document["planned"] if n not in cells)
    if missing:
        listed = ", ".join(f"{name}: {count} seeds" for name, count in missing.items())
        parts.append(f"## Not run yet\n\nThe command goes on with them. {listed}.\n")
    failed = {name: cell["error"] for name, cell in cells.items() if "error" in cell}
    if failed:
        listed = "\n".join(f"- `{name}`: {error}" for name, error in failed.items())
        parts.append(f"## Cells that failed\n\n{listed}\n")
    return "\n".join(parts)


def plot_name(data):
    return f"pool-{data}-cpu"


def plot(found):
    """Draw accuracy against views per image, and against seconds."""
    figure, (upper, lower) = axes(2)

    def spread(arms, kind, label, **changes):
        """Draw arms on both axes, joined by a line if there are several."""
        scores = [list(found.seeds(arm).values()) for arm in arms]
        means = [np.mean(each) for each in scores]
        deviations = [np.std(each, ddof=1) if len(each) > 1 else 0 for each in scores]
        seconds = [np.mean(list(found.seeds(arm, "cpu_seconds").values())) for arm in arms]
        line = "-" if len(arms) > 1 else "--" if kind == "hard" else ""
        how = {"ls": line, "label": label, **style(kind), **changes}
        lower.errorbar(seconds, means, deviations, **how)
        views = [ARMS[arm][1] for arm in arms]
        if all(views):
            upper.errorbar(views, means, deviations, **how)
        else:
            for axis in (upper, lower):
                axis.axhline(means[0], color=how["color"], ls=line)
        for arm, second, mean in zip(arms, seconds, means, strict=True):
            if arm in POOLS:
                place = {"xytext": (3, -9), "textcoords": "offset points", "fontsize": 8}
                lower.annotate(ARMS[arm][1], (second, mean), color=how["color"], **place)

    every = [arm for arm in ARMS if found.seeds(arm)]
    for arm in every:
        if arm not in (*POOLS, "unlimited"):
            spread([arm], arm, ARMS[arm][0])
    pools = [arm for arm in POOLS if arm in every and arm not in BFLOAT16]
    spread(pools, "hello", "label function, a pool of so many views")
    for arm in set(every) & set(BFLOAT16):
        name = f"label function, {ARMS[arm][0]}"
        spread([arm], "hello", name, marker="D", markerfacecolor="none")
    if "unlimited" in every:
        name = "label function, a new view every time"
        spread(["unlimited"], "hello", name, marker="*", markersize=12)
    kept = [ARMS[arm][1] for arm in (*POOLS, "unlimited")]
    ticks_along(upper, kept, f"views per image ({STORED_EPOCHS}: a new one in every epoch)")
    for axis in (upper, lower):
        axis.set_ylabel("student's top-1 on test images, %")
    lower.set_xlabel("processor seconds of the whole training")
    legend_below(figure)
    figure.suptitle(f"{found.name}: mean ± standard deviation over seeds")
    return figure


def write_page(document):
    RESULT.with_suffix(".md").write_text(page(document))
    for name in data_sets(document["cells"]):
        save(plot(Found(name, document["cells"])), plot_name(name))
