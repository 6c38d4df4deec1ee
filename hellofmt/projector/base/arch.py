"""Architectures of a base: between open_clip's configuration and what an archive states.

An archive states only keys on these lists, so that a hostile description can name no download and
no option whose effect the format does not pin. Rejected: ``add_model_config``, which changes
open_clip's global state; ``pretrained_image`` and its like, which fetch weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec

from hellofmt.archive.format.canonical import decimal_string, decimal_value
from hellofmt.archive.format.digest import base_digest
from hellofmt.archive.format.manifest import UNSET, Arch
from hellofmt.archive.format.towers import (
    BLOCK_KEYS,
    LAYER_SCALE,
    POOLER_KEYS,
    RESNET_KEYS,
    TIMM_KEYS,
    VISION_DEFAULTS,
    has_activation,
    shortest_ratio,
)
from hellofmt.errors import UserInputError, foreign_text, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hellofmt.archive.format.manifest import Base

# Without effect on an encoder in eval mode with its weights loaded.
_VISION_IGNORED = frozenset(
    {
        "patch_dropout",
        "pos_embed_type",
        "timm_drop",
        "timm_drop_path",
        "timm_model_pretrained",
        "output_tokens",
    }
)
_DECIMAL_KEYS = frozenset(
    {"mlp_ratio", "ls_init_value", "patch_dropout", "norm_eps", "timm_drop", "timm_drop_path"}
)
# What open_clip assumes where a config says nothing, for keys that the manifest can state.
_VISION_DEFAULTS: dict[str, object] = {
    key: float(cast("str", value)) if key in _DECIMAL_KEYS else value
    for key, value in VISION_DEFAULTS.items()
}
_VIT_KEYS = (frozenset(_VISION_DEFAULTS) - TIMM_KEYS) | {
    "image_size",
    "layers",
    "width",
    "patch_size",
    "ls_init_value",
    "act_approximate",
    "block_type",
}


def arch_of_config(config: Mapping[str, Any]) -> Arch:
    """Turn an open_clip model config into the manifest's architecture."""
    vision = _normal_vision(_flat_config(cast("Mapping[str, object]", config["vision_cfg"])))
    document = {
        "embed_dim": config["embed_dim"],
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "vision": vision,
    }
    try:
        return msgspec.convert(document, Arch)
    except msgspec.ValidationError as error:
        raise UserInputError.make(
            "E_OPTION", f"base architecture cannot be stated in an archive: {foreign_text(error)}"
        ) from error


def _normal_vision(config: Mapping[str, object]) -> dict[str, object]:
    """Keep the keys of a vision config that change the function and are not at their default."""
    if config.get("timm_model_name") is not None:
        allowed, defaults = TIMM_KEYS, {"image_size": 224}
    elif isinstance(config.get("layers"), (list, tuple)):
        allowed, defaults = RESNET_KEYS, {"image_size": 224, "width": 768}
    else:
        allowed = _VIT_KEYS
        defaults = {"image_size": 224, "width": 768, "layers": 12, "patch_size": 16}
        if not config.get("attentional_pool"):
            allowed = allowed - POOLER_KEYS
    stated = {k: v for k, v in config.items() if v is not None and k in allowed}
    if stated.get("final_ln_after_pool") and stated.get("pool_type", "tok") == "tok":
        # The norm of a token is the same before it is taken and after.
        del stated["final_ln_after_pool"]
    if "mlp_ratio" in stated:
        # 4.3637 and 6144/1408 build the same tower.
        width = cast("int", (defaults | stated)["width"])
        hidden = int(width * float(cast("float", stated["mlp_ratio"])))
        stated["mlp_ratio"] = float(shortest_ratio(width, hidden)) if hidden > 0 else 0.0
    return {
        key: _config_value(key, value)
        for key, value in (defaults | stated).items()
        if key in defaults or value != _VISION_DEFAULTS.get(key)
    }


