"""Image towers of open_clip by name: their sizes and work follow from their architectures.

``format.towers`` counts them; a test builds each tower of open_clip on torch's meta device and
counts parameters, buffers and floating-point operations (``torch.utils.flop_counter``, two for a
multiply-add) of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from hellofmt.archive.format.limits import DEFAULT_LIMITS
from hellofmt.archive.format.manifest import UNSET, Adapter, Arch, Target, TextArch, VisionArch
from hellofmt.archive.format.towers import TowerSize, text_size, vision_size
from hellofmt.ledger.sizes import model_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import UnsetType

    from hellofmt.archive.format.manifest import Storage

RESNET18_GFLOP: Final = 3.628146688
"""GFLOP of one 224 px image through torchvision's ResNet-18, counted like ``TOWERS``."""

GIGA: Final = 10**9


@dataclass(frozen=True)
class Tower:
    """An image tower of open_clip, as far as a plan needs it; see ``tower_named``.

    Attributes:
        name: open_clip's name of the model.
        size, dim: side of its input in pixels, and D, features of an embedding.
        layers: blocks of a transformer, or of each of the four stages of a ResNet.
        width: channels of a transformer, or of the first stage of a ResNet.
        parameters, buffers: numbers of the image tower, and its statistics of batch normalisation.
        text_parameters: everything of the model but the image tower.
        flop: floating-point operations of one image, two for a multiply-add.
    """

    name: str
    size: int
    dim: int
    layers: int | list[int]
    width: int
    parameters: int
    buffers: int
    text_parameters: int
    flop: int

    @property
    def gflop(self) -> float:
        """GFLOP of one label: the head adds less than 0.1 %, and is left out."""
        return self.flop / GIGA

    @property
    def largest_rank(self) -> int:
        """Largest rank a delta may have: the convolution form has an inner side of three ranks."""
        return DEFAULT_LIMITS.rank // self._kernel

    @property
    def _kernel(self) -> int:
        """Side of the adapted weights: 3 x 3 convolutions of a ResNet, matrices of a ViT."""
        return 3 if isinstance(self.layers, list) else 1

    def tower_bytes(self, storage: Storage) -> int:
        """Bytes of the image tower, parameters and batch statistics, without scales."""
        return model_bytes(self.parameters + self.buffers, storage)

    def adapter(self, rank: int, storage: Storage) -> Adapter:
        """The deltas of the preset that fits the tower, sorted by parameter.

        ``paper`` for a ResNet (every 3 x 3 convolution, in the convolution form), ``transformer``
        for a ViT (attention and MLP weights of every block).
        """
        k = self._kernel
        targets = [
            Target(
                a=[k * rank, k * inputs],
                b=[k * outputs, k * rank],
                param=param,
                scale="1.0",
                shape=[outputs, inputs, k, k] if k > 1 else [outputs, inputs],
                storage=storage,
            )
            for param, outputs, inputs in self._weights()
        ]
        return Adapter(targets=sorted(targets, key=lambda target: target.param))

    def _weights(self) -> list[tuple[str, int, int]]:
        """Name, outputs and inputs of every adapted weight."""
        width = self.width
        if isinstance(self.layers, int):
            shapes = {
                "attn.in_proj_weight": (3 * width, width),
                "attn.out_proj.weight": (width, width),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_proj.weight": (width, 4 * width),
            }
            return [
                (f"transformer.resblocks.{block}.{name}", *shape)
                for block in range(self.layers)
                for name, shape in shapes.items()
            ]
        stem = width // 2
        return [
            ("conv1.weight", stem, 3),
            ("conv2.weight", stem, stem),
            ("conv3.weight", width, stem),
            *(
                (f"layer{stage}.{block}.conv2.weight", planes, planes)
                for stage, blocks in enumerate(self.layers, 1)
                for planes in [width << stage - 1]
                for block in range(blocks)
            ),
        ]


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
    return Tower(
        name, size, dim, layers, width, count.parameters, count.buffers, others, count.flop
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
    )
}
"""Image towers a plan knows, by open_clip's name."""


def tower_named(name: str) -> Tower | None:
    """The tower of an open_clip model name, or None if the table does not have it.

    A ``-quickgelu`` twin has the same numbers, and ``ViT-B/32`` is ``ViT-B-32``.

    Example:
        >>> tower_named("ViT-B/32") == tower_named("ViT-B-32")
        True
    """
    return TOWERS.get(name.replace("/", "-").removesuffix("-quickgelu"))
