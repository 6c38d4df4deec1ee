from __future__ import annotations

import copy
import functools
import gc
import operator
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from hellofmt.archive import (
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    open_archive,
    write_archive,
)
from hellofmt.errors import CorruptError, StateError, UserInputError
from hellofmt.loading import (
    HelloDataset,
    HelloLoader,
    HelloSampler,
    mixed_labels,
    normalise,
    render,
    view_table,
    write_labels,
)
from hellofmt.loading.views.table import plain_table
from hellofmt.projector import Labeler
from hellofmt.sources import pack_archive
from hellofmt.student import recipe
from hellofmt.student.batches import ArchiveBatches


def close(a, b, tolerance=1e-6):
    return bool((a - b).abs().max() < tolerance)


def expected_batch(dataset, pictures, rows, epochs):
    """(views, table) from the pure functions alone."""
    table = view_table(
        dataset.views,
        seed=dataset.seed,
        epochs=epochs,
        indices=np.asarray(rows),
        heights=np.array([p.shape[0] for p in pictures]),
        widths=np.array([p.shape[1] for p in pictures]),
        count=len(pictures),
    )
    return render(pictures, table, dataset.views), table


LOADERS = {
    "no workers": {"num_workers": 0},
    "two workers": {"num_workers": 2},
    "two persistent workers": {"num_workers": 2, "persistent_workers": True},
}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("how", LOADERS)
def test_three_passes_give_three_views_and_the_same_for_every_loader(
    mixing, pictures_of, how, shuffle
):
    dataset = HelloDataset(mixing, seed=5)
    dataset.labeler()
    pictures = pictures_of(11)
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(dataset, batch_size=4, shuffle=shuffle, generator=generator, **LOADERS[how])
    # The rows of a pass, from the loader itself: the first pixels do not tell them, the hard labels
    # neither, so the same seed draws them once more.
    twin = torch.Generator().manual_seed(1)
    order_of = DataLoader(
        list(range(11)), batch_size=4, shuffle=shuffle, generator=twin, **LOADERS[how]
    )
    seen = []
    for epoch in range(3):
        rows = torch.cat(list(order_of)).numpy()
        images, soft = (torch.cat(parts) for parts in zip(*loader, strict=True))
        views, table = expected_batch(dataset, pictures, rows, epoch)
        assert torch.equal(images, normalise(views, dataset.views))
        assert close(soft, dataset.labeler().labels(views))
        seen.append(table[np.argsort(rows)])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (seen[a] != seen[b]).any(axis=1).all()


def test_spawned_workers_count_in_the_same_memory(mixing, pictures_of):
    dataset = HelloDataset(mixing, labels="none")
    spawning = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    # Spawning takes seconds: the second pass, in this process, sees what the first one counted.
    for epoch, loader in enumerate((spawning, DataLoader(dataset, batch_size=4))):
        views, _ = expected_batch(dataset, pictures_of(11), range(11), epoch)
        assert torch.equal(torch.cat(list(loader)), views)


@pytest.mark.parametrize("how", LOADERS)
def test_the_samplers_epoch_wins_over_the_counter(mixing, pictures_of, how):
    dataset = HelloDataset(mixing, labels="none")
    sampler = HelloSampler(dataset, batch_size=4, seed=2)
    loader = DataLoader(dataset, batch_sampler=sampler, **LOADERS[how])
    twin = HelloSampler(dataset, batch_size=4, seed=2)
    for epoch in (0, 1, 7):
        if epoch == 7:
            sampler.set_epoch(7)
            twin.set_epoch(7)
        rows = functools.reduce(operator.iadd, twin, [])
        views, _ = expected_batch(dataset, pictures_of(11), rows, epoch)
        assert torch.equal(torch.cat(list(loader)), views)


