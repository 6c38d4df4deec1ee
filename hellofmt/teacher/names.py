"""Load teachers by what a user types.

A teacher is a network with weights; a network is named as in ``networks``:

* the folder that ``hello teach`` wrote: the weak teachers of its trajectory;
* one of its checkpoints, a ``.safetensors`` file beside ``teacher.json``;
* ``NETWORK=FILE``: safetensors or a file of ``torch.save``, of any trainer;
* ``timm:NAME=pretrained``, ``torchvision:NAME=pretrained``: the library's own weights, the only
  form that downloads;
* ``MODULE:FACTORY``: whatever it returns; a ``Teacher`` states its own input rule;
* a folder of ``write_teacher``.

Text that is an existing path is taken as one; else the first ``=`` divides it. Code runs only
because the *user* names it on the command line: a folder of ``hello teach`` whose JSON names a
module is refused, and its checkpoints are safetensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch
from torch import nn

from hellofmt.checkpoint import read_checkpoint
from hellofmt.errors import UserInputError, printable
from hellofmt.runs.run_record import without_paths
from hellofmt.student.networks import (
    TIMM,
    TORCHVISION,
    build_student,
    family_of,
    is_student,
    similar_names,
)
from hellofmt.teacher.classes import columns_of
from hellofmt.teacher.files import own_rule, refuse_match
from hellofmt.teacher.libraries import factory_rule, library_network, pretrained_network
from hellofmt.teacher.network import Origin, Teacher, TeacherPool
from hellofmt.teacher.networks import build_network, from_factory, is_factory, raised
from hellofmt.teacher.rule import InputRule, RuleChange
from hellofmt.teacher.shipped import read_teacher
from hellofmt.teacher.trajectory import TRAJECTORY_FILE, read_trajectory
from hellofmt.weights import Match, find_weights, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hellofmt.checkpoint import Checkpoint

_PRETRAINED: Final = "pretrained"
_UNCHANGED: Final = RuleChange()
# Of logits that should be equal, relative to the largest; convolutions differ by the batch.
_SAME: Final = 1e-3
_INSIDE: Final = {"mean", "std", "pixel_mean", "pixel_std"}


def _names(types: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(t).removeprefix("torch.") for t in types))


def _check_known(network: str) -> None:
    """Refuse a name that no library has, with one that is like it."""
    if not is_student(network):
        build_student(network, 2, 224)


@dataclass
class _Reader:
    """Reads one teacher; holds the arguments of ``load_named_teacher``."""

    text: str
    keys: list[str]
    side: int
    change: RuleChange
    named: Sequence[str] | None
    say: Callable[[str], None]

    def refuse(
        self, fact: str, code: str = "E_TEACHER", advice: str = "", cause: Exception | None = None
    ) -> NoReturn:
        text = f"teacher `{printable(self.text)}`{fact}"
        raise UserInputError.make(code, text, advice=advice) from cause

    def note(self, text: str) -> None:
        self.say(f"teacher {printable(self.text)}: {text}")

    def finished(self, network: nn.Module, rule: InputRule, name: str = "") -> Teacher:
        """Try a network on one view, and choose the outputs that the data set's classes need.

        ``name`` is that of the network, where the user gave one.
        """
        others = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}
        if others:
            self.note(f"{_names(others)} computed with in float32")
            network = network.float()
        told = self.change.size or self.text.endswith("=pretrained") or "checkpoint" in rule.source
        if not told and rule.size is not None and rule.size >= 2 * self.side:
            self.note(
                f"views of {self.side} px are enlarged to {rule.size}; if it was trained on images"
                f" of {self.side} px, pass --teacher-size {self.side}"
            )
        self.note(rule.text())
        buffers = {name.rpartition(".")[2]: b for name, b in network.named_buffers()}
        inside = [n for n in _INSIDE & set(buffers) if buffers[n].numel() == 3]
        if inside and rule.mean != (0.0, 0.0, 0.0):
            self.note(
                f"the network has buffers {listed(inside)}; if it normalises inside, pass"
                " --teacher-mean 0 0 0 --teacher-std 1 1 1"
            )
        outputs = self._outputs(network, rule)
        columns, note = columns_of(self.text, outputs, self.keys, self.named)
        if note:
            self.say(note)
        return Teacher(network, rule, columns, Origin(without_paths(self.text), name))

    def _outputs(self, network: nn.Module, rule: InputRule) -> int:
        """Count the logits of a network that has shown that it gives them.

        Two views together and the first of them alone must give the same: a label is a function of
        its view.
        """
        side = rule.size or self.side
        views = torch.rand(2, 3, self.side, self.side, generator=torch.Generator().manual_seed(0))
        try:
            teacher = Teacher(network, rule)
            with torch.inference_mode():
                alone: Any = teacher(views[:1])
                together: Any = teacher(views)
        except Exception as error:
            self.refuse(f" cannot run on {side} x {side} pixels: {raised(error)}", cause=error)
        if not isinstance(alone, torch.Tensor) or alone.ndim != 2:
            got = tuple(alone.shape) if isinstance(alone, torch.Tensor) else type(alone).__name__
            self.refuse(f": expected logits (1, classes) of a view, got {got}")
        if not bool(torch.isfinite(alone).all()):
            self.refuse(": logits of a view of noise are not finite; expected numbers")
        scale = 1.0 + float(alone.abs().max())
        if float((together[:1] - alone).abs().max()) > _SAME * scale:
            self.refuse(
                ": logits of a view change with the views beside it, or from call to call; expected"
                " a network without dropout or statistics of a batch in eval mode"
            )
        sums = together.double().sum(1)
        if bool((together >= 0).all()) and bool(((sums - 1).abs() < _SAME).all()):
            self.refuse(
                ": outputs are probabilities, whose sum is 1; expected logits, as they are before"
                " the softmax"
            )
        return int(alone.shape[1])

    def _build(self, network: str, classes: int, checkpoint: Checkpoint, file: str) -> Any:
        """Network and rule for a file."""
        own = own_rule(checkpoint, file)
        if own is not None:
            self.check_unchanged()
            return build_network(network, classes, own.size or self.side), own
        if is_factory(network):
            made = from_factory(network, classes)
            return made, self.change.of(factory_rule(made))
        return library_network(network, classes, self.side, self.change, checkpoint.arguments)

    def check_classes(self, recorded: Sequence[str]) -> None:
        """Refuse a list that differs from the classes that the teacher records."""
        if self.named is not None and list(self.named) != list(recorded):
            fact = " records its own classes, which differ from the list; leave out"
            self.refuse(f"{fact} --teacher-classes", "E_OPTION")

    def check_unchanged(self) -> None:
        """Refuse to change the input rule that a teacher records."""
        if self.change:
            fact = " records its own input rule; leave out"
            self.refuse(f"{fact} --teacher-mean, --teacher-std and --teacher-size", "E_OPTION")

    def from_file(self, network: str, file: str) -> Teacher:
        """Read ``NETWORK=FILE``."""
        if not is_factory(network):
            _check_known(network)
        if Path(file).is_dir():
            fact = f": `{printable(file)}` is a folder; expected a file, or a folder of"
            self.refuse(f"{fact} `hello teach` without a network before it", "E_OPTION")
        checkpoint = read_checkpoint(file)
        beside = Path(file).parent / TRAJECTORY_FILE
        if own_rule(checkpoint, file) is not None and beside.exists():
            recorded = read_trajectory(beside.parent).classes
            self.check_classes(recorded)
            self.named = recorded
        classes = len(self.keys if self.named is None else self.named)
        module, rule = self._build(network, classes, checkpoint, file)
        match = find_weights(module, checkpoint, file)
        count = match.head_classes(classes)
        if count is not None:
            # Refused here where nothing says which outputs are meant.
            columns_of(self.text, count, self.keys, self.named)
            classes = count
            module, rule = self._build(network, classes, checkpoint, file)
            match = find_weights(module, checkpoint, file)
        if not match.fits:
            refuse_match(match, file, network, classes, self._advice(match, network, checkpoint))
        self._tell(match, checkpoint, file)
        module.load_state_dict(match.state, strict=False)
        return self.finished(module, rule, network)

    def _advice(self, match: Match, network: str, checkpoint: Checkpoint) -> str:
        """What would help with a file that does not fit."""
        for other in family_of(network):
            with torch.device("meta"):
                # Whoever loads it then finds the size of its head.
                try_on = build_student(other, 2, 224)
            near = find_weights(try_on, checkpoint, "")
            if near.fits or near.head_classes(2) is not None:
                return f"it holds a `{other}`: `{other}=FILE`"
        if match.shapes and not match.missing and any("pos_embed" in n for n, _, _ in match.shapes):
            return "{teacher_size:PIXELS} builds it for the side that it was trained for"
        return ""

    def _tell(self, match: Match, checkpoint: Checkpoint, file: str) -> None:
        """Say what is taken, left out and converted."""
        notes: list[str] = []
        if match.where and (len(checkpoint.states) > 1 or match.left_out):
            rather = f", not of {listed(match.others)}" if match.others else ""
            notes.append(f"weights of `{printable(match.where, 80)}`{rather}")
        if match.left_out:
            notes.append(f"{listed(match.left_out)} left out")
        floats = {t.dtype for t in match.state.values() if t.is_floating_point()}
        if floats - {torch.float32}:
            notes.append(f"{_names(floats - {torch.float32})} computed with in float32")
        if notes:
            self.say(f"teacher {printable(file)}: {'; '.join(notes)}")

    def from_folder(self, path: Path, fraction: float) -> nn.Module:
        """Read a folder of ``hello teach`` or ``write_teacher``, or a checkpoint of the first."""
        self.check_unchanged()
        is_folder = path.is_dir()
        if (path / "labels.json").exists():
            teacher = read_teacher(path, classes=self.keys)
            teacher.origin = Origin(without_paths(self.text))
            self.check_classes(self.keys)
            self.note(teacher.rule.text())
            return teacher
        where = printable(path)
        if is_folder and not (path / TRAJECTORY_FILE).exists():
            fact = f" has no {TRAJECTORY_FILE}; expected a folder of `hello teach` that has"
            self.refuse(f"{fact} finished")
        trajectory = read_trajectory(path if is_folder else path.parent)
        if is_factory(trajectory.network):
            code = printable(trajectory.network)
            raise UserInputError.make(
                "E_TEACHER",
                f"`{where}` was trained with the custom network `{code}`; name the code yourself:"
                f" --teacher {code}=CHECKPOINT.safetensors",
            )
        self.check_classes(trajectory.classes)
        names = [checkpoint.file for checkpoint in trajectory.checkpoints]
        if not is_folder and path.name not in names:
            self.refuse(" is not a checkpoint of the teacher beside it")
        numbers = trajectory.weak(fraction) if is_folder else [names.index(path.name)]
        columns, note = columns_of(
            self.text, len(trajectory.classes), self.keys, trajectory.classes
        )
        loaded = [trajectory.load(number, build_network) for number in numbers]
        self.note(loaded[0].rule.text())
        if note:
            self.say(note)
        teachers = [Teacher(one.network, one.rule, columns, one.origin) for one in loaded]
        return TeacherPool(teachers) if is_folder else teachers[0]

    def from_code(self) -> nn.Module:
        """Take what ``MODULE:FACTORY`` returns."""
        made = from_factory(self.text, len(self.keys if self.named is None else self.named))
        if not isinstance(made, Teacher | TeacherPool):
            return self.finished(made, self.change.of(factory_rule(made)))
        self.check_unchanged()
        if isinstance(made, Teacher) and made.columns is None:
            return self.finished(made.network, made.rule)
        self.check_classes(self.keys)
        return made


def load_named_teacher(
    text: str,
    classes: Sequence[str],
    size: int,
    *,
    fraction: float = 1.0,
    change: RuleChange = _UNCHANGED,
    teacher_classes: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """Load a teacher by what a user types, in a form of ``hellofmt.teacher.names``.

    Args:
        text: what was typed.
        classes: keys of the data set in label order.
        size: side of the data set's views in pixels.
        fraction: of its final accuracy that a trajectory's weak teachers should have.
        change: what the user says of the teacher's input, instead of what its library does.
        teacher_classes: keys of the teacher's classes in the order of its outputs; None takes a
            trajectory's own, WordNet ids for a teacher of ImageNet, or the data set's.
        say: called with a line about the input rule, and about whatever is chosen, converted or
            left out.

    Returns:
        From views (N, 3, S, S) in [0, 1] to logits (N, C); frozen, on the CPU.

    Raises:
        UserInputError: the text cannot be understood (E_OPTION), or the teacher is of other classes
            or another network, or its file is not weights (E_TEACHER).
        HelloIOError: published weights cannot be downloaded (E_HTTP).
        OSError: a file cannot be read.

    Example:
        >>> import torch
        >>> from hellofmt.teacher import build_network
        >>> torch.save(build_network("cnn", classes=3, size=16).state_dict(), "best.pth")
        >>> teacher = load_named_teacher("cnn=best.pth", ["rows", "columns", "grey"], 16)
        >>> teacher(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5, 3])
    """
    reader = _Reader(text, list(classes), size, change, teacher_classes, say)
    path, shown = Path(text), printable(text)
    # An empty text, of a variable that is not set, would be the current folder.
    if text and path.exists():
        if path.is_dir() or (path.parent / TRAJECTORY_FILE).exists():
            return reader.from_folder(path, fraction)
        fact = f": the file does not say its network; expected `NETWORK={shown}`, such as"
        reader.refuse(f"{fact} `resnet18={shown}`", "E_OPTION")
    network, equals, file = text.partition("=")
    if file.startswith("~"):
        # A shell expands it only at the start of a word.
        file = str(Path(file).expanduser())
    is_library = network.startswith((TIMM, TORCHVISION))
    if equals and file == _PRETRAINED and is_library:
        return reader.finished(*pretrained_network(network, change), network)
    if equals and re.fullmatch(r"\w*", file) and not Path(file).exists():
        # A word for published weights, such as `DEFAULT`, rather than the name of a file.
        prefixes = ("",) if is_library else (TORCHVISION, TIMM)
        known = [prefix + network for prefix in prefixes if is_student(prefix + network)]
        if known:
            fact = f": no such file `{printable(file)}`; expected weights, or"
            download = f"`{printable(known[0])}={_PRETRAINED}`, which downloads the library's"
            reader.refuse(f"{fact} {download}", "E_OPTION")
    if equals and (is_library or "/" not in network):
        return reader.from_file(network, file)
    if is_library or is_student(text):
        _check_known(text)
        download = f" `{shown}={_PRETRAINED}` downloads the library's," if is_library else ""
        fact = f" has no weights: `{shown}=FILE` reads yours,{download}"
        reader.refuse(f"{fact} `hello teach --arch {shown}` trains it", "E_OPTION")
    if not is_factory(text):
        reader.refuse(
            ": no such file or folder; expected a folder of `hello teach`, NETWORK=FILE,"
            " timm:NAME=FILE, torchvision:NAME=FILE or MODULE:FACTORY",
            "E_OPTION",
            "" if "/" in text else similar_names(text),
        )
    return reader.from_code()
