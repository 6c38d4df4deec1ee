"""Train a student: a recipe, a stream of batches, a number of steps.

One loop for every kind of label. It reads ``(images, targets)`` or, for a loss that needs both,
``(images, logits, hard labels)``, from any iterable: an archive, images in memory
(``hellofmt.making``), a plain ``DataLoader``.

The loop, its saved state and the division of a batch come from ``hellofmt.runs``. Only batch
normalisation makes a difference under ``torchrun``: each process uses the statistics of its own
rows, as in torch's ``DistributedDataParallel``, and the final running statistics are rank 0's. The
caller may convert the network to ``SyncBatchNorm`` beforehand, which exists only for CUDA.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from hellofmt.errors import UserInputError
from hellofmt.loading import HelloDataset
from hellofmt.loading.batch_maker import BatchMaker
from hellofmt.runs import ranks
from hellofmt.runs.loop import descend
from hellofmt.runs.results import digest_of
from hellofmt.runs.resume import Checkpoint, State
from hellofmt.student.batches import ArchiveBatches
from hellofmt.student.optimiser import optimiser_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from hellofmt.archive import Archive
    from hellofmt.runs.resume import Keeper
    from hellofmt.student.average import Average
    from hellofmt.student.batches import Batch
    from hellofmt.student.recipes import Recipe


def loss_of(recipe: Recipe, logits: Tensor, targets: Tensor, hard: Tensor | None = None) -> Tensor:
    """Compute the loss of a batch of logits (N, C), a scalar.

    ``kl``: sum q log(q / p) / N with q the targets and p = softmax(logits / T), without the factor
    T**2. ``mse_ce``: mean of squared differences to logits + beta * cross-entropy with ``hard``.
    ``ce``: cross-entropy. Hard labels are int64 (N,) or probabilities (N, C).
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


def _from_step(batches: Iterable[Batch], step: int) -> Iterator[Batch]:
    """Return the batches without the first ``step``, unmade if the stream can skip them."""
    after = getattr(batches, "after", None)
    return islice(batches, step, None) if after is None else iter(after(step))


def _moving(network: nn.Module, average: Average | None) -> dict[str, Tensor]:
    """Collect every tensor that training changes; no module's name contains a colon."""
    tensors = dict(network.state_dict())
    if average is not None:
        for name, tensor in average.state_dict().items():
            tensors[f"average:{name}"] = tensor
    return tensors


