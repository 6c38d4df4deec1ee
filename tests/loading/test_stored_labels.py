from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch.utils.data import DataLoader

from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.loading import HelloDataset, HelloSampler, StoredLabels, write_labels
from hellofmt.loading.stored_labels import FORMS
from hellofmt.loading.views.table import ViewColumn as Col

EPOCHS = 2


@pytest.fixture(scope="module")
def dataset(mixing):
    return HelloDataset(mixing, seed=4)


@pytest.fixture(scope="module")
def stored(dataset, tmp_path_factory):
    """Directory of each form, written once."""
    folder = tmp_path_factory.mktemp("labels")
    for form in FORMS:
        write_labels(dataset, folder / form, epochs=EPOCHS, form=form, k=2, batch_size=4)
    write_labels(dataset, folder / "all", epochs=1, form="topk", k=3, batch_size=4)
    write_labels(dataset, folder / "one", epochs=1, form="pruned", k=1, batch_size=4)
    return folder


@pytest.fixture(scope="module")
def online(dataset):
    """Soft labels (epoch, row, class) in float64 and the views' tables."""
    labels, tables, logits = [], [], []
    for epoch in range(EPOCHS):
        views, table = dataset.draw(np.arange(11), epoch)
        logits.append(dataset.labeler().logits(views).double())
        labels.append(torch.softmax(logits[-1] / dataset.temperature, dim=1))
        tables.append(table)
    return torch.stack(labels), torch.stack(logits), tables


# float16 keeps 11 bits; of embeddings every feature is rounded, and CLIP's scale multiplies that.
TOLERANCE = {"safetensors": 3e-4, "fkd": 3e-3, "embeddings": 3e-3}


@pytest.mark.parametrize("form", TOLERANCE)
def test_replay_equals_the_labels_made_online(mixing, dataset, stored, online, form):
    replay = HelloDataset(mixing, seed=4, stored=stored / form)
    fresh = HelloDataset(mixing, seed=4)
    for workers in (0, 2):
        replay.set_epoch(0)
        fresh.set_epoch(0)
        for epoch in range(EPOCHS):
            pairs = []
            for each in (replay, fresh):
                batches = DataLoader(each, batch_size=4, num_workers=workers)
                pairs.append([torch.cat(parts) for parts in zip(*batches, strict=True)])
            assert torch.equal(pairs[0][0], pairs[1][0])
            assert (pairs[0][1].double() - online[0][epoch]).abs().max() < TOLERANCE[form]
    with pytest.raises(UserInputError, match=r"of 2 epochs are stored; expected .* got 2"):
        replay[0]


@pytest.mark.parametrize("form", ["safetensors", "fkd"])
def test_workers_change_no_bit(dataset, stored, tmp_path, form):
    write_labels(dataset, tmp_path / form, epochs=EPOCHS, form=form, k=2, batch_size=4, workers=2)
    files = sorted(path for path in (stored / form).rglob("*") if path.is_file())
    assert len(files) > EPOCHS
    for path in files:
        other = tmp_path / form / path.relative_to(stored / form)
        assert other.read_bytes() == path.read_bytes()


def test_rows_of_several_epochs_come_in_the_order_asked_for(dataset, stored, online):
    rows, epochs = np.array([7, 1, 1, 10]), np.array([1, 0, 1, 0])
    for form in TOLERANCE:
        labeler = dataset.labeler() if form == "embeddings" else None
        got = StoredLabels(stored / form).labels(rows, epochs, labeler=labeler)
        assert (got.double() - online[0][epochs, rows]).abs().max() < TOLERANCE[form]


