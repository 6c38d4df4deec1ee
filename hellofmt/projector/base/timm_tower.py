"""Bases by timm's names: a network without its classifier, behind the input it was trained with.

open_clip builds such a tower itself (``timm_proj`` ``none``: the pooled features are the
embedding), so an archive states it as any other. ``timm:NAME`` downloads what timm publishes,
``timm:NAME=FILE`` reads weights of anybody. Their mean and std are those in the file's header,
which ``hello convert`` writes, else those of timm's data config.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

import msgspec
import torch

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.fields import Interpolation
from hellofmt.archive.format.manifest import UNSET, Arch, Preprocess, VisionArch
from hellofmt.checkpoint import RULE_KEY, read_checkpoint
from hellofmt.errors import (
    HelloError,
    HelloIOError,
    UserInputError,
    did_you_mean,
    foreign_text,
    printable,
    shown_path,
)
from hellofmt.projector.base.build import build_checked
from hellofmt.projector.base.foreign import quiet_logs
from hellofmt.weights import find_weights, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

#: How the name of such a base begins.
TIMM: Final = "timm:"
_PRETRAINED: Final = "pretrained"


@dataclass(frozen=True)
class TimmTower:
    """A tower and what an archive says of it: ``name`` and ``pretrained`` are the hints."""

    visual: nn.Module
    arch: Arch
    preprocess: Preprocess
    name: str
    pretrained: str | None


def timm_tower(text: str, preprocess: Preprocess | None, say: Callable[[str], None]) -> TimmTower:
    """Load ``timm:NAME``, whose weights are downloaded, or ``timm:NAME=FILE``.

    ``preprocess`` replaces what file or library say of the input.
    """
    import timm
    from timm.data.config import resolve_data_config

    name, _, file = text.removeprefix(TIMM).partition("=")
    if not timm.is_model(name):
        raise UserInputError.make(
            "E_OPTION",
            f"base `{printable(text)}`: timm has no network of this name; expected timm:NAME or"
            " timm:NAME=FILE",
            advice=did_you_mean(name, timm.list_models()),
        )
    plain = name.partition(".")[0]
    try:
        # Drawing initial weights must not move the caller's generator.
        with warnings.catch_warnings(), quiet_logs(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            if file in {"", _PRETRAINED}:
                network = _published(name)
                rule, source = None, "timm's data config"
                state, tag = network.state_dict(), str(network.pretrained_cfg.get("tag") or "")
            else:
                network = timm.create_model(name, num_classes=0)
                state, rule = _from_file(network, text, str(Path(file).expanduser()), say)
                source = "the file's own" if rule else "timm's data config, the file says nothing"
                tag = ""
            if preprocess is None:
                config = resolve_data_config({}, model=network)
                preprocess = rule or _preprocess(config, _side(network))
            else:
                source = "as asked for"
            arch = _arch(network, plain, preprocess.size)
            visual = build_checked(arch, None).visual
            cast("nn.Module", visual.trunk).load_state_dict(state)
    except (HelloError, OSError):
        raise
    except Exception as error:
        raise UserInputError.make(
            "E_OPTION", f"base `{printable(text)}` cannot be made: {foreign_text(error)}"
        ) from error
    mean, std = (" ".join(values) for values in (preprocess.mean, preprocess.std))
    say(
        f"base {shown_path(text)}: input {preprocess.size} px {preprocess.interpolation},"
        f" mean {mean}, std {std} ({source})"
    )
    return TimmTower(visual, arch, preprocess, TIMM + plain, tag or None)


def _published(name: str) -> Any:
    """The network with timm's own weights, downloaded where they are not cached."""
    import timm

    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except OSError as error:
        # What is raised names neither the network nor what was wanted.
        raise HelloIOError.make(
            "E_HTTP",
            f"weights of `timm:{printable(name)}` cannot be downloaded: {foreign_text(error)}",
        ) from error


def _from_file(
    network: Any, text: str, file: str, say: Callable[[str], None]
) -> tuple[Mapping[str, Tensor], Preprocess | None]:
    """The weights of a network without classifier, and what the header says of its input."""
    checkpoint = read_checkpoint(file, code="E_OPTION")
    classifier = network.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    match = find_weights(network, checkpoint, file, idle=names)
    if not match.fits:
        raise UserInputError.make(
            "E_OPTION",
            f"base `{printable(text)}`: the file {match.difference()}",
            advice="`hello convert` finds weights under other names",
        )
    if match.left_out:
        say(f"base {shown_path(text)}: {listed(match.left_out)} left out")
    state = network.state_dict() | match.state
    stated = checkpoint.metadata.get(RULE_KEY)
    if stated is None:
        return state, None
    try:
        rule = json.loads(stated)
        return state, _preprocess(rule, rule["size"] or _side(network))
    except (ValueError, KeyError, TypeError) as error:
        raise UserInputError.make(
            "E_OPTION", f"base `{printable(text)}`: the input rule in the file's header is damaged"
        ) from error


def _side(network: Any) -> int:
    return int(network.pretrained_cfg["input_size"][-1])


def _preprocess(rule: Mapping[str, Any], size: int) -> Preprocess:
    """Read mean, std and interpolation; what is none of ours becomes bicubic, as for a teacher."""
    smooth = rule["interpolation"]
    document: dict[str, Any] = {
        "interpolation": smooth if smooth in get_args(Interpolation) else "bicubic",
        "mean": [decimal_string(float(v)) for v in rule["mean"]],
        "size": size,
        "std": [decimal_string(float(v)) for v in rule["std"]],
    }
    if smooth != "nearest":
        document["antialias"] = True
    return msgspec.convert(document, Preprocess)


def _arch(network: Any, name: str, side: int) -> Arch:
    """Describe the network as open_clip builds it; its own pooling has to be one that is stated."""
    head = getattr(network, "head", None)
    pools = [getattr(owner, "global_pool", None) for owner in (network, head)]
    found = [p if isinstance(p, str) else getattr(p, "pool_type", None) for p in pools]
    pool = next((p for p in found if isinstance(p, str)), None)
    known = ("", "avg", "map", "token")
    if pool not in known:
        raise UserInputError.make(
            "E_OPTION",
            f"base `timm:{name}` pools by `{printable(pool or 'a way of its own')}`, which an"
            f" archive cannot state; expected one of {', '.join(known[1:])}",
        )
    network.eval()
    with torch.no_grad():
        shape = tuple(network(torch.zeros(1, 3, side, side)).shape)
    return Arch(
        embed_dim=shape[-1],
        quick_gelu=False,
        vision=VisionArch(
            image_size=side,
            timm_model_name=name,
            timm_pool=UNSET if pool == "avg" else pool,
            timm_proj="none",
        ),
    )
