import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellofmt.archive.format.classes import ClassLine, class_bytes, parse_classes
from hellofmt.errors import SpecError, UserInputError

WORD = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20
).filter(lambda text: ", " not in text and text == text.strip(" ") and not text.endswith(","))


@given(st.lists(st.tuples(WORD, st.lists(WORD, min_size=1, max_size=3)), min_size=1, max_size=5,
                unique_by=lambda pair: pair[0]))  # fmt: skip
def test_round_trip(pairs):
    lines = [ClassLine(key, tuple(names)) for key, names in pairs]
    classes = parse_classes(class_bytes(lines), len(lines))
    assert classes.keys == [line.key for line in lines]
    assert classes.names == [line.names for line in lines]
    assert len(classes) == len(lines)


def test_golden_bytes():
    lines = [ClassLine("n01", ("tench", "Tinca tinca")), ClassLine("b", ("caf\u00e9",))]
    assert class_bytes(lines) == b"n01\ttench, Tinca tinca\nb\tcaf\xc3\xa9\n"


@pytest.mark.parametrize(
    ("data", "count", "text"),
    [
        (b"a\tb\n\xff\tc\n", 2, "not UTF-8 at byte 4"),
        (b"a\tb", 1, "the last line has no line feed"),
        (b"", 1, "the last line has no line feed"),
        (b"a\tb\n", 2, "1 lines; expected 2"),
        (b"a\tb\n\n", 2, "class 1: expected a key, a TAB and a name, got "),
        (b"a b\n", 1, "class 0: expected a key, a TAB and a name, got a b"),
        (b"\tb\n", 1, "class 0: expected a key, a TAB and a name"),
        (b"a\t\n", 1, "class 0: empty or padded name"),
        (b"a\tb,  c\n", 1, "class 0: empty or padded name"),
        (b"a\tb, \n", 1, "class 0: empty or padded name"),
        (b"a\tb\tc\n", 1, r"class 0: control character in a\tb\tc"),
        (b"a\tb\r\n", 1, "class 0: control character"),
        (b"a\t\x1b[31m\n", 1, r"class 0: control character in a\t\x1b[31m"),
        ("a\tb\u2028\n".encode(), 1, "class 0: control character"),
        (b"a\tb\na\tc\n", 2, "class 1: duplicate key a"),
        (b"a\t" + b"b" * 4095 + b"\n", 1, "class 0: line of 4097 bytes; expected at most 4096"),
    ],
)
def test_refused_bytes(data, count, text):
    with pytest.raises(SpecError) as caught:
        parse_classes(data, count)
    assert caught.value.code == "E_CLASSES"
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            ClassLine("a", ("b, c",)),
            "class 0: a name is missing or contains a comma and a space, in a",
        ),
        (ClassLine("a", ()), "class 0: empty or padded name"),
        (ClassLine("a\tb", ("c",)), "class 0: control character"),
        (ClassLine("a\ud800", ("b",)), r"class 0: not UTF-8: a\\ud800"),
    ],
)
def test_refused_lines(line, text):
    with pytest.raises(UserInputError, match=f"E_DATA: {text}"):
        class_bytes([line])
