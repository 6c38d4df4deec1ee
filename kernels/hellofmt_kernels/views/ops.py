"""The view operators as torch sees them: checked arguments, dispatch by device, fake tensors.

``torch.library.custom_op`` infers each schema from the one function that computes on every device.
`views` and `view_pair` check once, in Python, and raise ``ValueError`` or ``TypeError``; the
registered operators behind them trust their arguments. No operator has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence  # noqa: TC003 (torch reads the annotations)
from typing import Any

import torch
from torch import Tensor

from hellofmt_kernels import config
from hellofmt_kernels.device import check_float, device_of, dtype_name
from hellofmt_kernels.views import reference
from hellofmt_kernels.views.reference import ViewForm
from hellofmt_kernels.views.row import VIEW_COLUMNS, validate_view_rows

__all__ = ["view_pair", "views"]


def views(
    images: Tensor,
    rows: Tensor,
    size: int,
    *,
    antialias: bool = True,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    out_dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Draw augmented views of resident images, (N, 3, S, S), one row of parameters each.

    Equal to torchvision's functional transforms of each sample in float32 (shuffle of patches,
    resized crop, flip, CutMix or MixUp with the partner's finished view, normalise) within 1e-4
    of the value range; `hellofmt_kernels.views.reference.views` has the exact definition. On one
    device a view has the same bits in every batch. No gradient.

    Args:
        images: (M, H, W, 3) uint8.
        rows: (N, 20) int32, one `ViewColumn` row per view; N may be 0. Rows on the CPU are checked
            and copied to the images' device; rows already on a GPU are trusted, because checking
            them would stall it. Check those with `validate_view_rows` where they are made.
        size: S > 0, pixels.
        antialias: as torchvision's flag; without effect where no crop is larger than S.
        mean: three numbers, subtracted from values in [0, 1]; 0 leaves them.
        std: three numbers > 0; 1 leaves the values.
        out_dtype: float16, bfloat16 or float32; float64 on the CPU.
        channels_last: memory format of the result, contiguous if false.

    Returns:
        (N, 3, S, S) in ``out_dtype``; in [0, 1] if mean is 0 and std is 1.

    Raises:
        ValueError: shapes, devices or numbers do not fit, or a row on the CPU does not fit the
            images.
        TypeError: images are not uint8, rows not int32, or ``out_dtype`` is not floating point.

    Example:
        >>> import torch
        >>> from hellofmt_kernels import WEIGHT_ONE, ViewColumn
        >>> images = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
        >>> rows = torch.zeros(1, 20, dtype=torch.int32)
        >>> rows[0, ViewColumn.HEIGHT] = rows[0, ViewColumn.WIDTH] = 4
        >>> rows[0, ViewColumn.WEIGHT] = WEIGHT_ONE
        >>> views(images, rows, size=2)[0, 0].round()
        tensor([[1., 1.],
                [1., 1.]])
    """
    form = ViewForm(tuple(mean), tuple(std), out_dtype, channels_last)
    _check_views(images, rows, size)
    _check_form(form, dtype="out_dtype")
    return _views(images, rows, size, antialias, *_plain(form))


def view_pair(
    images: Tensor,
    rows: Tensor,
    size: int,
    first: ViewForm,
    second: ViewForm,
    *,
    antialias: bool = True,
) -> tuple[Tensor, Tensor]:
    """Draw the same augmented views in two forms, in one pass over the pixels.

    Equal to `views` once with each form: a student's batch, and the input of the encoder that
    labels it. Where one form is float64, both are computed in float64. Images, rows, size,
    antialias and errors are as for ``views``.

    Args:
        images: (M, H, W, 3) uint8.
        rows: (N, 20) int32.
        size: S > 0, pixels.
        first: form of the first result.
        second: form of the second result.
        antialias: as torchvision's flag.

    Returns:
        Two (N, 3, S, S).

    Example:
        >>> import torch
        >>> from hellofmt_kernels import WEIGHT_ONE, ViewColumn, ViewForm
        >>> images = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
        >>> rows = torch.zeros(1, 20, dtype=torch.int32)
        >>> rows[0, ViewColumn.HEIGHT] = rows[0, ViewColumn.WIDTH] = 4
        >>> rows[0, ViewColumn.WEIGHT] = WEIGHT_ONE
        >>> half = ViewForm((0.5,) * 3, (0.25,) * 3, torch.float16)
        >>> student, encoder = view_pair(images, rows, 2, ViewForm(), half)
        >>> student[0, 0].round(), encoder[0, 0].round()
        (tensor([[1., 1.],
                [1., 1.]]), tensor([[2., 2.],
                [2., 2.]], dtype=torch.float16))
    """
    _check_views(images, rows, size)
    _check_form(first, "first.")
    _check_form(second, "second.")
    return _view_pair(images, rows, size, antialias, *_plain(first), *_plain(second))


