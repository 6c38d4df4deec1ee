"""Teachers and networks by what a user types.

A *network* is a name that ``build_student`` knows (``resnet18``), ``timm:NAME``, or
``MODULE:FACTORY``: a function of the user's own that gets the number of classes. A *teacher* is a
network with weights:

* the folder that ``hello teach`` wrote: the weak teachers of its trajectory;
* one of its checkpoints, a ``.safetensors`` file beside ``teacher.json``;
* ``NETWORK=FILE.safetensors``;
* ``torchvision:NAME`` or ``timm:NAME``: the library's own trained weights, which it downloads;
* ``MODULE:FACTORY``: whatever it returns.

Code is run because the *user* names it on the command line. No file can name any: a folder of
``hello teach`` is refused where its JSON names a module. PyTorch pickles are not read.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
import torchvision
from torch import nn

from hellofmt.archive.manifest import decimal_string
from hellofmt.distillation.teacher import Teacher, TeacherPool, load_teacher
from hellofmt.distillation.trajectory import TRAJECTORY_FILE, Trajectory, read_trajectory
from hellofmt.errors import HelloIOError, UserInputError, printable
from hellofmt.student.networks import build_student, is_student

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.archive.manifest import Views

__all__ = ["build_network", "is_network", "load_named_teacher"]

_TIMM = "timm:"
_TORCHVISION = "torchvision:"


def _factory(text: str) -> Any:
    """The callable ``MODULE:FACTORY``; the current folder counts, after everything installed."""
    module_name, _, name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserInputError.make(
            "E_OPTION", f"network `{printable(text)}` cannot be imported: {printable(error)}"
        ) from error
    if not callable(found):
        raise UserInputError.make("E_OPTION", f"network `{printable(text)}` cannot be called")
    return found


def _raised(error: Exception) -> str:
    """``KeyError: 'x' (net.py, line 3)``: the innermost line, which is rarely ours."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}, line {frame.lineno}"
    return printable(f"{type(error).__name__}: {error} ({where})")


def _from_factory(text: str, classes: int) -> nn.Module:
    factory = _factory(text)
    try:
        made = factory(classes)
    except Exception as error:
        # Code of the user: what it raises is its own business, where it raised it is not.
        raise UserInputError.make(
            "E_OPTION", f"network `{printable(text)}` cannot be made: {_raised(error)}"
        ) from error
    if not isinstance(made, nn.Module):
        raise UserInputError.make(
            "E_OPTION",
            f"network `{printable(text)}`: expected a torch.nn.Module for {classes} classes,"
            f" got {type(made).__name__}",
        )
    return made


def _pretrained_timm(name: str) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=True)
    except RuntimeError as error:
        raise UserInputError.make(
            "E_OPTION", f"timm has no network `{printable(name)}`: {printable(error)}"
        ) from error


