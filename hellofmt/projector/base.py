"""Base encoders: the frozen, public part of a label function, and the digest that pins it.

A base is an open_clip image tower with its preprocessing: ``encode`` is the whole way from a
finished view to a unit embedding, and nothing else in the package resizes or normalises for it.
Four sources: open_clip by name and tag, directory or hub; a model that is loaded already; weights
generated from a seed by a published rule; weights carried inside the archive.

An archive pins its base by digests over architecture, preprocessing and tensors. A mismatch is
refused by the part that differs, because the same weights with another activation or another
resize give other labels without any error. Nothing is downloaded because a file names it: the name
in an archive is only printed, for the user to type.

Architectures from a file are built only from allow-listed keys, and first on the meta device, so
that a hostile description costs neither memory nor a download. Rejected: ``add_model_config``,
which changes open_clip's global state; ``pretrained_image`` and its like, which fetch weights.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    LayerScale,
    QuickGELU,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.nn import functional

from hellofmt.archive.manifest import (
    UNSET,
    Arch,
    Base,
    Preprocess,
    TextArch,
    base_digest,
    decimal_string,
    decimal_value,
    tensors_digest,
)
from hellofmt.archive.tensors import StoredTensor
from hellofmt.errors import BaseModelError, LimitError, SpecError, UserInputError, printable
from hellofmt.rng import Stream, uniform, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive import HelloFile

__all__ = ["Encoder", "LoadedBase", "base_of", "load_base", "seeded_base"]

#: exp(LOGIT_SCALE) = 1 / 0.07, the scale CLIP starts training from (arXiv 2103.00020, 2.5).
LOGIT_SCALE = math.log(1 / 0.07)

#: Most parameters of a base that an archive describes (seeded or embedded).
MAX_PARAMETERS = 1 << 30

# Sizes of an architecture that a file may ask for; the largest public CLIP towers are far below.
_MAX_WIDTH = 8192
_MAX_LAYERS = 256
_MAX_SIDE = 2048
_MAX_POSITIONS = 1 << 25

# One value for "has layer scale": the initial value is gone once weights are loaded.
_LAYER_SCALE = "0.00001"

# Class names are short; this bounds the memory of the text tower.
_TEXTS_PER_BATCH = 256

_INTERPOLATION = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}

# What open_clip assumes where a config says nothing, for keys that the manifest can state.
_VISION_DEFAULTS: dict[str, object] = {
    "head_width": 64,
    "mlp_ratio": 4.0,
    "attentional_pool": False,
    "attn_pooler_queries": 256,
    "attn_pooler_heads": 8,
    "no_ln_pre": False,
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "norm_eps": 1e-5,
    "qk_norm": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
}
# Without effect on an encoder in eval mode whose weights are given.
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
_RESNET_KEYS = frozenset({"image_size", "layers", "width", "head_width"})
_TIMM_KEYS = frozenset(
    {"image_size", "timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias"}
)
_VIT_KEYS = (frozenset(_VISION_DEFAULTS) - _TIMM_KEYS) | {
    "image_size",
    "layers",
    "width",
    "patch_size",
    "ls_init_value",
    "act_approximate",
    "block_type",
}
# Any of them makes a block a custom one (scaled cosine attention too, but open_clip 3.3 cannot run
# it: a batched product of four-dimensional tensors).
_BLOCK_KEYS = frozenset({"qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"})
_POOLER_KEYS = frozenset({"attn_pooler_queries", "attn_pooler_heads"})


class Encoder(nn.Module):
    """Views to unit embeddings: normalise(visual((resize(v) - mean) / std)).

    Attributes:
        visual: open_clip image tower, in eval mode.
        preprocess: how a view enters it.
    """

    def __init__(self, visual: nn.Module, preprocess: Preprocess) -> None:
        """Wrap ``visual``; it is neither copied nor frozen here."""
        super().__init__()
        self.visual = visual
        self.preprocess = preprocess
        for name in ("mean", "std"):
            values = [decimal_value(s) for s in getattr(preprocess, name)]
            tensor = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        """Embeddings of views.

        Args:
            views: (N, 3, S, S) float32 in [0, 1], before any normalisation; resized where S is not
                the base's size, antialiased as the base says, without clamping.

        Returns:
            (N, D) float32, rows of unit length.

        Raises:
            UserInputError: E_DATA, not such a batch.
        """
        x = self.resized(views)
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        x = (x - mean) / std
        return unit_rows(self.visual(x.to(next(self.visual.parameters()).dtype)))

    def resized(self, views: Tensor) -> Tensor:
        """Views of the base's size, not normalised.

        Args:
            views: (N, 3, S, S) float32 in [0, 1], before any normalisation.

        Returns:
            float32 of the same form.

        Raises:
            UserInputError: E_DATA, not such a batch.
        """
        _check_views(views)
        size = self.preprocess.size
        if tuple(views.shape[-2:]) == (size, size):
            return views
        mode = _INTERPOLATION[self.preprocess.interpolation]
        smooth = mode != "nearest-exact"
        return functional.interpolate(
            views, size=(size, size), mode=mode, antialias=smooth and self.preprocess.antialias
        )


def unit_rows(features: object) -> Tensor:
    """What an image tower returns, as float32 (N, D) with rows of unit length."""
    # Towers configured for CoCa return (pooled, tokens).
    if isinstance(features, tuple):
        features = cast("tuple[Tensor, ...]", features)[0]
    return functional.normalize(cast("Tensor", features).float(), dim=-1)


def _check_views(views: Tensor) -> None:
    shape = tuple(views.shape)
    if views.ndim != 4 or shape[1] != 3 or 0 in shape or views.dtype != torch.float32:
        raise UserInputError.make(
            "E_DATA",
            "views: not a batch of images; expected (N, 3, S, S) float32, N >= 1, "
            f"got {shape} {str(views.dtype).removeprefix('torch.')}",
        )
    # A batch that was normalised for a student is the usual mistake, and it gives plausible but
    # wrong labels. Bicubic views overshoot [0, 1] a little. Not on a GPU: it would synchronise.
    if views.device.type == "cpu":
        low, high = (float(v) for v in torch.aminmax(views.detach()))
        if not (low >= -0.5 and high <= 1.5):
            raise UserInputError.make(
                "E_DATA",
                "views: values outside [0, 1]; expected the view before normalisation, "
                f"got values from {low:.3g} to {high:.3g}",
            )


@dataclass(frozen=True)
class LoadedBase:
    """A base encoder in memory, with the facts that pin it.

    Attributes:
        spec: what the manifest says of it; digests are of the tensors held here.
        encoder: frozen, in eval mode, float32, on the CPU unless moved.
        logit_scale: logarithm of the base's own scale of cosines.
        text_digest: digest of the text tower, or none.
        preprocess_declared: the source stated its preprocessing, rather than leaving it to
            open_clip's defaults.
        texts: class prompts (strings) to text embeddings (N, D), or none without a text tower.
    """

    spec: Base
    encoder: Encoder
    logit_scale: float = LOGIT_SCALE
    text_digest: str | None = None
    preprocess_declared: bool = True
    texts: Callable[[Sequence[str]], Tensor] | None = None

    @property
    def visual(self) -> nn.Module:
        """The image tower, whose state-dict names key the deltas."""
        return self.encoder.visual

    @property
    def embed_dim(self) -> int:
        """Length D of an embedding."""
        return self.spec.arch.embed_dim

    @property
    def has_text(self) -> bool:
        """Whether a head can start from text."""
        return self.texts is not None

    def encode(self, views: Tensor) -> Tensor:
        """Unit embeddings of views, without gradient.

        Args:
            views: (N, 3, S, S) float32 in [0, 1], before any normalisation.

        Returns:
            (N, D) float32, rows of unit length.

        Raises:
            UserInputError: E_DATA, not such a batch.
        """
        with torch.no_grad():
            return self.encoder(views)

    def text_rows(self, names: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Rows of a zero-shot head: normalise(mean over prompts of normalise(text embedding)).

        Equal to open_clip's ``build_zero_shot_classifier``, transposed.

        Args:
            names: one name per class.
            prompts: templates; the characters ``{}`` are replaced by the name.

        Returns:
            (C, D) float32, rows of unit length.

        Raises:
            UserInputError: E_OPTION, no text tower, no names or no prompts.
        """
        if self.texts is None:
            raise UserInputError.make(
                "E_OPTION",
                f"base `{printable(self.spec.name)}` has no text tower; expected one for a head "
                "that starts from text (or start 'stored')",
            )
        if not names or not prompts:
            raise UserInputError.make(
                "E_OPTION",
                "a head from text needs class names and prompts; "
                f"got {len(names)} names and {len(prompts)} prompts",
            )
        # str.replace, never str.format: a prompt from a file must not reach attributes.
        texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
        with torch.no_grad():
            parts = [
                functional.normalize(self.texts(texts[i : i + _TEXTS_PER_BATCH]).float(), dim=-1)
                for i in range(0, len(texts), _TEXTS_PER_BATCH)
            ]
            rows = torch.cat(parts).reshape(len(names), len(prompts), -1).mean(dim=1)
            return functional.normalize(rows, dim=-1)

    def embedded(self) -> LoadedBase:
        """The same base as kind ``embedded``: its tensors will travel inside the archive.

        The text tower stays behind, so a head on an embedded base has start ``stored``.
        """
        spec = msgspec.structs.replace(
            self.spec, kind="embedded", pretrained=UNSET, rule=UNSET, seed=UNSET, text=UNSET
        )
        return replace(self, spec=spec, texts=None, text_digest=None)

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """The image tower's floating tensors, for section ``base``.

        float16 where that is exact (OpenAI's weights were released so), else float32; the digest
        is over the float32 values either way.
        """
        stored: dict[str, StoredTensor] = {}
        for name, array in _float_tensors(self.visual):
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            exact = np.array_equal(half.astype(np.float32), array)
            stored[name] = StoredTensor.from_numpy(half if exact else array)
        return stored


