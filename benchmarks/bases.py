"""List which image towers of open_clip can be a base; prints benchmarks/results/bases.md.

Two parts. Every model that open_clip lists is built on torch's meta device (shapes, no weights)
twice: by open_clip from its config, and by hellofmt from what an archive would state. Names, shapes
and printed modules must be equal, except for dropout and stochastic depth, which an encoder in eval
mode does not use. Then one model of each family up to 200 M parameters is built in full size with
random weights, adapted, and compared with an explicit float64 ``W + s * reshape(B A)``. Nothing is
downloaded: no published weights are part of this.
"""

from __future__ import annotations

import copy
import platform
import re
import sys
import time
import warnings
from dataclasses import dataclass

import open_clip
import timm
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from hellofmt.archive import ClassLine
from hellofmt.errors import HelloError
from hellofmt.projector import Projector, load_base
from hellofmt.projector.base.arch import arch_of_config
from hellofmt.projector.base.build import build_clip, uniform_1
from hellofmt.projector.labeler import parameter_shapes
from hellofmt.projector.targets import PRESETS, delta_shapes

#: One per family, the smallest with at most 200 M parameters in its image tower; "-" otherwise.
REAL = (
    "RN50",
    "RN50-quickgelu",
    "ViT-S-32",
    "ViT-B-32-quickgelu",
    "ViT-M-32-alt",
    "coca_ViT-B-32",
    "ViT-B-32-SigLIP2-256",
    "EVA02-B-16",
    "convnext_tiny",
    "MobileCLIP-B",
    "MobileCLIP-S1",
    "PE-Core-T-16-384",
    "swin_base_patch4_window7_224",
    "ViTamin-S",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
)
# Without effect in eval mode, and so not part of what an archive states.
_TRAINING_ONLY = re.compile(r"(DropPath|Dropout)\([^)]*\)")


@dataclass(frozen=True)
class Sketch:
    """What building a model on the meta device reveals."""

    name: str
    family: str
    parameters: int
    fault: str
    presets: dict[str, int]
    seeded: str


def vision_tower(config: dict) -> torch.nn.Module:
    """Build the image tower as open_clip does."""
    vision = CLIPVisionCfg(**config["vision_cfg"])
    return _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))


def family_of(name: str, config: dict) -> str:
    """Return the family of a model, one piece of code: an open_clip class or a timm builder."""
    vision = config["vision_cfg"]
    timm_name = vision.get("timm_model_name")
    if timm_name is None:
        if isinstance(vision["layers"], list):
            kind = "CLIP ResNet"
        elif vision.get("attentional_pool"):
            kind = "ViT, attention pool (CoCa)"
        elif vision.get("pool_type") == "avg":
            kind = "ViT, averaged (CLIPA)"
        else:
            kind = "ViT"
        return kind + (", QuickGELU" if config.get("quick_gelu") else "")
    for start, family in (
        ("convnext", "ConvNeXt"),
        ("eva02", "EVA-02"),
        ("eva_", "EVA-01"),
        ("fastvit", "MobileCLIP-S (FastViT)"),
        ("vit_pe", "Perception Encoder"),
        ("vitamin", "ViTamin"),
        ("swin", "Swin"),
    ):
        if timm_name.startswith(start):
            return family
    if "siglip" in timm_name:
        return "SigLIP, SigLIP 2"
    if "mci" in timm_name or name.startswith("MobileCLIP"):
        return "MobileCLIP-B, L (ViT)"
    return "timm ViT, relative positions" if "relpos" in timm_name else "timm ViT, averaged"


def _modules(tower: torch.nn.Module) -> str:
    return _TRAINING_ONLY.sub("Identity()", repr(tower))


def _shapes(tower: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tower.state_dict().items()}


