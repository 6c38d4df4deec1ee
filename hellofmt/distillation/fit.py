"""Fit the projector: make the label function give a teacher's labels, on the views it will label.

Only the low-rank factors, the head, the bias and the logit scale move; the base does not. Training
views are exactly those that students will ask labels for (crops, flips, mixing), because the
projector is only ever used there.

Two losses. ``kl``: ``T**2 * KL(softmax(teacher / T) || softmax(projector / T))``, the default (the
factor keeps gradients comparable between temperatures, Hinton et al., arXiv 1503.02531).
``mse_ce``: the paper's ``MSE(f(X), Y') + lambda * CE(f(X), Y)`` (arXiv 2408.08201), with the
cross-entropy on unmixed views only. Softmax ignores a constant added to a row of logits, MSE does
not, and CLIP's logits share a large one (about 20 at scale 100), so the row means are subtracted
first unless ``raw_logits`` asks for the published form.

Nothing of a step depends on the step before it but the trained tensors and the optimiser's moments,
so a run is continued from a file of those (``resume``), and divided among processes by the rows of
its batches (``ranks``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch.nn import functional

from hellofmt.distillation.fidelity import Fidelity, fidelity
from hellofmt.making import ViewBatch, ViewBatches
from hellofmt.runs import ranks
from hellofmt.runs.loop import descend
from hellofmt.runs.resume import Checkpoint, State
from hellofmt.runs.schedule import cosine
from hellofmt.teacher.network import device_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.archive.format.views import Views
    from hellofmt.projector import Projector
    from hellofmt.sources import Source

MOST_EPOCHS: Final = 50
MOST_STEPS: Final = 4000


@dataclass(frozen=True)
class FitSettings:
    """How the projector is fitted.

    Attributes:
        loss: ``kl`` or ``mse_ce``.
        temperature: temperature T of ``kl``.
        hard_weight: weight lambda of the cross-entropy in ``mse_ce``; the paper does not state it,
            0.1 is that of G-VBSM.
        raw_logits: ``mse_ce`` without subtracting each row's mean, as published.
        steps: gradient steps.
        batch_size: views per step.
        learning_rate: peak rate of AdamW without decay, after a linear warm-up and before a cosine
            down to 0.
        warmup: fraction of the steps that warm up.
        clip: largest norm of the gradient.
        seed: seed of order and views.
        bfloat16: run the networks in bfloat16 autocast, the teacher also where it is checked and
            where it scores images. What labels are worth is measured in float32 regardless.
        compile: compile the networks of the fit by ``torch.compile``.

    Example:
        >>> FitSettings(loss="mse_ce", steps=1000).hard_weight
        0.1
    """

    loss: Literal["kl", "mse_ce"] = "kl"
    temperature: float = 2.0
    hard_weight: float = 0.1
    raw_logits: bool = False
    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 3e-3
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    bfloat16: bool = False
    compile: bool = False


def fit_loss(
    settings: FitSettings,
    logits: Tensor,
    teacher: Tensor,
    hard: Tensor | None,
    *,
    rows: int | None = None,
    unmixed_rows: int | None = None,
) -> Tensor:
    """The loss of a batch, a scalar; see the module for both forms.

    ``hard`` (N, C), labels mixed by area, is read by ``mse_ce``; rows with a 1 are unmixed. Of a
    part of a batch, whose ``rows`` and ``unmixed_rows`` are given, it is the part's share of the
    mean, so that shares add up to it.
    """
    rows = len(logits) if rows is None else rows
    if settings.loss == "kl":
        temperature = settings.temperature
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, dim=1),
            functional.log_softmax(teacher / temperature, dim=1),
            reduction="sum",
            log_target=True,
        )
        return temperature**2 * (divergence / rows)
    difference = logits - teacher
    if not settings.raw_logits:
        difference = difference - difference.mean(1, keepdim=True)
    loss = difference.square().sum() / (rows * logits.shape[1])
    if settings.hard_weight and hard is not None:
        # Rows that show a single image; nothing here makes the host wait for a GPU.
        unmixed = hard.amax(1) == 1
        count = unmixed.sum().clamp(min=1) if unmixed_rows is None else max(unmixed_rows, 1)
        cross_entropy = functional.cross_entropy(logits, hard.argmax(1), reduction="none")
        cross_entropy = torch.where(unmixed, cross_entropy, 0.0).sum()
        loss = loss + settings.hard_weight * (cross_entropy / count)
    return loss


def default_steps(images: int, batch_size: int) -> int:
    """Steps of a fit by default: 50 passes over the images, at most 4,000.

    Args:
        images: images in the source.
        batch_size: views per step.

    Returns:
        At least 1.

    Example:
        >>> [default_steps(images, batch_size=100) for images in (1_000, 1_000_000)]
        [500, 4000]
    """
    return max(1, min(-(-MOST_EPOCHS * images // batch_size), MOST_STEPS))


def lay_out(projector: Projector) -> None:
    """Put the tower in channels-last order, in place."""
    # Half the time of a step on a CPU for a convolutional tower, and what tensor cores want;
    # nothing for a transformer.
    projector.encoder.visual.to(memory_format=torch.channels_last)


def batch_loss(
    projector: Callable[[Tensor], Tensor],
    teacher: Callable[[Tensor], Tensor],
    settings: FitSettings,
    batch: ViewBatch,
) -> Tensor:
    """This process's share of the loss of a step, ready for ``backward``."""
    views = batch.views
    with torch.autocast(views.device.type, torch.bfloat16, enabled=settings.bfloat16):
        with torch.no_grad():
            target = teacher(views).float()
        logits = projector(views).float()
    hard = batch.hard(logits.shape[1]) if settings.loss == "mse_ce" else None
    return fit_loss(
        settings, logits, target, hard, rows=settings.batch_size, unmixed_rows=batch.unmixed
    )


