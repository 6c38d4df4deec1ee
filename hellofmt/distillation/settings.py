"""Every choice of a distillation, as values: what is adapted, what is written, whom to tell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hellofmt.archive import Texts
from hellofmt.errors import UserInputError, printable
from hellofmt.ledger import paper_head_rank
from hellofmt.projector import Projector
from hellofmt.projector.lowrank import Delta
from hellofmt.weights import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from hellofmt.archive.format.fields import Storage
    from hellofmt.archive.format.images import Codec
    from hellofmt.distillation.fidelity import Fidelity
    from hellofmt.distillation.fit import FitSettings
    from hellofmt.distillation.selection import SelectSettings
    from hellofmt.projector import LoadedBase
    from hellofmt.sources import Source


@dataclass(frozen=True)
class ProjectorSettings:
    """What is adapted, and where it starts; see ``Projector.build``.

    Attributes:
        targets: weights that get a delta: a preset, or rules.
        rank: rank of the deltas.
        start: start of the head. ``text`` rebuilds its rows from class names, plus a delta of
            ``head_rank`` if that is set; ``stored`` keeps and trains the whole matrix, or with
            ``head_rank`` two factors of it. None picks
            the smaller: text with a delta of the paper's rank where that holds fewer values than
            the matrix, else stored. A head picked this way is always trained, and starts from the
            text rows of a base that has them.
        head_rank: rank of the head's low-rank delta; None means no delta if ``start`` is set, else
            the paper's rank.
        prompts: sentences around a class name for a start from text; ``{}`` stands for the name.
        temperature: default temperature T of the labels.
        seed: seed of the initial factors.

    Example:
        >>> ProjectorSettings(targets="paper", rank=24).temperature
        4.0
    """

    targets: str | tuple[str, ...] = "all"
    rank: int = 8
    start: str | None = None
    head_rank: int | None = None
    prompts: tuple[str, ...] = ("a photo of a {}.",)
    temperature: float = 4.0
    seed: int = 0

    def build(self, base: LoadedBase, source: Source) -> Projector:
        """Build a projector for the classes of ``source``, not yet trained.

        Raises:
            UserInputError: a setting does not fit the base, or for a start from text there are no
                class names or a prompt has no ``{}`` (E_OPTION, E_DATA).
        """
        start, head_rank = self._head(base, len(source.classes))
        if start == "text":
            _check_names(source)
            _check_prompts(self.prompts)
        most = min(len(source.classes), base.embed_dim)
        if self.head_rank is not None and self.head_rank > most:
            raise UserInputError.make(
                "E_OPTION",
                f"head rank {self.head_rank} is larger than the head of {len(source.classes)}"
                f" classes and {base.embed_dim} features; expected at most {most}",
            )
        projector = Projector.build(
            base,
            source.classes,
            targets=self.targets,
            rank=self.rank,
            head_rank=head_rank,
            start=start,
            prompts=self.prompts,
            temperature=self.temperature,
            seed=self.seed,
        )
        self._check_rank(projector)
        return projector

    def notes(self, base: LoadedBase, source: Source) -> list[str]:
        """What to tell the user before ``build``: classes that a start from text cannot tell apart.

        ImageNet has two cranes and two maillots: different keys, equal rows of text.
        """
        if self._head(base, len(source.classes))[0] != "text":
            return []
        counts = Counter(line.names[0] for line in source.classes)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if not twice:
            return []
        return [f"classes that share a name start with equal rows of the head: {listed(twice)}"]

    def _head(self, base: LoadedBase, classes: int) -> tuple[str, int | None]:
        """The head's start, and the rank of its delta."""
        if self.start is not None:
            return self.start, self.head_rank
        if not base.has_text:
            return "stored", self.head_rank
        rank = self.head_rank or paper_head_rank(classes, base.embed_dim)
        return ("stored" if rank is None else "text"), rank

    def _check_rank(self, projector: Projector) -> None:
        """Refuse a rank that no adapted weight can have; smaller weights get what fits."""
        rules = (self.targets,) if isinstance(self.targets, str) else self.targets
        ranks = [delta.a.shape[0] for delta in projector.deltas if isinstance(delta, Delta)]
        if ranks and max(ranks) < self.rank and not any(":" in rule for rule in rules):
            raise UserInputError.make(
                "E_OPTION",
                f"rank {self.rank} is larger than every adapted weight; expected at most"
                f" {max(ranks)}",
            )


