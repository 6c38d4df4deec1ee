"""The ledger against the arithmetic of the paper and of published label files."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from hellofmt import ledger
from hellofmt.archive import StoredTensor, tensors
from hellofmt.archive.manifest import UNSET, Adapter, Head, Target

MIB, GIB = 2**20, 2**30
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


def adapter_and_head_bytes(storage):
    shapes = [s for t in paper_adapter().targets for s in (t.a, t.b)]
    shapes += [(128, 1024), (1000, 128)]
    return sum(ledger.matrix_bytes(rows, columns, storage) for rows, columns in shapes)


def test_stored_labels_of_imagenet_are_the_papers_mib_and_gib():
    assert ledger.stored_label_bytes(1000, 1000, 300) / MIB == pytest.approx(572.2, abs=0.05)
    assert ledger.stored_label_bytes(200_000, 1000, 300) / GIB == pytest.approx(111.8, abs=0.05)
    assert ledger.stored_label_bytes(10_000, 1000, 300) == 6_000_000_000
    assert ledger.stored_label_bytes(10, 10, 1, value_bytes=4) == 400


@pytest.mark.parametrize(("ipc", "published"), [(10, 5.67), (50, 28.33), (200, 113.33)])
def test_view_records_explain_published_label_files(ipc, published):
    images = 1000 * ipc
    size = ledger.stored_label_bytes(images, 1000, 300) + ledger.view_record_bytes(images, 300)
    assert size / GIB == pytest.approx(published, rel=1e-3)


def test_values_of_the_papers_presets():
    assert ledger.factor_values(paper_adapter(), None, 1024, 1000) == 557_784
    assert ledger.factor_values(paper_adapter(), paper_head(), 1024, 1000) == 816_856
    assert ledger.factor_values(paper_adapter(), paper_head(100, 64), 1024, 100) == 629_720
    assert ledger.factor_values(None, paper_head(start="stored"), 1024, 1000) == (
        1024 * 1000 + 128 * 2024
    )
    assert ledger.factor_values(None, None, 1024, 1000) == 0


@pytest.mark.parametrize(
    ("storage", "values_alone", "with_scales"),
    [
        ("float32", 3_267_424, 3_267_424),
        ("float16", 1_633_712, 1_633_712),
        ("bfloat16", 1_633_712, 1_633_712),
        ("int8", 816_856, 870_040),
        ("int4", 408_428, 461_624),
    ],
)
def test_bytes_of_816856_values(storage, values_alone, with_scales):
    assert ledger.model_bytes(816_856, storage) == values_alone
    assert adapter_and_head_bytes(storage) == with_scales


def written_bytes(section, **groups):
    """Bytes of the section the archive's own writer makes of what a manifest implies."""
    absent = dict.fromkeys(("adapter", "head", "probes", "images", "base"), UNSET)
    manifest = SimpleNamespace(**{**absent, "classes": 1000, **groups})
    item_bytes = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
    made = {
        name: StoredTensor(dtype, shape, bytes(math.prod(shape) * item_bytes[dtype]))
        for name, (dtype, shape) in tensors.expected_tensors(manifest, section).items()
    }
    return len(tensors.serialize_tensors(section, made))


BASE = SimpleNamespace(arch=SimpleNamespace(embed_dim=1024))
STORAGES = ["float32", "float16", "bfloat16", "int8", "int4"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", ["text", "stored", "text and bias", "both"])
@pytest.mark.parametrize("classes", [1000, 11])
def test_section_bytes_are_those_the_writer_makes(storage, kind, classes):
    adapter = paper_adapter(storage)
    assert ledger.adapter_bytes(adapter) == written_bytes("adapter", adapter=adapter)
    factors = {} if kind == "stored" else {"a": [7, 1024], "b": [classes, 7]}
    head = Head(
        bias=kind == "text and bias",
        scale="1.0",
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


@pytest.mark.parametrize(
    ("images", "published"),
    # GiB of pruned and quantised labels at 40, 80 and 200 times (he-y/soft-label-pruning-for-
    # dataset-distillation).
    [(10_000, (0.13, 0.07, 0.03)), (50_000, (0.63, 0.37, 0.14)), (200_000, (2.54, 1.47, 0.58))],
)
def test_pruned_labels_have_about_the_published_sizes(images, published):
    for ratio, size in zip(ledger.PRUNING_RATIOS, published, strict=True):
        counted = ledger.pruned_label_bytes(images, 1000, 300, ratio) / GIB
        # Published with two decimals, of which 0.03 has one digit.
        assert counted == pytest.approx(size, rel=0.13, abs=0.005)


def test_pruned_labels_round_up():
    # Three rows of 4 bytes and 29 of view record.
    assert ledger.pruned_label_bytes(3, 2, 1, 1) == 99
    assert ledger.pruned_label_bytes(3, 2, 1, 40) == 3


@pytest.mark.parametrize(("classes", "parameters"), [(1000, 11_689_512), (100, 11_227_812)])
def test_parameters_of_resnet18(classes, parameters):
    assert ledger.resnet18_parameters(classes) == parameters


def test_the_papers_ratio_is_ipc_50_at_one_byte_per_value():
    labels = ledger.stored_label_bytes(50_000, 1000, 300)
    assert ledger.model_bytes(816_856, "int8") / labels == pytest.approx(2.7e-5, rel=0.01)


def test_an_odd_row_of_int4_is_padded_to_a_whole_byte():
    assert ledger.matrix_bytes(3, 5, "int4") == 3 * 3 + 3 * 4
    assert ledger.matrix_bytes(3, 4, "int4") == 3 * 2 + 3 * 4


def test_teacher_bytes_of_resnet18():
    sizes = [ledger.model_bytes(11_689_512, s) for s in ("float32", "float16", "int8")]
    assert [round(size / 1e6, 1) for size in sizes] == [46.8, 23.4, 11.7]


@pytest.mark.parametrize(
    ("classes", "k", "expected"), [(256, 5, 15), (257, 5, 20), (65_536, 5, 20), (65_537, 5, 30)]
)
def test_top_k_pays_for_its_indices(classes, k, expected):
    assert ledger.top_k_label_bytes(1, classes, 1, k) == expected
    assert ledger.top_k_label_bytes(7, classes, 3, k) == 21 * expected


@pytest.mark.parametrize("k", [0, 11])
def test_top_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"k: expected 1 <= k <= 10, got {k}"):
        ledger.top_k_label_bytes(1, 10, 1, k)


@pytest.mark.parametrize(("payload", "epochs"), [(0, 1), (199, 1), (200, 2), (201, 2), (2000, 11)])
def test_break_even_is_the_first_epoch_with_more_label_bytes(payload, epochs):
    assert ledger.break_even_epochs(payload, 10, 10) == epochs
    assert ledger.stored_label_bytes(10, 10, epochs) > payload
    assert ledger.stored_label_bytes(10, 10, epochs - 1) <= payload


def test_break_even_without_images_is_never():
    assert ledger.break_even_epochs(1000, 0, 10) is None


def test_data_sets_that_must_share_rn50():
    shared = ledger.break_even_data_sets(38_316_896, 11_689_512, 870_040)
    assert shared == pytest.approx(3.54, abs=0.01)
    assert ledger.break_even_data_sets(38_316_896, 870_040, 870_040) is None


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
