"""What an architecture of a base builds: which ones are possible, their numbers and their work.

Counted from the manifest alone, before a tensor or a module exists, so that a hostile description
costs nothing. The counts are those of open_clip's own towers; a test builds each on torch's meta
device and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from hellofmt.archive.format.limits import IMAGE_SIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hellofmt.archive.format.manifest import Arch, TextArch, VisionArch

LAYER_SCALE: Final = "0.00001"
"""The one value of ``ls_init_value``: the initial value is gone once weights are loaded."""
TIMM_KEYS: Final = frozenset(
    {"image_size", "timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias"}
)
RESNET_KEYS: Final = frozenset({"image_size", "layers", "width", "head_width"})
VISION_DEFAULTS: Final[dict[str, object]] = {
    "head_width": 64,
    "mlp_ratio": "4.0",
    "attentional_pool": False,
    "attn_pooler_queries": 256,
    "attn_pooler_heads": 8,
    "no_ln_pre": False,
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "norm_eps": "0.00001",
    "qk_norm": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
}
"""What open_clip takes for an absent key; what every tower of a family states is not here."""
POOLER_KEYS: Final = frozenset({"attn_pooler_queries", "attn_pooler_heads"})
# Any of them makes a block a custom one (scaled cosine attention too, but open_clip 3.3 cannot run
# it: a batched product of four-dimensional tensors).
BLOCK_KEYS: Final = frozenset(
    {"qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"}
)
# What rule uniform-1 has no clause for, or whose initial values are gone once weights are loaded.
_CUSTOM: Final = BLOCK_KEYS | {"block_type", "ls_init_value"}
_MOST: Final = {"image_size": IMAGE_SIDE, "width": 8192, "layers": 64}
# Narrower heads cost more than their multiplications: the softmax is by the head.
_LEAST_HEAD: Final = 4
# Numbers of one activation of one view, and of the attention of one text.
_MOST_ACTIVE: Final = 1 << 24
_MOST_TEXT: Final = 1 << 16
# Identifiers of open_clip's SimpleTokenizer.
_VOCABULARY: Final = 49_408


@dataclass(frozen=True)
class TowerSize:
    """What a tower holds and does.

    Attributes:
        parameters: numbers of its parameters.
        buffers: statistics of batch normalisation, numbers.
        flop: floating-point operations of products and convolutions for one input, two for a
            multiply-add.
        attention: numbers of its attention matrices, whose softmax costs time as well.
    """

    parameters: int
    buffers: int
    flop: int
    attention: int = 0

    @property
    def work(self) -> int:
        """Operations of one input with those of the softmax, which takes as long as about 200."""
        return self.flop + 200 * self.attention


def _of(vision: VisionArch, key: str) -> Any:
    """What a key says, or what open_clip takes where it is absent."""
    value = getattr(vision, key)
    return VISION_DEFAULTS.get(key) if value is UNSET else value


def has_activation(vision: VisionArch) -> bool:
    """Whether ``quick_gelu`` chooses the activation of an image tower: only of a transformer."""
    return vision.timm_model_name is UNSET and not isinstance(vision.layers, list)


def shortest_ratio(width: int, hidden: int) -> str:
    """Return the one ``mlp_ratio`` with which a tower of this width has an MLP of ``hidden``.

    Of all decimals that do, the one of fewest digits, then the smallest.
    """
    for digits in count(1):
        scale = 10**digits
        exact = -(-hidden * scale // width)
        # The product is rounded to a double: an exact one may fall below m, one below it reach m.
        for k in (exact - 1, exact, exact + 1):
            text = f"{k // scale}.{k % scale:0{digits}d}"
            if int(width * float(text)) == hidden:
                return text
    raise ValueError(hidden)


def arch_problems(arch: Arch, size: int, *, is_seeded: bool) -> Iterator[tuple[str, str]]:
    """List what no tower can be, or what has no effect: key below ``base``, and what was expected.

    ``size`` is the side that ``preprocess`` makes of a view; rule uniform-1 fills a seeded tower.
    """
    vision = arch.vision
    stated = {key for key in vision.__struct_fields__ if getattr(vision, key) is not UNSET}
    required = {"image_size", "layers", "width"}
    if vision.timm_model_name is not UNSET:
        family, allowed, required = "a timm model", TIMM_KEYS, {"image_size"}
    elif isinstance(vision.layers, list):
        family, allowed = "a ResNet", RESNET_KEYS
    else:
        family, allowed = "a transformer", {*vision.__struct_fields__} - TIMM_KEYS | {"image_size"}
        required |= {"patch_size"}
        if vision.attentional_pool is not True:
            allowed -= POOLER_KEYS
    for key in sorted(stated - allowed):
        yield f"arch.vision.{key}", f"has no effect in {family}; expected none"
    for key in sorted(required - stated):
        yield f"arch.vision.{key}", f"missing; {family} states it"
    for key in sorted(stated & VISION_DEFAULTS.keys()):
        if getattr(vision, key) == VISION_DEFAULTS[key]:
            yield f"arch.vision.{key}", "expected none, for this is the value of an absent key"
    for key in sorted(stated & (_CUSTOM | {"timm_model_name"})) if is_seeded else ():
        yield f"arch.vision.{key}", "expected none for kind seeded"
    if required - stated:
        return
    for key in sorted(required & _MOST.keys()):
        value = getattr(vision, key)
        if isinstance(value, int) and value > _MOST[key]:
            yield f"arch.vision.{key}", f"expected at most {_MOST[key]}, got {value}"
    if arch.embed_dim > _MOST["width"]:
        yield "arch.embed_dim", f"expected at most {_MOST['width']}, got {arch.embed_dim}"
    if size != vision.image_size:
        text = f"expected the tower's `image_size`, {vision.image_size}, got {size}"
        yield "preprocess.size", text
    if family == "a ResNet":
        yield from _resnet_problems(vision)
    elif family == "a transformer":
        yield from _transformer_problems(arch)


def _resnet_problems(vision: VisionArch) -> Iterator[tuple[str, str]]:
    layers = vision.layers if isinstance(vision.layers, list) else []
    side, width, head = (_of(vision, key) for key in ("image_size", "width", "head_width"))
    if len(layers) != 4 or sum(layers) > _MOST["layers"]:
        yield "arch.vision.layers", f"expected four numbers, at most {_MOST['layers']} in all"
    if side % 32:
        yield "arch.vision.image_size", f"expected a multiple of 32 for a ResNet, got {side}"
    if width % 2:
        yield "arch.vision.width", f"expected an even number for a ResNet, got {width}"
    yield from _head_problems("arch.vision.head_width", 32 * width, head, counts=False)
    tokens = (side // 32) ** 2 + 1
    yield from _activation_problems((side // 2) ** 2 * width, tokens**2 * (32 * width // head))


def _transformer_problems(arch: Arch) -> Iterator[tuple[str, str]]:
    vision = arch.vision
    side, patch, width, head, hidden = _transformer(vision)
    if patch > side:
        yield "arch.vision.patch_size", f"expected at most {side} pixels, got {patch}"
    yield from _head_problems("arch.vision.head_width", width, head, counts=False)
    if not 1 <= hidden <= 64 * width:
        yield "arch.vision.mlp_ratio", f"expected an MLP of 1 to {64 * width}, got {hidden}"
    elif vision.mlp_ratio not in (UNSET, shortest := shortest_ratio(width, hidden)):
        text = f"expected {shortest}, the shortest for an MLP of {hidden}, got {vision.mlp_ratio}"
        yield "arch.vision.mlp_ratio", text
    if vision.act_approximate is not UNSET and arch.quick_gelu:
        yield "arch.vision.act_approximate", "has no effect with `quick_gelu`; expected none"
    if vision.final_ln_after_pool is True and vision.pool_type is UNSET:
        yield "arch.vision.final_ln_after_pool", "has no effect unless `pool_type` is avg"
    if vision.block_type is not UNSET and any(getattr(vision, key) is True for key in BLOCK_KEYS):
        yield "arch.vision.block_type", "said by another key of custom blocks; expected none"
    if vision.norm_eps is not UNSET and not 0.0 < float(vision.norm_eps) <= 1.0:
        yield "arch.vision.norm_eps", f"expected above 0 to 1, got {vision.norm_eps}"
    if vision.ls_init_value not in (UNSET, LAYER_SCALE):
        yield "arch.vision.ls_init_value", f"expected {LAYER_SCALE}, got {vision.ls_init_value}"
    tokens = (side // patch) ** 2 + 1
    attention = tokens * tokens * (width // head)
    if vision.attentional_pool is True:
        heads, queries = (_of(vision, key) for key in ("attn_pooler_heads", "attn_pooler_queries"))
        key = "arch.vision.attn_pooler_heads"
        yield from _head_problems(key, arch.embed_dim, heads, counts=True)
        if queries > 1024:
            yield "arch.vision.attn_pooler_queries", f"expected at most 1024, got {queries}"
        attention += queries * tokens * heads
    yield from _activation_problems(tokens * max(hidden, 3 * width), attention)


def _transformer(vision: VisionArch) -> tuple[int, int, int, int, int]:
    """Side, side of a patch, width, width of a head and width of the MLP of a transformer."""
    keys = ("image_size", "patch_size", "width", "head_width")
    side, patch, width, head = (_of(vision, key) for key in keys)
    return side, patch, width, head, int(width * float(_of(vision, "mlp_ratio")))


def _head_problems(key: str, width: int, got: int, *, counts: bool) -> Iterator[tuple[str, str]]:
    """Heads of ``got`` numbers, or ``got`` heads; other ones would build the same tower."""
    if width % got or (width // got if counts else got) < _LEAST_HEAD:
        yield key, f"expected heads of at least {_LEAST_HEAD} that fill {width}, got {got}"


def _activation_problems(*numbers: int) -> Iterator[tuple[str, str]]:
    if max(numbers) > _MOST_ACTIVE:
        text = f"expected at most {_MOST_ACTIVE} numbers in an activation, got {max(numbers)}"
        yield "arch.vision", text


def text_problems(text: TextArch) -> Iterator[tuple[str, str]]:
    """List what no generated text tower can be; key below ``base``, and what was expected."""
    for key in ("width", "layers"):
        value: int = getattr(text, key)
        if value > _MOST[key]:
            yield f"text.{key}", f"expected at most {_MOST[key]}, got {value}"
    if text.vocab_size != _VOCABULARY:
        # Rows of further tokens would be there without effect.
        yield "text.vocab_size", f"expected the tokenizer's {_VOCABULARY}, got {text.vocab_size}"
    if text.context_length**2 * text.heads > _MOST_TEXT:
        numbers = text.context_length**2 * text.heads
        yield "text.context_length", f"expected at most {_MOST_TEXT} of attention, got {numbers}"
    yield from _head_problems("text.heads", text.width, text.heads, counts=True)


def vision_size(arch: Arch) -> TowerSize | None:
    """Count the image tower of a valid architecture, if its blocks are plain.

    Custom ones add vectors, which are not counted. None for a timm model, whose name does not tell.
    """
    vision = arch.vision
    if vision.timm_model_name is not UNSET:
        return None
    if isinstance(vision.layers, list):
        return _resnet_size(arch, vision.layers)
    side, patch, width, head, hidden = _transformer(vision)
    layers: int = _of(vision, "layers")
    dim, grid = arch.embed_dim, (side // patch) ** 2
    tokens = grid + 1
    block = _block_size(tokens, width, hidden)
    attention = layers * tokens * tokens * (width // head)
    parameters = width * (3 * patch * patch + 1 + tokens) + layers * block.parameters
    parameters += 0 if vision.no_ln_pre is True else 2 * width
    parameters += 0 if vision.ls_init_value is UNSET else 2 * width * layers
    flop = 2 * grid * 3 * patch * patch * width + layers * block.flop
    pooled = width
    if vision.attentional_pool is True:
        heads, queries = (_of(vision, key) for key in ("attn_pooler_heads", "attn_pooler_queries"))
        attention += queries * tokens * heads
        pooled = dim
        parameters += queries * dim + 2 * dim * dim + 2 * dim * width + 6 * dim + 2 * width
        flop += 4 * queries * dim * dim + 4 * tokens * dim * width + 4 * queries * tokens * dim
    parameters += 2 * pooled + pooled * dim
    return TowerSize(parameters, 0, flop + 2 * pooled * dim, attention)


def _block_size(tokens: int, width: int, hidden: int) -> TowerSize:
    """One residual block of attention and MLP."""
    weights = 4 * width * width + 2 * width * hidden
    vectors = 4 * width + 4 * width + hidden + width
    return TowerSize(weights + vectors, 0, 2 * tokens * weights + 4 * tokens * tokens * width)


def _resnet_size(arch: Arch, layers: list[int]) -> TowerSize:
    """CLIP's ResNet: a stem of three convolutions, bottlenecks, pooling by attention."""
    side, width, head = (_of(arch.vision, key) for key in ("image_size", "width", "head_width"))
    half, cells = width // 2, (side // 2) ** 2
    # (weights of a convolution, channels out, pixels out)
    convolutions = [
        (27 * half, half, cells),
        (9 * half * half, half, cells),
        (9 * half * width, width, cells),
    ]
    cells, channels = cells // 4, width
    for stage, blocks in enumerate(layers):
        planes = width << stage
        for block in range(blocks):
            after = cells // 4 if stage and not block else cells
            convolutions += [
                (channels * planes, planes, cells),
                (9 * planes * planes, planes, cells),
                (4 * planes * planes, 4 * planes, after),
            ]
            if not block:
                convolutions.append((4 * channels * planes, 4 * planes, after))
            cells, channels = after, 4 * planes
    outputs = sum(out for _, out, _ in convolutions)
    tokens, wide, dim = cells + 1, 32 * width, arch.embed_dim
    parameters = sum(weights for weights, _, _ in convolutions) + 2 * outputs
    parameters += tokens * wide + 3 * (wide * wide + wide) + wide * dim + dim
    flop = sum(2 * weights * pixels for weights, _, pixels in convolutions)
    flop += 6 * tokens * wide * wide + 4 * tokens * tokens * wide + 2 * tokens * wide * dim
    return TowerSize(parameters, 2 * outputs, flop, tokens * tokens * (wide // head))


def text_size(text: TextArch, dim: int) -> TowerSize:
    """Count a generated text tower with embeddings of length ``dim``; ``flop`` is of one text."""
    block = _block_size(text.context_length, text.width, 4 * text.width)
    parameters = text.layers * block.parameters + 2 * text.width + text.width * dim
    parameters += (text.vocab_size + text.context_length) * text.width
    flop = text.layers * block.flop + 2 * text.width * dim
    attention = text.layers * text.context_length**2 * text.heads
    return TowerSize(parameters, 0, flop, attention)
