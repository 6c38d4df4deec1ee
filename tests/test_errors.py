"""Errors are values: fields that survive every process boundary, and a text made from them."""

import copy
import inspect
import unicodedata

import pytest

from hellofmt import errors


def _classes():
    members = inspect.getmembers(errors, inspect.isclass)
    return [c for _, c in members if issubclass(c, errors.HelloError)]


@pytest.mark.parametrize("kind", _classes(), ids=lambda c: c.__name__)
def test_pickled_with_every_field(kind):
    made = kind.make(
        "E_DIGEST_MEMBER",
        "digest differs; expected a, got b",
        member="images/0 x:y",
        offset=7,
        argument="expect",
        problems=("one", "two"),
        advice="{force} replaces it",
    )
    again = copy.copy(made)
    assert type(again) is kind
    assert vars(again) == vars(made)
    assert (
        str(again)
        == str(made)
        == (
            "E_DIGEST_MEMBER member=images/0 x:y offset=7: `expect`: digest differs; expected a,"
            " got b; one; two; `force` replaces it"
        )
    )
    assert again.message == "digest differs; expected a, got b"
    assert again.where == "member=images/0 x:y offset=7"
    assert again.exit_code == made.exit_code
    assert kind.__name__ in errors.__all__


def test_exit_codes():
    expected = {
        "NotHelloError": 3,
        "CorruptError": 4,
        "SpecError": 5,
        "LimitError": 6,
        "TrustError": 7,
        "BaseModelError": 8,
        "StateError": 2,
        "UserInputError": 2,
    }
    assert {name: getattr(errors, name)("x").exit_code for name in expected} == expected
    assert errors.HelloIOError.make("E_READ", "x").exit_code == 9
    assert errors.HelloIOError.make("E_TARGET", "x").exit_code == 10


def test_the_text_is_never_read_back():
    plain = errors.HelloError("E_JSON member=a offset=1: something else")
    assert (plain.code, plain.member, plain.offset) == ("", "", None)
    assert str(plain) == "E_JSON member=a offset=1: something else"


def test_the_reader_spells_arguments():
    error = errors.UserInputError.make(
        "E_OPTION", "not an SPDX id", argument="license_name", advice="pass {license_name} {x:a=1}"
    )
    assert str(error) == "E_OPTION: `license_name`: not an SPDX id; pass `license_name` `x` a=1"
    assert error.text(lambda name, value: f"--{name[0]}{value}") == (
        "E_OPTION: --l: not an SPDX id; pass --l --xa=1"
    )


def test_five_problems_are_shown_and_all_are_kept():
    error = errors.SpecError.make("E_SCHEMA", "", problems=list("abcdefg"))
    assert str(error) == "E_SCHEMA: a; b; c; d; e; and 2 more"
    assert error.problems == tuple("abcdefg")


@pytest.mark.parametrize(
    ("can_replace", "text"),
    [
        (True, "E_TARGET: `x\u732b.hello` exists; `force` replaces it"),
        (False, "E_TARGET: `x\u732b.hello` exists; name a new one"),
    ],
)
def test_one_wording_for_a_target_that_exists(can_replace, text):
    error = errors.target_exists("x\u732b.hello", can_replace=can_replace)
    assert (str(error), error.exit_code) == (text, 10)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("a\nb\x1b[31m\x7f\x9b", "a\\nb\\x1b[31m\\x7f\\x9b"),
        (b"a\x00\xff", "a\\x00\\xff"),
        ("caf\u00e9 \u732b \u00fcben \u1f408", "caf\u00e9 \u732b \u00fcben \u1f408"),
        ("\u202eabc\u2066\u200f\u061c", "\\u202eabc\\u2066\\u200f\\u061c"),
        ("a\u2028b\u2029c\u0085", "a\\u2028b\\u2029c\\x85"),
        ("a\u200bb\u200dc\ufeffd\u00ade\u2060", "a\\u200bb\\u200dc\\ufeffd\\xade\\u2060"),
        (
            "a\u3164b\ufe0f\u034f\U000e0100\U000e0041",
            "a\\u3164b\\ufe0f\\u034f\\U000e0100\\U000e0041",
        ),
        ("lone \udcff \ud800", "lone \\udcff \\ud800"),
        ("back\\slash", "back\\slash"),
        ("wide\u3000space\u00a0", "wide\u3000space\u00a0"),
        ("x" * 300, "x" * 197 + "..."),
        ("\u732b" * 300, "\u732b" * 197 + "..."),
    ],
)
def test_printable_shows_letters_and_escapes_the_rest(value, expected):
    assert errors.printable(value) == expected
    assert errors.printable(errors.printable(value)) == expected


def test_printable_lets_no_control_or_direction_through():
    everything = "".join(map(chr, range(0x110000)))
    left = set(errors.shown_path(everything))
    assert not {c for c in left if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    # Every letter, digit and symbol of every script but the invisible ones is there.
    letters = {c for c in everything if unicodedata.category(c)[0] in "LNPS"}
    assert {hex(ord(c)) for c in letters - left} == {"0x115f", "0x1160", "0x3164", "0xffa0"}


def test_printable_never_exceeds_its_limit():
    assert len(errors.printable("\x00" * 10**7, limit=50)) == 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one.\n\nTwo", "one"),
        ("\x1b[1mbold\x1b[0m and \x1b]8;;http://x\x07link", "bold and link"),
        (
            "Load failed. We changed `weights_only`. Set it to False. Unsupported: `x.scalar`",
            "Load failed. Set it to False. Unsupported: `x.scalar`",
        ),
        ("word " * 100, "word word word..."),
        ("Please file an issue at https://github.com/x/y.", "ValueError"),
        ("", "ValueError"),
    ],
)
def test_foreign_text(text, expected):
    limit = 20 if text.startswith("word") else 160
    assert errors.foreign_text(ValueError(text), limit) == expected


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("inspct", "did you mean `inspect`?"),
        ("INSPECT", "did you mean `inspect`?"),
        ("vit_b", "did you mean `ViT-B`?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_did_you_mean(word, advice):
    assert errors.did_you_mean(word, ["inspect", "verify", "ViT-B"]) == advice


def test_the_file_is_named_once_by_whoever_knows_it_best():
    with (
        pytest.raises(errors.CorruptError) as caught,
        errors.naming("outer.hello"),
        errors.naming("in\nner.hello"),
    ):
        raise errors.CorruptError.make("E_ZSTD", "bad frame", member="m")
    assert str(caught.value) == "in\\nner.hello: E_ZSTD member=m: bad frame"
    assert str(copy.copy(caught.value)) == str(caught.value)
    with pytest.raises(errors.HelloError, match=r"^x: text$"), errors.naming("x"):
        raise errors.HelloError("text")
    with pytest.raises(errors.HelloError, match=r"^x of a\.hello$"), errors.naming("a.hello"):
        raise errors.HelloError("x of a.hello")
