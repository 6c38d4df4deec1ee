"""The encoder of a base: from finished views to unit embeddings, and from class names to text rows.

``encode`` is the whole way from a view to an embedding; nothing else in the package resizes or
normalises for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hellofmt.archive.format.canonical import decimal_value
from hellofmt.archive.format.digest import tensors_digest
from hellofmt.archive.format.manifest import UNSET, Base, Preprocess
from hellofmt.archive.format.tensors import StoredTensor
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

#: exp(LOGIT_SCALE) = 1 / 0.07, the scale CLIP starts training from (arXiv 2103.00020, 2.5).
LOGIT_SCALE = math.log(1 / 0.07)

# This bounds the memory of the text tower.
_TEXTS_PER_BATCH = 64


class Encoder(nn.Module):
    """Views to unit embeddings: normalise(visual((resize(v) - mean) / std)); in eval mode."""

    def __init__(self, visual: nn.Module, preprocess: Preprocess) -> None:
        """Wrap ``visual``, which is neither copied nor frozen here."""
        super().__init__()
        self.visual = visual
        self.preprocess = preprocess
        for name in ("mean", "std"):
            values = [decimal_value(s) for s in getattr(preprocess, name)]
            tensor = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        """Embed views (N, 3, S, S), float32 in [0, 1], not normalised: (N, D) float32, unit rows.

        They are resized if S is not the base's size, antialiased as the base says, without
        clamping.
        """
        x = self.resized(views)
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        x = (x - mean) / std
        return unit_rows(self.visual(x.to(next(self.visual.parameters()).dtype)))

    def resized(self, views: Tensor) -> Tensor:
        """Resize views, as for ``forward``, to the base's size; they are not normalised."""
        _check_views(views)
        size = self.preprocess.size
        if tuple(views.shape[-2:]) == (size, size):
            return views
        rule = self.preprocess
        if rule.interpolation == "nearest":
            # The pixel that holds the output's centre, in integers: see `loading.views.resample`.
            odd = 2 * torch.arange(size, device=views.device) + 1
            y, x = (odd * side // (2 * size) for side in views.shape[-2:])
            return views[:, :, y[:, None], x]
        return functional.interpolate(
            views, size=(size, size), mode=rule.interpolation, antialias=bool(rule.antialias)
        )


def unit_rows(features: object) -> Tensor:
    """Make float32 (N, D) with rows of unit length of what an image tower returns."""
    # Towers configured for CoCa return (pooled, tokens).
    if isinstance(features, tuple):
        features = cast("tuple[Tensor, ...]", features)[0]
    return functional.normalize(cast("Tensor", features).float(), dim=-1)


def _check_views(views: Tensor) -> None:
    shape = tuple(views.shape)
    if views.ndim != 4 or shape[1] != 3 or 0 in shape or views.dtype != torch.float32:
        raise UserInputError.make(
            "E_DATA",
            "views: not a batch of images; expected (N, 3, S, S) float32, N >= 1, "
            f"got {shape} {str(views.dtype).removeprefix('torch.')}",
        )
    # A batch that was normalised for a student is the usual mistake, and it gives plausible but
    # wrong labels. Bicubic views overshoot [0, 1] a little. Not on a GPU: it would synchronise.
    if views.device.type == "cpu":
        low, high = (float(v) for v in torch.aminmax(views.detach()))
        if not (low >= -0.5 and high <= 1.5):
            raise UserInputError.make(
                "E_DATA",
                "views: values outside [0, 1]; expected the view before normalisation, "
                f"got values from {low:.3g} to {high:.3g}",
            )


@dataclass(frozen=True)
class LoadedBase:
    """A base encoder in memory, with the facts that pin it; see ``load_base``.

    Attributes:
        spec: the manifest's entry; its digests are those of the tensors held here.
        encoder: frozen, in eval mode, float32, on the CPU unless moved.
        logit_scale: logarithm of the base's own scale of cosines.
        text_digest: digest of the text tower, or None.
        preprocess_declared: whether the source states its preprocessing; if not, it is open_clip's
            default.
        texts: function from class prompts to text embeddings (N, D), or None without a text tower.
    """

    spec: Base
    encoder: Encoder
    logit_scale: float = LOGIT_SCALE
    text_digest: str | None = None
    preprocess_declared: bool = True
    texts: Callable[[Sequence[str]], Tensor] | None = None
    _rows: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = field(
        default_factory=dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor],
        init=False,
        repr=False,
        compare=False,
    )

    @property
    def visual(self) -> nn.Module:
        """The image tower, whose state-dict names key the deltas."""
        return self.encoder.visual

    @property
    def embed_dim(self) -> int:
        """Length D of an embedding."""
        return self.spec.arch.embed_dim

    @property
    def has_text(self) -> bool:
        """Whether a head can start from text."""
        return self.texts is not None

    def encode(self, views: Tensor) -> Tensor:
        """Embed views without gradient; arguments and errors are those of `Encoder.forward`."""
        with torch.no_grad():
            return self.encoder(views)

    def text_rows(self, names: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Make rows of a zero-shot head: normalise(mean over prompts of normalise(text embedding)).

        Equal to open_clip's ``build_zero_shot_classifier``, transposed. The rows of the last names
        and prompts are kept, since a thousand texts take a minute on a CPU.

        Args:
            names: one name per class.
            prompts: templates; the characters ``{}`` are replaced by the name.

        Returns:
            (C, D) float32, rows of unit length.

        Raises:
            UserInputError: E_OPTION, no text tower, no names or no prompts.
        """
        if self.texts is None:
            raise UserInputError.make(
                "E_OPTION",
                f"base `{printable(self.spec.name)}` has no text tower; expected one for a head "
                "that starts from text (or start 'stored')",
            )
        if not names or not prompts:
            raise UserInputError.make(
                "E_OPTION",
                "a head from text needs class names and prompts; "
                f"got {len(names)} names and {len(prompts)} prompts",
            )
        key = tuple(names), tuple(prompts)
        if key in self._rows:
            return self._rows[key].clone()
        # Whole classes at a time, so that no more than their mean is kept.
        step = max(1, _TEXTS_PER_BATCH // len(prompts))
        with torch.no_grad():
            parts = [
                _mean_rows(self.texts, names[i : i + step], prompts)
                for i in range(0, len(names), step)
            ]
            rows = functional.normalize(torch.cat(parts), dim=-1)
        self.keep_text_rows(names, prompts, rows)
        return rows.clone()

    def keep_text_rows(self, names: Sequence[str], prompts: Sequence[str], rows: Tensor) -> None:
        """Keep rows that ``text_rows`` made earlier, in place of the last."""
        self._rows.clear()
        self._rows[tuple(names), tuple(prompts)] = rows.clone()

    def embedded(self) -> LoadedBase:
        """Turn the base into kind ``embedded``: its tensors will travel inside the archive.

        The text tower stays behind, so a head on an embedded base has start ``stored``.
        """
        spec = msgspec.structs.replace(
            self.spec, kind="embedded", pretrained=UNSET, seed=UNSET, text=UNSET
        )
        return replace(self, spec=spec, texts=None, text_digest=None)

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """Make section ``base``: the image tower's floating tensors.

        float16 where that is exact (OpenAI's weights were released so), else float32; the digest
        is over the float32 values either way.
        """
        stored: dict[str, StoredTensor] = {}
        for name, array in _float_tensors(self.visual):
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            exact = np.array_equal(half.astype(np.float32), array)
            stored[name] = StoredTensor.from_numpy(half if exact else array)
        return stored


def _mean_rows(
    embed: Callable[[Sequence[str]], Tensor], names: Sequence[str], prompts: Sequence[str]
) -> Tensor:
    """Average the unit embeddings of every name over the prompts: (len(names), D)."""
    # str.replace, never str.format: a prompt from a file must not reach attributes.
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    parts = [
        functional.normalize(embed(texts[i : i + _TEXTS_PER_BATCH]).float(), dim=-1)
        for i in range(0, len(texts), _TEXTS_PER_BATCH)
    ]
    return torch.cat(parts).reshape(len(names), len(prompts), -1).mean(dim=1)


def float_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating tensors of the state dict, sorted by name, without integer counters."""
    state = module.state_dict()
    return {name: state[name] for name in sorted(state) if state[name].is_floating_point()}


def _float_tensors(module: nn.Module) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the same tensors by name as float32 on the CPU, one at a time."""
    for name, tensor in float_state(module).items():
        yield name, tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def digest_of(module: nn.Module) -> str:
    """Compute the tensors digest of spec/hello-1.md over the floating tensors, as float32."""
    return tensors_digest(
        (name, "F32", array.shape, array.astype("<f4", copy=False).tobytes())
        for name, array in _float_tensors(module)
    )


def fill_(module: nn.Module, values: Callable[[str, tuple[int, ...]], NDArray[Any]]) -> None:
    """Overwrite every floating tensor of the state dict by ``values(name, shape)``."""
    with torch.no_grad():
        for name, tensor in float_state(module).items():
            tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))


def frozen(module: nn.Module) -> nn.Module:
    """Return ``module`` itself in float32 on the CPU, in eval mode and without gradients."""
    return module.to("cpu", torch.float32).eval().requires_grad_(requires_grad=False)
