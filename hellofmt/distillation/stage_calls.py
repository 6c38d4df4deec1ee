"""The stages of a distillation: each is read from the work folder if it is finished, else made.

A stage's result is named by the digest of all its inputs, so here is where they are listed.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from hellofmt.distillation.budget import affordable, bought
from hellofmt.distillation.candidates import drawn
from hellofmt.distillation.fidelity import Fidelity
from hellofmt.distillation.fit import FitSettings, fit_projector, lay_out
from hellofmt.distillation.fit_cost import fit_gflop
from hellofmt.distillation.select import select_images
from hellofmt.distillation.selection import Selection, SelectSettings
from hellofmt.distillation.settings import DistillSettings, FitHooks, ProjectorSettings
from hellofmt.runs.cost import network_gflop
from hellofmt.runs.results import Result
from hellofmt.runs.resume import Checkpoint
from hellofmt.runs.stages import Stages
from hellofmt.sources import stratified_split
from hellofmt.teacher import device_of
from hellofmt.teacher.check import check_predictions, predictions, top1

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.record import Record
    from hellofmt.archive.format.views import Views
    from hellofmt.projector import LoadedBase, Projector
    from hellofmt.sources import Source

_ENOUGH_PER_CLASS: Final = 10
_FEWEST_PER_CLASS: Final = 4
"""Of many classes: two images to read their order off, and two to judge it by."""
_WORTH_KEEPING: Final = 100
"""Images or texts: fewer leave no file behind when something is refused after them."""
_FEWEST_CHECKED: Final = 2_000
_MOST_CHECKED: Final = 20_000
"""Images of the source that a teacher is checked on, of each class by its share."""


def keep_text_rows(
    base: LoadedBase, source: Source, prompts: Sequence[str], stages: Stages
) -> None:
    """Compute the text rows of a base once for a work folder; the base remembers them."""
    if not (base.has_text and stages.is_kept):
        return
    names = [line.names[0] for line in source.classes]
    inputs = {"tower": base.text_digest, "names": names, "prompts": list(prompts)}

    def make(_path: Path | None) -> Result:
        return Result({"rows": base.text_rows(names, prompts).numpy()}, {})

    keep = len(names) * len(prompts) >= _WORTH_KEEPING
    rows = stages.run("text", inputs, make, keep=keep).tensors["rows"]
    base.keep_text_rows(names, prompts, torch.from_numpy(rows))


def _work(teacher: Callable[[Tensor], Tensor], size: int, views: int) -> dict[str, float]:
    """The fact ``gflop`` of a result: a network's work on views; of a function nobody knows it."""
    if not isinstance(teacher, torch.nn.Module):
        return {}
    return {"gflop": network_gflop(teacher, size, views)}


def autocast(teacher: Callable[[Tensor], Tensor], bfloat16: bool) -> torch.autocast:
    """Run a teacher in bfloat16, or as it is, where this context is entered."""
    return torch.autocast(device_of(teacher).type, torch.bfloat16, enabled=bfloat16)


