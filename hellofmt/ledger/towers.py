"""Image towers by name: their sizes and work follow from their architectures.

``format.towers`` counts those of open_clip, EfficientNet-Lite of timm is counted here; a test
builds each on torch's meta device and counts parameters, buffers and floating-point operations
(``torch.utils.flop_counter``, two for a multiply-add) of one image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from hellofmt.archive.format.label_function import Adapter, Target
from hellofmt.archive.format.limits import DEFAULT_LIMITS
from hellofmt.archive.format.manifest import UNSET, Arch, TextArch, VisionArch
from hellofmt.archive.format.towers import TowerSize, text_size, vision_size
from hellofmt.ledger.sizes import model_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import UnsetType

    from hellofmt.archive.format.fields import Storage

RESNET18_GFLOP: Final = 3.628146688
"""GFLOP of one 224 px image through torchvision's ResNet-18, counted like ``TOWERS``."""

GIGA: Final = 10**9

# Blocks, side of the depthwise filters, stride and channels of each stage.
_LITE: Final = (
    (1, 3, 1, 16),
    (2, 3, 2, 24),
    (2, 5, 2, 40),
    (3, 3, 2, 80),
    (3, 5, 1, 112),
    (4, 5, 2, 192),
    (1, 3, 1, 320),
)
_LITE_FEATURES: Final = 1280
_LITE_SIZES: Final = {
    "timm:efficientnet_lite0": (224, 1.0, 1.0),
    "timm:efficientnet_lite1": (240, 1.0, 1.1),
    "timm:efficientnet_lite2": (260, 1.1, 1.2),
}


@dataclass(frozen=True)
class Tower:
    """An image tower of open_clip or timm, as far as a plan needs it; see ``tower_named``.

    Attributes:
        name: as a base is named, without weights.
        size, dim: side of its input in pixels, and D, features of an embedding.
        kind: preset that a plan adapts: ``paper`` for a ResNet of CLIP (every 3 x 3 convolution, in
            the convolution form), ``transformer`` for a ViT (attention and MLP weights of every
            block), ``all`` for a network of timm.
        weights: name and shape of every weight that the preset adapts.
        parameters, buffers: numbers of the image tower, and its statistics of batch normalisation.
        text_parameters: everything of the model but the image tower.
        flop: floating-point operations of one image, two for a multiply-add.
    """

    name: str
    size: int
    dim: int
    kind: Literal["paper", "transformer", "all"]
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    parameters: int
    buffers: int
    text_parameters: int
    flop: int

    @property
    def gflop(self) -> float:
        """GFLOP of one label; the head adds less than 0.1 %, and is left out."""
        return self.flop / GIGA

    @property
    def largest_rank(self) -> int:
        """Largest rank a delta may have; the convolution form has an inner side of three ranks."""
        return DEFAULT_LIMITS.rank // (3 if self.kind == "paper" else 1)

    def tower_bytes(self, storage: Storage) -> int:
        """Bytes of the image tower, parameters and batch statistics, without scales."""
        return model_bytes(self.parameters + self.buffers, storage)

    def adapter(self, rank: int, storage: Storage) -> Adapter:
        """The deltas of the preset ``kind``, sorted by parameter."""
        targets: list[Target] = []
        for param, shape in sorted(self.weights):
            rows, columns = shape[0], math.prod(shape[1:])
            inner = min(rank, rows, columns)
            if self.kind == "paper":
                rows, columns, inner = 3 * shape[0], 3 * shape[1], 3 * rank
            targets.append(
                Target(
                    a=[inner, columns],
                    b=[rows, inner],
                    param=param,
                    scale="1.0",
                    shape=list(shape),
                    storage=storage,
                )
            )
        return Adapter(targets=targets)


