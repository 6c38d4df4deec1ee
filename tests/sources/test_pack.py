"""Packing: bytes kept, classes numbered right, damage and misfits refused by name."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torchvision
from PIL import Image

from hellofmt.archive import (
    UNSET,
    ClassLine,
    Texts,
    encode_image,
    open_archive,
    read_class_lines,
    verify_archive,
)
from hellofmt.archive.format.image_data import check_image_data
from hellofmt.archive.format.images import parse_image
from hellofmt.archive.write import measure
from hellofmt.errors import HelloIOError, LimitError, UserInputError
from hellofmt.sources import pack_archive, stored

PALETTE = io.BytesIO()
Image.new("P", (2, 2)).save(PALETTE, "PNG")
PALETTE = PALETTE.getvalue()


def pixels(seed, size=8, channels=3):
    shape = (size, size, channels) if channels > 1 else (size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_folder(root, names, size=8):
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = {"png": "png", "jpg": "jpeg", "webp": "webp"}[path.suffix[1:].lower()]
        path.write_bytes(encode_image(pixels(seed, size), codec))
    return root


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(path):
    """Label and digest of every image, and the class keys."""
    with open_archive(path) as file:
        index = file.index
        images = [
            (int(label), hashlib.sha256(file.read_image(row)).hexdigest())
            for row, label in enumerate(index.label)
        ]
        return images, file.classes.keys


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(kind, *args, **options):
    with pytest.raises(kind) as caught:
        pack_archive(*args, **options)
    return str(caught.value)


class TestFolder:
    def test_bytes_are_kept_and_order_is_that_of_image_folder(self, tmp_path):
        names = ["dog/b.png", "cat/z.png", "cat/a/s.png", "cat/a-b/t.png", "cat/b.png"]
        root = write_folder(tmp_path / "set", names)
        archive_id = pack_archive(root, tmp_path / "x.hello", layout="files")
        images, keys = contents(tmp_path / "x.hello")
        import torchvision

        reference = torchvision.datasets.ImageFolder(root)
        assert keys == reference.classes
        expected = [(label, digest(Path(path))) for path, label in reference.samples]
        assert images == expected
        assert verify_archive(tmp_path / "x.hello", expect=archive_id).images == 5

    def test_same_folder_same_bytes(self, tmp_path):
        names = ["a/1.png", "b/2.png"]
        one = write_folder(tmp_path / "1" / "set", names)
        # Made in the other order, so that the directory lists its entries otherwise.
        two = write_folder(tmp_path / "2" / "set", [])
        for name in reversed(names):
            (two / name).parent.mkdir(parents=True)
            (two / name).write_bytes((one / name).read_bytes())
            os.utime(two / name, (1, 1))
        pack_archive(one, tmp_path / "1.hello")
        pack_archive(two, tmp_path / "2.hello")
        assert digest(tmp_path / "1.hello") == digest(tmp_path / "2.hello")

    @pytest.mark.parametrize(
        ("names", "keys"),
        [
            (["9", "10", "2"], ["10", "2", "9"]),
            (["00010", "00002"], ["00002", "00010"]),
            (["new10", "new2"], ["new10", "new2"]),
            (["n02", "m10", "n1"], ["m10", "n02", "n1"]),
            (["b", "B", "a"], ["B", "a", "b"]),
        ],
    )
    def test_folders_go_by_name(self, tmp_path, names, keys):
        # As torchvision's ImageFolder has them, which is what teachers are trained with.
        root = write_folder(tmp_path / "set", [f"{name}/x.png" for name in names])
        pack_archive(root, tmp_path / "x.hello")
        assert contents(tmp_path / "x.hello")[1] == keys
        assert torchvision.datasets.ImageFolder(root).classes == keys

    def test_class_list_by_name(self, tmp_path):
        root = write_folder(tmp_path / "set", ["cat/x.png", "owl/x.png"])
        (tmp_path / "classes.txt").write_text("owl\tgreat owl, owl\n\ndog\ncat\thouse cat\n")
        lines = read_class_lines(tmp_path / "classes.txt")
        assert lines[0] == ClassLine("owl", ("great owl", "owl"))
        assert lines[1] == ClassLine("dog", ("dog",))
        pack_archive(root, tmp_path / "x.hello", classes=lines, layout="files")
        images, keys = contents(tmp_path / "x.hello")
        assert keys == ["owl", "dog", "cat"]
        assert images == [
            (0, digest(root / "owl" / "x.png")),
            (2, digest(root / "cat" / "x.png")),
        ]

    def test_class_list_by_number(self, tmp_path):
        # What RDED writes: folders 00000, 00001, ... for classes known by their WordNet ids.
        root = write_folder(tmp_path / "set", ["00002/x.png", "00000/x.png"])
        lines = [ClassLine(key, (key,)) for key in ("n01", "n02", "n03")]
        pack_archive(root, tmp_path / "x.hello", classes=lines, layout="files")
        images, keys = contents(tmp_path / "x.hello")
        assert keys == ["n01", "n02", "n03"]
        assert [label for label, _ in images] == [0, 2]
        assert images[1][1] == digest(root / "00002" / "x.png")

    def test_views_follow_the_images(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png", "a/2.png", "b/1.png"], size=24)
        pack_archive(root, tmp_path / "x.hello", views={"flip": "0.0"})
        with open_archive(tmp_path / "x.hello") as file:
            views = file.manifest.views
        assert (views.size, views.flip, views.mix) == (24, "0.0", "none")

    def test_large_images_get_views_of_224(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.jpg", "b/1.jpg"], size=300)
        pack_archive(root, tmp_path / "x.hello")
        with open_archive(tmp_path / "x.hello") as file:
            assert file.manifest.views.size == 224

    def test_what_the_manifest_says(self, tmp_path):
        root = write_folder(tmp_path / "toy.v2", ["a/1.png", "b/1.png"])
        pack_archive(root, tmp_path / "x.hello")
        pack_archive(
            root,
            tmp_path / "y.hello",
            texts=Texts(
                name="mine",
                version="2.0.0",
                license="MIT",
                method="random",
                sources=["toy"],
                card="# Card",
                license_text="Do as you like.",
                extras={"x_note": "n"},
            ),
        )
        with open_archive(tmp_path / "x.hello") as file:
            dataset = file.manifest.dataset
            assert (dataset.name, dataset.version, dataset.license, dataset.ipc) == (
                "toy.v2",
                "1.0.0",
                "NOASSERTION",
                1,
            )
        with open_archive(tmp_path / "y.hello") as file:
            dataset = file.manifest.dataset
            assert (dataset.name, dataset.version, dataset.license) == ("mine", "2.0.0", "MIT")
            assert (dataset.method, list(dataset.sources)) == ("random", ["toy"])
            assert file.section("card") == b"# Card"
            assert file.section("license") == b"Do as you like."
            assert dict(file.extras) == {"x_note": "n"}


class TestRefusals:
    def test_no_class_folder(self, tmp_path):
        (tmp_path / "set").mkdir()
        text = refused(UserInputError, tmp_path / "set", tmp_path / "x.hello")
        assert text.endswith("no class folder; expected one folder per class")

    def test_empty_class(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png"])
        (root / "b").mkdir()
        text = refused(UserInputError, root, tmp_path / "x.hello")
        assert "class folders without an image: 1: " in text
        assert "set/b" in text

    def test_two_codecs(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png", "a/2.jpg", "b/1.png"])
        text = refused(UserInputError, root, tmp_path / "x.hello")
        assert "an archive has one codec, the source has 1 jpeg, 2 png" in text
        pack_archive(root, tmp_path / "x.hello", reencode="png", layout="files")
        images, _ = contents(tmp_path / "x.hello")
        # What was PNG within the profile stays as it is.
        assert images[0][1] == digest(root / "a" / "1.png")
        with open_archive(tmp_path / "x.hello") as file:
            expected = np.asarray(Image.open(root / "a" / "2.jpg"))
            assert (file.decode_image(1) == expected).all()

    @pytest.mark.parametrize("mode", ["P", "RGBA", "1", "LA"])
    def test_outside_the_profile(self, tmp_path, mode):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        bad = root / "b" / "bad.png"
        image = Image.fromarray(pixels(9)).convert(mode)
        image.save(bad)
        text = refused(UserInputError, root, tmp_path / "x.hello", layout="files")
        assert "b/bad.png" in text
        assert "E_CODEC" in text
        assert text.endswith("`reencode` converts it")
        assert list(tmp_path.iterdir()) == [root]
        said = []
        pack_archive(root, tmp_path / "x.hello", reencode="png", layout="files", say=said.append)
        with open_archive(tmp_path / "x.hello") as file:
            assert (file.decode_image(2) == np.asarray(image.convert("RGB"))).all()
            # Grey is stored as it is, so there is nothing to say.
            assert parse_image(file.read_image(2), "png").channels == (1 if mode == "1" else 3)
        assert [note[:24] for note in said] == (
            []
            if mode == "1"
            else ["1 of 3 images with a pal"]
            if mode == "P"
            else ["1 of 3 images with an al"]
        )

    def test_what_was_dropped_is_a_warning_of_the_logger(self, tmp_path, caplog):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(root / "b" / "2.png")
        pack_archive(root, tmp_path / "x.hello", reencode="png", layout="files")
        assert [record.getMessage() for record in caplog.records] == [
            "1 of 3 images with an alpha channel: dropped, the colours under it show"
        ]

    @pytest.mark.parametrize("reencode", [None, "jpeg", "png"])
    def test_an_orientation_is_ignored_and_said_once(self, tmp_path, reencode):
        root = write_folder(tmp_path / "set", ["a/1.jpg", "b/1.jpg"])
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(pixels(0)[:4])
        image.save(root / "b" / "1.jpg", exif=exif)
        stored = np.asarray(Image.open(root / "b" / "1.jpg"))
        said = []
        pack_archive(root, tmp_path / "x.hello", reencode=reencode, layout="files", say=said.append)
        assert said == [
            "1 of 2 images with an EXIF orientation: ignored, pixels stay as they are stored"
        ]
        with open_archive(tmp_path / "x.hello") as file:
            assert (file.decode_image(1) == stored).all()

    def test_compressed_data_is_walked_over_once(self, tmp_path, monkeypatch):
        # One is kept, one is read as JPEG and written as PNG; PNG is inflated by its decoder.
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.jpg"])
        walked = []

        def walk(data, codec, shape, **options):
            walked.append(codec)
            check_image_data(data, codec, shape, **options)

        for module in (measure, stored):
            monkeypatch.setattr(module, "check_image_data", walk)
        for layout in ("files", "packed"):
            pack_archive(root, tmp_path / "x.hello", reencode="png", layout=layout, force=True)
            assert sorted(walked) == ["jpeg", "png", "png"]
            walked.clear()

    @pytest.mark.parametrize("reencode", ["jpeg", "png"])
    def test_a_large_image_is_named(self, tmp_path, reencode):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        Image.new("RGB", (4100, 8)).save(root / "b" / "2.jpg")
        text = refused(ValueError, root, tmp_path / "x.hello", reencode=reencode)
        assert "b/2.jpg" in text
        assert "4096" in text
        assert text.endswith("`max_side` 4096 shrinks larger images")
        (root / "b" / "2.jpg").unlink()
        Image.new("RGB", (4100, 8)).save(root / "b" / "2.png")
        text = refused(LimitError, root, tmp_path / "x.hello")
        assert text.endswith("`max_side` 4096 with `reencode` CODEC shrinks larger images")

    def test_not_an_image(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        (root / "b" / "2.png").write_bytes(b"hello")
        assert "b/2.png" in refused(UserInputError, root, tmp_path / "x.hello")
        text = refused(UserInputError, root, tmp_path / "x.hello", reencode="png")
        assert "b/2.png` is not an image in PNG, JPEG or WebP" in text

    @pytest.mark.parametrize("number", [1, 200])
    @pytest.mark.parametrize("reencode", [None, "png"])
    def test_pipes_and_devices_are_not_waited_for(self, tmp_path, number, reencode):
        # Also where it is not one of the few files that the size of the views is taken from.
        root = write_folder(tmp_path / "set", [f"a/{i:03d}.png" for i in range(number)])
        last = root / "a" / "zz.png"
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/null")):
            make(last)
            text = refused(UserInputError, root, tmp_path / "x.hello", reencode=reencode)
            assert "zz.png" in text
            assert text.endswith("no regular file")
            last.unlink()
        os.mkfifo(tmp_path / "shard.tar")
        text = refused(UserInputError, tmp_path / "shard.tar", tmp_path / "x.hello")
        assert text.endswith("shard.tar`: neither a folder nor a regular file")

    def test_an_image_of_any_size_is_not_read_to_be_refused(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png"])
        with (root / "a" / "2.png").open("wb") as stream:
            stream.write((root / "a" / "1.png").read_bytes())
            stream.truncate(1 << 38)
        text = refused(LimitError, root, tmp_path / "x.hello")
        assert "E_LIMIT_IMAGE_BYTES" in text

    def test_sixteen_bits_are_not_cut_to_eight(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(root / "b" / "deep.png")
        text = refused(UserInputError, root, tmp_path / "x.hello", reencode="png")
        assert "deep.png` has mode I;16; expected 8 bits per channel" in text

    def test_class_not_in_the_list(self, tmp_path):
        root = write_folder(tmp_path / "set", ["cat/1.png", "yak/1.png"])
        lines = [ClassLine("cat", ("cat",)), ClassLine("dog", ("dog",))]
        text = refused(UserInputError, root, tmp_path / "x.hello", classes=lines)
        assert text.endswith(
            "1 of 2 classes of `set` are not in the class list of 2: yak; expected cat, dog"
        )

    def test_number_beyond_the_list(self, tmp_path):
        root = write_folder(tmp_path / "set", ["0/1.png", "2/1.png"])
        lines = [ClassLine("cat", ("cat",)), ClassLine("dog", ("dog",))]
        text = refused(UserInputError, root, tmp_path / "x.hello", classes=lines)
        assert (
            "the classes of `set` are numbers up to 2, places in the class list; expected less"
            in text
        )

    def test_existing_target(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        target = tmp_path / "x.hello"
        target.write_text("mine")
        with pytest.raises(HelloIOError, match="E_TARGET"):
            pack_archive(root, target)
        assert target.read_text() == "mine"
        pack_archive(root, target, force=True)
        assert verify_archive(target).images == 2

    def test_missing_source(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            pack_archive(tmp_path / "none", tmp_path / "x.hello")

    def test_no_and_too_many_sources(self, tmp_path):
        assert "no source; expected a folder, shards or an archive" in refused(
            UserInputError, [], tmp_path / "x.hello"
        )
        root = write_folder(tmp_path / "set", ["a/1.png"])
        text = refused(UserInputError, [root, root], tmp_path / "x.hello")
        assert "several sources; expected one folder, or shards" in text

    def test_unknown_view_field(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png"])
        text = refused(UserInputError, root, tmp_path / "x.hello", views={"zoom": "1.0"})
        assert "`views`: no field zoom" in text


class TestShards:
    def sample(self, seed, label, key=None):
        key = key or f"{seed:06d}"
        return [(f"{key}.png", encode_image(pixels(seed), "png")), (f"{key}.cls", b"%d" % label)]

    def test_images_and_labels(self, tmp_path):
        one = write_shard(tmp_path / "a-0.tar", [*self.sample(0, 3), *self.sample(1, 0)])
        two = write_shard(tmp_path / "a-1.tar", self.sample(2, 1, key="deep/er/k"))
        pack_archive([one, two], tmp_path / "x.hello", layout="files")
        images, keys = contents(tmp_path / "x.hello")
        # Class 2 has no image here and is a class all the same.
        assert keys == ["0", "1", "2", "3"]
        expected = [(0, 1), (1, 2), (3, 0)]
        assert images == [
            (label, hashlib.sha256(encode_image(pixels(seed), "png")).hexdigest())
            for label, seed in expected
        ]

    def test_other_members_are_not_opened(self, tmp_path):
        # Unpickling `evil.pyd` would leave a file; webdataset's own decoder would do it.
        evil = b"cposix\nsystem\n(S'touch " + os.fsencode(tmp_path / "pwned") + b"'\ntR."
        shard = write_shard(
            tmp_path / "a.tar", [*self.sample(0, 0), ("000000.pyd", evil), ("000000.json", b"{")]
        )
        pack_archive(shard, tmp_path / "x.hello")
        assert not (tmp_path / "pwned").exists()
        assert len(contents(tmp_path / "x.hello")[0]) == 1

    def test_against_webdataset(self, tmp_path):
        import webdataset as wds

        with wds.TarWriter(str(tmp_path / "a.tar")) as sink:
            for seed in range(3):
                data = encode_image(pixels(seed), "png")
                sink.write({"__key__": f"s{seed}", "png": data, "cls": seed % 2})
        pack_archive(tmp_path / "a.tar", tmp_path / "x.hello", layout="files")
        images, keys = contents(tmp_path / "x.hello")
        assert keys == ["0", "1"]
        assert images == [
            (seed % 2, hashlib.sha256(encode_image(pixels(seed), "png")).hexdigest())
            for seed in (0, 2, 1)
        ]

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ([("a.png", b"x")], "expected one image and a `.cls`, got png"),
            ([("a.cls", b"1")], "expected one image and a `.cls`, got cls"),
            (
                [("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")],
                "expected one image and a `.cls`, got cls, jpg, png",
            ),
            ([("a.png", b"x"), ("a.cls", b"cat")], "expected a class number"),
            ([("a.png", b"x"), ("a.cls", b"-1")], "expected a class number"),
            ([("a.png", b"x"), ("a.cls", b"9999999")], "of at most 6 digits"),
            ([("a.txt", b"x")], "no image with a `.cls`"),
        ],
    )
    def test_samples_refused(self, tmp_path, members, message):
        shard = write_shard(tmp_path / "a.tar", members)
        assert message in refused(UserInputError, shard, tmp_path / "x.hello")

    def test_an_image_outside_its_profile_is_named(self, tmp_path):
        shard = write_shard(tmp_path / "a.tar", [("k/1.png", PALETTE), ("k/1.cls", b"0")])
        text = refused(UserInputError, shard, tmp_path / "x.hello", layout="files")
        assert "a.tar:k/1.png`: E_CODEC" in text

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
    )
    def test_links_and_special_files_are_refused(self, tmp_path, kind):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        text = refused(UserInputError, tmp_path / "a.tar", tmp_path / "x.hello")
        assert "`a.png` is a link or special file" in text

    def test_not_a_tar(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(b"x" * 2000)
        text = refused(UserInputError, tmp_path / "a.tar", tmp_path / "x.hello")
        assert "not an uncompressed tar file" in text

    def test_compressed(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
            pass
        text = refused(UserInputError, tmp_path / "a.tar.gz", tmp_path / "x.hello")
        assert "not an uncompressed tar file" in text

    def test_no_damaged_header_loses_samples(self, tmp_path):
        # `tarfile` ends without a word at such a header; every one of them must be an error.
        members = [pair for seed in range(3) for pair in self.sample(seed, seed)]
        whole = write_shard(tmp_path / "whole.tar", members).read_bytes()
        bad = tmp_path / "bad.tar"
        with tarfile.open(tmp_path / "whole.tar") as tar:
            offsets = [info.offset for info in tar]
        for offset in offsets:
            damaged = bytearray(whole)
            damaged[offset + 150] ^= 1
            bad.write_bytes(damaged)
            text = refused(UserInputError, bad, tmp_path / "x.hello")
            assert "tar file" in text
        for length in (*offsets[1:], offsets[-1] + 700, len(whole) - 10240):
            bad.write_bytes(whole[:length])
            text = refused(UserInputError, bad, tmp_path / "x.hello")
            assert "damaged tar file" in text or "not an uncompressed tar file" in text

    def test_joined_shards_are_refused(self, tmp_path):
        one = write_shard(tmp_path / "a.tar", self.sample(0, 0)).read_bytes()
        two = write_shard(tmp_path / "b.tar", self.sample(1, 1)).read_bytes()
        (tmp_path / "c.tar").write_bytes(one + two)
        text = refused(UserInputError, tmp_path / "c.tar", tmp_path / "x.hello")
        assert "damaged tar file" in text


class TestArchives:
    def test_from_another_archive(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        pack_archive(root, tmp_path / "x.hello", layout="files", texts=Texts(name="n"))
        pack_archive(
            tmp_path / "x.hello", tmp_path / "y.hello", layout="files", texts=Texts(name="n")
        )
        assert digest(tmp_path / "x.hello") == digest(tmp_path / "y.hello")

    def test_from_a_packed_archive(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        pack_archive(root, tmp_path / "x.hello", layout="packed")
        pack_archive(tmp_path / "x.hello", tmp_path / "y.hello", layout="files")
        with open_archive(tmp_path / "y.hello") as file:
            for row in range(2):
                assert (file.decode_image(row) == pixels(row)).all()

    def test_damage_does_not_travel(self, tmp_path):
        root = write_folder(tmp_path / "set", ["a/1.png", "b/1.png"])
        pack_archive(root, tmp_path / "x.hello", layout="files")
        data = bytearray((tmp_path / "x.hello").read_bytes())
        data[-1024 - 400] ^= 1
        (tmp_path / "x.hello").write_bytes(data)
        with pytest.raises(ValueError, match="E_DIGEST_MEMBER"):
            pack_archive(tmp_path / "x.hello", tmp_path / "y.hello")
        assert not (tmp_path / "y.hello").exists()


VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"


def test_what_is_copied_keeps_its_record(tmp_path):
    everything, images = VECTORS / "everything.hello", VECTORS / "images-png.hello"
    with open_archive(everything) as file:
        known = file.record
    said = []

    def packed(*args, **options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.hello"
        pack_archive(*args[:1], path, **options, say=said.append)
        with open_archive(path) as file:
            return file.record

    (function,) = known.functions
    renamed = packed(None, projector=[("weak", everything)])
    assert renamed.functions == [msgspec.structs.replace(function, name="weak")]
    assert (renamed.images, renamed.results) == (UNSET, UNSET)
    assert packed(images).images == known.images
    assert packed(images, reencode="jpeg") is None
    assert said == []
    whole = packed(everything, projector=everything)
    assert (whole.functions, whole.images, whole.results) == (known.functions, known.images, UNSET)
    assert said == [
        "the card of the archive that is read is left out",
        "the text of the licence of the archive that is read is left out",
        "recorded results of students are left out: they are of the archive that is read",
    ]


def test_images_of_an_archive_keep_what_it_says_of_them(tmp_path):
    source = VECTORS / "everything.hello"
    said = []
    pack_archive(source, tmp_path / "same.hello", say=said.append)
    with open_archive(source) as file, open_archive(tmp_path / "same.hello") as copy:
        assert copy.manifest.dataset == file.manifest.dataset
        assert copy.manifest.views == file.manifest.views
    assert said[0] == "the label function of the archive that is read is left out"
    pack_archive(
        source, tmp_path / "other.hello", texts=Texts(license="MIT", method="m", sources=[])
    )
    with open_archive(tmp_path / "other.hello") as copy:
        stated = copy.manifest.dataset
    assert (stated.license, stated.method, stated.sources) == ("MIT", "m", [])
