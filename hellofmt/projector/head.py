"""The linear head: ``z = exp(logit_scale) * x W^T + b``, with ``W = W_start + s * B A``.

A head that starts from text stores no start matrix: its rows are rebuilt from class names, prompts
and the base's text tower, which has a digest of its own because the base's digest covers the image
tower alone. Without a delta and a bias it *is* CLIP's zero-shot classifier. A low-rank delta pays
only while ``r < C D / (C + D)``; beyond that, or where text rows mean nothing, the whole matrix is
trained and stored. Where the whole is large (1,000 classes of 1,280 features: 1.28 MB in int8) a
stored head of a rank has zeros for W_start, so that W is the product of its two factors: they are
written as any start and compress to some hundred bytes, so the format needs no word for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hellofmt.archive.format.canonical import decimal_string, decimal_value
from hellofmt.archive.format.label_function import Head, HeadText
from hellofmt.archive.format.limits import check_fixed, check_limit
from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.format.tensors import StoredTensor
from hellofmt.errors import BaseModelError, SpecError, UserInputError, printable
from hellofmt.projector import quantise
from hellofmt.projector.lowrank import Delta, initial_matrix
from hellofmt.projector.targets import MAX_INNER, DeltaShape, check_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive import Archive
    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.fields import Storage
    from hellofmt.projector.base import LoadedBase

_MEMBER = "__hello__/head"

#: Largest size of a logit of any view, the largest number of float16: labels and logits are finite
#: in every dtype.
MAX_LOGIT = 65_504.0
#: Largest length of a row of the head, which keeps a half-precision product finite.
MAX_ROW = 1000.0
# Longest word: a tokenizer merges the pairs of a word one by one.
_WORD = 100


class LinearHead(nn.Module):
    """z = exp(logit_scale) * x W^T + b over unit embeddings x.

    Attributes:
        weight: (C, D) start rows; trained only in a full stored head.
        delta: low-rank change of the rows, or None.
        bias: (C,), or None.
        logit_scale: () float32, a parameter where it is trained.
        prompts: templates of a head that starts from text, else empty.
        text_digest: digest of the text tower of such a head, or None.
    """

    weight: Tensor
    logit_scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        *,
        delta: Delta | None,
        bias: Tensor | None,
        logit_scale: float,
        train_scale: bool,
        prompts: Sequence[str] = (),
        text_digest: str | None = None,
    ) -> None:
        """Take the parts; a stored start without a delta is trained, any other start is frozen."""
        super().__init__()
        is_full = text_digest is None and delta is None
        self.weight = nn.Parameter(weight, requires_grad=is_full)
        self.delta = delta
        self.bias = None if bias is None else nn.Parameter(bias)
        scale = torch.tensor(logit_scale, dtype=torch.float32)
        self.logit_scale = nn.Parameter(scale, requires_grad=train_scale)
        self.prompts = tuple(prompts)
        self.text_digest = text_digest

    @classmethod
    def build(
        cls,
        base: LoadedBase,
        classes: Sequence[ClassLine],
        *,
        start: str,
        rank: int | None,
        prompts: Sequence[str],
        bias: bool,
        train_scale: bool,
        seed: int,
        index: int,
    ) -> LinearHead:
        """Build the head that training starts from; see ``Projector.build``.

        A stored start has zeros where a rank is given, else the text rows of a base with a text
        tower, else uniform rows from counter words. ``index`` is the head's number among the
        projector's initial matrices.
        """
        count, dim = len(classes), base.embed_dim
        if start not in {"text", "stored"}:
            raise UserInputError.make(
                "E_OPTION", f"head start: expected `text` or `stored`, got `{printable(start)}`"
            )
        if rank is not None and not 1 <= rank <= MAX_INNER:
            raise UserInputError.make(
                "E_OPTION", f"head rank: expected from 1 to {MAX_INNER}, got {rank}"
            )
        if count < 1:
            raise UserInputError.make("E_OPTION", "classes: expected at least one, got none")
        if start == "stored" and rank is not None:
            weight = torch.zeros(count, dim)
        elif start == "text" or base.has_text:
            weight = base.text_rows([line.names[0] for line in classes], prompts)
        else:
            weight = initial_matrix((count, dim), seed=seed, index=index + 1)
        delta = None
        if rank is not None:
            shape = DeltaShape("weight", (count, dim), (rank, dim), (count, rank))
            delta = Delta.start(shape, seed=seed, index=index)
            if start == "stored":
                # A product of zero would learn its first steps in one factor alone. Measured on
                # features of EfficientNet-Lite1, 1,000 classes: KL 3.42 after 300 steps, not 3.60.
                delta.b = nn.Parameter(initial_matrix((count, rank), seed=seed, index=index + 1))
        return cls(
            weight,
            delta=delta,
            bias=torch.zeros(count) if bias else None,
            logit_scale=base.logit_scale,
            train_scale=train_scale,
            prompts=prompts if start == "text" else (),
            text_digest=base.text_digest if start == "text" else None,
        )

    @property
    def start(self) -> str:
        """``"text"`` or ``"stored"``."""
        return "stored" if self.text_digest is None else "text"

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.weight.shape[0]

    def merged(self) -> Tensor:
        """Return the rows with their delta, (C, D) float32."""
        return self.weight if self.delta is None else self.delta(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, C) float32, before the temperature, of unit rows (N, D) float32."""
        # Logits of CLIP reach 100, where bfloat16 counts in halves: never in a fit's autocast.
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logit_scale.exp() * (x @ self.merged().T)
            return logits if self.bias is None else logits + self.bias

    def store(self, storage: Storage, temperature: float) -> tuple[Head, dict[str, StoredTensor]]:
        """Make the manifest's ``head`` and the tensors of section ``head``."""
        tensors = {"logit_scale": _vector(self.logit_scale.reshape(1))}
        if self.bias is not None:
            tensors["bias"] = _vector(self.bias)
        text: HeadText | Any = UNSET
        if self.text_digest is None:
            tensors |= quantise.write_matrix("weight", self.weight, storage)
        else:
            text = HeadText(prompts=list(self.prompts), tower=self.text_digest)
        a_shape, b_shape, scale = UNSET, UNSET, UNSET
        if self.delta is not None:
            a, b = self.delta.a, self.delta.b
            scale = decimal_string(self.delta.scale)
            tensors |= quantise.write_factors("weight", b, a, storage)
            a_shape, b_shape = list(a.shape), list(b.shape)
        head = Head(
            bias=self.bias is not None,
            link="softmax",
            scale=scale,
            start="stored" if self.text_digest is None else "text",
            storage=UNSET if text is not UNSET and self.delta is None else storage,
            temperature=decimal_string(temperature),
            a=a_shape,
            b=b_shape,
            text=text,
        )
        return head, tensors


