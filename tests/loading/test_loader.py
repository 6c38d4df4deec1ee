from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import hellofmt_kernels
from hellofmt.archive import open_archive
from hellofmt.errors import StateError, TrustError, UserInputError
from hellofmt.loading import HelloDataset, HelloLoader, HelloSampler, normalise
from hellofmt.loading.resident import Resident, is_drawable
from hellofmt.projector import Labeler
from hellofmt.projector.serving import ServingEncoder
from hellofmt_kernels import ViewForm

KINDS = ("soft", "logits", "hard", "none")


def joined(batches):
    batches = [b if isinstance(b, (tuple, list)) else (b,) for b in batches]
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def from_data_loader(path, labels, **options):
    """The same epochs through a DataLoader with two workers, one list of batches per epoch."""
    dataset = HelloDataset(path, labels=labels, seed=5)
    sampler = HelloSampler(dataset, seed=5, **options)
    batches = DataLoader(dataset, batch_sampler=sampler, num_workers=2)
    return lambda epoch: sampler.set_epoch(epoch) or list(batches)


@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_those_of_a_data_loader(mixing, labels, shuffle):
    made = HelloLoader(mixing, batch_size=4, labels=labels, seed=5, shuffle=shuffle)
    expected = from_data_loader(mixing, labels, batch_size=4, shuffle=shuffle)
    assert len(made) == 3
    for epoch in (0, 1, 7):
        if epoch == 7:
            made.set_epoch(7)
        batches = list(made)
        assert made.batches_done == 3
        assert [len(b if labels == "none" else b[0]) for b in batches] == [4, 4, 3]
        got, wanted = joined(batches), joined(expected(epoch))
        # The same pixels to the last bit, though nothing was drawn in the same process.
        assert torch.equal(got[0], wanted[0])
        if labels != "none":
            assert got[1].dtype == wanted[1].dtype
            assert (got[1].double() - wanted[1].double()).abs().max() < 1e-5


def test_hard_labels_of_views_that_do_not_mix_are_integers(archive_of):
    made = HelloLoader(archive_of(mix="none"), batch_size=11, labels="hard", shuffle=False)
    ((_, labels),) = list(made)
    assert labels.dtype == torch.int64
    assert labels.tolist() == made.dataset.targets


def test_a_data_set_that_the_user_has(projector_only, pictures_of):
    pictures = pictures_of(9)
    options = {"images": pictures, "seed": 2}
    got = joined(list(HelloLoader(projector_only, batch_size=4, shuffle=False, **options)))
    dataset = HelloDataset(projector_only, **options)
    images, labels = joined(list(DataLoader(dataset, batch_size=9)))
    assert torch.equal(got[0], images)
    assert (got[1] - labels).abs().max() < 1e-5


def test_options_reach_what_they_are_for(mixing):
    made = HelloLoader(mixing, batch_size=11, temperature=0.3, shuffle=False, dtype=torch.bfloat16)
    ((images, soft),) = list(made)
    views, _ = made.dataset.draw(np.arange(11), 0)
    labeler = Labeler.from_file(open_archive(mixing), dtype=torch.bfloat16)
    assert torch.equal(soft, labeler.labels(views, 0.3))
    assert torch.equal(images, normalise(views, made.dataset.views))
    whole = HelloLoader(mixing, batch_size=3, views=None, labels="none", channels_last=True)
    assert next(iter(whole)).is_contiguous(memory_format=torch.channels_last)
    assert next(iter(whole)).min() >= 0
    with pytest.raises(TrustError, match="E_PIN"):
        HelloLoader(mixing, batch_size=3, expect="sha256:" + "0" * 64)
    with pytest.raises(UserInputError, match="`labels`: expected"):
        HelloLoader(mixing, batch_size=3, labels="firm")
    with pytest.raises(ValueError, match="`batch_size`: expected at least 1"):
        HelloLoader(mixing, batch_size=0)


@pytest.mark.parametrize("option", ["transform", "target_transform", "as_dict", "stored", "cache"])
def test_options_of_single_items_are_refused(mixing, option):
    with pytest.raises(UserInputError, match=rf"E_OPTION: `{option}`: is about single items"):
        HelloLoader(mixing, batch_size=2, **{option: None})
    with pytest.raises(TypeError, match="nothing"):
        HelloLoader(mixing, batch_size=2, nothing=1)


