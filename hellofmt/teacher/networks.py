"""Build networks by what a user types: a name, or code of the user's own.

``build_student`` knows names such as ``resnet18``, ``timm:NAME`` and ``torchvision:NAME``.
``MODULE:FACTORY`` is a function of the user's that gets the number of classes.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import nn

from hellofmt.errors import UserInputError, foreign_text, printable
from hellofmt.student.networks import TIMM, TORCHVISION, build_student, is_student

_BY_POSITION: Final = {
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
}


def is_factory(name: str) -> bool:
    """Tell whether ``name`` is ``MODULE:FACTORY``, code of the user's."""
    return ":" in name and not name.startswith((TIMM, TORCHVISION))


def raised(error: Exception | SystemExit) -> str:
    """Say ``KeyError: 'x' (net.py, line 3)``: the innermost line, which is rarely ours."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}, line {frame.lineno}"
    return f"{type(error).__name__}: {foreign_text(error)} ({printable(where)})"


def _refuse(name: str, fact: str, cause: BaseException | None = None) -> NoReturn:
    raise UserInputError.make("E_OPTION", f"network `{printable(name)}`{fact}") from cause


def _call(factory: Any, classes: int) -> Any:
    """Call a function with the number of classes where its signature has room for it."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:
        return factory(classes)
    kinds = {parameter.kind for parameter in parameters.values()}
    first = next(iter(parameters.values()), None)
    # `pretrained=False`, `weights=None`: a number there would be taken for true.
    is_number = (
        first is not None
        and first.kind in _BY_POSITION
        and (first.default is inspect.Parameter.empty or type(first.default) is int)
    )
    if "num_classes" in parameters or (inspect.Parameter.VAR_KEYWORD in kinds and not is_number):
        return factory(num_classes=classes)
    return factory(classes) if is_number else factory()


def from_factory(text: str, classes: int) -> nn.Module:
    """Call ``MODULE:FACTORY``, which may lie in the current folder, for so many classes.

    The number is passed as ``num_classes`` where the function has such an argument, or takes any by
    keyword and none, or a flag such as ``pretrained``, by position; else as the first one; not at
    all to a function without arguments.
    """
    module_name, _, name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        # Everything installed comes first.
        sys.path.append(here)
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:
        # The module is the user's: a script that reads its own command line exits ours.
        _refuse(text, f" cannot be imported: {raised(error)}", error)
    if not callable(factory):
        _refuse(text, " cannot be called")
    try:
        made = _call(factory, classes)
    except (Exception, SystemExit) as error:
        _refuse(text, f" cannot be made: {raised(error)}", error)
    if not isinstance(made, nn.Module):
        got = type(made).__name__
        _refuse(text, f": expected a torch.nn.Module for {classes} classes, got {got}")
    return made


def build_network(name: str, classes: int, size: int, *, seed: int = 0) -> nn.Module:
    """Build a network with fresh weights, by any name of this module.

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

    Example:
        >>> import torch
        >>> build_network("cnn", classes=3, size=16)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3])
    """
    if not is_factory(name):
        return build_student(name, classes, size, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = from_factory(name, classes)
        _try(network, name, classes, size)
    return network


def _try(network: nn.Module, name: str, classes: int, size: int) -> None:
    """Refuse a network of the user's that cannot be trained on such images."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        _refuse(name, " has nothing to train")
    mode = network.training
    network.eval()
    try:
        with torch.no_grad():
            shape = tuple(network(torch.zeros(2, 3, size, size)).shape)
    except Exception as error:
        _refuse(name, f" cannot run on images of {size} x {size} pixels: {raised(error)}", error)
    network.train(mode)
    if shape != (2, classes):
        fact = f": expected logits (2, {classes}) for 2 images of {classes} classes, got {shape}"
        _refuse(name, fact)


def is_network(text: str) -> bool:
    """Tell whether ``text`` names a network without weights, which can be trained as a teacher."""
    if ":" in text or "=" in text or "/" in text or Path(text).exists():
        return False
    return is_student(text)
