"""`hello pack`: the options reach the archive; a label function is copied bit for bit."""

import tarfile

import click
import pytest
from PIL import Image

from hellofmt.archive import open_archive


def read(path):
    with open_archive(path) as file:
        return file.manifest, dict(file.extras), file.classes


def test_options_reach_the_archive(image_folder, tmp_path, invoke, invoke_json):
    (tmp_path / "card.md").write_text("# Card")
    (tmp_path / "license.txt").write_text("Do as you like.")
    path = tmp_path / "x.hello"
    document = invoke_json(
        *("pack", image_folder, "-o", path, "--name", "toy", "--version", "2.1.0"),
        *("--license", "CC0-1.0", "--license-file", tmp_path / "license.txt"),
        *("--card", tmp_path / "card.md", "--method", "random", "--from", "a", "--from", "b"),
        *("--note", "who=me", "--note", "x_why=so", "--layout", "files"),
        *("--view-size", 16, "--view-crop", 0.5, 1, "--view-flip", 0, "--view-mix", "cutmix"),
    )
    manifest, extras, classes = read(path)
    dataset, views = manifest.dataset, manifest.views
    assert document == {
        "schema": "hello.pack/1",
        "path": str(path),
        "id": document["id"],
        "bytes": path.stat().st_size,
        "images": 6,
        "classes": 3,
    }
    assert (dataset.name, dataset.version, dataset.license) == ("toy", "2.1.0", "CC0-1.0")
    assert (dataset.method, list(dataset.sources), dataset.ipc) == ("random", ["a", "b"], 2)
    assert extras == {"x_who": "me", "x_why": "so"}
    assert (views.size, list(views.crop_scale), views.flip) == (16, ["0.5", "1.0"], "0.0")
    assert (views.mix, views.mix_probability) == ("cutmix", "0.5")
    assert classes.keys == ["cat", "dog", "owl"]
    with open_archive(path, expect=document["id"]) as file:
        assert file.section("card") == b"# Card"
        assert file.section("license") == b"Do as you like."


def test_page(image_folder, tmp_path, invoke):
    result = invoke("pack", image_folder, "-o", tmp_path / "x.hello")
    text = image_folder / "cat" / "notes.txt"
    assert result.stderr == f"Warning: files that are not images skipped: 1, such as `{text}`\n"
    assert "6 images of 3 classes, " in result.stdout


class TestProjector:
    def test_copied_bit_for_bit(self, image_folder, tmp_path, make_projector, invoke):
        projector, path = make_projector(), tmp_path / "x.hello"
        assert invoke("pack", image_folder, "-o", path, "--projector", projector).exit_code == 0
        with open_archive(projector) as p, open_archive(path) as x:
            for section in ("adapter", "head", "probes", "classes"):
                assert p.section(section) == x.section(section)
            for group in ("base", "functions", "views"):
                assert getattr(p.manifest, group) == getattr(x.manifest, group)
            assert x.manifest.dataset.method == "hello"
            assert list(x.manifest.dataset.sources) == ["toy"]
            assert len(x) == 6

    def test_its_order_of_classes_decides(self, image_folder, tmp_path, make_projector, invoke):
        projector, path = make_projector(keys=["owl", "cat", "dog", "yak"]), tmp_path / "x.hello"
        assert invoke("pack", image_folder, "-o", path, "--projector", projector).exit_code == 0
        with open_archive(path) as file:
            assert file.classes.keys == ["owl", "cat", "dog", "yak"]
            assert file.index.label.tolist() == [0, 0, 1, 1, 2, 2]
            assert file.classes.names[1] == ("a cat",)

    def test_another_class_is_refused(self, image_folder, tmp_path, make_projector, invoke):
        projector = make_projector(keys=["cat", "dog", "yak"])
        result = invoke("pack", image_folder, "-o", tmp_path / "x.hello", "--projector", projector)
        assert result.exit_code == 2
        assert "not in the class list of 3: owl; expected cat, dog, yak" in result.stderr
        assert not (tmp_path / "x.hello").exists()

    def test_a_class_list_must_be_the_projector_s(
        self, image_folder, tmp_path, make_projector, invoke
    ):
        listed = tmp_path / "classes.txt"
        listed.write_text("dog\ncat\nowl\n")
        options = ["--projector", make_projector(), "--classes", listed]
        result = invoke("pack", image_folder, "-o", tmp_path / "x.hello", *options)
        assert result.exit_code == 2
        assert "the class list is not the projector's" in result.stderr
        assert "beginning cat, dog, owl, got 3 beginning dog, cat, owl" in result.stderr
        listed.write_text("cat\ndog\nowl\n")
        assert invoke("pack", image_folder, "-o", tmp_path / "x.hello", *options).exit_code == 0

    def test_an_archive_without_one(self, image_folder, packed, tmp_path, invoke):
        result = invoke("pack", image_folder, "-o", tmp_path / "y.hello", "--projector", packed)
        assert result.exit_code == 2
        assert "E_OPTION" in result.stderr
        assert "no label function in this archive" in result.stderr

    def test_onto_the_images_of_an_archive(self, packed, tmp_path, make_projector, invoke):
        path = tmp_path / "y.hello"
        assert invoke("pack", packed, "-o", path, "--projector", make_projector()).exit_code == 0
        with open_archive(path) as file:
            assert (len(file), file.has_section("head")) == (6, True)