def train_student(
    network: nn.Module,
    batches: Iterable[Batch],
    recipe: Recipe,
    *,
    steps: int,
    on_step: Callable[[int, Tensor], None] | None = None,
    bfloat16: bool = False,
    seed: int | None = None,
    average: Average | None = None,
    checkpoint: Checkpoint | None = None,
    is_split: bool = False,
) -> nn.Module:
    """Train ``network`` for exactly ``steps`` gradient steps, in place.

    Args:
        network: maps normalised images (N, 3, S, S) to logits (N, C); trained on its device.
        batches: at least ``steps`` batches ``(images, targets)`` or ``(images, logits, hard)``.
        recipe: loss, optimiser and schedule.
        steps: number of gradient steps, >= 1.
        on_step: called after each step with the number of steps done and the detached loss.
        bfloat16: run the network in bfloat16 autocast; weights, logits and loss stay float32.
            Faster on GPUs and on CPUs with AMX, slower on others.
        seed: seed of torch's random numbers in each step, such as dropout's; the global generator
            is restored afterwards. None leaves it alone.
        average: moving average, updated after each step.
        checkpoint: where to save the state, and to resume from if there is one. Resuming is exact
            only with a ``seed`` if the network draws random numbers.
        is_split: each batch is this process's ``ranks.share`` of a global batch of
            ``recipe.batch_size`` rows; every process must call this, with equal weights.

    Returns:
        The same network, in train mode.

    Raises:
        ValueError: steps < 1, or the batches ended early.
        StateError: the checkpoint is of another run (E_STATE_DIGEST, E_STATE_SHAPE).
        UserInputError: the checkpoint is damaged (E_DATA) or not visible to all processes, or the
            loss is not finite (E_OPTION).
        OSError: the checkpoint cannot be written; the previous one stays.

    Example:
        >>> import torch
        >>> from hellofmt.student import build_student, recipe
        >>> batch = torch.zeros(4, 3, 16, 16), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
        >>> student = build_student("cnn", classes=3, size=16)
        >>> _ = train_student(student, [batch, batch], recipe("hello"), steps=2)
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    device = next(network.parameters()).device
    # Makes convolutions 30 % faster on a CPU with AVX-512 and suits tensor cores; the result is the
    # same within rounding. No effect on networks without convolutions.
    network.to(memory_format=torch.channels_last)
    network.train()
    optimiser = optimiser_of(network, recipe)
    state, start = None, 0
    if checkpoint is not None:
        state = State(checkpoint, _moving(network, average))
        start = state.read(optimiser)

    def loss_at(batch: Batch) -> Tensor:
        images, *targets = (part.to(device, non_blocking=True) for part in batch)
        images = images.contiguous(memory_format=torch.channels_last)
        # bfloat16 has float32's range, so the loss needs no scaling, but too little precision for
        # it.
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = network(images)
        loss = loss_of(recipe, logits.float() if bfloat16 else logits, *targets)
        # Turn the mean over these rows into their part of the mean over all.
        return loss * (len(images) / recipe.batch_size) if is_split else loss

    def after(done: int, loss: Tensor) -> None:
        if average is not None:
            average.update_parameters(network)
        if on_step is not None:
            on_step(done, loss)

    descend(
        optimiser,
        _from_step(batches, start),
        loss_at,
        steps=steps,
        start=start,
        rate=recipe.rate,
        seed=seed,
        is_split=is_split,
        state=state,
        on_step=after,
    )
    if state is not None and state.done < steps and ranks.current().rank == 0:
        state.write(steps, optimiser)
    if is_split:
        ranks.same_(network.buffers())
    return network


def train_from_dataset(
    network: nn.Module,
    dataset: HelloDataset,
    recipe: Recipe,
    *,
    steps: int,
    seed: int = 0,
    workers: int = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
    bfloat16: bool = False,
    average: Average | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    keeper: Keeper | None = None,
    labels: str = "",
) -> nn.Module:
    """Train ``network`` in place on a data set with the labels that the recipe reads.

    Under ``torchrun`` every process must call this, and each works on its share of the rows.

    Args:
        network: maps normalised images (N, 3, S, S) to logits (N, C); trained on its device.
        dataset: data set with ``labels=recipe.labels``.
        recipe: loss, optimiser, schedule; without a temperature it takes the data set's.
        steps: number of gradient steps, >= 1.
        seed: seed of the order and of the network's random numbers.
        workers: number of processes that decode images and make views and labels for a data set on
            the CPU; on a GPU this process makes whole batches there.
        on_step: called after each step with the number of steps done and the detached loss.
        bfloat16: as for ``train_student``; labels are in the data set's ``dtype``.
        average: as for ``train_student``.
        checkpoint: file to save the state to and resume from; or an existing folder, which holds
            the states of any number of runs.
        checkpoint_every: steps between two states.
        keeper: facts to save and restore with the state.
        labels: source of the labels if it is not the archive; part of the identity of the run.

    Returns:
        The same network, in train mode.

    Raises:
        HelloError: an image or label cannot be read or made.
        UserInputError: a batch has fewer rows than there are processes (E_OPTION).
        StateError: the checkpoint is of another run (E_STATE_DIGEST).
        ValueError: steps < 1, labels that the recipe does not read, or a loss that is not finite.
        OSError: the checkpoint cannot be read or written.

    Example:
        >>> import hellofmt
        >>> from hellofmt.student import build_student, recipe
        >>> how = recipe("hello")
        >>> dataset = hellofmt.HelloDataset("photos.hello", labels=how.labels)
        >>> student = build_student("cnn", classes=3, size=16)
        >>> _ = train_from_dataset(student, dataset, how, steps=2)
    """
    plan = replace(recipe, temperature=dataset.temperature)
    place = ranks.current()
    if place.world > plan.batch_size:
        each = f"at least one for each of {place.world} processes"
        text = f"batch of {plan.batch_size} views; expected {each}"
        raise UserInputError.make("E_OPTION", text)
    ranks.same_(network.state_dict().values())
    kept = None
    if checkpoint is not None:
        decay = None if average is None else average.decay
        settings = [plan, steps, seed, dataset.seed, bfloat16, decay, place.world, labels]
        settings += [len(dataset), dataset.label_function, dataset.views_per_image]
        run = digest_of([dataset.id, network, *settings, str(dataset.dtype)])
        path = Path(checkpoint)
        if path.is_dir():
            path = path / f"student-{run[:20]}.safetensors"
        kept = Checkpoint(path, run, checkpoint_every, keeper=keeper)
    share = ranks.share(plan.batch_size)
    maker = None
    has_transform = dataset.transform is not None or dataset.target_transform is not None
    if dataset.device.type == "cuda" and not has_transform:
        # A forked worker cannot label on a GPU, nor need it: the batches are made there.
        maker = BatchMaker(dataset, channels_last=True)
    return train_student(
        network,
        ArchiveBatches(dataset, plan, steps, seed, workers, share=share, maker=maker),
        plan,
        steps=steps,
        on_step=on_step,
        bfloat16=bfloat16,
        seed=seed,
        average=average,
        checkpoint=kept,
        is_split=place.world > 1,
    )


def train_from_archive(
    network: nn.Module,
    source: str | os.PathLike[str] | Archive,
    recipe: Recipe,
    *,
    steps: int,
    seed: int = 0,
    workers: int = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
    bfloat16: bool = False,
    average: Average | None = None,
    **options: Any,
) -> nn.Module:
    """Train ``network`` in place from an archive alone; see ``train_from_dataset``.

    Args:
        network: maps normalised images (N, 3, S, S) to logits (N, C); trained on its device.
        source: path of an archive, or an open archive.
        recipe: loss, labels, optimiser, schedule; without a temperature it takes the archive's.
        steps: number of gradient steps, >= 1.
        seed: seed of order, views and the network's random numbers.
        workers: as for ``train_from_dataset``, and so are the three below.
        on_step: called after each step.
        bfloat16: autocast of the network.
        average: moving average.
        options: of ``HelloDataset``, such as ``base``, ``stored``, ``ipc`` or ``views_per_image``.

    Returns:
        The same network, in train mode.

    Raises:
        HelloError: the archive is refused, or lacks what the recipe's labels need.
        ValueError: steps < 1, or the loss is not finite.

    Example:
        >>> from hellofmt.student import build_student, recipe
        >>> student = build_student("cnn", classes=3, size=16)
        >>> _ = train_from_archive(student, "photos.hello", recipe("hello"), steps=2)
    """
    labels, temperature = recipe.labels, recipe.temperature
    return train_from_dataset(
        network,
        HelloDataset(source, labels=labels, temperature=temperature, seed=seed, **options),
        recipe,
        steps=steps,
        seed=seed,
        workers=workers,
        on_step=on_step,
        bfloat16=bfloat16,
        average=average,
    )
