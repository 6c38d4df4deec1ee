from __future__ import annotations

import copy
import functools
import operator
import os

import builders
import msgspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hellofmt.errors import UserInputError
from hellofmt.loading import HelloDataset, HelloLoader, HelloSampler, mixed_labels, write_labels
from hellofmt.loading.pool import LabelPool
from hellofmt.loading.resident import Resident


def counting(dataset):
    """The dataset, and a counter, shared by its workers, of the views that are labelled."""
    source, count = dataset.label_source(), torch.zeros(1, dtype=torch.int64).share_memory_()
    embed = source.embeddings

    def embeddings(views):
        count.add_(len(views))
        return embed(views)

    source.embeddings = embeddings
    return dataset, count


def epochs_of(dataset, epochs, **options):
    """(rows, images, labels) of every epoch from a ``DataLoader``, in the order of rows."""
    sampler = HelloSampler(dataset, batch_size=4, seed=2)
    twin = HelloSampler(dataset, batch_size=4, seed=2)
    loader = DataLoader(dataset, batch_sampler=sampler, **options)
    for epoch in range(epochs):
        twin.set_epoch(epoch)
        rows = functools.reduce(operator.iadd, twin, [])
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        yield np.array(rows), images, labels


@pytest.mark.parametrize("labels", ["soft", "logits"])
@pytest.mark.parametrize("room", ["auto", 100, 0])
def test_epoch_e_shows_view_e_mod_k_and_its_label_in_half_precision(mixing, labels, room):
    pooled, made = counting(
        HelloDataset(mixing, labels=labels, seed=5, views_per_image=2, pool=room)
    )
    plain = HelloDataset(mixing, labels=labels, seed=5)
    for epoch, (rows, images, got) in enumerate(epochs_of(pooled, 5)):
        plain.set_epoch(epoch % 2)
        expected = [torch.stack(parts) for parts in zip(*plain.__getitems__(rows), strict=True)]
        assert torch.equal(images, expected[0])
        # Rounded, also if it was made just now; other batches round the product otherwise.
        assert torch.equal(got, got.half().float())
        assert ((got - expected[1]).abs() <= expected[1].abs() * 2**-11 + 1e-5).all()
    # Of 22 labels of 6 bytes, 100 bytes hold 16; the others are made again.
    assert int(made) == {"auto": 22, 100: 22 + 6, 0: 55}[room]


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}])
def test_workers_label_each_view_once_among_them(mixing, options):
    dataset, made = counting(HelloDataset(mixing, views_per_image=2))
    alone = HelloDataset(mixing, views_per_image=2)
    passes = epochs_of(dataset, 4, num_workers=2, **options)
    for epoch, (_, *expected) in enumerate(epochs_of(alone, 4)):
        _, images, got = next(passes)
        assert torch.equal(images, expected[0])
        assert (got - expected[1]).abs().max() < 1e-3
        if epoch == 1:
            # Who finds every label needs no labeler; persistent workers have theirs.
            dataset.label_source = None
    assert int(made) == 22


class Counted:
    """A label function that counts its views where every worker sees it."""

    def __init__(self):
        self.count = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __call__(self, views):
        self.count.add_(len(views))
        return 10 * views.mean((2, 3))


def test_spawned_workers_share_the_pool(mixing):
    function = Counted()
    dataset = HelloDataset(mixing, label_function=function, views_per_image=1)
    # Spawning takes seconds: the second pass, in this process, takes what the first one made.
    spawning = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    passes = [
        torch.cat([labels for _, labels in loader])
        for loader in (
            spawning,
            DataLoader(dataset, batch_size=4),
        )
    ]
    assert torch.equal(*passes)
    assert int(function.count) == 11


def test_a_view_twice_in_a_batch_is_labelled_once(mixing):
    dataset, made = counting(HelloDataset(mixing, views_per_image=1))
    items = dataset.__getitems__([4, 7, 4])
    assert int(made) == 2
    assert torch.equal(items[0][1], items[2][1])
    assert not torch.equal(items[0][1], items[1][1])


