"""Every vector is read, or refused, exactly as the JSON file beside it says."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import zstandard

from hellofmt import errors
from hellofmt.archive import open_archive, verify_archive
from hellofmt.archive.format.probes import probe_images

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"
VALID = sorted((VECTORS / "valid").glob("*.hello"))
INVALID = sorted((VECTORS / "invalid").glob("*.hello"))
# What the committed vectors were made with; others compress to other bytes.
MADE_WITH = ((1, 5, 7), "1.2.13", "13.0.0")


def name_of(path):
    return path.stem


def expected(path):
    return json.loads(path.with_suffix(".json").read_text())


def without_views(document):
    if isinstance(document, dict):
        for view in document["views"]:
            del view["view"]
    return document


@pytest.mark.parametrize("path", VALID, ids=name_of)
def test_a_valid_vector_reads_as_its_file_says(path, make_vectors):
    report = verify_archive(path, pixels=True)
    found = make_vectors.expectation(path)
    assert found == expected(path)
    assert (report.id, report.content_id) == (found["id"], found["content_id"])
    assert report.images == len(found["images"])


@pytest.mark.parametrize("path", INVALID, ids=name_of)
def test_an_invalid_vector_is_refused_with_its_code(path):
    with pytest.raises(errors.HelloError) as caught:
        verify_archive(path, pixels=True)
    error = caught.value
    assert {"error": type(error).__name__, "code": error.code, "exit": error.exit_code} == (
        expected(path)
    )


def test_every_code_of_a_damaged_or_forbidden_file_has_a_vector():
    listed = {
        code.strip(",.:")
        for kind in (errors.NotHelloError, errors.CorruptError, errors.SpecError)
        for code in kind.__doc__.split()
        if code.startswith("E_")
    }
    assert listed <= {expected(path)["code"] for path in INVALID}


def test_what_the_page_names_beside_a_rule_is_there(spec_folder):
    """`[`a-vector`, test_of_a_module]`."""
    tests = {path.stem for path in spec_folder.parent.joinpath("tests").rglob("test_*.py")}
    text = (spec_folder / "hello-1.md").read_text()
    groups = re.findall(r"\[([^\[\]]*(?:`|test_)[^\[\]]*)\](?!\()", text)
    names = [name for group in groups for name in re.split(r",\s+", group)]
    assert len(names) > 20
    for name in names:
        is_vector = name.startswith("`") and any(VECTORS.glob(f"*/{name.strip('`')}.json"))
        assert is_vector or name == "`views/*`" or name in tests, name


def test_every_must_names_what_holds_it(spec_folder):
    text = (spec_folder / "hello-1.md").read_text()
    rules = [rule for block in text.split("\n\n") for rule in re.split(r"\n(?=- )", block)]
    musts = [rule for rule in rules if "MUST" in rule and "RFC 2119" not in rule]
    assert len(musts) > 15
    for rule in musts:
        # Sentences after the last name in brackets have no MUST.
        assert "MUST" not in rule[max(map(rule.rfind, ("`]", "`,", "test_"))) :], rule


def test_the_page_stays_short(spec_folder):
    text = (spec_folder / "hello-1.md").read_bytes()
    assert (text.count(b"\n") <= 608, len(text) <= 36_095) == (True, True)


def test_links_of_the_pages_lead_somewhere(spec_folder):
    for page in spec_folder.glob("*.md"):
        for linked in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in linked or (spec_folder / linked).exists(), (page.name, linked)


def test_vectors_are_small_and_have_their_file():
    for path in [*VALID, *INVALID]:
        assert path.stat().st_size < 1 << 16, path.name
    for folder in ("valid", "invalid"):
        names = {path.stem for path in (VECTORS / folder).glob("*.json")}
        assert names == {path.stem for path in (VECTORS / folder).glob("*.hello")}


def test_vectors_are_what_the_generator_writes(tmp_path, make_vectors):
    make_vectors.make(tmp_path)
    made = {p.relative_to(tmp_path) for p in tmp_path.rglob("*.*")}
    assert made == {p.relative_to(VECTORS) for p in VECTORS.rglob("*.*")}
    for path in sorted(made):
        new, old = (tmp_path / path).read_bytes(), (VECTORS / path).read_bytes()
        if path.match("views/*.json"):
            # The last bit of a view differs between machines, and so does its rounding.
            assert without_views(json.loads(new)) == without_views(json.loads(old)), path
        elif (zstandard.ZSTD_VERSION, zlib.ZLIB_RUNTIME_VERSION, PIL.__version__) == MADE_WITH:
            assert new == old, path
        elif path.match("valid/*.json"):
            assert json.loads(new)["content_id"] == json.loads(old)["content_id"], path


@pytest.mark.parametrize("name", ["projector", "everything", "projector-resnet"])
def test_the_label_function_of_a_vector_gives_its_probes(name):
    import torch

    from hellofmt.projector import Labeler

    with open_archive(VECTORS / "valid" / f"{name}.hello") as file:
        labeler = Labeler.from_file(file)
        stored, side = file.tensors("probes")["logits"], file.manifest.base.preprocess.size
    pictures = torch.from_numpy(probe_images(side, len(stored))).permute(0, 3, 1, 2).float() / 255
    logits = labeler.logits(pictures)
    # 2**-13 from the rounding of the stored ones, the rest for the machine.
    np.testing.assert_allclose(logits.numpy(), stored, atol=2**-12, rtol=0)
    labels = labeler.labels(pictures)
    np.testing.assert_allclose(labels, torch.softmax(logits.double() / 4.0, dim=1), atol=1e-6)
