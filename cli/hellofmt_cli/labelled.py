"""Images of an archive with views and their soft labels, for whatever shows them.

An image is seen in its first views, those of epochs 0, 1, ...; each has the label that a student
would get for it, mixed partners included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hellofmt.errors import UserInputError, did_you_mean, printable
from hellofmt.loading import EpochIndex, HelloDataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.archive import Archive

LOOKED_AT: Final = 512
"""Images that the largest errors are looked for among, evenly spread."""
_LIKELIEST: Final = 4
"""Classes that are named of each label."""
_NAMED: Final = 10
"""Classes that are named to whoever mistypes one."""


@dataclass(frozen=True)
class View:
    """A view, uint8 (S, S, 3), with the largest probabilities of its label by class name."""

    pixels: NDArray[np.uint8]
    label: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Labelled:
    """An image's class, its views, and what their labels give to that class on average."""

    row: int
    name: str
    views: tuple[View, ...]
    share: float


class LabelledImages:
    """Draws views of an archive's images, and labels each with its likeliest classes."""

    def __init__(
        self,
        archive: Archive,
        *,
        views: int = 3,
        base: str | None = None,
        label_function: str | None = None,
    ) -> None:
        if archive.index is None or len(archive) == 0:
            raise UserInputError.make("E_DATA", "the archive has no images to show")
        self._views = views
        # The view itself is shown, not its normalised form.
        self._dataset: Any = HelloDataset(
            archive, base=base, label_function=label_function, transform=lambda view: view
        )
        self._keys, self._all_names = archive.classes.keys, archive.classes.names
        self._names = [names[0] for names in self._all_names]
        self._labels = archive.index.label

    def spread(self, most: int) -> list[int]:
        """The first image of each class, of classes that are evenly spread over the list."""
        _, first = np.unique(self._labels, return_index=True)
        chosen = np.linspace(0, len(first) - 1, min(most, len(first)))
        return [int(first[place]) for place in np.unique(chosen.astype(int))]

    def of_classes(self, words: Sequence[str], most: int) -> list[int]:
        """The first images of the classes with these keys or names."""
        rows: list[int] = []
        for word in words:
            named = zip(self._keys, self._all_names, strict=True)
            labels = [n for n, (key, names) in enumerate(named) if word == key or word in names]
            if not labels:
                known = [*self._keys, *(name for names in self._all_names for name in names)]
                some = ", ".join(printable(key, 40) for key in self._keys[:_NAMED])
                rest = " ..." if len(self._keys) > _NAMED else ""
                raise UserInputError.make(
                    "E_OPTION",
                    f"`--class {printable(word, 80)}` is no class, as are {some}{rest}",
                    advice=did_you_mean(word, known) or "`hello inspect FILE --classes` lists them",
                )
            rows += np.flatnonzero(np.isin(self._labels, labels)).tolist()[:most]
        return rows

    def of(self, rows: Sequence[int]) -> list[Labelled]:
        """Draw and label these rows."""
        return [self._labelled(row) for row in rows]

    def largest_errors(self, most: int) -> list[Labelled]:
        """The rows whose labels give least to their own class, among ``LOOKED_AT`` or all."""
        if most == 0:
            return []
        rows = np.linspace(0, len(self._labels) - 1, min(LOOKED_AT, len(self._labels)))
        looked = [self._labelled(int(row)) for row in np.unique(rows.astype(int))]
        return sorted(looked, key=lambda one: one.share)[:most]

    def _labelled(self, row: int) -> Labelled:
        label, views, shares = int(self._labels[row]), [], []
        for epoch in range(self._views):
            view, soft = self._dataset[EpochIndex(row, epoch)]
            pixels = (view.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            likeliest = soft.topk(min(_LIKELIEST, len(self._names)))
            named = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
            views.append(View(pixels, tuple((self._names[one], value) for one, value in named)))
            shares.append(float(soft[label]))
        return Labelled(row, self._names[label], tuple(views), float(np.mean(shares)))
