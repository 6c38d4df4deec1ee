"""Bytes against the arithmetic of the paper and of published label files."""

from __future__ import annotations

from types import SimpleNamespace

import builders
import numpy as np
import pytest

from hellofmt import ledger
from hellofmt.archive.format.manifest import UNSET


def fake_file(*, images=True, packed=False):
    sections = {"classes": 100, "adapter": 4000, "head": 900, "probes": 100, "card": 70}
    if images:
        sections["index"] = 300
    if packed:
        sections["pixels"] = 768
    manifest = SimpleNamespace(
        classes=10,
        base=SimpleNamespace(arch=SimpleNamespace(embed_dim=1024)),
        functions=[
            SimpleNamespace(
                name="default", adapter=builders.paper_adapter(), head=builders.paper_head()
            )
        ],
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
    file.manifest = SimpleNamespace(classes=10, base=UNSET, functions=UNSET)
    file.section_sizes = lambda: {"classes": 100, "index": 300}
    account = ledger.ledger_of(file)
    assert (account.payload, account.values, account.base) == (0, 0, 0)
