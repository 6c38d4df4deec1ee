"""One string each, so that an error survives a process boundary whole."""

import inspect

import pytest

from hellofmt import errors


def _classes():
    members = inspect.getmembers(errors, inspect.isclass)
    return [c for _, c in members if issubclass(c, errors.HelloError)]


@pytest.mark.parametrize("kind", _classes(), ids=lambda c: c.__name__)
def test_rebuilt_from_its_message_alone(kind):
    made = kind.make(
        "E_DIGEST_MEMBER", "digest differs; expected a, got b", member="images/0", offset=7
    )
    # What a DataLoader does with an exception of a worker.
    again = type(made)(str(made))
    assert (
        str(again) == "E_DIGEST_MEMBER member=images/0 offset=7: digest differs; expected a, got b"
    )
    assert (again.code, again.member, again.offset) == ("E_DIGEST_MEMBER", "images/0", 7)
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


def test_message_without_a_code_has_none():
    plain = errors.HelloError("something else: E_JSON")
    assert (plain.code, plain.member, plain.offset) == ("", "", None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        (b"\x00\xff", "\\x00\\xff"),
        ("caf\u00e9 \u202e", "caf\\xe9 \\u202e"),
        ("back\\slash", "back\\\\slash"),
        ("x" * 300, "x" * 197 + "..."),
    ],
)
def test_printable_is_one_line_of_ascii(value, expected):
    assert errors.printable(value) == expected


def test_printable_never_exceeds_its_limit():
    assert len(errors.printable("\x00" * 10**7, limit=50)) == 50