# Architectures ------------------------------------------------------------------------------------


def _config_value(key: str, value: object) -> object:
    """One value of a vision config as the manifest spells it."""
    if key == "image_size" and isinstance(value, (list, tuple)):
        sides = set(cast("Sequence[int]", value))
        return sides.pop() if len(sides) == 1 else value
    if key == "ls_init_value":
        return _LAYER_SCALE
    if key in _DECIMAL_KEYS:
        return decimal_string(float(cast("float", value)))
    return list(cast("Sequence[int]", value)) if isinstance(value, tuple) else value


def _normal_vision(config: Mapping[str, object]) -> dict[str, object]:
    """Keys of a vision config that change the function, without those at open_clip's default."""
    if config.get("timm_model_name") is not None:
        allowed, defaults = _TIMM_KEYS, {"image_size": 224}
    elif isinstance(config.get("layers"), (list, tuple)):
        allowed, defaults = _RESNET_KEYS, {"image_size": 224, "width": 768}
    else:
        allowed = _VIT_KEYS
        defaults = {"image_size": 224, "width": 768, "layers": 12, "patch_size": 16}
        if not config.get("attentional_pool"):
            allowed = allowed - _POOLER_KEYS
    stated = {k: v for k, v in config.items() if v is not None and k in allowed}
    return {
        key: _config_value(key, value)
        for key, value in (defaults | stated).items()
        if key in defaults or value != _VISION_DEFAULTS.get(key)
    }


