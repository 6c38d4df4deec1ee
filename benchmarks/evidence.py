"""Make every comparison that the paper's claim needs, cell by cell: ``make bench``.

    python benchmarks/evidence.py --data DIR [--data DIR ...] --base BASE [--profile NAME]

Each DIR holds ``train`` and ``val`` (or ``test``), each with a folder of images per class; digits
are always included. Suites, each a set of cells (``cells.py``):

* ``rivals``: hard labels, our label function, the teacher online (RDED), its float16 labels stored
  (SRe2L, FKD), its ten largest stored (TinyViT), those of a tenth of the epochs (LPQLD), the
  teacher in int8, a linear probe on the base, and random images with our labels. One student, one
  recipe, the same images (except for the last), the same views, the same number of steps; labels
  come from real files, whose bytes are counted.
* ``ablation``: the paper's own order on mosaics of factor 2; every row at one fit length.
* ``curve``: fidelity of the label function against its bytes, for every rank and storage.
* ``cross``: students of other families. ``continual``: classes that arrive in steps.
* ``sensitivity``: temperature, and the weight of the cross-entropy.
* ``rded``: RDED's published CIFAR-10 recipe with our selection.
* ``cost``: seconds, memory and arithmetic of each stage.

``report.py`` writes the tables and plots from the finished cells.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from cells import Cell, Cells, machine, run_workers
from found import LONG_RIVALS
from measures import cost_cell, fidelity_of, fit_cell, teacher_cell
from setting import FIT_TEMPERATURE, MEASURED_PARTS, PROFILES, read_setting
from sources import TOP_K, method_of, probe, select
from students import (
    ABLATION,
    RDED_BATCH,
    RDED_EPOCHS,
    RDED_SEEDS,
    ablation_cell,
    ablation_student,
    bytes_cell,
    continual_cell,
    rded_cell,
    rded_teacher,
    rival,
    select_cell,
    sensitivity_cell,
)

from hellofmt.distillation.selection import METHODS
from hellofmt.runs import digest_of

RIVALS = (
    "hard",
    "hello",
    "teacher",
    "stored",
    "topk",
    "pruned",
    "teacher-int8",
    "probe",
    "random",
)

# What is tried first, by the beginning of a cell's name: the claim itself, then what explains it.
# So a part of a run makes a whole page.
PUBLIC_ORDER = (
    "teacher",
    "fit/main",
    "select/coverage",
    "rivals/ipc10/h",
    "rivals/ipc10/teacher/",
    "select",
    "rivals/ipc10/r",
    "rivals/ipc10/balanced",
    "rivals/ipc1/h",
    "rivals/ipc1/teacher/",
    "rivals/ipc1/r",
    "rivals/ipc1/balanced",
    "rivals/ipc50/h",
    "rivals/ipc50/teacher/",
    "rivals/ipc50/r",
    "rivals/ipc50/balanced",
    "bytes",
    "rivals/ipc2/",
    "rivals/ipc5/",
    "rivals/ipc20/",
    "fit/probe",
    "rivals/ipc10/",
    "fidelity",
    "length",
    "rivals",
    "cost",
)
ORDER = (
    "teacher",
    "fit/main",
    "select",
    "fit/probe",
    "rivals/ipc10/h",
    "rivals/ipc10/teacher/",
    "rivals/ipc1/h",
    "rivals/ipc1/teacher/",
    "cost",
    "fidelity",
    "rivals/ipc50",
    "rded",
    "rivals",
    "cross",
    "continual",
    "sensitivity",
    "ablation/ipc10/",
    "curve",
    "ablation",
)

SUITES = ("rivals", "ablation", "curve", "cross", "continual", "sensitivity", "rded", "cost")
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
WEIGHTS = (0.0, 0.025, 0.1, 0.15, 0.5, 1.0)


def cells_of(setting, suites):
    """List the cells of one data set, needs first."""
    profile, found = setting.profile, []
    name = setting.name
    common = {
        "data": setting.digest,
        "base": digest_of(setting.base.spec)[:16],
        "mixed": profile.mixed,
    }
    sizes = {
        "teacher": [
            profile.teacher,
            profile.teacher_epochs,
            profile.teacher_rate,
            profile.batch_size,
            profile.teacher_views,
        ],
        "fit": [profile.rank, profile.fit_epochs, profile.fit_rate, profile.fit_batch],
    }
    if profile.views_per_image:
        common |= {"side": profile.side, "teacher": setting.teacher_digest}
        sizes["fit"].append(profile.targets)

    # More seeds narrow an interval that a page already has.
    more = tuple(f"seed{seed}" for seed in profile.more_seeds)

    def add(label, make, needs=(), **settings):
        heads = PUBLIC_ORDER if profile.views_per_image else ORDER
        order = next(i for i, head in enumerate(heads) if label.startswith(head))
        if profile.views_per_image and label.endswith(more):
            order = heads.index("rivals")
        found.append(
            Cell(
                f"{name}/{label}",
                {**common, **settings},
                make,
                tuple(f"{name}/{need}" for need in needs),
                order,
            )
        )

    add("teacher", partial(teacher_cell, setting), sizes=sizes["teacher"])
    add(
        "fit/main",
        partial(fit_cell, setting, setting.fitted_main, profile.fit_epochs, profile.rank),
        ("teacher",),
        sizes=[*sizes["fit"], profile.start, FIT_TEMPERATURE],
    )
    add(
        "fit/probe",
        partial(fit_cell, setting, partial(probe, setting), profile.probe_epochs, 0),
        ("teacher",),
        sizes=[profile.probe_epochs, profile.fit_rate, profile.fit_batch],
    )
    if profile.views_per_image:
        public_cells(setting, add)
        return found
    add(
        "select",
        lambda _: {
            "images": len(select(setting, max((10, *profile.ipcs, *profile.long_ipcs))).labels)
        },
        ("teacher",),
        candidates=profile.candidates,
    )
    fits = ("fit/main", "fit/probe", "select")
    run = {"steps": profile.steps, "batch": profile.student_batch, "rate": profile.student_rate}
    if "ablation" in suites and profile.ablation_epochs:
        most, ablation_run = max(profile.ipcs), dict(run)
        if profile.ablation_steps:
            ablation_run["steps"] = profile.ablation_steps
        for ipc in sorted(profile.ipcs, reverse=True):
            for row in ABLATION:
                # What shares a fit or a choice of images waits for the cell that makes it.
                needs = ["teacher"]
                if row != "probe":
                    needs.append(f"ablation/ipc{ipc}/probe")
                elif ipc != most:
                    needs.append(f"ablation/ipc{most}/probe")
                add(
                    f"ablation/ipc{ipc}/{row}",
                    partial(ablation_cell, setting, row, ipc),
                    tuple(needs),
                    epochs=profile.ablation_epochs,
                    probe=profile.probe_epochs,
                    rate=[profile.fit_rate, profile.fit_batch],
                    rank=profile.rank,
                    candidates=profile.candidates,
                )
            for row in (*ABLATION, "hard", "teacher"):
                source = "text" if row in {"hard", "teacher"} else row
                for seed in profile.seeds:
                    add(
                        f"ablation/ipc{ipc}/{row}/seed{seed}",
                        partial(ablation_student, setting, row, ipc, seed, ablation_run["steps"]),
                        (f"ablation/ipc{ipc}/{source}",),
                        student=profile.student,
                        **ablation_run,
                    )
    if "rivals" in suites:
        for kind in RIVALS:
            if kind != "random":
                add(
                    f"fidelity/{kind}",
                    partial(fidelity_of, setting, kind),
                    fits,
                    k=TOP_K,
                    views=profile.held_out_views,
                )
        plans = [(ipc, RIVALS) for ipc in profile.ipcs]
        plans += [(ipc, LONG_RIVALS) for ipc in profile.long_ipcs]
        for ipc, kinds in plans:
            for seed in (*profile.seeds, *profile.more_seeds):
                for kind in kinds if seed in profile.seeds else LONG_RIVALS:
                    add(
                        f"rivals/ipc{ipc}/{kind}/seed{seed}",
                        partial(rival, setting, kind, ipc, seed, profile.student, profile.steps),
                        fits,
                        student=profile.student,
                        **run,
                    )
    if "cross" in suites:
        for network in profile.cross:
            for kind in LONG_RIVALS:
                add(
                    f"cross/{network}/{kind}",
                    partial(rival, setting, kind, max(profile.ipcs), 0, network, profile.steps),
                    fits,
                    **run,
                )
    if "curve" in suites:
        for rank in profile.ranks:
            make = partial(
                setting.fitted, setting.projector_settings(rank=rank), profile.curve_epochs
            )
            add(
                f"curve/rank{rank}",
                partial(fit_cell, setting, make, profile.curve_epochs, rank),
                ("teacher",),
                epochs=profile.curve_epochs,
                rate=[profile.fit_rate, profile.fit_batch],
            )
    if "continual" in suites:
        for step in range(profile.continual_steps):
            for kind in LONG_RIVALS:
                add(
                    f"continual/step{step}/{kind}",
                    partial(continual_cell, setting, kind, step, 0),
                    fits,
                    of=profile.continual_steps,
                    student=profile.student,
                    **run,
                )
    if "sensitivity" in suites and profile.sensitivity:
        knobs = [("temperature", value) for value in TEMPERATURES]
        knobs += [("beta", value) for value in WEIGHTS]
        for knob, value in knobs:
            for seed in profile.seeds:
                add(
                    f"sensitivity/{knob}-{value:g}/seed{seed}",
                    partial(sensitivity_cell, setting, knob, value, seed),
                    fits,
                    student=profile.student,
                    **run,
                )
    if "rded" in suites and profile.rded_epochs and setting.name.startswith("cifar10"):
        epochs = profile.rded_epochs
        add("rded/teacher", partial(rded_teacher, setting, epochs), epochs=epochs, crop="0.6")
        # Seed 0 would start from the weights that the teacher started from.
        for seed in RDED_SEEDS:
            add(
                f"rded/seed{seed}",
                partial(rded_cell, setting, seed),
                ("rded/teacher",),
                batch=RDED_BATCH,
                epochs=RDED_EPOCHS,
            )
    if "cost" in suites:
        add("cost", partial(cost_cell, setting), fits)
    return found


def public_cells(setting, add):
    """Add the cells of a profile whose runs share their views."""
    profile = setting.profile
    run = {
        "student": profile.student,
        "batch": profile.student_batch,
        "rate": profile.student_rate,
        "recipe": profile.recipe,
        "temperature": profile.temperature,
        "views": profile.views_per_image,
        "bfloat16": setting.bfloat16,
    }
    # Named where it differs, so that cells with mixing in half of the views keep their names.
    if profile.mix_probability != "0.5":
        run["mix_probability"] = profile.mix_probability
    for method in METHODS:
        add(
            f"select/{method}",
            partial(select_cell, setting, method),
            ("fit/main",),
            candidates=profile.candidates,
        )

    def students(ipc, kinds, more=()):
        for kind in kinds:
            method = method_of(setting, kind, ipc)
            for seed in profile.seeds + (more if kind in {"hello", "teacher"} else ()):
                add(
                    f"rivals/ipc{ipc}/{kind}/seed{seed}",
                    partial(rival, setting, kind, ipc, seed, profile.student, profile.steps),
                    (f"select/{method}", "fit/probe" if kind == "probe" else "fit/main"),
                    **run,
                    steps=profile.steps,
                )

    for ipc in profile.ipcs:
        others = [method for method in METHODS if method != method_of(setting, "hello", ipc)]
        kinds = [kind for kind in RIVALS if kind not in {"pruned", "random"}]
        students(ipc, [*kinds, *others], profile.more_seeds)
    for ipc in profile.curve_ipcs:
        students(ipc, ["hello"])
    for kind in ("hard", "hello", "teacher", "teacher-int8", "topk", "probe"):
        add(
            f"fidelity/{kind}",
            partial(fidelity_of, setting, kind),
            ("fit/probe" if kind == "probe" else "fit/main",),
            k=TOP_K,
            views=profile.held_out_views,
        )
    for budget in profile.budgets:
        for seed in profile.seeds:
            add(
                f"bytes/{budget}/seed{seed}",
                partial(bytes_cell, setting, budget, seed),
                (f"select/{method_of(setting, 'hello', 10)}", "fit/main"),
                **run,
                steps=profile.steps,
            )
    for steps in profile.lengths:
        add(
            f"length/{steps}/seed0",
            partial(rival, setting, "hello", 10, 0, profile.student, steps),
            (f"select/{method_of(setting, 'hello', 10)}", "fit/main"),
            **run,
            steps=steps,
        )
    add("cost", partial(cost_cell, setting), ("fit/main",))


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", default=[], help="folder with train and val")
    parser.add_argument("--base", default="", help="as for `hello fit`")
    parser.add_argument("--teacher", default="", help="weights that `public` tunes")
    parser.add_argument("--bfloat16", action="store_true", help="students and our labels")
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"), help="cells and work")
    parser.add_argument("--profile", default="small", choices=tuple(PROFILES))
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--only", default="", help="only cells whose name holds this, and needs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a thread each")
    parser.add_argument("--no-digits", action="store_true")
    parser.add_argument("--resume", type=Path, help="take over finished cells of a results file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    unknown = set(args.suites.split(",")) - set(SUITES)
    if unknown:
        parser.error(f"--suites: unknown {sorted(unknown)[0]}; expected {', '.join(SUITES)}")
    for data in map(Path, args.data):
        if not (data / "train").is_dir() or not any((data / p).is_dir() for p in MEASURED_PARTS):
            parser.error(f"--data: expected a folder with train and val or test, got {data}")
    if args.resume is not None and not args.resume.is_file():
        parser.error(f"--resume: no file {args.resume}")
    if args.data and not args.base:
        parser.error("--base: expected one for --data")
    return args


def all_cells(args):
    """List the cells of every data set in the order in which they are tried."""
    found = []
    for data in [*args.data, *([] if args.no_digits else [None])]:
        setting = read_setting(
            data,
            args.base,
            args.profile,
            args.out / "work",
            args.device,
            teacher=args.teacher,
            bfloat16=args.bfloat16,
        )
        found += cells_of(setting, args.suites.split(","))
    if args.only:
        by_name = {cell.name: cell for cell in found}
        wanted = [cell.name for cell in found if args.only in cell.name]
        for name in wanted:
            wanted += [need for need in by_name[name].needs if need not in wanted]
        found = [cell for cell in found if cell.name in wanted]
    cells = Cells(args.out / "cells" / args.profile, found, machine(args.device))
    if args.resume is not None:
        cells.adopt(json.loads(args.resume.read_text())["cells"])
    return cells


def main():
    args = arguments()
    if args.worker:
        torch.set_num_threads(1 if args.jobs > 1 else torch.get_num_threads())
        all_cells(args).work(lambda text: print(text, flush=True))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    sys.exit(run_workers(command, args.jobs))


if __name__ == "__main__":
    main()
