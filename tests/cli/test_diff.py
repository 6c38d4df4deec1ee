"""`hello diff`: same or not, and in what."""

import hashlib
import json

import jsonschema
import msgspec
import pytest

from hellofmt.archive import open_archive
from hellofmt_cli.diff import _facts


@pytest.fixture
def make(tmp_path, image_folder, invoke):
    def pack(name, *options):
        path = tmp_path / name
        result = invoke("pack", image_folder, "-o", path, "--name", "toy", *options)
        assert result.exit_code == 0, result.stderr
        return path

    return pack


def test_same(make, invoke, invoke_json):
    a = make("a.hello", "--layout", "files")
    b = make("b.hello", "--layout", "files")
    document = invoke_json("diff", a, b)
    assert document["same"]
    assert document["same_content"]
    assert document["manifest"] == document["sections"] == []
    result = invoke("diff", a, b, "--exit-code")
    assert (result.exit_code, result.stdout) == (0, f"same: {document['id'][0]}\n")


def test_fields_and_exit_code(make, invoke, invoke_json):
    a = make("a.hello", "--layout", "files", "--note", "k=old")
    b = make("b.hello", "--layout", "files", "--version", "1.1.0", "--view-flip", "0.25")
    document = invoke_json("diff", a, b)
    assert not document["same"]
    assert document["manifest"] == [
        {"key": "dataset.version", "a": "1.0.0", "b": "1.1.0"},
        {"key": "views.flip", "a": "0.5", "b": "0.25"},
        {"key": "x_k", "a": "old", "b": None},
    ]
    result = invoke("diff", a, b)
    assert result.exit_code == 0
    assert "dataset.version  1.0.0 -> 1.1.0\n" in result.stdout
    assert "x_k              old -> absent\n" in result.stdout
    assert "images           6 in common\n" in result.stdout
    assert invoke("diff", a, b, "--exit-code").exit_code == 1


def test_same_content_in_two_files(make, invoke, invoke_json):
    a = make("a.hello", "--layout", "files", "--note", "k=old")
    b = make("b.hello", "--layout", "files", "--note", "k=new")
    document = invoke_json("diff", a, b)
    assert (document["same"], document["same_content"]) == (False, True)
    assert "same content under two ids" in invoke("diff", a, b).stdout


def test_images_and_classes(make, image_folder, invoke, invoke_json, png):
    a = make("a.hello", "--layout", "files")
    (image_folder / "cat" / "0.png").unlink()
    (image_folder / "dog" / "0.png").rename(image_folder / "owl" / "z.png")
    (image_folder / "cat" / "new.png").write_bytes(png(99))
    (image_folder / "yak").mkdir()
    (image_folder / "yak" / "0.png").write_bytes(png(100))
    b = make("b.hello", "--layout", "files")
    document = invoke_json("diff", a, b)
    assert document["images"] == {"common": 4, "only_a": 1, "only_b": 2, "relabelled": 1}
    assert document["classes"] == {"only_a": [], "only_b": ["yak"], "same_order": False}
    page = invoke("diff", a, b).stdout
    assert "4 in common, 1 with another label, 1 only in A, 2 only in B\n" in page
    assert "1 class only in B: yak\n" in page
    assert "other bytes\n" in page


def test_a_label_function_on_one_side(make, make_projector, invoke):
    plain = make("a.hello", "--layout", "files")
    labelled = make("b.hello", "--layout", "files", "--projector", make_projector())
    page = invoke("diff", plain, labelled).stdout
    for section in ("adapter", "head", "probes"):
        assert f"section {section} " in page
    assert "only in B\n" in page
    assert "absent -> 7\n" in page


def test_order_of_classes(make, tmp_path, invoke):
    listed = tmp_path / "classes.txt"
    listed.write_text("owl\ncat\ndog\n")
    a = make("a.hello", "--layout", "files")
    b = make("b.hello", "--layout", "files", "--classes", listed)
    page = invoke("diff", a, b).stdout
    assert "in another order\n" in page
    assert "0 in common, 6 with another label\n" in page


def test_a_section_is_compared_unpacked(make, tmp_path):
    listed = tmp_path / "classes.txt"
    listed.write_text("cat\ndog\nowl\n" + "".join(f"class number {i}\n" for i in range(500)))
    with open_archive(make("a.hello", "--classes", listed)) as file:
        section = next(s for s in file.manifest.sections if s.name == "classes")
        assert section.encoding == "zstd"
        digest = hashlib.sha256(file.section("classes")).hexdigest()
        assert _facts(file)["sections"]["classes"] == f"sha256:{digest}"


def test_errors_name_the_file_at_fault(make, tmp_path, invoke):
    a = make("a.hello", "--layout", "files")
    (tmp_path / "b.hello").write_text("no archive")
    result = invoke("diff", a, tmp_path / "b.hello")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"Error: {tmp_path / 'b.hello'}: E_MAGIC")


def test_schema_takes_the_manifest(full, invoke):
    schema = json.loads(invoke("schema").stdout)
    manifest = json.loads(invoke("cat", full, "manifest").stdout)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(manifest)
    with open_archive(full) as file:
        assert msgspec.to_builtins(file.manifest) == manifest
    manifest["dataset"]["colour"] = "red"
    assert not validator.is_valid(manifest)
