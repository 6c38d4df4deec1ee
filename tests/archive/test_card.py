"""The generated card: a head that the Hub reads, and an answer to each question."""

from pathlib import Path

import msgspec
import pytest
from huggingface_hub import DatasetCard

from hellofmt.archive import UNSET, ClassLine, amend_archive, open_archive
from hellofmt.archive.card import generated_card, renewed_card
from hellofmt.archive.format.record import Record

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"


@pytest.fixture
def archive():
    with open_archive(VECTORS / "everything.hello") as file:
        yield file


def card_of(file, record=None, **changes):
    manifest = file.manifest
    dataset = msgspec.structs.replace(
        manifest.dataset, **{k: v for k, v in changes.items() if k in ("name", "license")}
    )
    pairs = zip(file.classes.keys, file.classes.names, strict=True)
    return generated_card(
        dataset,
        changes.get("classes") or [ClassLine(*pair) for pair in pairs],
        manifest.views,
        changes.get("images", len(file)),
        changes.get("base", manifest.base),
        file.record if record is None else record,
    )


def test_the_head_is_what_the_hub_reads(archive):
    data = DatasetCard(card_of(archive)).data.to_dict()
    assert data == {
        "license": "cc0-1.0",
        "pretty_name": "everything",
        "size_categories": ["n<1K"],
        "tags": ["dataset-distillation", "hello", "soft-labels"],
        "task_categories": ["image-classification"],
    }


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("NOASSERTION", {"license": "unknown"}),
        ("LicenseRef-Mine", {"license": "other", "license_name": "LicenseRef-Mine"}),
        ("yes: [no", {"license": "other", "license_name": "yes: [no"}),
    ],
)
def test_licenses(archive, license, expected):
    data = DatasetCard(card_of(archive, license=license)).data.to_dict()
    assert {k: v for k, v in data.items() if k.startswith("license")} == expected


@pytest.mark.parametrize(
    ("images", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (50_000, "10K<n<100K"), (200_000, "100K<n<1M")],
)
def test_size_categories(archive, images, category):
    assert DatasetCard(card_of(archive, images=images)).data["size_categories"] == [category]


def test_each_question_has_its_answer(archive):
    text = card_of(archive)
    for line in (
        "- made by: hello distill drawn --teacher teacher --base seeded --ipc 1",
        "- teacher: 97.5 % of 60 held-out images",
        "1. n02100735: English setter",
        "with mean 0.485 0.456 0.406 and std 0.229 0.224 0.225",
        "- cnn, kl, 300 steps of 50 views: 41.1 ± 1.6 % with 3 seeds, of 600 images of drawn",
        "- Random images were not measured",
        'dataset = hellofmt.HelloDataset("everything.hello")',
    ):
        assert line in text
    code = text.partition("```python\n")[2].partition("\n```")[0]
    compile(code, "card", "exec")
    assert len(code.splitlines()) == 5


def test_measured_baselines_are_listed_and_not_asked_for(archive):
    result = archive.record.results[0]
    random = msgspec.structs.replace(result, images="random")
    hard = msgspec.structs.replace(result, labels="hard", recipe="hard")
    text = card_of(archive, Record(results=[result, random, hard]))
    assert "not measured" not in text
    assert "- cnn, kl, random images, 300" in text
    assert "- cnn, hard labels, 300" in text
    assert "That is not recorded." in text


def test_what_a_reader_has_to_bring(archive):
    base = msgspec.structs.replace(archive.manifest.base, kind="open_clip", pretrained="openai")
    text = card_of(archive, base=base)
    assert 'base="open_clip:seeded:openai"' in text
    assert "It needs the public encoder seeded" in text
    assert 'labels="hard"' in card_of(archive, base=None)
    assert "images=your_images" in card_of(archive, images=0)
    assert "size_categories" not in card_of(archive, images=0)


def test_words_of_the_data_set_are_only_text(archive):
    evil = "x\n---\n# y <script> `a` [b](http://c) \x1b[31m"
    text = card_of(archive, name=evil, classes=[ClassLine("k|`", ("<b>",))] * 30)
    card = DatasetCard(text)
    assert card.data["pretty_name"].startswith("x\\n---")
    assert "<script>" not in card.text
    assert "\\<script\\>" in card.text
    assert not {"\x1b", "\x07"} & set(text)
    assert "... and 10 more: `hello inspect FILE --classes`" in text


def test_a_generated_card_follows_its_record_and_a_written_one_stays(archive, tmp_path):
    assert renewed_card(archive, Record()) is None
    amend_archive(archive, tmp_path / "a.hello", record=archive.record, card=card_of(archive))
    with open_archive(tmp_path / "a.hello") as file:
        new = msgspec.structs.replace(file.record, results=UNSET)
        assert renewed_card(file, new) == card_of(archive, new) != card_of(archive)
    with open_archive(VECTORS / "images-png.hello") as file:
        assert renewed_card(file, Record()) is None