def test_with_more_classes_than_features_embeddings_are_kept(archive_of):
    arch = msgspec.structs.replace(builders.vit(16, width=32, head_width=16), embed_dim=2)
    path = archive_of(arch=arch, mix="cutmix", mix_probability="0.5")
    dataset, made = counting(HelloDataset(path, views_per_image=1))
    assert dataset.pool.width == 2
    assert (dataset.pool.needed, dataset.pool.kept) == (44, 44)
    rows = list(range(11))
    images = [torch.stack(parts) for parts in zip(*dataset.__getitems__(rows), strict=True)]
    again = [torch.stack(parts) for parts in zip(*dataset.__getitems__(rows), strict=True)]
    assert int(made) == 11
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    labeler = dataset.labeler()
    embedded = labeler.embeddings(dataset.draw(np.arange(11), 0)[0])
    assert (images[1] - labeler.labels_of(embedded.half())).abs().max() < 1e-6


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("is_resident", [False, True])
def test_a_loader_gives_what_a_data_set_gives(mixing_even, labels, is_resident):
    options = {"labels": labels, "seed": 2, "views_per_image": 2}
    loader = HelloLoader(mixing_even, batch_size=4, **options)
    drawn = []
    if is_resident:
        resident = Resident(loader.dataset, torch.device("cpu"))
        draw = resident.draw

        def counted(table, form, second=None):
            drawn.append(second is not None)
            return draw(table, form, second)

        resident.draw = counted
        loader._maker.resident = resident
    dataset = HelloDataset(mixing_even, **options)
    for epoch, (rows, images, expected) in enumerate(epochs_of(dataset, 3)):
        got = [torch.cat(parts) for parts in zip(*loader, strict=True)]
        assert (got[0] - images).abs().max() < 1e-5
        assert (got[1] - expected).abs().max() < 1e-3
        table = dataset.table(rows, epoch)
        assert np.array_equal(table, HelloDataset(mixing_even, seed=2).table(rows, epoch % 2))
        if labels == "hard":
            classes = dataset.targets
            assert torch.equal(got[1], mixed_labels(table, classes, 3, size=16))
    if is_resident:
        # The encoder's views are drawn while a label is missing.
        assert drawn == ([True] * 6 + [False] * 3 if labels == "soft" else [False] * 9)


def test_a_run_can_be_resumed_within_an_epoch(mixing):
    def loader():
        return HelloLoader(mixing, batch_size=4, seed=3, views_per_image=2)

    whole = loader()
    batches = [batch for _ in range(4) for batch in whole]
    first = loader()
    first.set_epoch(2)
    next(iter(first))
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    rest = [batch for _ in range(2) for batch in resumed]
    assert len(rest) == 5
    for got, expected in zip(rest, batches[7:], strict=True):
        assert torch.equal(got[0], expected[0])
        # Made in epoch 0 or now, and rounded.
        assert (got[1] - expected[1]).abs().max() < 1e-3


def test_ranks_show_the_views_of_one_process(mixing):
    def epoch(**place):
        loader = HelloLoader(
            mixing, batch_size=4 // place["num_replicas"], views_per_image=2, **place
        )
        loader.set_epoch(5)
        return list(loader)

    whole = epoch(num_replicas=1, rank=0)
    parts = [epoch(num_replicas=2, rank=rank) for rank in range(2)]
    for expected, *both in zip(whole[:2], *(part[:2] for part in parts), strict=True):
        images, labels = (torch.cat(halves) for halves in zip(*both, strict=True))
        assert torch.equal(images, expected[0])
        assert (labels - expected[1]).abs().max() < 1e-3


def test_a_rank_that_is_told_no_epoch_shows_all_views(mixing, as_rank):
    shown = []
    for rank in range(2):
        dataset = HelloDataset(mixing, views_per_image=4)
        as_rank(rank, 2)
        shown += [dataset[3][0] for _ in range(4)]
    # The ranks, which draw half a run each, begin at different views.
    for here, there in enumerate([2, 3, 0, 1]):
        equal = [torch.equal(shown[here], other) for other in shown[4:]]
        assert equal == [k == there for k in range(4)]