def test_top_k_keeps_the_largest_and_spreads_the_rest(stored, online):
    rows, epochs = np.arange(11), np.full(11, 1)
    got = StoredLabels(stored / "topk").labels(rows, epochs)
    truth = online[0][1]
    values, classes = truth.topk(2, dim=1)
    assert (got.gather(1, classes) - values).abs().max() < 3e-4
    assert (got.sum(dim=1) - 1).abs().max() < 1e-3
    # With one class left over, what is spread is its own probability.
    assert (got - truth).abs().max() < 1e-3
    everything = StoredLabels(stored / "all").labels(rows, np.zeros(11, np.int64))
    assert (everything - online[0][0]).abs().max() < 3e-4


def test_top_k_files_are_tiny_vits_records(stored, online):
    data = (stored / "topk" / "epoch_1.bin").read_bytes()
    assert len(data) == 11 * (4 + 4 * 2)
    for row in range(11):
        record = data[12 * row : 12 * (row + 1)]
        assert np.frombuffer(record, "<i4", 1)[0] == row
        classes, values = np.frombuffer(record, "<i2", 2, 4), np.frombuffer(record, "<f2", 2, 8)
        truth = online[0][1][row]
        assert classes.tolist() == truth.topk(2).indices.tolist()
        assert np.abs(values - truth[classes.astype(int)].numpy()).max() < 3e-4


def test_safetensors_files_are_plain(stored, online, dataset):
    found = load_file(stored / "safetensors" / "epoch_1.safetensors")
    assert sorted(found) == ["labels", "views"]
    assert found["labels"].dtype == np.float16
    assert np.array_equal(found["views"], online[2][1])
    found = load_file(stored / "embeddings" / "epoch_0.safetensors")
    views, _ = dataset.draw(np.arange(11), 0)
    truth = dataset.labeler().embeddings(views).numpy()
    assert np.abs(found["labels"] - truth).max() < 5e-4
    facts = json.loads((stored / "topk" / "labels.json").read_text())
    assert facts["archive"] == dataset.id
    assert (facts["form"], facts["k"], facts["epochs"], facts["seed"]) == ("topk", 2, 2, 4)


def test_fkd_batches_say_what_was_seen(stored, online, dataset):
    sampler = HelloSampler(dataset, batch_size=4, seed=4)
    heights, widths = dataset.sizes
    for epoch in range(EPOCHS):
        for batch, indices in enumerate(sampler):
            path = stored / "fkd" / f"epoch_{epoch}" / f"batch_{batch}.safetensors"
            found = load_file(path)
            assert found["rows"].tolist() == [int(i) for i in indices]
            table = online[2][epoch][found["rows"]]
            for k, row in enumerate(table):
                size = heights[row[0]], widths[row[0]], heights[row[0]], widths[row[0]]
                crop = row[[Col.TOP, Col.LEFT, Col.HEIGHT, Col.WIDTH]]
                assert np.allclose(found["coords"][k] * size, crop, atol=1e-4)
                other = row[6]
                size = heights[other], widths[other], heights[other], widths[other]
                assert np.allclose(found["mix_coords"][k] * size, row[7:11], atol=1e-4)
                x0, y0, x1, y1 = found["mix_bbox"][k]
                assert [y0, x0, y1, x1] == row[12:16].tolist()
                share = 1 - (y1 - y0) * (x1 - x0) / 256
                assert found["mix_lam"][k] == pytest.approx(share, abs=1e-6)
                assert (found["flip"][k], found["mix_flip"][k]) == (row[5], row[11])
                assert found["mix_index"][k] == row[6]
            truth = online[1][epoch][found["rows"]]
            truth = truth - truth.amax(dim=1, keepdim=True)
            assert (torch.from_numpy(found["labels"]).double() - truth).abs().max() < 0.01


def test_another_temperature_needs_logits_or_embeddings(dataset, stored, online):
    rows, epochs = np.arange(11), np.zeros(11, np.int64)
    truth = torch.softmax(online[1][0] / 0.9, dim=1)
    for form in ("fkd", "embeddings"):
        got = StoredLabels(stored / form).labels(
            rows, epochs, labeler=dataset.labeler(), temperature=0.9
        )
        assert (got.double() - truth).abs().max() < 5e-3
    for form in ("safetensors", "topk", "pruned"):
        with pytest.raises(UserInputError, match=r"`temperature`: the stored labels have 2, got 0"):
            StoredLabels(stored / form).labels(rows, epochs, temperature=0.9)


