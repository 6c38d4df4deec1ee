"""A label function: low-rank deltas of the image tower and a linear head on its embedding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from hellofmt.archive.format.canonical import END
from hellofmt.archive.format.fields import (
    Closed,
    DecimalString,
    Digest,
    MatrixShape,
    Parameter,
    Positive,
    Problem,
    Shape,
    Storage,
    Text,
    exactly,
    in_range,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Target(Closed, frozen=True):
    """One low-rank delta: ``W0 + scale * reshape(B A, shape)`` on the base parameter ``param``.

    ``a`` and ``b`` are the shapes of A and B: A (r, rest), B (O, r) for matrices and flattened
    convolutions; A (r k, I k), B (O k, r k) for the paper's convolution form.
    """

    a: MatrixShape
    b: MatrixShape
    param: Parameter
    scale: DecimalString
    shape: Shape
    storage: Storage


class Adapter(Closed, frozen=True):
    """The low-rank deltas of the image tower, sorted by ``param``."""

    targets: Annotated[list[Target], Meta(max_length=4096)]


def adapter_problems(where: str, adapter: Adapter) -> Iterator[Problem]:
    """The rules of the deltas at ``where``."""
    previous = ""
    for i, target in enumerate(adapter.targets):
        loc = f"{where}.targets.{i}"
        if i and target.param <= previous:
            kind = "duplicate" if target.param == previous else "order"
            yield Problem(f"{loc}.param", kind, "expected sorted, once")
        previous = target.param
        yield from in_range(f"{loc}.scale", target.scale, -1000.0, 1000.0)
        yield from _factor_problems(loc, target.a, target.b)
        shape, (rows, columns) = target.shape, (target.b[0], target.a[1])
        forms = [(shape[0], math.prod(shape[1:]))]
        if len(shape) == 4 and shape[2] == shape[3]:
            # The paper's convolution form: B (O k, r k), A (r k, I k).
            forms.append((shape[0] * shape[2], shape[1] * shape[3]))
        if (rows, columns) not in forms:
            text = f"B A is {rows} x {columns}, which does not fill {shape}"
            yield Problem(loc, "rank", text)


class HeadText(Closed, frozen=True):
    """What rebuilds the text rows: the prompts, ``{}`` standing for a class name, and the tower."""

    prompts: Annotated[list[Text], Meta(min_length=1, max_length=1024)]
    tower: Digest


class Head(Closed, frozen=True):
    """The linear head: its start, its low-rank delta if any, bias, default temperature.

    ``link`` turns logits into a label: softmax(z / temperature). ``a`` and ``b`` are the shapes of
    A (r, D) and B (C, r), ``scale`` multiplies B A: all three or none. ``storage`` is that of A, B
    and of a stored start, absent where there is neither.
    """

    bias: bool
    link: Literal["softmax"]
    start: Literal["text", "stored"]
    temperature: DecimalString
    a: MatrixShape | UnsetType = UNSET
    b: MatrixShape | UnsetType = UNSET
    scale: DecimalString | UnsetType = UNSET
    storage: Storage | UnsetType = UNSET
    text: HeadText | UnsetType = UNSET


def head_problems(loc: str, head: Head, classes: int, dim: int) -> Iterator[Problem]:
    """The rules of a head for ``classes`` classes on embeddings of ``dim`` numbers."""
    has_delta = head.a is not UNSET
    is_stored = has_delta or head.start == "stored"
    yield from exactly(f"{loc}.b", head.b, has_delta, "with `a`")
    yield from exactly(f"{loc}.scale", head.scale, has_delta, "with `a` and `b`")
    yield from exactly(f"{loc}.storage", head.storage, is_stored, "for a delta or a stored start")
    if head.scale is not UNSET:
        yield from in_range(f"{loc}.scale", head.scale, -1000.0, 1000.0)
    yield from in_range(f"{loc}.temperature", head.temperature, 0.001, 1e5)
    yield from exactly(f"{loc}.text", head.text, head.start == "text", "for start text")
    if head.a is UNSET or head.b is UNSET:
        return
    yield from _factor_problems(loc, head.a, head.b)
    if (head.b[0], head.a[1]) != (classes, dim):
        text = f"B A is {head.b[0]} x {head.a[1]}; expected {classes} x {dim}"
        yield Problem(loc, "rank", text)


def _factor_problems(loc: str, a: list[int], b: list[int]) -> Iterator[Problem]:
    if a[0] != b[1]:
        yield Problem(loc, "rank", f"inner dimensions of B {b} and A {a} differ")


class Probes(Closed, frozen=True):
    """The number of generated pictures whose logits are stored."""

    count: Positive


class LabelFunction(Closed, frozen=True):
    """A function from views to labels on the base of the archive; its tensors lie in sections.

    ``name`` tells those of one archive apart.
    """

    adapter: Adapter
    head: Head
    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,32}" + END)]
    probes: Probes
    task: Literal["classification"]