def test_what_makes_a_batch_is_named(mixing):
    assert HelloLoader(mixing, batch_size=2).kernel == {"views": "pixels", "labels": "reference"}
    assert HelloLoader(mixing, batch_size=2, labels="hard").kernel == {"views": "pixels"}


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_an_epoch_can_be_resumed_wherever_it_stood(mixing, done):
    def fresh():
        return HelloLoader(mixing, batch_size=4, seed=3)

    whole = fresh()
    expected = [*list(whole)[done:], *list(whole)]
    first = fresh()
    stream = iter(first)
    for _ in range(done):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    second = fresh()
    second.load_state_dict(state)
    assert second.state_dict() == state
    got = [*(list(second) if done < 3 else []), *list(second)]
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_a_state_of_another_archive_is_refused(mixing, archive_of):
    state = HelloLoader(mixing, batch_size=4).state_dict()
    other = HelloLoader(archive_of(mix="none"), batch_size=4)
    with pytest.raises(StateError, match="E_STATE_DIGEST"):
        other.load_state_dict(state)


def test_ranks_share_a_global_batch_and_a_state(mixing):
    def ranks(**options):
        return [
            HelloLoader(mixing, batch_size=2, num_replicas=2, rank=r, labels="none", **options)
            for r in range(2)
        ]

    whole = list(HelloLoader(mixing, batch_size=4, labels="none"))
    pairs = list(zip(*ranks(), strict=True))
    for batch, parts in zip(whole[:2], pairs[:2], strict=True):
        assert torch.equal(torch.cat(parts), batch)
    # Three rows are left for two ranks: one of them repeats the first row of the epoch.
    assert torch.equal(torch.cat(pairs[2])[:3], whole[2])
    assert torch.equal(pairs[2][1][1], whole[0][0])
    one = HelloLoader(mixing, batch_size=4, labels="none")
    next(iter(one))
    resumed = ranks()
    for each in resumed:
        each.load_state_dict(one.state_dict())
    for batch, parts in zip(whole[1:2], zip(*resumed, strict=True), strict=False):
        assert torch.equal(torch.cat(parts), batch)
    assert [len(each) for each in ranks(drop_last=True)] == [2, 2]


def test_training_loops_find_the_sampler_by_its_usual_names(mixing):
    made = HelloLoader(mixing, batch_size=4, labels="none")
    again = HelloLoader(mixing, batch_size=4, labels="none")
    # What Lightning does at the start of an epoch.
    made.sampler.set_epoch(4)
    again.set_epoch(4)
    assert made.batch_sampler is made.sampler
    assert torch.equal(joined(list(made))[0], joined(list(again))[0])


def test_every_global_random_state_stays_as_it_was(mixing):
    def states():
        legacy = np.random.get_state()  # noqa: NPY002 - the state users' own code draws from
        return torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()

    before = states()
    list(HelloLoader(mixing, batch_size=4))
    assert states() == before


# What a GPU holds, on a CPU: the frames, the columns of a table, and which views it can draw.


@pytest.mark.parametrize("channels_last", [False, True])
def test_resident_images_are_drawn_as_on_the_cpu(mixing_even, channels_last):
    dataset = HelloDataset(mixing_even, labels="none")
    stored = Resident(dataset, torch.device("cpu"))
    for rows, epoch in ((np.array([7, 2, 2, 9]), 3), (np.arange(11), 0)):
        views, table = dataset.draw(rows, epoch)
        got, second = stored.draw(table, ViewForm(is_channels_last=channels_last))
        assert second is None
        assert (got - views).abs().max() < 1e-5
        assert got.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        assert got.device.type == "cpu"


def test_each_image_is_decoded_when_it_is_first_shown(mixing_even, monkeypatch):
    dataset = HelloDataset(mixing_even, labels="none")
    read = []
    real = dataset.pixels_of
    monkeypatch.setattr(dataset, "pixels_of", lambda rows: read.extend(rows) or real(rows))
    stored = Resident(dataset, torch.device("cpu"))
    assert read == []
    first = dataset.table(np.array([3, 3, 8]), 1)
    stored.draw(first, ViewForm())
    assert sorted(read) == sorted({*first[:, 0].tolist(), *first[:, 6].tolist()})
    for epoch in range(2):
        stored.draw(dataset.table(np.arange(11), epoch), ViewForm(), ViewForm())
    assert sorted(read) == list(range(11))