def _clip_weights(layers: int | list[int], width: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of every weight that the preset of a tower of CLIP adapts."""
    if isinstance(layers, int):
        shapes = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.out_proj.weight": (width, width),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_proj.weight": (width, 4 * width),
        }
        return tuple(
            (f"transformer.resblocks.{block}.{name}", shape)
            for block in range(layers)
            for name, shape in shapes.items()
        )
    stem = width // 2
    return (
        ("conv1.weight", (stem, 3, 3, 3)),
        ("conv2.weight", (stem, stem, 3, 3)),
        ("conv3.weight", (width, stem, 3, 3)),
        *(
            (f"layer{stage}.{block}.conv2.weight", (planes, planes, 3, 3))
            for stage, blocks in enumerate(layers, 1)
            for planes in [width << stage - 1]
            for block in range(blocks)
        ),
    )


def _lite(name: str, size: int, width: float, depth: float) -> Tower:
    """EfficientNet-Lite (Tan and Le, arXiv 1905.11946, as TPU's reference cuts it) of timm.

    ``width`` multiplies channels, rounded to multiples of 8, ``depth`` blocks of the inner stages;
    stem and features stay.
    """
    weights: dict[str, tuple[int, ...]] = {}
    flop = 0
    side, channels = -(-size // 2), 32

    def convolution(layer: str, *shape: int) -> None:
        nonlocal flop
        weights[f"trunk.{layer}.weight"] = shape
        flop += 2 * math.prod(shape) * side * side

    convolution("conv_stem", channels, 3, 3, 3)
    for stage, (blocks, kernel, stride, outputs) in enumerate(_LITE):
        is_inner = stage not in (0, len(_LITE) - 1)
        wide = int(outputs * width + 4) // 8 * 8
        for block in range(math.ceil(blocks * depth) if is_inner else blocks):
            at = f"blocks.{stage}.{block}"
            hidden = 6 * channels if stage else channels
            if stage:
                convolution(f"{at}.conv_pw", hidden, channels, 1, 1)
            side = -(-side // stride) if block == 0 else side
            convolution(f"{at}.conv_dw", hidden, 1, kernel, kernel)
            convolution(f"{at}.{'conv_pwl' if stage else 'conv_pw'}", wide, hidden, 1, 1)
            channels = wide
    convolution("conv_head", _LITE_FEATURES, channels, 1, 1)
    norms = sum(2 * shape[0] for shape in weights.values())
    parameters = sum(map(math.prod, weights.values())) + norms
    return Tower(
        name, size, _LITE_FEATURES, "all", tuple(weights.items()), parameters, norms, 0, flop
    )


def _tower(
    name: str,
    size: int,
    dim: int,
    layers: int | list[int],
    width: int,
    text_width: int,
    *,
    patch: int | UnsetType = UNSET,
    head: int | UnsetType = UNSET,
    text_layers: int = 12,
) -> Tower:
    vision = VisionArch(
        image_size=size, layers=layers, width=width, patch_size=patch, head_width=head
    )
    text = TextArch(
        context_length=77,
        vocab_size=49_408,
        width=text_width,
        heads=text_width // 64,
        layers=text_layers,
    )
    # Only a timm model's size is not known.
    count = cast("TowerSize", vision_size(Arch(embed_dim=dim, quick_gelu=False, vision=vision)))
    # And the scale of the logits.
    others = text_size(text, dim).parameters + 1
    kind = "paper" if isinstance(layers, list) else "transformer"
    weights = _clip_weights(layers, width)
    return Tower(
        name, size, dim, kind, weights, count.parameters, count.buffers, others, count.flop
    )


TOWERS: Final[Mapping[str, Tower]] = {
    tower.name: tower
    for tower in (
        _tower("RN50", 224, 1024, [3, 4, 6, 3], 64, 512),
        _tower("RN101", 224, 512, [3, 4, 23, 3], 64, 512),
        _tower("RN50x4", 288, 640, [4, 6, 10, 6], 80, 640),
        _tower("ViT-B-32", 224, 512, 12, 768, 512, patch=32),
        _tower("ViT-B-16", 224, 512, 12, 768, 512, patch=16),
        _tower("ViT-L-14", 224, 768, 24, 1024, 768, patch=14),
        _tower("ViT-L-14-336", 336, 768, 24, 1024, 768, patch=14),
        _tower("ViT-H-14", 224, 1024, 32, 1280, 1024, patch=14, head=80, text_layers=24),
        *(_lite(name, *sizes) for name, sizes in _LITE_SIZES.items()),
    )
}
"""Image towers a plan knows, by the name of the base."""


def tower_named(name: str, size: int | None = None) -> Tower | None:
    """The tower of a base's name, or None if the table does not have it.

    A ``-quickgelu`` twin has the same numbers, and ``ViT-B/32`` is ``ViT-B-32``. A network of timm
    takes images of another ``size``.

    Example:
        >>> tower_named("ViT-B/32") == tower_named("ViT-B-32")
        True
    """
    if size is not None and name in _LITE_SIZES:
        return _lite(name, size, *_LITE_SIZES[name][1:])
    return TOWERS.get(name.replace("/", "-").removesuffix("-quickgelu"))
