"""Bytes against the arithmetic of the paper and of published label files."""

from __future__ import annotations

import math
from types import SimpleNamespace

import builders
import pytest

from hellofmt import ledger
from hellofmt.archive import StoredTensor
from hellofmt.archive.format import tensors
from hellofmt.archive.format.manifest import Adapter, Head


def test_values_of_the_papers_presets():
    assert ledger.factor_values(builders.paper_adapter(), None, 1024, 1000) == 557_784
    assert (
        ledger.factor_values(builders.paper_adapter(), builders.paper_head(), 1024, 1000) == 816_856
    )
    assert (
        ledger.factor_values(builders.paper_adapter(), builders.paper_head(100, 64), 1024, 100)
        == 629_720
    )
    assert ledger.factor_values(None, builders.paper_head(start="stored"), 1024, 1000) == (
        1024 * 1000 + 128 * 2024
    )
    assert ledger.factor_values(None, None, 1024, 1000) == 0


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("float32", 3_267_424),
        ("float16", 1_633_712),
        ("bfloat16", 1_633_712),
        ("int8", 816_856),
        ("int4", 408_428),
    ],
)
def test_bytes_of_816856_values(storage, expected):
    assert ledger.model_bytes(816_856, storage) == expected


def written_bytes(section, **groups):
    """Bytes of the section the archive's own writer makes of what a manifest implies."""
    function = SimpleNamespace(name="default", **{section: groups[section]})
    manifest = SimpleNamespace(functions=[function], base=BASE, classes=groups.get("classes"))
    item_bytes = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
    made = {
        name: StoredTensor(dtype, shape, bytes(math.prod(shape) * item_bytes[dtype]))
        for name, (dtype, shape) in tensors.expected_tensors(manifest, section).items()
    }
    return len(tensors.serialize_tensors(made))


BASE = SimpleNamespace(arch=SimpleNamespace(embed_dim=1024))
STORAGES = ["float32", "float16", "bfloat16", "int8", "int4"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", ["text", "stored", "text and bias", "both"])
@pytest.mark.parametrize("classes", [1000, 11])
def test_section_bytes_are_those_the_writer_makes(storage, kind, classes):
    adapter = builders.paper_adapter(storage)
    assert ledger.adapter_bytes(adapter) == written_bytes("adapter", adapter=adapter)
    factors = {} if kind == "stored" else {"a": [7, 1024], "b": [classes, 7], "scale": "1.0"}
    head = Head(
        bias=kind == "text and bias",
        link="softmax",
        start="text" if kind.startswith("text") else "stored",
        storage=storage,
        temperature="20.0",
        **factors,
    )
    expected = written_bytes("head", head=head, base=BASE, classes=classes)
    assert ledger.head_bytes(head, 1024, classes) == expected


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (2, 1000), (2, 21_841)])
def test_probe_bytes_are_those_the_writer_makes(count, classes):
    probes = SimpleNamespace(count=count)
    assert ledger.probe_bytes(count, classes) == written_bytes(
        "probes", probes=probes, classes=classes
    )


def test_an_adapter_without_targets_is_a_header():
    adapter = Adapter(targets=[])
    assert ledger.adapter_bytes(adapter) == written_bytes("adapter", adapter=adapter)


@pytest.mark.parametrize(("classes", "parameters"), [(1000, 11_689_512), (100, 11_227_812)])
def test_parameters_of_resnet18(classes, parameters):
    assert ledger.resnet18_parameters(classes) == parameters


def test_the_papers_ratio_is_ipc_50_at_one_byte_per_value():
    labels = ledger.stored_label_bytes(50_000, 1000, 300)
    assert ledger.model_bytes(816_856, "int8") / labels == pytest.approx(2.7e-5, rel=0.01)


def test_teacher_bytes_of_resnet18():
    sizes = [ledger.model_bytes(11_689_512, s) for s in ("float32", "float16", "int8")]
    assert [round(size / 1e6, 1) for size in sizes] == [46.8, 23.4, 11.7]


def test_data_sets_that_must_share_rn50():
    shared = ledger.break_even_data_sets(38_316_896, 11_689_512, 870_040)
    assert shared == pytest.approx(3.54, abs=0.01)
    assert ledger.break_even_data_sets(38_316_896, 870_040, 870_040) is None
