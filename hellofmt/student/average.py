"""The exponential moving average of a network, which is measured in the network's place.

Off unless asked for: it lifts accuracies by itself (EDC, arXiv 2404.13733, evaluates with 0.99), so
numbers with it and without it are not comparable. It is a network of its own rather than a second
set of tensors, so that whatever measures a network measures it. Buffers (the running statistics of
batch normalisation) are averages already and are copied.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from hellofmt.errors import UserInputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Average"]


class Average:
    """average = decay * average + (1 - decay) * weights, after every step.

    Attributes:
        network: the averaged one; starts as a copy.
        decay: in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Copy ``network``.

        Args:
            network: about to be trained.
            decay: in (0, 1); 0.99 remembers about a hundred steps.

        Raises:
            UserInputError: the decay is out of range (E_OPTION).
        """
        if not 0 < decay < 1:
            raise UserInputError.make(
                "E_OPTION", f"decay of the average: expected a number between 0 and 1, got {decay}"
            )
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of ``network`` after a step."""
        for mean, new in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(new, 1 - self.decay)
        for mean, new in zip(self.network.buffers(), network.buffers(), strict=True):
            mean.copy_(new)
