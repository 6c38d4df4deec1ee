from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hellofmt.archive import open_archive
from hellofmt.loading import HelloDataset, normalise, write_labels
from hellofmt.loading.batch_maker import BatchMaker
from hellofmt.loading.resident import Resident
from hellofmt.runs.order import Order
from hellofmt.student.batches import ArchiveBatches, PassSampler
from hellofmt.student.networks import build_student
from hellofmt.student.recipes import recipe
from hellofmt.student.train import loss_of, train_from_archive


def test_batches_of_an_archive_are_full_and_carry_their_epochs():
    sampler = PassSampler(3, 5, batches=2, seed=1)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 2
    assert [(int(i), i.epoch) for batch in batches for i in batch] == [
        tuple(place) for place in Order(1, 3).positions(0, 10).tolist()
    ]
    with pytest.raises(ValueError, match="rows and batch_size: expected at least 1, got 0 and 5"):
        PassSampler(0, 5, batches=2, seed=1)


def batches_of(archive, name, **changes):
    plan = replace(recipe(name), batch_size=8, **changes)
    dataset = HelloDataset(archive, labels=plan.labels, temperature=plan.temperature, seed=4)
    return list(ArchiveBatches(dataset, plan, 2, seed=4))


@pytest.mark.parametrize("name", ["kl", "hello", "hard"])
def test_batches_are_the_same_wherever_they_are_made(archive, name):
    plan = replace(recipe(name), batch_size=8)
    dataset = HelloDataset(archive, labels=plan.labels, temperature=plan.temperature, seed=4)
    here = ArchiveBatches(dataset, plan, 2, seed=4)
    # The way of a GPU, on a CPU.
    maker = BatchMaker(dataset, channels_last=True)
    maker.resident = Resident(dataset, torch.device("cpu"))
    for other in (replace(here, workers=2), replace(here, maker=maker)):
        made = list(other)
        assert len(made) == 2
        for wanted, got in zip(here, made, strict=True):
            assert len(got) == len(wanted)
            for a, b in zip(wanted, got, strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        (last,) = other.after(1)
        assert torch.equal(last[0], made[1][0])


def test_other_labels_reach_batches_of_a_maker(archive, tmp_path):
    def function(views):
        return views.mean((2, 3))

    write_labels(HelloDataset(archive, seed=4), tmp_path / "stored", epochs=3)
    plan = replace(recipe("kl"), batch_size=4)
    for options in ({"label_function": function}, {"stored": tmp_path / "stored"}):
        dataset = HelloDataset(archive, temperature=plan.temperature, seed=4, **options)
        here = ArchiveBatches(dataset, plan, 2, seed=4)
        maker = BatchMaker(dataset)
        for is_resident in (False, True):
            if is_resident:
                maker.resident = Resident(dataset, torch.device("cpu"))
            for wanted, got in zip(here, replace(here, maker=maker), strict=True):
                torch.testing.assert_close(wanted, got, rtol=0, atol=1e-5)


def test_workers_leave_a_student_as_it_was(archive):
    plan = replace(recipe("kl"), batch_size=8)
    weights = []
    for workers in (0, 2):
        torch.manual_seed(0)
        network = train_from_archive(
            build_student("cnn", 3, 8), archive, plan, steps=3, seed=1, workers=workers
        )
        weights.append(network.state_dict())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_labels_are_in_the_precision_that_was_chosen(archive):
    soft, half = (
        ArchiveBatches(HelloDataset(archive, seed=4, dtype=dtype), recipe("kl"), 1, seed=4)
        for dtype in (None, torch.bfloat16)
    )
    (_, a), (_, b) = next(iter(soft)), next(iter(half))
    assert a.dtype == b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 3e-2


def test_every_kind_of_label_belongs_to_the_same_views(archive):
    soft, logits, hard = (batches_of(archive, name) for name in ("kl", "hello", "hard"))
    for a, b, c in zip(soft, logits, hard, strict=True):
        assert a[0].shape == (8, 3, 8, 8)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[0], c[0])
        torch.testing.assert_close(a[1], torch.softmax(b[1] / 3.0, dim=1))
        torch.testing.assert_close(b[2], c[1])
    # Six images in batches of eight: the second view of an image is another one.
    assert not torch.equal(soft[0][0], soft[1][0])


def test_labels_must_be_those_of_the_recipe(archive):
    with pytest.raises(ValueError, match="recipe `hard` reads `hard`, got a data set with `soft`"):
        ArchiveBatches(HelloDataset(archive), recipe("hard"), 1, seed=0)


@pytest.mark.parametrize("name", ["kl", "hello", "rded", "hard"])
def test_a_student_trains_from_a_path_alone(archive, name):
    network = build_student("cnn", 3, 8)
    plan = replace(recipe(name), batch_size=8)
    losses = []
    train_from_archive(
        network, archive, plan, steps=3, seed=1, on_step=lambda _, loss: losses.append(float(loss))
    )
    assert len(losses) == 3
    # The first loss by hand: same seed, same views, same labels, same fresh network.
    fresh = build_student("cnn", 3, 8).to(memory_format=torch.channels_last)
    dataset = HelloDataset(archive, labels=plan.labels, temperature=plan.temperature, seed=1)
    plan = replace(plan, temperature=dataset.temperature)
    images, *targets = next(iter(ArchiveBatches(dataset, plan, 1, seed=1)))
    first = loss_of(plan, fresh(images.contiguous(memory_format=torch.channels_last)), *targets)
    assert losses[0] == pytest.approx(float(first.detach()), rel=1e-5)
    assert dataset.temperature == (20.0 if name == "rded" else 3.0)


def test_a_label_function_takes_the_place_of_the_archives(archive):
    seen, losses = [], []

    def teacher(views):
        # The data set normalises its views in place afterwards.
        seen.append(views.clone())
        return 3 * torch.stack([views.mean((1, 2, 3)), views[:, 0, 0, 0], views[:, 1, 0, 0]], 1)

    plan = replace(recipe("kl"), batch_size=8, temperature=2.0)
    fresh = build_student("cnn", 3, 8).to(memory_format=torch.channels_last)
    train_from_archive(
        build_student("cnn", 3, 8),
        archive,
        plan,
        steps=1,
        seed=1,
        label_function=teacher,
        on_step=lambda _, loss: losses.append(float(loss)),
    )
    views = torch.cat(seen)
    assert views.shape == (8, 3, 8, 8)
    assert views.min() >= 0
    assert views.max() <= 1
    with open_archive(archive) as file:
        images = normalise(views, file.manifest.views)
    labels = torch.softmax(teacher(views) / 2, 1)
    truth = loss_of(plan, fresh(images.contiguous(memory_format=torch.channels_last)), labels)
    assert losses[0] == pytest.approx(float(truth.detach()), rel=1e-5)
