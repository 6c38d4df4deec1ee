"""Which label a class gets, and which tables are refused before anything is done with them."""

import pytest
import torchvision

from hellofmt.archive import ClassLine
from hellofmt.errors import UserInputError
from hellofmt.sources.folder import list_folder
from hellofmt.sources.listing import Listing
from hellofmt.sources.places import placed

ANIMALS = [ClassLine("n02012849", ("crane",)), ClassLine("n03126707", ("crane",))]


def listing(*keys, **options):
    return Listing("set", list(keys), **options)


def places(of, classes=None):
    lines, place, notes = placed(of, classes)
    return [line.key for line in lines], [place[key] for key in of.keys], notes


def test_without_a_list_names_decide_as_in_image_folder(tree):
    root = tree("9/1.png", "10/1.png", "2/1.png")
    keys, labels, notes = places(list_folder(root)[0])
    assert keys == torchvision.datasets.ImageFolder(root).classes == ["10", "2", "9"]
    assert labels == [0, 1, 2]
    (note,) = notes
    assert note.startswith("classes are numbered in the order of their names, as torchvision's Im")
    assert note.endswith("label 0 is `10`")


@pytest.mark.parametrize("keys", [("00", "02", "10"), ("0", "1", "2"), ("a", "b10", "b2")])
def test_orders_that_need_no_note(keys):
    assert places(listing(*keys)) == (sorted(keys), list(range(len(keys))), [])


def test_one_class_is_said():
    assert places(listing("x1")) == (["x1"], [0], ["all images are of one class, `x1`"])


def test_accents_apart_from_their_letters_are_the_same_text():
    apart, composed = "cafe\u0301", "caf\u00e9"
    lines = [ClassLine("bar", ("bar",)), ClassLine(composed, (composed,))]
    assert places(listing(apart, "bar"), lines) == (["bar", composed], [1, 0], [])
    with pytest.raises(UserInputError, match="E_DATA: the classes of `set`: two of them are `caf"):
        places(listing(apart, composed))


@pytest.mark.parametrize("key", ["Great white shark", "great_white_shark"])
def test_a_key_that_is_nearly_in_the_list_is_named(key):
    lines = [ClassLine("tench", ("tench",)), ClassLine("great white shark", ("shark",))]
    message = f"`{key}` is like `great white shark`; rename one of them"
    with pytest.raises(UserInputError, match=f"E_DATA: .* not in the class list .*{message}"):
        places(listing("tench", key), lines)


def test_a_list_is_looked_up_by_key():
    lines = [ClassLine(key, (key,)) for key in ("owl", "2", "cat", "1")]
    assert places(listing("1", "2", "cat"), lines) == (
        ["owl", "2", "cat", "1"],
        [3, 1, 2],
        ["classes without an image: 1 of 4, such as `owl`"],
    )


def test_labels_that_no_image_has_are_said():
    # Labels of somebody who counts from 1.
    lines = [ClassLine(str(label), (str(label),)) for label in range(3)]
    shards = listing("1", "2", lines=lines, is_numbered=True)
    note = "classes without an image: 1 of 3, such as `0`"
    assert places(shards) == (["0", "1", "2"], [1, 2], [note])


@pytest.mark.parametrize("keys", [("0", "1"), ("000", "001"), ("new0", "new1"), ("1", "0")])
def test_numbers_are_places_in_a_list_that_has_none(keys):
    _, labels, notes = places(listing(*keys), ANIMALS)
    assert labels == [int(key.removeprefix("new")) for key in keys]
    (note,) = notes
    assert "classes of `set` are numbers, taken as places in the class list: " in note
    assert note.endswith(f"`{keys[0]}` is `{ANIMALS[labels[0]].key}` (crane)")


def test_labels_of_shards_are_places_in_any_list():
    shards = listing(
        "0", "1", lines=[ClassLine("0", ("0",)), ClassLine("1", ("1",))], is_numbered=True
    )
    assert places(shards) == (["0", "1"], [0, 1], [])
    # A list whose keys are numbers in the order of their names: label 1 could mean either.
    lines = [ClassLine(key, (key,)) for key in ("0", "10", "1")]
    with pytest.raises(
        UserInputError, match="E_DATA: class 1 of `set` is a number, and so are the "
    ):
        placed(shards, lines)
    with pytest.raises(UserInputError, match="place 1 is `10`: expected the keys of the list"):
        placed(listing("00", "01"), lines)
    # Folders are looked up by name first.
    assert places(listing("1", "10"), lines)[1] == [2, 1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("0", "2"), "are numbers up to 2, places in the class list; expected less than 2"),
        (
            ("cat", "n02012849"),
            "1 of 2 classes of `set` are not in the class list of 2: cat; expec",
        ),
        (("cat", "dog"), "2 of 2 .*: cat, dog; expected n02012849, n03126707"),
        (("n01641577", "n01644373"), "2 of 2 .*: n01641577, n01644373; expected n02012849"),
        (("0", "n02012849"), "1 of 2 classes of `set` are not in the class list of 2: 0"),
        (("a0", "b1"), "2 of 2 classes"),
    ],
)
def test_classes_that_do_not_match(keys, message):
    with pytest.raises(UserInputError, match="E_DATA: .*" + message):
        placed(listing(*keys), ANIMALS)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("caf\udce9", r"class 1: not UTF-8: caf\\udce9"),
        ("a\nb", r"class 1: control character in a\\nb"),
        ("cat ", "class 1: empty or padded name in cat"),
        ("cat, ", "class 1: empty or padded name in cat"),
        ("y" * 2100, "class 1: line of 4201 bytes; expected at most 4096: yyy"),
    ],
)
def test_tables_that_no_archive_holds_are_refused_at_once(key, message):
    with pytest.raises(UserInputError, match="E_DATA: the classes of `set`: " + message):
        placed(listing("A", key))


def test_a_folder_name_with_synonyms():
    lines, _, _ = placed(listing("tench, Tinca tinca"))
    assert lines == [ClassLine("tench, Tinca tinca", ("tench", "Tinca tinca"))]
