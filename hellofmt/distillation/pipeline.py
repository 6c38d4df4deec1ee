"""From real images and a teacher to one archive: teacher, projector, images, file.

The order is the argument. The teacher is measured first, because everything imitates it. The
projector is fitted on the whole source but a validation part, so one fit serves every number of
images per class. Images are chosen last and cost seconds. Each stage is a function of its own; this
module only joins them, keeps what is finished in a work folder (``stages``) and says in the
manifest what was done.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hellofmt.archive import (
    DEFAULT_LIMITS,
    UNSET,
    Draft,
    ImageItem,
    ImageSet,
    encode_image,
    write_archive,
)
from hellofmt.archive.format.manifest import Dataset
from hellofmt.archive.write.plan import plan_images
from hellofmt.distillation.fit import (
    Fidelity,
    FitSettings,
    default_steps,
    fit_gflop,
    fit_projector,
    lay_out,
)
from hellofmt.distillation.refine import RefineSettings, refine_gflop, refine_images
from hellofmt.distillation.select import (
    Selection,
    SelectSettings,
    check_selection,
    select_gflop,
    select_images,
)
from hellofmt.errors import HelloIOError, UserInputError, printable, target_exists
from hellofmt.ledger import paper_head_rank
from hellofmt.projector import Projector
from hellofmt.projector.lowrank import Delta
from hellofmt.runs import ranks
from hellofmt.runs.cost import StageCost, network_gflop
from hellofmt.runs.results import Result, digest_of
from hellofmt.runs.resume import Checkpoint
from hellofmt.runs.stages import Stages
from hellofmt.sources import stratified_split
from hellofmt.teacher import check_teacher, device_of, teacher_accuracy
from hellofmt.teacher.match import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from hellofmt.archive.format.manifest import Storage, Views
    from hellofmt.projector import LoadedBase
    from hellofmt.sources import ArrayImages

__all__ = [
    "DistillReport",
    "ProjectorSettings",
    "check_contents",
    "check_target",
    "distill",
    "fitted_projector",
    "split_validation",
    "write_distilled",
]

_VALIDATION_SHARE = 20
_MOST_VALIDATION = 2000
_ENOUGH_PER_CLASS = 10


@dataclass(frozen=True)
class ProjectorSettings:
    """What is adapted, and from where it starts; see ``Projector.build``.

    Attributes:
        targets: preset, or rules.
        rank: of the deltas.
        start: of the head: ``text`` rebuilds its rows from class names and changes them by a delta
            of ``head_rank``, if there is one; ``stored`` keeps and trains the whole matrix. None
            decides by size: from text with the paper's rank where that holds fewer values than the
            matrix, else stored. Then the head is always trained, and starts from the text rows of a
            base that has them.
        head_rank: of the head's delta; None is none where ``start`` is given.
        prompts: of a start from text.
        temperature: default T of the labels.
        seed: of the initial factors.
    """

    targets: str | tuple[str, ...] = "all"
    rank: int = 8
    start: str | None = None
    head_rank: int | None = None
    prompts: tuple[str, ...] = ("a photo of a {}.",)
    temperature: float = 4.0
    seed: int = 0

    def build(self, base: LoadedBase, source: ArrayImages) -> Projector:
        """A projector before training, for the classes of ``source``.

        Raises:
            UserInputError: a setting does not fit the base, or a start from text has no class names
                to read, or a prompt no place for them (E_OPTION, E_DATA).
        """
        start, head_rank = self._head(base, len(source.classes))
        if start == "text":
            _check_names(source)
            _check_prompts(self.prompts)
        most = min(len(source.classes), base.embed_dim)
        if self.head_rank is not None and self.head_rank > most:
            raise UserInputError.make(
                "E_OPTION",
                f"head rank {self.head_rank} is larger than the head of {len(source.classes)}"
                f" classes and {base.embed_dim} features; expected at most {most}",
            )
        projector = Projector.build(
            base,
            source.classes,
            targets=self.targets,
            rank=self.rank,
            head_rank=head_rank,
            start=start,
            prompts=self.prompts,
            temperature=self.temperature,
            seed=self.seed,
        )
        self._check_rank(projector)
        return projector

    def notes(self, base: LoadedBase, source: ArrayImages) -> list[str]:
        """What to tell the user before ``build``: classes that a start from text cannot tell apart.

        ImageNet has two cranes and two maillots; their keys stay apart, their rows of text do not.
        """
        if self._head(base, len(source.classes))[0] != "text":
            return []
        counts = Counter(line.names[0] for line in source.classes)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if not twice:
            return []
        return [f"classes that share a name start with equal rows of the head: {listed(twice)}"]

    def _head(self, base: LoadedBase, classes: int) -> tuple[str, int | None]:
        """Start and rank of the head's delta."""
        if self.start is not None:
            return self.start, self.head_rank
        if not base.has_text:
            return "stored", self.head_rank
        rank = self.head_rank or paper_head_rank(classes, base.embed_dim)
        return ("stored" if rank is None else "text"), rank

    def _check_rank(self, projector: Projector) -> None:
        """Refuse a rank that no adapted weight has; one that some lack is cut for those."""
        rules = (self.targets,) if isinstance(self.targets, str) else self.targets
        ranks_got = [delta.a.shape[0] for delta in projector.deltas if isinstance(delta, Delta)]
        if ranks_got and max(ranks_got) < self.rank and not any(":" in rule for rule in rules):
            raise UserInputError.make(
                "E_OPTION",
                f"rank {self.rank} is larger than every adapted weight; expected at most"
                f" {max(ranks_got)}",
            )


