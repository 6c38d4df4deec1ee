"""`hello inspect`: every field, against what was put in."""

import base64
import hashlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from hellofmt.archive import open_archive

INSPECT_KEYS = [
    "schema",
    "id",
    "content_id",
    "format_version",
    "dataset",
    "producer",
    "images",
    "classes",
    "base",
    "functions",
    "label_function",
    "views",
    "shard",
    "bytes",
    "labels_avoided",
    "gflop_per_label",
    "extras",
    "record",
]


def test_document_field_by_field(full, invoke_json):
    document = invoke_json("inspect", full)
    assert list(document) == INSPECT_KEYS
    with open_archive(full) as file:
        assert document["id"] == file.id
        assert document["content_id"] == file.content_id
        sizes = file.section_sizes()
        stored = int(file.index.size.sum())
    assert document["schema"] == "hello.inspect/1"
    assert document["format_version"] == "1.0"
    assert document["dataset"] == {
        "name": "images",
        "version": "1.0.0",
        "license": "NOASSERTION",
        "method": "hello",
        "sources": ["toy"],
        "ipc": 2,
    }
    assert document["producer"]["name"] == "hellofmt"
    assert document["images"] == {
        "count": 6,
        "codec": "png",
        "layout": "files",
        "height": [8, 8],
        "width": [8, 8],
        "bytes": stored,
        "columns": [],
        "order": None,
        "sizes": [],
    }
    assert document["classes"] == 3
    base = document["base"]
    assert (base["kind"], base["name"], base["pretrained"]) == ("seeded", "tiny", None)
    assert (base["size"], base["embed_dim"]) == (8, 8)
    assert re.fullmatch("sha256:[0-9a-f]{64}", base["digest"])
    # A (2, 8) and B (24, 2) on one weight; a full head of 3 classes by 8 features.
    [function] = document["functions"]
    assert function["delta"] == {"parameters": 64, "bytes": sizes["adapter"], "targets": 1}
    assert function["head"] == {
        "start": "stored",
        "rank": None,
        "storage": "float16",
        "bias": False,
        "parameters": 24,
        "bytes": sizes["head"],
    }
    about = {"name": "default", "task": "classification", "link": "softmax", "temperature": 4.0}
    assert about.items() <= function.items()
    assert document["views"] == {
        "size": 8,
        "mix": "none",
        "mix_probability": 0.0,
        "crop_scale": [0.08, 1.0],
        "flip": 0.5,
        "shuffle": 1,
    }
    payload = sizes["adapter"] + sizes["head"] + sizes["probes"]
    total = full.stat().st_size
    assert document["bytes"] == {
        "total": total,
        "payload": payload,
        "base": 0,
        "images": stored,
        "framing": total - stored - sum(sizes.values()),
        "sections": sizes,
    }
    # 300 epochs x 6 images x 3 classes x 2 bytes; one epoch is 36 bytes.
    assert document["labels_avoided"] == {
        "epochs": 300,
        "bytes": 10800,
        "ratio": payload / 10800,
        "break_even": payload // 36 + 1,
        # A seeded base has no bytes, so charging it changes nothing.
        "base_bytes": 0,
        "ratio_charged": payload / 10800,
        "break_even_charged": payload // 36 + 1,
        "data_sets_per_base": 0.0,
    }
    assert document["gflop_per_label"] is None
    assert (document["shard"], document["extras"]) == (None, {})


def test_absent_groups_are_null(packed, make_projector, invoke_json):
    document = invoke_json("inspect", packed)
    for group in ("base", "labels_avoided"):
        assert document[group] is None
    assert document["functions"] == []
    assert document["bytes"]["payload"] == 0
    document = invoke_json("inspect", make_projector())
    assert document["images"] is None
    assert document["labels_avoided"] is None
    assert document["functions"][0]["head"]["parameters"] == 24


def test_epochs_scale_the_labels(full, invoke_json):
    document = invoke_json("inspect", full, "--epochs", 10)
    assert document["labels_avoided"]["bytes"] == 10 * 6 * 3 * 2
    assert document["labels_avoided"]["epochs"] == 10


