"""Keep an exponential moving average of a network and measure it in the network's place.

Off by default: it raises accuracies by itself (EDC, arXiv 2404.13733, evaluates with 0.99), so
numbers with and without it are not comparable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hellofmt.errors import UserInputError

if TYPE_CHECKING:
    from torch import nn


class Average(AveragedModel):
    """Torch's averaged model: average = decay * average + (1 - decay) * weights, after every step.

    The average starts with the first step's weights. Buffers (the running statistics of batch
    normalisation) are averages already, so they are copied. ``module`` is the averaged network.

    Attributes:
        decay: share of the previous average, in (0, 1).

    Example:
        >>> from hellofmt.student import build_student, recipe, train_from_archive
        >>> average = Average(build_student("cnn", classes=3, size=16), decay=0.99)
        >>> student = build_student("cnn", classes=3, size=16)
        >>> how = recipe("hello")
        >>> _ = train_from_archive(student, "photos.hello", how, steps=2, average=average)
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Copy the network to be trained; a decay of 0.99 averages about a hundred steps.

        Raises:
            UserInputError: the decay is out of range (E_OPTION).
        """
        if not 0 < decay < 1:
            text = f"decay of the average: expected a number between 0 and 1, got {decay}"
            raise UserInputError.make("E_OPTION", text)
        super().__init__(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.decay = decay
