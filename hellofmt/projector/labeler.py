"""Serving labels: every delta merged once, then plain inference and one fused head.

A labeler holds a copy of the image tower with merged weights, so no delta, dequantisation or file
is left in the path of a batch; what else is constant is folded in (``hellofmt.projector.serving``).
Labels are made without autograd and returned as ordinary tensors: an inference tensor could not be
saved by the loss of the student that learns from it.

Probes guard what digests cannot see: another activation, another resize, another normalisation or a
delta applied twice give plausible, wrong labels and no error. A labeler built from a file first
labels generated pictures, takes them through the whole path, and compares with the logits that the
writer stored. Tolerances are constants here, never values of the file.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from hellofmt.archive import Archive
    from hellofmt.archive.format.manifest import Adapter, Head
    from hellofmt.projector.base import LoadedBase
    from hellofmt.projector.head import LinearHead
    from hellofmt.projector.lowrank import Delta

__all__ = ["Labeler"]


class Labeler:
    """Views to soft labels: softmax((exp(logit_scale) * normalise(E(v)) W^T + b) / T).

    Attributes:
        temperature: default T, dimensionless.
        classes: number of classes C.
        device: where it runs; views are moved there.
        dtype: dtype of the image tower and of the embeddings.
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
        """Merge ``deltas`` into a copy of the base, in float32, then move and cast.

        Args:
            base: float32 base; not modified.
            deltas: deltas of its image tower.
            head: head for its embeddings.
            temperature: default T, > 0.
            device: where to run.
            dtype: dtype of the image tower; None: float32.
            compile: run the image tower through ``torch.compile``.

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
        """The labeler of an archive.

        Args:
            file: an open archive, or the path of one.
            base: where its base is, as for `hellofmt.projector.load_base`; not needed for seeded
                and embedded bases.
            label_function: name of one of its label functions; None is the first.
            device: where to run.
            dtype: dtype of the image tower; None: float32.
            check_probes: compare with the stored logits of the generated probes.
            compile: run the image tower through ``torch.compile``.

        Returns:
            The labeler, its probes checked.

        Raises:
            BaseModelError: E_BASE_MISSING, E_BASE_CONFIG, E_BASE_PREPROC, E_BASE_WEIGHTS: the base
                is absent or another one; E_BASE_PROBES: it computes other logits.
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
                labeler = cls.assembled(
                    loaded,
                    function.adapter,
                    adapter,
                    function.head,
                    head,
                    names,
                    device=device,
                    dtype=dtype,
                    compile=compile,
                )
                if check_probes:
                    labeler.check_probes(probes["logits"])
        return labeler

    @classmethod
    def assembled(
        cls,
        base: LoadedBase,
        adapter: Adapter,
        adapter_tensors: Mapping[str, NDArray[Any]],
        head: Head,
        head_tensors: Mapping[str, NDArray[Any]],
        names: Sequence[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> Labeler:
        """The labeler of stored parts, which is what a reader of them computes.

        Args:
            base: checked base.
            adapter: manifest entry of the deltas.
            adapter_tensors: section ``adapter``.
            head: manifest entry of the head.
            head_tensors: section ``head``.
            names: first name of every class.
            device: where to run.
            dtype: dtype of the image tower; None: float32.
            compile: run the image tower through ``torch.compile``.

        Returns:
            The labeler; no probes checked.

        Raises:
            SpecError: E_TENSOR, E_RANK: tensors do not fit the base.
            BaseModelError: E_BASE_WEIGHTS, another text tower.
            UserInputError: E_OPTION, CUDA in a forked worker.
        """
        deltas = read_deltas(adapter, adapter_tensors, parameter_shapes(base.visual))
        linear = read_head(head, head_tensors, base, names)
        return cls(
            base,
            deltas,
            linear,
            temperature=decimal_value(head.temperature),
            device=device,
            dtype=dtype,
            compile=compile,
        )

    @property
    def kernel(self) -> str:
        """Name of the algorithm that makes the labels of a usual batch, such as ``"reference"``."""
        features = self._weight.shape[1]
        return hellofmt_kernels.algorithm(128, features, self.classes, self.device, self.dtype)

    @property
    def features(self) -> int:
        """Length D of an embedding."""
        return int(self._weight.shape[1])

    def logits(self, views: Tensor) -> Tensor:
        """Logits before the temperature.

        Args:
            views: (N, 3, S, S) float32 in [0, 1], finished views before any normalisation.

        Returns:
            (N, C) float32 on the labeler's device, without gradient.

        Raises:
            UserInputError: E_DATA, not such a batch; E_OPTION, CUDA in a forked worker.
        """
        return self._run(views, 1.0, is_softmax=False)

    def labels(self, views: Tensor, temperature: float | None = None) -> Tensor:
        """Soft labels: softmax(logits / T).

        Args:
            views: (N, 3, S, S) float32 in [0, 1], finished views before any normalisation.
            temperature: T > 0; None: the archive's.

        Returns:
            (N, C) float32 on the labeler's device, rows sum to 1 within 1e-6, without gradient.

        Raises:
            UserInputError: E_DATA, not such a batch; E_OPTION, CUDA in a forked worker.
            ValueError: the temperature is not a finite number > 0.
        """
        return self._run(views, self._temperature(temperature), is_softmax=True)

    def embeddings(self, views: Tensor) -> Tensor:
        """Unit embeddings of the adapted encoder: what is left to do for a label is the head.

        Args:
            views: (N, 3, S, S) float32 in [0, 1], finished views before any normalisation.

        Returns:
            (N, D) in the labeler's dtype, on its device, without gradient.

        Raises:
            UserInputError: E_DATA, not such a batch; E_OPTION, CUDA in a forked worker.
        """
        refuse_fork(self.device, self._pid)
        with torch.inference_mode():
            x = self._encoder(views.to(self.device)).to(self.dtype)
        # A clone made outside is an ordinary tensor, which autograd may save.
        return x.clone()

    def input_form(self, size: int) -> ViewForm | None:
        """How views of S x S pixels enter the image tower: what a second output may give it.

        The base's mean and std, or 0 and 1 where they are folded into the first weights (a padded
        stem's cannot be); the tower's dtype and memory format.

        Args:
            size: S, pixels.

        Returns:
            For ``hellofmt_kernels.view_pair`` and then ``embeddings_of_inputs``; None where S is
            not the base's size, so that the view is resized before it is normalised.
        """
        preprocess, encoder = self._preprocess, self._encoder
        if size != preprocess.size:
            return None
        form = ViewForm(dtype=self.dtype, is_channels_last=encoder.is_channels_last)
        if encoder.is_folded:
            return form
        mean, std = (tuple(map(decimal_value, v)) for v in (preprocess.mean, preprocess.std))
        return replace(form, mean=mean, std=std)

    def embeddings_of_inputs(self, inputs: Tensor) -> Tensor:
        """Unit embeddings of views that are in ``input_form`` already, as ``embeddings`` gives.

        Args:
            inputs: (N, 3, S, S) in the form of ``input_form(S)``, S the base's size. Whether the
                values are normalised as they should be cannot be seen here.

        Returns:
            (N, D) in the labeler's dtype, on its device, without gradient.

        Raises:
            UserInputError: E_DATA, another shape or dtype; E_OPTION, CUDA in a forked worker.
        """
        refuse_fork(self.device, self._pid)
        size = self._preprocess.size
        if inputs.shape[1:] != (3, size, size) or inputs.dtype != self.dtype or not len(inputs):
            raise UserInputError.make(
                "E_DATA",
                f"inputs: expected (N, 3, {size}, {size}) {_dtype_name(self.dtype)}, N >= 1, "
                f"got {tuple(inputs.shape)} {_dtype_name(inputs.dtype)}",
            )
        with torch.inference_mode():
            x = self._encoder.embedded(inputs.to(self.device)).to(self.dtype)
        # A clone made outside is an ordinary tensor, which autograd may save.
        return x.clone()

    def labels_of(self, embeddings: Tensor, temperature: float | None = None) -> Tensor:
        """Soft labels of embeddings, as ``labels`` makes them of views.

        Args:
            embeddings: (N, D) as from ``embeddings``, of any floating dtype and device.
            temperature: T > 0; None: the archive's.

        Returns:
            (N, C) float32 on the labeler's device, rows sum to 1 within 1e-6, without gradient.

        Raises:
            ValueError: another shape, or the temperature is not a finite number > 0.
        """
        return self._head(embeddings, self._temperature(temperature), is_softmax=True)

    def logits_of(self, embeddings: Tensor) -> Tensor:
        """Logits of embeddings, as ``logits`` makes them of views.

        Args:
            embeddings: (N, D) as from ``embeddings``, of any floating dtype and device.

        Returns:
            (N, C) float32 on the labeler's device, without gradient.

        Raises:
            ValueError: another shape.
        """
        return self._head(embeddings, 1.0, is_softmax=False)

    def _temperature(self, temperature: float | None) -> float:
        return self.temperature if temperature is None else temperature

    def _run(self, views: Tensor, temperature: float, *, is_softmax: bool) -> Tensor:
        refuse_fork(self.device, self._pid)
        with torch.inference_mode():
            x = self._encoder(views.to(self.device)).to(self.dtype)
        return self._head(x, temperature, is_softmax=is_softmax)

    def _head(self, x: Tensor, temperature: float, *, is_softmax: bool) -> Tensor:
        with torch.inference_mode():
            out = hellofmt_kernels.soft_labels(
                x.to(self.device, self.dtype),
                self._weight,
                self._bias,
                LabelOptions(self._scale, temperature, torch.float32, is_softmax),
            )
        # Weights may overflow for one view and not for the probes. Not on a GPU: it would
        # synchronise.
        if out.device.type == "cpu" and not bool(torch.isfinite(out).all()):
            raise BaseModelError.make(
                "E_BASE_PROBES", "labels of these views are not finite; the base is broken"
            )
        # A clone made outside is an ordinary tensor, which autograd may save.
        return out.clone()

    def probe_logits(self, count: int) -> NDArray[np.float32]:
        """Logits of the generated probes, as an archive stores them.

        Args:
            count: number of probes P.

        Returns:
            (P, C) float32.
        """
        return self.logits_of(self._probe_embeddings(count)).cpu().numpy()

    def _probe_embeddings(self, count: int) -> Tensor:
        pictures = probe_images(self._preprocess.size, count)
        views = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        # One at a time: probes are larger than views, and few.
        return torch.cat([self.embeddings(view[None].to(torch.float32) / 255.0) for view in views])

    def check_probes(self, stored: NDArray[np.float32]) -> None:
        """Compare with stored probe logits, and the labels of both at the archive's temperature.

        Args:
            stored: (P, C) float32.

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


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """State-dict names and shapes of the parameters of ``module``."""
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def refuse_fork(device: torch.device, pid: int) -> None:
    """Refuse CUDA in a worker that was forked.

    Args:
        device: where labels are to be made.
        pid: process that built the labeler.

    Raises:
        UserInputError: E_OPTION, CUDA cannot work here.
    """
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
