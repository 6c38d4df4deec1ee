"""A hostile label function ends in one line and the right exit, soon and in little memory.

For the ceiling a file goes through ``verify --probes``, ``inspect --classes --json``,
``HelloDataset(...)[0]`` and ``Labeler.from_file`` in a forked child of one program. CPU time is
measured, not wall time: a busy machine does not fail the test.
"""

import json
import subprocess
import sys

import pytest
from tracing import HERE
from zoo.functions import FUNCTIONS, Living, archive, labeler_of, learned
from zoo.parts import EXITS

from hellofmt.errors import BaseModelError, HelloError

MIB = 1 << 20
# Above the imports: what the same actions on a valid file take is not counted.
CEILING = 300_000_000
SECONDS = 10.0
LABELLING = {"E_BASE_CONFIG": 8, "E_BASE_WEIGHTS": 8}
WITHOUT_LABELS = {"as_many_classes_as_are_read", "a_million_names"}


def exit_of(code):
    if code.startswith("E_LIMIT_"):
        return 6
    return LABELLING[code] if code in LABELLING else EXITS[code][1]


def wanted(name):
    """What making labels ends in; a mere inspection may end in 0."""
    if name in WITHOUT_LABELS:
        # A mistake of the user's, not of the file.
        return [2, "E_OPTION"]
    code = FUNCTIONS[name][0]
    return [exit_of(code) if code else 0, code]


# Of every way to be expensive one, and those that are allowed the most.
COSTLY = [
    *("eight_hundred_million_parameters", "a_thousand_long_prompts"),
    *("as_many_classes_as_are_read", "pictures_of_sixteen_million_pixels"),
]


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - COSTLY - WITHOUT_LABELS))
def test_a_kind_ends_as_it_should(name):
    code, make = FUNCTIONS[name]
    data = make()
    if not code:
        labeler_of(data)
        return
    with pytest.raises(HelloError) as caught:
        labeler_of(data)
    assert [caught.value.exit_code, caught.value.code] == wanted(name)


def test_costly_kinds_end_soon_and_in_little_memory(tmp_path):
    check(tmp_path, COSTLY)


@pytest.mark.slow
def test_every_kind_ends_soon_and_in_little_memory(tmp_path):
    check(tmp_path, list(FUNCTIONS))


def check(tmp_path, names):
    if sys.platform != "linux":
        pytest.skip("peaks of memory are read as on Linux")
    warm = tmp_path / "warm.hello"
    warm.write_bytes(archive("embedded"))
    paths = []
    for name in names:
        paths.append(tmp_path / f"{name}.hello")
        paths[-1].write_bytes(FUNCTIONS[name][1]())
        assert paths[-1].stat().st_size <= 2 * MIB
    command = [sys.executable, HERE / "labelling.py", warm, *paths]
    done = subprocess.run(  # noqa: S603 (our own program)
        command, capture_output=True, text=True, check=True, timeout=900
    )
    valid, *lines = map(json.loads, done.stdout.splitlines())
    wrong = []
    for name, line in zip(names, lines, strict=True):
        ends = {key: end for key, end in line["done"].items() if end != wanted(name)}
        allowed = {"inspect": [0, ""]}
        if name in WITHOUT_LABELS:
            allowed["dataset"] = [2, "E_DATA"]
        if any(allowed.get(key) != end for key, end in ends.items()):
            wrong.append((name, ends))
        if line["seconds"] > SECONDS or line["peak"] - valid["peak"] > CEILING:
            wrong.append((name, line["seconds"], line["peak"] - valid["peak"]))
    assert wrong == []


@pytest.mark.parametrize("kind", ["seeded", "embedded", "text"])
def test_what_the_lies_start_from_makes_labels(kind):
    assert labeler_of(archive(kind))[1] == 2


def test_a_lie_reaches_the_labels_when_it_is_learned():
    changed = Living.of(archive("seeded").replace(b'"seed":5', b'"seed":6')).build()
    with pytest.raises(BaseModelError, match="E_BASE_WEIGHTS"):
        labeler_of(changed)
    assert labeler_of(learned(changed))[1] == 2
