"""Bytes against the arithmetic of the paper and of published label files."""

from __future__ import annotations

import math
from types import SimpleNamespace

import builders
import numpy as np
import pytest
import torch

from hellofmt.archive.format.compress import compress
from hellofmt.archive.format.implied import expected_tensors
from hellofmt.archive.format.label_function import Adapter, Head
from hellofmt.archive.format.tensors import StoredTensor, serialize_tensors
from hellofmt.ledger import sizes
from hellofmt.projector.quantise import write_matrix

MIB, GIB = 2**20, 2**30


def test_values_of_the_papers_presets():
    assert sizes.factor_values(builders.paper_adapter(), None, 1024, 1000) == 557_784
    assert (
        sizes.factor_values(builders.paper_adapter(), builders.paper_head(), 1024, 1000) == 816_856
    )
    assert (
        sizes.factor_values(builders.paper_adapter(), builders.paper_head(100, 64), 1024, 100)
        == 629_720
    )
    # A stored start beside factors is zeros.
    assert sizes.factor_values(None, builders.paper_head(start="stored"), 1024, 1000) == 128 * 2024
    assert sizes.factor_values(None, None, 1024, 1000) == 0


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
    assert sizes.model_bytes(816_856, storage) == expected


def written_bytes(section, **groups):
    """Bytes of the section the archive's own writer makes of what a manifest implies."""
    function = SimpleNamespace(name="default", **{section: groups[section]})
    manifest = SimpleNamespace(functions=[function], base=BASE, classes=groups.get("classes"))
    item_bytes = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
    made = {
        name: StoredTensor(dtype, shape, bytes(math.prod(shape) * item_bytes[dtype]))
        for name, (dtype, shape) in expected_tensors(manifest, section).items()
    }
    return len(serialize_tensors(made))


BASE = SimpleNamespace(arch=SimpleNamespace(embed_dim=1024))
STORAGES = ["float32", "float16", "bfloat16", "int8", "int4"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", ["text", "stored", "text and bias"])
@pytest.mark.parametrize("classes", [1000, 11])
def test_section_bytes_are_those_the_writer_makes(storage, kind, classes):
    adapter = builders.paper_adapter(storage)
    assert sizes.adapter_bytes(adapter) == written_bytes("adapter", adapter=adapter)
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
    assert sizes.head_bytes(head, 1024, classes) == expected


@pytest.mark.parametrize("storage", STORAGES)
def test_a_head_of_two_factors_weighs_what_these_do(storage):
    classes, dim, rank = 200, 320, 8
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape) for shape in ((rank, dim), (classes, rank)))
    factors = {"a": [rank, dim], "b": [classes, rank], "scale": "1.0"}
    head = Head(
        bias=False, link="softmax", start="stored", storage=storage, temperature="4.0", **factors
    )
    tensors = {"logit_scale": StoredTensor.from_numpy(np.ones(1, np.float32))}
    zeros = np.zeros((classes, dim))
    for name, matrix in (("weight", zeros), ("weight::A", a), ("weight::B", b)):
        tensors |= write_matrix(name, torch.from_numpy(matrix), storage)
    stored = compress(serialize_tensors(tensors))
    whole = sizes.head_bytes(head, dim, classes)
    # Compression takes something off the factors, most off bfloat16, and the zeros cost a little.
    assert stored is not None
    assert 0.7 * whole < len(stored) < whole + 300
    assert whole < 0.2 * len(serialize_tensors(tensors))
    assert sizes.factor_values(None, head, dim, classes) == rank * (classes + dim)


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (2, 1000), (2, 21_841)])
def test_probe_bytes_are_those_the_writer_makes(count, classes):
    probes = SimpleNamespace(count=count)
    assert sizes.probe_bytes(count, classes) == written_bytes(
        "probes", probes=probes, classes=classes
    )


def test_an_adapter_without_targets_is_a_header():
    adapter = Adapter(targets=[])
    assert sizes.adapter_bytes(adapter) == written_bytes("adapter", adapter=adapter)


@pytest.mark.parametrize(("classes", "parameters"), [(1000, 11_689_512), (100, 11_227_812)])
def test_parameters_of_resnet18(classes, parameters):
    assert sizes.resnet18_parameters(classes) == parameters


def test_the_papers_ratio_is_ipc_50_at_one_byte_per_value():
    labels = sizes.stored_label_bytes(50_000, 1000, 300)
    assert sizes.model_bytes(816_856, "int8") / labels == pytest.approx(2.7e-5, rel=0.01)


def test_teacher_bytes_of_resnet18():
    weights = [sizes.model_bytes(11_689_512, s) for s in ("float32", "float16", "int8")]
    assert [round(size / 1e6, 1) for size in weights] == [46.8, 23.4, 11.7]


def test_data_sets_that_must_share_rn50():
    shared = sizes.break_even_data_sets(38_316_896, 11_689_512, 870_040)
    assert shared == pytest.approx(3.54, abs=0.01)
    assert sizes.break_even_data_sets(38_316_896, 870_040, 870_040) is None


def test_stored_labels_of_imagenet_are_the_papers_mib_and_gib():
    assert sizes.stored_label_bytes(1000, 1000, 300) / MIB == pytest.approx(572.2, abs=0.05)
    assert sizes.stored_label_bytes(200_000, 1000, 300) / GIB == pytest.approx(111.8, abs=0.05)
    assert sizes.stored_label_bytes(10_000, 1000, 300) == 6_000_000_000


@pytest.mark.parametrize(("ipc", "published"), [(10, 5.67), (50, 28.33), (200, 113.33)])
def test_view_records_explain_published_label_files(ipc, published):
    images = 1000 * ipc
    size = sizes.stored_label_bytes(images, 1000, 300) + sizes.view_record_bytes(images, 300)
    assert size / GIB == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(
    ("images", "published"),
    # GiB of pruned and quantised labels at 40, 80 and 200 times (he-y/soft-label-pruning-for-
    # dataset-distillation).
    [(10_000, (0.13, 0.07, 0.03)), (50_000, (0.63, 0.37, 0.14)), (200_000, (2.54, 1.47, 0.58))],
)
def test_pruned_labels_have_about_the_published_sizes(images, published):
    for ratio, size in zip(sizes.PRUNING_RATIOS, published, strict=True):
        counted = sizes.pruned_label_bytes(images, 1000, 300, ratio) / GIB
        # Published with two decimals, of which 0.03 has one digit.
        assert counted == pytest.approx(size, rel=0.13, abs=0.005)


def test_pruned_labels_round_up():
    # Three rows of 4 bytes and 29 of view record.
    assert sizes.pruned_label_bytes(3, 2, 1, 1) == 99
    assert sizes.pruned_label_bytes(3, 2, 1, 40) == 3


@pytest.mark.parametrize(
    ("classes", "k", "expected"), [(256, 5, 15), (257, 5, 20), (65_536, 5, 20), (65_537, 5, 30)]
)
def test_top_k_pays_for_its_indices(classes, k, expected):
    assert sizes.top_k_label_bytes(1, classes, 1, k) == expected
    assert sizes.top_k_label_bytes(7, classes, 3, k) == 21 * expected