def _flat_config(config: Mapping[str, object]) -> dict[str, object]:
    """open_clip's ``vision_cfg`` with its nested options as the manifest's flat keys."""
    flat = {k: v for k, v in config.items() if v is not None and k not in _VISION_IGNORED}
    act = cast("dict[str, object]", flat.pop("act_kwargs", None) or {})
    norm = cast("dict[str, object]", flat.pop("norm_kwargs", None) or {})
    flat.update({f"act_{k}": v for k, v in act.items()})
    flat.update({f"norm_{k}": v for k, v in norm.items()})
    if flat.get("block_type") == "default":
        # Plain blocks, whatever else is said of custom ones.
        flat = {k: v for k, v in flat.items() if k not in _BLOCK_KEYS | {"block_type"}}
    elif any(flat.get(key) for key in _BLOCK_KEYS):
        flat.pop("block_type", None)
    if "timm_model_name" in flat and "timm_proj" in config:
        # Null means something else than absence: no projection but timm's own classifier.
        flat["timm_proj"] = config["timm_proj"] or ""
    known = _VIT_KEYS | _RESNET_KEYS | _TIMM_KEYS
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


def _arch_of_config(config: Mapping[str, Any]) -> Arch:
    """An open_clip model config as the manifest's architecture."""
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
            "E_OPTION", f"base architecture cannot be stated in an archive: {printable(error)}"
        ) from error


def _open_clip_config(arch: Arch) -> dict[str, object]:
    """The manifest's architecture as keyword arguments of ``CLIPVisionCfg``."""
    stated = cast("dict[str, object]", msgspec.to_builtins(arch.vision))
    config: dict[str, object] = {}
    for key, value in stated.items():
        config[key] = decimal_value(cast("str", value)) if key in _DECIMAL_KEYS else value
    if "act_approximate" in config:
        config["act_kwargs"] = {"approximate": config.pop("act_approximate")}
    if "norm_eps" in config:
        config["norm_kwargs"] = {"eps": config.pop("norm_eps")}
    return config


def _normal_arch(arch: Arch) -> dict[str, object]:
    """What ``arch`` builds, flat, so that two spellings of one architecture compare equal."""
    config = _open_clip_config(arch)
    normal = _arch_of_config(
        {"embed_dim": arch.embed_dim, "quick_gelu": arch.quick_gelu, "vision_cfg": config}
    )
    facts = _flatten(msgspec.to_builtins(normal))
    # Only the width of the MLP matters: 4.3637 and 6144/1408 build the same tower.
    if "vision.mlp_ratio" in facts:
        ratio = decimal_value(cast("str", facts.pop("vision.mlp_ratio")))
        facts["vision.mlp_width"] = int(cast("int", facts["vision.width"]) * ratio)
    return facts