def _check_views(images: Tensor, rows: Tensor, size: int) -> None:
    if images.dtype != torch.uint8:
        msg = f"`images`: dtype {images.dtype}; expected torch.uint8"
        raise TypeError(msg)
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] == 0 or images.shape[2] == 0:
        msg = f"`images`: shape {tuple(images.shape)}; expected (M, H, W, 3), not empty"
        raise ValueError(msg)
    if rows.dtype != torch.int32:
        msg = f"`rows`: dtype {rows.dtype}; expected torch.int32"
        raise TypeError(msg)
    if rows.ndim != 2 or rows.shape[1] != VIEW_COLUMNS:
        msg = f"`rows`: shape {tuple(rows.shape)}; expected (N, {VIEW_COLUMNS})"
        raise ValueError(msg)
    if rows.device != images.device and rows.device.type != "cpu":
        msg = f"`rows`: on {rows.device}; expected cpu or {images.device}, where `images` is"
        raise ValueError(msg)
    if size < 1:
        msg = f"`size`: {size} px; expected > 0"
        raise ValueError(msg)


def _check_form(form: ViewForm, prefix: str = "", dtype: str = "dtype") -> None:
    """Check the numbers and the dtype of a form, naming it as the caller does."""
    for name, values in (("mean", form.mean), ("std", form.std)):
        if len(values) != 3 or not all(math.isfinite(value) for value in values):
            msg = f"`{prefix}{name}`: {tuple(values)}; expected 3 finite numbers"
            raise ValueError(msg)
    if min(form.std) <= 0:
        msg = f"`{prefix}std`: {tuple(form.std)}; expected 3 numbers > 0"
        raise ValueError(msg)
    check_float(f"{prefix}{dtype}", form.dtype)


def _plain(form: ViewForm) -> tuple[list[float], list[float], torch.dtype, bool]:
    """Take a form apart into what a schema can say."""
    means, stds = [float(value) for value in form.mean], [float(value) for value in form.std]
    return means, stds, form.dtype, form.is_channels_last


def _forms(*plain: Any) -> list[ViewForm]:
    """Join the forms that `_plain` took apart, four arguments each."""
    return [
        ViewForm(tuple(mean), tuple(std), dtype, is_channels_last)
        for mean, std, dtype, is_channels_last in zip(*[iter(plain)] * 4, strict=True)
    ]


def _views_in_forms(
    images: Tensor, rows: Tensor, size: int, antialias: bool, forms: Sequence[ViewForm]
) -> list[Tensor]:
    """Draw views on any device, for both operators."""
    if rows.device.type == "cpu":
        count, height, width, _ = images.shape
        problems = validate_view_rows(rows, (count, height, width))
        if problems:
            msg = f"`rows`: {'; '.join(problems)}"
            raise ValueError(msg)
        rows = rows.to(images.device, non_blocking=True)
    device, n = device_of(images.device), rows.shape[0]
    if any(config.choose_views(n, dtype_name(f.dtype), device) == "reference" for f in forms):
        return reference.views(images, rows, size, antialias, forms)
    from hellofmt_kernels.views import fused

    with torch.cuda.device(images.device):
        return fused.launch(images, rows, size, antialias, forms)


@torch.library.custom_op("hellofmt_kernels::views", mutates_args=(), device_types=("cpu", "cuda"))
def _views(
    images: Tensor,
    rows: Tensor,
    size: int,
    antialias: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    forms = _forms(mean, std, dtype, channels_last)
    return _views_in_forms(images, rows, size, antialias, forms)[0]


@_views.register_fake
def _views_fake(images: Tensor, rows: Tensor, size: int, antialias: bool, *form: Any) -> Tensor:
    return _forms(*form)[0].empty(rows.shape[0], size, images.device)


# Two operators rather than one with a list of outputs: a schema can say a list of dtypes, but
# torch's own check of operators cannot read it.
@torch.library.custom_op(
    "hellofmt_kernels::view_pair", mutates_args=(), device_types=("cpu", "cuda")
)
def _view_pair(
    images: Tensor,
    rows: Tensor,
    size: int,
    antialias: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
    second_mean: Sequence[float],
    second_std: Sequence[float],
    second_dtype: torch.dtype,
    second_channels_last: bool,
) -> tuple[Tensor, Tensor]:
    first = mean, std, dtype, channels_last
    second = second_mean, second_std, second_dtype, second_channels_last
    outs = _views_in_forms(images, rows, size, antialias, _forms(*first, *second))
    return outs[0], outs[1]


@_view_pair.register_fake
def _view_pair_fake(
    images: Tensor, rows: Tensor, size: int, antialias: bool, *forms: Any
) -> tuple[Tensor, Tensor]:
    first, second = (form.empty(rows.shape[0], size, images.device) for form in _forms(*forms))
    return first, second