def _check_names(source: ArrayImages) -> None:
    """Refuse a start from the text of numbers: it runs, and means nothing."""
    names = [line.names[0] for line in source.classes]
    bare = [name for name in names if name.lstrip("n").isdigit()]
    if len(bare) == len(names):
        raise UserInputError.make(
            "E_DATA",
            f"class names are missing: all {len(names)} are numbers such as"
            f" `{printable(bare[0], 40)}`; a head that starts from text needs words (a class list,"
            " or start `stored`)",
        )


def _check_prompts(prompts: Sequence[str]) -> None:
    """Refuse a prompt that says the same of every class."""
    for prompt in prompts:
        if "{}" not in prompt:
            raise UserInputError.make(
                "E_OPTION",
                f"prompt `{printable(prompt, 80)}`: expected `{{}}` where the class name goes",
            )


@dataclass(frozen=True)
class DistillReport:
    """What a distillation measured.

    Attributes:
        id: of the archive.
        teacher_accuracy: top-1 of the teacher on held-out (else source) images, percent.
        projector_accuracy: top-1 of the label function on the same images, percent.
        fidelity: labels against the teacher's on views that were not trained on.
        trained: values that the fit moved.
        refined: loss of the refinement before and after, if there was one.
        costs: of the stages, in their order.
    """

    id: str
    teacher_accuracy: float
    projector_accuracy: float
    fidelity: Fidelity
    trained: int
    refined: tuple[float, float] | None = None
    costs: tuple[StageCost, ...] = ()


