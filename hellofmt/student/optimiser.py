"""Build the optimiser of a recipe: AdamW, or Muon for matrices beside AdamW for the rest.

Muon (K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) takes a
step along the nearest orthogonal matrix of the momentum, which ``torch.optim.Muon`` computes. As in
the authors' program (KellerJordan/Muon), a convolution kernel is the matrix (out, in * height *
width), and the first and the last weight of a network are AdamW's, as are all vectors. They
name no depthwise kernels: those mix no channels, so they are AdamW's too, and so are position
embeddings, which have three dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hellofmt.student.recipes import Recipe


def optimiser_of(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe, with decay only on weights of two or more dimensions."""
    trained = [p for p in network.parameters() if p.requires_grad]
    weights = [p for p in trained if p.ndim >= 2]
    vectors = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}
    shared: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if not recipe.muon:
        return torch.optim.AdamW([{"params": weights}, vectors], **shared)
    inner = [p for p in weights if p.ndim in (2, 4)][1:-1]
    matrices = [p for p in inner if p.shape[1] > 1]
    chosen = set(matrices)
    rest = {"params": [p for p in weights if p not in chosen]}
    return MuonAndAdamW({"params": matrices}, [rest, vectors], **shared)


def _matrix(kernel: Tensor) -> Tensor:
    """View weights as (out, rest), in either memory layout; the order of the rest is immaterial."""
    laid = kernel if kernel.is_contiguous() else kernel.permute(0, 2, 3, 1)
    return laid.view(len(laid), -1)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the first group of parameters, AdamW for the others, with one state.

    Muon's step is scaled to the root mean square of AdamW's (0.2 sqrt(max(out, rest)), Liu et al.,
    "Muon is scalable for LLM training", arXiv 2502.16982), so that both take the same learning rate
    and decay. Momentum 0.95 with Nesterov and five iterations are the authors'.
    """

    def __init__(
        self,
        matrices: dict[str, Any],
        others: list[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        """Take the network's own parameters; kernels stay what they are."""
        super().__init__([matrices, *others], {"lr": lr, "weight_decay": weight_decay})
        # Both step on what `step` hands to them; what they are made with is not used.
        none = [torch.zeros(1, 1)]
        self._muon = torch.optim.Muon(none, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step both with the gradients that are there; ValueError for a closure."""
        if closure is not None:
            raise ValueError("closure: expected None, since gradients are there before a step")
        first, *others = self.param_groups
        muon = self._muon
        matrices: list[Tensor] = []
        muon.state.clear()
        for kernel in first["params"]:
            if kernel.grad is not None:
                matrix = _matrix(kernel.detach())
                matrix.grad = _matrix(kernel.grad)
                muon.state[matrix] = self.state[kernel]
                matrices.append(matrix)
        rates = {key: first[key] for key in ("lr", "weight_decay")}
        muon.param_groups[0].update(rates, params=matrices)
        muon.step()
        self._adamw.state = self.state
        self._adamw.param_groups = [{**self._adamw.defaults, **group} for group in others]
        self._adamw.step()