def test_stored_labels_of_k_epochs_serve_any_number(mixing, tmp_path):
    dataset = HelloDataset(mixing, seed=5)
    write_labels(dataset, tmp_path / "x", epochs=3)
    stored = HelloDataset(mixing, seed=5, stored=tmp_path / "x", views_per_image=2)
    assert stored.pool is None
    for epoch, (rows, images, labels) in enumerate(epochs_of(stored, 5)):
        dataset.set_epoch(epoch % 2)
        expected = [torch.stack(parts) for parts in zip(*dataset.__getitems__(rows), strict=True)]
        assert torch.equal(images, expected[0])
        assert (labels - expected[1]).abs().max() < 1e-3
    repeating = HelloDataset(mixing, views_per_image=2)
    with pytest.raises(UserInputError, match="`epochs`: expected at most 2, the data set's `views"):
        write_labels(repeating, tmp_path / "y", epochs=3)
    message = "`views_per_image`: expected at most the 3 stored epochs, got 4"
    with pytest.raises(UserInputError, match=message):
        HelloDataset(mixing, seed=5, stored=tmp_path / "x", views_per_image=4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"views_per_image": 0}, "`views_per_image`: expected 1 <= views_per_image < 2"),
        ({"views_per_image": True}, "`views_per_image`: expected 1 <= .*, got True"),
        ({"views_per_image": 2.5}, "`views_per_image`: expected 1 <= .*, got 2.5"),
        ({"views_per_image": 2, "pool": -1}, "`pool`: expected 'auto' or bytes >= 0, got -1"),
        ({"views_per_image": 2, "pool": "all"}, "`pool`: expected 'auto' or bytes >= 0, got 'all'"),
    ],
)
def test_options_out_of_range_are_refused(mixing, options, expected):
    for make in (HelloDataset, functools.partial(HelloLoader, batch_size=4)):
        with pytest.raises(UserInputError, match=f"E_OPTION: {expected}"):
            make(mixing, **options)


def test_a_label_counts_once_it_is_whole():
    pool = LabelPool(4, 2, 3, budget=10**6, device=torch.device("cpu"))
    rows, epochs = np.array([1, 2]), np.array([3, 0])

    def killed(new):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.labels(rows, epochs, killed)
    assert not pool.has(rows, epochs).any()
    expected = torch.rand(2, 3)
    # Places are in another order than the batch: view 0 of row 2 comes before view 1 of row 1.
    got = pool.labels(rows, epochs, lambda new: expected[torch.from_numpy(new)])
    assert torch.equal(got, expected.half())
    assert torch.equal(pool.labels(rows, epochs % 2, killed), expected.half())
    assert pool.has(np.array([1, 1]), np.array([1, 0])).tolist() == [True, False]


def test_forked_ranks_do_not_take_labels_on_a_gpu_for_their_own():
    pool = LabelPool(4, 1, 3, budget=10**6, device=torch.device("meta"))
    row = np.array([1]), np.array([0])
    child = os.fork()
    if child == 0:
        pool.labels(*row, lambda new: torch.empty(len(new), 3, device="meta"))
        os._exit(int(pool.has(*row)[0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert not pool.has(*row)[0]


def test_logits_beyond_half_precision_are_refused(mixing):
    def large(views):
        return 1e6 * views.mean((2, 3))

    dataset = HelloDataset(mixing, labels="logits", label_function=large, views_per_image=1)
    for _ in range(2):
        with pytest.raises(UserInputError, match=r"E_TEACHER: .*expected at most 65,504"):
            dataset[0]


def test_a_copy_has_a_pool_of_its_own(mixing):
    dataset, _ = counting(HelloDataset(mixing, views_per_image=1))
    dataset[3]
    twin = copy.deepcopy(dataset)
    assert not twin.pool.has(np.array([3]), np.array([0]))
    assert torch.equal(twin[3][1], dataset[3][1])
