"""Train a student from a webdataset pipeline of your own, and write it to ``student.pth``.

    python with_webdataset.py FILE.hello [EPOCHS]

The pipeline makes the views, and the label function labels whatever it is shown. It was fitted to
views as the file describes them, so these are cropped in the same range.
"""

from __future__ import annotations

import sys

import torch
import torchvision
import webdataset
from torch.nn import functional
from torchvision.transforms import v2

import hellofmt


def train(file: str, epochs: int = 300) -> None:
    """Train on ``file`` alone."""
    labeler = hellofmt.Labeler.from_file(file)
    with hellofmt.open(file) as archive:
        views = archive.manifest.views
    scale, ratio = ([float(end) for end in pair] for pair in (views.crop_scale, views.crop_ratio))
    pipeline = webdataset.DataPipeline(
        hellofmt.webdataset_samples(file),
        webdataset.shuffle(1000),
        webdataset.decode("torchrgb"),
        webdataset.to_tuple("png;jpg;webp"),
        webdataset.map_tuple(v2.RandomResizedCrop(views.size, scale, ratio)),
        webdataset.batched(50),
    )
    normalise = v2.Normalize([*map(float, views.mean)], [*map(float, views.std)])
    student = torchvision.models.resnet18(num_classes=labeler.classes)
    optimizer = torch.optim.AdamW(student.parameters())
    for epoch in range(epochs):
        for (images,) in pipeline:
            logits = student(normalise(images)) / labeler.temperature
            log_p = functional.log_softmax(logits, dim=1)
            loss = functional.kl_div(log_p, labeler.labels(images), reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        sys.stdout.write(f"epoch {epoch + 1}: loss {loss.item():.4f} in the last batch\n")
    torch.save(student.state_dict(), "student.pth")


if __name__ == "__main__":
    train(sys.argv[1], *map(int, sys.argv[2:]))