@pytest.mark.parametrize("how", LOADERS)
def test_set_epoch_reaches_every_worker_and_restarts_the_count(mixing, pictures_of, how):
    dataset = HelloDataset(mixing, labels="none")
    loader = DataLoader(dataset, batch_size=4, **LOADERS[how])
    list(loader)
    dataset.set_epoch(6)
    for epoch in (6, 7):
        views, _ = expected_batch(dataset, pictures_of(11), range(11), epoch)
        assert torch.equal(torch.cat(list(loader)), views)
    with pytest.raises(ValueError, match="`epoch`: expected 0 <= epoch < 2"):
        dataset.set_epoch(-1)


def test_views_do_not_depend_on_batches(mixing, pictures_of):
    whole, _ = expected_batch(HelloDataset(mixing), pictures_of(11), range(11), 0)
    for step in (1, 3, 11):
        dataset = HelloDataset(mixing, labels="none")
        batches = [dataset.__getitems__(range(11)[i : i + step]) for i in range(0, 11, step)]
        assert torch.equal(torch.stack(functools.reduce(operator.iadd, batches, [])), whole)
    dataset = HelloDataset(mixing, labels="none")
    subset = Subset(dataset, [3, 8, 2])
    assert torch.equal(torch.cat(list(DataLoader(subset, batch_size=2))), whole[[3, 8, 2]])
    # Twice in a batch is twice served.
    twice = HelloDataset(mixing, labels="none").__getitems__([4, 4])
    views, _ = expected_batch(dataset, pictures_of(11), [4, 4], np.array([0, 1]))
    assert torch.equal(torch.stack(twice), views)


