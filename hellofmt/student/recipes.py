"""Training recipes: every constant that determines a student's accuracy, with its source.

The recipe affects results more than the method does (EDC's ablation lifts RDED from 25.8 to 42.3 %
on ImageNet-1K by schedule and batch size alone), so a recipe is a named value, and accuracies are
comparable only under the same one. Only its loss depends on the kind of label. Where published
practice varies with data set and network (batch size, learning rate), the recipe has a table, and
``Recipe.settled`` looks values up.

Views are not part of a recipe: crops, flips and mixing belong to the archive, and are the same for
every student trained from it. There are two more differences from the published programs: learning
rates change with every step, not every epoch, and batches are filled across passes, so that none is
short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from hellofmt.errors import UserInputError, did_you_mean, printable
from hellofmt.runs.schedule import cosine

Loss = Literal["kl", "mse_ce", "ce"]

_LABELS: Final[dict[Loss, Literal["soft", "logits", "hard"]]] = {
    "kl": "soft",
    "mse_ce": "logits",
    "ce": "hard",
}
_EVALUATIONS: Final = 10


@dataclass(frozen=True)
class Recipe:
    """How to train a student.

    Attributes:
        name: the name that ``recipe`` looks up.
        loss: ``kl``: KL(labels ‖ softmax(student / T)), mean over the batch, no T**2;
            ``mse_ce``: mean squared error of logits + ``hard_weight`` * cross-entropy of the hard
            label; ``ce``: cross-entropy of the hard label alone. Hard labels of mixed views are
            mixed by area.
        temperature: T of the ``kl`` loss for labels and student alike; None takes the data set's T,
            and its labels unchanged.
        hard_weight: beta of ``mse_ce``.
        learning_rate: learning rate of AdamW with betas (0.9, 0.999) and epsilon 1e-8.
        weight_decay: weight decay of weights with two or more dimensions; others have none.
        muon: whether matrices are Muon's, at the same learning rate and decay; see
            ``hellofmt.student.optimiser``.
        schedule: ``cosine`` ends at 0; ``half_cosine`` is 0.5 (1 + cos(pi t / 2)), which ends at
            half the learning rate, as RDED's does; ``smoothed`` is that for 5/6 of the run, then
            its last value there times 1 - t, which falls to 0.
        warmup: fraction of the steps with a linearly rising learning rate.
        batch_size: views per step; never more than the data set has images.
        epochs: passes over the distilled images, unless steps are given.
        batch_sizes: (least images per class, views per step), descending; empty means
            ``batch_size`` for all.
        doubled: numbers of classes for which ``batch_sizes`` are doubled.
        batch_sizes_by_classes: (classes, views per step); takes precedence over ``batch_sizes``.
        learning_rates: (start of a network's name, learning rate); other networks use
            ``learning_rate``.
        evaluation_epochs: passes between measurements; None measures ten times, evenly over the
            run.
        evaluation_start: fraction of the run before the first measurement.
    """

    name: str
    loss: Loss
    temperature: float | None = None
    hard_weight: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    muon: bool = False
    schedule: Literal["cosine", "half_cosine", "smoothed"] = "cosine"
    warmup: float = 0.0
    batch_size: int = 100
    epochs: int = 300
    batch_sizes: tuple[tuple[int, int], ...] = ()
    doubled: tuple[int, ...] = ()
    batch_sizes_by_classes: tuple[tuple[int, int], ...] = ()
    learning_rates: tuple[tuple[str, float], ...] = ()
    evaluation_epochs: int | None = None
    evaluation_start: float = 0.0

    @property
    def labels(self) -> Literal["soft", "logits", "hard"]:
        """The ``labels`` of ``HelloDataset`` that the loss reads."""
        return _LABELS[self.loss]

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate at a step as a fraction of ``learning_rate``."""
        span = math.pi if self.schedule == "cosine" else math.pi / 2
        if self.schedule == "smoothed" and 6 * step > 5 * steps:
            return 0.5 * (1.0 + math.cos(span * 5 / 6)) * (1.0 - step / steps)
        return cosine(step, steps, warmup=self.warmup, span=span)

    def batch_size_for(self, images: int, classes: int) -> int:
        """Return the number of views per step for a data set of N >= 1 images; never more.

        A larger batch would only repeat images within a step.
        """
        size = dict(self.batch_sizes_by_classes).get(classes, 0)
        if not size:
            listed = (views for least, views in self.batch_sizes if images >= least * classes)
            # Fewer images per class than the table covers: use its smallest batch.
            least = self.batch_sizes[-1][1] if self.batch_sizes else self.batch_size
            size = next(listed, least) * (2 if classes in self.doubled else 1)
        return min(size, images)

    def learning_rate_for(self, network: str) -> float:
        """Return the learning rate for a network's name, ignoring the library before the colon."""
        plain = network.rpartition(":")[2]
        rates = (rate for start, rate in self.learning_rates if plain.startswith(start))
        return next(rates, self.learning_rate)

    def settled(self, network: str, images: int, classes: int) -> Recipe:
        """Return the recipe with batch size and learning rate for one data set and one network.

        ``network`` is the name of the student. The values stand in place of the tables.
        """
        return replace(
            self,
            batch_size=self.batch_size_for(images, classes),
            learning_rate=self.learning_rate_for(network),
            batch_sizes=(),
            doubled=(),
            batch_sizes_by_classes=(),
            learning_rates=(),
        )

    def evaluation_steps(self, steps: int, images: int) -> list[int]:
        """List the steps after which a student is measured, ascending, always including the last.

        A pass is ``images / batch_size`` steps.
        """
        if self.evaluation_epochs is None:
            candidates = {max(1, steps * k // _EVALUATIONS) for k in range(1, _EVALUATIONS + 1)}
        else:
            apart = self.evaluation_epochs * images / self.batch_size
            candidates = {round(apart * k) for k in range(1, int(steps / apart) + 1)}
        start = self.evaluation_start * steps
        return sorted({k for k in candidates if start < k < steps} | {steps})


# RDED (LINs-lab/RDED, argument.py and validation/main.py).
_RDED: Final = Recipe(
    "rded",
    "kl",
    # With CutMix; 4 with Mixup.
    temperature=20.0,
    learning_rate=1e-3,
    weight_decay=0.01,
    # Its cosine has twice the period of the run, so it stops at half the learning rate.
    schedule="half_cosine",
    epochs=300,
    batch_sizes=((50, 100), (10, 50), (1, 10)),
    doubled=(100, 1000),
    # Tiny-ImageNet.
    batch_sizes_by_classes=((200, 100),),
    # Omitted: 2e-3 in batches of 25 for conv3 taught by conv3 on CIFAR-100. RDED lists vit_b_16
    # and swin_v2_t.
    learning_rates=(
        ("vgg11", 5e-4),
        ("efficientnet_b0", 2e-3),
        ("mobilenet_v2", 2.5e-3),
        ("alexnet", 1e-4),
        ("vit", 1e-4),
        ("swin", 1e-4),
    ),
    # Every ten epochs of the last fifth; it reports the best.
    evaluation_epochs=10,
    evaluation_start=0.8,
)

RECIPES: Final[dict[str, Recipe]] = {
    # HeLlO (arXiv 2408.08201): MSE + beta CE. That is `mse_gt` of G-VBSM and EDC, whose weights of
    # the cross-entropy are 0.1 (G-VBSM on ImageNet), 0.15 (CIFAR) and 0.025 (EDC). The paper does
    # not state the rest; it compares with RDED, so the rest is RDED's.
    "hello": replace(_RDED, name="hello", loss="mse_ce", temperature=None, hard_weight=0.1),
    "rded": _RDED,
    # SRe2L (VILA-Lab/SRe2L, ImageNet): the same loss under a full cosine and batches of 1024,
    # AdamW 1e-3, decay 0.01, 300 epochs, measured every ten of them; it reports the best.
    "sre2l": Recipe(
        "sre2l",
        "kl",
        temperature=20.0,
        learning_rate=1e-3,
        weight_decay=0.01,
        schedule="cosine",
        batch_size=1024,
        epochs=300,
        evaluation_epochs=10,
    ),
    # Ours. The file says which temperature its labels were made for.
    "kl": Recipe("kl", "kl"),
    # For the best student, after RD3 (Zhong et al., "Rectified decoupled dataset distillation",
    # arXiv 2509.19743), which compares ways to train one: Muon in the place of AdamW lifts its
    # student from 39.4 to 47.0 % at 10 images per class. Its own constants could not be seen here.
    # Schedule, length and batch are EDC's for CIFAR-100 (arXiv 2404.13733; shaoshitong/EDC,
    # Branch_CIFAR_100/train/train.sh: `--ls-type cos2 --st 2 --epochs 1000 --batch-size 50`),
    # AdamW's constants EDC's for ImageNet-1K, and Muon's its authors' (`optimiser.py`). EDC
    # measures an average of the weights, `--ema 0.99`; here it is off.
    "strong": Recipe(
        "strong",
        "kl",
        learning_rate=1e-3,
        weight_decay=0.01,
        muon=True,
        schedule="smoothed",
        batch_size=50,
        epochs=1000,
    ),
    # The control: the same views, mixing, schedule and steps as `kl`, without soft labels.
    "hard": Recipe("hard", "ce"),
}
"""Every recipe by name."""


def recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        UserInputError: the name is unknown (E_OPTION).

    Example:
        >>> recipe("hello").loss
        'mse_ce'
    """
    result = RECIPES.get(name)
    if result is None:
        text = f"unknown recipe `{printable(name)}`; expected one of {', '.join(RECIPES)}"
        raise UserInputError.make("E_OPTION", text, advice=did_you_mean(name, RECIPES))
    return result
