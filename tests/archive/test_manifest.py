import copy
import hashlib
import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellofmt.archive import Limits, decimal_string, decimal_value, open_archive, write_archive
from hellofmt.archive.format.canonical import canonical
from hellofmt.archive.format.digest import base_digest, content_id, tensors_digest
from hellofmt.archive.format.manifest import Manifest
from hellofmt.archive.format.parse import manifest_bytes, parse_manifest
from hellofmt.archive.format.validate import check_manifest_limits, validate_manifest
from hellofmt.errors import HelloError, LimitError, NotHelloError, SpecError, UserInputError


@pytest.fixture(scope="module")
def document(samples, everything_bytes):
    return samples.split(everything_bytes)[0]


def dump(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def edited(document, path, value):
    """A copy with one value replaced, or removed if ``value`` is ``...``."""
    made = copy.deepcopy(document)
    *parents, last = path
    at = made
    for key in parents:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return made


def test_round_trip(document):
    data = dump(document)
    manifest, extras = parse_manifest(data)
    assert extras == {"x_note": "caf\u00e9"}
    assert manifest_bytes(manifest, extras) == data
    assert [*validate_manifest(manifest)] == []


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0.0"),
        (-0.0, "0.0"),
        (1, "1.0"),
        (-20.5, "-20.5"),
        (4 / 3, "1.3333333333333333"),
        (1e-7, "0.0000001"),
        (1e-30, "0.0"),
        (-1e-30, "0.0"),
        (123456789.125, "123456789.125"),
        (0.1 + 0.2, "0.30000000000000004"),
    ],
)
def test_decimal_string(x, text):
    assert decimal_string(x) == text


@given(st.floats(-1e9, 1e9, exclude_min=True, exclude_max=True))
def test_decimals_read_back(x):
    back = decimal_value(decimal_string(x))
    # Half a unit in the 17th place, and half an ulp for reading the decimal as a double.
    assert abs(back - x) <= 5e-18 + math.ulp(x) / 2
    # Every double whose shortest form fits is exact.
    if len(repr(x).partition(".")[2]) <= 17 and "e" not in repr(x):
        assert back == x


@pytest.mark.parametrize("x", [1e9, -1e9, float("inf"), float("nan")])
def test_decimal_string_refuses(x):
    with pytest.raises(UserInputError, match=r"E_OPTION: decimal; expected \|x\| < 1e9, got"):
        decimal_string(x)


@pytest.mark.parametrize(
    "text",
    ["1", "1.", ".5", "01.0", "1.00", "1.10", "-0.0", "1e2", "+1.0", "1.0\n", "1234567890.0"],
)
def test_decimal_value_refuses(text):
    with pytest.raises(SpecError, match="E_SCHEMA: not a canonical decimal"):
        decimal_value(text)


def test_tensors_digest_known_value():
    one = "a|F32|2x3|" + hashlib.sha256(b"x" * 24).hexdigest() + "\n"
    two = "b.c|F32|1|" + hashlib.sha256(b"1234").hexdigest() + "\n"
    wanted = "sha256:" + hashlib.sha256((one + two).encode()).hexdigest()
    lines = [("b.c", "F32", (1,), b"1234"), ("a", "F32", (2, 3), b"x" * 24)]
    assert tensors_digest(lines) == wanted
    assert tensors_digest(reversed(lines)) == wanted


def test_base_digest_known_value(samples):
    made, _ = samples.base()
    text = (
        'hello/base/1\n{"arch":{"embed_dim":3,"quick_gelu":true,"vision":{"head_width":8,'
        '"image_size":8,"layers":1,"patch_size":2,"width":8}},"preprocess":{"antialias":true,'
        '"interpolation":"bicubic","mean":["0.5","0.5","0.5"],"size":8,"std":["0.5","0.5","0.5"]},'
        '"tensors":"sha256:ab"}'
    )
    wanted = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert base_digest(made.arch, made.preprocess, "sha256:ab") == wanted


def test_content_id_ignores_what_it_should(document):
    known = content_id(dump(document))
    made = copy.deepcopy(document)
    made["producer"]["version"] = "9"
    made["x_note"] = "other"
    made["sections"] = [s for s in made["sections"] if s["name"] not in ("card", "license")]
    adapter = next(s for s in made["sections"] if s["name"] == "adapter")
    adapter.update(
        raw_digest=adapter["digest"],
        raw_size=adapter["size"],
        encoding="zstd",
        size=9,
        digest="sha256:" + "1" * 64,
    )
    assert content_id(dump(made)) == known
    assert (
        content_id(dump(edited(document, ["functions", 0, "head", "temperature"], "2.0"))) != known
    )


