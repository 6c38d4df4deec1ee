from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from hellofmt.errors import UserInputError
from hellofmt.loading import HelloDataset, HelloLoader, HelloSampler, normalise, soft_batches
from hellofmt.projector import Labeler


def joined(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("labels", ["soft", "logits"])
def test_data_set_soft_batches_and_labeler_make_the_same_labels(mixing, workers, labels):
    loader = DataLoader(HelloDataset(mixing, labels=labels), batch_size=4)
    images, expected = joined(list(loader))
    bare = HelloDataset(mixing, labels="none")
    batches = soft_batches(
        DataLoader(bare, batch_size=4, num_workers=workers), bare.labeler(), labels=labels
    )
    got = joined(list(batches))
    assert torch.equal(got[0], images)
    assert (got[1] - expected).abs().max() < 1e-5
    labeler = Labeler.from_file(bare.file)
    bare.set_epoch(0)
    views = torch.stack(bare.__getitems__(range(11)))
    by_hand = labeler.labels(views) if labels == "soft" else labeler.logits(views)
    assert torch.equal(got[0], normalise(views, bare.views))
    assert (got[1] - by_hand).abs().max() < 1e-5
    assert len(batches) == batches.batches_done == 3


def test_the_temperature_is_the_data_sets_unless_it_is_given(mixing):
    dataset = HelloDataset(mixing, labels="none", temperature=0.7)
    labeler = dataset.labeler()
    views = torch.stack(dataset.__getitems__(range(11)))
    loader = DataLoader(dataset, batch_size=11)
    for options, temperature in (({}, 0.7), ({"temperature": 3.0}, 3.0)):
        dataset.set_epoch(0)
        _, soft = next(iter(soft_batches(loader, labeler, **options)))
        expected = torch.softmax(labeler.logits(views).double() / temperature, dim=1)
        assert (soft - expected).abs().max() < 1e-5


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_pass_can_be_resumed_though_workers_run_ahead(mixing, done):
    def fresh():
        dataset = HelloDataset(mixing, labels="none")
        sampler = HelloSampler(dataset, batch_size=4, seed=3)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2)
        return soft_batches(loader, dataset.labeler())

    whole = fresh()
    expected = [*list(whole)[done:], *list(whole)]
    first = fresh()
    stream = iter(first)
    for _ in range(done):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    second = fresh()
    second.load_state_dict(state)
    got = [*(list(second) if done < 3 else []), *list(second)]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_a_subset_is_seen_through(mixing):
    dataset = HelloDataset(mixing, labels="none")
    loader = DataLoader(Subset(dataset, [7, 1]), batch_size=2)
    images, _ = next(iter(soft_batches(loader, dataset.labeler())))
    dataset.set_epoch(0)
    assert torch.equal(images, normalise(torch.stack(dataset.__getitems__([7, 1])), dataset.views))


def test_loaders_that_do_not_fit_are_refused(mixing):
    labeler = HelloDataset(mixing).labeler()
    bare = HelloDataset(mixing, labels="none")
    cases = [
        (DataLoader([1, 2]), {}, "`loader`; expected one over a HelloDataset, got list"),
        (DataLoader(HelloDataset(mixing)), {}, "expected labels='none', got 'soft'"),
        (
            DataLoader(HelloDataset(mixing, labels="none", transform=torch.neg)),
            {},
            "the dataset has a `transform`, which would change views before they are label",
        ),
        (DataLoader(bare), {"labels": "hard"}, "`labels`; expected 'soft' or 'logits', got 'hard'"),
    ]
    for loader, options, expected in cases:
        with pytest.raises(UserInputError, match=f"E_OPTION: .*{expected}"):
            soft_batches(loader, labeler, **options)
    plain = soft_batches(DataLoader(bare), labeler)
    for call in (plain.state_dict, lambda: plain.load_state_dict({})):
        with pytest.raises(UserInputError, match=r"expected a HelloSampler, .* got BatchSampler"):
            call()


def test_what_is_no_loader_or_labeler_is_refused(mixing):
    dataset = HelloDataset(mixing, labels="none")
    labeler = dataset.labeler()
    for loader, expected in (
        (
            dataset,
            r"expected a DataLoader, got HelloDataset: pass DataLoader\(dataset, batch",
        ),
        (HelloLoader(mixing, batch_size=2), "got HelloLoader, whose batches have labels already"),
        (str(mixing), "expected a DataLoader, got str"),
        (DataLoader([1, 2]), "expected one over a HelloDataset, got list"),
    ):
        with pytest.raises(UserInputError, match=f"E_OPTION: `loader`; .*{expected}"):
            soft_batches(loader, labeler)
    with pytest.raises(UserInputError, match=r"E_OPTION: `labeler`; .* pass dataset.labeler\(dev"):
        soft_batches(DataLoader(dataset), dataset)
