"""Train a student with Accelerate, on one device or many, and write it to ``student.pth``.

    accelerate launch with_accelerate.py FILE.hello [EPOCHS]

Without EPOCHS it trains for 300.
"""

from __future__ import annotations

import sys

import torch
import torchvision
from accelerate import Accelerator
from torch.nn import functional

import hellofmt


def train(file: str, epochs: int = 300) -> None:
    """Train on ``file`` alone; ``prepare`` divides the rows among the processes."""
    accelerator = Accelerator()
    dataset = hellofmt.HelloDataset(file)
    loader = torch.utils.data.DataLoader(dataset, batch_size=50, shuffle=True)
    network = torchvision.models.resnet18(num_classes=len(dataset.classes))
    optimizer = torch.optim.AdamW(network.parameters())
    student, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        for images, labels in loader:
            log_p = functional.log_softmax(student(images) / dataset.temperature, dim=1)
            loss = functional.kl_div(log_p, labels, reduction="batchmean")
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.4f} in the last batch")
    accelerator.save(accelerator.unwrap_model(student).state_dict(), "student.pth")


if __name__ == "__main__":
    train(sys.argv[1], *map(int, sys.argv[2:]))
