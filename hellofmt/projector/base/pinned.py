"""The base that an archive pins, by digests over architecture, preprocessing and tensors.

A mismatch is refused and the differing part named, because the same weights with another activation
or resize give other labels without any error. Nothing is downloaded because a file names it: the
name in an archive is only printed, for the user to type.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from torch import nn

from hellofmt.archive.card import base_argument
from hellofmt.archive.format.digest import base_digest
from hellofmt.archive.format.functions import functions_of
from hellofmt.archive.format.limits import check_limit
from hellofmt.archive.format.manifest import UNSET, Base
from hellofmt.errors import BaseModelError, SpecError, UserInputError, printable
from hellofmt.projector.base.arch import flatten, normal_arch, without_text
from hellofmt.projector.base.build import build_checked, seeded_base
from hellofmt.projector.base.encoder import (
    Encoder,
    LoadedBase,
    digest_of,
    fill_,
    float_state,
    frozen,
)
from hellofmt.projector.base.foreign import foreign_calls
from hellofmt.projector.base.named import load_base
from hellofmt.projector.base.timm_tower import TIMM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from hellofmt.archive import Archive


def base_of(file: Archive, base: str | Path | LoadedBase | nn.Module | None = None) -> LoadedBase:
    """Find the base that ``file`` pins, and check it against its digests.

    ``base`` says where it is, as for `load_base`, or is a checkpoint file whose model name the
    archive states; seeded and embedded bases need none. An embedded one may not cost more than the
    archive's limits admit.
    """
    spec = file.manifest.base
    if spec is UNSET:
        raise UserInputError.make(
            "E_OPTION", "the archive has no projector and so no base; expected one to make labels"
        )
    if base is not None:
        return _check_base(spec, _load_for(spec, base))
    with foreign_calls("the base that the archive describes cannot be made"):
        if spec.kind == "embedded":
            loaded = _embedded_base(spec, file.tensors("base"), _limit_work(file))
        elif spec.kind == "seeded" and spec.seed is not UNSET:
            text = None if spec.text is UNSET else spec.text
            loaded = seeded_base(
                spec.arch, spec.preprocess, seed=spec.seed, name=spec.name, text=text
            )
        else:
            raise _missing(spec)
        return _check_base(spec, loaded)


def _limit_work(file: Archive) -> Callable[[int], None]:
    """Make a check of the operations of one view, which the name of a timm model does not tell."""
    views = sum(function.probes.count for function in functions_of(file.manifest))
    size = file.section_sizes().get("base", 0)

    def check(flop: int) -> None:
        check_limit(file.limits, "gflop", max(-(-views * flop // 10**9) - size // 10**6, 0))

    return check


def _missing(spec: Base) -> BaseModelError:
    import open_clip

    name, value = printable(spec.name), base_argument(spec)
    if spec.pretrained is UNSET and spec.name in open_clip.list_models():
        value = f"open_clip:{name}:PRETRAINED"
    return BaseModelError.make(
        "E_BASE_MISSING",
        f"the labels need base `{name}` with digest {spec.digest}; nothing is downloaded because a "
        "file names it",
        advice=f"pass {{base:{value}}}",
    )


def _load_for(spec: Base, base: str | Path | LoadedBase | nn.Module) -> LoadedBase:
    """Load what the user gave, filling in what only the archive knows."""
    import open_clip

    if isinstance(base, nn.Module):
        return load_base(base, arch=spec.arch)
    if isinstance(base, LoadedBase):
        return base
    text = str(base)
    if ":" not in text and Path(text).is_file():
        if spec.name.startswith(TIMM):
            text = f"{spec.name}={text}"
        elif spec.name in open_clip.list_models():
            text = f"open_clip:{spec.name}:{text}"
    # Files of timm's networks seldom say what input they were trained on; the archive does.
    return load_base(text, preprocess=spec.preprocess if text.startswith(TIMM) else None)


def _embedded_base(
    spec: Base, tensors: Mapping[str, NDArray[Any]], check_work: Callable[[int], None]
) -> LoadedBase:
    stored = {name: tuple(array.shape) for name, array in tensors.items()}

    def check(sketch: nn.Module, flop: int) -> None:
        expected = {n: tuple(t.shape) for n, t in float_state(sketch).items()}
        names = sorted(
            n for n in expected.keys() | stored.keys() if expected.get(n) != stored.get(n)
        )
        if names:
            raise SpecError.make(
                "E_TENSOR",
                f"{len(names)} tensors differ from the architecture, first `{printable(names[0])}`;"
                f" expected {expected.get(names[0])}, got {stored.get(names[0])}",
                member="__hello__/base",
            )
        check_work(flop)

    model = build_checked(spec.arch, None, check)
    fill_(model.visual, lambda name, _: np.array(tensors[name], np.float32))
    visual = frozen(model.visual)
    digest = digest_of(visual)
    loaded = msgspec.structs.replace(
        spec, tensors=digest, digest=base_digest(spec.arch, spec.preprocess, digest)
    )
    return LoadedBase(spec=loaded, encoder=Encoder(visual, spec.preprocess).eval())


def _check_base(spec: Base, loaded: LoadedBase) -> LoadedBase:
    """Put ``loaded`` under the archive's description, or raise for the part that differs."""
    got = loaded.spec
    if spec.kind != "open_clip" and spec.text is UNSET:
        got = without_text(msgspec.structs.replace(got, kind=spec.kind))
    preprocess = got.preprocess if loaded.preprocess_declared else spec.preprocess
    for code, part, pinned, other in (
        ("E_BASE_CONFIG", "architecture", normal_arch(spec.arch), normal_arch(got.arch)),
        (
            "E_BASE_PREPROC",
            "preprocessing",
            flatten(msgspec.to_builtins(spec.preprocess)),
            flatten(msgspec.to_builtins(preprocess)),
        ),
    ):
        if pinned != other:
            raise BaseModelError.make(
                code,
                f"{part} of base `{printable(spec.name)}` differs ({_difference(pinned, other)}); "
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


def _difference(pinned: Mapping[str, object], other: Mapping[str, object]) -> str:
    """Name the first key in which two flat descriptions differ."""
    key = min(k for k in pinned.keys() | other.keys() if pinned.get(k) != other.get(k))
    return f"`{key}` {printable(pinned.get(key))} against {printable(other.get(key))}"