JSON = [
    (lambda data: data[:-1] + b',"x_b":1.5}', "floats and constants are not allowed, got 1.5"),
    (lambda data: data[:-1] + b',"x_b":NaN}', "floats and constants are not allowed, got NaN"),
    (lambda data: data[:-1] + b',"x_b":' + b"1" * 5000 + b"}", "integer of 5000 characters"),
    (lambda data: data[:-1] + b',"x_b":"\xc3\xa9"}', "not ASCII at byte"),
    (lambda data: b"\xef\xbb\xbf" + data, "not ASCII at byte 0"),
    (lambda data: data[:-1], "not JSON at byte"),
    (lambda data: b"[" * 100_000, "nested too deeply"),
    (lambda data: b"[]", "expected a JSON object"),
    (
        lambda data: data.replace(b'"classes":2', b'"classes":2,"classes":2'),
        "not the canonical form",
    ),
    (lambda data: data.replace(b'"classes":2', b'"classes": 2'), "not the canonical form; differs"),
    (lambda data: data.replace(b'"classes":2', b'"classes":-0'), "not the canonical form; differs"),
    (lambda data: data.replace(b'"hello"', b'"\\u0068ello"'), "not the canonical form; differs"),
    (lambda data: data[:-1] + b',"x_o":"\\ud800"}', "a string holds a lone surrogate"),
    (lambda data: data[:-1] + b',"x_o\\ud800":""}', "a string holds a lone surrogate"),
]


@pytest.mark.parametrize(("change", "text"), JSON, ids=range(len(JSON)))
def test_json_rules(document, change, text):
    with pytest.raises(SpecError) as caught:
        parse_manifest(change(dump(document)))
    assert caught.value.code == "E_JSON"
    assert caught.value.member == "__hello__/manifest"
    assert text in str(caught.value)


def test_manifest_above_a_mebibyte():
    with pytest.raises(LimitError, match=r"E_LIMIT_MANIFEST .*`manifest` is 1048577, cap 1048576"):
        parse_manifest(b" " * (2**20 + 1))


