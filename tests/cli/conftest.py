"""Small archives, folders and keys for the command line, made without torch."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

KEYS = ["cat", "dog", "owl"]


def png(seed, size=8, mode="RGB"):
    rng = np.random.default_rng(seed)
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(name="png")
def _png():
    return png


@pytest.fixture
def image_folder(tmp_path):
    """Three class folders with 2, 2 and 2 random 8 x 8 PNG files."""
    root = tmp_path / "images"
    for label, key in enumerate(KEYS):
        (root / key).mkdir(parents=True)
        for i in range(2):
            (root / key / f"{i}.png").write_bytes(png(10 * label + i))
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


def projector_part(classes=3, dim=8, rank=2, seed=0):
    from hellofmt.archive import ProjectorPart, decimal_string
    from hellofmt.archive.format.digest import base_digest
    from hellofmt.archive.format.label_function import Adapter, Head, Target
    from hellofmt.archive.format.manifest import Base
    from hellofmt.archive.format.tensors import StoredTensor

    rng = np.random.default_rng(seed)

    def half(*shape):
        return StoredTensor.from_numpy(rng.standard_normal(shape).astype(np.float16))

    arch = builders.vit(8, dim, width=dim, head_width=min(dim, 64))
    preprocess = builders.preprocess(8, "0.5", "0.25")
    tensors = "sha256:" + "ab" * 32
    base = Base(
        arch=arch,
        digest=base_digest(arch, preprocess, tensors),
        kind="seeded",
        name="tiny",
        preprocess=preprocess,
        tensors=tensors,
        seed=7,
    )
    adapter = Adapter(
        targets=[
            Target(
                a=[rank, dim],
                b=[3 * dim, rank],
                param="transformer.resblocks.0.attn.in_proj_weight",
                scale="1.0",
                shape=[3 * dim, dim],
                storage="float16",
            )
        ]
    )
    head = Head(
        bias=False,
        link="softmax",
        start="stored",
        storage="float16",
        temperature=decimal_string(4.0),
    )
    name = adapter.targets[0].param
    return ProjectorPart(
        base=base,
        adapter=adapter,
        head=head,
        adapter_tensors={f"{name}::A": half(rank, dim), f"{name}::B": half(3 * dim, rank)},
        head_tensors={
            "logit_scale": StoredTensor.from_numpy(np.array([1.5], np.float32)),
            "weight": half(classes, dim),
        },
        probe_logits=rng.standard_normal((2, classes)).astype(np.float32),
    )


@pytest.fixture
def make_projector(tmp_path):
    """Writes an archive that holds a label function and no images."""

    def make(name="p.hello", keys=KEYS, **parts):
        from hellofmt.archive import ClassLine, Draft, default_views, write_archive
        from hellofmt.archive.format.manifest import Dataset

        path = tmp_path / name
        draft = Draft(
            dataset=Dataset(
                name="fitted", version="2.0.0", license="MIT", method="hello", sources=["toy"]
            ),
            classes=[ClassLine(key, (f"a {key}",)) for key in keys],
            views=default_views(8),
            projector=projector_part(classes=len(keys), **parts),
        )
        write_archive(path, draft)
        return path

    return make


@pytest.fixture
def invoke():
    """Runs `hello` in this process; a foreign exception is a failure of the test."""

    def run(*args):
        from hellofmt_cli.main import hello

        result = CliRunner().invoke(hello, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def invoke_json(invoke):
    """Runs `hello ... --json` and parses what it printed."""

    def run(*args):
        result = invoke(*args, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture
def packed(image_folder, tmp_path, invoke):
    """An archive of the image folder: hard labels, one member per image."""
    path = tmp_path / "x.hello"
    result = invoke("pack", image_folder, "-o", path, "--layout", "files", "--name", "toy")
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture
def full(image_folder, tmp_path, invoke, make_projector):
    """An archive with images and a label function."""
    path = tmp_path / "full.hello"
    result = invoke(
        "pack", image_folder, "-o", path, "--projector", make_projector(), "--layout", "files"
    )
    assert result.exit_code == 0, result.stderr
    return path


def hello_command(*args):
    return [sys.executable, "-m", "hellofmt", *map(str, args)]


@pytest.fixture
def run_hello():
    """Runs `hello` as a process of its own."""

    def run(*args, **options):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(  # noqa: S603
            hello_command(*args),
            capture_output=True,
            text=True,
            env=env,
            timeout=300,
            check=False,
            **options,
        )

    return run


@pytest.fixture
def tree():
    """Every path below a folder, to see what a failed command left there."""

    def names(root: Path):
        return sorted(str(path.relative_to(root)) for path in root.rglob("*"))

    return names
