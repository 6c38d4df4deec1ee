"""The label function during fitting: base, trainable deltas, trainable head.

``forward`` is differentiable in the low-rank factors, the head and nothing else. The tower stays in
eval mode whatever mode the projector is in: batch-norm statistics that moved during a fit would
silently become part of the payload. ``part`` quantises, reads its own bytes back as a reader will,
and stores *those* logits as probes: they promise what a reader computes, not what the writer had in
float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor, nn

from hellofmt.archive import ProjectorPart
from hellofmt.archive.format.canonical import decimal_string, decimal_value
from hellofmt.archive.format.compress import compress
from hellofmt.archive.format.fields import Storage
from hellofmt.archive.format.functions import find_function, function_section
from hellofmt.archive.format.label_function import Adapter, Target
from hellofmt.archive.format.tensors import serialize_tensors
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
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hellofmt.archive import Archive
    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.label_function import Head
    from hellofmt.archive.format.tensors import StoredTensor
    from hellofmt.projector.base import LoadedBase
    from hellofmt.projector.peft import MhaFix
    from hellofmt.projector.targets import TargetRule

#: Every storage of the format, largest first.
STORAGES: tuple[Storage, ...] = get_args(Storage)


class Projector(nn.Module):
    """z = exp(logit_scale) * normalise(E_delta(v)) W^T + b, trainable in the low-rank factors.

    Attributes:
        base: the frozen base; not modified, unless the projector is moved to another device.
        deltas: one per adapted parameter, sorted by name.
        head: the linear head.
        names: first name of every class.
        temperature: default T of the labels.

    Example:
        >>> import hellofmt, torch
        >>> with hellofmt.open("photos.hello") as archive:
        ...     projector = hellofmt.Projector.from_file(archive)
        >>> projector(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5, 3])
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
        """Join the parts; ``build``, ``from_file`` and ``from_peft`` make them."""
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
        """Build a projector before training: CLIP's zero-shot classifier if it starts from text.

        Args:
            base: frozen base.
            classes: classes whose first names go into the prompts.
            targets: parameters to adapt: ``"paper"``, ``"transformer"``, ``"all"`` or rules
                ``PATTERN[:RANK[:SCALE]]`` over state-dict names, see
                `hellofmt.projector.targets.delta_shapes`.
            rank: rank of the deltas whose rule states none.
            head_rank: rank of the head's delta; a stored head of a rank is the product of two
                factors. None leaves text rows frozen and trains a stored matrix in full.
            start: ``"text"``, or ``"stored"`` for a base without a useful text tower.
            prompts: templates in which ``{}`` becomes the class name.
            bias: whether to train a bias; None means unless the preset is ``paper``.
            train_scale: whether to train ``logit_scale`` or keep the base's; None means unless the
                preset is ``paper`` (816,856 values for RN50 leave no room for either, arXiv
                2408.08201).
            temperature: default T of the labels, from 0.001 to 100,000.
            seed: seed of the initial factors, 0 <= seed < 2**64.

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
        """Rebuild the projector of an archive, dequantised, ready to be trained further.

        Args:
            file: an open archive; its probes are not checked.
            base: where its base is, see `hellofmt.projector.base_of`.
            label_function: name of one of its label functions; None means the first.

        Raises:
            BaseModelError: the base is missing or differs.
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
        return cls.assembled(loaded, function.adapter, adapter, function.head, head, names)

    @classmethod
    def assembled(
        cls,
        base: LoadedBase,
        adapter: Adapter,
        adapter_tensors: Mapping[str, NDArray[Any]],
        head: Head,
        head_tensors: Mapping[str, NDArray[Any]],
        names: Sequence[str],
    ) -> Self:
        """Join the manifest's entries and the tensors of their sections, as every reader does.

        Raises:
            SpecError: E_TENSOR, E_RANK: tensors do not fit the base.
            BaseModelError: E_BASE_WEIGHTS, another text tower.
        """
        return cls(
            base,
            read_deltas(adapter, adapter_tensors, parameter_shapes(base.visual)),
            read_head(head, head_tensors, base, names),
            names=names,
            temperature=decimal_value(head.temperature),
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
        """Build the projector of an image tower that PEFT adapted, with an untrained head.

        Args:
            directory: folder of the adapter, see `hellofmt.projector.peft.read_peft`.
            base: the base that was adapted.
            classes: classes whose first names go into the prompts.
            start: start of the head, as for ``build``; it has neither bias nor delta.
            prompts: as for ``build``; likewise ``temperature``.
            temperature: default T of the labels.
            mha_fix: ``auto``, ``on`` or ``off``, for the deltas that PEFT applies twice.

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
        """Write the deltas as a PEFT adapter; arguments and errors are those of ``write_peft``."""
        write_peft(directory, self.base, self._deltas(), mha_fix=mha_fix)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of deltas and head; the base stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, views: Tensor) -> Tensor:
        """Compute logits, differentiable in factors, bias, scale and a full stored head.

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
        """List what an optimiser trains: factors, bias, scale, the matrix of a full stored head."""
        return [p for p in self.parameters() if p.requires_grad]

    def trained_count(self) -> int:
        """Count the trained values."""
        return sum(p.numel() for p in self.trained_parameters())

    def labeler(self, device: str | torch.device = "cpu") -> Labeler:
        """Make a labeler of the present, unquantised factors; later training does not change it."""
        return Labeler(
            self.base, self._deltas(), self.head, temperature=self.temperature, device=device
        )

    def part(self, storage: Storage = "float16", probes: int = 2) -> ProjectorPart:
        """Make everything that an archive stores of this projector.

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
        spec = self.base.spec
        is_embedded = spec.kind == "embedded"
        if head.start == "stored":
            spec = without_text(spec)
        reader = self.assembled(
            self.base, adapter, _arrays(adapter_tensors), head, _arrays(head_tensors), self.names
        )
        return ProjectorPart(
            base=spec,
            adapter=adapter,
            head=head,
            adapter_tensors=adapter_tensors,
            head_tensors=head_tensors,
            probe_logits=reader.labeler().probe_logits(probes),
            base_tensors=self.base.stored_tensors() if is_embedded else None,
        )


def _arrays(tensors: Mapping[str, StoredTensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def stored_labelers(
    projector: Projector,
    storages: Sequence[Storage] = STORAGES,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Storage, int, Labeler]]:
    """Rebuild a projector from each storage as a reader would: storage, bytes of sections, labeler.

    A storage is chosen by labels, not by weights: a delta may be a percent off and change no label,
    or the reverse. And by the bytes of whole sections: where deltas are tiny, scales and their
    names make int8 larger than float16.
    """
    unknown = [storage for storage in storages if storage not in STORAGES]
    if unknown or not storages:
        raise UserInputError.make(
            "E_OPTION",
            f"storages: expected some of {', '.join(STORAGES)}, got {unknown or 'none'}",
        )
    for storage in storages:
        part = projector.part(storage, probes=1)
        sections = part.adapter_tensors, part.head_tensors
        raw = [serialize_tensors(section) for section in sections]
        size = sum(len(compress(section) or section) for section in raw)
        adapter, head = map(_arrays, sections)
        base, names = projector.base, projector.names
        made = Projector.assembled(base, part.adapter, adapter, part.head, head, names)
        yield storage, size, made.labeler(device)
