"""Image towers of open_clip: sizes and work, counted once.

The numbers are counted, not quoted: a test builds each tower of open_clip on torch's meta device
and counts parameters, buffers and floating-point operations (``torch.utils.flop_counter``, two for
a multiply-add) of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.manifest import Adapter, Target
from hellofmt.ledger.function_bytes import model_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hellofmt.archive.format.manifest import Storage

__all__ = ["GIGA", "MAX_INNER", "RESNET18_GFLOP", "TOWERS", "Tower", "tower_named"]

RESNET18_GFLOP: Final = 3.628146688
"""GFLOP of one 224 px image through torchvision's ResNet-18, counted like ``TOWERS``."""

MAX_INNER: Final = 256
"""Largest inner dimension of a low-rank product that a reader accepts."""

GIGA: Final = 10**9


@dataclass(frozen=True)
class Tower:
    """An image tower of open_clip, as far as a plan needs it.

    Attributes:
        name: open_clip's name of the model.
        size: side of its input, in pixels.
        dim: D, features of an embedding.
        layers: blocks of a transformer, or of each of the four stages of a ResNet.
        width: channels of a transformer, or of the first stage of a ResNet.
        parameters: number of parameters of the image tower.
        buffers: statistics of batch normalisation, values.
        text_parameters: everything of the model but the image tower.
        flop: floating-point operations of one image, two for a multiply-add.
    """

    name: str
    size: int
    dim: int
    layers: int | tuple[int, int, int, int]
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
        return MAX_INNER // 3 if isinstance(self.layers, tuple) else MAX_INNER

    def tower_bytes(self, storage: Storage) -> int:
        """Bytes of the image tower, parameters and batch statistics, without scales."""
        return model_bytes(self.parameters + self.buffers, storage)

    def adapter(self, rank: int, storage: Storage) -> Adapter:
        """The deltas of the preset that fits the tower.

        ``paper`` for a ResNet (every 3 x 3 convolution, in the convolution form), ``transformer``
        for a ViT (attention and MLP weights of every block).

        Args:
            rank: r >= 1.
            storage: storage of every factor.

        Returns:
            The adapter, sorted by parameter.
        """
        if isinstance(self.layers, tuple):
            targets = [_convolution(*shape, rank, storage) for shape in self._convolutions()]
        else:
            targets = [_matrix(*shape, rank, storage) for shape in self._matrices(self.layers)]
        return Adapter(targets=sorted(targets, key=lambda target: target.param))

    def _convolutions(self) -> list[tuple[str, int, int]]:
        """Name, channels in and out of the 3 x 3 convolutions: stem of three, one per block."""
        stem = self.width // 2
        shapes = [
            ("conv1.weight", 3, stem),
            ("conv2.weight", stem, stem),
            ("conv3.weight", stem, self.width),
        ]
        stages = self.layers if isinstance(self.layers, tuple) else ()
        for stage, blocks in enumerate(stages):
            width = self.width << stage
            names = (f"layer{stage + 1}.{block}.conv2.weight" for block in range(blocks))
            shapes += [(name, width, width) for name in names]
        return shapes

    def _matrices(self, layers: int) -> list[tuple[str, int, int]]:
        """Name, rows and columns of the attention and MLP weights."""
        width = self.width
        shapes = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.out_proj.weight": (width, width),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_proj.weight": (width, 4 * width),
        }
        return [
            (f"transformer.resblocks.{block}.{name}", *shape)
            for block in range(layers)
            for name, shape in shapes.items()
        ]


def _convolution(param: str, inputs: int, outputs: int, rank: int, storage: Storage) -> Target:
    inner = 3 * rank
    return Target(
        a=[inner, 3 * inputs],
        b=[3 * outputs, inner],
        param=param,
        scale="1.0",
        shape=[outputs, inputs, 3, 3],
        storage=storage,
    )


def _matrix(param: str, rows: int, columns: int, rank: int, storage: Storage) -> Target:
    return Target(
        a=[rank, columns],
        b=[rows, rank],
        param=param,
        scale="1.0",
        shape=[rows, columns],
        storage=storage,
    )


# name, size, dim, layers, width, parameters, buffers, text parameters, FLOP
_RN50 = Tower("RN50", 224, 1024, (3, 4, 6, 3), 64, 38_316_896, 53_248, 63_690_241, 12_222_939_136)
_TEXT_512: Final = 63_428_097
_TEXT_768: Final = 123_650_305
TOWERS: Final[Mapping[str, Tower]] = {
    tower.name: tower
    for tower in (
        _RN50,
        Tower("RN101", 224, 512, (3, 4, 23, 3), 64, 56_259_936, 105_472, _TEXT_512, 19_542_523_904),
        Tower(
            "RN50x4", 288, 640, (4, 6, 10, 6), 80, 87_137_080, 109_760, 91_163_521, 42_557_214_720
        ),
        Tower("ViT-B-32", 224, 512, 12, 768, 87_849_216, 0, _TEXT_512, 8_817_623_040),
        Tower("ViT-B-16", 224, 512, 12, 768, 86_192_640, 0, _TEXT_512, 35_126_906_880),
        Tower("ViT-L-14", 224, 768, 24, 1024, 303_966_208, 0, _TEXT_768, 162_025_537_536),
        Tower("ViT-L-14-336", 336, 768, 24, 1024, 304_293_888, 0, _TEXT_768, 381_919_789_056),
        Tower("ViT-H-14", 224, 1024, 32, 1280, 632_076_800, 0, 354_032_641, 334_590_279_680),
    )
}
"""Image towers a plan knows, by open_clip's name."""


def tower_named(name: str) -> Tower | None:
    """The tower of an open_clip model name; a ``-quickgelu`` twin has the same numbers.

    Args:
        name: such as ``RN50``, ``RN50-quickgelu``, ``ViT-B/32``.

    Returns:
        The tower, or None if the table does not have it.
    """
    return TOWERS.get(name.replace("/", "-").removesuffix("-quickgelu"))
