"""Lies of the manifest: spelling, types, groups, versions, values; and text that is only text."""

from functools import partial

from zoo.parts import (
    adapter_tensors,
    add,
    canonical,
    embedded,
    head_tensors,
    hostile,
    images_only,
    packed,
    projector,
    projector_only,
    sign_base,
    two_functions,
)

spelling = partial(hostile, "manifest")


def respelt(old, new, count=1):
    """The manifest with a piece of its text replaced, and the id of that text."""
    kit = projector()
    text = canonical(kit.head())
    if old not in text:
        raise ValueError(f"{old} is not there")
    return kit.build(text.replace(old, new, count))


def noted(value):
    """The manifest with ``value``, raw JSON, as its last free key."""
    text = canonical(projector().head())
    return projector().build(text[:-1] + b',"x_note":' + value + b"}")


T = b'"temperature":"20.0"'
for what, old, new in (
    ("duplicate_key", b'"classes":2', b'"classes":2,"classes":2'),
    ("duplicate_key_inside", T, T + b"," + T),
    ("nan", b'"classes":2', b'"classes":NaN'),
    ("infinity", b'"classes":2', b'"classes":Infinity'),
    ("exponent_overflow", b'"classes":2', b'"classes":1e999'),
    ("float", b'"classes":2', b'"classes":2.0'),
    ("negative_zero", b'"seed":1', b'"seed":-0'),
    ("exponent_integer", b'"classes":2', b'"classes":2e0'),
    ("leading_zero", b'"classes":2', b'"classes":02'),
    ("plus_sign", b'"classes":2', b'"classes":+2'),
    ("hexadecimal", b'"classes":2', b'"classes":0x2'),
    ("5000_digits", b'"classes":2', b'"classes":' + b"9" * 5000),
    ("100000_digits", b'"classes":2', b'"classes":' + b"9" * 100_000),
    ("integer_of_18_digits", b'"seed":1', b'"seed":123456789012345678'),
    ("white_space", b'"classes":2', b'"classes": 2'),
    ("white_space_first", b'{"base"', b' {"base"'),
    ("comment", b'"classes":2', b'/**/"classes":2'),
    ("trailing_comma", b'"classes":2', b'"classes":2,'),
    ("single_quotes", b'"classes":2', b"'classes':2"),
    ("key_order", b'"bias":true,"link":"softmax"', b'"link":"softmax","bias":true'),
    ("escape_of_a_letter", b'"tiny"', b'"t\\u0069ny"'),
    ("escape_of_a_slash", b'"CC0-1.0"', b'"CC0\\/1.0"'),
    ("escape_in_upper_case", b'"tiny"', b'"tin\\u00FC"'),
    ("escape_of_a_tab", b'"tiny"', b'"tin\\u0009"'),
    ("raw_utf8", b'"tiny"', '"tin\u00fc"'.encode()),
    ("raw_latin1", b'"tiny"', b'"tin\xfc"'),
    ("raw_control", b'"tiny"', b'"tin\t"'),
    ("raw_nul", b'"tiny"', b'"tin\0"'),
    ("lone_surrogate", b'"tiny"', b'"\\ud800"'),
    ("lone_low_surrogate", b'"tiny"', b'"\\udc00 tail"'),
    ("surrogates_swapped", b'"tiny"', b'"\\udc00\\ud800"'),
    ("bom", b'{"base"', b'\xef\xbb\xbf{"base"'),
    ("cut", b',"views"', b""),
    ("unterminated_string", b'"tiny"', b'"tiny'),
    ("two_documents", b'{"base"', b'{}{"base"'),
):
    add(f"json_{what}", "E_JSON", partial(respelt, old, new), group="manifest")


@spelling("E_JSON")
def json_surrogate_as_key():
    text = canonical(projector().head())
    return projector().build(text[:-1] + b',"x_\\ud800":"a"}')


@spelling("E_JSON")
def json_line_feed_at_the_end():
    return projector().build(canonical(projector().head()) + b"\n")


