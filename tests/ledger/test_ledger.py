"""Bytes against the arithmetic of the paper and of published label files."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hellofmt import ledger
from hellofmt.archive.format.manifest import UNSET, Adapter, Head, Target

# (C_in, C_out) of the nineteen 3x3 convolutions of CLIP's RN50, stem first.
RN50_CONVOLUTIONS = (
    [(3, 32), (32, 32), (32, 64)]
    + [(64, 64)] * 3
    + [(128, 128)] * 4
    + [(256, 256)] * 6
    + [(512, 512)] * 3
)


def paper_adapter(storage="int8"):
    return Adapter(
        targets=[
            Target(
                a=[24, 3 * c_in],
                b=[3 * c_out, 24],
                param=f"conv{i}.weight",
                scale="1.0",
                shape=[c_out, c_in, 3, 3],
                storage=storage,
            )
            for i, (c_in, c_out) in enumerate(RN50_CONVOLUTIONS)
        ]
    )


def paper_head(classes=1000, rank=128, start="text"):
    return Head(
        bias=False,
        scale="1.0",
        start=start,
        storage="int8",
        temperature="20.0",
        a=[rank, 1024],
        b=[classes, rank],
    )


def fake_file(*, images=True, packed=False):
    sections = {"classes": 100, "adapter": 4000, "head": 900, "probes": 100, "card": 70}
    if images:
        sections["index"] = 300
    if packed:
        sections["pixels"] = 768
    manifest = SimpleNamespace(
        classes=10,
        base=SimpleNamespace(arch=SimpleNamespace(embed_dim=1024)),
        adapter=paper_adapter(),
        head=paper_head(),
    )
    index = SimpleNamespace(size=np.array([500, 268], np.uint64)) if images else None

    class File:
        size_bytes = 9000
        section_sizes = staticmethod(lambda: sections)

        def __len__(self):
            return 2 if images else 0

    file = File()
    file.manifest, file.index = manifest, index
    return file


@pytest.mark.parametrize("packed", [False, True])
def test_parts_add_up_to_the_file(packed):
    account = ledger.ledger_of(fake_file(packed=packed))
    assert account.payload == 5000
    assert account.pixels == 768
    assert account.parts() == {
        "pixels": 768,
        "label function": 5000,
        "index and classes": 400,
        "texts": 70,
        "framing": 9000 - 768 - 5000 - 400 - 70,
    }
    assert sum(account.parts().values()) == account.total == 9000
    assert account.values == 816_856
    assert account.labels(300) == 300 * 2 * 10 * 2
    assert account.ratio(300) == pytest.approx(5000 / 12_000)
    assert account.break_even() == 5000 // 40 + 1
    assert account.ratio(300, base=1000) == pytest.approx(6000 / 12_000)
    assert account.break_even(base=1000) == 6000 // 40 + 1


def test_a_projector_without_images_has_nothing_to_compare():
    account = ledger.ledger_of(fake_file(images=False))
    assert (account.images, account.pixels) == (0, 0)
    assert account.ratio(300) is None
    assert account.break_even() is None


def test_an_embedded_base_is_charged_apart():
    file = fake_file()
    sections = {**file.section_sizes(), "base": 1000}
    file.section_sizes = lambda: sections
    account = ledger.ledger_of(file)
    assert account.base == account.parts()["base"] == 1000
    assert account.payload == 5000


def test_images_alone_have_no_payload():
    file = fake_file()
    file.manifest = SimpleNamespace(classes=10, base=UNSET, adapter=UNSET, head=UNSET)
    file.section_sizes = lambda: {"classes": 100, "index": 300}
    account = ledger.ledger_of(file)
    assert (account.payload, account.values, account.base) == (0, 0, 0)