def _describe(model: nn.Module, visual: nn.Module) -> Arch:
    """Architecture of a tower that is loaded already, read off its modules."""
    quick = any(isinstance(m, QuickGELU) for m in model.modules())
    config: dict[str, object]
    if isinstance(visual, ModifiedResNet):
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        width = visual.conv3.out_channels
        config = {
            "image_size": visual.image_size,
            "layers": [len(stage) for stage in stages],
            "width": width,
            "head_width": width * 32 // visual.attnpool.num_heads,
        }
        dim = visual.output_dim
    elif isinstance(visual, VisionTransformer):
        block: Any = visual.transformer.resblocks[0]
        width = visual.conv1.out_channels
        pooler: Any = visual.attn_pool
        config = {
            "image_size": visual.image_size,
            "patch_size": cast("tuple[int, int]", visual.patch_size)[0],
            "width": width,
            "layers": len(visual.transformer.resblocks),
            "head_width": width // block.attn.num_heads,
            "mlp_ratio": _mlp_ratio(block.mlp.c_fc.out_features, width),
            "ls_init_value": 1.0 if isinstance(block.ls_1, LayerScale) else None,
            "no_ln_pre": isinstance(visual.ln_pre, nn.Identity),
            "final_ln_after_pool": visual.final_ln_after_pool,
            "pool_type": visual.pool_type,
            "norm_kwargs": {"eps": visual.ln_post.eps},
            "attentional_pool": getattr(visual, "attn_pool_type", "") or pooler is not None,
        }
        if isinstance(block, CustomResidualAttentionBlock):
            config |= _describe_custom(block)
        if pooler is not None:
            config["attn_pooler_queries"] = pooler.query.shape[0]
            config["attn_pooler_heads"] = pooler.attn.num_heads
        if getattr(block.mlp.gelu, "approximate", "none") == "tanh":
            config["act_kwargs"] = {"approximate": "tanh"}
        dim = visual.output_dim
    else:
        raise UserInputError.make(
            "E_OPTION",
            f"base: cannot read the architecture off {type(visual).__name__}; expected the base by "
            'name, such as "open_clip:NAME:PRETRAINED", or the argument `arch`',
        )
    return _arch_of_config({"embed_dim": dim, "quick_gelu": quick, "vision_cfg": config})


def _describe_custom(block: Any) -> dict[str, object]:
    """Options of a custom attention block, read off its modules."""
    return {
        "block_type": "custom",
        "qk_norm": not isinstance(block.attn.ln_q, nn.Identity),
        "scaled_cosine_attn": block.attn.scaled_cosine,
        "scale_heads": block.attn.head_scale is not None,
        "scale_attn_inner": not isinstance(block.attn.ln_inner, nn.Identity),
        "scale_attn": not isinstance(block.ln_attn, nn.Identity),
        "scale_fc": not isinstance(block.mlp.ln, nn.Identity),
    }


def _mlp_ratio(hidden: int, width: int) -> float:
    """A ratio that open_clip's ``int(width * ratio)`` turns back into ``hidden``."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _check_size(arch: Arch, text: TextArch | None) -> None:
    """Refuse an architecture too large to build, before any allocation."""
    config = {"image_size": 224, "width": 768, "layers": 12, "patch_size": 16} | (
        _open_clip_config(arch)
    )
    layers = config["layers"]
    depth = sum(cast("list[int]", layers)) if isinstance(layers, list) else cast("int", layers)
    side, width = cast("int", config["image_size"]), cast("int", config["width"])
    patches = math.ceil(side / cast("int", config["patch_size"])) ** 2
    numbers = {
        "image_size": (side, _MAX_SIDE),
        "width": (width, _MAX_WIDTH),
        "layers": (depth, _MAX_LAYERS),
        "embed_dim": (arch.embed_dim, _MAX_WIDTH),
        "positions": (patches * width, _MAX_POSITIONS),
    }
    for key in ("attn_pooler_queries", "attn_pooler_heads", "head_width"):
        numbers[key] = (cast("int", config.get(key, 1)), _MAX_WIDTH)
    numbers["mlp_ratio"] = (math.ceil(cast("float", config.get("mlp_ratio", 4.0))), 64)
    if text is not None:
        numbers |= {
            "text.width": (text.width, _MAX_WIDTH),
            "text.layers": (text.layers, _MAX_LAYERS),
            "text.context_length": (text.context_length, _MAX_SIDE),
            "text.vocab_size": (text.vocab_size, 1 << 20),
        }
    for key, (value, cap) in numbers.items():
        _check_cap(key, value, cap)


def _check_cap(key: str, value: int, cap: int) -> None:
    if value > cap:
        raise LimitError.make(
            "E_LIMIT_BASE", f"base architecture: `{key}` is {value}; expected at most {cap}"
        )


def _build_clip(arch: Arch, text: TextArch | None) -> CLIP:
    """An open_clip model with arbitrary weights; the text tower is a stub where none is asked."""
    config = _open_clip_config(arch)
    # The values of absent keys are the format's, not those of whichever open_clip is installed.
    if "timm_model_name" not in config:
        config = {"layers": 12, "width": 768, "patch_size": 16} | config
    vision = CLIPVisionCfg(**cast("dict[str, Any]", {"image_size": 224} | config))
    stub = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    text_config = CLIPTextCfg(**cast("dict[str, Any]", msgspec.to_builtins(text) if text else stub))
    return CLIP(arch.embed_dim, vision, text_config, quick_gelu=arch.quick_gelu)


def _build_checked(arch: Arch, text: TextArch | None) -> CLIP:
    """`_build_clip` of an architecture that a file may have stated.

    Raises:
        LimitError: E_LIMIT_BASE, larger than any base may be.
        BaseModelError: E_BASE_CONFIG, open_clip cannot build it.
    """
    _check_size(arch, text)
    try:
        with torch.device("meta"):
            sketch = _build_clip(arch, text)
        _check_cap("parameters", sum(p.numel() for p in sketch.parameters()), MAX_PARAMETERS)
        # Initial weights are overwritten, but drawing them must not move the caller's generator.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _build_clip(arch, text)
    except LimitError:
        raise
    except Exception as error:
        raise BaseModelError.make(
            "E_BASE_CONFIG",
            f"open_clip cannot build the base architecture: {printable(error)}",
        ) from error


# Tensors and digests ------------------------------------------------------------------------------


def _float_state(module: nn.Module) -> dict[str, Tensor]:
    """Floating tensors of the state dict, sorted by name; integer counters are left out."""
    state = module.state_dict()
    return {name: state[name] for name in sorted(state) if state[name].is_floating_point()}


def _float_tensors(module: nn.Module) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, tensor in _float_state(module).items():
        yield name, tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _digest(tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> str:
    return tensors_digest(
        (name, "F32", array.shape, array.astype("<f4", copy=False).tobytes())
        for name, array in tensors
    )


def _text_module(model: Any) -> nn.Module | None:
    """The text tower, under the names of open_clip's ``TextTransformer``, or none."""
    if isinstance(model, CLIP):
        # The tower's parts lie flat in this class; state-dict names are the tower's own.
        tower = nn.Module()
        for name in ("transformer", "token_embedding", "ln_final"):
            tower.add_module(name, getattr(model, name))
        tower.register_parameter("positional_embedding", cast("Any", model).positional_embedding)
        projection = cast("Any", model).text_projection
        if isinstance(projection, nn.Module):
            tower.add_module("text_projection", projection)
        elif projection is not None:
            tower.register_parameter("text_projection", projection)
        return tower
    text = getattr(model, "text", None)
    return text if isinstance(text, nn.Module) else None