SHARD = {"content_id": "sha256:" + "0" * 64, "count": 2, "first": 0, "index": 0, "total": 2}
HEAD = ["functions", 0, "head"]
TARGET = ["functions", 0, "adapter", "targets", 0]
SCHEMA = [
    (["hello"], 1, "E_SCHEMA", "`hello`: expected a version such as 1.0, got 1"),
    (["hello"], "2.0", "E_VERSION", "version; expected 1.x, got 2.0"),
    (["requires"], ["time.travel"], "E_FEATURE", "does not know the required time.travel"),
    (["requires"], ["images.packed"], "E_SCHEMA", "exactly for the packed layout"),
    (["surprise"], 1, "E_SCHEMA", "unknown field `surprise`"),
    (["x_note"], 1, "E_SCHEMA", "`x_note`: expected a string"),
    (["x_note"], "a" * 4097, "E_JSON", "string of 4097 characters; expected at most 4096"),
    (["classes"], 0, "E_SCHEMA", "`classes`: expected `int` >= 1"),
    (["classes"], True, "E_SCHEMA", "expected `int`, got `bool`"),
    (["dataset", "name"], "", "E_SCHEMA", "`dataset.name`: expected `str` of length >= 1"),
    (["views", "flip"], "0.50", "E_SCHEMA", "`views.flip`: not in the form this value has"),
    (["views", "flip"], "1.5", "E_SCHEMA", "`views.flip`: expected from 0.0 to 1.0, got 1.5"),
    (["views", "crop_scale"], ["0.0", "1.0"], "E_SCHEMA", "`views.crop_scale.0`: expected above 0"),
    (["views", "crop_scale"], ["0.5", "0.1"], "E_SCHEMA", "`views.crop_scale`: expected low"),
    (["views", "mix_alpha"], "0.0", "E_SCHEMA", "`views.mix_alpha`"),
    (["views", "mix_probability"], "-0.5", "E_SCHEMA", "`views.mix_probability`"),
    (["views", "std"], ["0.0", "1.0", "1.0"], "E_SCHEMA", "`views.std.0`"),
    (["views", "size"], 5000, "E_SCHEMA", "`views.size`: expected at most 4096"),
    (["views", "shuffle"], 9, "E_SCHEMA", "`views.shuffle`: more cells than pixels"),
    (["base"], ..., "E_SCHEMA", "`base`: missing beside `functions`"),
    (["base", "digest"], "sha256:" + "0" * 64, "E_SCHEMA", "`base.digest`: not that of"),
    (["base", "digest"], "sha256:" + "0" * 64 + "\n", "E_SCHEMA", "`base.digest`: not in the form"),
    (["base", "seed"], 1, "E_SCHEMA", "`base.seed`: expected exactly for kind seeded"),
    (["base", "kind"], "open_clip", "E_SCHEMA", "section `base` belongs to no group"),
    (["base", "pretrained"], "openai", "E_SCHEMA", "`base.pretrained`: expected only for kind"),
    (["base", "preprocess", "std"], ["0.0", "0.5", "0.5"], "E_SCHEMA", "`base.preprocess.std.0`"),
    (["base", "preprocess", "size"], 4, "E_SCHEMA", "`base.preprocess.size`: expected the"),
    ([*HEAD, "temperature"], "0.0", "E_SCHEMA", "`functions.0.head.temperature`: expected from"),
    ([*HEAD, "scale"], "1000.5", "E_SCHEMA", "`functions.0.head.scale`: expected from -1000"),
    ([*HEAD, "start"], "text", "E_SCHEMA", "`functions.0.head.text`: expected exactly"),
    ([*HEAD, "a"], ..., "E_SCHEMA", "`functions.0.head.b`: expected exactly with `a`"),
    ([*HEAD, "a"], [2, 3], "E_RANK", "`functions.0.head`: inner dimensions of B [2, 1] and A"),
    ([*HEAD, "a"], [1, 4], "E_RANK", "`functions.0.head`: B A is 2 x 4; expected 2 x 3"),
    ([*TARGET, "a"], [1, 13], "E_RANK", "B A is 4 x 13, which does not fill"),
    ([*TARGET, "b"], [4, 2], "E_RANK", "inner dimensions of B [4, 2] and A"),
    ([*TARGET, "a"], [0, 12], "E_SCHEMA", "`functions[0].adapter.targets[0].a[0]`: expected"),
    ([*TARGET, "scale"], "-1001.0", "E_SCHEMA", "`functions.0.adapter.targets.0.scale`"),
    (["sections", 0, "size"], 0, "E_SCHEMA", "`sections.0.size`: expected at least 1 byte"),
    (["sections", 0, "encoding"], "zstd", "E_SCHEMA", "`sections.0.encoding`: expected none"),
    (["sections", 0, "raw_size"], 5, "E_SCHEMA", "`raw_size` and `raw_digest` if and only if"),
    (["sections", 0, "name"], "surprise", "E_SCHEMA", "unknown section `surprise`"),
    (["images"], ..., "E_SCHEMA", "section `index` belongs to no group"),
    (["images", "layout"], "packed", "E_SCHEMA", "`images.codec`: expected raw exactly when"),
    (["images", "shape"], [8, 8, 3], "E_SCHEMA", "`images.shape`: expected exactly when packed"),
    (["images", "span"], 0, "E_SCHEMA", "`images.span`: expected 0 exactly when packed"),
    (["dataset", "ipc"], 2, "E_SCHEMA", "`dataset.ipc`: 2 x 2 classes; expected 2 images"),
    (["shard"], SHARD | {"index": 2}, "E_SCHEMA", "`shard.index`"),
    (["shard"], SHARD | {"first": 1}, "E_SCHEMA", "`shard.total`"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "code", "text"), SCHEMA, ids=range(len(SCHEMA)))
def test_schema_rules(document, path, value, code, text):
    with pytest.raises(HelloError) as caught:
        parse_manifest(dump(edited(document, path, value)))
    assert caught.value.code == code
    assert text in str(caught.value)


def test_section_twice(document):
    made = copy.deepcopy(document)
    made["sections"].insert(1, made["sections"][0])
    with pytest.raises(
        SpecError, match=r"E_DUPLICATE .*`sections.1.name`: duplicate section `index`"
    ):
        parse_manifest(dump(made))


def test_section_order(document):
    made = copy.deepcopy(document)
    made["sections"][2:4] = reversed(made["sections"][2:4])
    with pytest.raises(SpecError, match=r"E_ORDER .*section `adapter` is out of order"):
        parse_manifest(dump(made))