def test_labels_of_something_else_are_refused(mixing, archive_of, stored, dataset):
    cases = [
        (HelloDataset, (archive_of(mix="none"),), {"seed": 4}, "archive; expected sha256:"),
        (HelloDataset, (mixing,), {"seed": 5}, "seed; expected 5, got 4"),
        (HelloDataset, (mixing,), {"seed": 4, "views": None}, "augmented; expected False"),
        (HelloDataset, (mixing,), {"seed": 4, "labels": "hard"}, "expected labels='soft', got"),
    ]
    for kind, arguments, options, expected in cases:
        with pytest.raises(UserInputError, match=expected):
            kind(*arguments, stored=stored / "safetensors", **options)
    with pytest.raises(UserInputError, match="stored embeddings; expected a labeler"):
        StoredLabels(stored / "embeddings").labels(np.array([0]), np.array([0]))


def damaged(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


DAMAGE = [
    ("safetensors", "epoch_0.safetensors", lambda d: d[:-3], "not a whole safetensors file"),
    ("safetensors", "epoch_0.safetensors", lambda d: b"\xff" * len(d), "not a whole safetensors"),
    (
        "safetensors",
        "epoch_0.safetensors",
        lambda d: d.replace(b"F16", b"I16"),
        "expected F16",
    ),
    ("safetensors", "epoch_0.safetensors", lambda d: d[:8] + b"[" + d[9:], "not a whole safet"),
    ("topk", "epoch_0.bin", lambda d: d[:-3], "the file is cut"),
    ("topk", "epoch_0.bin", lambda d: b"\x05" + d[1:], "records of other rows or classes"),
    ("fkd", "epoch_0/batch_1.safetensors", lambda d: d[:-200], "not a whole safetensors"),
    ("pruned", "epoch_0.bin", lambda d: d[:-3], "the file is cut"),
    ("pruned", "epoch_0.bin", lambda d: b"\x05" + d[1:], "records of other rows or classes"),
    ("pruned", "labels.json", lambda d: d.replace(b'"epochs": 2', b'"epochs": 0'), "at least 1, "),
    ("pruned", "labels.json", lambda d: d.replace(b'"pruned"', b'"teacher"'), "labels online; exp"),
    ("topk", "labels.json", lambda d: d.replace(b"topk", b"top9"), "no labels of schema"),
    ("topk", "labels.json", lambda d: d.replace(b'"k": 2', b'"k": -2'), "expected integers for"),
    ("topk", "labels.json", lambda _: b"{", "no labels of schema hello.labels/1"),
]


@pytest.mark.parametrize(("form", "name", "change", "expected"), DAMAGE)
def test_damaged_files_are_refused(stored, tmp_path, form, name, change, expected):
    shutil.copytree(stored / form, tmp_path / form)
    damaged(tmp_path / form / name, change)
    with pytest.raises(UserInputError, match=rf"E_DATA: stored labels .*: .*{expected}"):
        StoredLabels(tmp_path / form).labels(np.arange(11), np.zeros(11, np.int64))


def test_a_batch_that_lacks_rows_is_refused(stored, tmp_path):
    shutil.copytree(stored / "fkd", tmp_path / "fkd")
    folder = tmp_path / "fkd" / "epoch_0"
    shutil.copy(folder / "batch_0.safetensors", folder / "batch_1.safetensors")
    with pytest.raises(UserInputError, match="epoch_0`: rows are missing"):
        StoredLabels(tmp_path / "fkd").labels(np.array([0]), np.array([0]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"form": "pickle"},
            "`form`: expected safetensors or topk or fkd or embeddings or pruned,",
        ),
        ({"epochs": 0}, "`epochs`: expected at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size`: expected at least 1, got 0"),
        ({"form": "topk", "k": 4}, "`k`: expected 1 to 3, got 4"),
        ({"form": "pruned", "k": 0}, "`k`: expected 1 to 3, got 0"),
        ({"temperature": 0.0}, "`temperature`: expected a finite number > 0, got 0"),
        ({"temperature": float("inf")}, "`temperature`: expected a finite number > 0, got inf"),
    ],
)
def test_options_out_of_range_are_refused(dataset, tmp_path, options, expected):
    with pytest.raises(UserInputError, match=f"E_OPTION: {expected}"):
        write_labels(dataset, tmp_path / "x", **{"epochs": 1, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_complete_or_absent(dataset, tmp_path):
    def stop(done, _total):
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_labels(dataset, tmp_path / "x", epochs=2, batch_size=4, progress=stop)
    assert list(tmp_path.iterdir()) == []
    seen = []
    size = write_labels(
        dataset, tmp_path / "x", epochs=1, batch_size=4, progress=lambda *a: seen.append(a)
    )
    assert seen == [(4, 11), (8, 11), (11, 11)]
    assert size == sum(path.stat().st_size for path in (tmp_path / "x").iterdir())
    with pytest.raises(HelloIOError, match=r"E_TARGET: .* exists; name a new one"):
        write_labels(dataset, tmp_path / "x", epochs=1)


def channel_means(views):
    """Logits that NumPy can check."""
    return 10 * views.mean((2, 3)) - torch.arange(3)


def softmax_of_means(dataset, epoch, temperature):
    views, _ = dataset.draw(np.arange(11), epoch)
    logits = 10 * views.numpy().astype(np.float64).mean((2, 3)) - np.arange(3)
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def test_pruned_files_are_k_classes_and_k_values(stored, online):
    for epoch in range(EPOCHS):
        data = (stored / "pruned" / f"epoch_{epoch}.bin").read_bytes()
        # The ledger's rule for k values and their indices, at the published two bytes an index.
        assert len(data) == 11 * 2 * (2 + 2)
        got = StoredLabels(stored / "pruned").labels(np.arange(11), np.full(11, epoch)).numpy()
        for row in range(11):
            classes = np.frombuffer(data, "<i2", 2, 8 * row)
            values = np.frombuffer(data, "<f2", 2, 8 * row + 4).astype(np.float64)
            truth = online[0][epoch][row].numpy()
            assert classes.tolist() == np.argsort(-truth, kind="stable")[:2].tolist()
            assert np.abs(values - truth[classes]).max() < 3e-4
            whole = np.full(3, 1.0 - values.sum())
            whole[classes] = values
            assert np.abs(got[row] - whole).max() < 1e-6


def test_what_is_left_out_is_spread_evenly(stored, online):
    got = StoredLabels(stored / "one").labels(np.arange(11), np.zeros(11, np.int64)).numpy()
    truth = online[0][0].numpy()
    for row in range(11):
        top = truth[row].argmax()
        expected = np.full(3, (1 - truth[row][top]) / 2)
        expected[top] = truth[row][top]
        assert np.abs(got[row] - expected).max() < 3e-4


def test_pruned_labels_start_over_with_their_views(mixing, dataset, stored):
    replay = HelloDataset(mixing, seed=4, stored=stored / "pruned")
    facts = json.loads((stored / "pruned" / "labels.json").read_text())
    assert facts["cycles"] is True
    assert not any(StoredLabels(stored / form).cycles for form in FORMS if form != "pruned")
    passes = [replay.__getitems__(list(range(11))) for _ in range(2 * EPOCHS + 1)]
    views = [torch.stack([view for view, _ in items]) for items in passes]
    labels = [torch.stack([label for _, label in items]) for items in passes]
    for epoch in range(2 * EPOCHS + 1):
        again = epoch % EPOCHS
        assert torch.equal(views[epoch], views[again])
        assert torch.equal(labels[epoch], labels[again])
        fresh = HelloDataset(mixing, seed=4, labels="hard")
        fresh.set_epoch(again)
        assert torch.equal(views[epoch][7], fresh[7][0])
        # One class is left out of three, so the whole label is there.
        soft = dataset.labeler().labels(dataset.draw(np.arange(11), again)[0])
        assert (labels[epoch] - soft).abs().max() < 2e-3
    assert not torch.equal(views[0], views[1])
    assert np.array_equal(replay.table(np.arange(11), 5), dataset.table(np.arange(11), 1))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "embeddings"])
