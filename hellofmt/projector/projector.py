"""The label function during fitting: base, trainable deltas, trainable head.

``forward`` is differentiable in the low-rank factors, the head and nothing else; the tower stays in
eval mode whatever mode the projector is put in, because batch-norm statistics that moved during a
fit would silently become part of the payload. ``part`` quantises, reads its own bytes back the way
a reader will, and stores *those* logits as probes: they promise what a reader computes, not what
the writer had in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from hellofmt.archive import ProjectorPart
from hellofmt.archive.format.canonical import decimal_string, decimal_value
from hellofmt.archive.format.functions import find_function, function_section
from hellofmt.archive.format.manifest import Adapter, Target
from hellofmt.errors import UserInputError
from hellofmt.projector import quantise
from hellofmt.projector.base import base_of
from hellofmt.projector.base.arch import without_text
from hellofmt.projector.head import LinearHead, read_head
from hellofmt.projector.labeler import Labeler, parameter_shapes
from hellofmt.projector.lowrank import Delta, read_deltas
from hellofmt.projector.peft import read_peft, write_peft
from hellofmt.projector.targets import delta_shapes, is_paper

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from hellofmt.archive import Archive
    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.manifest import Storage
    from hellofmt.archive.format.tensors import StoredTensor
    from hellofmt.projector.base import LoadedBase
    from hellofmt.projector.peft import MhaFix
    from hellofmt.projector.targets import TargetRule

__all__ = ["Projector"]


class Projector(nn.Module):
    """z = exp(logit_scale) * normalise(E_delta(v)) W^T + b, trainable in the low-rank factors.

    Attributes:
        base: the frozen base; not modified, unless the projector is moved to another device.
        deltas: one per adapted parameter, sorted by name.
        head: the linear head.
        names: first name of every class.
        temperature: default T of the labels.
    """

    def __init__(
        self,
        base: LoadedBase,
        deltas: Sequence[Delta],
        head: LinearHead,
        *,
        names: Sequence[str],
        temperature: float,
    ) -> None:
        """Join the parts; see `build` and `from_file`."""
        super().__init__()
        self.base = base
        self.encoder = base.encoder
        self.deltas = nn.ModuleList(sorted(deltas, key=lambda delta: delta.param))
        self.head = head
        self.names = tuple(names)
        self.temperature = temperature
        self.train()

    @classmethod
    def build(
        cls,
        base: LoadedBase,
        classes: Sequence[ClassLine],
        *,
        targets: str | Sequence[str | TargetRule] = "all",
        rank: int = 8,
        head_rank: int | None = None,
        start: str = "text",
        prompts: Sequence[str] = ("a photo of a {}.",),
        bias: bool | None = None,
        train_scale: bool | None = None,
        temperature: float,
        seed: int,
    ) -> Self:
        """A projector before training: CLIP's zero-shot classifier where it starts from text.

        Args:
            base: frozen base.
            classes: their first names go into the prompts.
            targets: parameters to adapt: ``"paper"``, ``"transformer"``, ``"all"`` or rules
                ``PATTERN[:RANK[:SCALE]]`` over state-dict names; see
                `hellofmt.projector.targets.delta_shapes`.
            rank: rank of the deltas whose rule states none.
            head_rank: rank of the head's delta; None leaves text rows frozen and trains a stored
                matrix in full.
            start: ``"text"``, or ``"stored"`` for a base without a useful text tower.
            prompts: templates in which ``{}`` becomes the class name.
            bias: train a bias; None: unless the preset is ``paper``.
            train_scale: train ``logit_scale``, else it stays the base's; None: unless the preset is
                ``paper`` (816,856 values for RN50 leave no room for either, arXiv 2408.08201).
            temperature: default T of the labels, from 0.001 to 100,000.
            seed: seed of the initial factors, 0 <= seed < 2**64.

        Returns:
            The projector.

        Raises:
            UserInputError: E_OPTION, an argument does not fit the base.
        """
        # What an archive may state.
        if not 0.001 <= temperature <= 1e5:
            raise UserInputError.make(
                "E_OPTION", f"temperature: expected from 0.001 to 100000, got {temperature}"
            )
        shapes = delta_shapes(parameter_shapes(base.visual), targets, rank)
        is_free = not is_paper(targets)
        deltas = [Delta.start(shape, seed=seed, index=i) for i, shape in enumerate(shapes)]
        head = LinearHead.build(
            base,
            classes,
            start=start,
            rank=head_rank,
            prompts=prompts,
            bias=is_free if bias is None else bias,
            train_scale=is_free if train_scale is None else train_scale,
            seed=seed,
            index=len(shapes),
        )
        names = [line.names[0] for line in classes]
        return cls(base, deltas, head, names=names, temperature=temperature)

    @classmethod
    def from_file(
        cls,
        file: Archive,
        base: str | Path | LoadedBase | nn.Module | None = None,
        *,
        label_function: str | None = None,
    ) -> Self:
        """The projector of an archive, dequantised, ready to be trained further.

        Args:
            file: an open archive.
            base: where its base is; see `hellofmt.projector.base_of`.
            label_function: name of one of its label functions; None is the first.

        Returns:
            The projector; probes are not checked.

        Raises:
            BaseModelError: the base is absent or another one.
            SpecError: E_TENSOR, E_RANK: tensors do not fit the base.
            UserInputError: E_OPTION, the archive has no projector, or none of this name.
        """
        function = find_function(file.manifest, label_function)
        loaded = base_of(file, base)
        adapter, head = (
            file.tensors(function_section(file.manifest, label_function, kind))
            for kind in ("adapter", "head")
        )
        names = [names[0] for names in file.classes.names]
        return cls(
            loaded,
            read_deltas(function.adapter, adapter, parameter_shapes(loaded.visual)),
            read_head(function.head, head, loaded, names),
            names=names,
            temperature=decimal_value(function.head.temperature),
        )

    @classmethod
    def from_peft(
        cls,
        directory: str | os.PathLike[str],
        base: LoadedBase,
        classes: Sequence[ClassLine],
        *,
        start: str = "text",
        prompts: Sequence[str] = ("a photo of a {}.",),
        temperature: float,
        mha_fix: MhaFix = "auto",
    ) -> Self:
        """The projector of an image tower that PEFT adapted, with a head that was not trained.

        Args:
            directory: folder of the adapter; see `hellofmt.projector.peft.read_peft`.
            base: the base that was adapted.
            classes: their first names go into the prompts.
            start: start of the head, ``"text"`` or ``"stored"``; neither bias nor delta.
            prompts: templates in which ``{}`` becomes the class name.
            temperature: default T of the labels, > 0.
            mha_fix: ``auto``, ``on`` or ``off``, for the deltas that PEFT applies twice.

        Returns:
            The projector, ready to be stored or trained further.

        Raises:
            UserInputError: E_DATA, E_OPTION: the adapter is not plain LoRA of this base, or another
                argument does not fit it.
            OSError: the adapter cannot be read.
        """
        built = cls.build(
            base,
            classes,
            targets=(),
            start=start,
            prompts=prompts,
            bias=False,
            train_scale=True,
            temperature=temperature,
            seed=0,
        )
        deltas = read_peft(directory, parameter_shapes(base.visual), mha_fix=mha_fix)
        return cls(base, deltas, built.head, names=built.names, temperature=temperature)

    def to_peft(self, directory: str | os.PathLike[str], *, mha_fix: MhaFix = "auto") -> None:
        """Write the deltas as an adapter of PEFT; see `hellofmt.projector.peft.write_peft`.

        Args:
            directory: a new directory.
            mha_fix: ``off`` for a PEFT that adds the delta of ``out_proj`` once.

        Raises:
            UserInputError: E_DATA, a delta that PEFT has no form for or would leave without effect.
            HelloIOError: E_TARGET, the directory exists.
            OSError: it cannot be written.
        """
        write_peft(directory, self.base, self._deltas(), mha_fix=mha_fix)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of deltas and head; the base stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, views: Tensor) -> Tensor:
        """Logits, differentiable in factors, bias, scale and a full stored head.

        Args:
            views: (N, 3, S, S) float32 in [0, 1], finished views before any normalisation.

        Returns:
            (N, C) float32.

        Raises:
            UserInputError: E_DATA, not such a batch.
        """
        adapted = {
            f"visual.{delta.param}": delta(self.encoder.visual.get_parameter(delta.param))
            for delta in self._deltas()
        }
        x = torch.func.functional_call(self.encoder, adapted, (views,))
        return self.head(x)

    def _deltas(self) -> list[Delta]:
        return [delta for delta in self.deltas if isinstance(delta, Delta)]

    def trained_parameters(self) -> list[nn.Parameter]:
        """What an optimiser gets: factors, bias, scale, and the matrix of a full stored head."""
        return [p for p in self.parameters() if p.requires_grad]

    def trained_count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.trained_parameters())

    def labeler(self, device: str | torch.device = "cpu") -> Labeler:
        """A labeler of the present, unquantised factors; later training does not change it.

        Args:
            device: where it runs.

        Returns:
            The labeler.
        """
        return Labeler(
            self.base, self._deltas(), self.head, temperature=self.temperature, device=device
        )

    def part(self, storage: Storage = "float16", probes: int = 2) -> ProjectorPart:
        """Everything an archive stores of this projector.

        Args:
            storage: storage of every factor and of a stored start.
            probes: number of generated pictures whose logits are stored.

        Returns:
            For `hellofmt.archive.write_archive`.

        Raises:
            UserInputError: E_OPTION, a value that ``storage`` cannot hold, or no probes.
        """
        if probes < 1:
            raise UserInputError.make("E_OPTION", f"probes: expected at least 1, got {probes}")
        adapter_tensors: dict[str, StoredTensor] = {}
        targets: list[Target] = []
        for delta in self._deltas():
            tensors = quantise.write_factors(delta.param, delta.b, delta.a, storage)
            adapter_tensors |= tensors
            targets.append(
                Target(
                    a=list(delta.a.shape),
                    b=list(delta.b.shape),
                    param=delta.param,
                    scale=decimal_string(delta.scale),
                    shape=list(self.encoder.visual.get_parameter(delta.param).shape),
                    storage=storage,
                )
            )
        adapter = Adapter(targets=targets)
        head, head_tensors = self.head.store(storage, self.temperature)
        reader = Labeler.assembled(
            self.base,
            adapter,
            {name: tensor.numpy() for name, tensor in adapter_tensors.items()},
            head,
            {name: tensor.numpy() for name, tensor in head_tensors.items()},
            self.names,
        )
        spec = self.base.spec
        is_embedded = spec.kind == "embedded"
        if head.start == "stored":
            spec = without_text(spec)
        return ProjectorPart(
            base=spec,
            adapter=adapter,
            head=head,
            adapter_tensors=adapter_tensors,
            head_tensors=head_tensors,
            probe_logits=reader.probe_logits(probes),
            base_tensors=self.base.stored_tensors() if is_embedded else None,
        )
