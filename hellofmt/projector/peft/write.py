"""Deltas written as an adapter that PEFT loads."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from hellofmt.archive.storage.local_files import new_directory
from hellofmt.projector.peft.config import CONFIG_NAME, WEIGHTS_NAME, MhaFix, is_doubled, refusal

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from hellofmt.projector.base import LoadedBase
    from hellofmt.projector.lowrank import Delta


def write_peft(
    directory: str | os.PathLike[str],
    base: LoadedBase,
    deltas: Sequence[Delta],
    *,
    mha_fix: MhaFix = "auto",
) -> None:
    """Write deltas of the image tower as an adapter that PEFT loads onto the whole open_clip model.

    The head is not part of it: PEFT then gives the adapted image tower, not the labels. s is folded
    into B. Deltas of ``out_proj`` are halved, because PEFT up to 0.21.2 adds them twice.

    Args:
        directory: a new directory.
        base: base whose image tower the deltas belong to.
        deltas: in the flattened form.
        mha_fix: ``off`` for a PEFT that adds the delta of ``out_proj`` once.

    Raises:
        UserInputError: E_DATA, a delta that PEFT has no form for or would leave without effect, or
            no delta; E_OPTION, an unknown ``mha_fix``.
        HelloIOError: E_TARGET, the directory exists.
        OSError: it cannot be written.

    Example:
        >>> import hellofmt
        >>> from hellofmt.projector import read_peft
        >>> with hellofmt.open("photos.hello") as archive:
        ...     projector = hellofmt.Projector.from_file(archive)
        >>> deltas = [delta for delta in projector.deltas if delta.param != "proj"]
        >>> write_peft("adapter", projector.base, deltas)
        >>> tower = projector.base.encoder.visual.state_dict()
        >>> read = read_peft("adapter", {name: tuple(part.shape) for name, part in tower.items()})
        >>> [delta.param for delta in read] == [delta.param for delta in deltas]
        True
    """
    half = 0.5 if is_doubled({}, mha_fix) else 1.0
    by_module: dict[str, dict[str, Delta]] = {}
    for delta in deltas:
        shape = tuple(base.visual.get_parameter(delta.param).shape)
        if (delta.b.shape[0], delta.a.shape[1]) != (shape[0], math.prod(shape[1:])):
            raise refusal(
                f"`{delta.param}` uses the convolution form of the delta, which PEFT does not "
                "support"
            )
        by_module.setdefault(_split(base, delta.param)[0], {})[delta.param] = delta
    silent = sorted(by_module.keys() - _called(base, list(by_module)))
    if silent:
        raise refusal(
            f"`{silent[0]}` is used by its weight alone, so that PEFT's wrapper around it would "
            "have no effect; expected deltas of modules that are called"
        )
    if not by_module:
        raise refusal("there is no delta to write")
    ranks = {name: max(d.a.shape[0] for d in group.values()) for name, group in by_module.items()}
    tensors: dict[str, Tensor] = {}
    for name, group in by_module.items():
        for suffix, param, weight in _wrapped(name, base.visual.get_submodule(name)):
            flat = (weight.shape[0], math.prod(weight.shape[1:]))
            a, b = _padded(group.get(param), flat, ranks[name])
            if suffix:
                b = b * half
            if weight.ndim == 4:
                a, b = a.reshape(-1, *weight.shape[1:]), b[:, :, None, None]
            key = f"base_model.model.visual.{name}{suffix}"
            tensors[f"{key}.lora_A.weight"] = a.contiguous()
            tensors[f"{key}.lora_B.weight"] = b.contiguous()
    with new_directory(directory) as folder:
        (folder / CONFIG_NAME).write_bytes(_config(ranks))
        (folder / WEIGHTS_NAME).write_bytes(safetensors.torch.save(tensors))


def _called(base: LoadedBase, modules: Sequence[str]) -> set[str]:
    """Find those of ``modules`` whose ``forward`` runs when the tower sees a view."""
    seen: set[str] = set()

    def note(name: str, module: nn.Module, arguments: object) -> None:
        del module, arguments
        seen.add(name)

    hooks = [
        base.visual.get_submodule(name).register_forward_pre_hook(functools.partial(note, name))
        for name in modules
    ]
    try:
        size = base.spec.preprocess.size
        device = next(base.visual.parameters()).device
        base.encode(torch.full((1, 3, size, size), 0.5, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _split(base: LoadedBase, param: str) -> tuple[str, nn.Module]:
    """Find the module that PEFT would wrap for a parameter: an attention for both its weights."""
    name, _, leaf = param.rpartition(".")
    module = base.visual.get_submodule(name)
    parent_name, _, last = name.rpartition(".")
    parent = base.visual.get_submodule(parent_name)
    if leaf == "weight" and last == "out_proj" and isinstance(parent, nn.MultiheadAttention):
        return parent_name, parent
    # Exactly these: subclasses pad or standardise, which PEFT's wrapper would leave out.
    is_plain = leaf == "weight" and type(module) in {nn.Linear, nn.Conv2d}
    is_plain = is_plain and getattr(module, "groups", 1) == 1
    is_packed = leaf == "in_proj_weight" and isinstance(module, nn.MultiheadAttention)
    if not (is_plain or is_packed):
        raise refusal(f"`{param}` is not the weight of a module that PEFT can wrap")
    return name, module


def _padded(delta: Delta | None, shape: tuple[int, int], rank: int) -> tuple[Tensor, Tensor]:
    """Make A (rank, in) and B (out, rank) with s folded into B; zeros if there is no delta."""
    a, b = torch.zeros(rank, shape[1]), torch.zeros(shape[0], rank)
    if delta is not None:
        inner = delta.a.shape[0]
        a[:inner] = delta.a.detach().cpu()
        b[:, :inner] = delta.b.detach().cpu() * delta.scale
    return a, b


def _wrapped(name: str, module: nn.Module) -> list[tuple[str, str, Tensor]]:
    """List key suffix, parameter and weight of what PEFT adapts when it wraps ``module``."""
    if isinstance(module, nn.MultiheadAttention):
        return [
            ("", f"{name}.in_proj_weight", module.in_proj_weight),
            (".base_layer.out_proj", f"{name}.out_proj.weight", module.out_proj.weight),
        ]
    return [("", f"{name}.weight", cast("Tensor", module.weight))]


def _config(ranks: Mapping[str, int]) -> bytes:
    """Make ``adapter_config.json``: alpha equals the rank everywhere, so that PEFT's scale is 1."""
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    odd = {f"^visual\\.{re.escape(n)}": rank for n, rank in ranks.items() if rank != usual}
    config = {
        "alpha_pattern": odd,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": odd,
        "target_modules": [f"visual.{name}" for name in ranks],
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("ascii")
