"""The images that a choice looks at: drawn, cut, and seen by the teacher or the label function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from torch.nn import functional

from hellofmt import rng
from hellofmt.archive.format.canonical import decimal_value
from hellofmt.distillation.selection import CROPS
from hellofmt.making import shown
from hellofmt.sources import decode_crops
from hellofmt.teacher import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.views import Views
    from hellofmt.distillation.selection import SelectSettings
    from hellofmt.projector import Labeler
    from hellofmt.sources import Source

Box: TypeAlias = tuple[int, int, int, int]

_SHARES: Final = (0.08, 1.0)
"""Smallest and largest area of a crop as a share of the image, as in RDED."""


def drawn(source: Source, settings: SelectSettings) -> list[NDArray[np.int64]]:
    """Draw the rows that are looked at, of each class in the order of the draw."""
    most = settings.candidates
    if settings.method == "random" and not (settings.is_cropped or source.skips_unreadable):
        most = settings.ipc * settings.factor**2
    keys = rng.words(settings.seed, 0, rng.Stream.SELECTION, 0, len(source))
    labels = source.labels
    by_key = np.lexsort((keys, labels))
    starts = np.searchsorted(labels[by_key], np.arange(len(source.classes)))
    return [rows[:most] for rows in np.split(by_key, starts[1:])]


def crop_boxes(words: NDArray[np.uint64], height: int, width: int) -> list[Box]:
    """Top, left, height and width of square crops of one image, drawn from ``words`` (3 * crops,).

    Word 3 t of ``word(seed, 1, SELECTION, row, .)`` draws the area of crop t, uniform in 0.08 to 1
    of the image; words 3 t + 1 and 3 t + 2 its place.
    """
    low, high = _SHARES
    shares = (low + (high - low) * rng.uniform(words[0::3])).tolist()
    boxes: list[Box] = []
    for share, y, x in zip(shares, words[1::3].tolist(), words[2::3].tolist(), strict=True):
        side = min(max(round(math.sqrt(share * (height * width))), 1), height, width)
        boxes.append((y * (height - side + 1) >> 64, x * (width - side + 1) >> 64, side, side))
    return boxes


def _whole(height: int, width: int) -> list[Box]:
    """The whole image, as far as a square shows it: its middle."""
    side = min(height, width)
    return [((height - side) // 2, (width - side) // 2, side, side)]


@dataclass(frozen=True)
class Cut:
    """Cuts candidates, in workers."""

    source: Source
    settings: SelectSettings
    views: Views

    def __call__(self, rows: NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
        """Cut rows (M,): squares uint8 (M * n, s, s, 3) and their boxes int32 (M, n, 4).

        First, if the label function looks at them, whole images at the size of a view. Last what
        may be stored, at the size of a cell; where that is neither scored nor cropped, the first
        does for both.
        """
        settings, size = self.settings, self.views.size
        whole: list[Callable[[int, int], list[Box]]] = [_whole] * len(rows)
        cut: list[tuple[Tensor, Tensor]] = []
        if settings.is_embedded:
            cut.append(self._squares(rows, whole, size))
        if settings.is_cropped:
            # Epoch 1: epoch 0 of this stream draws the candidates.
            words = rng.words(settings.seed, 1, rng.Stream.SELECTION, rows, 3 * CROPS)
            crops = [partial(crop_boxes, word) for word in words]
            cut.append(self._squares(rows, crops, size // settings.factor))
        elif not cut:
            cut.append(self._squares(rows, whole, size // settings.factor))
        return cut

    def _squares(
        self, rows: NDArray[np.int64], draws: Sequence[Callable[[int, int], list[Box]]], size: int
    ) -> tuple[Tensor, Tensor]:
        cut = [self._image(row, draw, size) for row, draw in zip(rows.tolist(), draws, strict=True)]
        squares, boxes = zip(*cut, strict=True)
        return torch.from_numpy(np.concatenate(squares)), torch.tensor(boxes, dtype=torch.int32)

    def _image(
        self, row: int, draw: Callable[[int, int], list[Box]], size: int
    ) -> tuple[NDArray[np.uint8], list[Box]]:
        boxes: list[Box] = []

        def noted(height: int, width: int) -> list[Box]:
            # Asked again for a stand-in, which may have another size.
            boxes[:] = draw(height, width)
            return boxes

        return decode_crops(self.source, row, noted, size, self.views.interpolation), boxes


@dataclass(frozen=True)
class Eyes:
    """Looks at what was cut, with the teacher and, if images are embedded, the label function."""

    settings: SelectSettings
    teacher: Callable[[Tensor], Tensor]
    labeler: Labeler | None
    views: Views

    def __call__(self, cut: list[tuple[Tensor, Tensor]], label: int) -> dict[str, NDArray[Any]]:
        """Look at images of one class.

        Returns:
            ``boxes``, int32 (M, 4), the easiest crop or the whole; ``losses``, float64 (M,), the
            teacher's cross-entropy of it in nats, if it is scored; ``embeddings``, float32 (M, D),
            and ``entropies``, float64 (M,), of the label at T = 1 in nats, if whole images are
            embedded.
        """
        squares, every = cut[-1]
        seen: dict[str, NDArray[Any]] = {"boxes": every[:, 0].numpy()}
        if self.settings.scored:
            losses = self._losses(squares, label).reshape(len(every), -1)
            best = losses.argmin(1)
            seen["losses"] = losses[np.arange(len(losses)), best]
            seen["boxes"] = every.numpy()[np.arange(len(losses)), best]
        if self.settings.is_embedded and self.labeler is not None:
            device = self.labeler.device
            # A teacher's precision is not the label function's.
            with torch.autocast(device.type, enabled=False):
                embeddings = self.labeler.embeddings(shown(cut[0][0], device))
                logs = functional.log_softmax(self.labeler.logits_of(embeddings).double(), dim=1)
            seen["embeddings"] = embeddings.float().cpu().numpy()
            seen["entropies"] = -(logs.exp() * logs).sum(1).cpu().numpy()
        return seen

    def _losses(self, squares: Tensor, label: int) -> NDArray[np.float64]:
        """Teacher's cross-entropy of squares, padded to the size of a view with the mean colour."""
        device, side = device_of(self.teacher), squares.shape[1]
        border = (self.views.size - side) // 2
        rest = self.views.size - side - border
        # Zero after normalising is the mean before it.
        mean = torch.tensor([decimal_value(value) for value in self.views.mean], device=device)
        mean = mean.view(1, 3, 1, 1)
        with torch.inference_mode():
            crops = shown(squares, device)
            if rest:
                crops = functional.pad(crops - mean, (border, rest, border, rest)) + mean
            logits = self.teacher(crops).float()
            truth = torch.full((len(logits),), label, device=logits.device)
            losses = functional.cross_entropy(logits, truth, reduction="none")
            return losses.double().cpu().numpy()