def _fill(module: nn.Module, values: Callable[[str, tuple[int, ...]], NDArray[Any]]) -> None:
    """Overwrite every floating tensor of the state dict by ``values(name, shape)``."""
    with torch.no_grad():
        for name, tensor in _float_state(module).items():
            tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))


def _freeze(visual: nn.Module) -> nn.Module:
    return visual.to("cpu", torch.float32).eval().requires_grad_(requires_grad=False)


# Seeded bases -------------------------------------------------------------------------------------


def _uniform_1(
    seed: int, first: int, names: Sequence[str]
) -> Callable[[str, tuple[int, ...]], NDArray[np.float32]]:
    """Rule ``uniform-1`` of spec/hello-1.md: the tensor of a name, numbered from ``first``."""
    numbers = {name: first + i for i, name in enumerate(names)}

    def generate(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        last = name.rsplit(".", 1)[-1]
        if len(shape) >= 2 or last in {"class_embedding", "positional_embedding"}:
            fan = math.prod(shape[1:] if len(shape) >= 2 else shape)
            u = uniform(words(seed, 0, Stream.BASE, numbers[name], math.prod(shape)))
            return ((2.0 * u - 1.0) * math.sqrt(3.0 / fan)).astype(np.float32).reshape(shape)
        if len(shape) == 1 and last in {"weight", "running_var"}:
            return np.ones(shape, np.float32)
        if len(shape) == 1 and last in {"bias", "in_proj_bias", "running_mean"}:
            return np.zeros(shape, np.float32)
        raise BaseModelError.make(
            "E_BASE_CONFIG",
            f"rule uniform-1 has no clause for tensor `{printable(name)}` of {len(shape)} "
            "dimensions; expected an architecture without such tensors",
        )

    return generate


def seeded_base(
    arch: Arch,
    preprocess: Preprocess,
    *,
    seed: int,
    name: str = "seeded",
    text: TextArch | None = None,
) -> LoadedBase:
    """A base whose weights are generated from ``seed`` by rule ``uniform-1``: no download.

    Bit-exact everywhere: counter-based random words, float64 arithmetic, one rounding to float32.

    Args:
        arch: architecture; any that open_clip builds from tensors the rule has a clause for.
        preprocess: how a view enters it.
        seed: 0 <= seed < 2**53.
        name: for people.
        text: architecture of a text tower to generate as well, or none.

    Returns:
        The base, kind ``seeded``, frozen, on the CPU.

    Raises:
        BaseModelError: E_BASE_CONFIG, open_clip cannot build ``arch`` or the rule cannot fill it.
        LimitError: E_LIMIT_BASE, larger than any base may be.
        UserInputError: E_OPTION, the seed is out of range.

    Example:
        >>> import torch
        >>> from hellofmt.archive.manifest import Arch, Preprocess, VisionArch
        >>> vision = VisionArch(image_size=8, layers=1, width=64, patch_size=4)
        >>> arch = Arch(embed_dim=16, quick_gelu=False, vision=vision)
        >>> preprocess = Preprocess(
        ...     antialias=True, interpolation="bicubic", mean=["0.5"] * 3, resize_mode="squash",
        ...     size=8, std=["0.5"] * 3)
        >>> seeded_base(arch, preprocess, seed=1).encode(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 16])
    """
    if not 0 <= seed < 1 << 53:
        raise UserInputError.make("E_OPTION", f"seed: expected 0 <= seed < 2**53, got {seed}")
    model = _build_checked(arch, text)
    image_names = list(_float_state(model.visual))
    _fill(model.visual, _uniform_1(seed, 0, image_names))
    visual = _freeze(model.visual)
    texts, text_digest = None, None
    if text is not None:
        tower = cast("nn.Module", _text_module(model))
        _fill(tower, _uniform_1(seed, len(image_names), list(_float_state(tower))))
        texts = _texts(model, lambda: open_clip.SimpleTokenizer(context_length=text.context_length))
        text_digest = _digest(_float_tensors(tower))
    tensors = _digest(_float_tensors(visual))
    spec = Base(
        arch=arch,
        digest=base_digest(arch, preprocess, tensors),
        kind="seeded",
        name=name,
        preprocess=preprocess,
        tensors=tensors,
        rule="uniform-1",
        seed=seed,
        text=UNSET if text is None else text,
    )
    return LoadedBase(
        spec=spec,
        encoder=Encoder(visual, preprocess).eval(),
        text_digest=text_digest,
        texts=texts,
    )


def _texts(model: nn.Module, tokenizer: Callable[[], Any]) -> Callable[[Sequence[str]], Tensor]:
    """Strings to text embeddings; a tokenizer may be a download, so it is made when first used."""
    model.eval().requires_grad_(requires_grad=False)
    made: list[Any] = []

    def embed(texts: Sequence[str]) -> Tensor:
        if not made:
            made.append(tokenizer())
        return cast("Any", model).encode_text(made[0](list(texts)))

    return embed


# open_clip and loaded models ----------------------------------------------------------------------


def load_base(
    source: str | Path | nn.Module | LoadedBase,
    *,
    arch: Arch | None = None,
    preprocess: Preprocess | None = None,
) -> LoadedBase:
    """Load an open_clip base that the user names.

    Args:
        source: ``"open_clip:NAME:PRETRAINED"`` (a tag, which open_clip may download, or a
            checkpoint file), ``"local-dir:PATH"`` or the path of such a directory,
            ``"hf-hub:ORG/NAME"``, or a loaded open_clip model. A `LoadedBase` is returned as it is.
        arch: architecture of a loaded model whose modules do not tell it (timm towers).
        preprocess: instead of the source's own.

    Returns:
        The base, kind ``open_clip``, frozen, float32, on the CPU; a copy of a loaded model.

    Raises:
        UserInputError: E_OPTION, the source cannot be understood or loaded.
        OSError: a path does not exist.
    """
    if isinstance(source, LoadedBase):
        return source
    if isinstance(source, nn.Module):
        return _from_model(source, arch, preprocess)
    text = str(source)
    if text.startswith(("local-dir:", "hf-hub:")):
        return _from_name(text, None, preprocess)
    if text.startswith("open_clip:"):
        name, _, pretrained = text.removeprefix("open_clip:").partition(":")
        if not pretrained or name not in open_clip.list_models():
            raise UserInputError.make(
                "E_OPTION",
                f"base `{printable(text)}`: unknown model or no weights; expected "
                '"open_clip:NAME:PRETRAINED" with a NAME of open_clip.list_models()',
            )
        return _from_name(name, pretrained, preprocess)
    path = Path(text)
    if path.is_dir():
        return _from_name(f"local-dir:{path}", None, preprocess)
    # A missing file stays the OSError it is.
    path.stat()
    raise UserInputError.make(
        "E_OPTION",
        f"base `{printable(text)}`: a checkpoint file alone does not tell its architecture; "
        f'expected "open_clip:NAME:{printable(text)}"',
    )


def _from_name(name: str, pretrained: str | None, preprocess: Preprocess | None) -> LoadedBase:
    """A model by open_clip name and pretrained tag or file, or by its own directory or hub name."""
    _check_activation(name, pretrained)
    try:
        config = cast("dict[str, Any]", open_clip.get_model_config(name))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # A tag that says nothing of its activation; `_check_activation` has refused the others.
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            model = open_clip.create_model(
                name,
                pretrained=pretrained,
                precision="fp32",
                pretrained_image=False,
                pretrained_text=False,
                require_pretrained=True,
            )
    except OSError:
        raise
    except Exception as error:
        raise UserInputError.make(
            "E_OPTION", f"open_clip cannot load base `{printable(name)}`: {printable(error)}"
        ) from error
    # open_clip takes a pretrained string that is no tag for a file, whose preprocessing it guesses.
    declared = pretrained is None or bool(open_clip.get_pretrained_cfg(name, pretrained))
    spec_name = name.rsplit("/", 1)[-1] if name.startswith("local-dir:") else name
    return _finish(
        model,
        arch=_arch_of_config(config),
        preprocess=preprocess,
        name=spec_name.removeprefix("local-dir:"),
        pretrained=pretrained if declared else None,
        tokenizer=lambda: open_clip.get_tokenizer(name),
        declared=declared,
    )


def _check_activation(name: str, pretrained: str | None) -> None:
    """Refuse weights trained with QuickGELU in a model without it.

    open_clip warns and goes on; the features are then another function's, and nothing fails.
    """
    tags = cast("Mapping[str, Any]", open_clip.get_pretrained_cfg(name, pretrained or ""))
    config = cast("Mapping[str, Any]", open_clip.get_model_config(name) or {}) if tags else {}
    if tags and tags.get("quick_gelu") and not config.get("quick_gelu"):
        raise UserInputError.make(
            "E_OPTION",
            f"base `{name}` has GELU, but its weights `{pretrained}` were trained with QuickGELU; "
            f'expected "open_clip:{name}-quickgelu:{pretrained}"',
        )


def _from_model(model: nn.Module, arch: Arch | None, preprocess: Preprocess | None) -> LoadedBase:
    model = copy.deepcopy(model)
    visual = getattr(model, "visual", model)
    length, vocabulary = getattr(model, "context_length", 0), getattr(model, "vocab_size", 0)
    tokenizer = None
    # open_clip's own tokenizer is the only one that is certain without a configuration.
    if vocabulary == 49408:
        tokenizer = lambda: open_clip.SimpleTokenizer(context_length=length)  # noqa: E731
    return _finish(
        model,
        arch=arch or _describe(model, visual),
        preprocess=preprocess,
        name=type(visual).__name__,
        pretrained=None,
        tokenizer=tokenizer,
        declared=bool(getattr(visual, "preprocess_cfg", None)),
    )


def _finish(
    model: nn.Module,
    *,
    arch: Arch,
    preprocess: Preprocess | None,
    name: str,
    pretrained: str | None,
    tokenizer: Callable[[], Any] | None,
    declared: bool,
) -> LoadedBase:
    visual = _freeze(getattr(model, "visual", model))
    entrance = preprocess or _preprocess_of(visual, arch)
    tensors = _digest(_float_tensors(visual))
    tower = _text_module(model)
    has_text = tower is not None and tokenizer is not None
    scale = getattr(model, "logit_scale", None)
    spec = Base(
        arch=arch,
        digest=base_digest(arch, entrance, tensors),
        kind="open_clip",
        name=name,
        preprocess=entrance,
        tensors=tensors,
        pretrained=UNSET if pretrained is None else pretrained,
    )
    return LoadedBase(
        spec=spec,
        encoder=Encoder(visual, entrance).eval(),
        logit_scale=float(scale.detach()) if isinstance(scale, Tensor) else LOGIT_SCALE,
        text_digest=_digest(_float_tensors(tower)) if tower is not None and has_text else None,
        preprocess_declared=declared or preprocess is not None,
        texts=_texts(model, tokenizer) if has_text and tokenizer is not None else None,
    )


def _preprocess_of(visual: nn.Module, arch: Arch) -> Preprocess:
    """Preprocessing that open_clip attached to a tower, with its defaults where it says nothing."""
    stated = cast("dict[str, Any]", getattr(visual, "preprocess_cfg", None) or {})
    mean = stated.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = stated.get("std") or open_clip.OPENAI_DATASET_STD
    size = cast("dict[str, Any]", _open_clip_config(arch)).get("image_size", 224)
    document = {
        # torchvision resizes PIL images with antialias, whatever it is told.
        "antialias": True,
        "interpolation": stated.get("interpolation", "bicubic"),
        "mean": [decimal_string(float(v)) for v in mean],
        "resize_mode": stated.get("resize_mode", "shortest"),
        "size": size,
        "std": [decimal_string(float(v)) for v in std],
    }
    try:
        return msgspec.convert(document, Preprocess)
    except msgspec.ValidationError as error:
        raise UserInputError.make(
            "E_OPTION", f"base preprocessing cannot be stated in an archive: {printable(error)}"
        ) from error


# The base of an archive ---------------------------------------------------------------------------


def base_of(file: HelloFile, base: str | Path | LoadedBase | nn.Module | None = None) -> LoadedBase:
    """The base that ``file`` pins, checked against its digests.

    Args:
        file: an archive with a projector.
        base: where the base is, as for `load_base`, or a checkpoint file whose model name the
            archive states; not needed for seeded and embedded bases.

    Returns:
        The base, with the archive's own description of it.

    Raises:
        BaseModelError: E_BASE_MISSING, no ``base`` given; E_BASE_CONFIG, E_BASE_PREPROC,
            E_BASE_WEIGHTS, the part that differs, with both digests.
        UserInputError: E_OPTION, the archive has no projector, or ``base`` cannot be loaded.
        SpecError: E_TENSOR, the embedded tensors are not those of the architecture.
        LimitError: E_LIMIT_BASE, the architecture is too large.
    """
    spec = file.manifest.base
    if spec is UNSET:
        raise UserInputError.make(
            "E_OPTION", "the archive has no projector and so no base; expected one to make labels"
        )
    if base is not None:
        loaded = _load_for(spec, base)
    elif spec.kind == "embedded":
        loaded = _embedded_base(spec, file.tensors("base"))
    elif spec.kind == "seeded" and spec.seed is not UNSET:
        text = None if spec.text is UNSET else spec.text
        loaded = seeded_base(spec.arch, spec.preprocess, seed=spec.seed, name=spec.name, text=text)
    else:
        raise _missing(spec)
    return _check_base(spec, loaded)


def _missing(spec: Base) -> BaseModelError:
    pretrained = "PRETRAINED" if spec.pretrained is UNSET else printable(spec.pretrained)
    name = printable(spec.name)
    known = spec.name in open_clip.list_models()
    argument = f'base="open_clip:{name}:{pretrained}"' if known else 'base="local-dir:PATH"'
    if spec.name.startswith("hf-hub:"):
        argument = f'base="{name}"'
    return BaseModelError.make(
        "E_BASE_MISSING",
        f"the labels need base `{name}` with digest {spec.digest}; nothing is downloaded because a "
        f"file names it; pass {argument}",
    )


def _load_for(spec: Base, base: str | Path | LoadedBase | nn.Module) -> LoadedBase:
    """Load what the user gave, filling in what only the archive knows."""
    if isinstance(base, nn.Module):
        return load_base(base, arch=None if _tells_arch(base) else spec.arch)
    if isinstance(base, LoadedBase):
        return base
    text = str(base)
    if ":" not in text and Path(text).is_file() and spec.name in open_clip.list_models():
        text = f"open_clip:{spec.name}:{text}"
    return load_base(text)


def _tells_arch(model: nn.Module) -> bool:
    return isinstance(getattr(model, "visual", model), (ModifiedResNet, VisionTransformer))


def _embedded_base(spec: Base, tensors: Mapping[str, NDArray[Any]]) -> LoadedBase:
    model = _build_checked(spec.arch, None)
    expected = {n: tuple(t.shape) for n, t in _float_state(model.visual).items()}
    given = {name: tuple(array.shape) for name, array in tensors.items()}
    if expected != given:
        names = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        raise SpecError.make(
            "E_TENSOR",
            f"{len(names)} tensors differ from the architecture, first `{printable(names[0])}`; "
            f"expected {expected.get(names[0])}, got {given.get(names[0])}",
            member="__hello__/base",
        )
    _fill(model.visual, lambda name, _: np.array(tensors[name], np.float32))
    visual = _freeze(model.visual)
    digest = _digest(_float_tensors(visual))
    loaded = msgspec.structs.replace(
        spec, tensors=digest, digest=base_digest(spec.arch, spec.preprocess, digest)
    )
    return LoadedBase(spec=loaded, encoder=Encoder(visual, spec.preprocess).eval())


def _check_base(spec: Base, loaded: LoadedBase) -> LoadedBase:
    """``loaded`` under the archive's description, or the error naming the part that differs."""
    got = loaded.spec
    preprocess = got.preprocess if loaded.preprocess_declared else spec.preprocess
    for code, part, wanted, given in (
        ("E_BASE_CONFIG", "architecture", _normal_arch(spec.arch), _normal_arch(got.arch)),
        (
            "E_BASE_PREPROC",
            "preprocessing",
            _flatten(msgspec.to_builtins(spec.preprocess)),
            _flatten(msgspec.to_builtins(preprocess)),
        ),
    ):
        if wanted != given:
            raise BaseModelError.make(
                code,
                f"{part} of base `{printable(spec.name)}` differs ({_difference(wanted, given)}); "
                f"expected base {spec.digest}, got "
                f"{base_digest(got.arch, preprocess, got.tensors)}",
            )
    if got.tensors != spec.tensors:
        raise BaseModelError.make(
            "E_BASE_WEIGHTS",
            f"weights of base `{printable(spec.name)}` differ; expected tensors {spec.tensors}, "
            f"got {got.tensors}",
        )
    encoder = loaded.encoder
    if encoder.preprocess != spec.preprocess:
        encoder = Encoder(encoder.visual, spec.preprocess).eval()
    return replace(loaded, spec=spec, encoder=encoder)


def _difference(wanted: Mapping[str, object], given: Mapping[str, object]) -> str:
    """The first key in which two flat descriptions differ."""
    key = min(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
    return f"`{key}` {printable(wanted.get(key))} against {printable(given.get(key))}"


def _flatten(document: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flatten(cast("dict[str, object]", value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