def sketch(name: str) -> Sketch:
    """Build one listed model twice on the meta device and compare."""
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        wanted = vision_tower(config)
    count = sum(p.numel() for p in wanted.parameters())
    presets: dict[str, int] = {}
    seeded = ""
    try:
        with torch.device("meta"):
            built = build_clip(arch_of_config(config), None).visual
        same = _shapes(built) == _shapes(wanted) and _modules(built) == _modules(wanted)
        fault = "" if same else "rebuilt as another tower"
    except HelloError as error:
        return Sketch(name, family_of(name, config), count, str(error), presets, "no")
    for preset in PRESETS:
        try:
            chosen = delta_shapes(parameter_shapes(built), preset, 8)
            presets[preset] = sum(shape.count for shape in chosen)
        except HelloError:
            pass
    rule = uniform_1(0, 0, list(_shapes(built)))
    for tensor, shape in _shapes(built).items():
        # A stand-in of the same rank: the rule looks at nothing else, and values cost time.
        try:
            rule(tensor, tuple(1 for _ in shape))
        except HelloError:
            if built.state_dict()[tensor].is_floating_point():
                seeded = tensor.rsplit(".", 1)[-1]
    return Sketch(name, family_of(name, config), count, fault, presets, seeded)


@dataclass(frozen=True)
class Check:
    """The check of one adapted full-size tower with random weights."""

    name: str
    family: str
    parameters: int
    deltas: int
    values: int
    fitted: float
    merged: float
    change: float
    seconds: float


def check(name: str, rank: int = 4) -> Check:
    """Adapt one full-size model; return the largest errors of unit embeddings against float64."""
    start = time.perf_counter()
    config = open_clip.get_model_config(name)
    torch.manual_seed(0)
    tower = vision_tower(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in tower.parameters():
            # Gates that start at 1e-6 and biases at 0 would hide what lies behind them.
            if p.ndim < 2 or p[0].numel() == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    base = load_base(tower, arch=arch_of_config(config))
    del tower
    dim = base.embed_dim
    size = base.spec.preprocess.size
    views = torch.rand(1, 3, size, size, generator=generator)
    lines = [ClassLine(str(i), (str(i),)) for i in range(dim)]
    projector = Projector.build(
        base, lines, targets="all", rank=rank, start="stored", temperature=1.0, seed=0
    )
    with torch.no_grad():
        for delta in projector.deltas:
            delta.b.copy_(0.1 * torch.randn(delta.b.shape, generator=generator))
        # The head is the identity, so that logits are the embedding.
        projector.head.weight.copy_(torch.eye(dim))
        projector.head.logit_scale.zero_()
        fitted = projector(views)
        merged = projector.labeler().logits(views)
        exact = _float64(base.encoder, projector.deltas, views)
        change = float((base.encode(views) - exact).norm())
    return Check(
        name,
        family_of(name, config),
        sum(p.numel() for p in base.visual.parameters()),
        len(projector.deltas),
        sum(d.a.numel() + d.b.numel() for d in projector.deltas),
        float((fitted - exact).norm()),
        float((merged - exact).norm()),
        change,
        time.perf_counter() - start,
    )


def _float64(encoder, deltas, views: torch.Tensor) -> torch.Tensor:
    visual = copy.deepcopy(encoder.visual).double()
    for delta in deltas:
        weight = visual.get_parameter(delta.param)
        product = delta.b.double() @ delta.a.double()
        weight.add_(delta.scale * product.reshape(weight.shape))
    x = visual((views.double() - encoder.mean.double()) / encoder.std.double())
    x = x[0] if isinstance(x, tuple) else x
    return x / x.norm(dim=1, keepdim=True)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}"


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    if high < 50_000:
        return "< 0.1"
    return _millions(low) if low == high else f"{_millions(low)} - {_millions(high)}"


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body]]
    return "\n".join(lines)


