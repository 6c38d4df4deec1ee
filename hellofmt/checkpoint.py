"""Read the weights of a network from a file, whoever wrote it.

safetensors and both formats of ``torch.save`` are told apart by content, since ``.bin``, ``.ckpt``
and ``.pth.tar`` say nothing. PyTorch's files are pickles: they are read with ``weights_only``,
which builds tensors, containers and ``argparse.Namespace`` (in every checkpoint of timm) and
nothing else, and only when the *user* names the file. A file that another file names is
safetensors or refused.
"""

from __future__ import annotations

import argparse
import re
import stat
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hellofmt.errors import UserInputError, foreign_text, printable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

#: Key in the header of our own safetensors files: how images reach the network, as JSON.
RULE_KEY: Final = "hellofmt.teacher"

_HEAD_BYTES: Final = 512
_DEPTH: Final = 4

# What is found in the place of weights, by its first bytes.
_OTHERS: Final = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the weights; run `git lfs pull`"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it first"),
    (b"BZh", "is compressed with bzip2; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it first"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them; expected PyTorch weights"),
    (b"GGUF", "is a GGUF file; expected PyTorch weights"),
    (b"\x93NUMPY", "is a NumPy array; expected a state dict"),
)
_REFUSED: Final = re.compile(r"(?:GLOBAL|Unsupported class|unsupported GLOBAL) ([\w.]+)")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one file.

    Attributes:
        states: every dictionary of tensors in the file, by the keys that lead to it joined by dots
            (``""``, ``"state_dict"``, ``"ema.module"``), in the order of the file; tensors have
            the file's dtypes and lie on the CPU.
        metadata: text of a safetensors header; empty for PyTorch's formats.
        arguments: what the program that trained it was called with, where it is kept under
            ``args``, as timm's does.
    """

    states: dict[str, dict[str, Tensor]]
    metadata: dict[str, str]
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


def read_checkpoint(
    path: str | os.PathLike[str], *, pickles: bool = True, code: str = "E_TEACHER"
) -> Checkpoint:
    """Read every dictionary of tensors in a file of safetensors or of ``torch.save``.

    ``pickles`` is False for a file that nobody named; ``code`` is that of the error where the file
    holds no weights, or code that reading could run.
    """
    where = Path(path)
    status = where.stat()
    size = status.st_size

    def refuse(fact: str) -> NoReturn:
        raise UserInputError.make(code, f"`{printable(where)}` {fact}")

    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        # A pipe would be waited for, and a device may never end.
        refuse("is not a regular file; expected weights")
    with where.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        refuse("is empty; expected weights")
    # A header of 64 bits' length, whose upper half no sound file uses, and its JSON.
    if head[4:9] == b"\0\0\0\0{":
        length = int.from_bytes(head[:8], "little")
        if length + 8 > size:
            refuse(f"is truncated: {size:,} bytes, of which a header of {length:,} is expected")
        return _read_safetensors(where, refuse)
    other = _other(head)
    if other is not None:
        refuse(other)
    if head.startswith(b"PK\x03\x04"):
        fact = _zip_fact(where)
        if fact is not None:
            refuse(fact)
    elif not head.startswith(b"\x80"):
        refuse("is neither safetensors nor a file of torch.save; expected weights")
    if not pickles:
        refuse("is a PyTorch pickle, which only the user can name; expected safetensors")
    document = _read_pickle(where, refuse)
    states = dict(_states(document))
    if not states:
        refuse("has no tensors by name; expected a state dict")
    arguments = cast("dict[str, Any]", document).get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    return Checkpoint(states, {}, arguments if isinstance(arguments, dict) else {})


def _other(head: bytes) -> str | None:
    """What the first bytes belong to, if to something that cannot be weights."""
    for magic, fact in _OTHERS:
        if head.startswith(magic):
            return fact
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it first"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not the weights; download the file itself"
    # A cut may go through a character.
    text = head.decode("utf-8", "ignore").strip()
    if text and all(c.isprintable() or c.isspace() for c in text):
        return f"is text, not weights: `{printable(text, 60)}`"
    return None


def _zip_fact(path: Path) -> str | None:
    """Why a zip file is not one of ``torch.save``; None if it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "is truncated: a zip file without its end"
    ends = {name.rpartition("/")[2] for name in names}
    if any("/code/" in name for name in names):
        return (
            "is a TorchScript program; expected its state dict: `from safetensors.torch import"
            " save_file; save_file(torch.jit.load(FILE).state_dict(), 'weights.safetensors')`"
        )
    if "data.pkl" in ends:
        return None
    if all(end.endswith(".npy") for end in ends):
        return "is an archive of NumPy arrays; expected a state dict"
    return "is a zip file without a state dict; unpack it first"


def _read_safetensors(path: Path, refuse: Callable[[str], NoReturn]) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = cast("dict[str, str]", file.metadata() or {})
    except (SafetensorError, KeyError, AttributeError, ValueError) as error:
        text = str(error)
        if "not fully covered" in text:
            refuse("is truncated: tensors are missing from its end")
        refuse(f"is not a sound safetensors file: {foreign_text(error)}")
    if not state:
        refuse("has no tensors; expected a state dict")
    return Checkpoint({"": state}, metadata)


def _read_pickle(path: Path, refuse: Callable[[str], NoReturn]) -> object:
    try:
        with (
            # By its name, torch would take it for safetensors.
            path.open("rb") as stream,
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            # What old files make torch say concerns whoever wrote them.
            warnings.simplefilter("ignore")
            return torch.load(  # noqa: TID251 - `weights_only`, of a file that the user names
                stream, map_location="cpu", weights_only=True
            )
    except Exception as error:
        # torch raises a dozen types here, with advice to turn its protection off.
        refused = _REFUSED.search(str(error))
        if refused is not None:
            refuse(
                f"holds `{printable(refused[1], 80)}` beside its tensors, and reading that could"
                " run code; where the model is at hand, save its weights alone: `from"
                " safetensors.torch import save_model; save_model(model, 'weights.safetensors')`"
            )
        if isinstance(error, EOFError | RuntimeError):
            refuse(f"is truncated or damaged: {foreign_text(error, 120)}")
        refuse("is not a file of torch.save, or damaged; expected a state dict")


def _states(value: object, where: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Dictionaries of tensors in nested ones, with where they lie; optimisers number theirs."""
    if not isinstance(value, dict) or depth > _DEPTH:
        return
    items = {k: v for k, v in cast("dict[object, object]", value).items() if isinstance(k, str)}
    tensors = {name: v.detach() for name, v in items.items() if isinstance(v, Tensor)}
    if tensors:
        yield where, tensors
    for name, inner in items.items():
        yield from _states(inner, f"{where}.{name}" if where else name, depth + 1)