def test_target_order(document):
    target = document["functions"][0]["adapter"]["targets"][0]
    for param, code in (("a.weight", "E_ORDER"), ("conv1.weight", "E_DUPLICATE")):
        made = edited(
            document, ["functions", 0, "adapter", "targets"], [target, {**target, "param": param}]
        )
        with pytest.raises(
            SpecError, match=rf"{code} .*`functions.0.adapter.targets.1.param`: expected sorted"
        ):
            parse_manifest(dump(made))


def test_groups_without_images_or_projector(document):
    made = copy.deepcopy(document)
    for key in ("base", "functions", "images"):
        del made[key]
    del made["dataset"]["ipc"]
    made["sections"] = [s for s in made["sections"] if s["name"] == "classes"]
    with pytest.raises(SpecError, match="`images`: expected images, a projector or both"):
        parse_manifest(dump(made))
    made["shard"] = {
        "content_id": "sha256:" + "0" * 64,
        "count": 2,
        "first": 0,
        "index": 0,
        "total": 2,
    }
    made["dataset"]["ipc"] = 1
    with pytest.raises(SpecError, match=r"`shard`: expected images.*`dataset.ipc`: expected none"):
        parse_manifest(dump(made))


def test_packed_shape_and_sorted_requires(samples, tmp_path):
    path = tmp_path / "p.hello"
    write_archive(path, samples.draft(images=samples.images(4, layout="packed")))
    document = samples.split(path.read_bytes())[0]
    made = edited(document, ["images", "shape"], [8, 8, 2])
    with pytest.raises(SpecError, match=r"`images.shape`: expected 1 or 3 channels, got 2"):
        parse_manifest(dump(made))
    made = edited(document, ["requires"], ["images.packed", "images.packed"])
    with pytest.raises(SpecError, match="`requires`: expected sorted names, each once"):
        parse_manifest(dump(made))


def test_head_kinds(document, samples, tmp_path):
    made = edited(
        document,
        ["functions", 0, "head", "text"],
        {"prompts": ["{}"], "tower": "sha256:" + "0" * 64},
    )
    made["functions"][0]["head"]["start"] = "text"
    with pytest.raises(
        SpecError, match=r"`functions.0.head.start`: an embedded base has no text tower"
    ):
        parse_manifest(dump(made))
    path = tmp_path / "p.hello"
    write_archive(path, samples.draft(projector=samples.projector()))
    seeded = samples.split(path.read_bytes())[0]
    made = edited(seeded, ["functions", 0, "head", "text"], made["functions"][0]["head"]["text"])
    made["functions"][0]["head"]["start"] = "text"
    with pytest.raises(
        SpecError, match=r"`base.text`: expected exactly where a seeded head starts"
    ):
        parse_manifest(dump(made))


def test_extras_in_all(document):
    made = {**document, **{f"x_{i}": "a" * 4000 for i in range(17)}}
    with pytest.raises(SpecError, match="`x_`: expected at most 65536 characters, got 68"):
        parse_manifest(dump(made))


def test_all_problems_are_named(document):
    made = edited(document, ["views", "flip"], "2.0")
    made["functions"][0]["head"]["temperature"] = "0.0"
    del made["x_note"]
    problems = [*validate_manifest(msgspec.convert(made, Manifest))]
    assert [(problem.loc, problem.kind) for problem in problems] == [
        ("views.flip", "value"),
        ("functions.0.head.temperature", "value"),
    ]
    made["views"].update(mix_probability="2.0", mix_alpha="0.0", size=9999)
    made["views"]["std"] = ["0.0"] * 3
    with pytest.raises(SpecError, match=r"; and 3 more$"):
        parse_manifest(dump(made))


def test_higher_minor(document):
    made = {**document, "hello": "1.7", "future": {"deep": [1, {"a": "b"}]}}
    made["views"] = {**made["views"], "tilt": "0.5"}
    made["sections"] = [
        {"digest": "sha256:" + "0" * 64, "encoding": "none", "name": "future", "size": 5},
        *made["sections"],
    ]
    manifest, _ = parse_manifest(dump(made))
    assert manifest.hello == "1.7"
    assert manifest.sections[0].name == "future"
    deep = "x"
    for _ in range(9):
        deep = [deep]
    for value, text in (
        (deep, "nested too deeply"),
        ("a" * 4097, "string of 4097 characters"),
        ([0] * 65537, "array of 65537 items"),
        (2**53, "integer of 2\\*\\*53 or more"),
    ):
        with pytest.raises(SpecError, match=f"E_JSON .*{text}"):
            parse_manifest(dump({**made, "future": value}))
    made["requires"] = ["future.thing"]
    with pytest.raises(NotHelloError, match="E_FEATURE"):
        parse_manifest(dump(made))
    for name in ("id", "manifest"):
        made["requires"], made["sections"][0]["name"] = [], name
        with pytest.raises(SpecError, match=f"unknown section `{name}`"):
            parse_manifest(dump(made))


