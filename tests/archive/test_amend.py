"""A copy with another record: all else stays byte for byte, and the original is only read."""

import json
from pathlib import Path

import pytest

from hellofmt.archive import amend_archive, check_amended_targets, open_archive, verify_archive
from hellofmt.archive.format.record import ChosenImages, Record, Result, SourceRecord
from hellofmt.archive.write.staged import Staged
from hellofmt.errors import CorruptError, HelloIOError, LimitError

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"
RECORD = Record(
    images=ChosenImages(candidates=3, chosen_by="chance", codec="png", crops=1, factor=1, ipc=1)
)
SHARDS = [VECTORS / f"shard-0000{k}-of-00002.hello" for k in range(2)]


@pytest.mark.parametrize(
    "name", ["everything", "images-png", "images-packed", "projector", "zstd-classes", "minor-1.7"]
)
def test_a_copy_differs_in_record_and_id_alone(tmp_path, name):
    source, copy = VECTORS / f"{name}.hello", tmp_path / "copy.hello"
    before = source.read_bytes()
    with open_archive(source) as old:
        made = amend_archive(old, copy, record=RECORD)
        report = verify_archive(copy, expect=made)
        assert (report.content_id, report.images) == (old.content_id, len(old))
        with open_archive(copy) as new:
            assert new.record == RECORD
            assert new.id != old.id
            for section in old.section_sizes():
                if section != "record":
                    assert new.section(section) == old.section(section)
            assert [new.read_image(k) for k in range(len(new))] == [
                old.read_image(k) for k in range(len(old))
            ]
            kept = [json.loads(file.manifest_bytes) for file in (old, new)]
            for document in kept:
                del document["sections"]
            assert kept[0] == kept[1]
            # Once more, and it is the first copy again.
            assert amend_archive(new, tmp_path / "again.hello", record=RECORD) == made
    assert source.read_bytes() == before
    assert (tmp_path / "again.hello").read_bytes() == copy.read_bytes()


def test_a_card_can_come_with_it(tmp_path):
    with open_archive(VECTORS / "everything.hello") as old:
        amend_archive(old, tmp_path / "x.hello", record=Record(), card="# Another\n")
    with open_archive(tmp_path / "x.hello") as new:
        assert new.section("card") == b"# Another\n"
        assert new.record == Record()
        assert list(new.section_sizes())[-3:] == ["record", "card", "license"]


def test_a_set_is_copied_shard_by_shard(tmp_path):
    with open_archive(SHARDS) as old:
        made = amend_archive(old, tmp_path / "set.hello", record=RECORD)
        files = sorted(tmp_path.iterdir())
        assert [f.name for f in files] == [f"set-0000{k}-of-00002.hello" for k in range(2)]
        report = verify_archive(files, expect=made)
        assert (report.content_id, report.images) == (old.content_id, 4)
    with open_archive(files) as new:
        assert new.record == RECORD


def test_an_existing_target_is_refused_before_anything(tmp_path):
    with open_archive(SHARDS) as old:
        (tmp_path / "set-00001-of-00002.hello").write_bytes(b"mine")
        for attempt in (
            lambda: check_amended_targets(old, tmp_path / "set.hello"),
            lambda: amend_archive(old, tmp_path / "set.hello", record=RECORD),
        ):
            with pytest.raises(HelloIOError, match=r"E_TARGET: .*set-00001-of-00002.hello. exists"):
                attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["set-00001-of-00002.hello"]
    with open_archive(SHARDS[0]) as old, pytest.raises(HelloIOError, match="E_TARGET"):
        amend_archive(old, SHARDS[0], record=RECORD)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    plain = Staged.publish
    calls = []

    def publish(staged, *, force):
        calls.append(staged)
        if len(calls) == 2:
            raise OSError(5, "lost")
        plain(staged, force=force)

    monkeypatch.setattr(Staged, "publish", publish)
    with open_archive(SHARDS) as old, pytest.raises(OSError, match="lost"):
        amend_archive(old, tmp_path / "set.hello", record=RECORD)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_image_is_not_copied(tmp_path):
    path = tmp_path / "x.hello"
    data = bytearray((VECTORS / "images-png.hello").read_bytes())
    data[data.index(b"\x89PNG") + 60] ^= 1
    path.write_bytes(data)
    with open_archive(path) as old, pytest.raises(CorruptError, match="E_DIGEST_MEMBER"):
        amend_archive(old, tmp_path / "copy.hello", record=RECORD)
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_that_is_too_large_is_refused(tmp_path):
    evaluated = SourceRecord(
        classes=2, digest="sha256:" + "0" * 64, images=5, name="n" * 400, per_class=[2, 3]
    )
    result = Result(
        accuracy=["1.0"] * 64,
        batch_size=1,
        bfloat16=False,
        device="d" * 400,
        evaluated=evaluated,
        images="archive",
        labels="soft",
        learning_rate="0.1",
        recipe="kl",
        seeds=list(range(64)),
        steps=1,
        student="s" * 400,
        versions={},
    )
    with (
        open_archive(VECTORS / "images-png.hello") as old,
        pytest.raises(LimitError, match="E_LIMIT_TEXT"),
    ):
        amend_archive(old, tmp_path / "copy.hello", record=Record(results=[result] * 64))
    assert list(tmp_path.iterdir()) == []