def build_network(name: str, classes: int, size: int, *, seed: int = 0) -> nn.Module:
    """A network with fresh weights, by any name of this module.

    Args:
        name: for ``build_student``, or ``MODULE:FACTORY``.
        classes: number of logits.
        size: side of the images in pixels.
        seed: of the weights; torch's global random state is left as it was.

    Returns:
        The network, float32, on the CPU.

    Raises:
        UserInputError: unknown, not importable, without anything to train, or not for images of
            this size (E_OPTION).
    """
    if ":" not in name or name.startswith(_TIMM):
        return build_student(name, classes, size, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _from_factory(name, classes)
        _try(network, name, classes, size)
    return network


def _try(network: nn.Module, name: str, classes: int, size: int) -> None:
    """Refuse a network of the user's that cannot be trained on such images."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserInputError.make("E_OPTION", f"network `{printable(name)}` has nothing to train")
    mode = network.training
    network.eval()
    try:
        with torch.no_grad():
            shape = tuple(network(torch.zeros(2, 3, size, size)).shape)
    except Exception as error:
        raise UserInputError.make(
            "E_OPTION",
            f"network `{printable(name)}` cannot run on images of {size} x {size} pixels:"
            f" {_raised(error)}",
        ) from error
    network.train(mode)
    if shape != (2, classes):
        raise UserInputError.make(
            "E_OPTION",
            f"network `{printable(name)}`: expected logits (2, {classes}) for 2 images of"
            f" {classes} classes, got {shape}",
        )


def _normalised_by(views: Views, mean: Sequence[float], std: Sequence[float]) -> Views:
    return msgspec.structs.replace(
        views,
        mean=[decimal_string(value) for value in mean],
        std=[decimal_string(value) for value in std],
    )


def _pretrained(text: str, views: Views) -> Teacher:
    """A library's network with the weights that it published, and their normalisation."""
    try:
        return _published(text, views)
    except OSError as error:
        # What the libraries raise names neither the network nor what was wanted.
        raise HelloIOError.make(
            "E_HTTP", f"weights of `{printable(text)}` cannot be downloaded: {printable(error)}"
        ) from error


def _published(text: str, views: Views) -> Teacher:
    if text.startswith(_TIMM):
        network = _pretrained_timm(text.removeprefix(_TIMM))
        config = cast("dict[str, Any]", getattr(network, "pretrained_cfg", {}))
        mean, std = config.get("mean"), config.get("std")
    else:
        name = text.removeprefix(_TORCHVISION)
        try:
            # Typed as an enumeration without members.
            weights = cast("Any", torchvision.models.get_model_weights(name)).DEFAULT
        except (ValueError, AttributeError) as error:
            raise UserInputError.make(
                "E_OPTION", f"torchvision has no trained `{printable(name)}`"
            ) from error
        network = torchvision.models.get_model(name, weights=weights)
        transform: Any = weights.transforms()
        mean, std = transform.mean, transform.std
    return Teacher(network, _normalised_by(views, mean, std) if mean and std else views)


def is_network(text: str) -> bool:
    """Whether ``text`` names a network without weights, one that a teacher can be trained as."""
    if ":" in text or "=" in text or "/" in text or Path(text).exists():
        return False
    return is_student(text)


def _from_trajectory(path: Path, classes: Sequence[str], fraction: float) -> nn.Module:
    is_folder = path.is_dir()
    trajectory = read_trajectory(path if is_folder else path.parent)
    if ":" in trajectory.network and not trajectory.network.startswith(_TIMM):
        raise UserInputError.make(
            "E_TEACHER",
            f"`{printable(path)}` was made by code of yours, which no file may name; pass"
            f" `{printable(trajectory.network)}=FILE` with one of its checkpoints",
        )
    _check_classes(path, trajectory, classes)
    if is_folder:
        return trajectory.pool(fraction, build_network)
    names = [checkpoint.file for checkpoint in trajectory.checkpoints]
    if path.name not in names:
        raise UserInputError.make(
            "E_TEACHER", f"`{printable(path)}` is not a checkpoint of the teacher beside it"
        )
    return trajectory.load(names.index(path.name), build_network)


def _check_classes(path: Path, trajectory: Trajectory, classes: Sequence[str]) -> None:
    """Names that are stored need not be guessed from accuracies."""
    if list(trajectory.classes) == list(classes):
        return
    if sorted(trajectory.classes) == sorted(classes):
        why = "the same ones in another order"
    else:
        why = f"{len(trajectory.classes)} of other names"
    raise UserInputError.make(
        "E_TEACHER",
        f"classes of `{printable(path)}`: expected the data set's {len(classes)}, got {why}",
    )


def load_named_teacher(
    text: str, classes: Sequence[str], views: Views, *, fraction: float = 1.0
) -> nn.Module:
    """A teacher by what a user types; see the module for the forms.

    Args:
        text: what was typed.
        classes: keys of the data set in label order.
        views: of the data set; mean and std are taken from the teacher's own where they are known.
        fraction: of its final accuracy that a trajectory's weak teachers should have.

    Returns:
        From views (N, 3, S, S) in [0, 1] to logits (N, C); frozen, on the CPU.

    Raises:
        UserInputError: the text cannot be understood (E_OPTION), or the teacher is of other classes
            or another network (E_TEACHER).
        HelloIOError: published weights cannot be downloaded (E_HTTP).
        OSError: a file cannot be read.
    """
    network, equals, file = text.partition("=")
    if equals:
        module = build_network(network, len(classes), views.size)
        return load_teacher(file, module, len(classes), views)
    path = Path(text)
    if path.is_dir() or (
        path.suffix == ".safetensors" and (path.parent / TRAJECTORY_FILE).exists()
    ):
        return _from_trajectory(path, classes, fraction)
    if path.suffix == ".safetensors":
        raise UserInputError.make(
            "E_OPTION",
            f"teacher `{printable(text)}`: the file does not say its network; expected"
            f" `NETWORK={printable(text)}`",
        )
    if path.suffix in {".pt", ".pth", ".ckpt", ".bin"}:
        raise UserInputError.make(
            "E_OPTION",
            f"teacher `{printable(text)}`: a PyTorch pickle can run code and is not read; expected"
            " a .safetensors file",
        )
    if text.startswith((_TIMM, _TORCHVISION)):
        return _pretrained(text, views)
    if ":" in text:
        made = _from_factory(text, len(classes))
        return made if isinstance(made, Teacher | TeacherPool) else Teacher(made, views)
    raise UserInputError.make(
        "E_OPTION",
        f"teacher `{printable(text)}`: expected a folder of `hello teach`,"
        " NETWORK=FILE.safetensors, timm:NAME, torchvision:NAME or MODULE:FACTORY",
    )
