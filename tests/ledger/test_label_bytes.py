"""Bytes against the arithmetic of the paper and of published label files."""

from __future__ import annotations

import pytest

from hellofmt import ledger

MIB, GIB = 2**20, 2**30


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
