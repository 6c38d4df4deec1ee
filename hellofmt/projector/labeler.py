"""Labels from views: deltas merged once, then plain inference and one fused head.

A labeler holds a copy of the image tower with merged weights, so no delta, dequantisation or file
is left in the path of a batch; other constants are folded in (``hellofmt.projector.serving``).
Labels are made without autograd and returned as ordinary tensors: autograd cannot save an inference
tensor for the loss of the student that learns from it.

Probes catch what digests cannot: another activation, resize or normalisation, or a delta applied
twice, gives plausible, wrong labels and no error. A labeler built from a file first sends generated
pictures through the whole path and compares their logits with those that the writer stored.
Tolerances are constants here, never values of the file.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

import hellofmt_kernels
from hellofmt.archive import open_archive
from hellofmt.archive.format.canonical import decimal_value
from hellofmt.archive.format.functions import FUNCTION_SECTIONS, find_function, function_section
from hellofmt.archive.format.probes import probe_images
from hellofmt.errors import BaseModelError, UserInputError
from hellofmt.projector.base import base_of
from hellofmt.projector.base.foreign import foreign_calls
from hellofmt.projector.head import check_texts, read_head
from hellofmt.projector.lowrank import merge_, read_deltas
from hellofmt.projector.probe_check import compare_labels, compare_probes, tolerance_of
from hellofmt.projector.serving import ServingEncoder
from hellofmt_kernels import LabelOptions, ViewForm
from hellofmt_kernels.device import dtype_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from hellofmt.archive import Archive
    from hellofmt.projector.base import LoadedBase
    from hellofmt.projector.head import LinearHead
    from hellofmt.projector.lowrank import Delta


class Labeler:
    """Views to soft labels: softmax((exp(logit_scale) * normalise(E(v)) W^T + b) / T).

    Attributes:
        temperature: default T, dimensionless.
        classes: number of classes C.
        device: device it runs on; views are moved there.
        dtype: dtype of the image tower and of the embeddings.

    Example:
        >>> import hellofmt, torch
        >>> labeler = hellofmt.Labeler.from_file("photos.hello")
        >>> labeler.labels(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        base: LoadedBase,
        deltas: Sequence[Delta],
        head: LinearHead,
        *,
        temperature: float,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        """Merge ``deltas`` into a float32 copy of the base, then move and cast it.

        Args:
            base: float32 base; not modified.
            deltas: deltas of its image tower.
            head: head for its embeddings.
            temperature: default T, > 0.
            device: device to run on.
            dtype: dtype of the image tower; None means float32. On a CPU, bfloat16 is faster where
                the processor multiplies it (AMX, AVX-512 BF16) and slower elsewhere.
            compile: run the image tower through ``torch.compile``; on a CPU it gains a little for
                convolutional towers and slows transformers down.

        Raises:
            UserInputError: E_OPTION, CUDA in a forked worker.
        """
        self.device = torch.device(device)
        refuse_fork(self.device, os.getpid())
        self.dtype = dtype or torch.float32
        self.temperature = temperature
        self._pid = os.getpid()
        self._preprocess = base.spec.preprocess
        encoder = copy.deepcopy(base.encoder)
        merge_(encoder.visual, deltas)
        self._encoder = ServingEncoder(
            encoder,
            device=self.device,
            dtype=self.dtype,
            compile=compile,
        )
        with torch.no_grad():
            rows = head.merged().detach().float()
            self._norms = rows.norm(dim=1).cpu()
            self._weight = rows.to(self.device, self.dtype, copy=True)
            self._bias = None if head.bias is None else head.bias.detach().to(self.device).clone()
            self._scale = float(head.logit_scale.detach().double().exp())
        self.classes = int(rows.shape[0])

    @classmethod
    def from_file(
        cls,
        file: Archive | str | os.PathLike[str],
        base: str | Path | LoadedBase | nn.Module | None = None,
        *,
        label_function: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        check_probes: bool = True,
        compile: bool = False,
    ) -> Labeler:
        """Build the labeler of an archive and check its probes.

        Args:
            file: an open archive, or the path of one.
            base: where its base is, as for `hellofmt.projector.load_base`; seeded and embedded
                bases need none.
            label_function: name of one of its label functions; None means the first.
            device: device to run on.
            dtype: dtype of the image tower, as for ``Labeler``.
            check_probes: compare with the stored logits of the generated probes.
            compile: run the image tower through ``torch.compile``.

        Raises:
            BaseModelError: E_BASE_MISSING, E_BASE_CONFIG, E_BASE_PREPROC, E_BASE_WEIGHTS: the base
                is missing or differs; E_BASE_PROBES: it computes other logits.
            SpecError: E_TENSOR, E_RANK: tensors do not fit the base.
            UserInputError: E_OPTION, the archive has no projector or none of this name, or CUDA in
                a forked worker.
        """
        is_path = isinstance(file, (str, os.PathLike))
        with open_archive(file) if is_path else contextlib.nullcontext(file) as opened:
            function = find_function(opened.manifest, label_function)
            names = [names[0] for names in opened.classes.names]
            check_texts(opened, function.head, names)
            loaded = base_of(opened, base)
            adapter, head, probes = (
                opened.tensors(function_section(opened.manifest, label_function, kind))
                for kind in FUNCTION_SECTIONS
            )
            with foreign_calls("the label function cannot be computed"):
                labeler = cls(
                    loaded,
                    read_deltas(function.adapter, adapter, parameter_shapes(loaded.visual)),
                    read_head(function.head, head, loaded, names),
                    temperature=decimal_value(function.head.temperature),
                    device=device,
                    dtype=dtype,
                    compile=compile,
                )
                if check_probes:
                    labeler.check_probes(probes["logits"])
        return labeler

    @property
    def kernel(self) -> str:
        """Name of the algorithm that labels a usual batch, such as ``"reference"``."""
        features = self._weight.shape[1]
        return hellofmt_kernels.algorithm(128, features, self.classes, self.device, self.dtype)

    @property
    def features(self) -> int:
        """Length D of an embedding."""
        return int(self._weight.shape[1])

    def logits(self, views: Tensor) -> Tensor:
        """Compute logits, before the temperature.

        Args:
            views: (N, 3, S, S) float32 in [0, 1], finished views before any normalisation.

        Returns:
            (N, C) float32 on the labeler's device, without gradient.

        Raises:
            UserInputError: E_DATA, not such a batch; E_OPTION, CUDA in a forked worker.
        """
        return self.logits_of(self.embeddings(views))

    def labels(self, views: Tensor, temperature: float | None = None) -> Tensor:
        """Compute soft labels: softmax(logits / T).

        Args:
            views: (N, 3, S, S) float32 in [0, 1], finished views before any normalisation.
            temperature: T > 0; None means the archive's.

        Returns:
            (N, C) float32 on the labeler's device, rows sum to 1 within 1e-6, without gradient.

        Raises:
            UserInputError: as ``logits``.
            ValueError: the temperature is not a finite number > 0.
        """
        return self.labels_of(self.embeddings(views), temperature)

    def embeddings(self, views: Tensor) -> Tensor:
        """Compute unit embeddings; only the head separates them from a label.

        Args:
            views: (N, 3, S, S) float32 in [0, 1], finished views before any normalisation.

        Returns:
            (N, D) in the labeler's dtype, on its device, without gradient.

        Raises:
            UserInputError: as ``logits``.
        """
        return self._embeddings(self._encoder, views)

    def input_form(self, size: int) -> ViewForm | None:
        """Return the form in which views of S x S pixels enter the image tower.

        Its mean and std are the base's, or 0 and 1 where they are folded into the first weights (a
        padded stem cannot take them). It is for ``hellofmt_kernels.view_pair`` and then
        ``embeddings_of_inputs``; None if S is not the base's size, since such a view is resized
        before it is normalised.
        """
        preprocess, encoder = self._preprocess, self._encoder
        if size != preprocess.size:
            return None
        form = ViewForm(dtype=self.dtype, is_channels_last=True)
        if encoder.is_folded:
            return form
        mean, std = (tuple(map(decimal_value, v)) for v in (preprocess.mean, preprocess.std))
        return replace(form, mean=mean, std=std)

    def embeddings_of_inputs(self, inputs: Tensor) -> Tensor:
        """Compute the ``embeddings`` of views that are in ``input_form`` already.

        Args:
            inputs: (N, 3, S, S) in the form of ``input_form(S)``, S the base's size. Nothing here
                can tell whether the values were normalised as they should be.

        Returns:
            (N, D) in the labeler's dtype, on its device, without gradient.

        Raises:
            UserInputError: E_DATA, another shape or dtype; E_OPTION, CUDA in a forked worker.
        """
        size = self._preprocess.size
        if inputs.shape[1:] != (3, size, size) or inputs.dtype != self.dtype or not len(inputs):
            raise UserInputError.make(
                "E_DATA",
                f"inputs: expected (N, 3, {size}, {size}) {dtype_name(self.dtype)}, N >= 1, "
                f"got {tuple(inputs.shape)} {dtype_name(inputs.dtype)}",
            )
        return self._embeddings(self._encoder.embedded, inputs)

    def _embeddings(self, tower: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
        refuse_fork(self.device, self._pid)
        with torch.inference_mode():
            x = tower(views.to(self.device)).to(self.dtype)
        # A clone made outside is an ordinary tensor, which autograd may save.
        return x.clone()

    def labels_of(self, embeddings: Tensor, temperature: float | None = None) -> Tensor:
        """Compute the ``labels`` of views from their embeddings.

        Args:
            embeddings: (N, D) as from ``embeddings``, of any floating dtype and device.
            temperature: T > 0; None means the archive's.

        Returns:
            (N, C) float32 on the labeler's device, rows sum to 1 within 1e-6, without gradient.

        Raises:
            ValueError: another shape, or the temperature is not a finite number > 0.
        """
        temperature = self.temperature if temperature is None else temperature
        return self._head(embeddings, temperature, is_softmax=True)

    def logits_of(self, embeddings: Tensor) -> Tensor:
        """Compute the ``logits`` of views from their embeddings.

        Args:
            embeddings: (N, D) as from ``embeddings``, of any floating dtype and device.

        Returns:
            (N, C) float32 on the labeler's device, without gradient.

        Raises:
            ValueError: another shape.
        """
        return self._head(embeddings, 1.0, is_softmax=False)

    def _head(self, x: Tensor, temperature: float, *, is_softmax: bool) -> Tensor:
        with torch.inference_mode():
            out = hellofmt_kernels.soft_labels(
                x.to(self.device, self.dtype),
                self._weight,
                self._bias,
                LabelOptions(self._scale, temperature, torch.float32, is_softmax),
            )
        # Weights may overflow for one view and not for the probes. On a GPU the check would
        # synchronise.
        if out.device.type == "cpu" and not bool(torch.isfinite(out).all()):
            raise BaseModelError.make(
                "E_BASE_PROBES", "the labels of these views are not finite; the base is broken"
            )
        # A clone made outside is an ordinary tensor, which autograd may save.
        return out.clone()

    def probe_logits(self, count: int) -> NDArray[np.float32]:
        """Compute the (P, C) float32 logits of ``count`` generated probes, as an archive does."""
        return self.logits_of(self._probe_embeddings(count)).cpu().numpy()

    def _probe_embeddings(self, count: int) -> Tensor:
        pictures = probe_images(self._preprocess.size, count)
        views = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        # One at a time: probes are few, and larger than views.
        return torch.cat([self.embeddings(view[None].to(torch.float32) / 255.0) for view in views])

    def check_probes(self, stored: NDArray[np.float32]) -> None:
        """Compare logits and labels of the probes with the stored (P, C) logits.

        Raises:
            BaseModelError: E_BASE_PROBES, a difference is above the tolerance of this device and
                dtype.
        """
        embeddings = self._probe_embeddings(stored.shape[0])
        tolerance = tolerance_of(self.device, self.dtype)
        compare_probes(
            self.logits_of(embeddings).cpu().numpy(),
            stored,
            norms=self._norms.double().numpy(),
            scale=self._scale,
            tolerance=tolerance,
        )
        compare_labels(
            self.labels_of(embeddings).cpu().numpy(),
            stored,
            temperature=self.temperature,
            largest=tolerance.largest * self._scale * float(self._norms.max()),
        )


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of ``module`` by its state-dict name."""
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def refuse_fork(device: torch.device, pid: int) -> None:
    """Refuse CUDA in a forked worker; ``pid`` is the process that built the labeler."""
    if device.type != "cuda":
        return
    is_forked = pid != os.getpid() or (
        get_worker_info() is not None and multiprocessing.get_start_method() == "fork"
    )
    if is_forked:
        raise UserInputError.make(
            "E_OPTION",
            "labels on CUDA cannot be made in a forked DataLoader worker; expected labels='none' "
            "in the workers and `hellofmt.soft_batches(loader, labeler)` in the main process",
        )