def test_break_even_is_the_first_epoch_that_pays(full, invoke_json):
    payload = invoke_json("inspect", full)["bytes"]["payload"]
    epoch = invoke_json("inspect", full)["labels_avoided"]["break_even"]
    for epochs, smaller in ((epoch, True), (epoch - 1, False)):
        labels = invoke_json("inspect", full, "--epochs", epochs)["labels_avoided"]["bytes"]
        assert (payload < labels) == smaller


def test_lists(full, invoke_json):
    document = invoke_json("inspect", full, "--classes", "--tensors")
    assert document["class_list"][1] == {"key": "dog", "names": ["a dog"]}
    assert document["tensors"] == [
        {
            "function": "default",
            "param": "transformer.resblocks.0.attn.in_proj_weight",
            "shape": [24, 8],
            "a": [2, 8],
            "b": [24, 2],
            "scale": "1.0",
            "storage": "float16",
        }
    ]


def test_what_fewer_images_of_each_class_cost(image_folder, tmp_path, invoke, invoke_json):
    path = tmp_path / "o.hello"
    assert invoke("pack", image_folder, "-o", path, "--ordered").exit_code == 0
    images = invoke_json("inspect", path)["images"]
    with open_archive(path) as file:
        # 8 x 8 pixels of every second image, packed or not.
        is_packed = file.manifest.images.layout == "packed"
        second = file.index.size[1::2]
        spared = int((second if is_packed else 512 + -(-second // 512) * 512).sum())
    expected = [(1, 3, path.stat().st_size - spared), (2, 6, path.stat().st_size)]
    assert [(one["ipc"], one["images"], one["bytes"]) for one in images["sizes"]] == expected
    assert images["order"] == "value"
    page = invoke("inspect", path).stdout
    assert re.search(
        r"order +by value; the first of each class alone, 1: \S+ \w+, 2: \S+ \w+\n", page
    )


def test_columns_and_the_archive_of_the_label_function(
    image_folder, tmp_path, make_projector, invoke, invoke_json
):
    from hellofmt.archive import ClassLine, Draft, ImageItem, ImageSet, default_views, write_archive
    from hellofmt.archive.format.manifest import Dataset

    own = "sha256:" + "b" * 64
    items = [ImageItem(0, (image_folder / "cat" / "0.png").read_bytes())]
    columns = {"weight": np.ones(1, np.float32), "crop": np.ones((1, 2, 4), np.int32)}
    dataset = Dataset(name="a", version="1", license="", method="", sources=[])
    draft = Draft(
        dataset,
        [ClassLine("a", ("a",))],
        default_views(8),
        images=ImageSet("png", items, columns=columns),
        label_function=own,
    )
    write_archive(tmp_path / "c.hello", draft)
    document = invoke_json("inspect", tmp_path / "c.hello")
    assert document["label_function"] == own
    assert document["images"]["columns"] == [
        {"name": "crop", "dtype": "I32", "shape": [2, 4]},
        {"name": "weight", "dtype": "F32", "shape": []},
    ]
    page = invoke("inspect", tmp_path / "c.hello", "--html", tmp_path / "c.html").stdout
    assert "crop I32 [2, 4], weight F32 []" in (tmp_path / "c.html").read_text()
    assert "columns     crop I32 [2, 4], weight F32 []\n" in page
    assert f"labels      hard ones here; the label function is in {own}\n" in page


def test_sections_add_up(full, invoke_json):
    sizes = invoke_json("inspect", full)["bytes"]
    assert sum(sizes["sections"].values()) + sizes["images"] + sizes["framing"] == sizes["total"]


def test_page(full, invoke):
    page = invoke("inspect", full, "--classes", "--tensors").stdout
    assert "images       6 png, 8 x 8 pixels, 2 per class\n" in page
    assert "delta        64 values on 1 weight\n" in page
    assert "head         24 values, full, stored, as float16\n" in page
    assert re.search(r"total +100\.0 %  \d+\.\d\d KiB \(\d+,\d{3} bytes\)", page)
    assert "stored labels   10.55 KiB (10,800 bytes): 300 epochs, float16\n" in page
    assert re.search(r"label function  \d+ bytes: \d+\.\d+ % of that\n", page)
    assert "  1  dog: a dog\n" in page
    assert "in_proj_weight  24 x 8: A 2 x 8, B 24 x 2, scale 1.0, float16\n" in page
    assert all(" " <= c <= "~" or c == "\n" for c in page)


def test_small_label_spaces_are_told_so(full, invoke):
    page = invoke("inspect", full, "--epochs", 2).stdout
    assert re.search(r"stored labels would be smaller up to epoch \d+: few images or classes", page)


class TestBaseCharged:
    """The other column: what the base weighs, and how many data sets must share it."""

    PAYLOAD = 885_220
    TOWER = 2 * (38_316_896 + 53_248)

    @pytest.fixture
    def charged(self, make_projector):
        """Charges 50,000 images of 1,000 classes with a base of this kind, name and size."""
        import msgspec

        from hellofmt.ledger import Ledger
        from hellofmt_cli.inspect_document import _labels_avoided

        with open_archive(make_projector()) as file:
            manifest = file.manifest

        def charge(kind="open_clip", name="RN50", *, payload=self.PAYLOAD, base=0):
            change = msgspec.structs.replace
            arch = change(manifest.base.arch, embed_dim=1024)
            preprocess = change(manifest.base.preprocess, size=224)
            spec = change(manifest.base, kind=kind, name=name, arch=arch, preprocess=preprocess)
            ledger = Ledger(
                total=10**9,
                images=50_000,
                classes=1000,
                pixels=10**8,
                sections={"adapter": payload, "base": base},
            )
            return _labels_avoided(change(manifest, base=spec), ledger, 300)

        return charge

    def test_public(self, charged):
        avoided = charged()
        both = self.PAYLOAD + self.TOWER
        assert avoided["base_bytes"] == self.TOWER
        assert avoided["ratio"] == self.PAYLOAD / 30e9
        assert avoided["ratio_charged"] == both / 30e9
        # One epoch of labels is 100 MB.
        assert (avoided["break_even"], avoided["break_even_charged"]) == (1, 1)
        saved = 2 * 11_689_512 - self.PAYLOAD
        assert avoided["data_sets_per_base"] == self.TOWER / saved

    def test_embedded(self, charged):
        avoided = charged("embedded", "mine", base=250_000_000)
        assert avoided["base_bytes"] == 250_000_000
        assert avoided["break_even_charged"] == 3

    def test_unknown_and_never(self, charged):
        avoided = charged(name="mine")
        assert avoided["break_even"] == 1
        keys = ("base_bytes", "ratio_charged", "break_even_charged", "data_sets_per_base")
        assert [avoided[key] for key in keys] == [None] * 4
        assert charged(payload=30_000_000)["data_sets_per_base"] is None

    @pytest.mark.parametrize(
        ("arguments", "lines"),
        [
            (
                {},
                [
                    "73.19 MiB (76,740,288 bytes) in float16 more: 0.259 % of stored labels",
                    "smaller from epoch 1 on",
                    "4 or more data sets are smaller than a float16 ResNet-18 teacher in each",
                ],
            ),
            (
                {"payload": 30_000_000},
                [
                    "73.19 MiB (76,740,288 bytes) in float16 more: 0.356 % of stored labels",
                    "smaller from epoch 2 on",
                    "no number of data sets is smaller than a float16 ResNet-18 teacher in each",
                ],
            ),
            (
                {"kind": "embedded", "base": 40_000_000_000},
                [
                    "37.25 GiB (40,000,000,000 bytes) as embedded more: 133 % of stored labels",
                    "stored labels would be smaller up to epoch 400: few images or classes",
                    "1,779 or more data sets are smaller than a float16 ResNet-18 teacher in each",
                ],
            ),
            ({"name": "mine"}, ["unknown: no public tower of this name and shape"]),
            ({"kind": "seeded"}, ["the same: a seeded base has no bytes"]),
        ],
    )
    def test_words(self, charged, arguments, lines):
        from hellofmt_cli.inspect_rows import avoided_rows

        document = {
            "labels_avoided": charged(**arguments),
            "bytes": {"payload": arguments.get("payload", self.PAYLOAD)},
            "base": {"kind": arguments.get("kind", "open_clip")},
        }
        rows = avoided_rows(document)
        assert [text for _, text in rows[3:]] == lines
        assert len({name for name, _ in rows}) == len(rows)


def test_packed_layout_and_no_labels(image_folder, tmp_path, invoke):
    path = tmp_path / "p.hello"
    assert invoke("pack", image_folder, "-o", path, "--layout", "packed").exit_code == 0
    page = invoke("inspect", path).stdout
    assert "6 packed as raw pixels, 8 x 8 pixels, 2 per class" in page
    assert "labels      hard labels only; no label function" in page


def test_words_of_the_file_reach_no_terminal(image_folder, tmp_path, invoke, invoke_json):
    path = tmp_path / "e.hello"
    evil = "\x1b]0;owned\x07\u202e"
    options = ["--name", evil, "--license", evil, "--method", evil, "--note", f"note={evil}"]
    assert invoke("pack", image_folder, "-o", path, *options).exit_code == 0
    page = invoke("inspect", path).stdout
    assert all(" " <= c <= "~" or c == "\n" for c in page)
    assert page.count("\\x1b]0;owned\\x07\\u202e") == 4
    assert invoke_json("inspect", path)["dataset"]["name"] == evil
    assert "\x1b" not in invoke("diff", path, path).stdout
    html = tmp_path / "e.html"
    assert invoke("inspect", path, "--html", html).exit_code == 0


class TestGflop:
    """A published base is known by its name, and only if its shape agrees."""

    @pytest.mark.parametrize(
        ("kind", "name", "size", "dim", "expected"),
        [
            ("open_clip", "RN50-quickgelu", 224, 1024, 12.22),
            ("open_clip", "RN50", 224, 1024, 12.22),
            ("open_clip", "ViT-B-32", 224, 512, 8.82),
            ("open_clip", "ViT-B-16", 224, 512, 35.13),
            ("open_clip", "ViT-L-14", 224, 768, 162.03),
            ("open_clip", "ViT-B-16", 240, 512, None),
            ("open_clip", "RN50", 224, 512, None),
            ("open_clip", "mine", 224, 512, None),
            ("embedded", "RN50", 224, 1024, None),
        ],
    )
    def test_published_figures(self, make_projector, kind, name, size, dim, expected):
        import msgspec

        from hellofmt_cli.inspect_document import _tower

        with open_archive(make_projector()) as file:
            base = file.manifest.base
            change = msgspec.structs.replace
            base = change(
                base,
                kind=kind,
                name=name,
                arch=change(base.arch, embed_dim=dim),
                preprocess=change(base.preprocess, size=size),
            )
            tower = _tower(change(file.manifest, base=base))
        assert (tower and round(tower.gflop, 2)) == expected


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.0609259, "6.09 %"),
        (2.9e-5, "0.0029 %"),
        (1e-7, "0.00001 %"),
        (1.6249e-7, "0.0000162 %"),
        (9.999e-7, "0.0001 %"),
        (1.0, "100 %"),
        (12.4, "1,240 %"),
        (0.9999, "100 %"),
    ],
)
def test_percent(ratio, text):
    from hellofmt_cli.inspect_rows import percent

    assert percent(ratio) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1.00 KiB (1,024 bytes)"),
        (1024**2 - 1, "1.00 MiB (1,048,575 bytes)"),
        (6_000_000_000, "5.59 GiB (6,000,000,000 bytes)"),
        (5 * 1024**5, "5120.00 TiB (5,629,499,534,213,120 bytes)"),
    ],
)
def test_sizes(number, text):
    from hellofmt_cli.output import size

    assert size(number) == text


