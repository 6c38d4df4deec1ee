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

What is reported is *fidelity* on views that were not trained on: agreement (same top class) and KL.
Accuracy of a student is noisy, KL is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from hellofmt.student.batches import ArrayBatches

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.archive.manifest import Views
    from hellofmt.distillation.sources import ArrayImages
    from hellofmt.projector import Projector

__all__ = ["Fidelity", "FitSettings", "fidelity", "fit_loss", "fit_projector"]


@dataclass(frozen=True)
class FitSettings:
    """How the projector is fitted.

    Attributes:
        loss: ``kl`` or ``mse_ce``.
        temperature: T of ``kl``.
        hard_weight: lambda of ``mse_ce``; 0.1 after G-VBSM, the paper does not say.
        raw_logits: ``mse_ce`` without subtracting each row's mean, as published.
        steps: gradient steps.
        batch_size: views per step.
        learning_rate: of AdamW without decay, after a linear warm-up, down a cosine to 0.
        warmup: fraction of the steps.
        clip: largest norm of the gradient.
        seed: of order and views.
    """

    loss: Literal["kl", "mse_ce"] = "kl"
    temperature: float = 2.0
    hard_weight: float = 0.1
    raw_logits: bool = False
    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Fidelity:
    """How closely labels follow a teacher on the same views.

    Attributes:
        agreement: percent of views with the same top class.
        kl: mean KL(teacher ‖ labels) at T = 1, in nats.
        views: number of views compared.
    """

    agreement: float
    kl: float
    views: int


def fit_loss(settings: FitSettings, logits: Tensor, teacher: Tensor, hard: Tensor) -> Tensor:
    """The loss of a batch, a scalar; see the module for both forms.

    Args:
        settings: which loss, and its constants.
        logits: (N, C), of the projector.
        teacher: (N, C), logits of the teacher on the same views.
        hard: (N, C), hard labels mixed by area; rows with a 1 are unmixed.

    Returns:
        Mean over the batch.
    """
    if settings.loss == "kl":
        temperature = settings.temperature
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, dim=1),
            functional.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return temperature**2 * divergence
    difference = logits - teacher
    if not settings.raw_logits:
        difference = difference - difference.mean(1, keepdim=True)
    loss = difference.square().mean()
    top = hard.max(1)
    unmixed = top.values == 1
    if settings.hard_weight and bool(unmixed.any()):
        cross_entropy = functional.cross_entropy(logits[unmixed], top.indices[unmixed])
        loss = loss + settings.hard_weight * cross_entropy
    return loss


def fidelity(
    labels: Callable[[Tensor], Tensor],
    teacher: Callable[[Tensor], Tensor],
    source: ArrayImages,
    views: Views,
    *,
    count: int = 1024,
    batch_size: int = 256,
    seed: int = 1,
) -> Fidelity:
    """Agreement and KL between two functions from views to logits.

    Args:
        labels: the projector or labeler's ``logits``.
        teacher: the teacher.
        source: images the views are made of; held out ones, if there are any.
        views: how a view is made.
        count: views compared, rounded up to whole batches.
        batch_size: views at once.
        seed: of the views; another one than the fit's.

    Returns:
        The fidelity.
    """
    batches = ArrayBatches(
        source.pixels, source.labels, len(source.classes), views, batch_size, seed
    )
    same, divergence, rounds = 0, 0.0, -(-count // batch_size)
    with torch.inference_mode():
        for k in range(rounds):
            batch = batches.batch(k).views
            wanted, got = teacher(batch), labels(batch)
            same += int((wanted.argmax(1) == got.argmax(1)).sum())
            divergence += float(
                functional.kl_div(
                    functional.log_softmax(got, dim=1),
                    functional.log_softmax(wanted, dim=1),
                    reduction="sum",
                    log_target=True,
                )
            )
    n = rounds * batch_size
    return Fidelity(agreement=100.0 * same / n, kl=divergence / n, views=n)


def _rate(settings: FitSettings, step: int) -> float:
    """Learning rate at a step as a fraction of the full one."""
    warmup = round(settings.warmup * settings.steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def fit_projector(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    source: ArrayImages,
    views: Views,
    settings: FitSettings | None = None,
    *,
    held_out: ArrayImages | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Fidelity:
    """Fit ``projector`` to ``teacher`` in place.

    Args:
        projector: from ``Projector.build``; its trained tensors move.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), without gradients.
        source: real images the views are made of.
        views: of the data set: what students will ask labels for.
        settings: loss, optimiser, steps; None takes the defaults.
        held_out: images for the fidelity; None uses the training images under new views.
        on_step: called after each step with the number of steps done and the detached loss.

    Returns:
        Fidelity on views that were not trained on.

    Raises:
        ValueError: steps < 1, or the loss is not finite.
    """
    settings = FitSettings() if settings is None else settings
    if settings.steps < 1:
        raise ValueError(f"steps: expected at least 1, got {settings.steps}")
    trained = [p for p in projector.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(settings, step))
    batches = ArrayBatches(
        source.pixels,
        source.labels,
        len(source.classes),
        views,
        settings.batch_size,
        settings.seed,
    )
    projector.train()
    for step in range(settings.steps):
        batch = batches.batch(step)
        with torch.no_grad():
            target = teacher(batch.views)
        loss = fit_loss(settings, projector(batch.views), target, batch.hard)
        if not math.isfinite(value := loss.item()):
            raise ValueError(f"loss: expected a finite number, got {value} at step {step}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1, loss.detach())
    projector.eval()
    return fidelity(
        projector,
        teacher,
        source if held_out is None else held_out,
        views,
        seed=settings.seed + 1,
    )
