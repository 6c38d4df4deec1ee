"""The teacher as a function: views in [0, 1] to logits of the data set's classes.

A teacher takes *views* and prepares them itself, so fit, selection and students can give the same
tensor to teacher and projector. Several teachers give the mean of their logits, as the paper
combines its weak teachers (arXiv 2408.08201).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.archive.format.record import Run, SourceRecord
    from hellofmt.teacher.rule import InputRule


@dataclass(frozen=True)
class Origin:
    """Where a teacher's network comes from, for the record.

    Attributes:
        text: in the words of whoever named it, without paths.
        network: the name it was built by; empty where nobody knows.
        step: gradient steps it was trained for.
        accuracy: percent, as measured when it was trained.
        trained: the run that trained it.
        trained_on: images of that run.
    """

    text: str
    network: str = ""
    step: int | None = None
    accuracy: float | None = None
    trained: Run | None = None
    trained_on: SourceRecord | None = None


_UNKNOWN: Final = Origin("a program that called the library")
# Most pixels in one call of a network, 128 images of 224 px; a teacher may enlarge its views.
_CALL_PIXELS = 128 * 224 * 224


class Teacher(nn.Module):
    """A network together with its input rule, frozen and in eval mode.

    Attributes:
        network: takes images as the rule prepares them.
        rule: how images reach the network.
        columns: outputs that stand for the data set's classes, in label order; None for all.
        origin: where the network is from, for the record.

    Example:
        >>> import torch
        >>> from hellofmt.teacher import InputRule, build_network, load_teacher, save_teacher
        >>> teacher = Teacher(build_network("cnn", classes=3, size=16), InputRule(size=16))
        >>> teacher(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 3])
        >>> save_teacher(teacher, "teacher.safetensors")
        >>> load_teacher("teacher.safetensors", "cnn", 3).rule == teacher.rule
        True
    """

    mean: Tensor
    std: Tensor
    _chosen: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        rule: InputRule,
        columns: Sequence[int] | None = None,
        origin: Origin = _UNKNOWN,
    ) -> None:
        """Wrap ``network``; it is frozen in place."""
        super().__init__()
        self.network = network
        self.rule = rule
        self.origin = origin
        self.columns = None if columns is None else tuple(columns)
        chosen = None if columns is None else torch.tensor(list(columns))
        self.register_buffer("_chosen", chosen, persistent=False)
        # The rule says what they are; a state dict is the network's alone.
        self.register_buffer("mean", torch.tensor(rule.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(rule.std).view(3, 1, 1), persistent=False)
        # One layout, so that a teacher read from a file gives the bits of the trained one.
        self.to(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)

    def extra_repr(self) -> str:
        """Show rule and columns: what is computed depends on them, so digests must."""
        rule = self.rule.to_json()
        del rule["source"]
        return f"{rule}, columns={self.columns}"

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: running statistics must not move while labelling."""
        del mode
        return super().train(False)

    def forward(self, views: Tensor) -> Tensor:
        """Return logits (N, C) of views (N, 3, S, S), float32 in [0, 1]."""
        side = self.rule.size or views.shape[-1]
        parts = [self._logits(part) for part in views.split(max(1, _CALL_PIXELS // side**2))]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        return logits if self._chosen is None else logits.index_select(1, self._chosen)

    def _logits(self, views: Tensor) -> Tensor:
        images = (self.rule.resized(views) - self.mean) / self.std
        return self.network(images.contiguous(memory_format=torch.channels_last))


class TeacherPool(nn.Module):
    """Several teachers as one: the mean of their logits."""

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        """Join ``teachers``, each from views to logits of the same classes."""
        super().__init__()
        if not teachers:
            raise ValueError("teachers: expected at least one, got none")
        self.teachers = nn.ModuleList(teachers)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> TeacherPool:
        """Stay in eval mode."""
        del mode
        return super().train(False)

    def forward(self, views: Tensor) -> Tensor:
        """Return mean logits (N, C) of views (N, 3, S, S), float32 in [0, 1]."""
        return torch.stack([teacher(views) for teacher in self.teachers]).mean(0)


def device_of(function: object) -> torch.device:
    """Return the device of a network's tensors; a bare function takes CPU tensors."""
    if isinstance(function, nn.Module):
        for tensor in (*function.parameters(), *function.buffers()):
            return tensor.device
    return torch.device("cpu")