def test_what_an_item_is(mixing, pictures_of):
    views, table = expected_batch(HelloDataset(mixing), pictures_of(11), range(11), 0)
    labeler = Labeler.from_file(open_archive(mixing))
    images = normalise(views, open_archive(mixing).manifest.views)
    logits = labeler.logits(views)

    def batch(**options):
        items = HelloDataset(mixing, **options).__getitems__(range(11))
        return tuple(torch.stack(parts) for parts in zip(*items, strict=True))

    got = batch()
    assert torch.equal(got[0], images)
    assert got[0].dtype == got[1].dtype == torch.float32
    assert close(got[1], torch.softmax(logits.double() / 2.0, dim=1))
    assert close(batch(temperature=0.5)[1], torch.softmax(logits.double() / 0.5, dim=1))
    assert close(batch(labels="logits")[1], logits, 1e-4)
    hard = batch(labels="hard")
    assert torch.equal(hard[0], images)
    labels = [i * 3 // 11 for i in range(11)]
    assert torch.equal(hard[1], mixed_labels(table, labels, 3, size=16))
    assert ((hard[1] > 0).sum(dim=1) == 2).any()
    bare = HelloDataset(mixing, labels="none").__getitems__(range(11))
    assert torch.equal(torch.stack(bare), views)


def test_a_transform_replaces_the_normalisation_after_the_label(mixing):
    plain = HelloDataset(mixing)[3]
    view = HelloDataset(mixing, labels="none")[3]
    image, label = HelloDataset(mixing, transform=lambda v: v * 0, target_transform=torch.argmax)[3]
    assert torch.equal(image, view * 0)
    assert torch.equal(label, plain[1].argmax())
    assert torch.equal(HelloDataset(mixing, transform=lambda v: v + 1, labels="none")[3], view + 1)


def test_whole_images_without_views(mixing, pictures_of):
    dataset = HelloDataset(mixing, views=None, labels="hard")
    pictures = pictures_of(11)
    sizes = [p.shape[0] for p in pictures], [p.shape[1] for p in pictures]
    views = render(pictures, plain_table(np.arange(11), *sizes), dataset.views)
    for _ in range(2):
        images, labels = zip(*(dataset[i] for i in range(11)), strict=True)
        assert torch.equal(torch.stack(images), normalise(views, dataset.views))
        assert list(labels) == dataset.targets == [i * 3 // 11 for i in range(11)]


def test_hard_labels_of_views_that_do_not_mix_are_integers(archive_of):
    dataset = HelloDataset(archive_of(mix="none"), labels="hard")
    _, labels = next(iter(DataLoader(dataset, batch_size=11)))
    assert labels.dtype == torch.int64
    assert labels.tolist() == dataset.targets


def test_it_looks_like_a_torchvision_data_set(mixing):
    dataset = HelloDataset(mixing)
    assert len(dataset) == 11
    assert dataset.classes == ["n1", "n2", "n3"]
    assert dataset.class_to_idx == {"n1": 0, "n2": 1, "n3": 2}
    assert dataset.targets == [i * 3 // 11 for i in range(11)]
    assert dataset.temperature == 2.0
    assert HelloDataset(mixing, temperature=4).temperature == 4
    assert dataset.id == open_archive(mixing).id
    assert repr(dataset).startswith("<HelloDataset 11 images, labels='soft', <HelloFile")
    # Iterating by index ends, and negative indices count from the end.
    assert len(list(dataset)) == 11
    view = HelloDataset(mixing, labels="none")
    assert torch.equal(view[-1], HelloDataset(mixing, labels="none")[10])
    with pytest.raises(IndexError, match="index 11 is out of range; expected -11 to 10"):
        dataset[11]
    with pytest.raises(IndexError, match="index -12 is out of range"):
        dataset[-12]


def test_a_forgotten_data_set_closes_its_file(mixing):
    def open_files():
        return len(list(Path("/dev/fd").iterdir()))

    # Of the tests before.
    gc.collect()
    before = open_files()
    for _ in range(3):
        HelloDataset(mixing, labels="none")[0]
    gc.collect()
    assert open_files() == before


class Given:
    """A torchvision-like data set that counts how often it is read."""

    def __init__(self, pictures, labels, form="array"):
        self.pictures, self.labels, self.form, self.reads = pictures, labels, form, 0

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.reads += 1
        picture = self.pictures[index]
        if self.form == "pil":
            picture = Image.fromarray(picture)
        return picture if self.labels is None else (picture, self.labels[index])


@pytest.mark.parametrize("form", ["array", "pil"])
def test_a_projector_labels_a_data_set_that_the_user_has(projector_only, pictures_of, form):
    pictures = pictures_of(9)
    given = Given(pictures, [0, 1, 2] * 3, form)
    dataset = HelloDataset(projector_only, images=given)
    assert len(dataset) == 9
    views, table = expected_batch(dataset, pictures, range(9), 0)
    items = dataset.__getitems__(range(9))
    assert torch.equal(torch.stack([i for i, _ in items]), normalise(views, dataset.views))
    labels = Labeler.from_file(dataset.file).labels(views)
    assert close(torch.stack([label for _, label in items]), labels)
    hard = HelloDataset(projector_only, images=given, labels="hard").__getitems__(range(9))
    assert torch.equal(
        torch.stack([label for _, label in hard]), mixed_labels(table, given.labels, 3, size=16)
    )
    # One row at a time: sizes of partners are found out as they are needed.
    single = HelloDataset(projector_only, images=given, labels="none")
    assert torch.equal(torch.stack([single[i] for i in range(9)]), views)
    unlabelled = HelloDataset(projector_only, images=Given(pictures, None, form), labels="none")
    assert torch.equal(torch.stack(unlabelled.__getitems__(range(9))), views)


def test_grey_images_of_a_given_data_set_are_replicated(projector_only):
    grey = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    forms = [grey, grey[:, :, None], np.stack([grey] * 3, axis=2), Image.fromarray(grey)]
    for form in forms:
        dataset = HelloDataset(projector_only, images=[form], labels="none", views=None)
        expected = HelloDataset(projector_only, images=[forms[2]], labels="none", views=None)
        assert torch.equal(dataset[0], expected[0])


def test_targets_of_a_given_data_set(projector_only, pictures_of):
    given = Given(pictures_of(2), [2, 0])
    with pytest.raises(UserInputError, match="E_DATA: `images` has no attribute `targets`"):
        _ = HelloDataset(projector_only, images=given).targets
    given.targets = np.array([2, 0])
    assert HelloDataset(projector_only, images=given).targets == [2, 0]
    given.targets = [2, 3]
    with pytest.raises(UserInputError, match="expected an integer from 0 to 2, got 3"):
        _ = HelloDataset(projector_only, images=given).targets


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([], "`images`; expected at least 1 image, got 0"),
        (
            [torch.zeros(3, 4, 4)],
            (
                r"image 0; expected a PIL image or a uint8 array \(H, W, 3\), got Tensor"
                r" torch.float32 \(3, 4, 4\); views are made here, so give no transform"
            ),
        ),
        ([np.zeros((4, 4, 4), np.uint8)], r"got ndarray uint8 \(4, 4, 4\)"),
        (["x"], "image 0; expected a PIL image .* got str"),
        ([(np.zeros((4, 4), np.uint8), 3)], "class of an image; expected an integer from 0 to 2"),
        ([(np.zeros((4, 4), np.uint8), "n1")], "expected an integer from 0 to 2, got n1"),
        ([np.zeros((4, 4), np.uint8)], r"image 0 has no class; expected items \(image, class\)"),
    ],
)
def test_given_data_that_cannot_be_used_is_refused(projector_only, images, expected):
    with pytest.raises(UserInputError, match=f"E_DATA: .*{expected}"):
        HelloDataset(projector_only, images=images, labels="hard", views=None)[0]


def test_the_cache_keeps_what_fits_and_changes_nothing(projector_only, pictures_of):
    pictures = pictures_of(6, side=10)
    one = pictures[0].nbytes
    reads = {}
    results = []
    for cache in (0, one, 2 * one, "auto"):
        given = Given(pictures, [0] * 6)
        dataset = HelloDataset(projector_only, images=given, labels="none", views=None, cache=cache)
        # The first read of each image finds its size.
        first = next(torch.stack(dataset.__getitems__(range(6))) for _ in range(2))
        given.reads = 0
        results.append(torch.stack(dataset.__getitems__(range(6))))
        assert torch.equal(first, results[-1])
        reads[cache] = given.reads
    assert reads == {0: 6, one: 5, 2 * one: 4, "auto": 0}
    assert all(torch.equal(r, results[0]) for r in results)


def test_nothing_writes_to_cached_pixels(mixing, pictures_of):
    dataset = HelloDataset(mixing, labels="none", transform=lambda v: v.zero_())
    for _ in range(2):
        dataset.__getitems__(range(11))
    for row, picture in enumerate(pictures_of(11)):
        assert np.array_equal(dataset.pixels(row), picture)


def test_what_an_archive_cannot_give_is_refused(archive_of, projector_only):
    images_only = archive_of(with_projector=False)
    for labels in ("soft", "logits"):
        with pytest.raises(UserInputError, match=r"E_DATA: (soft|logits) labels need a projector"):
            HelloDataset(images_only, labels=labels)
    assert HelloDataset(images_only, labels="hard").temperature is None
    assert HelloDataset(images_only, labels="hard")[0][1] == 0
    with pytest.raises(UserInputError, match="E_DATA: the archive has no images; expected"):
        HelloDataset(projector_only)


def test_one_of_several_label_functions(archive_of, tmp_path):
    late, early = archive_of(count=4, side=16), archive_of(count=4, side=16, temperature=5.0)
    path = tmp_path / "both.hello"
    pack_archive(late, path, projector=[late, ("early", early)])
    for name, single in ((None, late), ("default", late), ("early", early)):
        dataset = HelloDataset(path, label_function=name)
        assert dataset.label_function == (name or "default")
        alone = HelloDataset(single)
        assert dataset.temperature == alone.temperature
        expected = alone[1][1]
        torch.testing.assert_close(dataset[1][1], expected, rtol=0, atol=1e-6)
        loader = HelloLoader(path, batch_size=2, label_function=name, shuffle=False)
        labels = torch.cat([soft for _, soft in loader])
        torch.testing.assert_close(labels[1], expected, rtol=0, atol=1e-6)
    write_labels(HelloDataset(path, label_function="early"), tmp_path / "labels", epochs=1)
    assert HelloDataset(path, stored=tmp_path / "labels", label_function="early").temperature == 5
    with pytest.raises(UserInputError, match="label function; expected default, got early"):
        HelloDataset(path, stored=tmp_path / "labels")
    with pytest.raises(UserInputError, match=r"no label function earl .*it has default, early"):
        HelloDataset(path, label_function="earl")
    with pytest.raises(UserInputError, match="`label_function`: expected the name of one of"):
        HelloLoader(path, batch_size=2, label_function=lambda views: views)
    with pytest.raises(UserInputError, match="the archive has no projector"):
        HelloDataset(archive_of(with_projector=False), labels="hard", label_function="early")


@pytest.mark.parametrize("shards", [None, 4])
def test_one_file_serves_every_size(archive_of, tmp_path, shards):
    whole = archive_of(count=9, mix="cutmix", mix_probability="0.5", shuffle=2)
    pack_archive(whole, tmp_path / "big.hello", projector=whole, ordered=True, shards=shards)
    big = tmp_path / "big.hello" if shards is None else str(tmp_path / "big-*-of-00004.hello")
    with open_archive(whole) as file:
        rows = [0, 1, 3, 4, 6, 7]
        items = [ImageItem(int(file.index.label[row]), file.read_image(row)) for row in rows]
        lines = [ClassLine(*p) for p in zip(file.classes.keys, file.classes.names, strict=True)]
        dataset = Dataset(name="few", version="1", license="", method="", sources=[])
        draft = Draft(dataset, lines, file.manifest.views, images=ImageSet("png", items))
    write_archive(tmp_path / "few.hello", draft)
    pack_archive(tmp_path / "few.hello", tmp_path / "small.hello", projector=whole)
    few, alone = HelloDataset(big, ipc=2), HelloDataset(tmp_path / "small.hello")
    assert (len(few), few.targets) == (6, alone.targets)
    for epoch in range(3):
        assert np.array_equal(few.table(np.arange(6), epoch), alone.table(np.arange(6), epoch))
        for (view, label), (same, other) in zip(
            few.__getitems__(range(6)), alone.__getitems__(range(6)), strict=True
        ):
            assert torch.equal(view, same)
            assert close(label, other)
    pairs = [HelloLoader(path, batch_size=4, ipc=k) for path, k in ((big, 2), (alone.file, None))]
    for (views, labels), (same, other) in zip(*pairs, strict=True):
        assert torch.equal(views, same)
        assert close(labels, other)
    hard = HelloDataset(big, ipc=2, labels="hard", views=None)
    assert [label for _, label in hard.__getitems__(range(6))] == alone.targets
    assert len(HelloDataset(big, ipc=3)) == len(HelloDataset(big)) == 9
    with pytest.raises(
        UserInputError, match=r"E_DATA: `ipc`: class .* has 3 images; expected at l"
    ):
        HelloDataset(big, ipc=4)
    state = HelloSampler(few, batch_size=2).state_dict(1)
    with pytest.raises(StateError, match="`rows` differs; expected 9, got 6"):
        HelloSampler(HelloDataset(big), batch_size=2).load_state_dict(state)


def test_sizes_that_a_file_does_not_serve(mixing, projector_only, pictures_of):
    with pytest.raises(UserInputError, match="E_OPTION: `ipc`: the archive does not say that its"):
        HelloDataset(mixing, ipc=1)
    for ipc in (0, -1, 1.5, "1"):
        with pytest.raises(UserInputError, match="E_OPTION: `ipc`: expected"):
            HelloDataset(mixing, ipc=ipc)
    with pytest.raises(UserInputError, match="`ipc`: chooses among the archive's own images"):
        HelloDataset(projector_only, images=Given(pictures_of(2), [0, 1]), ipc=1)


def test_labels_on_cuda_are_refused_in_a_forked_worker_with_the_right_call(mixing):
    dataset = HelloDataset(mixing, device="cuda")
    with pytest.raises(UserInputError, match="soft_batches") as caught:
        list(DataLoader(dataset, batch_size=4, num_workers=1))
    assert caught.value.code == "E_OPTION"


def test_an_error_keeps_its_type_code_and_member_on_the_way_from_a_worker(mixing, tmp_path):
    data = bytearray(mixing.read_bytes())
    with open_archive(mixing) as file:
        data[int(file.index.offset[6]) + 50] ^= 1
    broken = tmp_path / "broken.hello"
    broken.write_bytes(data)
    dataset = HelloDataset(broken, labels="none", views=None)
    with pytest.raises(CorruptError) as caught:
        list(DataLoader(dataset, batch_size=4, num_workers=1))
    assert type(caught.value) is CorruptError
    assert caught.value.code == "E_DIGEST_MEMBER"
    assert caught.value.member == "images/0001/000006.png"
    # One line, as in the worker; where it happened is a note under the traceback.
    assert f"{broken}: E_DIGEST_MEMBER member=images/0001/000006.png" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "in DataLoader worker process 0" in caught.value.__notes__[0]


def test_a_copy_makes_the_same_items_and_counts_for_itself(mixing, pictures_of):
    dataset = HelloDataset(mixing, labels="none")
    labeler = dataset.labeler()
    twin = copy.deepcopy(dataset)
    assert twin.labeler() is not labeler
    for epoch in range(2):
        views, _ = expected_batch(dataset, pictures_of(11), range(11), epoch)
        # A copy's counters are shared with its own workers too.
        for each in (dataset, twin):
            loader = DataLoader(each, batch_size=4, num_workers=1)
            assert torch.equal(torch.cat(list(loader)), views)
    assert torch.equal(twin.labeler().logits(views), labeler.logits(views))


@pytest.mark.parametrize("what", ["labeler", "epochs"])
def test_every_global_random_state_stays_as_it_was(mixing, what):
    dataset = HelloDataset(mixing)

    def states():
        legacy = np.random.get_state()  # noqa: NPY002 - the state users' own code draws from
        return torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()

    if what == "epochs":
        dataset.labeler()
    before = states()
    if what == "labeler":
        dataset.labeler()
    else:
        for batch in (range(11), range(11)):
            dataset.__getitems__(batch)
    assert states() == before


def test_stored_labels_on_several_ranks_need_an_epoch(mixing, as_rank, tmp_path):
    dataset = HelloDataset(mixing)
    write_labels(dataset, tmp_path / "stored", epochs=2)
    dataset = HelloDataset(mixing, stored=tmp_path / "stored")
    as_rank(1, 2)
    with pytest.raises(UserInputError, match="E_OPTION: stored labels on several ranks, of epochs"):
        dataset[0]
    dataset.set_epoch(1)
    # A row that fills up has no other labels than those of the epoch.
    first, again = dataset[0], dataset[0]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_items_as_dicts(mixing):
    keys = ("pixel_values", "labels")
    pairs = HelloDataset(mixing, labels="hard", views=None).__getitems__([0, 10])
    items = HelloDataset(mixing, labels="hard", views=None, as_dict=keys).__getitems__([0, 10])
    for item, (image, label) in zip(items, pairs, strict=True):
        assert list(item) == list(keys)
        assert torch.equal(item["pixel_values"], image)
        assert item["labels"] == label
    dataset = HelloDataset(mixing, labels="hard", as_dict=keys)
    with pytest.raises(ValueError, match="`as_dict` of the data set: expected None"):
        ArchiveBatches(dataset, recipe("hard"), 1, 0)


@pytest.mark.parametrize("batch_size", [4, None])
def test_a_batch_sampler_in_the_wrong_place_is_refused(mixing, batch_size):
    dataset = HelloDataset(mixing, labels="none")
    loader = DataLoader(dataset, batch_size, sampler=HelloSampler(dataset, batch_size=2))
    with pytest.raises(UserInputError, match=r"E_OPTION: .*`batch_sampler`, not as `sampler`"):
        next(iter(loader))