@pytest.fixture
def bases(archive_of, resnet):
    """Archives whose base takes the views as they are, normalised, or resized first."""
    options = {"side": 16, "mix": "cutmix", "mix_probability": "0.5", "shuffle": 2}
    return {
        "folded": archive_of(**options),
        "padded stem": archive_of(**options, arch=resnet, size=32),
        "resized": archive_of(**options, size=20),
        "resized, padded stem": archive_of(**options, arch=resnet),
    }


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize("base", ["folded", "padded stem", "resized", "resized, padded stem"])
def test_both_networks_inputs_are_drawn_at_once(bases, base, labels, dtype, monkeypatch):
    """The way of a GPU, on a CPU: the same batches as a data loader's."""
    path = bases[base]
    made = HelloLoader(path, batch_size=4, labels=labels, seed=5, dtype=dtype, channels_last=True)
    made._maker.resident = Resident(made.dataset, torch.device("cpu"))
    drawn = []
    for name in ("views", "view_pair"):
        real = getattr(hellofmt_kernels, name)
        monkeypatch.setattr(
            hellofmt_kernels,
            name,
            lambda *a, name=name, real=real, **k: drawn.append(name) or real(*a, **k),
        )
    prepared = []
    real_prepared = ServingEncoder.prepared
    monkeypatch.setattr(
        ServingEncoder, "prepared", lambda *a: prepared.append(1) or real_prepared(*a)
    )
    got = joined(list(made))
    is_labelled = labels in ("soft", "logits")
    assert drawn == ["view_pair" if is_labelled else "views"] * 3
    assert made.kernel["views"] == drawn[0]
    # No second pass over a batch but where its views have to be resized.
    assert len(prepared) == (3 if is_labelled and "resized" in base else 0)
    plain = HelloLoader(path, batch_size=4, labels=labels, seed=5, dtype=dtype)
    wanted = joined(list(plain))
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert (got[0] - wanted[0]).abs().max() < 1e-5
    if labels == "hard":
        assert torch.equal(got[1], wanted[1])
    elif is_labelled:
        # Half a step of bfloat16 here or there in a pixel, and labels move as much.
        limit = 1e-5 if dtype is None else 3e-2
        assert (got[1] - wanted[1]).abs().max() < limit * (1 if labels == "soft" else 10)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mix": "cutmix", "side": 16}, True),
        ({"mix": "cutmix"}, False),
        ({"mix": "mixup", "shuffle": 2, "side": 16}, True),
        ({"shuffle": 3, "side": 16}, False),
        ({"shuffle": 2}, False),
        ({"interpolation": "bicubic"}, False),
    ],
)
def test_only_views_that_the_kernel_defines_are_drawn_by_it(archive_of, changes, expected):
    dataset = HelloDataset(archive_of(**changes))
    assert is_drawable(dataset) is expected
    # Half of what is free is theirs.
    needed = 2 * 3 * 11 * 16 * 16
    assert [is_drawable(dataset, free) for free in (needed, needed - 1)] == [expected, False]


def test_images_whose_size_is_unknown_are_drawn_on_the_cpu(projector_only, pictures_of):
    assert not is_drawable(HelloDataset(projector_only, images=pictures_of(3)))


@pytest.mark.gpu
@pytest.mark.parametrize("labels", KINDS)
def test_a_gpu_gives_the_same_batches(mixing_even, labels):
    made = HelloLoader(mixing_even, batch_size=4, labels=labels, seed=5, device="cuda")
    expected = from_data_loader(mixing_even, labels, batch_size=4)
    for epoch in range(2):
        got, wanted = joined(list(made)), joined(expected(epoch))
        assert got[0].device.type == "cuda"
        assert (got[0].cpu() - wanted[0]).abs().max() < 1e-4
        if labels != "none":
            assert (got[1].cpu().double() - wanted[1].double()).abs().max() < 2e-3


@pytest.mark.gpu
def test_a_gpus_batch_comes_through_the_fused_kernels(mixing_even):
    made = HelloLoader(mixing_even, batch_size=4, device="cuda")
    assert made.kernel == {"views": "view_pair", "labels": "row"}
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        list(made)
        torch.cuda.synchronize()
    names = " ".join(event.key for event in profiled.key_averages())
    assert "_labels_fwd_kernel" in names
    assert "_views_kernel" in names


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_over_a_loader_is_refused(mixing, workers):
    loader = HelloLoader(mixing, batch_size=4, labels="none")
    with pytest.raises(UserInputError, match="E_OPTION: a HelloLoader has no items, it gives batc"):
        next(iter(DataLoader(loader, num_workers=workers)))


def test_of_two_passes_at_once_the_later_one_has_the_position(mixing):
    loader = HelloLoader(mixing, batch_size=4, labels="none")
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    next(first)
    state = loader.state_dict()
    assert (state["epoch"], state["next_batch"]) == (1, 1)
    assert len(list(first)) == 1
    assert loader.state_dict() == state
    # As in `zip(loader, loader)`: both are whole epochs.
    assert len(list(second)) == 2
    assert (loader.state_dict()["epoch"], loader.state_dict()["next_batch"]) == (2, 0)