def _config_value(key: str, value: object) -> object:
    """Spell one value of a vision config as the manifest does."""
    if key == "image_size" and isinstance(value, (list, tuple)):
        sides = set(cast("Sequence[int]", value))
        return sides.pop() if len(sides) == 1 else value
    if key == "ls_init_value":
        return LAYER_SCALE
    if key in _DECIMAL_KEYS:
        return decimal_string(float(cast("float", value)))
    return list(cast("Sequence[int]", value)) if isinstance(value, tuple) else value


def _flat_config(config: Mapping[str, object]) -> dict[str, object]:
    """Flatten open_clip's ``vision_cfg`` with its nested options to the manifest's keys."""
    flat = {k: v for k, v in config.items() if v is not None and k not in _VISION_IGNORED}
    act = cast("dict[str, object]", flat.pop("act_kwargs", None) or {})
    norm = cast("dict[str, object]", flat.pop("norm_kwargs", None) or {})
    flat.update({f"act_{k}": v for k, v in act.items()})
    flat.update({f"norm_{k}": v for k, v in norm.items()})
    if flat.get("block_type") == "default":
        # Plain blocks, whatever else is said of custom ones.
        flat = {k: v for k, v in flat.items() if k not in BLOCK_KEYS | {"block_type"}}
    elif any(flat.get(key) for key in BLOCK_KEYS):
        flat.pop("block_type", None)
    if "timm_model_name" in flat and "timm_proj" in config:
        # Null means something else than absence: no projection but timm's own classifier.
        flat["timm_proj"] = config["timm_proj"] or ""
    known = _VIT_KEYS | RESNET_KEYS | TIMM_KEYS
    unknown = {key for key, value in flat.items() if key not in known and value}
    if "timm_model_name" in flat and config.get("timm_pool", "") is None:
        # Null is the pooling of the timm model, whichever that is.
        unknown.add("timm_pool")
    if unknown:
        raise UserInputError.make(
            "E_OPTION",
            f"base uses open_clip's option `{printable(min(unknown))}`, which an archive cannot "
            "state; expected a base without it",
        )
    return {k: v for k, v in flat.items() if k in known}


def open_clip_config(arch: Arch) -> dict[str, object]:
    """Turn the manifest's architecture into keyword arguments of ``CLIPVisionCfg``."""
    stated = cast("dict[str, object]", msgspec.to_builtins(arch.vision))
    config: dict[str, object] = {}
    for key, value in stated.items():
        config[key] = decimal_value(cast("str", value)) if key in _DECIMAL_KEYS else value
    if "act_approximate" in config:
        config["act_kwargs"] = {"approximate": config.pop("act_approximate")}
    if "norm_eps" in config:
        config["norm_kwargs"] = {"eps": config.pop("norm_eps")}
    return config


def normal_arch(arch: Arch) -> dict[str, object]:
    """Flatten what ``arch`` builds, so that two spellings of one architecture compare equal."""
    config = open_clip_config(arch)
    normal = arch_of_config(
        {"embed_dim": arch.embed_dim, "quick_gelu": arch.quick_gelu, "vision_cfg": config}
    )
    return flatten(msgspec.to_builtins(normal))


def without_text(spec: Base) -> Base:
    """Strip a base of its text tower, which label functions whose heads are all stored never read.

    Of a base that is not named, ``quick_gelu`` then says something only of a transformer.
    """
    arch, digest = spec.arch, spec.digest
    if spec.kind != "open_clip" and arch.quick_gelu and not has_activation(arch.vision):
        arch = msgspec.structs.replace(arch, quick_gelu=False)
        digest = base_digest(arch, spec.preprocess, spec.tensors)
    return msgspec.structs.replace(spec, arch=arch, digest=digest, text=UNSET)


def flatten(document: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten nested objects to one, with keys such as ``vision.width``."""
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= flatten(cast("dict[str, object]", value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
