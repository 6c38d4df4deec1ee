"""Labels made in the main process, for data loaders whose workers have no GPU.

Workers make the views, which takes the CPU time, and one labeler on the GPU labels whole batches as
they arrive. A view must arrive as it is labelled, in [0, 1] and not normalised: undoing a
normalisation in float32 is not exact, and two tensors per view would double the traffic. So the
dataset yields bare views (``labels="none"``), and they are normalised for the student here, after
the label, on the labeler's device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from torch.utils.data import DataLoader

from hellofmt.errors import UserInputError
from hellofmt.loading.arguments import positive
from hellofmt.loading.dataset import HelloDataset
from hellofmt.loading.passes import Passes
from hellofmt.loading.sampler import HelloSampler
from hellofmt.loading.views.normalise import normalise
from hellofmt.projector.labeler import Labeler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def _dataset_of(loader: object) -> HelloDataset:
    """Return the dataset that the loader reads, through any ``Subset``."""
    # Accelerate's loaders are of another class but claim this one.
    if not isinstance(loader, DataLoader):
        text = f"`loader`; expected a DataLoader, got {type(loader).__name__}"
        if isinstance(loader, HelloDataset):
            text += ": pass DataLoader(dataset, batch_size=...)"
        elif isinstance(getattr(loader, "dataset", None), HelloDataset):
            text += ", whose batches have labels already"
        raise UserInputError.make("E_OPTION", text)
    dataset: Any = loader.dataset
    while not isinstance(dataset, HelloDataset) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if not isinstance(dataset, HelloDataset):
        text = f"`loader`; expected one over a HelloDataset, got {type(dataset).__name__}"
        raise UserInputError.make("E_OPTION", text)
    if dataset.labels != "none":
        text = f"the loader's data set; expected labels='none', got {dataset.labels!r}"
        raise UserInputError.make("E_OPTION", text)
    if dataset.transform is not None:
        text = "the dataset has a `transform`, which would change views before they are labelled;"
        raise UserInputError.make("E_OPTION", text + " remove it")
    return dataset


class SoftBatches(Passes):
    """Batches of (images, labels) from a loader of views; each ``for`` loop over it is one pass."""

    def __init__(
        self,
        loader: DataLoader[Any],
        labeler: Labeler,
        labels: Literal["soft", "logits"],
        temperature: float | None,
    ) -> None:
        """Check the arguments of ``soft_batches``; call that instead."""
        dataset = _dataset_of(loader)
        if not isinstance(cast("object", labeler), Labeler):
            text = f"`labeler`; expected a Labeler, got {type(labeler).__name__}"
            raise UserInputError.make("E_OPTION", text + ": pass dataset.labeler(device)")
        if labels not in ("soft", "logits"):
            text = f"`labels`; expected 'soft' or 'logits', got {labels!r}"
            raise UserInputError.make("E_OPTION", text)
        self._loader = loader
        self._labeler = labeler
        self._labels = labels
        self._temperature = dataset.temperature
        if temperature is not None:
            self._temperature = positive(temperature, "temperature")
        self._views = dataset.views

    def __len__(self) -> int:
        """Return the number of batches of a whole pass."""
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a pass: images float32 (N, 3, S, S), normalised, and labels float32 (N, C)."""
        for views in self._counted(self._loader):
            here = views.to(self._labeler.device, non_blocking=True)
            if self._labels == "soft":
                labels = self._labeler.labels(here, self._temperature)
            else:
                labels = self._labeler.logits(here)
            yield normalise(here, self._views), labels

    def _order(self) -> HelloSampler:
        sampler: object = self._loader.batch_sampler
        if not isinstance(sampler, HelloSampler):
            text = "the loader's batch sampler; expected a HelloSampler, which has a state, got"
            raise UserInputError.make("E_OPTION", f"{text} {type(sampler).__name__}")
        return sampler


def soft_batches(
    loader: DataLoader[Any],
    labeler: Labeler,
    *,
    labels: Literal["soft", "logits"] = "soft",
    temperature: float | None = None,
) -> SoftBatches:
    """Label the views of a loader in this process, on the labeler's device.

    It is not told which views it gets, so there is no pool of labels, whatever ``views_per_image``
    is; ``HelloLoader`` has one on the device.

    Args:
        loader: loader over a ``HelloDataset`` with ``labels="none"`` and no transform, or over a
            ``Subset`` of one.
        labeler: usually ``dataset.labeler(device)``.
        labels: ``"soft"`` for softmax(logits / temperature), or ``"logits"``.
        temperature: T > 0; by default the dataset's.

    Returns:
        An iterable of images float32 (N, 3, S, S), normalised, and labels float32 (N, C), on the
        labeler's device. If the loader's batch sampler is a ``HelloSampler``, its
        ``state_dict()`` says where the pass stands.

    Raises:
        UserInputError: E_OPTION, the loader, the labeler or ``labels`` does not fit.

    Example:
        >>> import hellofmt
        >>> from torch.utils.data import DataLoader
        >>> dataset = hellofmt.HelloDataset("photos.hello", labels="none")
        >>> loader = DataLoader(dataset, batch_size=40, shuffle=True)
        >>> batches = hellofmt.soft_batches(loader, dataset.labeler("cpu"))
        >>> [tuple(labels.shape) for images, labels in batches]
        [(40, 3), (20, 3)]
    """
    return SoftBatches(loader, labeler, labels, temperature)
