"""Bases that the user names: of open_clip or timm, directory or hub, or a loaded model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from torch import Tensor, nn

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.digest import base_digest
from hellofmt.archive.format.manifest import UNSET, Arch, Base, Preprocess
from hellofmt.errors import BaseModelError, UserInputError, did_you_mean, foreign_text, printable
from hellofmt.projector.base.arch import arch_of_config, open_clip_config
from hellofmt.projector.base.build import build_checked, embed_texts, text_module
from hellofmt.projector.base.encoder import (
    LOGIT_SCALE,
    Encoder,
    LoadedBase,
    digest_of,
    frozen,
    unit_rows,
)
from hellofmt.projector.base.foreign import cannot_load, check_weights, quiet_logs
from hellofmt.projector.base.timm_tower import TIMM, timm_tower

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Largest difference between unit embeddings of one function: rounding of float32, with room.
_SAME_FUNCTION = 1e-4

# How the name of a base begins; `seeded` is the command line's.
_KINDS = ("open_clip", "timm", "local-dir", "hf-hub", "seeded")


def load_base(
    source: str | Path | nn.Module | LoadedBase,
    *,
    arch: Arch | str | None = None,
    preprocess: Preprocess | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> LoadedBase:
    """Load a base that the user names.

    Args:
        source: ``"open_clip:NAME:PRETRAINED"`` (a tag, which open_clip may download, or a
            checkpoint file), ``"timm:NAME"`` (the library's weights, which may be downloaded) or
            ``"timm:NAME=FILE"`` (a checkpoint of anybody; the classifier is left out),
            ``"local-dir:PATH"`` or the path of such a directory, ``"hf-hub:ORG/NAME"``, or a loaded
            open_clip model. A `LoadedBase` is returned as it is.
        arch: architecture of a loaded model, as open_clip's name of it or as an archive states it;
            ignored for every other source.
        preprocess: replaces the source's own.
        say: called with a line about what timm, or the file, says of the input.

    Returns:
        The base, kind ``open_clip``, frozen, float32, on the CPU; a copy of a loaded model.

    Raises:
        UserInputError: E_OPTION, the source cannot be understood or loaded, or a loaded model comes
            without ``arch``.
        BaseModelError: E_BASE_CONFIG, a loaded model is not of ``arch``.
        HelloIOError: a checkpoint is a pipe or a device (E_READ), or weights of timm cannot be
            downloaded (E_HTTP).
        OSError: a path does not exist.

    Example:
        >>> base = load_base("local-dir:clip")
        >>> base.spec.preprocess.size
        16
    """
    if isinstance(source, LoadedBase):
        return source
    import open_clip

    if isinstance(source, nn.Module):
        return _from_model(source, arch, preprocess)
    text = str(source)
    if text.startswith(("local-dir:", "hf-hub:")):
        return _from_name(text, None, preprocess)
    if text.startswith(TIMM):
        tower = timm_tower(text, preprocess, say)
        return _finish(
            tower.visual,
            arch=tower.arch,
            preprocess=tower.preprocess,
            name=tower.name,
            pretrained=tower.pretrained,
            tokenizer=None,
            declared=True,
        )
    if text.startswith("open_clip:"):
        name, _, pretrained = text.removeprefix("open_clip:").partition(":")
        if not pretrained or name not in open_clip.list_models():
            raise UserInputError.make(
                "E_OPTION",
                f"base `{printable(text)}`: unknown model or no weights; expected "
                '"open_clip:NAME:PRETRAINED" with a NAME and weights that open_clip has',
                advice=did_you_mean(name, open_clip.list_models()) if pretrained else "",
            )
        check_weights(name, pretrained)
        return _from_name(name, pretrained, preprocess)
    path = Path(text)
    if path.is_dir():
        return _from_name(f"local-dir:{path}", None, preprocess)
    kind = text.partition(":")[0]
    if kind == "seeded" and not path.exists():
        raise UserInputError.make(
            "E_OPTION",
            f"base `{printable(text)}`: a generated base is for a new projector; an archive that"
            " has one needs no base",
        )
    nearest = "" if path.exists() else did_you_mean(kind, _KINDS)
    if nearest:
        raise UserInputError.make(
            "E_OPTION",
            f"base `{printable(text)}`: no such folder, nor a kind of base; expected "
            "open_clip:NAME:PRETRAINED, timm:NAME[=FILE], local-dir:PATH, hf-hub:ORG/NAME or "
            "seeded",
            advice=nearest,
        )
    # A missing file stays the OSError it is.
    path.stat()
    raise UserInputError.make(
        "E_OPTION",
        f"base `{printable(text)}`: a checkpoint file alone does not tell its architecture; "
        f'expected "open_clip:NAME:{printable(text)}"',
    )


def _from_name(name: str, pretrained: str | None, preprocess: Preprocess | None) -> LoadedBase:
    """Load a model by open_clip name and pretrained tag or file, or by directory or hub name."""
    import open_clip

    _check_activation(name, pretrained)
    try:
        config = cast("dict[str, Any]", open_clip.get_model_config(name))
        with quiet_logs(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # `_check_activation` has refused what would change a feature; the rest of what is said
            # here concerns whoever wrote the libraries.
            warnings.simplefilter("ignore")
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
        raise cannot_load(name, pretrained, error) from error
    # open_clip takes a pretrained string that is no tag for a file, whose preprocessing it guesses.
    declared = pretrained is None or bool(open_clip.get_pretrained_cfg(name, pretrained))
    spec_name = name.rsplit("/", 1)[-1] if name.startswith("local-dir:") else name
    return _finish(
        model,
        arch=arch_of_config(config),
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
    import open_clip

    tags = cast("Mapping[str, Any]", open_clip.get_pretrained_cfg(name, pretrained or ""))
    config = cast("Mapping[str, Any]", open_clip.get_model_config(name) or {}) if tags else {}
    if tags and tags.get("quick_gelu") and not config.get("quick_gelu"):
        raise UserInputError.make(
            "E_OPTION",
            f"base `{name}` has GELU, but its weights `{pretrained}` were trained with QuickGELU; "
            f'expected "open_clip:{name}-quickgelu:{pretrained}"',
        )


def _from_model(
    model: nn.Module, arch: Arch | str | None, preprocess: Preprocess | None
) -> LoadedBase:
    import open_clip

    model = copy.deepcopy(model)
    visual = frozen(getattr(model, "visual", model))
    arch = _stated_arch(arch)
    _check_function(visual, arch)
    length, vocabulary = getattr(model, "context_length", 0), getattr(model, "vocab_size", 0)
    tokenizer = None
    # open_clip's own tokenizer is the only one that is certain without a configuration.
    if vocabulary == 49408:
        tokenizer = lambda: open_clip.SimpleTokenizer(context_length=length)  # noqa: E731
    return _finish(
        model,
        arch=arch,
        preprocess=preprocess,
        name=type(visual).__name__,
        pretrained=None,
        tokenizer=tokenizer,
        declared=bool(getattr(visual, "preprocess_cfg", None)),
    )


def _stated_arch(arch: Arch | str | None) -> Arch:
    if isinstance(arch, Arch):
        return arch
    import open_clip

    if arch not in open_clip.list_models():
        problem = "is missing" if arch is None else f"`{printable(arch)}` is unknown"
        raise UserInputError.make(
            "E_OPTION",
            f"a loaded model does not tell its architecture, and `arch` {problem}; expected "
            'open_clip\'s name of it, such as arch="ViT-B-32-quickgelu", or an Arch',
        )
    return arch_of_config(cast("dict[str, Any]", open_clip.get_model_config(arch)))


def _check_function(visual: nn.Module, arch: Arch) -> None:
    """Raise unless ``arch`` with the tensors of ``visual`` computes what ``visual`` does.

    Names and shapes cannot show another activation or number of heads; features of one input do.
    """
    stated = visual.state_dict()

    def check(sketch: nn.Module, _: int) -> None:
        state = sketch.state_dict()
        for name in sorted(state.keys() | stated.keys()):
            sizes = [tuple(d[name].shape) if name in d else None for d in (state, stated)]
            if sizes[0] != sizes[1]:
                raise BaseModelError.make(
                    "E_BASE_CONFIG",
                    "the model is not of the stated architecture: tensor "
                    f"`{printable(name)}` has shape {sizes[1]}; expected {sizes[0]}",
                )

    built = build_checked(arch, None, check).visual
    built.load_state_dict(stated)
    size = cast("int", open_clip_config(arch).get("image_size", 224))
    view = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    with torch.no_grad():
        difference = (unit_rows(frozen(built)(view)) - unit_rows(visual(view))).abs().max()
    # Written so that NaN fails.
    if not float(difference) <= _SAME_FUNCTION:
        raise BaseModelError.make(
            "E_BASE_CONFIG",
            "the model computes other features than the stated architecture with its weights: they "
            f"differ by {float(difference):.2g}, expected at most {_SAME_FUNCTION:g}; the usual "
            "cause is another activation (QuickGELU)",
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
    visual = frozen(getattr(model, "visual", model))
    input_rule = preprocess or _preprocess_of(visual, arch)
    tensors = digest_of(visual)
    tower = text_module(model)
    has_text = tower is not None and tokenizer is not None
    scale = getattr(model, "logit_scale", None)
    spec = Base(
        arch=arch,
        digest=base_digest(arch, input_rule, tensors),
        kind="open_clip",
        name=name,
        preprocess=input_rule,
        tensors=tensors,
        pretrained=UNSET if pretrained is None else pretrained,
    )
    return LoadedBase(
        spec=spec,
        encoder=Encoder(visual, input_rule).eval(),
        logit_scale=float(scale.detach()) if isinstance(scale, Tensor) else LOGIT_SCALE,
        text_digest=digest_of(tower) if tower is not None and has_text else None,
        preprocess_declared=declared or preprocess is not None,
        texts=embed_texts(model, tokenizer) if has_text and tokenizer is not None else None,
    )


def _preprocess_of(visual: nn.Module, arch: Arch) -> Preprocess:
    """Read the preprocessing that open_clip attached to a tower, with defaults for the rest."""
    import open_clip

    stated = cast("dict[str, Any]", getattr(visual, "preprocess_cfg", None) or {})
    mean = stated.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = stated.get("std") or open_clip.OPENAI_DATASET_STD
    size = cast("dict[str, Any]", open_clip_config(arch)).get("image_size", 224)
    document = {
        "interpolation": stated.get("interpolation", "bicubic"),
        "mean": [decimal_string(float(v)) for v in mean],
        "size": size,
        "std": [decimal_string(float(v)) for v in std],
    }
    if document["interpolation"] != "nearest":
        # torchvision resizes PIL images with antialias, whatever it is told.
        document["antialias"] = True
    try:
        return msgspec.convert(document, Preprocess)
    except msgspec.ValidationError as error:
        raise UserInputError.make(
            "E_OPTION", f"base preprocessing cannot be stated in an archive: {foreign_text(error)}"
        ) from error