def test_labels_of_a_function_need_no_projector(archive_of, tmp_path, form):
    path = archive_of(mix="cutmix", mix_probability="0.5", with_projector=False)
    plain = HelloDataset(path, labels="hard", seed=2)
    with pytest.raises(UserInputError, match="`temperature`: expected a finite number > 0, got No"):
        write_labels(plain, tmp_path / "x", epochs=1, form=form, k=2, label_function=channel_means)
    options = {"epochs": 2, "form": form, "k": 2, "batch_size": 4, "temperature": 3.0}
    write_labels(plain, tmp_path / "x", **options, label_function=channel_means)
    own = HelloDataset(path, seed=2, label_function=channel_means, temperature=3.0)
    write_labels(own, tmp_path / "y", **options)
    for name in sorted(file.relative_to(tmp_path / "x") for file in (tmp_path / "x").rglob("*.*")):
        if (tmp_path / "x" / name).is_file():
            assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    assert json.loads((tmp_path / "x" / "labels.json").read_text())["label_function"] is None
    replay = HelloDataset(path, seed=2, stored=tmp_path / "x")
    assert replay.temperature == 3.0
    for epoch in range(2):
        got = np.stack([label.numpy() for _, label in replay.__getitems__(list(range(11)))])
        truth = softmax_of_means(plain, epoch, 3.0)
        assert np.abs(got - truth).max() < 3e-3


