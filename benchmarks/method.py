"""The method's own ablation, and fidelity per byte, on the user's images; resumable by cell.

    python benchmarks/method.py --data DIR --val DIR --base BASE --out RESULTS [--profile cpu]

Two tables, in the paper's order (arXiv 2408.08201):

* ablation: linear probe, + weak teachers, + low-rank encoder, + text start, + image update. Each
  row is a label function; a student is trained from its archive and measured on DIR of ``--val``.
  Controls beside it: hard labels on the same images, and random images with the same labels,
  without which a gain cannot be told from that of the images.
* curve: agreement and KL against payload bytes, for every rank and every storage. A fit serves all
  storages of its rank.

One JSON file per cell, named by the cell and by a digest of its settings: a killed run continues
with the next cell, a changed setting is another file, and nothing is ever averaged away. A cell
that fails is written down with its error. Every image is a mosaic of factor 2, since at factor 1
nothing was shrunk and there would be nothing to refine.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import torch

from hellofmt.archive import default_views
from hellofmt.distillation import (
    FitSettings,
    ProjectorSettings,
    RefineSettings,
    SelectSettings,
    Stages,
    digest_of,
    distill,
    fidelity_table,
    fitted_projector,
    maturity,
    read_image_folder,
    split_validation,
    train_trajectory,
)
from hellofmt.errors import HelloError
from hellofmt.projector import load_base
from hellofmt.student import build_student, evaluate, recipe, train_from_archive


@dataclass(frozen=True)
class Profile:
    """Everything that a machine's speed decides."""

    network: str
    teacher_epochs: int
    fit_epochs: int
    most_fit_steps: int
    batch_size: int
    learning_rate: float
    student_steps: int
    ipc: int
    rank: int
    ranks: tuple[int, ...]
    refine_steps: int
    seeds: tuple[int, ...] = (0,)


PROFILES = {
    "cpu": Profile("resnet10w32", 6, 3, 4000, 128, 3e-3, 500, 10, 16, (2, 4, 8, 16), 200),
    "gpu": Profile(
        "resnet18", 50, 50, 4000, 128, 1e-3, 3000, 10, 8, (2, 4, 8, 16, 32), 200, (0, 1, 2)
    ),
    "smoke": Profile("cnn", 1, 1, 2, 16, 3e-3, 2, 1, 2, (1, 2), 2),
}

# Each adds to the row before it, in the paper's order.
ABLATION = (
    "linear probe",
    "weak teachers",
    "low-rank encoder",
    "text start",
    "image update",
)