def page(sketches: list[Sketch], checks: list[Check]) -> str:
    """Build the committed page."""
    families: dict[str, list[Sketch]] = {}
    for found in sketches:
        families.setdefault(found.family, []).append(found)
    rows = [["family", "models", "parameters, M", "same tower", *PRESETS, "seeded"]]
    for family, members in sorted(families.items()):
        cells = []
        for preset in PRESETS:
            counts = [m.presets[preset] for m in members if preset in m.presets]
            cells.append(_range(counts) if len(counts) == len(members) else "refused")
        same = sum(not m.fault for m in members)
        without = sorted({m.seeded for m in members if m.seeded})
        seeded = f"{sum(not m.seeded for m in members)} of {len(members)}"
        if without:
            seeded += f", `{'`, `'.join(without)}`"
        parameters = _range([m.parameters for m in members])
        rows.append(
            [family, str(len(members)), parameters, f"{same} of {len(members)}", *cells, seeded]
        )
    names = "\n".join(
        f"- {family}: {', '.join(m.name for m in members)}"
        for family, members in sorted(families.items())
    )
    faults = [f"- {m.name}: {m.fault}" for m in sketches if m.fault]
    real = [
        ["model", "family", "parameters, M", "deltas", "values", "fitting", "serving", "change"]
    ]
    for c in checks:
        sizes = [_millions(c.parameters), str(c.deltas), f"{c.values:,}"]
        errors = [f"{c.fitted:.1e}", f"{c.merged:.1e}", f"{c.change:.2f}"]
        real.append([c.name, c.family, *sizes, *errors])
    mismatches = [
        f"{model}:{tag}"
        for model, tag in open_clip.list_pretrained()
        if open_clip.get_pretrained_cfg(model, tag).get("quick_gelu")
        and not open_clip.get_model_config(model).get("quick_gelu")
    ]
    versions = f"""open_clip {open_clip.__version__}, timm {timm.__version__}, torch
{torch.__version__.partition("+")[0]}, Python {platform.python_version()}"""
    return f"""# Which of open_clip's image towers can be a base

`python benchmarks/bases.py > benchmarks/results/bases.md`, with {versions}.

**No published weights were loaded here, OpenAI's included**: towers have random weights or none.
What this shows is that an archive can state a tower, that deltas reach every weight they should,
and that fitting and serving compute `W + s * reshape(B A)`. Loading by name and tag, by checkpoint,
`local-dir:` and `hf-hub:` is tested on a toy model in place of a download; with trained weights, on
the small CLIP of [zero-shot.md](zero-shot.md).

## All {len(sketches)} models, on the meta device

Built twice without weights: by open_clip from its own config, and from what an archive states.
*Same tower*: equal names, shapes and modules. *{", ".join(PRESETS)}*: values of rank-8 deltas in
millions, or "refused" where the preset finds no weight. *Seeded*: how many towers rule `uniform-1`
can fill, and the tensors it has no clause for.

{_table(rows)}

{chr(10).join(faults) if faults else "No listed model is refused."}

## One model of each family, in full size, random weights

Rank 4 on every weight, one view, CPU. Distance of the unit embedding from that of explicit float64
weights, while *fitting* (weights formed in the forward pass) and *serving* (merged once); *change*
is how far the deltas move it. EVA-01, CLIPA and the larger members of the others have more than
200 M parameters: these were built on the meta device only, and every family at toy width in
`tests/projector/test_families.py`, where each delta is also shown to move the labels.

{_table(real)}

## Refused, and why

- `attentional_pool` `parallel` or `cascade`, `scaled_cosine_attn`: open_clip itself cannot run
  them in general; no listed model has them.
- Images that are not square, other `act_kwargs` and `norm_kwargs` than `approximate: tanh` and
  `eps`, `timm_pool` null: an archive has no key for them; no listed model has them.
- A tag whose weights were trained with QuickGELU in a model without it, which open_clip only warns
  of: use the model's `-quickgelu` twin ({len(mismatches)} pairs of today's list, such as
  `{mismatches[0]}`).
- Preset `paper` where there is no 3 x 3 convolution but depthwise ones, preset `transformer` where
  there is no attention block.
- As kind `embedded` or `seeded`, towers above 1,073,741,824 parameters: an archive describes no
  larger one to be built. As kind `open_clip` they have no such limit.
- Text towers from Hugging Face (`roberta`, `mt5`, `xlm-roberta`, `nllb`, SigLIP's tokenizers) need
  `transformers`, which was not installed here; their image towers are in the table above.

## Models by family

{names}
"""


def main() -> None:
    """Print the page."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    checks = []
    for name in REAL:
        checks.append(check(name))
        print(f"{name} {checks[-1].seconds:.0f} s {checks[-1].merged:.1e}", file=sys.stderr)
    print(page([sketch(name) for name in open_clip.list_models()], checks), end="")


if __name__ == "__main__":
    main()