def test_the_temperature_of_stored_labels_is_the_data_sets(mixing, dataset, tmp_path):
    write_labels(dataset, tmp_path / "x", epochs=1, batch_size=11, temperature=7.0)
    replay = HelloDataset(mixing, seed=4, stored=tmp_path / "x")
    assert (dataset.temperature, replay.temperature) == (2.0, 7.0)
    views, _ = dataset.draw(np.arange(11), 0)
    got = StoredLabels(tmp_path / "x").labels(np.arange(11), np.zeros(11, np.int64))
    assert (got - dataset.labeler().labels(views, 7.0)).abs().max() < 3e-4


def test_embeddings_of_a_function_and_labels_of_stored_ones_are_refused(
    mixing, dataset, stored, tmp_path
):
    with pytest.raises(UserInputError, match="E_OPTION: form `embeddings` of a label function"):
        write_labels(
            dataset, tmp_path / "x", epochs=1, form="embeddings", label_function=channel_means
        )
    replay = HelloDataset(mixing, seed=4, stored=stored / "topk")
    with pytest.raises(UserInputError, match="E_OPTION: a data set with stored labels; expected"):
        write_labels(replay, tmp_path / "x", epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_names_the_directory_and_leaves_nothing(dataset, tmp_path, monkeypatch, form):
    full = f"Error while serializing: I/O error: x (os error {errno.ENOSPC})"

    def save(*_):
        raise SafetensorError(full)

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.modules[write_labels.__module__], "save_file", save)
    if form not in ("fkd", "safetensors"):
        monkeypatch.setattr(Path, "open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_labels(dataset, tmp_path / "labels", epochs=1, form=form, k=2)
    assert caught.value.filename == str(tmp_path / "labels")
    assert not list(tmp_path.iterdir())