def _vector(tensor: Tensor) -> StoredTensor:
    return StoredTensor.from_numpy(tensor.detach().to("cpu", torch.float32).contiguous().numpy())


def read_head(
    head: Head,
    tensors: Mapping[str, NDArray[Any]],
    base: LoadedBase,
    names: Sequence[str],
) -> LinearHead:
    """Dequantise the head of an archive to float32; its scale is trainable."""
    count, dim = len(names), base.embed_dim
    # Absent where nothing is stored in it.
    storage = head.storage or "float32"
    prompts: list[str] = []
    text_digest = None
    if head.text is not UNSET:
        prompts, text_digest = head.text.prompts, head.text.tower
        if base.text_digest != text_digest:
            raise BaseModelError.make(
                "E_BASE_WEIGHTS",
                f"text tower of base `{printable(base.spec.name)}` differs; expected {text_digest},"
                f" got {base.text_digest or 'none'}",
            )
        weight = base.text_rows(names, prompts)
    else:
        weight = quantise.read_matrix(tensors, "weight", dim, storage)
    delta = None
    if head.a is not UNSET and head.b is not UNSET:
        a_shape, b_shape = tuple(head.a), tuple(head.b)
        check_shapes("weight", (count, dim), a_shape, b_shape, member=_MEMBER)
        a = quantise.read_matrix(tensors, "weight::A", a_shape[1], storage)
        b = quantise.read_matrix(tensors, "weight::B", b_shape[1], storage)
        delta = Delta("weight", a, b, decimal_value(head.scale or "1.0"))
    logit_scale = float(tensors["logit_scale"][0])
    bias = torch.from_numpy(np.array(tensors["bias"], np.float32)) if head.bias else None
    made = LinearHead(
        weight,
        delta=delta,
        bias=bias,
        logit_scale=logit_scale,
        train_scale=True,
        prompts=prompts,
        text_digest=text_digest,
    )
    _check_finite(made)
    return made


def _check_finite(head: LinearHead) -> None:
    """Refuse a head that could give a view a logit that half precision cannot hold."""
    with torch.no_grad():
        lengths = head.merged().double().norm(dim=1)
        most = head.logit_scale.double().exp() * lengths
        most += 0.0 if head.bias is None else head.bias.double().abs()
    row, logit = float(lengths.max()), float(most.max())
    # Written so that NaN fails.
    if not (row <= MAX_ROW and logit <= MAX_LOGIT):
        raise SpecError.make(
            "E_TENSOR",
            f"a row of the head has length {row:.3g} and gives logits up to {logit:.3g}; expected "
            f"at most {MAX_ROW:g} and, with scale and bias, {MAX_LOGIT:g}",
            member=_MEMBER,
        )


def check_texts(file: Archive, head: Head, names: Sequence[str]) -> None:
    """Refuse a head whose sentences, one per prompt and name, would take a text tower too long."""
    base = file.manifest.base
    if head.text is UNSET or base is UNSET:
        return
    prompts, length = head.text.prompts, sum(map(len, names))
    characters = sum(
        len(names) * (32 + len(p) - 2 * p.count("{}")) + p.count("{}") * length for p in prompts
    )
    if base.kind == "seeded":
        # The tower is small, so the tokenizer takes the time.
        characters *= 16
    check_limit(file.limits, "text_characters", characters, member=_MEMBER)
    words = (w for p in prompts for name in names for w in p.replace("{}", name).split())
    check_fixed("word", max(map(len, words), default=0), _WORD, member=_MEMBER)
