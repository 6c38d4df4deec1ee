"""Every row once and every view new, on two gloo processes, under the real libraries.

Both processes are forked once and run every use; the tests read what they received. A view tells
its row by its red channel, which is the same all over an image and which crops and flips keep, and
its identity by its bytes: so what is counted is what the training loop got, whatever the path.
"""

from __future__ import annotations

import hashlib
import os
import socket
import warnings
from pathlib import Path

import lightning.pytorch
import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from hellofmt.archive import (
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    encode_image,
    write_archive,
)
from hellofmt.errors import UserInputError
from hellofmt.loading import HelloDataset, HelloLoader, HelloSampler, webdataset_samples

# No multiple of the global batch, nor of the ranks: something has to be filled up.
ROWS, BATCH, WORLD, EPOCHS = 23, 4, 2, 2
STEP = 10
PADDED = 24


@pytest.fixture(scope="module")
def path(tmp_path_factory, views_of):
    noise = np.random.default_rng(0).integers(0, 256, (ROWS, 12, 12, 3), np.uint8)
    noise[..., 0] = np.arange(ROWS)[:, None, None] * STEP
    items = [ImageItem(i * 2 // ROWS, encode_image(noise[i], "png")) for i in range(ROWS)]
    dataset = Dataset(name="red", version="1", license="CC0-1.0", method="test", sources=[])
    classes = (ClassLine("a", ("a",)), ClassLine("b", ("b",)))
    draft = Draft(dataset, classes, views_of(size=8), images=ImageSet("png", items, "auto"))
    path = tmp_path_factory.mktemp("frameworks") / "red.hello"
    write_archive(path, draft)
    return path


def seen(views):
    """(row, digest) of each view of a batch."""
    rows = (views[:, 0].mean(dim=(1, 2)) * 255 / STEP).round().int().tolist()
    return [
        (row, hashlib.sha256(view.numpy().tobytes()).hexdigest()[:12])
        for row, view in zip(rows, views, strict=True)
    ]


def passes(loader, epochs=EPOCHS, set_epoch=None, views_in=lambda batch: batch):
    """What each epoch gave."""
    got = []
    for epoch in range(epochs):
        if set_epoch is not None:
            set_epoch(epoch)
        got.append([view for batch in loader for view in seen(views_in(batch))])
    return got


class Recorder(lightning.pytorch.LightningModule):
    """A model that notes what it is trained on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.got = []

    def on_train_epoch_start(self):
        self.got.append([])

    def training_step(self, views, _index):
        # An epoch that is resumed does not start.
        self.got = self.got or [[]]
        self.got[-1].extend(seen(views))
        return self.layer(views.mean().reshape(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Student(torch.nn.Module):
    """What ``Trainer`` trains: a dict's values by name, a loss back."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.got = []

    def forward(self, pixel_values, labels):
        assert labels.dtype == torch.int64
        assert labels.shape == (len(pixel_values),)
        self.got.append(seen(pixel_values))
        return {"loss": self.layer(pixel_values.mean().reshape(1, 1)).sum()}


def plain_uses(path, built):
    """Process groups and nothing else."""

    def dataset():
        return HelloDataset(path, labels="none")

    sampler, told = DistributedSampler(dataset()), dataset()

    def tell(epoch):
        built["dataset"].set_epoch(epoch)
        told.set_epoch(epoch)
        sampler.set_epoch(epoch)

    return {
        "ddp, dataset": passes(
            DataLoader(dataset(), BATCH, sampler=sampler), set_epoch=sampler.set_epoch
        ),
        "ddp, dataset, workers": passes(
            DataLoader(dataset(), BATCH, sampler=sampler, num_workers=2, persistent_workers=True),
            set_epoch=sampler.set_epoch,
        ),
        "ddp, dataset, told": passes(DataLoader(told, BATCH, sampler=sampler), set_epoch=tell),
        "ddp, dataset, built before": passes(
            DataLoader(built["dataset"], BATCH, sampler=sampler, num_workers=1), set_epoch=tell
        ),
        "ddp, dataset, undivided": passes(DataLoader(dataset(), BATCH, shuffle=True)),
        "ddp, sampler": passes(built["sampler"]),
        "ddp, loader": passes(built["loader"]),
        "ddp, samples": [keys_of(webdataset_samples(path))],
        "ddp, samples, workers": [
            keys_of(DataLoader(webdataset_samples(path), None, num_workers=2))
        ],
    }


def accelerate_uses(path):
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == WORLD

    def dataset():
        return HelloDataset(path, labels="none")

    def with_sampler(**options):
        data = dataset()
        return DataLoader(data, batch_sampler=HelloSampler(data, batch_size=BATCH, **options))

    loader = HelloLoader(path, batch_size=BATCH, labels="none")
    assert accelerator.prepare(loader) is loader
    uses = {
        "accelerate, dataset": passes(
            accelerator.prepare(DataLoader(dataset(), BATCH, shuffle=True))
        ),
        "accelerate, sampler": passes(accelerator.prepare(with_sampler())),
        "accelerate, sampler, drop_last": passes(accelerator.prepare(with_sampler(drop_last=True))),
        "accelerate, sampler, unprepared": passes(with_sampler()),
        "accelerate, loader": passes(loader),
    }
    for name, options in {
        "shard": {},
        "dispatch": {"dispatch_batches": True, "put_on_device": True},
    }.items():
        samples = DataLoader(webdataset_samples(path), BATCH, num_workers=1, collate_fn=numbers_of)
        prepared = prepare_data_loader(samples, device=torch.device("cpu"), **options)
        uses[f"accelerate, samples, {name}"] = [[n for batch in prepared for n in batch.tolist()]]
    for name, options in {
        "split": {"split_batches": True},
        "dispatched": {"dispatch_batches": True, "put_on_device": True},
        "stateful": {"use_stateful_dataloader": True},
    }.items():
        prepared = prepare_data_loader(with_sampler(), device=torch.device("cpu"), **options)
        uses[f"accelerate, sampler, {name}"] = passes(prepared)
    try:
        next(iter(accelerator.prepare(with_sampler(num_replicas=WORLD, rank=0))))
    except UserInputError as error:
        uses["accelerate, sampler, twice"] = str(error)
    return uses


def keys_of(samples):
    return [int(sample["__key__"][-6:]) for sample in samples]


def numbers_of(samples):
    return torch.tensor(keys_of(samples))


def accelerate_resumes(path, folder):
    """The second epoch whole, and its rest after two batches in two ways."""
    accelerator = Accelerator(cpu=True)

    def prepared(model=None):
        data = HelloDataset(path, labels="none", seed=3)
        loader = DataLoader(data, batch_sampler=HelloSampler(data, batch_size=BATCH, seed=3))
        return accelerator.prepare(loader)

    loader, model = prepared(), accelerator.prepare(torch.nn.Linear(1, 1))
    whole = passes(loader)[1]
    accelerator.save_state(folder)
    # Rank 0 alone writes what the others read.
    accelerator.wait_for_everyone()
    with torch.no_grad():
        model.module.weight.add_(1.0)
    accelerator.load_state(folder)
    again = prepared()
    again.set_epoch(1)
    skipped = [v for b in accelerator.skip_first_batches(again, 2) for v in seen(b)]
    # By the sampler's own state: taken in the middle of the second epoch, loaded into a third.
    first = prepared()
    list(first)
    steps = iter(first)
    next(steps), next(steps)
    sampler = first.batch_sampler.batch_sampler
    state = sampler.state_dict(2)
    try:
        sampler.state_dict()
    except ValueError as error:
        unknown = str(error)
    third = prepared()
    third.set_epoch(state["epoch"])
    third.batch_sampler.batch_sampler.load_state_dict(state)
    loaded = [view for batch in third for view in seen(batch)]
    return {"whole": whole, "skipped": skipped, "loaded": loaded, "unknown": unknown}


def lightning_uses(path, folder, built):
    def fit(loader, at=None, **options):
        model = Recorder()
        trainer = lightning.pytorch.Trainer(
            accelerator="cpu",
            devices=WORLD,
            strategy="ddp",
            max_epochs=EPOCHS,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **{"enable_checkpointing": False, **options},
        )
        trainer.fit(model, loader, ckpt_path=at, weights_only=False)
        return model.got

    data = HelloDataset(path, labels="none")

    def with_sampler():
        return DataLoader(data, batch_sampler=HelloSampler(data, batch_size=BATCH))

    uses = {
        "lightning, dataset": fit(DataLoader(data, BATCH, shuffle=True)),
        "lightning, sampler": fit(with_sampler(), use_distributed_sampler=False),
        "lightning, loader": fit(built["for lightning"]),
    }
    # After the first batch of the second epoch.
    each = -(-PADDED // (BATCH * WORLD))
    kept = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, "at", every_n_train_steps=each + 1, save_top_k=-1
    )
    seeded = {"batch_size": BATCH, "labels": "none", "seed": 3}
    whole = fit(HelloLoader(path, **seeded), enable_checkpointing=True, callbacks=[kept])
    rest = fit(HelloLoader(path, **seeded), at=f"{folder}/at.ckpt")
    uses["lightning, rest"] = (whole[1][BATCH:], rest)
    try:
        fit(with_sampler())
    except UserInputError as error:
        uses["lightning, sampler, default"] = str(error)
    return uses


def trainer_uses(path, folder):
    student = Student()
    data = HelloDataset(path, labels="hard", as_dict=("pixel_values", "labels"), transform=as_it_is)
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        per_device_train_batch_size=BATCH,
        report_to=[],
        num_train_epochs=EPOCHS,
        save_strategy="no",
        disable_tqdm=True,
        ddp_backend="gloo",
        logging_strategy="no",
    )
    transformers.Trainer(student, arguments, train_dataset=data).train()
    each = -(-len(student.got) // EPOCHS)
    batches = [student.got[:each], student.got[each:]]
    return {"trainer, dataset": [[view for batch in part for view in batch] for part in batches]}


def as_it_is(view):
    return view


def stateful_uses(path):
    def fresh():
        data = HelloDataset(path, labels="none", seed=3)
        sampler = HelloSampler(data, batch_size=BATCH, seed=3)
        return StatefulDataLoader(data, batch_sampler=sampler)

    loader = fresh()
    uses = {"stateful, sampler": passes(loader)}
    data = HelloDataset(path, labels="none")
    uses["stateful, dataset"] = passes(
        StatefulDataLoader(data, BATCH, sampler=DistributedSampler(data))
    )
    first = fresh()
    list(first)
    steps = iter(first)
    next(steps), next(steps)
    again = fresh()
    again.load_state_dict(first.state_dict())
    uses["stateful, rest"] = [[view for batch in again for view in seen(batch)]]
    return uses


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


@pytest.fixture(scope="module")
def received(path, in_ranks, tmp_path_factory):
    """What each use gave, by rank."""
    folder = str(tmp_path_factory.mktemp("output"))
    port = free_port()
    # Built before there is a process group, as for Lightning.
    data = HelloDataset(path, labels="none")
    built = {
        "dataset": HelloDataset(path, labels="none"),
        "sampler": DataLoader(data, batch_sampler=HelloSampler(data, batch_size=BATCH)),
        "loader": HelloLoader(path, batch_size=BATCH, labels="none"),
        "for lightning": HelloLoader(path, batch_size=BATCH, labels="none"),
    }

    def work(rank):
        # As torchrun says it.
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(WORLD),
            NODE_RANK="0",
            LOCAL_WORLD_SIZE=str(WORLD),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="hellofmt")
        return {
            **plain_uses(path, built),
            **accelerate_uses(path),
            "resumed": accelerate_resumes(path, folder),
            **stateful_uses(path),
            **trainer_uses(path, folder),
            **lightning_uses(path, folder, built),
        }

    return in_ranks(WORLD, work)


# Loops of the table in docs/howto/trainers.md, what each was given there, and what passes have to
# count: views served in an epoch by both ranks, and different ones in two epochs. What fills up the
# ranks shows its view again where the epoch is known, else a new one.
USES = {
    "plain DDP": {
        "ddp, dataset": (PADDED, 2 * PADDED),
        "ddp, dataset, workers": (PADDED, 2 * PADDED),
        "ddp, dataset, told": (PADDED, 2 * ROWS),
        "ddp, dataset, built before": (PADDED, 2 * ROWS),
        "ddp, dataset, undivided": (2 * ROWS, 4 * ROWS),
        "ddp, sampler": (PADDED, 2 * ROWS),
        "ddp, loader": (PADDED, 2 * ROWS),
    },
    "Accelerate": {
        "accelerate, dataset": (PADDED, 2 * ROWS),
        "accelerate, sampler": (PADDED, 2 * ROWS),
        "accelerate, sampler, unprepared": (PADDED, 2 * ROWS),
        "accelerate, sampler, split": (PADDED, 2 * ROWS),
        "accelerate, sampler, dispatched": (PADDED, 2 * ROWS),
        "accelerate, sampler, stateful": (PADDED, 2 * ROWS),
        "accelerate, loader": (PADDED, 2 * ROWS),
    },
    "Lightning": {
        "lightning, dataset": (PADDED, 2 * PADDED),
        "lightning, sampler": (PADDED, 2 * ROWS),
        "lightning, loader": (PADDED, 2 * ROWS),
    },
    "Hugging Face `Trainer`": {"trainer, dataset": (PADDED, 2 * PADDED)},
    "`StatefulDataLoader`": {
        "stateful, dataset": (PADDED, 2 * PADDED),
        "stateful, sampler": (PADDED, 2 * ROWS),
    },
}
CASES = [(use, *counts) for loop in USES.values() for use, counts in loop.items()]


@pytest.mark.parametrize(("use", "served", "different"), CASES, ids=[case[0] for case in CASES])
def test_every_row_comes_and_every_view_is_new(received, use, served, different):
    epochs = [[view for rank in received for view in rank[use][epoch]] for epoch in range(EPOCHS)]
    for views in epochs:
        assert len(views) == served
        assert {row for row, _ in views} == set(range(ROWS))
    assert len(set(epochs[0] + epochs[1])) == different
    if served == PADDED:
        assert len({len(rank[use][0]) for rank in received}) == 1


def test_the_documentation_names_every_loop():
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs/howto/trainers.md").read_text(encoding="utf-8")
    table = page.split("\n| loop |")[1].split("\n\n")[0]
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == list(USES)


def test_accelerate_gives_each_rank_what_it_has_without(received):
    for rank in received:
        for use in ("prepared", "split", "dispatched", "stateful"):
            name = "accelerate, sampler" + (f", {use}" if use != "prepared" else "")
            assert len(rank["ddp, sampler"]) == EPOCHS
            for got, expected in zip(rank[name], rank["ddp, sampler"], strict=True):
                # Pieces of batches are half as long, and lie elsewhere.
                if use != "split":
                    assert got[: 2 * BATCH] == expected[: 2 * BATCH]


def test_accelerate_drops_whole_global_batches(received):
    for epoch in range(EPOCHS):
        views = [v for rank in received for v in rank["accelerate, sampler, drop_last"][epoch]]
        assert len(views) == ROWS - ROWS % (BATCH * WORLD)
        assert len({row for row, _ in views}) == len(views)


def test_accelerate_resumes_at_the_batch(received):
    for rank in received:
        resumed = rank["resumed"]
        rest = resumed["whole"][2 * BATCH :]
        assert resumed["skipped"] == rest
        # Accelerate fills up with the first rows that it drew, which are others here.
        assert resumed["loaded"][: BATCH - 1] == rest[: BATCH - 1]
        assert len(resumed["loaded"]) == len(rest)
        assert resumed["unknown"].startswith("`batches_done`: expected the number of batches that")


def test_a_stateful_loader_resumes_at_the_batch(received):
    for rank in received:
        assert rank["stateful, rest"][0] == rank["stateful, sampler"][1][2 * BATCH :]


def test_lightnings_checkpoint_resumes_a_loader_at_the_batch(received):
    for rank in received:
        expected, got = rank["lightning, rest"]
        assert got == [expected]
        assert len(expected) == PADDED // WORLD - BATCH


@pytest.mark.parametrize("use", ["ddp, samples", "ddp, samples, workers"])
def test_ranks_share_the_samples(received, use):
    assert sorted(number for rank in received for number in rank[use][0]) == list(range(ROWS))


@pytest.mark.parametrize("use", ["shard", "dispatch"])
def test_accelerate_divides_the_samples_once(received, use):
    numbers = [number for rank in received for number in rank[f"accelerate, samples, {use}"][0]]
    assert len(numbers) == PADDED
    assert set(numbers) == set(range(ROWS))


def test_what_would_be_divided_twice_is_refused(received):
    for rank in received:
        text = rank["accelerate, sampler, twice"]
        assert text.startswith("E_OPTION: `num_replicas` of a sampler that Accelerate divides")
        text = rank["lightning, sampler, default"]
        assert text.startswith("E_OPTION: `dataset` is a DistributedSampler, as Lightning puts it")
        assert "pass Trainer(use_distributed_sampler=False)" in text


def test_models_of_transformers_take_soft_labels_for_many_labels_at_once(path):
    config = transformers.ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        image_size=8, patch_size=4, num_labels=2,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    items = HelloDataset(path, labels="hard", as_dict=("pixel_values", "labels"))
    batch = transformers.default_data_collator(items.__getitems__([0, 22]))
    assert batch["labels"].tolist() == [0, 1]
    batch["labels"] = torch.nn.functional.one_hot(batch["labels"], 2).float()
    model(**batch)
    assert model.config.problem_type == "multi_label_classification"