def checked_teacher(
    teacher: Callable[[Tensor], Tensor],
    source: Source,
    measured: Source,
    views: Views,
    stages: Stages,
    workers: int = 0,
    *,
    bfloat16: bool = False,
) -> float:
    """Check a teacher as ``check_predictions`` does, on outputs that are read if they are kept.

    Returns its top-1 in percent on ``measured``: held-out images, or the source itself.
    """
    classes = len(source.classes)
    # A handful of held-out images cannot tell one class order from another.
    enough = min(_ENOUGH_PER_CLASS * classes, max(_FEWEST_CHECKED, _FEWEST_PER_CLASS * classes))

    def predicted(name: str, images: Source, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        inputs = {
            "images": images,
            "rows": rows,
            "size": views.size,
            "teacher": teacher,
            "bfloat16": bfloat16,
        }

        def make(path: Path | None) -> Result:
            with autocast(teacher, bfloat16):
                found = predictions(teacher, images, views.size, rows, workers=workers, path=path)
            return Result({"predicted": found}, _work(teacher, views.size, len(rows)))

        keep = len(rows) >= _WORTH_KEEPING
        return stages.run(name, inputs, make, keep=keep).tensors["predicted"]

    is_enough = len(measured) >= enough
    images = measured if is_enough else source
    rows = np.arange(len(images))
    most = min(max(enough, _FEWEST_CHECKED), _MOST_CHECKED)
    if not is_enough and len(rows) > most:
        rows = stratified_split(images.labels, most, seed=0)[1]
    accuracy = check_predictions(
        predicted("check", images, rows), images.labels[rows], images.classes
    )
    if is_enough or (measured is source and len(rows) == len(source)):
        return accuracy
    return top1(predicted("check-held-out", measured, np.arange(len(measured))), measured.labels)


def fitted_projector(
    source: Source,
    views: Views,
    *,
    teacher: Callable[[Tensor], Tensor],
    base: LoadedBase,
    projector: ProjectorSettings,
    fit: FitSettings,
    held_out: Source,
    start: Projector | None = None,
    stages: Stages | None = None,
    hooks: FitHooks | None = None,
    workers: int = 0,
) -> tuple[Projector, Fidelity]:
    """Fit a projector for ``source``, or read an earlier one; measure it on ``held_out``.

    The teacher takes views (N, 3, S, S) in [0, 1] to logits; with a work folder it is a module.
    ``start`` is fitted in place; without it, one is built as ``projector`` says.
    """
    stages = Stages(None) if stages is None else stages
    hooks = FitHooks() if hooks is None else hooks
    made = projector.build(base, source) if start is None else start
    if isinstance(teacher, torch.nn.Module):
        made = made.to(device_of(teacher))
    # Here as well, since a fit that was finished earlier is not run, and the order of a tower's
    # numbers decides the last bits of probes and of everything after the fit.
    lay_out(made)
    inputs = {
        "source": source,
        "held_out": held_out,
        "views": views,
        "teacher": teacher,
        "base": base.spec,
        "text": base.text_digest,
        "projector": projector,
        "fit": fit,
    }

    def make(path: Path | None) -> Result:
        if hooks.before is not None:
            hooks.before(made)
        checkpoint = None
        if path is not None:
            # Deleted with the other parts when the result is there.
            checkpoint = Checkpoint(path.with_suffix(".part-state"), path.stem)
        gflop = fit_gflop(made, teacher, views.size, fit)
        fidelity = fit_projector(
            made,
            teacher,
            source,
            views,
            fit,
            held_out=held_out,
            workers=workers,
            checkpoint=checkpoint,
            evaluations=hooks.evaluations,
            on_step=hooks.on_step,
            on_fidelity=hooks.on_fidelity,
        )
        tensors = {
            name: p.detach().cpu().numpy() for name, p in made.named_parameters() if p.requires_grad
        }
        facts = {**asdict(fidelity), "gflop": gflop}
        return Result(tensors, facts)

    result = stages.run("fit", inputs, make)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(result.tensors[name]))
    made.eval()
    return made, Fidelity(
        float(result.facts["agreement"]), float(result.facts["kl"]), int(result.facts["views"])
    )


def afforded_settings(
    source: Source,
    views: Views,
    settings: DistillSettings,
    projector: Projector,
    record: Callable[[DistillSettings], Record],
    stages: Stages,
) -> DistillSettings:
    """Choose what a budget is spent on as ``affordable`` does, or read an earlier choice."""
    inputs = {
        "source": source,
        "views": views,
        "base": projector.base.spec,
        "trained": {n: p for n, p in projector.named_parameters() if p.requires_grad},
        "settings": replace(settings, fit=None, command=""),
    }

    def make(_path: Path | None) -> Result:
        device = device_of(projector)
        chosen = affordable(
            source,
            views,
            settings,
            projector.cpu(),
            record=record,
            device=device,
        )
        projector.to(device)
        ipc = 0 if chosen.select is None else chosen.select.ipc
        return Result({}, {"ipc": ipc, "codec": chosen.codec, "quality": chosen.quality})

    facts = stages.run("budget", inputs, make).facts
    return bought(settings, facts["ipc"], facts["codec"], facts["quality"])


def selected_images(
    source: Source,
    views: Views,
    teacher: Callable[[Tensor], Tensor],
    projector: Projector,
    settings: SelectSettings,
    stages: Stages,
    workers: int = 0,
    *,
    bfloat16: bool = False,
) -> Selection:
    """Choose images as ``select_images`` does, or read an earlier choice."""
    trained = {n: p for n, p in projector.named_parameters() if p.requires_grad}
    function = {"base": projector.base.spec, "trained": trained}
    # What does not look at an image has no say in the choice.
    inputs = {
        "source": source,
        "views": views,
        "teacher": (teacher, bfloat16) if settings.scored else None,
        "label function": function if settings.is_embedded else None,
        "select": settings,
    }

    def make(path: Path | None) -> Result:
        labeler = projector.labeler(device_of(projector)) if settings.is_embedded else None
        with autocast(teacher, bfloat16):
            chosen = select_images(
                source, teacher, views, settings, labeler=labeler, workers=workers, path=path
            )
        count = sum(map(len, drawn(source, settings)))
        work = _work(teacher, views.size, count * settings.scored)
        if settings.is_embedded and work:
            work["gflop"] += network_gflop(projector, views.size, count)
        return Result(vars(chosen), work)

    return Selection(**stages.run("select", inputs, make).tensors)
