"""Labels of any function from views to logits, such as a teacher, in the place of the projector's.

What a data set labels with is the one thing in which ways to ship labels differ; views, order and
everything after them must not. So a function stands behind the same two methods as ``Labeler``,
``logits`` and ``labels``, and whoever makes labels need not know which of the two it has.

A network in train mode is refused: batch statistics make a label depend on the other views of its
batch, and every call would move the running ones.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import nn

from hellofmt.errors import UserInputError
from hellofmt.projector.labeler import refuse_fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["FunctionLabeler"]


class FunctionLabeler:
    """A function from views to logits, as ``Labeler`` gives its labels.

    Picklable if the function is, so it reaches workers that are spawned.

    Attributes:
        device: where the function gets its views.
    """

    #: What stands where a ``Labeler`` names its kernel.
    kernel = "function"

    def __init__(
        self, function: Callable[[Tensor], Tensor], classes: int, device: str | torch.device = "cpu"
    ) -> None:
        """Wrap ``function``.

        Args:
            function: views float32 (N, 3, S, S) in [0, 1] on ``device``, not normalised, to logits
                (N, C).
            classes: C.
            device: where the function runs.

        Raises:
            UserInputError: E_OPTION, a network in train mode.
        """
        if isinstance(function, nn.Module) and function.training:
            text = "the label function is in train mode, where a label depends on its batch"
            raise UserInputError.make("E_OPTION", f"{text}; expected `.eval()` before")
        self.device = torch.device(device)
        self._function = function
        self._classes = classes
        self._pid = os.getpid()

    def logits(self, views: Tensor) -> Tensor:
        """Logits before the temperature.

        Args:
            views: (N, 3, S, S) float32 in [0, 1].

        Returns:
            (N, C) float32 on ``device``, without gradient.

        Raises:
            UserInputError: E_TEACHER, the function returned another shape or numbers that are not
                finite; E_OPTION, CUDA in a forked worker.
        """
        refuse_fork(self.device, self._pid)
        with torch.inference_mode():
            found = self._function(views.to(self.device)).float()
        expected = (len(views), self._classes)
        if tuple(found.shape) != expected:
            text = f"logits of the label function: expected shape {expected}"
            raise UserInputError.make("E_TEACHER", f"{text}, got {tuple(found.shape)}")
        if not bool(found.isfinite().all()):
            text = "logits of the label function: expected finite numbers, got others"
            raise UserInputError.make("E_TEACHER", text)
        # A clone made outside is an ordinary tensor, which autograd may save.
        return found.clone()

    def labels(self, views: Tensor, temperature: float) -> Tensor:
        """Soft labels: softmax(logits / T).

        Args:
            views: (N, 3, S, S) float32 in [0, 1].
            temperature: T > 0.

        Returns:
            (N, C) float32 on ``device``, rows sum to 1, without gradient.

        Raises:
            UserInputError: as ``logits``.
        """
        return torch.softmax(self.logits(views) / temperature, dim=1)