def split_validation(source: ArrayImages, *, seed: int = 0) -> tuple[ArrayImages, ArrayImages]:
    """Training images, and a validation part cut from them: 5 %, at most 2,000, of every class.

    Args:
        source: real images.
        seed: of the choice.

    Returns:
        Both parts; the source twice if a class has too few images to give one up.
    """
    smallest = int(np.bincount(source.labels).min())
    count = max(min(len(source) // _VALIDATION_SHARE, _MOST_VALIDATION), len(source.classes))
    # A class of ten can give one; rounding by class may otherwise leave one without any.
    if smallest < 10:
        return source, source
    rest, held_out = stratified_split(source.labels, count, seed=seed)
    if len(np.unique(source.labels[held_out])) < len(source.classes):
        return source, source
    return source.subset(rest), source.subset(held_out)


def write_distilled(
    target: str | os.PathLike[str],
    selection: Selection | None,
    projector: Projector,
    source: ArrayImages,
    views: Views,
    *,
    name: str,
    license_name: str = "unknown",
    storage: Storage = "float16",
    card: str | None = None,
    force: bool = False,
) -> str:
    """Write the chosen images and the label function as one archive.

    Args:
        target: path of the new archive.
        selection: chosen images, sorted by class; None writes the label function alone.
        projector: fitted.
        source: gives the classes and the name of the source.
        views: what the projector was fitted for.
        name: of the data set.
        license_name: of the images.
        storage: of the deltas and of a stored head.
        card: Markdown text for people.
        force: replace an existing file.

    Returns:
        Id of the archive, ``sha256:...``.

    Raises:
        HelloIOError: the target exists (E_TARGET) or cannot be written.
        HelloError: what was written does not verify.
    """
    images, ipc = None, UNSET
    if selection is not None:
        ipc = len(selection.labels) // len(source.classes)
        images = ImageSet(
            "png",
            [
                ImageItem(int(label), encode_image(pixels, "png"))
                for pixels, label in zip(selection.pixels, selection.labels, strict=True)
            ],
        )
    draft = Draft(
        dataset=Dataset(
            name=name,
            version="1.0.0",
            license=license_name,
            method="hello",
            sources=[source.name],
            ipc=ipc,
        ),
        classes=source.classes,
        views=views,
        images=images,
        projector=projector.part(storage),
        card=card,
    )
    return write_archive(target, draft, force=force)


def fitted_projector(
    source: ArrayImages,
    views: Views,
    *,
    teacher: Callable[[Tensor], Tensor],
    base: LoadedBase,
    projector: ProjectorSettings,
    fit: FitSettings,
    held_out: ArrayImages,
    start: Projector | None = None,
    stages: Stages | None = None,
    evaluations: int = 0,
    before: Callable[[Projector], None] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_fidelity: Callable[[int, Fidelity], None] | None = None,
) -> tuple[Projector, Fidelity]:
    """The stage of the fit: a projector for ``source``, made now or read from a finished fit.

    Args:
        source: training images.
        views: of the data set.
        teacher: views to logits; with a work folder, a module.
        base: frozen encoder.
        projector: what is adapted.
        fit: how.
        held_out: for the fidelity.
        start: what ``projector`` builds, if it is built already; fitted in place.
        stages: work folder; None keeps nothing.
        evaluations: of fidelity on the way.
        before: called with the projector before the first step, and not if the fit is finished.
        on_step: called after each step.
        on_fidelity: called after each evaluation on the way.

    Returns:
        The projector in float32, and its fidelity.

    Raises:
        UserInputError: a setting does not fit, or the loss is not finite.
        OSError: the state or the result cannot be written; the state of the run stays.
    """
    stages = Stages(None) if stages is None else stages
    made = projector.build(base, source) if start is None else start
    if isinstance(teacher, torch.nn.Module):
        made = made.to(device_of(teacher))
    # Here as well, since a fit that was finished earlier is not run, and the order of a tower's
    # numbers decides the last bits of probes and of everything after the fit.
    lay_out(made)
    inputs: dict[str, Any] = {}
    if stages.is_kept:
        inputs = {
            "source": digest_of(source),
            "held_out": digest_of(held_out),
            "views": views,
            "teacher": teacher,
            "base": base.spec,
            "text": base.text_digest,
            "projector": projector,
            "fit": fit,
        }
    state = stages.path("state", inputs)

    def make() -> Result:
        if before is not None:
            before(made)
        checkpoint = None
        if state is not None:
            checkpoint = Checkpoint(state, digest_of(inputs))
        gflop = fit_gflop(made, teacher, source, views, fit)
        got = fit_projector(
            made,
            teacher,
            source,
            views,
            fit,
            held_out=held_out,
            checkpoint=checkpoint,
            evaluations=evaluations,
            on_step=on_step,
            on_fidelity=on_fidelity,
        )
        tensors = {
            name: p.detach().cpu().numpy() for name, p in made.named_parameters() if p.requires_grad
        }
        facts = {"agreement": got.agreement, "kl": got.kl, "views": got.views, "gflop": gflop}
        return Result(tensors, facts)

    result = stages.run("fit", inputs, make)
    if state is not None and ranks.current().rank == 0:
        state.unlink(missing_ok=True)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(result.tensors[name]))
    made.eval()
    return made, Fidelity(
        float(result.facts["agreement"]), float(result.facts["kl"]), int(result.facts["views"])
    )


def _selected(
    source: ArrayImages,
    views: Views,
    teacher: Callable[[Tensor], Tensor],
    settings: SelectSettings,
    stages: Stages,
) -> Selection:
    inputs: dict[str, Any] = {}
    if stages.is_kept:
        inputs = {
            "source": digest_of(source),
            "views": views,
            "teacher": teacher,
            "select": settings,
        }

    def make() -> Result:
        chosen = select_images(source, teacher, views, settings)
        gflop = None
        if isinstance(teacher, torch.nn.Module):
            gflop = select_gflop(source, teacher, views.size, settings)
        return Result(dict(vars(chosen)), {"gflop": gflop})

    return Selection(**stages.run("select", inputs, make).tensors)


def _refined(
    selection: Selection,
    source: ArrayImages,
    views: Views,
    projector: Projector,
    settings: RefineSettings,
    stages: Stages,
    on_step: Callable[[int, int], None] | None,
) -> tuple[Selection, tuple[float, float]]:
    inputs: dict[str, Any] = {}
    if stages.is_kept:
        inputs = {
            "selection": selection,
            "source": digest_of(source),
            "views": views,
            "base": projector.base.spec,
            "trained": {n: p for n, p in projector.named_parameters() if p.requires_grad},
            "refine": settings,
        }

    def make() -> Result:
        done = refine_images(selection, source, projector, views, settings, on_step=on_step)
        gflop = refine_gflop(projector, selection.rows.size, views.size, settings)
        facts = {"before": done.before, "after": done.after, "gflop": gflop}
        return Result(dict(vars(done.selection)), facts)

    result = stages.run("refine", inputs, make)
    losses = float(result.facts["before"]), float(result.facts["after"])
    return Selection(**result.tensors), losses


def check_target(target: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse what the writer would refuse, an hour earlier.

    Raises:
        HelloIOError: the target exists, or is a folder or a device (E_TARGET).
        OSError: its folder does not exist.
    """
    path = Path(target)
    if path.exists() and not path.is_file():
        raise HelloIOError.make("E_TARGET", f"`{printable(path)}` is no regular file")
    if not force and os.path.lexists(path):
        raise target_exists(path)
    # The folder must be there; its own error says so best.
    path.parent.stat()


def check_contents(source: ArrayImages, views: Views, *, name: str, license_name: str) -> None:
    """Refuse classes, views and texts that no archive can hold, before anything is trained.

    Args:
        source: gives the classes and the name of the source.
        views: of the data set.
        name: of the data set; empty for the source's.
        license_name: of the images.

    Raises:
        UserInputError: one of them cannot be written (E_DATA, E_OPTION).
    """
    pixel = ImageItem(0, encode_image(np.zeros((1, 1), np.uint8), "png"))
    facts = Dataset(
        name=name or source.name,
        version="1.0.0",
        license=license_name,
        method="hello",
        sources=[source.name],
    )
    # Without a projector an archive needs an image.
    draft = Draft(facts, classes=source.classes, views=views, images=ImageSet("png", [pixel]))
    plan_images(draft, DEFAULT_LIMITS)


def distill(
    source: ArrayImages,
    target: str | os.PathLike[str],
    *,
    teacher: Callable[[Tensor], Tensor],
    base: LoadedBase,
    views: Views,
    ipc: int | None,
    factor: int = 1,
    rank: int = 8,
    start: str | None = None,
    temperature: float = 4.0,
    storage: Storage = "float16",
    projector: ProjectorSettings | None = None,
    fit: FitSettings | None = None,
    select: SelectSettings | None = None,
    refine: RefineSettings | None = None,
    held_out: ArrayImages | None = None,
    name: str | None = None,
    license_name: str = "unknown",
    seed: int = 0,
    force: bool = False,
    work: str | os.PathLike[str] | Stages | None = None,
    evaluations: int = 0,
    before_fit: Callable[[Projector], None] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_fidelity: Callable[[int, Fidelity], None] | None = None,
    on_refine: Callable[[int, int], None] | None = None,
    after: Callable[[Projector, ArrayImages], None] | None = None,
) -> DistillReport:
    """Distil real images into one archive.

    With a work folder, finished stages are kept there under the digest of their inputs, and a fit
    in progress keeps its state: killed anywhere, the same call ends in the same file.

    Args:
        source: real images.
        target: path of the new archive.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), for example a ``Teacher``; with a
            work folder, a module, whose tensors name it.
        base: frozen encoder that the label function adapts.
        views: how students will see the images.
        ipc: images per class; None writes the label function alone.
        factor: cells per side of a stored image.
        rank: of the deltas.
        start: of the head, ``"text"`` or ``"stored"``; None decides by size.
        temperature: default T of the labels.
        storage: of the deltas and of a stored head.
        projector: what is adapted, instead of ``rank``, ``start`` and ``temperature``.
        fit: how the projector is fitted; None takes the defaults, ``seed``, and 50 epochs or 4,000
            steps, whichever is less.
        select: how images are chosen; None takes RDED's way with ``ipc``, ``factor``, ``seed``.
        refine: how the chosen pixels are moved; None leaves them.
        held_out: real images that are measured on and never trained on; None cuts a validation
            part from the source.
        name: of the data set; None derives it from the source.
        license_name: of the images.
        seed: of everything without a seed of its own.
        force: replace an existing file.
        work: folder for finished stages; None keeps nothing.
        evaluations: of fidelity on the way.
        before_fit: called with the projector before the first step of the fit.
        on_step: called after each step of the fit.
        on_fidelity: called after each evaluation on the way.
        on_refine: called with the steps of the refinement done and in all.
        after: called with the fitted projector and the measured images, before anything is written.

    Returns:
        What was measured.

    Raises:
        UserInputError: the teacher is no better than chance or of another class order, or the data
            or a setting cannot be used.
        HelloIOError: the target exists (E_TARGET), asked before anything is done, or cannot be
            written.
        OSError: a stage cannot be written; finished ones stay.
    """
    check_target(target, force=force)
    check_contents(source, views, name=name or "", license_name=license_name)
    stages = work if isinstance(work, Stages) else Stages(work)
    if held_out is None:
        train, measured = split_validation(source, seed=seed)
    else:
        train, measured = source, held_out
    settings = projector or ProjectorSettings(
        rank=rank, start=start, temperature=temperature, seed=seed
    )
    plan = fit or FitSettings(steps=default_steps(len(train), FitSettings.batch_size), seed=seed)
    # Everything that can be refused is refused before the hour of the fit.
    start_of_fit = settings.build(base, source)
    choice = None
    if ipc is not None:
        choice = select or SelectSettings(ipc, factor, seed=seed)
        check_selection(source, views, choice)
        if refine is not None and choice.factor < 2:
            raise UserInputError.make(
                "E_OPTION",
                "refining needs cells that were shrunk; expected factor 2 or more, got 1",
            )
    # A handful of held-out images cannot tell one class order from another.
    is_enough = len(measured) >= _ENOUGH_PER_CLASS * len(source.classes)
    checked = measured if is_enough else source
    with stages.meter.stage("check"):
        accuracy = check_teacher(teacher, checked, views.size)
    if isinstance(teacher, torch.nn.Module):
        stages.meter.set_gflop(network_gflop(teacher, views.size, len(checked)))
    if not is_enough:
        accuracy = teacher_accuracy(teacher, measured, views.size)
    fitted, fidelity = fitted_projector(
        train,
        views,
        teacher=teacher,
        base=base,
        projector=settings,
        fit=plan,
        held_out=measured,
        start=start_of_fit,
        stages=stages,
        evaluations=evaluations,
        before=before_fit,
        on_step=on_step,
        on_fidelity=on_fidelity,
    )
    chosen, losses = None, None
    if choice is not None:
        chosen = _selected(source, views, teacher, choice, stages)
        if refine is not None:
            chosen, losses = _refined(chosen, source, views, fitted, refine, stages, on_refine)
    fitted = fitted.cpu()
    identity = ""
    if ranks.current().rank == 0:
        if after is not None:
            after(fitted, measured)
        with stages.meter.stage("write"):
            identity = write_distilled(
                target,
                chosen,
                fitted,
                source,
                views,
                name=name or (source.name if ipc is None else f"{source.name}-ipc{ipc}"),
                license_name=license_name,
                storage=storage,
                force=force,
            )
    ranks.wait()
    return DistillReport(
        id=identity,
        teacher_accuracy=accuracy,
        projector_accuracy=teacher_accuracy(fitted.labeler().logits, measured, views.size),
        fidelity=fidelity,
        trained=fitted.trained_count(),
        refined=losses,
        costs=tuple(stages.meter.costs),
    )