@dataclass
class Bench:
    """Data, teacher and where results go."""

    out: Path
    profile: Profile
    source: object
    val: object
    base: object
    views: object
    device: str

    def cell(self, name, settings, make):
        """Run a cell unless its file is there."""
        key = digest_of([asdict(self.profile), settings])[:12]
        path = self.out / f"{name.replace(' ', '-')}-{key}.json"
        if path.exists():
            return json.loads(path.read_text())
        start = time.monotonic()
        try:
            result = make()
        except HelloError as error:
            result = {"error": str(error)}
        document = {"cell": name, **result, "seconds": round(time.monotonic() - start, 1)}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=2) + "\n")
        temporary.replace(path)
        print(json.dumps(document), flush=True)
        return document

    def trajectory(self):
        train, held_out = split_validation(self.source)
        steps = max(1, self.profile.teacher_epochs * len(train) // self.profile.batch_size)
        return train_trajectory(
            train,
            self.views,
            self.out / "teacher",
            network=self.profile.network,
            steps=steps,
            held_out=held_out,
            batch_size=self.profile.batch_size,
            device=self.device,
        )

    def fit_settings(self):
        train = split_validation(self.source)[0]
        p = self.profile
        steps = min(p.fit_epochs * len(train) // p.batch_size, p.most_fit_steps)
        return FitSettings(
            steps=max(1, steps), batch_size=p.batch_size, learning_rate=p.learning_rate
        )

    def student(self, archive, seed, labels):
        """Top-1 of one student that saw nothing but the archive."""
        plan = recipe("hard" if labels == "hard" else "kl")
        count = len(self.source.classes)
        plan = replace(plan, batch_size=min(50, self.profile.ipc * count))
        network = build_student(self.profile.network, count, self.views.size, seed=seed)
        network.to(self.device)
        train_from_archive(
            network,
            archive,
            plan,
            steps=self.profile.student_steps,
            seed=seed,
            base=self.base,
            device=self.device,
        )
        return evaluate(network, self.val.pixels, self.val.labels, self.views)


def row_settings(bench, number):
    """Teacher, projector and images of ablation row ``number``."""
    has_weak, has_deltas, has_text, has_update = (number >= k for k in (1, 2, 3, 4))
    count = len(bench.source.classes)
    start = "text" if has_text and bench.base.has_text else "stored"
    fraction = maturity(bench.profile.ipc, count) if has_weak else None
    projector = ProjectorSettings(
        # No rule is no delta.
        targets="all" if has_deltas else (),
        rank=bench.profile.rank,
        start=start,
        # A start from text needs a change of its head, else the rows stay CLIP's.
        head_rank=min(64, count, bench.base.embed_dim) if start == "text" else None,
    )
    refine = RefineSettings(steps=bench.profile.refine_steps) if has_update else None
    return fraction, projector, refine


def run_row(bench, number, seed, *, random_images=False, labels="soft"):
    """One row of the ablation for one seed of the student."""
    fraction, projector, refine = row_settings(bench, number)
    trajectory = bench.trajectory()
    teacher = (trajectory.load(-1) if fraction is None else trajectory.pool(fraction)).to(
        bench.device
    )
    ipc = bench.profile.ipc
    select = SelectSettings(ipc, 2)
    if random_images:
        # As many candidates as are needed: nothing is left to choose.
        select = SelectSettings(ipc, 2, candidates=4 * ipc, crops=1, crop_scale=(1.0, 1.0))
    key = digest_of([asdict(bench.profile), number, random_images])[:12]
    path = bench.out / f"archive-{key}.hello"
    report = distill(
        bench.source,
        path,
        teacher=teacher,
        base=bench.base,
        views=bench.views,
        ipc=ipc,
        projector=projector,
        fit=bench.fit_settings(),
        select=select,
        refine=refine,
        storage="int8",
        work=bench.out / "work",
        force=True,
    )
    return {
        "student": round(bench.student(path, seed, labels), 2),
        "teacher": round(report.teacher_accuracy, 2),
        "projector": round(report.projector_accuracy, 2),
        "agreement": round(report.fidelity.agreement, 2),
        "kl": round(report.fidelity.kl, 4),
        "trained": report.trained,
        "bytes": path.stat().st_size,
        "refined": report.refined,
        "seed": seed,
    }


def run_curve(bench, rank):
    """Fidelity per byte of one rank: one fit, every storage."""
    train, held_out = split_validation(bench.source)
    teacher = bench.trajectory().load(-1).to(bench.device)
    projector, fidelity = fitted_projector(
        train,
        bench.views,
        teacher=teacher,
        base=bench.base,
        projector=ProjectorSettings(rank=rank, start="stored"),
        fit=bench.fit_settings(),
        held_out=held_out,
        stages=Stages(bench.out / "work"),
    )
    rows = fidelity_table(projector.cpu(), teacher.cpu(), held_out, bench.views)
    return {
        "rank": rank,
        "fit": asdict(fidelity),
        "storages": [
            {
                "storage": row.storage,
                "bytes": row.size_bytes,
                "agreement": round(row.fidelity.agreement, 2),
                "kl": round(row.fidelity.kl, 4),
            }
            for row in rows
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="training images, a folder per class")
    parser.add_argument("--val", required=True, help="images to measure students on")
    parser.add_argument("--base", required=True, help="as for `hello fit`")
    parser.add_argument("--out", required=True, type=Path, help="results, one JSON per cell")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="cpu")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = read_image_folder(args.data, args.size)
    val = read_image_folder(args.val, args.size, classes=[line.key for line in source.classes])
    views = msgspec.structs.replace(
        default_views(args.size), mix="cutmix", mix_alpha="1.0", mix_probability="0.5"
    )
    bench = Bench(
        args.out, PROFILES[args.profile], source, val, load_base(args.base), views, args.device
    )
    torch.manual_seed(0)
    data = digest_of([digest_of(source), digest_of(val), bench.base.spec, views])
    best = ABLATION.index("low-rank encoder")
    for seed in bench.profile.seeds:
        for number, name in enumerate(ABLATION):
            bench.cell(
                f"{number}-{name}-seed{seed}",
                [data, number, seed],
                lambda number=number, seed=seed: run_row(bench, number, seed),
            )
        bench.cell(
            f"control-hard-labels-seed{seed}",
            [data, "hard", seed],
            lambda seed=seed: run_row(bench, best, seed, labels="hard"),
        )
        bench.cell(
            f"control-random-images-seed{seed}",
            [data, "random", seed],
            lambda seed=seed: run_row(bench, best, seed, random_images=True),
        )
    for rank in bench.profile.ranks:
        bench.cell(f"curve-rank{rank}", [data, rank], lambda rank=rank: run_curve(bench, rank))


if __name__ == "__main__":
    main()
