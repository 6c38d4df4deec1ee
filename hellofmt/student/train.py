"""Train a student: a recipe, a stream of batches, a number of steps.

One loop for every kind of label. It reads ``(images, targets)`` or, for the loss that needs both,
``(images, logits, hard labels)``; where they come from is not its business: an archive, images in
memory (``hellofmt.student.batches``), a plain ``DataLoader``, or anything that iterates.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from hellofmt.loading import HelloDataset
from hellofmt.student.batches import ArchiveBatches

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import Tensor, nn

    from hellofmt.archive import HelloFile
    from hellofmt.projector import LoadedBase
    from hellofmt.student.batches import Batch
    from hellofmt.student.recipes import Recipe

__all__ = [
    "learning_rate_factor",
    "loss_of",
    "optimiser_of",
    "train_from_archive",
    "train_student",
]

_CHECK_EVERY = 64


def loss_of(recipe: Recipe, logits: Tensor, targets: Tensor, hard: Tensor | None = None) -> Tensor:
    """The loss of a batch, a scalar.

    Args:
        recipe: says which loss, T and beta.
        logits: (N, C), of the student.
        targets: ``kl``: probabilities (N, C) at the recipe's T; ``mse_ce``: logits (N, C);
            ``ce``: int64 (N,) or probabilities (N, C).
        hard: ``mse_ce`` only: int64 (N,) or probabilities (N, C).

    Returns:
        ``kl``: sum q log(q / p) / N with p = softmax(logits / T), without the factor T**2;
        ``mse_ce``: mean of squared differences + beta * cross-entropy; ``ce``: cross-entropy.

    Raises:
        ValueError: ``kl`` without a temperature, or ``mse_ce`` with a weight and no hard labels.
    """
    if recipe.loss == "kl":
        if recipe.temperature is None:
            raise ValueError("recipe: `kl` needs a temperature, got None")
        log_p = functional.log_softmax(logits / recipe.temperature, dim=1)
        return functional.kl_div(log_p, targets, reduction="batchmean")
    if recipe.loss == "ce":
        return functional.cross_entropy(logits, targets)
    loss = functional.mse_loss(logits, targets)
    if recipe.hard_weight:
        if hard is None:
            raise ValueError("recipe: `mse_ce` needs hard labels beside the logits, got none")
        loss = loss + recipe.hard_weight * functional.cross_entropy(logits, hard)
    return loss


def learning_rate_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate at a step as a fraction of the recipe's: linear warm-up, then cosine."""
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    span = math.pi if recipe.schedule == "cosine" else math.pi / 2
    return 0.5 * (1.0 + math.cos(span * done))


def optimiser_of(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW of a recipe: decay only on weights of two or more dimensions."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
    )


def train_student(
    network: nn.Module,
    batches: Iterable[Batch],
    recipe: Recipe,
    *,
    steps: int,
    on_step: Callable[[int, Tensor], None] | None = None,
    mixed: bool = False,
) -> nn.Module:
    """Train ``network`` for exactly ``steps`` gradient steps, in place.

    Args:
        network: takes normalised images (N, 3, S, S), gives logits (N, C); trained on its device.
        batches: at least ``steps`` of ``(images, targets)``, or of ``(images, logits, hard)``.
        recipe: loss, optimiser and schedule.
        steps: number of gradient steps, >= 1.
        on_step: called after each step with the number of steps done and the detached loss.
        mixed: run the network in bfloat16 where torch deems it safe; weights, logits and loss stay
            float32. Twice as fast on processors and GPUs with bfloat16 units, slower elsewhere.

    Returns:
        The same network, in train mode.

    Raises:
        ValueError: steps < 1, the batches ended early, or the loss is not finite.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    device = next(network.parameters()).device
    optimiser = optimiser_of(network, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(recipe, step, steps)
    )
    # 30 % faster convolutions on a CPU with AVX-512, and what tensor cores want; same result
    # within rounding. Nothing for networks without convolutions.
    network.to(memory_format=torch.channels_last)
    network.train()
    stream = iter(batches)
    for step in range(steps):
        batch = next(stream, None)
        if batch is None:
            raise ValueError(f"batches: expected {steps}, got {step}")
        images, *targets = (part.to(device, non_blocking=True) for part in batch)
        images = images.contiguous(memory_format=torch.channels_last)
        # bfloat16 has float32's range, so the loss needs no scaling, but too few digits for a loss.
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            logits = network(images)
        loss = loss_of(recipe, logits.float() if mixed else logits, *targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        # Now and then: reading the loss makes the host wait for a GPU.
        is_checked = step % _CHECK_EVERY == 0 or step + 1 == steps
        if is_checked and not math.isfinite(value := loss.item()):
            raise ValueError(f"loss: expected a finite number, got {value} at step {step}")
        if on_step is not None:
            on_step(step + 1, loss.detach())
    return network


def train_from_archive(
    network: nn.Module,
    source: str | os.PathLike[str] | HelloFile,
    recipe: Recipe,
    *,
    steps: int,
    seed: int = 0,
    base: str | Path | LoadedBase | nn.Module | None = None,
    expect: str | None = None,
    device: str | torch.device | None = None,
    workers: int = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
    stored: str | os.PathLike[str] | None = None,
    label_function: Callable[[Tensor], Tensor] | None = None,
    mixed: bool = False,
) -> nn.Module:
    """Train ``network`` on nothing but an archive, in place.

    Args:
        network: takes normalised images (N, 3, S, S), gives logits (N, C); trained on its device.
        source: path of an archive, or an open one.
        recipe: loss, labels, optimiser, schedule; without a temperature it takes the archive's.
        steps: number of gradient steps, >= 1.
        seed: of order and views.
        base: base encoder, as for ``HelloDataset``; seeded and embedded bases need none.
        expect: id the archive must have.
        device: where labels are made; None is the CPU.
        workers: processes that decode and make views and labels.
        on_step: called after each step with the number of steps done and the detached loss.
        stored: directory of ``write_labels``, to read soft labels from instead of making them.
        label_function: labels views instead of the archive's, as for ``HelloDataset``.
        mixed: as for ``train_student``; labels are made as ever.

    Returns:
        The same network, in train mode.

    Raises:
        HelloError: the archive is refused, or lacks what the recipe's labels need.
        ValueError: steps < 1, or the loss is not finite.
    """
    dataset = HelloDataset(
        source,
        labels=recipe.labels,
        temperature=recipe.temperature,
        base=base,
        seed=seed,
        expect=expect,
        device=device,
        stored=stored,
        label_function=label_function,
    )
    plan = replace(recipe, temperature=dataset.temperature)
    batches = ArchiveBatches(dataset, plan, steps, seed, workers)
    return train_student(network, batches, plan, steps=steps, on_step=on_step, mixed=mixed)
