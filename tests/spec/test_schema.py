"""The committed JSON Schema is the one the types give; it admits what the reader admits."""

import json
from pathlib import Path

import jsonschema
import pytest

from hellofmt.archive import open_archive
from hellofmt.archive.format.schema import json_schema, record_schema

SPEC = Path(__file__).resolve().parents[2] / "spec"
VALID = sorted((SPEC / "vectors" / "valid").glob("*.hello"))


def manifest_of(path):
    data = path.read_bytes()
    return json.loads(data[512 : 512 + int(data[124:135], 8)])


def problems(document):
    return list(jsonschema.Draft202012Validator(json_schema()).iter_errors(document))


def example():
    return manifest_of(SPEC / "vectors" / "valid" / "everything.hello")


def test_the_committed_schema_is_current():
    for name, schema in (("hello-1", json_schema()), ("hello-1-record", record_schema())):
        text = json.dumps(schema, indent=1) + "\n"
        assert (SPEC / f"{name}.schema.json").read_text() == text


@pytest.mark.parametrize("schema", [json_schema, record_schema])
def test_the_schema_is_a_schema(schema):
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["$schema"].endswith("2020-12/schema")


def test_the_schema_of_the_record_admits_a_record_and_no_other_key():
    with open_archive(SPEC / "vectors" / "valid" / "everything.hello") as file:
        record = json.loads(file.section("record"))
    validator = jsonschema.Draft202012Validator(record_schema())
    assert list(validator.iter_errors(record)) == []
    for place, value in (
        (["note"], "here"),
        (["results", 0, "accuracy", 0], "100.5"),
        (["functions", 0, "run", "host"], "here"),
        (["images", "ipc"], 0),
    ):
        spoilt = json.loads(json.dumps(record))
        spoil(spoilt, place, value)
        assert list(validator.iter_errors(spoilt)), place


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_the_schema_admits_every_valid_vector(path):
    document = manifest_of(path)
    found = problems(document)
    if document["hello"] != "1.0":
        # Keys of a later minor version are what its own schema would say.
        found = [p for p in found if p.validator != "additionalProperties"]
    assert found == []


def spoil(document, place, value):
    *path, last = place
    for key in path:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["colour"], "sRGB"),
        (["x_number"], 1),
        (["hello"], 1.0),
        (["hello"], "1.0\n"),
        (["classes"], 0),
        (["classes"], 2**53),
        (["views", "flip"], "0.50"),
        (["views", "flip"], "-0.0"),
        (["views", "flip"], "1e-3"),
        (["views", "flip"], 0.5),
        (["views", "mean"], ["0.5", "0.5"]),
        (["views", "mix"], "blend"),
        (["base", "digest"], "sha256:" + "A" * 64),
        (["base", "arch", "vision", "timm_model_pretrained"], True),
        (["sections", 0, "name"], "../x"),
        (["sections", 0, "encoding"], "gzip"),
        (["images", "codec"], "tiff"),
        (["functions", 0, "adapter", "targets", 0, "a"], [1, 2, 3]),
    ],
    ids=str,
)
def test_the_schema_refuses(place, value):
    document = example()
    assert problems(document) == []
    spoil(document, place, value)
    assert problems(document)


def test_free_keys_are_strings():
    document = example()
    document["x_anything"] = "text"
    assert problems(document) == []
    document["y_anything"] = "text"
    assert [p.validator for p in problems(document)] == ["additionalProperties"]


def test_each_call_gives_a_new_schema():
    json_schema()["$defs"].clear()
    assert json_schema()["$defs"]
