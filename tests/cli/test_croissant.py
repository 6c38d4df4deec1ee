"""``hello croissant``: MLCommons' own reader finds the images and their classes."""

import hashlib
import json
import os
import subprocess
import sys

import hellofmt

# A process of its own: the reader leaves files open, and keeps what it read below its cache.
READER = """
import hashlib, json, mlcroissant, numpy
dataset = mlcroissant.Dataset(jsonld="croissant.json")
pixels = lambda row: hashlib.sha256(numpy.asarray(row["images/image"]).tobytes()).hexdigest()
rows = [(row["images/label"], pixels(row)) for row in dataset.records("images")]
names = [row["classes/name"] for row in dataset.records("classes")]
print(json.dumps([dataset.metadata.name, rows, names]))
"""


def test_mlcroissant_reads_labelled_rows(image_folder, tmp_path, invoke):
    path = tmp_path / "photos.hello"
    hellofmt.pack(image_folder, path, layout="files")
    result = invoke("croissant", path, "-o", tmp_path / "croissant.json")
    assert result.exit_code == 0, result.output
    read = subprocess.run(  # noqa: S603
        [sys.executable, "-c", READER],
        cwd=tmp_path,
        env={**os.environ, "CROISSANT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    name, rows, names = json.loads(read.stdout)
    with hellofmt.open(path) as archive:
        wanted = [
            [int(label), hashlib.sha256(archive.decode_image(row).tobytes()).hexdigest()]
            for row, label in enumerate(archive.index.label)
        ]
    assert (name, sorted(rows), names) == ("images", sorted(wanted), ["cat", "dog", "owl"])


def test_packed_images_are_refused_with_what_to_do(image_folder, tmp_path, invoke):
    path = tmp_path / "photos.hello"
    hellofmt.pack(image_folder, path, layout="packed")
    result = invoke("croissant", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "packed images" in result.stderr
    assert "--layout files" in result.stderr


def test_the_place_of_the_archive_may_be_a_url(image_folder, tmp_path, invoke):
    path = tmp_path / "photos.hello"
    hellofmt.pack(image_folder, path, layout="files")
    url = "https://example.org/photos.hello"
    document = json.loads(invoke("croissant", path, "--url", url).stdout)
    assert document["distribution"][0]["contentUrl"] == url
    assert document["identifier"] == hellofmt.verify(path).id


def test_a_shard_is_not_described_as_the_whole_set(image_folder, tmp_path, invoke):
    hellofmt.pack(image_folder, tmp_path / "photos.hello", layout="files", shards=2)
    for name in ("photos-00001-of-00002.hello", "photos-*-of-00002.hello"):
        result = invoke("croissant", tmp_path / name)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "this has several shards" in result.stderr
