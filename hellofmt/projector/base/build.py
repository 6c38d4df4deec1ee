"""Towers built from an architecture, and bases whose weights a seed generates: no download.

An architecture from a file is within limits (`hellofmt.archive.format.towers` counts it) before it
comes here; it is built and run on the meta device first.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from hellofmt.archive.format.digest import base_digest
from hellofmt.archive.format.manifest import UNSET, Arch, Base, Preprocess, TextArch
from hellofmt.errors import BaseModelError, UserInputError, printable
from hellofmt.projector.base.arch import open_clip_config
from hellofmt.projector.base.encoder import (
    Encoder,
    LoadedBase,
    digest_of,
    fill_,
    float_state,
    frozen,
    unit_rows,
)
from hellofmt.projector.base.foreign import foreign_calls
from hellofmt.rng import Stream, uniform, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from open_clip.model import CLIP


_PIECE = 1 << 20


def seeded_base(
    arch: Arch,
    preprocess: Preprocess,
    *,
    seed: int,
    name: str = "seeded",
    text: TextArch | None = None,
) -> LoadedBase:
    """Generate a base from ``seed`` by rule ``uniform-1``: no download.

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
        import open_clip

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
    """Apply rule ``uniform-1`` of spec/hello-1.md to tensors numbered from ``first``."""
    numbers = {name: first + i for i, name in enumerate(names)}

    def generate(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        last = name.rsplit(".", 1)[-1]
        if len(shape) >= 2 or last in {"class_embedding", "positional_embedding"}:
            fan = math.prod(shape[1:] if len(shape) >= 2 else shape)
            out = np.empty(math.prod(shape), np.float32)
            # In pieces: words and doubles are twice as large as the tensor, each.
            for at in range(0, out.size, _PIECE):
                count = min(_PIECE, out.size - at)
                u = uniform(words(seed, 0, Stream.BASE, numbers[name], count, at))
                out[at : at + count] = (2.0 * u - 1.0) * math.sqrt(3.0 / fan)
            return out.reshape(shape)
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
    """Embed strings; the tokenizer may be a download, so it is made when first used."""
    model.eval().requires_grad_(requires_grad=False)
    made: list[Any] = []

    def embed(texts: Sequence[str]) -> Tensor:
        if not made:
            made.append(tokenizer())
        return cast("Any", model).encode_text(made[0](list(texts)))

    return embed


def text_module(model: Any) -> nn.Module | None:
    """Return the text tower, under the names of open_clip's ``TextTransformer``, or None."""
    from open_clip.model import CLIP

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


def build_checked(
    arch: Arch, text: TextArch | None, check: Callable[[nn.Module, int], None] | None = None
) -> CLIP:
    """Build an architecture that a file may have stated.

    A sketch on the meta device, which has no memory, is built and run on one view first, so that
    what cannot be built or gives no vector costs next to nothing. ``check`` then gets the sketch of
    the image tower and the operations of one view, before anything real is built.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with foreign_calls("open_clip cannot build the base architecture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Initial weights are overwritten, but drawing them must not move the caller's generator.
        with torch.random.fork_rng(devices=[]):
            with torch.device("meta"), FlopCounterMode(display=False) as counter:
                sketch = build_clip(arch, text).visual.eval()
                side = cast("int", open_clip_config(arch).get("image_size", 224))
                shape = tuple(unit_rows(sketch(torch.zeros(1, 3, side, side))).shape)
            if shape != (1, arch.embed_dim):
                raise BaseModelError.make(
                    "E_BASE_CONFIG",
                    f"the base makes features of shape {shape} of a view; expected "
                    f"(1, {arch.embed_dim})",
                )
            if check is not None:
                check(sketch, counter.get_total_flops())
            return build_clip(arch, text)


def build_clip(arch: Arch, text: TextArch | None) -> CLIP:
    """Build an open_clip model with any weights; without ``text``, its text tower is a stub."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = open_clip_config(arch)
    # The values of absent keys are the format's, not those of whichever open_clip is installed.
    if "timm_model_name" not in config:
        config = {"layers": 12, "width": 768, "patch_size": 16} | config
    vision = CLIPVisionCfg(**cast("dict[str, Any]", {"image_size": 224} | config))
    stub = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    text_config = CLIPTextCfg(**cast("dict[str, Any]", msgspec.to_builtins(text) if text else stub))
    return CLIP(arch.embed_dim, vision, text_config, quick_gelu=arch.quick_gelu)