def _check_names(source: Source) -> None:
    """Refuse a start from the text of numbers, which would run and mean nothing."""
    names = [line.names[0] for line in source.classes]
    bare = [name for name in names if name.lstrip("n").isdigit()]
    if len(bare) == len(names):
        raise UserInputError.make(
            "E_DATA",
            f"class names are missing: all {len(names)} are numbers such as"
            f" `{printable(bare[0], 40)}`; a head that starts from text needs words (a class list,"
            " or start `stored`)",
        )


def _check_prompts(prompts: Sequence[str]) -> None:
    """Refuse a prompt without a place for the class name."""
    for prompt in prompts:
        if "{}" not in prompt:
            raise UserInputError.make(
                "E_OPTION",
                f"prompt `{printable(prompt, 80)}`: expected `{{}}` where the class name goes",
            )


@dataclass(frozen=True)
class DistillSettings:
    """Every choice that decides what ``distill`` writes.

    Attributes:
        select: how many images are chosen, and how; None writes the label function alone.
        projector: what is adapted, and where it starts.
        fit: how the projector is fitted; None means the default loss and ``seed``, for 50 epochs or
            4,000 steps, whichever is less.
        storage: number format of the deltas and of a stored head.
        codec: how the images are stored: ``png`` keeps every pixel, ``jpeg`` (baseline, 4:4:4) and
            ``webp`` take a fifth of the bytes.
        quality: of ``jpeg`` and ``webp``, 1 to 100 (which is lossless for ``webp``); None means 85
            and 90.
        budget: bytes that the whole archive may have; codec, quality and ``select.ipc``, which is
            to be 0, are then chosen to spend them best (``affordable``).
        texts: what the archive says of itself. Without them the name is the source's, with
            ``-ipcN`` if images are chosen, the license ``NOASSERTION``, the method ``hello``, and
            the card is made of the record.
        command: what was typed, for the record; empty for a call of the library.
        seed: seed of the validation part, and of a fit that is None.

    Example:
        >>> from hellofmt.distillation import FitSettings, SelectSettings
        >>> settings = DistillSettings(SelectSettings(ipc=10), fit=FitSettings(steps=1000))
        >>> settings.storage
        'float16'
    """

    select: SelectSettings | None
    projector: ProjectorSettings = field(default_factory=ProjectorSettings)
    fit: FitSettings | None = None
    storage: Storage = "float16"
    codec: Codec = "png"
    quality: int | None = None
    budget: int | None = None
    texts: Texts = field(default_factory=Texts)
    command: str = ""
    seed: int = 0

    def name_for(self, source: Source) -> str:
        """The data set's name in the archive."""
        if self.texts.name:
            return self.texts.name
        return source.name if self.select is None else f"{source.name}-ipc{self.select.ipc}"


@dataclass(frozen=True)
class FitHooks:
    """Functions that a distillation calls on its way; none of them changes the result.

    Attributes:
        before: called with the projector before the first step, unless the fit is already finished.
        on_step: called after each step with the number of steps done and the detached loss.
        on_fidelity: called with the number of steps done and the fidelity on the way.
        evaluations: how often fidelity is measured on the way.
        after: called by every process with the fitted projector, on the CPU, and the images it is
            measured on, before the archive is written.
        on_teacher: called by ``distill`` with the teacher's accuracy in percent, before the fit.

    Example:
        >>> losses = []
        >>> hooks = FitHooks(on_step=lambda step, loss: losses.append(float(loss)))
    """

    before: Callable[[Projector], None] | None = None
    on_step: Callable[[int, Tensor], None] | None = None
    on_fidelity: Callable[[int, Fidelity], None] | None = None
    evaluations: int = 0
    after: Callable[[Projector, Source], None] | None = None
    on_teacher: Callable[[float], None] | None = None
