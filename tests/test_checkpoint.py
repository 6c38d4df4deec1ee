"""Files of weights by content: what is read, and the one line that refuses everything else."""

from __future__ import annotations

import argparse
import gzip
import io
import re
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hellofmt.checkpoint import read_checkpoint
from hellofmt.errors import UserInputError

STATE = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.tensor([0.5, -1.0])}


def same(state, expected=STATE):
    return list(state) == list(expected) and all(torch.equal(state[k], expected[k]) for k in state)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["w.pth", "w.ckpt", "w.safetensors", "model_best.pth.tar", "w"])
def test_files_of_torch_are_known_by_content(tmp_path, name, legacy):
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert same(read_checkpoint(tmp_path / name).states[""])
    with pytest.raises(UserInputError, match="a PyTorch pickle, which only the user can name"):
        read_checkpoint(tmp_path / name, pickles=False)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_every_type_that_torch_has_is_read(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    save_file(state, tmp_path / "w.bin", {"who": "me"})
    got = read_checkpoint(tmp_path / "w.bin", pickles=False)
    assert got.metadata == {"who": "me"}
    for name, tensor in STATE.items():
        assert got.states[""][name].dtype == dtype
        assert torch.equal(got.states[""][name].float(), tensor)


def test_every_dictionary_of_tensors_is_found_where_it_lies(tmp_path):
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    optimiser.param_groups[0]["params"][0].grad = torch.ones(2)
    optimiser.step()
    document = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "hyper_parameters": {"lr": 0.1, "layers": [1, 2], "name": "x"},
        "args": argparse.Namespace(lr=0.1, names=["a"]),
        "optimizer_states": [optimiser.state_dict()],
        "optimizer": optimiser.state_dict(),
        "state_dict": STATE,
        "ema": {"module": other, "decay": 0.9},
    }
    torch.save(document, tmp_path / "w.ckpt")
    got = read_checkpoint(tmp_path / "w.ckpt").states
    assert list(got) == ["state_dict", "ema.module"]
    assert same(got["state_dict"])
    assert same(got["ema.module"], other)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise __import__('builtins').RuntimeError('ran')",))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (np.float64(1), r"numpy\.\S+"),
        (Hostile(), "builtins.exec|exec"),
        (torch.nn.Linear(1, 1), r"torch\.nn\.\S+"),
    ],
)
def test_what_could_run_code_is_refused_with_the_cure(tmp_path, beside, name, legacy):
    path = tmp_path / "w.pt"
    torch.save({"beside": beside, **STATE}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserInputError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    assert "weights_only" not in text
    assert "save_model(model, 'weights.safetensors')" in text
    assert re.search(f"holds `({name})` beside its tensors", text), text


def zipped(path):
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.txt", b"x")


def npz(path):
    with path.open("wb") as stream:
        np.savez(stream, w=np.zeros(3))


def scripted(path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))


def tarred(path):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("w.pth")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"abcd"))


def cut_torch(path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])


def cut_legacy(path):
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-20])


def cut_safetensors(path):
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-4])


def cut_header(path):
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:40])


def damaged_header(path):
    save_file(STATE, path)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F3x"'))


def written(data):
    return lambda path: path.write_bytes(data)


def saved(value):
    return lambda path: torch.save(value, path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (written(b""), "is empty; expected weights"),
        (written(LFS), "is a git-LFS pointer, not the weights; run `git lfs pull`"),
        (written(b"\n<!DOCTYPE html><html>"), "is a web page, not the weights; download the file"),
        (written(b"Entry not found"), "is text, not weights: `Entry not found`"),
        (written('{"error": "größer"}'.encode()), "is text, not weights: `{.error"),
        (written(gzip.compress(b"x")), "is compressed with gzip; unpack it first"),
        (written(b"\x08\x07\x12\x07pytorch"), "is neither safetensors nor a file of torch.save"),
        (written(bytes(64)), "is neither safetensors nor a file of torch.save"),
        (tarred, "is a tar archive; unpack it first"),
        (zipped, "is a zip file without a state dict; unpack it first"),
        (npz, "is an archive of NumPy arrays"),
        (cut_torch, "is truncated: a zip file without its end"),
        (cut_legacy, "is truncated or damaged"),
        (cut_safetensors, "is truncated: tensors are missing from its end"),
        (cut_header, "is truncated: 40 bytes, of which a header of"),
        (damaged_header, "is not a sound safetensors file"),
        (saved([1, 2]), "has no tensors by name; expected a state dict"),
        (saved({"epoch": 3}), "has no tensors by name; expected a state dict"),
        (saved(torch.zeros(3)), "has no tensors by name; expected a state dict"),
    ],
)
def test_what_is_no_weights_is_one_line(tmp_path, make, message):
    path = tmp_path / "w.pth"
    make(path)
    with pytest.raises(UserInputError, match=f"E_TEACHER: `.*w.pth` {message}") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserInputError, match="E_BASE: "):
        read_checkpoint(path, code="E_BASE")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_told_how_to_become_a_state_dict(tmp_path):
    scripted(tmp_path / "w.pt")
    with pytest.raises(UserInputError, match=r"is a TorchScript program; .*torch\.jit\.load"):
        read_checkpoint(tmp_path / "w.pt")


def test_what_cannot_be_opened_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(IsADirectoryError):
        read_checkpoint(tmp_path)


def test_a_device_is_no_checkpoint():
    with pytest.raises(UserInputError, match="`/dev/null` is not a regular file; expected weights"):
        read_checkpoint("/dev/null")
