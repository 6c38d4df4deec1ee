"""Labels by any function from views to logits, such as a teacher, in the place of the projector.

Ways to ship labels differ in what makes the labels, and must differ in nothing else: not in views,
order or what follows. So a function gets the methods of ``Labeler``, with its logits in the place
of embeddings, and callers need not know which of the two they have.

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


class FunctionLabeler:
    """Labeler around a function from views on ``device`` to logits, with its methods.

    It can be pickled if the function can, and so reaches spawned workers.
    """

    #: Name in reports, where a ``Labeler`` names its kernel.
    kernel = "function"

    def __init__(
        self, function: Callable[[Tensor], Tensor], classes: int, device: str | torch.device = "cpu"
    ) -> None:
        """Wrap a function from views, float32 (N, 3, S, S) in [0, 1] on ``device``, to logits."""
        if isinstance(function, nn.Module) and function.training:
            text = "the label function is in train mode, where a label depends on its batch"
            raise UserInputError.make("E_OPTION", f"{text}; expected `.eval()` before")
        self.device = torch.device(device)
        self._function = function
        self._classes = classes
        self._pid = os.getpid()

    def logits(self, views: Tensor) -> Tensor:
        """Return logits (N, C), float32 on ``device``, without gradient."""
        refuse_fork(self.device, self._pid)
        with torch.inference_mode():
            logits = self._function(views.to(self.device)).float()
        expected = (len(views), self._classes)
        if tuple(logits.shape) != expected:
            text = f"logits of the label function: expected shape {expected}"
            raise UserInputError.make("E_TEACHER", f"{text}, got {tuple(logits.shape)}")
        if not bool(logits.isfinite().all()):
            text = "logits of the label function: expected finite numbers, got others"
            raise UserInputError.make("E_TEACHER", text)
        # A clone made outside is an ordinary tensor, which autograd may save.
        return logits.clone()

    def labels(self, views: Tensor, temperature: float) -> Tensor:
        """Return soft labels (N, C): softmax(logits / T)."""
        return self.labels_of(self.logits(views), temperature)

    def embeddings(self, views: Tensor) -> Tensor:
        """Return what is left to turn into labels: the logits."""
        return self.logits(views)

    def labels_of(self, embeddings: Tensor, temperature: float | None) -> Tensor:
        """Return soft labels of logits at T, which is 1 if it is None."""
        return torch.softmax(embeddings / (temperature or 1.0), dim=1)

    def logits_of(self, embeddings: Tensor) -> Tensor:
        """Return the logits."""
        return embeddings
