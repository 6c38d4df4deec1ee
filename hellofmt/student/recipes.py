"""Training recipes: every constant that decides a student's accuracy, with where it comes from.

The recipe moves results more than the method does (EDC's ablation lifts RDED from 25.8 to 42.3 %
on ImageNet-1K by schedule and batch size alone), so a recipe is a value with a name, and accuracies
are comparable only under the same one. A recipe never changes with the kind of label beyond its
loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from hellofmt.errors import UserInputError, printable

__all__ = ["RECIPES", "Loss", "Recipe", "recipe"]

Loss = Literal["kl", "mse_ce", "ce"]


@dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    Attributes:
        name: what ``recipe`` finds it by.
        loss: ``kl``: KL(labels ‖ softmax(student / T)), mean over the batch, no T**2;
            ``mse_ce``: mean squared error of logits + ``hard_weight`` * cross-entropy of the hard
            label; ``ce``: cross-entropy of the hard label alone. Hard labels of mixed views are
            mixed by area.
        temperature: T of the ``kl`` loss for labels and student alike; None takes the T that the
            data set states, and its labels as they are.
        hard_weight: beta of ``mse_ce``.
        learning_rate: of AdamW with betas (0.9, 0.999).
        weight_decay: on weights of two or more dimensions only.
        schedule: ``cosine`` ends at 0; ``half_cosine`` is 0.5 (1 + cos(pi t / 2)), which ends at
            half the learning rate, as RDED's does.
        warmup: fraction of the steps with a linearly rising learning rate.
        batch_size: views per step; never more than the data set has images.
        epochs: passes over the distilled images, unless steps are given.
    """

    name: str
    loss: Loss
    temperature: float | None = None
    hard_weight: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["cosine", "half_cosine"] = "cosine"
    warmup: float = 0.0
    batch_size: int = 100
    epochs: int = 300

    @property
    def labels(self) -> Literal["soft", "logits", "hard"]:
        """What the loss reads from a data set, in the words of ``HelloDataset``."""
        kinds: dict[Loss, Literal["soft", "logits", "hard"]] = {
            "kl": "soft",
            "mse_ce": "logits",
            "ce": "hard",
        }
        return kinds[self.loss]


RECIPES: Final[dict[str, Recipe]] = {
    # HeLlO (arXiv 2408.08201): MSE + beta CE. That is `mse_gt` of G-VBSM and EDC, whose weights of
    # the cross-entropy are 0.1 (G-VBSM on ImageNet), 0.15 (CIFAR) and 0.025 (EDC).
    "hello": Recipe("hello", "mse_ce", hard_weight=0.1),
    # RDED (LINs-lab/RDED argument.py): KL at T = 20, AdamW 1e-3, decay 0.01, a cosine that stops at
    # half, 300 epochs.
    "rded": Recipe("rded", "kl", temperature=20.0, schedule="half_cosine"),
    # SRe2L (ImageNet): the same loss under a full cosine and batches of 1024.
    "sre2l": Recipe("sre2l", "kl", temperature=20.0, batch_size=1024),
    # The file says which temperature its labels were made for.
    "kl": Recipe("kl", "kl"),
    # The control: the same views, mixing, schedule and steps, without soft labels.
    "hard": Recipe("hard", "ce"),
}
"""Every recipe by name."""


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserInputError: unknown name (E_OPTION).
    """
    found = RECIPES.get(name)
    if found is None:
        raise UserInputError.make(
            "E_OPTION",
            f"unknown recipe `{printable(name)}`; expected one of {', '.join(RECIPES)}",
        )
    return found