def fit_projector(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    source: Source,
    views: Views,
    settings: FitSettings | None = None,
    *,
    held_out: Source | None = None,
    workers: int = 0,
    checkpoint: Checkpoint | None = None,
    evaluations: int = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_fidelity: Callable[[int, Fidelity], None] | None = None,
) -> Fidelity:
    """Fit ``projector`` to ``teacher`` in place.

    With ``settings.bfloat16`` the towers run in bfloat16 autocast; what is trained, the loss and
    the fidelity are float32. On a CPU a run that was killed and continued ends with the same bits
    as one that was not. Under ``torchrun`` every process takes its share of each batch; the result
    is that of one process up to the rounding of sums.

    Args:
        projector: from ``Projector.build``; its trained tensors move. Views go to its device.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), without gradients.
        source: real images that the views are made of.
        views: how students will see the images.
        settings: loss, optimiser, steps; None takes the defaults.
        held_out: images that fidelity is measured on; None takes new views of the training images.
        workers: number of processes that decode images ahead.
        checkpoint: where the state is kept, and read from if there is one.
        evaluations: how often fidelity is measured on the way, on 256 views each.
        on_step: called after each step with the number of steps done and the detached loss.
        on_fidelity: called with the steps done and the fidelity on the way.

    Returns:
        Fidelity on views that were not trained on.

    Raises:
        ValueError: steps < 1.
        UserInputError: the loss is not finite (E_OPTION).
        StateError: the state is of another run (E_STATE_DIGEST, E_STATE_SHAPE).
        OSError: the state cannot be written; the former one stays.

    Example:
        >>> import hellofmt
        >>> from hellofmt.distillation import FitSettings
        >>> from hellofmt.sources import open_source
        >>> from hellofmt.teacher import train_teacher
        >>> source = open_source("photos")
        >>> with hellofmt.open("photos.hello") as archive:
        ...     projector = hellofmt.Projector.from_file(archive)
        ...     views = archive.manifest.views
        >>> teacher, settings = train_teacher(source, views, steps=2), FitSettings(steps=2)
        >>> fidelity = hellofmt.fit_projector(projector, teacher, source, views, settings)
        >>> 0 <= fidelity.agreement <= 100
        True
    """
    settings = FitSettings() if settings is None else settings
    if settings.steps < 1:
        raise ValueError(f"steps: expected at least 1, got {settings.steps}")
    named = {name: p for name, p in projector.named_parameters() if p.requires_grad}
    trained = list(named.values())
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    state = None if checkpoint is None else State(checkpoint, named)
    first = 0 if state is None else state.read(optimiser)
    batches = ViewBatches(source, views, settings.batch_size, settings.seed)
    part = ranks.share(settings.batch_size)
    device = device_of(projector)
    measured = source if held_out is None else held_out
    every = max(1, settings.steps // evaluations) if evaluations else settings.steps

    def measure(count: int) -> Fidelity:
        return fidelity(
            projector,
            teacher,
            measured,
            views,
            count=count,
            seed=settings.seed + 1,
            workers=workers,
            device=device,
        )

    def after(done: int, loss: Tensor) -> None:
        if on_step is not None:
            on_step(done, loss)
        if on_fidelity is not None and done % every == 0 and done < settings.steps:
            on_fidelity(done, measure(256))

    projector.train()
    lay_out(projector)
    step = partial(batch_loss, projector, teacher, settings)
    if settings.compile:
        step = partial(batch_loss, torch.compile(projector), torch.compile(teacher), settings)
    descend(
        optimiser,
        batches.stream(first, part, end=settings.steps, workers=workers, device=device),
        step,
        steps=settings.steps,
        start=first,
        rate=partial(cosine, warmup=settings.warmup),
        clip=settings.clip,
        is_split=True,
        state=state,
        on_step=after,
    )
    projector.eval()
    return measure(1024)