def test_shards(tmp_path, image_folder, invoke, invoke_json):
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for label, key in enumerate(("cat", "owl")):
            tar.add(image_folder / key / "0.png", f"{key}.png")
            number = tmp_path / "n"
            number.write_text(str(label))
            tar.add(number, f"{key}.cls")
    assert invoke_json("pack", shard, "-o", tmp_path / "x.hello")["images"] == 2
    other = tmp_path / "b.tar"
    other.write_bytes(shard.read_bytes())
    assert invoke_json("pack", shard, other, "-o", tmp_path / "y.hello")["images"] == 4


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--classes", "none.txt"], 9, "none.txt: No such file or directory"),
        (["--card", "none.md"], 9, "none.md: No such file or directory"),
        (["--projector", "none.hello"], 9, "none.hello: No such file or directory"),
        (["--card", "latin.txt"], 2, "`latin.txt`: not UTF-8"),
        (["--projector", "latin.txt"], 3, "E_MAGIC"),
        (["--layout", "packed", "--reencode", "jpeg"], 2, "`--layout`: packed needs codec png"),
        (["--limit", "images=5"], 6, "E_LIMIT_IMAGES"),
        (["--limit", "image_bytes=100"], 6, "E_LIMIT_IMAGE_BYTES"),
    ],
)
def test_failures_leave_nothing(
    image_folder, tmp_path, tree, invoke, monkeypatch, options, code, text
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    before = tree(tmp_path)
    result = invoke("pack", image_folder, "-o", "x.hello", *options)
    assert result.exit_code == code
    assert text in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert tree(tmp_path) == before


def test_existing_output(image_folder, packed, invoke):
    before = packed.read_bytes()
    result = invoke("pack", image_folder, "-o", packed)
    assert result.exit_code == 10
    assert result.stderr.endswith(f"E_TARGET: `{packed}` exists; `--force` replaces it\n")
    assert packed.read_bytes() == before
    assert invoke("pack", image_folder, "-o", packed, "--force").exit_code == 0
    assert packed.read_bytes() != before


def test_output_in_no_directory(image_folder, tmp_path, invoke):
    result = invoke("pack", image_folder, "-o", tmp_path / "none" / "x.hello")
    assert result.exit_code == 10
    assert "E_TARGET" in result.stderr


@pytest.mark.parametrize("layout", ["packed", "files", "auto"])
def test_an_image_above_a_limit_is_named(layout, image_folder, tmp_path, invoke):
    options = ["--layout", layout, "--limit", "image_pixels=63"]
    result = invoke("pack", image_folder, "-o", tmp_path / "y.hello", *options)
    assert result.exit_code == 6
    named = f"member={image_folder / 'cat' / '0.png'}: `image_pixels` is 64, cap 63"
    counted = "6 of 6 images are refused; `--limit image_pixels=64` raises it"
    assert f"Error: E_LIMIT_IMAGE_PIXELS {named}; {counted}\n" in result.stderr


def test_images_of_another_form_are_refused_with_the_option_that_converts(tmp_path, invoke):
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.new("1", (8, 8)).save(tmp_path / "in" / "a" / "0.png")
    for layout in ("packed", "files"):
        result = invoke("pack", tmp_path / "in", "-o", tmp_path / "y", "--layout", layout)
        assert result.exit_code == 2
        assert "in/a/0.png" in result.stderr
        assert result.stderr.endswith("; `--reencode` converts it\n")


def test_a_file_that_another_program_replaced_is_said_to_be(full):
    from hellofmt.errors import HelloIOError
    from hellofmt_cli.pack import _report

    with (
        click.Context(click.Command("pack")).scope(),
        pytest.raises(HelloIOError, match="replaced by another program") as caught,
    ):
        _report(str(full), "sha256:" + "0" * 64, None, as_json=False)
    assert caught.value.exit_code == 10


def test_a_shard_names_its_set(tmp_path, image_folder, invoke, invoke_json):
    assert invoke("pack", image_folder, "-o", tmp_path / "x.hello", "--shards", "2").exit_code == 0
    whole = invoke_json("inspect", tmp_path / "x-*.hello")["content_id"]
    shard = tmp_path / "x-00000-of-00002.hello"
    assert invoke_json("inspect", shard)["shard"]["content_id"] == whole
    assert f"set         content {whole}\n" in invoke("inspect", shard).stdout
