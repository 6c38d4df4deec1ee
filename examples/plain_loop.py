"""Train a student in a plain loop, and write it to ``student.pth``.

    python plain_loop.py FILE.hello [EPOCHS]

Without EPOCHS it trains for 300.
"""

from __future__ import annotations

import sys

import torch
import torchvision
from torch.nn import functional

import hellofmt


def train(file: str, epochs: int = 300) -> None:
    """Train on ``file`` alone: images and labels are made on the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = hellofmt.HelloLoader(file, batch_size=50, device=device)
    temperature = loader.dataset.temperature
    student = torchvision.models.resnet18(num_classes=len(loader.dataset.classes)).to(device)
    optimizer = torch.optim.AdamW(student.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for images, labels in loader:
            log_p = functional.log_softmax(student(images) / temperature, dim=1)
            loss = functional.kl_div(log_p, labels, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        schedule.step()
        sys.stdout.write(f"epoch {epoch + 1}: loss {total.item() / len(loader):.4f}\n")
    torch.save(student.state_dict(), "student.pth")


if __name__ == "__main__":
    train(sys.argv[1], *map(int, sys.argv[2:]))
