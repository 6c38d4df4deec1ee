"""Train a student with Lightning, and write it to ``student.pth``.

    python with_lightning.py FILE.hello [EPOCHS]

Without EPOCHS it trains for 300.
"""

from __future__ import annotations

import sys

import lightning
import torch
import torchvision
from torch import Tensor
from torch.nn import functional

import hellofmt


class Student(lightning.LightningModule):
    """A ResNet-18 that learns soft labels of ``temperature``."""

    def __init__(self, classes: int, temperature: float) -> None:
        """Give the network ``classes`` outputs."""
        super().__init__()
        self.network = torchvision.models.resnet18(num_classes=classes)
        self.temperature = temperature

    def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
        """The loss of a batch of normalised images and their soft labels."""
        images, labels = batch
        log_p = functional.log_softmax(self.network(images) / self.temperature, dim=1)
        loss = functional.kl_div(log_p, labels, reduction="batchmean")
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW as it comes."""
        return torch.optim.AdamW(self.parameters())


def train(file: str, epochs: int = 300) -> None:
    """Train on ``file`` alone; Lightning leaves a ``HelloLoader`` as it is."""
    loader = hellofmt.HelloLoader(file, batch_size=50)
    student = Student(len(loader.dataset.classes), loader.dataset.temperature)
    lightning.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False).fit(
        student, loader
    )
    torch.save(student.network.state_dict(), "student.pth")


if __name__ == "__main__":
    train(sys.argv[1], *map(int, sys.argv[2:]))