@spelling("E_JSON")
def json_utf16():
    return projector().build(canonical(projector().head()).decode().encode("utf-16"))


for what, text in (
    ("list", b"[]"),
    ("string", b'"x"'),
    ("null", b"null"),
    ("number", b"1"),
    ("true", b"true"),
    ("nothing", b" "),
    ("zeros", bytes(64)),
    ("depth_10000", b"[" * 10_000 + b"]" * 10_000),
    ("depth_100000_objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    ("mebibyte_of_lists", b"[" + b"[]," * 349_500 + b"[]]"),
    ("mebibyte_of_brackets", b"[" * (1 << 20)),
    ("mebibyte_of_quotes", b'"' * (1 << 20)),
):
    add(f"document_{what}", "E_JSON", lambda text=text: images_only().build(text), group="manifest")


@spelling("E_SCHEMA")
def document_object_without_keys():
    return images_only().build(b"{}")


@spelling("E_SCHEMA")
def document_mebibyte_of_objects():
    inner = b",".join(b'"%06d":{}' % i for i in range(80_000))
    return images_only().build(b"{" + inner + b',"hello":"1.0"}')


@spelling("E_LIMIT_MANIFEST")
def document_one_byte_too_many():
    return images_only().build(b"{" + b" " * ((1 << 20) - 1) + b"}")


def edited(change, kit=projector):
    """A kit whose manifest ``change`` has edited in place, signed anew."""
    made = kit()
    head = made.head()
    change(head, made)
    return made.build(head)


def setting(path, value, kit=projector):
    """The manifest with the value at a dotted path replaced."""

    def change(head, _):
        *way, last = path.split(".")
        at = head
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[step]
        at[int(last) if isinstance(at, list) else last] = value
        if path.startswith("base.") and path != "base.digest":
            sign_base(head["base"])

    return edited(change, kit)


def dropping(path, kit=projector):
    def change(head, _):
        *way, last = path.split(".")
        at = head
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[step]
        del at[last]

    return edited(change, kit)


LONG = "x" * 4097
TEXT_TOWER = {"context_length": 8, "heads": 1, "layers": 1, "vocab_size": 49408, "width": 8}
NO_ID = "sha256:" + "0" * 64
for name, path, value, code in (
    ("version_as_number", "hello", 1, "E_SCHEMA"),
    ("version_of_two_zeros", "hello", "1.00", "E_SCHEMA"),
    ("version_without_minor", "hello", "1", "E_SCHEMA"),
    ("version_with_line_feed", "hello", "1.0\n", "E_SCHEMA"),
    ("version_of_other_digits", "hello", "1.\u0660", "E_SCHEMA"),
    ("version_of_three_parts", "hello", "1.0.0", "E_SCHEMA"),
    ("version_2", "hello", "2.0", "E_VERSION"),
    ("version_0", "hello", "0.9", "E_VERSION"),
    ("requires_unknown", "requires", ["quantum"], "E_FEATURE"),
    ("requires_escape_sequence", "requires", ["\x1b[2J"], "E_FEATURE"),
    ("requires_not_a_list", "requires", "images.packed", "E_SCHEMA"),
    ("requires_number", "requires", [1], "E_SCHEMA"),
    ("requires_object", "requires", [{}], "E_SCHEMA"),
    ("requires_list", "requires", ["images.packed", []], "E_SCHEMA"),
    ("requires_packed_without_it", "requires", ["images.packed"], "E_SCHEMA"),
    ("unknown_key", "run", "rm -rf /", "E_SCHEMA"),
    ("unknown_key_inside", "base.module", "os", "E_SCHEMA"),
    ("unknown_key_in_vision", "base.arch.vision.timm_model_pretrained", True, "E_SCHEMA"),
    ("unknown_key_in_a_target", "functions.0.adapter.targets.0.auto_mapping", {}, "E_SCHEMA"),
    ("x_inside", "dataset.x_note", "a", "E_SCHEMA"),
    ("x_number", "x_note", 1, "E_SCHEMA"),
    ("x_list", "x_note", ["a"], "E_SCHEMA"),
    ("x_string_too_long", "x_note", LONG, "E_JSON"),
    ("x_key_too_long", "x_" + "k" * 4096, "a", "E_JSON"),
    ("name_empty", "dataset.name", "", "E_SCHEMA"),
    ("name_null", "dataset.name", None, "E_SCHEMA"),
    ("classes_zero", "classes", 0, "E_SCHEMA"),
    ("classes_true", "classes", True, "E_SCHEMA"),
    ("classes_string", "classes", "2", "E_SCHEMA"),
    ("classes_negative", "classes", -2, "E_SCHEMA"),
    ("seed_2_to_53", "base.seed", 2**53, "E_JSON"),
    ("antialias_one", "views.antialias", 1, "E_SCHEMA"),
    ("decimal_integer", "functions.0.head.temperature", "20", "E_SCHEMA"),
    ("decimal_trailing_zero", "functions.0.head.temperature", "20.00", "E_SCHEMA"),
    ("decimal_leading_zero", "functions.0.head.temperature", "020.0", "E_SCHEMA"),
    ("decimal_exponent", "functions.0.head.temperature", "2e1", "E_SCHEMA"),
    ("decimal_nan", "functions.0.head.temperature", "nan", "E_SCHEMA"),
    ("decimal_infinity", "functions.0.head.temperature", "Infinity", "E_SCHEMA"),
    ("decimal_negative_zero", "functions.0.head.scale", "-0.0", "E_SCHEMA"),
    ("decimal_line_feed", "functions.0.head.temperature", "20.0\n", "E_SCHEMA"),
    ("decimal_other_digits", "functions.0.head.temperature", "\u0662\u0660.0", "E_SCHEMA"),
    ("decimal_10_digits", "functions.0.head.temperature", "1000000000.0", "E_SCHEMA"),
    ("decimal_18_places", "functions.0.head.temperature", "0.000000000000000001", "E_SCHEMA"),
    ("decimal_number", "functions.0.head.temperature", 20, "E_SCHEMA"),
    ("decimal_not_the_shortest", "functions.0.head.scale", "0.10000000000000001", "E_SCHEMA"),
    ("temperature_zero", "functions.0.head.temperature", "0.0", "E_SCHEMA"),
    ("temperature_negative", "functions.0.head.temperature", "-1.0", "E_SCHEMA"),
    ("scale_too_large", "functions.0.adapter.targets.0.scale", "1000.5", "E_SCHEMA"),
    ("head_scale_too_small", "functions.0.head.scale", "-1001.0", "E_SCHEMA"),
    ("digest_short", "sections.0.digest", "sha256:ab", "E_SCHEMA"),
    ("digest_upper_case", "sections.0.digest", "sha256:" + "A" * 64, "E_SCHEMA"),
    ("digest_md5", "sections.0.digest", "md5:" + "a" * 32, "E_SCHEMA"),
    ("digest_line_feed", "sections.0.digest", "sha256:" + "a" * 64 + "\n", "E_SCHEMA"),
    ("base_digest_of_another", "base.digest", "sha256:" + "0" * 64, "E_SCHEMA"),
    ("base_kind_remote", "base.kind", "https", "E_SCHEMA"),
    ("base_std_zero", "base.preprocess.std", ["0.5", "0.0", "0.5"], "E_SCHEMA"),
    ("base_std_two", "base.preprocess.std", ["0.5", "0.5"], "E_SCHEMA"),
    ("base_size_too_large", "base.preprocess.size", 4097, "E_SCHEMA"),
    ("base_size_2_to_52", "base.preprocess.size", 2**52, "E_SCHEMA"),
    ("base_timm_path", "base.arch.vision.timm_model_name", "hf-hub:evil/model", "E_SCHEMA"),
    ("base_timm_traversal", "base.arch.vision.timm_model_name", "../../evil", "E_SCHEMA"),
    ("base_pretrained_of_a_seed", "base.pretrained", "http://evil", "E_SCHEMA"),
    (
        "base_text_beside_a_stored_head",
        "base.text",
        TEXT_TOWER,
        "E_SCHEMA",
    ),
    ("base_rule_unknown", "base.rule", "normal-1", "E_SCHEMA"),
    ("functions_none", "functions", [], "E_SCHEMA"),
    ("function_of_another_task", "functions.0.task", "segmentation", "E_SCHEMA"),
    ("function_of_another_link", "functions.0.head.link", "sigmoid", "E_SCHEMA"),
    ("function_name_traversal", "functions.0.name", "../x", "E_SCHEMA"),
    ("function_name_of_33_characters", "functions.0.name", "x" * 33, "E_SCHEMA"),
    ("head_start_unknown", "functions.0.head.start", "pickle", "E_SCHEMA"),
    (
        "head_text_beside_a_stored_start",
        "functions.0.head.text",
        {"prompts": ["{}"], "tower": "sha256:" + "0" * 64},
        "E_SCHEMA",
    ),
    ("head_start_text_without_prompts", "functions.0.head.start", "text", "E_SCHEMA"),
    ("storage_unknown", "functions.0.adapter.targets.0.storage", "pickle", "E_SCHEMA"),
    ("views_size_zero", "views.size", 0, "E_SCHEMA"),
    ("views_size_too_large", "views.size", 4097, "E_SCHEMA"),
    ("views_size_2_to_52", "views.size", 2**52, "E_SCHEMA"),
    ("views_crop_falls", "views.crop_scale", ["1.0", "0.5"], "E_SCHEMA"),
    ("views_crop_ratio_falls", "views.crop_ratio", ["2.0", "1.0"], "E_SCHEMA"),
    ("views_crop_zero", "views.crop_scale", ["0.0", "1.0"], "E_SCHEMA"),
    ("views_crop_above_one", "views.crop_scale", ["0.5", "1.5"], "E_SCHEMA"),
    ("views_ratio_zero", "views.crop_ratio", ["0.0", "1.0"], "E_SCHEMA"),
    ("views_flip_above_one", "views.flip", "1.5", "E_SCHEMA"),
    ("views_flip_negative", "views.flip", "-0.5", "E_SCHEMA"),
    ("views_mix_unknown", "views.mix", "pixelmix", "E_SCHEMA"),
    ("views_alpha_zero", "views.mix_alpha", "0.0", "E_SCHEMA"),
    ("views_alpha_huge", "views.mix_alpha", "1000.5", "E_SCHEMA"),
    ("views_probability_negative", "views.mix_probability", "-1.0", "E_SCHEMA"),
    ("views_probability_zero", "views.mix_probability", "0.0", "E_SCHEMA"),
    ("views_mix_without_mixing", "views.mix", "none", "E_SCHEMA"),
    ("views_antialias_of_nearest", "views.interpolation", "nearest", "E_SCHEMA"),
    ("base_antialias_of_nearest", "base.preprocess.interpolation", "nearest", "E_SCHEMA"),
    ("base_resize_mode", "base.preprocess.resize_mode", "squash", "E_SCHEMA"),
    ("views_std_zero", "views.std", ["0.1", "0.1", "0.0"], "E_SCHEMA"),
    ("views_std_negative", "views.std", ["-1.0", "0.1", "0.1"], "E_SCHEMA"),
    ("views_shuffle_zero", "views.shuffle", 0, "E_SCHEMA"),
    ("views_shuffle_above_size", "views.shuffle", 5, "E_SCHEMA"),
    ("images_count_zero", "images.count", 0, "E_SCHEMA"),
    ("images_count_11_million", "images.count", 11_000_000, "E_LIMIT_IMAGES"),
    ("images_order_unknown", "images.order", "score", "E_SCHEMA"),
    ("label_function_beside_one", "label_function", "sha256:" + "0" * 64, "E_SCHEMA"),
    ("images_codec_tiff", "images.codec", "tiff", "E_SCHEMA"),
    ("images_codec_raw", "images.codec", "raw", "E_SCHEMA"),
    ("images_layout_unknown", "images.layout", "zip", "E_SCHEMA"),
    ("images_layout_packed_by_name_only", "images.layout", "packed", "E_SCHEMA"),
    ("images_shape_beside_files", "images.shape", [3, 4, 3], "E_SCHEMA"),
    ("images_span_zero", "images.span", 0, "E_SCHEMA"),
    ("images_span_negative", "images.span", -512, "E_SCHEMA"),
    ("images_span_2_to_53", "images.span", 2**53, "E_JSON"),
    ("ipc_of_another_count", "dataset.ipc", 2, "E_SCHEMA"),
    ("probes_65", "functions.0.probes.count", 65, "E_LIMIT_PROBES"),
    ("probes_17", "functions.0.probes.count", 17, "E_LIMIT_PROBES"),
    ("probes_zero", "functions.0.probes.count", 0, "E_SCHEMA"),
    (
        "shard_past_the_set",
        "shard",
        {"content_id": NO_ID, "count": 2, "first": 0, "index": 2, "total": 3},
        "E_SCHEMA",
    ),
    (
        "shard_past_its_rows",
        "shard",
        {"content_id": NO_ID, "count": 2, "first": 1, "index": 1, "total": 3},
        "E_SCHEMA",
    ),
    (
        "shard_of_one",
        "shard",
        {"content_id": NO_ID, "count": 1, "first": 0, "index": 0, "total": 3},
        "E_SCHEMA",
    ),
    (
        "shard_0_not_first",
        "shard",
        {"content_id": NO_ID, "count": 2, "first": 1, "index": 0, "total": 9},
        "E_SCHEMA",
    ),
    (
        "shard_without_rows",
        "shard",
        {"content_id": NO_ID, "count": 3, "first": 1, "index": 2, "total": 4},
        "E_SCHEMA",
    ),
    (
        "shard_last_not_last",
        "shard",
        {"content_id": NO_ID, "count": 2, "first": 1, "index": 1, "total": 9},
        "E_SCHEMA",
    ),
    ("sections_none", "sections", [], "E_SCHEMA"),
    (
        "sections_65",
        "sections",
        [
            {"digest": "sha256:" + "0" * 64, "encoding": "none", "name": f"s{i}", "size": 1}
            for i in range(65)
        ],
        "E_SCHEMA",
    ),
    ("section_name_traversal", "sections.5.name", "../../etc/passwd", "E_SCHEMA"),
    ("section_name_empty", "sections.5.name", "", "E_SCHEMA"),
    ("section_name_upper_case", "sections.5.name", "Card", "E_SCHEMA"),
    ("section_name_long", "sections.5.name", "c" * 65, "E_SCHEMA"),
    ("section_name_line_feed", "sections.5.name", "card\n", "E_SCHEMA"),
    ("section_name_manifest", "sections.5.name", "manifest", "E_SCHEMA"),
    ("section_name_id", "sections.5.name", "id", "E_SCHEMA"),
    ("section_name_unknown", "sections.5.name", "code", "E_SCHEMA"),
    ("section_encoding_gzip", "sections.5.encoding", "gzip", "E_SCHEMA"),
    ("section_of_no_bytes", "sections.5.size", 0, "E_SCHEMA"),
    ("section_raw_size_without_zstd", "sections.5.raw_size", 5, "E_SCHEMA"),
    ("section_zstd_without_raw_size", "sections.5.encoding", "zstd", "E_SCHEMA"),
    ("rank_zero", "functions.0.adapter.targets.0.a", [0, 8], "E_SCHEMA"),
    ("rank_negative", "functions.0.adapter.targets.0.a", [-1, 8], "E_SCHEMA"),
    ("factor_of_three_dimensions", "functions.0.adapter.targets.0.a", [2, 8, 1], "E_SCHEMA"),
    ("shape_of_six_dimensions", "functions.0.adapter.targets.0.shape", [1] * 6, "E_SCHEMA"),
    ("shape_of_no_dimension", "functions.0.adapter.targets.0.shape", [], "E_SCHEMA"),
    ("inner_dimensions_differ", "functions.0.adapter.targets.0.a", [3, 8], "E_RANK"),
    (
        "product_does_not_fill_the_shape",
        "functions.0.adapter.targets.0.shape",
        [4, 2, 2, 3],
        "E_RANK",
    ),
    ("head_of_another_width", "functions.0.head.a", [3, 9], "E_RANK"),
    ("head_of_other_classes", "functions.0.head.b", [3, 3], "E_RANK"),
    ("head_inner_dimensions_differ", "functions.0.head.b", [2, 4], "E_RANK"),
    ("targets_not_sorted", "functions.0.adapter.targets.0.param", "z.weight", "E_ORDER"),
    ("target_twice", "functions.0.adapter.targets.0.param", "proj", "E_DUPLICATE"),
    ("target_without_name", "functions.0.adapter.targets.0.param", "", "E_SCHEMA"),
    ("target_name_too_long", "functions.0.adapter.targets.0.param", LONG, "E_JSON"),
):
    add(f"manifest_{name}", code, partial(setting, path, value), group="manifest")

for path in (
    "classes",
    "dataset",
    "hello",
    "producer",
    "requires",
    "sections",
    "views",
    "base",
    "functions",
    "functions.0.adapter",
    "functions.0.head",
    "functions.0.head.link",
    "functions.0.name",
    "functions.0.task",
    "images",
    "base.seed",
    "base.digest",
    "base.arch.quick_gelu",
    "functions.0.head.a",
    "functions.0.head.b",
    "functions.0.head.scale",
    "functions.0.head.storage",
    "functions.0.head.temperature",
    "images.span",
    "views.antialias",
    "views.mix_alpha",
    "views.mix_probability",
    "views.mean",
    "dataset.license",
):
    add(f"manifest_without_{path}", "E_SCHEMA", partial(dropping, path), group="manifest")


@spelling("E_SCHEMA")
def manifest_x_keys_of_70_kib():
    def change(head, _):
        head |= {f"x_{i:02d}": "y" * 4000 for i in range(18)}

    return edited(change)


@spelling("E_SCHEMA")
def manifest_neither_pictures_nor_projector():
    kit = images_only()
    del kit.manifest["images"], kit.files["index"]
    kit.rows = []
    return kit.build()


@spelling("E_SCHEMA")
def manifest_head_without_probes():
    kit = projector()
    del kit.manifest["functions"][0]["probes"], kit.files["probes"]
    return kit.build()


@spelling("E_DUPLICATE")
def manifest_function_twice():
    kit = two_functions()
    kit.manifest["functions"][0]["name"] = "early"
    return kit.build()


@spelling("E_SCHEMA")
def manifest_function_without_its_sections():
    kit = projector()
    kit.manifest["functions"].append(kit.manifest["functions"][0] | {"name": "early"})
    return kit.build()


@spelling("E_SCHEMA")
def manifest_sections_of_no_function():
    kit = two_functions()
    kit.manifest["functions"].pop()
    return kit.build()


@spelling("E_ORDER")
def manifest_sections_of_two_functions_swapped():
    kit = two_functions()
    kit.files["adapter"] = kit.files.pop("adapter")
    return kit.build()


@spelling("E_SCHEMA")
def manifest_17_functions():
    kit = projector()
    [function] = kit.manifest["functions"]
    kit.manifest["functions"] = [function | {"name": f"f{i}"} for i in range(17)]
    return kit.build()


@spelling("E_SCHEMA")
def manifest_section_probes_missing():
    kit = projector()
    del kit.files["probes"]
    return kit.build()


@spelling("E_SCHEMA")
def manifest_section_classes_missing():
    kit = projector()
    del kit.files["classes"]
    return kit.build()


@spelling("E_SCHEMA")
def manifest_index_without_pictures():
    kit = projector()
    del kit.manifest["images"]
    kit.rows = []
    return kit.build()


@spelling("E_SCHEMA")
def manifest_pictures_without_index():
    kit = projector()
    del kit.files["index"]
    return kit.build()


@spelling("E_SCHEMA")
def manifest_adapter_section_without_projector():
    kit = images_only()
    kit.files["adapter"] = projector().files["adapter"]
    return kit.build()


@spelling("E_SCHEMA")
def manifest_base_section_of_a_seeded_base():
    kit = projector()
    card, licence = kit.files.pop("card"), kit.files.pop("license")
    kit.files |= {"base": embedded().files["base"], "card": card, "license": licence}
    return kit.build()


@spelling("E_SCHEMA")
def manifest_embedded_base_without_section():
    kit = embedded()
    del kit.files["base"]
    return kit.build()


@spelling("E_SCHEMA")
def manifest_embedded_base_with_text_head():
    kit = embedded()
    kit.manifest["functions"][0]["head"] |= {
        "start": "text",
        "text": {"prompts": ["{}"], "tower": "sha256:" + "0" * 64},
    }
    return kit.build()


@spelling("E_SCHEMA")
def manifest_embedded_base_with_a_text_tower():
    kit = embedded()
    kit.manifest["base"]["text"] = TEXT_TOWER
    return kit.build()


@spelling("E_SCHEMA")
def manifest_quick_gelu_without_an_activation():
    kit = embedded()
    vision = {"head_width": 8, "image_size": 32, "layers": [1, 1, 1, 1], "width": 2}
    kit.manifest["base"]["arch"] |= {"quick_gelu": True, "vision": vision}
    kit.manifest["base"]["preprocess"]["size"] = 32
    sign_base(kit.manifest["base"])
    return kit.build()


@spelling("E_SCHEMA")
def manifest_views_of_nine_cells():
    def change(head, _):
        head["views"] |= {"size": 16, "shuffle": 9}

    return edited(change)


@spelling("E_SCHEMA")
def manifest_shard_without_pictures():
    kit = projector_only()
    kit.manifest["shard"] = {"content_id": NO_ID, "count": 1, "first": 0, "index": 0, "total": 1}
    return kit.build()


@spelling("E_SCHEMA")
def manifest_ipc_without_pictures():
    kit = projector_only()
    kit.manifest["dataset"]["ipc"] = 1
    return kit.build()


@spelling("E_SCHEMA")
def manifest_packed_without_pixels():
    kit = packed()
    del kit.files["pixels"]
    return kit.build()


@spelling("E_SCHEMA")
def manifest_packed_without_requires():
    kit = packed()
    kit.manifest["requires"] = []
    return kit.build()


@spelling("E_SCHEMA")
def manifest_packed_with_a_span():
    return setting("images.span", 512, packed)


for name, shape in {
    "5_channels": [3, 4, 5],
    "of_two": [3, 4],
    "zero": [0, 4, 3],
}.items():
    add(
        f"manifest_packed_shape_{name}",
        "E_SCHEMA",
        partial(setting, "images.shape", shape, packed),
        group="manifest",
    )


@spelling("E_LIMIT_IMAGE_SIDE")
def manifest_packed_shape_too_high():
    return setting("images.shape", [4097, 4, 3], packed)


@spelling("E_SCHEMA")
def manifest_packed_as_png():
    return setting("images.codec", "png", packed)


@spelling("E_ORDER")
def manifest_requires_twice():
    return setting("requires", ["images.packed", "images.packed"], packed)


@spelling("E_SCHEMA")
def manifest_index_as_zstd():
    kit = images_only()
    return kit.note("index", encoding="zstd", raw_size=10, raw_digest="sha256:" + "0" * 64).build()


def ranked(rank):
    kit = projector()
    kit.manifest["functions"][0]["adapter"]["targets"][0] |= {"a": [rank, 8], "b": [4, rank]}
    return kit.build()


add("manifest_rank_257", "E_LIMIT_RANK", partial(ranked, 257), group="manifest")
add("manifest_rank_65536", "E_LIMIT_RANK", partial(ranked, 65_536), group="manifest")


@spelling("E_LIMIT_RANK")
def manifest_head_rank_65536():
    kit = projector()
    kit.manifest["functions"][0]["head"] |= {"a": [65_536, 8], "b": [2, 65_536]}
    return kit.build()


@spelling("E_SCHEMA")
def manifest_4097_targets():
    kit = projector()
    kit.manifest["functions"][0]["adapter"]["targets"] = [
        {
            "a": [1, 1],
            "b": [1, 1],
            "param": f"p{i:05d}",
            "scale": "1.0",
            "shape": [1, 1],
            "storage": "int8",
        }
        for i in range(4097)
    ]
    return kit.build()


@spelling("E_SCHEMA")
def manifest_newer_version_with_a_wrong_type():
    def change(head, _):
        head["hello"] = "1.7"
        head["classes"] = "two"

    return edited(change)


@spelling("E_SCHEMA")
def manifest_newer_version_names_a_section_id():
    kit = projector()
    kit.manifest["hello"] = "1.7"
    kit.files["id"] = b"x"
    return kit.build()


# Bounds of canonical JSON: one code whatever the version, also where the schema knows no such key.
DEEP = [[[[[[[["x"]]]]]]]]
for minor, prefix in (("1.0", ""), ("1.7", "newer_version_")):
    for name, key, value in (
        ("too_deep", "future", DEEP),
        ("with_a_long_string", "future", LONG),
        ("with_a_long_key", "k" * 4097, ""),
        ("with_a_long_list", "future", [1] * 65_537),
        ("with_a_large_integer", "classes", 2**53),
    ):
        add(
            f"manifest_{prefix}{name}",
            "E_JSON",
            lambda minor=minor, key=key, value=value: edited(
                lambda head, _: head.update({"hello": minor, key: value})
            ),
            group="manifest",
        )


harmless = partial(hostile, "harmless", "")


@harmless()
def newer_version_with_more():
    kit = projector()
    kit.manifest |= {"hello": "1.7", "future": {"a": [1, {"b": "c"}]}}
    kit.manifest["dataset"]["future"] = "x"
    kit.files["future"] = b"bytes of a section that nobody knows"
    return kit.build()


@harmless()
def prompt_of_python_format():
    kit = projector()
    kit.manifest["base"]["text"] = TEXT_TOWER
    sign_base(kit.manifest["base"])
    kit.manifest["functions"][0]["head"] |= {
        "start": "text",
        "text": {
            "prompts": ["{0.__class__.__mro__}", "{}", "%s", "{!r:>{0}}", "${jndi:ldap://x}"],
            "tower": "sha256:" + "0" * 64,
        },
    }
    kept = {k: v for k, v in head_tensors().items() if k != "weight"}
    return kit.tensors("head", kept).build()


@harmless()
def terminal_escapes_everywhere():
    kit = projector()
    evil = "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\n\u202e\u200b\x9b31m"
    kit.manifest |= {"x_note": evil, "x_\x1b[2J": evil}
    kit.manifest["dataset"] |= {"name": evil, "license": evil, "sources": [evil]}
    kit.manifest["producer"] = {"name": evil, "version": evil}
    kit.files["card"] = evil.encode()
    kit.files["classes"] = "a\u202e\tb\u200b\nc\td\n".encode()
    return kit.build()


@harmless()
def byte_order_mark_before_the_first_class():
    # Text like any other: the key has it, and it is printed escaped.
    kit = images_only()
    kit.files["classes"] = b"\xef\xbb\xbf" + kit.files["classes"]
    return kit.build()


@harmless()
def names_that_are_paths():
    kit = projector()
    kit.manifest["dataset"] |= {"name": "../../../etc/passwd", "sources": ["file:///etc/passwd"]}
    kit.manifest["base"]["name"] = "hf-hub:evil/model"
    kit.files["classes"] = b"../../evil\t/etc/passwd, $(reboot)\n~root\t`id`\n"
    return kit.build()


@harmless()
def target_that_is_a_path():
    kit = projector()
    kit.manifest["functions"][0]["adapter"]["targets"][0]["param"] = "../../a.weight"
    return kit.tensors("adapter", adapter_tensors(kit)).build()
