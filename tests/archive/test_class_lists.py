"""Class lists as they are published; each form with its own bytes, and what is no form."""

import json

import pytest

from hellofmt.archive import ClassLine, read_class_lines
from hellofmt.errors import HelloIOError, UserInputError

TENCH = ClassLine("n01440764", ("tench", "Tinca tinca"))
SHARK = ClassLine("n01484850", ("great white shark",))
BARE = [ClassLine("n01440764", ("n01440764",)), ClassLine("n01484850", ("n01484850",))]
NAMES = [ClassLine("tench", ("tench",)), ClassLine("great white shark", ("great white shark",))]
CRANES = ["crane", "tench", "crane"]


@pytest.mark.parametrize(
    ("text", "lines", "form"),
    [
        ("n01440764\ttench, Tinca tinca\nn01484850\tgreat white shark\n", [TENCH, SHARK], "TAB"),
        ("0\tzero\n1\tone\n", [ClassLine("0", ("zero",)), ClassLine("1", ("one",))], "key TAB"),
        ("n01440764 \t tench, Tinca tinca \n", [TENCH], "key TAB names"),
        ("owl\tgreat owl, owl\ndog\n", [ClassLine("owl", ("great owl", "owl")),
                                        ClassLine("dog", ("dog",))], "key TAB names"),
        ("n01440764 tench, Tinca tinca\nn01484850 great white shark", [TENCH, SHARK],
         "WordNet id, blank, names"),
        ("n01440764\nn01484850\n", BARE, "WordNet ids without names"),
        ("great white shark 1\ntench 0\n", NAMES, "name and index"),
        ("great white shark\t1\ntench\t0\n", NAMES, "name and index"),
        ("n01484850 1\nn01440764 0\n", BARE, "name and index"),
        ("owl 7\nowl 9\n", [ClassLine(k, (k,)) for k in ("owl 7", "owl 9")], "one name a line"),
        ("tench\ngreat white shark\n", NAMES, "one name a line"),
        ("tench, Tinca tinca\n", [ClassLine("tench, Tinca tinca", TENCH.names)], "one name a"),
        ("0\n1\n", [ClassLine("0", ("0",)), ClassLine("1", ("1",))], "numbers without names"),
        ("crane\ntench\ncrane\n", [ClassLine("crane (0)", ("crane",)), NAMES[0],
                                   ClassLine("crane (2)", ("crane",))],
         "one name a line; keys of repeated names got the label, such as `crane (0)`"),
        # In the order of the index, not of the file, and 10 after 2.
        (json.dumps({"1": ["n01484850", "great_white_shark"], "0": ["n01440764", "tench"]}),
         [ClassLine("n01440764", ("tench",)), SHARK], "JSON, [id, name] in label order, `_` as a"),
        (json.dumps([["n01484850", "great_white_shark"]]), [SHARK], "JSON, [id, name]"),
        (json.dumps({str(k): f"c{k}" for k in (10, 2, 0, 1, *range(3, 10))}),
         [ClassLine(f"c{k}", (f"c{k}",)) for k in range(11)], "JSON, names in label order"),
        (json.dumps(["tench", "great white shark"]), NAMES, "JSON, names in label order"),
        (json.dumps({"great white shark": 1, "tench": 0}), NAMES, "JSON, name to index"),
        (json.dumps({"n01484850": "great white shark", "n01440764": "tench, Tinca tinca"}),
         [SHARK, TENCH], "JSON, id to names, in file order"),
        (json.dumps(CRANES), [ClassLine("crane (0)", ("crane",)), NAMES[0],
                              ClassLine("crane (2)", ("crane",))], "keys of repeated names"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dress", [lambda t: t, lambda t: "\ufeff\n" + t.replace("\n", "\r\n\r\n")])
def test_forms(tmp_path, text, lines, form, dress):
    path = tmp_path / "list"
    path.write_bytes(dress(text).encode())
    said = []
    assert read_class_lines(path, say=said.append) == lines
    assert len(said) == 1
    assert said[0].startswith(f"class list `{path}`: {len(lines)} classes, read as ")
    assert form in said[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\n\r\n", "no class in it; expected one class a line in label order, `key TAB name"),
        (b"\xff\xfet\0", "not UTF-8"),
        (b"0\tn01440764\ttench\n", "more than one TAB in .*; expected .* `key TAB name"),
        (b"0 tench\n1 crane\n", "`0 tench` is no name"),
        (b"0: tench\n1: crane\n", "`0: tench` is no name"),
        (b"id,name\nx1,crane\n", "`id,name` is no name"),
        (b"'tench',\n'crane',\n", "`'tench',` is no name"),
        (b"tench 1\ncrane 2\n", "the indices begin at 1; expected 0"),
        (b"tench,\ncrane,\n", "`tench,` is no name"),
        (b"names:\n  0: tench\n  1: crane\n", "`names:` is no name"),
        (b"- tench\n- crane\n", "`- tench` is no name"),
        (b"class_name\ntench\ncrane\n", "`class_name` is no name"),
        (b"# classes\ntench\n", "`# classes` is no class"),
        (b"n01440764 tench\ncrane\n", "`n01440764 tench` begins with a WordNet id, in no known"),
        (b"n01440764,tench\n", "`n01440764,tench` begins with a WordNet id"),
        # ILSVRC's map_clsloc.txt: its second field is a label of another order.
        (b"n02119789 1 kit_fox\nn02100735 2 English_setter\n", "begins with a WordNet id"),
        (b"{0: 'tench'}", "Expecting property name .*; expected .*`key TAB name"),
        (b"[" * 9999, "recursion"),
        (b"{}", "no class in it"),
        (b"[]", "no class in it"),
        (b'{"0": "tench", "0": "crane"}', "duplicate key `0`"),
        (b'{"0": "tench", "2": "crane"}', "the indices are not 0 to 1, each once"),
        (b'{"tench": 1, "crane": 1}', "the indices are not 0 to 1, each once"),
        (b'{"tench": true}', "JSON of no known form; expected .*`key TAB name"),
        (b'{"0": ["n01440764", "tench", "x"]}', "JSON of no known form"),
        (b'[["n01440764", 1]]', "JSON of no known form"),
        (b"a\tcrane\na\ttench\n", "class 1: duplicate key a"),
        (b"a\t\x1b[31m\n", "class 0: control character in"),
        (b'["a, , b"]', "class 0: empty or padded name"),
    ],
)
def test_unknown_forms_are_refused(tmp_path, data, message):
    path = tmp_path / "list"
    path.write_bytes(data)
    with pytest.raises(UserInputError, match=rf"E_DATA: class list `.*list`: .*{message}"):
        read_class_lines(path)


def test_a_missing_list_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_class_lines(tmp_path / "none")


def test_a_device_is_no_list():
    # One that ends at once, so that a reader who takes it fails here and does not hang.
    with pytest.raises(HelloIOError, match="E_READ: not a regular file: /dev/null"):
        read_class_lines("/dev/null")
