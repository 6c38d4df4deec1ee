"""Measure teachers and label functions themselves: accuracy, bytes, fidelity, cost."""

from __future__ import annotations

import numpy as np
import torch
from setting import DIGITS
from sources import FORMS, TOP_K, archive_of, kept, label_files, probe

import hellofmt
from hellofmt.loading import HelloDataset, normalise, write_labels
from hellofmt.making import ViewBatches
from hellofmt.projector import stored_labelers
from hellofmt.student import build_student
from hellofmt.teacher import label_source, teacher_accuracy


def teacher_cell(setting, _):
    trajectory = setting.trajectory
    teacher = setting.teacher
    return {
        "network": setting.profile.teacher,
        "side": setting.profile.side or setting.size,
        "classes": len(setting.train.classes),
        "images": [len(setting.split[0]), len(setting.split[1]), len(setting.test)],
        "parameters": sum(p.numel() for p in teacher.network.parameters()),
        "steps": setting.steps(setting.profile.teacher_epochs, setting.profile.batch_size),
        "epochs": setting.profile.teacher_epochs,
        "validation": [round(c.accuracy, 2) for c in trajectory.checkpoints],
        "top1": round(teacher_accuracy(teacher, setting.test, setting.size), 2),
    }


def fit_cell(setting, make, epochs, rank, _):
    projector, fidelity = make()
    rows = []
    for storage, size, labeler in stored_labelers(
        projector, ("float32", "float16", "int8", "int4")
    ):
        rows.append(
            {
                "storage": storage,
                "bytes": size,
                "top1": round(teacher_accuracy(labeler.logits, setting.test, setting.size), 2),
                "fidelity": held_out_fidelity(setting, labeler.logits),
            }
        )
    return {
        "rank": rank,
        "trained": projector.trained_count(),
        # Of a public base in float16; one whose head starts from text needs its text tower too.
        "base_bytes": 0 if setting.name == DIGITS else base_bytes(setting),
        "epochs": epochs,
        "steps": setting.steps(epochs, setting.profile.fit_batch),
        "validation_agreement": round(fidelity.agreement, 2),
        "validation_kl_t1": round(fidelity.kl, 4),
        "top1": round(teacher_accuracy(projector.eval(), setting.test, setting.size), 2),
        "storages": rows,
    }


def base_bytes(setting):
    """Return the bytes of the whole public model, text tower included, at 2 bytes a parameter."""
    if setting.profile.side:
        return 2 * sum(p.numel() for p in setting.base.visual.parameters())
    import open_clip

    name, tag = setting.base_text, None
    if name.startswith("open_clip:"):
        _, name, tag = name.split(":")
    model = open_clip.create_model(name, pretrained=tag, load_weights=False)
    return 2 * sum(p.numel() for p in model.parameters())


def held_out_fidelity(setting, logits, teacher=None):
    """Measure agreement and KL at T on augmented views of the validation part."""
    held_out, views = setting.split[1], setting.views
    teacher = setting.teacher if teacher is None else teacher
    batches = ViewBatches(held_out, views, 250, seed=1)
    wanted, got = [], []
    with torch.inference_mode():
        for k in range(-(-len(held_out) * setting.profile.held_out_views // 250)):
            batch = batches.batch(k).views
            wanted.append(torch.softmax(teacher(batch) / setting.profile.temperature, 1))
            got.append(torch.softmax(logits(batch) / setting.profile.temperature, 1))
    return compare(torch.cat(wanted), torch.cat(got))


class _Pictures(torch.utils.data.Dataset):
    """Held-out images as PIL, which an archive without images labels."""

    def __init__(self, images):
        self._images = images
        self.targets = images.labels.tolist()

    def __len__(self):
        return len(self._images)

    def __getitem__(self, row):
        from PIL import Image

        return Image.fromarray(self._images.pixels[row]), self.targets[row]


def compare(wanted, labels):
    """Return agreement in percent and mean KL(teacher ‖ labels) in nats, both at the labels' T."""
    wanted, labels = wanted.double(), labels.double()
    same = (wanted.argmax(1) == labels.argmax(1)).double().mean()
    log_q = labels.clamp(min=1e-12).log()
    kl = (wanted * (wanted.clamp(min=1e-300).log() - log_q)).sum(1).mean()
    return {"agreement": round(100 * float(same), 2), "kl": round(float(kl), 6)}


def fidelity_of(setting, kind, _):
    """Compare all sources' labels on the same augmented views of images used in no fit."""
    held_out, views = setting.split[1], setting.profile.held_out_views
    pictures = _Pictures(held_out)
    projector = probe(setting)[0] if kind == "probe" else setting.fitted_main()[0]
    name = "probe" if kind == "probe" else "main"
    path = archive_of(setting, f"labels-only-{name}", projector, None)
    shared = {"images": pictures, "seed": 1, "base": setting.base_argument}
    teacher = {"label_function": setting.teacher, "temperature": setting.profile.temperature}
    reference = HelloDataset(path, **shared, **teacher)
    rows = np.arange(len(held_out))
    wanted, got = [], []
    given, files = {}, None
    if kind in FORMS:
        files = setting.folder / "labels" / f"held-out-{kind}"
        k = min(TOP_K, len(setting.train.classes))
        kept(
            files,
            lambda to: write_labels(
                reference, to, epochs=setting.profile.held_out_views, form=FORMS[kind], k=k
            ),
        )
        given = {"stored": files}
    elif kind in {"teacher", "teacher-int8"}:
        files = label_files(setting, kind, setting.profile.ipcs[0], 0, setting.profile.steps)
        given = {"label_function": label_source(files), "temperature": setting.profile.temperature}
    labels = "hard" if kind == "hard" else "soft"
    dataset = HelloDataset(path, labels=labels, **shared, **given)
    for epoch in range(views):
        for first in range(0, len(rows), 250):
            indices = [
                hellofmt.loading.EpochIndex(int(row), epoch) for row in rows[first : first + 250]
            ]
            wanted += [label for _, label in reference.__getitems__(indices)]
            got += [label for _, label in dataset.__getitems__(indices)]
    result = compare(torch.stack(wanted), torch.stack(got))
    if kind == "hard":
        # A one-hot label gives the other classes nothing, and their logarithm is infinite.
        result["kl"] = None
    return {**result, "source": kind, "views": len(got), "temperature": setting.profile.temperature}


def cost_cell(setting, _):
    """Count each stage's arithmetic per view, by torch on one batch; 2 per multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = 8
    views = torch.rand(batch, 3, setting.size, setting.size)
    images = normalise(views, setting.views)
    projector = setting.fitted_main()[0]

    def count(work):
        with FlopCounterMode(display=False) as counter:
            work()
        return round(counter.get_total_flops() / batch / 1e9, 5)

    def step(network, run):
        def work():
            run().square().sum().backward()
            for parameter in network.parameters():
                parameter.grad = None

        return work

    student = build_student(setting.profile.student, len(setting.train.classes), setting.size)
    fresh = build_student(setting.profile.teacher, len(setting.train.classes), setting.size)
    projector.train()
    result = {
        "teacher step": count(step(fresh, lambda: fresh(images))),
        "teacher label": count(lambda: setting.teacher(views)),
        "fit step": count(
            lambda: (setting.teacher(views), step(projector, lambda: projector(views))())
        ),
        "hello label": count(lambda: projector.eval().labeler().logits(views)),
        "student step": count(step(student, lambda: student(images))),
    }
    projector.eval()
    return {"gflop_per_view": result}