class TestHtml:
    def test_images_are_those_of_the_archive(self, full, tmp_path, invoke):
        out = tmp_path / "r.html"
        assert invoke("inspect", full, "--html", out).exit_code == 0
        page = out.read_text()
        shown = [base64.b64decode(b) for b in re.findall(r"data:image/png;base64,([^\"]+)", page)]
        with open_archive(full) as file:
            stored = [file.read_image(row) for row in range(len(file))]
        assert [hashlib.sha256(b).digest() for b in shown] == [
            hashlib.sha256(b).digest() for b in stored
        ]
        assert "All 6 images" in page
        assert "10,800 bytes" in page

    def test_nothing_from_outside_and_no_script(self, full, tmp_path, invoke):
        out = tmp_path / "r.html"
        invoke("inspect", full, "--html", out)
        page = out.read_text()
        assert "default-src 'none'" in page
        assert not re.search(r"<script|https?:|//|url\(|@import|\son\w+=", page.split("base64,")[0])

    def test_words_are_escaped(self, image_folder, tmp_path, invoke):
        path, out = tmp_path / "e.hello", tmp_path / "e.html"
        evil = "<script>alert(1)</script>\"'&"
        (image_folder / "cat").rename(image_folder / 'cat" onload="x')
        options = ["--name", evil, "--license", evil, "--method", evil, "--from", evil]
        assert invoke("pack", image_folder, "-o", path, *options).exit_code == 0
        assert invoke("inspect", path, "--html", out).exit_code == 0
        page = out.read_text()
        assert "<script" not in page
        assert 'onload="x' not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;" in page

    def test_names_keep_their_script_and_their_direction(self, image_folder, tmp_path, invoke):
        path, out = tmp_path / "\u732b.hello", tmp_path / "\u732b.html"
        (image_folder / "cat").rename(image_folder / "\u732b \u05d7\u05ea\u05d5\u05dc")
        options = ["--name", "\u00fcben\u202e\u200bx", "--method", "\u2066m"]
        assert invoke("pack", image_folder, "-o", path, *options).exit_code == 0
        page = invoke("inspect", path, "--html", out)
        assert page.exit_code == 0
        text = out.read_text(encoding="utf-8")
        assert "<bdi>\u732b \u05d7\u05ea\u05d5\u05dc</bdi>" in text
        assert "<h1><bdi>\u00fcben\\u202e\\u200bx " in text
        assert "<bdi>\\u2066m</bdi>" in text
        assert not set(text) & set("\u202e\u200b\u2066")
        shown = invoke("inspect", path, "--classes").stdout
        assert "\u732b \u05d7\u05ea\u05d5\u05dc" in shown

    def test_a_photograph_is_shown_as_training_sees_it(self, tmp_path, invoke):
        exif = Image.Exif()
        exif[0x0112] = 6
        (tmp_path / "in" / "a").mkdir(parents=True)
        wide = np.zeros((8, 20, 3), np.uint8)
        Image.fromarray(wide).save(tmp_path / "in" / "a" / "0.jpg", exif=exif)
        assert invoke("pack", tmp_path / "in", "-o", tmp_path / "x.hello").exit_code == 0
        invoke("inspect", tmp_path / "x.hello", "--html", tmp_path / "x.html")
        page = (tmp_path / "x.html").read_text()
        shown = base64.b64decode(re.findall(r"data:image/jpeg;base64,([^\"]+)", page)[0])
        with Image.open(io.BytesIO(shown)) as image:
            assert (image.size, dict(image.getexif())) == ((20, 8), {})
        assert "image-orientation: none" in page

    def test_an_existing_page_stays(self, full, tmp_path, invoke):
        out = tmp_path / "r.html"
        out.write_text("mine")
        result = invoke("inspect", full, "--html", out)
        assert result.exit_code == 10
        assert "exists; `--force` replaces it" in result.stderr
        assert (out.read_text(), result.stdout) == ("mine", "")
        assert invoke("inspect", full, "--html", out, "--force").exit_code == 0
        assert out.read_text().startswith("<!doctype html>")

    def test_a_damaged_image_makes_no_page(self, full, tmp_path, invoke):
        with open_archive(full) as file:
            offset = int(file.index.offset[3])
        data = bytearray(full.read_bytes())
        data[offset + 30] ^= 1
        full.write_bytes(data)
        result = invoke("inspect", full, "--html", tmp_path / "r.html")
        assert result.exit_code == 4
        assert not (tmp_path / "r.html").exists()

    def test_packed_archives_show_png(self, image_folder, tmp_path, invoke):
        path, out = tmp_path / "p.hello", tmp_path / "p.html"
        invoke("pack", image_folder, "-o", path, "--layout", "packed")
        assert invoke("inspect", path, "--html", out).exit_code == 0
        shown = re.findall(r"data:image/png;base64,([^\"]+)", out.read_text())
        assert len(shown) == 6
        assert base64.b64decode(shown[0]).startswith(b"\x89PNG")

    def test_many_images_show_some_of_every_class(self):
        from hellofmt_cli.pages import MAX_IMAGES, _rows_shown

        labels = sorted([0] * 500 + [1] * 3 + [2] * 200)
        shown = _rows_shown(labels)
        assert len(shown) == MAX_IMAGES
        assert shown == sorted(shown)
        counts = [sum(labels[row] == c for row in shown) for c in range(3)]
        assert counts == [59, 3, 58]
