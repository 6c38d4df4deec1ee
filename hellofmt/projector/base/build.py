"""Towers built from an architecture, and bases whose weights a seed generates: no download.

An architecture from a file is checked for its size, then built on the meta device, so that a
hostile description costs no memory.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from hellofmt.archive.format.digest import base_digest
from hellofmt.archive.format.manifest import UNSET, Arch, Base, Preprocess, TextArch
from hellofmt.errors import BaseModelError, LimitError, UserInputError, foreign_text, printable
from hellofmt.projector.base.arch import open_clip_config
from hellofmt.projector.base.encoder import Encoder, LoadedBase
from hellofmt.projector.base.tensors import digest_of, fill_, float_state, frozen
from hellofmt.rng import Stream, uniform, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "MAX_PARAMETERS",
    "build_checked",
    "build_clip",
    "embed_texts",
    "seeded_base",
    "text_module",
    "uniform_1",
]

#: Most parameters of a base that an archive describes (seeded or embedded).
MAX_PARAMETERS = 1 << 30

# Sizes of an architecture that a file may ask for; the largest public CLIP towers are far below.
_MAX_WIDTH = 8192
_MAX_LAYERS = 256
_MAX_SIDE = 2048
_MAX_POSITIONS = 1 << 25


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
        arch: any architecture that open_clip builds from tensors the rule has a clause for.
        preprocess: how a view enters the tower.
        seed: 0 <= seed < 2**53.
        name: name of the base, for people.
        text: architecture of a text tower to generate as well, or None.

    Returns:
        The base, kind ``seeded``, frozen, on the CPU.

    Raises:
        BaseModelError: E_BASE_CONFIG, open_clip cannot build ``arch`` or the rule cannot fill it.
        LimitError: E_LIMIT_BASE, larger than any base may be.
        UserInputError: E_OPTION, the seed is out of range.

    Example:
        >>> import torch
        >>> from hellofmt.archive.format.manifest import Arch, Preprocess, VisionArch
        >>> vision = VisionArch(image_size=8, layers=1, width=64, patch_size=4)
        >>> arch = Arch(embed_dim=16, quick_gelu=False, vision=vision)
        >>> preprocess = Preprocess(
        ...     antialias=True, interpolation="bicubic", mean=["0.5"] * 3,
        ...     size=8, std=["0.5"] * 3)
        >>> seeded_base(arch, preprocess, seed=1).encode(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 16])
    """
    if not 0 <= seed < 1 << 53:
        raise UserInputError.make("E_OPTION", f"seed: expected 0 <= seed < 2**53, got {seed}")
    model = build_checked(arch, text)
    image_names = list(float_state(model.visual))
    fill_(model.visual, uniform_1(seed, 0, image_names))
    visual = frozen(model.visual)
    texts, text_digest = None, None
    if text is not None:
        tower = cast("nn.Module", text_module(model))
        fill_(tower, uniform_1(seed, len(image_names), list(float_state(tower))))
        texts = embed_texts(
            model, lambda: open_clip.SimpleTokenizer(context_length=text.context_length)
        )
        text_digest = digest_of(tower)
    tensors = digest_of(visual)
    spec = Base(
        arch=arch,
        digest=base_digest(arch, preprocess, tensors),
        kind="seeded",
        name=name,
        preprocess=preprocess,
        tensors=tensors,
        seed=seed,
        text=UNSET if text is None else text,
    )
    return LoadedBase(
        spec=spec,
        encoder=Encoder(visual, preprocess).eval(),
        text_digest=text_digest,
        texts=texts,
    )


def uniform_1(
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


def embed_texts(
    model: nn.Module, tokenizer: Callable[[], Any]
) -> Callable[[Sequence[str]], Tensor]:
    """Strings to text embeddings; a tokenizer may be a download, so it is made when first used."""
    model.eval().requires_grad_(requires_grad=False)
    made: list[Any] = []

    def embed(texts: Sequence[str]) -> Tensor:
        if not made:
            made.append(tokenizer())
        return cast("Any", model).encode_text(made[0](list(texts)))

    return embed


def text_module(model: Any) -> nn.Module | None:
    """The text tower, under the names of open_clip's ``TextTransformer``, or None without one."""
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


def build_checked(arch: Arch, text: TextArch | None, limit: int = MAX_PARAMETERS) -> CLIP:
    """`build_clip` of an architecture that a file may have stated, of at most ``limit`` parameters.

    Raises:
        LimitError: E_LIMIT_BASE, larger than any base may be.
        BaseModelError: E_BASE_CONFIG, open_clip cannot build it.
    """
    _check_size(arch, text)
    try:
        with torch.device("meta"):
            sketch = build_clip(arch, text)
        _check_cap("parameters", sum(p.numel() for p in sketch.parameters()), limit)
        # Initial weights are overwritten, but drawing them must not move the caller's generator.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build_clip(arch, text)
    except LimitError:
        raise
    except Exception as error:
        raise BaseModelError.make(
            "E_BASE_CONFIG",
            f"open_clip cannot build the base architecture: {foreign_text(error)}",
        ) from error


def build_clip(arch: Arch, text: TextArch | None) -> CLIP:
    """An open_clip model with arbitrary weights; without ``text`` its text tower is a stub."""
    config = open_clip_config(arch)
    # The values of absent keys are the format's, not those of whichever open_clip is installed.
    if "timm_model_name" not in config:
        config = {"layers": 12, "width": 768, "patch_size": 16} | config
    vision = CLIPVisionCfg(**cast("dict[str, Any]", {"image_size": 224} | config))
    stub = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    text_config = CLIPTextCfg(**cast("dict[str, Any]", msgspec.to_builtins(text) if text else stub))
    return CLIP(arch.embed_dim, vision, text_config, quick_gelu=arch.quick_gelu)


def _check_size(arch: Arch, text: TextArch | None) -> None:
    """Refuse an architecture too large to build, before any allocation."""
    config = {"image_size": 224, "width": 768, "layers": 12, "patch_size": 16} | (
        open_clip_config(arch)
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
