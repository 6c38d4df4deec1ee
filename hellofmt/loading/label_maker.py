"""Labels of a dataset's views: read, taken from the pool, or made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hellofmt.archive.format.canonical import decimal_value
from hellofmt.archive.format.functions import find_function
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import UserInputError
from hellofmt.loading.arguments import device_of
from hellofmt.loading.labelling import FunctionLabeler
from hellofmt.loading.pool import LabelPool
from hellofmt.projector.labeler import Labeler, refuse_fork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.read.archive import Archive
    from hellofmt.loading.arguments import LabelKind
    from hellofmt.loading.stored_labels import StoredLabels
    from hellofmt.projector.base import LoadedBase


class LabelMaker:
    """What a ``HelloDataset`` has its labels from; its arguments are those of that.

    Attributes:
        name: name of the label function of the archive, None if it has none.
    """

    def __init__(
        self,
        file: Archive,
        kind: LabelKind,
        *,
        label_function: str | Callable[[Tensor], Tensor] | None,
        stored: StoredLabels | None,
        temperature: float | None,
        base: str | Path | LoadedBase | nn.Module | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        name = label_function if isinstance(label_function, str) else None
        function = None if isinstance(label_function, str) else label_function
        self.name: str | None = None
        if file.manifest.functions is not UNSET or name is not None:
            self.name = find_function(file.manifest, name).name
        elif function is None and stored is None and kind in ("soft", "logits"):
            owner = file.manifest.label_function or ""
            text = f"{kind} labels need a projector, which the archive lacks"
            text += f"; it is in archive {owner}" if owner else "; it has hard ones"
            advice = "`hello pack FILE --projector PROJECTOR` joins them" if owner else ""
            raise UserInputError.make("E_DATA", text, advice=advice)
        elif kind == "soft" and stored is None and temperature is None:
            text = "the archive has no projector and so no temperature; expected a number > 0"
            raise UserInputError.make("E_OPTION", text, argument="temperature")
        self._file, self._kind, self._base = file, kind, base
        self._stored, self._temperature = stored, temperature
        self._device, self._dtype = device, dtype
        self._function: FunctionLabeler | None = None
        if function is not None:
            self._function = FunctionLabeler(function, file.manifest.classes, device)
        self._labelers: dict[tuple[str, bool], Labeler] = {}
        self._pool: LabelPool | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle no labeler: each process builds its own."""
        return {**self.__dict__, "_labelers": {}}

    def make_pool(self, rows: int, views: int, budget: int) -> LabelPool | None:
        """Make room for the labels of ``views`` views of each row, if labels are made."""
        manifest = self._file.manifest
        if self._stored is None and self._kind in ("soft", "logits"):
            width = manifest.classes
            if self._function is None and manifest.base is not UNSET:
                width = min(width, manifest.base.arch.embed_dim)
            self._pool = LabelPool(rows, views, width, budget=budget, device=self._device)
        return self._pool

    @property
    def temperature(self) -> float | None:
        """See ``HelloDataset.temperature``."""
        if self._temperature is None and self._stored is not None:
            return self._stored.temperature
        if self._temperature is not None or self.name is None:
            return self._temperature
        return decimal_value(find_function(self._file.manifest, self.name).head.temperature)

    def labeler(
        self, device: str | torch.device | None = None, *, compile: bool = False
    ) -> Labeler:
        """See ``HelloDataset.labeler``."""
        where = self._device if device is None else device_of(device, is_used=False)
        # Before a base is loaded in vain.
        refuse_fork(where, os.getpid())
        device_of(where)
        key = str(where), compile
        if key not in self._labelers:
            self._labelers[key] = Labeler.from_file(
                self._file,
                self._base,
                label_function=self.name,
                device=where,
                dtype=self._dtype,
                compile=compile,
            )
        return self._labelers[key]

    def source(self, *, compile: bool = False) -> Labeler | FunctionLabeler:
        """Return what makes the soft labels: the label function, else the labeler."""
        return self.labeler(compile=compile) if self._function is None else self._function

    def labels(
        self,
        rows: NDArray[np.int64],
        epochs: NDArray[np.int64],
        views: Tensor,
        source: Labeler | FunctionLabeler | None,
        embed: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Return soft labels or logits (N, C), float32; see ``HelloDataset.labels_of``."""
        if self._stored is not None:
            labeler = self.labeler() if self._stored.form == "embeddings" else None
            return self._stored.labels(rows, epochs, labeler=labeler, temperature=self._temperature)

        # Built when it is needed: the workers of a later pass may find every label in the pool.
        def maker() -> Labeler | FunctionLabeler:
            return self.source() if source is None else source

        def embedded(some: Tensor) -> Tensor:
            return maker().embeddings(some) if embed is None else embed(some)

        def finished(x: Tensor) -> Tensor:
            if self._kind == "logits":
                return maker().logits_of(x)
            return maker().labels_of(x, self.temperature)

        pool = self._pool
        if pool is None:
            return finished(embedded(views))
        # Embeddings, where they are shorter than labels.
        if pool.width < self._file.manifest.classes:
            return finished(pool.labels(rows, epochs, lambda new: embedded(views[new])))
        kept = pool.labels(rows, epochs, lambda new: finished(embedded(views[new])))
        # Only a function of the user's can give such; to look for them, a GPU is waited for.
        if self._kind == "logits" and self._function is not None and kept.isinf().any():
            text = "logits of the label function for `views_per_image`, kept in half precision;"
            raise UserInputError.make("E_TEACHER", text + " expected at most 65,504, got others")
        return kept.float()
