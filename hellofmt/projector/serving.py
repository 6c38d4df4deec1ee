"""Image towers made ready to serve: folds that change the work and not the function.

Serving runs one fixed tower millions of times, so constants are multiplied out once, in float32,
before the weights are cast:

- BatchNorm in eval mode is an affine map of each channel; the convolution before it absorbs it.
- The base's normalisation (v - mean) / std is an affine map too; a patch embedding without padding
  absorbs it. A *padded* first convolution cannot: it pads the normalised image with zeros, which
  are the mean colour, and after the fold zeros would mean black. CLIP's ResNets have such a stem,
  so they keep the separate step.

Neither changes the function beyond rounding, and the probes of an archive are checked afterwards.

What remains between a view and the tower (resize, normalise, cast) is ``prepared``: a loader that
draws views of the base's size can write them as the tower takes them, and skip it. Rejected:
folding the *student's* normalisation into a patch embedding, so that both networks read one tensor.
A tower in half precision reads a copy anyway, and labels would depend on the student's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hellofmt.projector.base.encoder import unit_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hellofmt.projector.base import Encoder


def _pairs(visual: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(owner, convolution, BatchNorm) by attribute, for each pair that runs one after the other."""
    from open_clip.modified_resnet import Bottleneck, ModifiedResNet

    for module in visual.modules():
        if isinstance(module, (ModifiedResNet, Bottleneck)):
            for k in (1, 2, 3):
                yield module, f"conv{k}", f"bn{k}"
        if isinstance(module, Bottleneck) and module.downsample is not None:
            # An OrderedDict of open_clip: "-1" average pool, "0" convolution, "1" BatchNorm.
            yield module.downsample, "0", "1"


def fold_batch_norms_(visual: nn.Module) -> int:
    """Fold every BatchNorm of a CLIP ResNet into the convolution before it, in place; count them.

    ``conv(x) * g / sqrt(var + eps) + (beta - mean * g / sqrt(var + eps))`` as one convolution with
    a bias (Jacob et al., arXiv 1712.05877, section 3.2). Other towers are left alone.
    """
    pairs = list(_pairs(visual))
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    return len(pairs)


def fold_normalisation_(visual: nn.Module, mean: Tensor, std: Tensor) -> bool:
    """Let the first weights of ``visual`` take views in [0, 1], where that is exact; say if it was.

    ``W (v - mean) / std`` is ``(W / std) v - sum(W mean / std)`` if no input pixel is padding.
    """
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        return False
    stem = visual.conv1
    if any(cast("tuple[int, ...]", stem.padding)):
        return False
    with torch.no_grad():
        weight = stem.weight.double() / std.double().view(1, 3, 1, 1)
        shift = -(weight * mean.double().view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
        if stem.bias is not None:
            shift += stem.bias.double()
        stem.weight.copy_(weight)
        stem.bias = nn.Parameter(shift.to(stem.weight), requires_grad=False)
    return True


class ServingEncoder(nn.Module):
    """An encoder with everything constant multiplied out: views to unit embeddings.

    The same function as the ``Encoder`` it is made of, up to rounding.

    Attributes:
        dtype: dtype of the tower's input.
        is_folded: whether the tower takes views in [0, 1], otherwise normalised ones.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool = False,
    ) -> None:
        """Fold, move and cast ``encoder``, its deltas merged, in place; nobody else may use it.

        Views are resized and normalised in float32; ``dtype`` is that of the image tower.
        """
        super().__init__()
        encoder.eval().requires_grad_(requires_grad=False)
        visual = encoder.visual
        fold_batch_norms_(visual)
        mean, std = cast("Tensor", encoder.mean), cast("Tensor", encoder.std)
        self.is_folded = fold_normalisation_(visual, mean.flatten(), std.flatten())
        # Convolutions take half the time so; a patch embedding does not care.
        visual.to(dtype)
        visual.to(memory_format=torch.channels_last)
        self._encoder = encoder.to(device)
        self.dtype = dtype
        self._tower: Callable[[Tensor], Any] = torch.compile(visual) if compile else visual

    def forward(self, views: Tensor) -> Tensor:
        """Embed views (N, 3, S, S), float32 in [0, 1]: (N, D) float32, rows of unit length."""
        return self.embedded(self.prepared(views))

    def prepared(self, views: Tensor) -> Tensor:
        """Resize views, normalise them unless that is folded, and cast them for the tower."""
        x = self._encoder.resized(views)
        if not self.is_folded:
            # One new tensor, not two.
            x = (x - cast("Tensor", self._encoder.mean)).div_(cast("Tensor", self._encoder.std))
        return x.to(dtype=self.dtype, memory_format=torch.channels_last)

    def embedded(self, inputs: Tensor) -> Tensor:
        """Embed what ``prepared`` returned."""
        return unit_rows(self._tower(inputs))