def test_higher_minor_is_read(samples, everything_bytes, tmp_path):
    manifest, sections, rest = samples.split(everything_bytes)
    manifest["hello"] = "1.1"
    manifest["new"] = 3
    manifest["sections"].append({"encoding": "none", "name": "novel"})
    path = tmp_path / "new.hello"
    path.write_bytes(samples.join(manifest, {**sections, "novel": b"any bytes"}, rest))
    with open_archive(path) as file:
        assert file.section("novel") == b"any bytes"
        assert file.section_sizes()["novel"] == 9
        assert len(file.read_image(0)) > 0


@pytest.mark.parametrize(
    ("path", "value", "limits", "code"),
    [
        (["images", "count"], 11, {"images": 10}, "E_LIMIT_IMAGES"),
        (["functions", 0, "probes", "count"], 17, {}, "E_LIMIT_PROBES"),
        (["functions"], None, {"rank": 1}, "E_LIMIT_RANK"),
        (["sections", 0, "size"], 2**27 + 1, {}, "E_LIMIT_INDEX_BYTES"),
        (["sections", 1, "size"], 2**22 + 1, {}, "E_LIMIT_CLASS_BYTES"),
        (["classes"], 2**17 + 1, {}, "E_LIMIT_CLASSES"),
        (["views", "size"], 1025, {}, "E_LIMIT_VIEW_SIDE"),
        (["base", "preprocess", "size"], 513, {}, "E_LIMIT_BASE_SIDE"),
        (["base", "arch", "embed_dim"], 2**26, {}, "E_LIMIT_PARAMETERS"),
        (["base", "arch", "vision", "image_size"], 2048, {}, "E_LIMIT_GFLOP"),
        (["sections", 2, "size"], 2**30 + 1, {}, "E_LIMIT_SECTION_BYTES"),
        (["sections", 6, "raw_size"], 2**20 + 1, {}, "E_LIMIT_TEXT"),
        (["sections", 6, "raw_size"], 2**16 + 1, {"zstd_bytes": 2**16}, "E_LIMIT_ZSTD_BYTES"),
        (["sections", 6, "raw_size"], 2**18, {}, "E_LIMIT_ZSTD_RATIO"),
        (["sections", 2, "size"], 2**20, {"sections_bytes": 2**20}, "E_LIMIT_SECTIONS_BYTES"),
    ],
)
def test_limits(document, path, value, limits, code):
    made = {k: v for k, v in document.items() if k != "x_note"}
    if value is None:
        head = {**made["functions"][0]["head"], "a": [2, 3], "b": [2, 2]}
        made["functions"] = [made["functions"][0] | {"adapter": {"targets": []}, "head": head}]
    else:
        made = edited(made, path, value)
    manifest = msgspec.convert(made, Manifest)
    with pytest.raises(LimitError) as caught:
        check_manifest_limits(manifest, Limits(**limits))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"images": 0}, "limit `images`; expected 1 to 10000000, got 0"), ({"rank": 1025}, "to 1024")],
)
def test_limits_have_hard_caps(fields, text):
    with pytest.raises(UserInputError, match=f"E_OPTION: .*{text}"):
        Limits(**fields)


def test_limit_message_names_the_option(document):
    manifest = msgspec.convert(
        {
            k: v
            for k, v in edited(document, ["functions", 0, "probes", "count"], 17).items()
            if k != "x_note"
        },
        Manifest,
    )
    with pytest.raises(LimitError, match="`probes` is 17, cap 16; `limits` probes=17 raises it"):
        check_manifest_limits(manifest, Limits())


@given(
    st.recursive(
        st.integers(-(2**53), 2**53) | st.text() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_canonical_is_a_fixed_point(value):
    data = canonical(value)
    assert canonical(json.loads(data)) == data
    assert data.isascii()
