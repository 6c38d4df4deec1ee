"""webdataset and Hugging Face datasets see exactly the images; our own samples are verified."""

import copy
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

import hellofmt
from hellofmt.archive import DEFAULT_LIMITS, decode_image, open_archive, write_archive, write_shards
from hellofmt.errors import CorruptError, TrustError, UserInputError

# Prints what webdataset gives; `make test-long` runs this file with the oldest one too.
READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
import webdataset
read = webdataset.WebDataset(sys.argv[1], shardshuffle=False)
found = [[s["__key__"], sorted(k for k in s if k[0] != "_"), len(s["png"])] for s in read]
print(json.dumps(found))
"""


def run(code, *arguments, path=None):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, env=env, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def images_of(members):
    return [
        [name.removesuffix(".png"), ["png"], len(data)]
        for name, data in members.items()
        if name.startswith("images/")
    ]


def test_webdataset_sees_the_images(archive, members):
    assert run(READ, archive) == images_of(members)


def test_hugging_face_datasets_sees_the_images(archive, members, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    read = datasets.load_dataset(
        "webdataset", data_files=str(archive), split="train", cache_dir=str(tmp_path / "cache")
    ).cast_column("png", datasets.Image(decode=False))
    found = [[s["__key__"], [k for k in s if k[0] != "_"], len(s["png"]["bytes"])] for s in read]
    assert found == images_of(members)


def test_of_a_packed_archive_stock_readers_see_nothing(samples, tmp_path):
    """As README says: there are no members to see."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    path = tmp_path / "p.hello"
    write_archive(path, samples.draft(images=samples.images(9, layout="packed")))
    with path.open("rb") as stream:
        files = [{**file, "__url__": ""} for file in tar_file_iterator(stream)]
    assert list(group_by_keys(files)) == []
    with tarfile.open(path) as tar:
        assert not [name for name in tar.getnames() if not name.startswith("__hello__/")]


def test_our_samples_are_webdataset_s(archive, members):
    import webdataset

    samples = list(hellofmt.webdataset_samples(archive))
    # From an open stream, because webdataset leaves closing its own to chance.
    with archive.open("rb") as stream:
        files = webdataset.tariterators.tar_file_iterator(stream)
        theirs = list(webdataset.tariterators.group_by_keys({**f, "__url__": ""} for f in files))
    for ours, other in zip(samples, theirs, strict=True):
        assert ours["__key__"] == other["__key__"]
        assert ours["png"] == other["png"]
        assert set(ours) == {"__key__", "__url__", "png", "cls"}
        assert ours["__url__"] == str(archive)
    with open_archive(archive) as file:
        assert [int(sample["cls"]) for sample in samples] == file.index.label.tolist()


def test_in_a_pipeline(archive):
    import webdataset

    pipeline = webdataset.DataPipeline(
        hellofmt.webdataset_samples(archive),
        webdataset.shuffle(5),
        webdataset.decode("rgb8"),
        webdataset.to_tuple("png", "cls"),
    )
    with open_archive(archive) as file:
        wanted = sorted(
            (int(file.index.label[row]), file.decode_image(row).tobytes())
            for row in range(len(file))
        )
    assert sorted((label, np.asarray(image).tobytes()) for image, label in pipeline) == wanted


# More workers than processors are a warning of torch.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_and_workers_share_the_rows(archive, ranks, workers):
    seen = []
    for rank in range(ranks):
        samples = hellofmt.webdataset_samples(archive, rank=rank, num_replicas=ranks)
        loader = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=workers)
        keys = [sample["__key__"] for sample in loader]
        assert abs(len(keys) - 11 / ranks) < max(workers, 1)
        seen += keys
    with open_archive(archive) as file:
        names = [file.image_name(row).removesuffix(".png") for row in range(11)]
    assert sorted(seen) == names


def test_ranks_of_a_process_group(archive, as_rank):
    samples = hellofmt.webdataset_samples(archive)
    as_rank(1, 4)
    assert [sample["__key__"][-2:] for sample in samples] == ["01", "05", "09"]
    # A worker that is spawned belongs to no group.
    spawned = copy.deepcopy(samples)
    as_rank(0, 1)
    assert [sample["__key__"][-2:] for sample in spawned] == ["01", "05", "09"]
    assert len(list(samples)) == 11


def test_samples_of_a_packed_set(samples, tmp_path):
    draft = samples.draft(images=samples.images(9, side=4, channels=1, layout="packed"))
    write_shards(tmp_path / "p.hello", draft, 2)
    with open_archive(str(tmp_path / "p-*.hello")) as file:
        found = list(hellofmt.webdataset_samples(file, expect=file.id))
        assert [sample["__key__"] for sample in found][-1] == "images/0001/000008"
        for row, sample in enumerate(found):
            pixels = decode_image(sample["png"], "png", DEFAULT_LIMITS)
            assert np.array_equal(np.broadcast_to(pixels, (4, 4, 3)), file.decode_image(row))


def test_a_fault_is_an_error_and_not_a_missing_sample(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    with open_archive(archive) as file:
        data[int(file.index.offset[4]) + 40] ^= 1
    (tmp_path / "x.hello").write_bytes(data)
    given = []
    with pytest.raises(CorruptError, match=r"E_DIGEST_MEMBER member=images/0000/000004\.png"):
        given.extend(hellofmt.webdataset_samples(tmp_path / "x.hello"))


def test_what_is_refused(archive, samples, tmp_path):
    with pytest.raises(TrustError, match="E_PIN"):
        hellofmt.webdataset_samples(archive, expect="sha256:" + "0" * 64)
    with open_archive(archive) as file, pytest.raises(TrustError, match="E_PIN: id of the archive"):
        hellofmt.webdataset_samples(file, expect="sha256:" + "0" * 64)
    for place in ({"rank": 0}, {"num_replicas": 2}, {"rank": 2, "num_replicas": 2},
                  {"rank": -1, "num_replicas": 2}):  # fmt: skip
        with pytest.raises(UserInputError, match="`rank`, `num_replicas`; expected 0 <= rank"):
            hellofmt.webdataset_samples(archive, **place)
    write_archive(tmp_path / "p.hello", samples.draft(projector=samples.projector()))
    with pytest.raises(UserInputError, match="E_DATA: the archive has no images"):
        hellofmt.webdataset_samples(tmp_path / "p.hello")


def test_packing_shards_runs_nothing(samples, tmp_path):
    """A pickle beside an image, under every name that webdataset unpickles."""
    import io

    ran = tmp_path / "ran"
    # `os.system("touch ran")` for an unpickler, protocol 0.
    attack = f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode()
    image = samples.png(samples.pattern(3, 4, 4, 3))
    target = tmp_path / "shard.tar"
    with tarfile.open(target, "w") as tar:
        for row in range(2):
            members = {"png": image, "cls": str(row).encode()}
            members |= dict.fromkeys(["pyd", "pkl", "pickle", "pth", "npy", "json"], attack)
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{row:06d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    hellofmt.pack(target, tmp_path / "x.hello", layout="files")
    with open_archive(tmp_path / "x.hello") as file:
        assert file.read_images([0, 1]) == [image, image]
    assert not ran.exists()
    # The attack is a real one: webdataset's own decoder runs it.
    code = """
import json, sys, warnings
warnings.simplefilter("ignore")
import webdataset
try:
    list(webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode("rgb8"))
except Exception:
    pass
print(json.dumps(0))
"""
    run(code, target)
    assert ran.exists()
