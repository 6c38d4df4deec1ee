"""Label millions of images on many machines: soft labels as Parquet, a row for each image.

    python ray_label.py FILE.hello IMAGES OUT WORKERS [BASE]

Every machine of the cluster sees all paths. Each worker has a GPU if the cluster has any. Columns
are ``row``, ``name`` and ``label``, float16 (C,), of the image's centre at the archive's view size
and temperature. OUT gets its name when it is complete.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hellofmt
from hellofmt.projector import Labeler
from hellofmt.sources import decode_centre, open_source


class Labels:
    """A worker of ``map_batches``."""

    def __init__(self, file: str, images: str, work: str, base: str | None = None) -> None:
        """Load the label function of ``file`` once, and the listing that is kept in ``work``."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._labeler = Labeler.from_file(file, base, device=device)
        self._source = open_source(images, work=work)
        with hellofmt.open(file) as archive:
            self._size = archive.manifest.views.size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Label the images whose rows are in the column ``id``."""
        rows = batch["id"].tolist()
        squares = np.stack([decode_centre(self._source, row, self._size) for row in rows])
        labels = self._labeler.labels(torch.from_numpy(squares).permute(0, 3, 1, 2) / 255)
        names = np.array([self._source.name_of(row) for row in rows])
        return {"row": batch["id"], "name": names, "label": labels.cpu().numpy().astype("<f2")}


if __name__ == "__main__":
    import ray

    file, images, out, workers, *base = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=Path(out).absolute().parent) as folder:
        count = len(open_source(images, work=folder))
        rows = ray.data.range(count).map_batches(
            Labels,
            fn_constructor_args=(file, images, folder, *base),
            batch_size=256,
            concurrency=int(workers),
            num_cpus=0.5,  # Else workers may reserve every core, and nobody reads or writes.
            num_gpus=int("GPU" in ray.cluster_resources()),
        )
        rows.write_parquet(f"{folder}/labels")
        Path(folder, "labels").rename(out)
