"""PEFT adapters read as deltas."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch

from hellofmt.errors import UserInputError, foreign_text, printable
from hellofmt.projector.lowrank import Delta
from hellofmt.projector.peft.config import (
    CONFIG_NAME,
    MAX_TENSORS,
    WEIGHTS_NAME,
    MhaFix,
    by_pattern,
    is_doubled,
    read_bytes,
    read_config,
    refusal,
)
from hellofmt.projector.targets import MAX_INNER, MAX_SCALE

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from torch import Tensor


_WEIGHTS_BYTES = 1 << 30
_WHOLE_MODELS = frozenset({"CLIP", "CustomTextCLIP", "CoCa"})
_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,256})\.lora_(A|B)\.weight", re.ASCII)


def read_peft(
    directory: str | os.PathLike[str],
    parameters: Mapping[str, tuple[int, ...]],
    *,
    mha_fix: MhaFix = "auto",
) -> list[Delta]:
    """Read the deltas of a PEFT adapter of an open_clip model or its tower; see ``write_peft``.

    ``s = lora_alpha / r`` (``/ sqrt(r)`` with ``use_rslora``), with ``rank_pattern``,
    ``alpha_pattern`` and ``fan_in_fan_out``. Convolutions are flattened: PEFT's (r, I, k, k) and
    (O, r, 1, 1) are A (r, I k k) and B (O, r).

    Args:
        directory: folder of ``adapter_config.json`` and ``adapter_model.safetensors``.
        parameters: state-dict names and shapes of the base's image tower.
        mha_fix: whether the adapter's ``out_proj`` of `torch.nn.MultiheadAttention` acted twice
            during training: ``on`` doubles its s, ``off`` does not; ``auto`` is ``on`` for releases
            that were measured and refuses later ones.

    Returns:
        One delta per tensor pair, sorted by parameter.

    Raises:
        UserInputError: E_DATA, an adapter that is not plain LoRA of this base; E_OPTION, ``auto``
            cannot know.
        OSError: a file cannot be read.
    """
    folder = Path(directory)
    config = read_config(folder / CONFIG_NAME)
    if not (folder / WEIGHTS_NAME).exists() and (folder / "adapter_model.bin").exists():
        raise refusal(f"`adapter_model.bin` is a pickle; expected `{WEIGHTS_NAME}`")
    factors = _read_factors(folder / WEIGHTS_NAME)
    prefix = _prefix(factors, config)
    deltas: dict[str, Delta] = {}
    # Sorted, for safetensors gives the tensors in any order, and the first fault is reported.
    for module, pair in sorted(factors.items()):
        name = module.removeprefix(prefix)
        inner = name.removesuffix(".base_layer.out_proj")
        is_out = inner != name
        param = f"{inner}.out_proj.weight" if is_out else f"{name}.weight"
        if f"{name}.in_proj_weight" in parameters:
            param = f"{name}.in_proj_weight"
        if param not in parameters:
            raise refusal(f"`{module}`: the image tower has no weight `{param}`")
        if param in deltas:
            raise refusal(f"`{param}` is adapted twice")
        a, b = _matrices(param, pair, parameters[param], config)
        # PEFT gives both weights of an attention the rank and alpha of the attention.
        scale = _scale(f"{prefix}{inner}", a.shape[0], config)
        if is_out and is_doubled(config, mha_fix):
            scale *= 2.0
        if not abs(scale) <= MAX_SCALE:
            raise refusal(f"`{param}` has scale {scale:g}; expected at most {MAX_SCALE:g}")
        deltas[param] = Delta(param, a, b, scale)
    return [deltas[param] for param in sorted(deltas)]


def _read_factors(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read tensors A and B by the name of the module that PEFT wrapped."""
    try:
        tensors = safetensors.torch.load(read_bytes(path, _WEIGHTS_BYTES))
    except (OSError, UserInputError):
        raise
    except Exception as error:
        raise refusal(f"`{WEIGHTS_NAME}` cannot be read: {foreign_text(error)}") from error
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise refusal(f"{len(tensors)} tensors; expected from 1 to {MAX_TENSORS}")
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        match = _KEY.fullmatch(name)
        if match is None:
            raise refusal(
                f"tensor `{printable(name)}` is neither a lora_A nor a lora_B; expected names such "
                "as `base_model.model.visual.<module>.lora_A.weight`"
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise refusal(f"tensor `{printable(name)}` is not of finite floating values")
        factors.setdefault(match[1], {})[match[2]] = tensor.float()
    for module, pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise refusal(f"`{module}` has only one of lora_A and lora_B")
    return factors


def _prefix(modules: Iterable[str], config: Mapping[str, Any]) -> str:
    """Return ``visual.`` if a whole model was wrapped, nothing if its image tower was."""
    mapping = config.get("auto_mapping")
    wrapped = cast("Any", mapping).get("base_model_class") if isinstance(mapping, dict) else None
    names = list(modules)
    is_whole = str(wrapped) in _WHOLE_MODELS or any(n.startswith("visual.") for n in names)
    if is_whole:
        other = [name for name in names if not name.startswith("visual.")]
        if other:
            raise refusal(
                f"`{other[0]}` is outside the image tower; expected `visual.` modules alone"
            )
    return "visual." if is_whole else ""


def _matrices(
    param: str, pair: Mapping[str, Tensor], shape: tuple[int, ...], config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return A (r, rest) and B (O, r) of a module, by the shape of its weight."""
    a, b = pair["A"], pair["B"]
    factors = f"lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}"
    is_swapped = bool(config.get("fan_in_fan_out")) and len(shape) == 2
    if is_swapped and a.ndim == b.ndim == 2:
        # The weight lies (in, out), so its delta is the transposed product.
        a, b = b.T.contiguous(), a.T.contiguous()
    if len(shape) == 4 and a.ndim == b.ndim == 4:
        fits = tuple(a.shape[1:]) == shape[1:] and tuple(b.shape[2:]) == (1, 1)
        a, b = a.flatten(1), b.flatten(1)
    else:
        fits = a.ndim == b.ndim == 2 and a.shape[1] == math.prod(shape[1:])
    rank = a.shape[0]
    if not fits or b.shape[0] != shape[0] or b.shape[1] != rank:
        raise refusal(
            f"`{param}`: {factors} are not a delta of the base's weight; expected {shape}"
        )
    if not 1 <= rank <= MAX_INNER:
        raise refusal(f"`{param}` has rank {rank}; expected from 1 to {MAX_INNER}")
    return a, b


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """Compute the scale of a module, whose rank must be the one that the configuration states."""
    stated = by_pattern(config.get("rank_pattern") or {}, module, config.get("r", 8))
    if stated != rank:
        raise refusal(f"`{module}` has rank {rank}; expected {stated:g} from `{CONFIG_NAME}`")
    alpha = by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
