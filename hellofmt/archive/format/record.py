"""The record: how an archive was made, and what students reached with it, as closed types.

Section ``record`` is canonical JSON under a schema of its own, ``spec/hello-1-record.schema.json``,
which is generated from the types below. It is for people and for comparing results: it is never
executed, and nothing that it names is opened or fetched. It holds no time, host, user or path, so
the same run of the same programs on the same kind of device gives the same bytes. Whoever made the
file wrote it; only a signature says who that was.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hellofmt.archive.format.canonical import (
    END,
    canonical,
    decimal_string,
    parse_canonical,
)
from hellofmt.archive.format.fields import (
    Closed,
    Count,
    DecimalString,
    DecimalTriple,
    Digest,
    Interpolation,
    Positive,
    Storage,
)
from hellofmt.archive.format.layout import section_member
from hellofmt.archive.format.parse import known_only, problem_of
from hellofmt.errors import SpecError

_PERCENT: Final = r"^(100\.0|(0|[1-9][0-9]?)\.([0-9]?[1-9]|0))" + END

Percent = Annotated[str, Meta(pattern=_PERCENT)]
Line = Annotated[str, Meta(min_length=1, max_length=400)]
Word = Annotated[str, Meta(min_length=1, max_length=80)]


class Run(Closed, frozen=True):
    """A program that was run: what was typed, and what it ran on.

    ``command`` is absent where a library was called. Every path in it is reduced to its last part,
    and options that change nothing in the result (where it is written, what is kept beside it) are
    left out. ``device`` is ``cpu`` or the name of a GPU.
    """

    device: Line
    seeds: Annotated[dict[Word, Count], Meta(max_length=16)]
    versions: Annotated[dict[Word, Word], Meta(max_length=16)]
    command: Annotated[str, Meta(min_length=1, max_length=4096)] | UnsetType = UNSET


class SourceRecord(Closed, frozen=True):
    """Real images: how many, in how many classes, and the digest of their listing.

    ``per_class`` is the smallest and the largest number of images of a class.
    """

    classes: Positive
    digest: Digest
    images: Positive
    name: Line
    per_class: Annotated[list[Count], Meta(min_length=2, max_length=2)]


class Measured(Closed, frozen=True):
    """A top-1 accuracy in percent, and the images that it is of."""

    accuracy: Percent
    images: Positive
    of: Line


class InputRecord(Closed, frozen=True):
    """What a teacher does to views in [0, 1]: resized to ``size``, then normalised.

    Without ``size`` it takes them as they are. ``stated_by`` says whose rule it is.
    """

    interpolation: Interpolation
    mean: DecimalTriple
    stated_by: Line
    std: DecimalTriple
    size: Positive | UnsetType = UNSET


class Network(Closed, frozen=True):
    """One network of a teacher.

    ``digest`` is the tensors digest of its weights; ``origin`` says where they are from, in the
    words of whoever named it. ``chosen`` is the number of
    its outputs that stand for the data set's classes, where that is not all.
    ``step`` and ``accuracy`` are those of a checkpoint, ``trained`` is the run that made it and
    ``trained_on`` its images.
    """

    digest: Digest
    origin: Line
    accuracy: Percent | UnsetType = UNSET
    chosen: Positive | UnsetType = UNSET
    input: InputRecord | UnsetType = UNSET
    network: Line | UnsetType = UNSET
    step: Positive | UnsetType = UNSET
    trained: Run | UnsetType = UNSET
    trained_on: SourceRecord | UnsetType = UNSET


class TeacherRecord(Closed, frozen=True):
    """The teacher that was imitated: the mean of its networks' logits.

    ``networks`` is absent where the teacher was a function of somebody's program.
    """

    measured: Measured
    networks: Annotated[list[Network], Meta(min_length=1, max_length=16)] | UnsetType = UNSET


class FittedFunction(Closed, frozen=True):
    """A label function: what it was fitted to, how, and how closely it follows.

    ``name`` is that of the function in the manifest. ``agreement`` (percent of the same top class)
    and ``kl`` (mean KL(teacher, labels) in nats at T = 1) are of ``views`` new views, before the
    factors were stored as ``storage``.
    """

    agreement: Percent
    batch_size: Positive
    bfloat16: bool
    learning_rate: DecimalString
    loss: Word
    measured: Measured
    name: Word
    parameters: Positive
    rank: Positive
    run: Run
    source: SourceRecord
    steps: Positive
    storage: Storage
    targets: Annotated[list[Line], Meta(min_length=1, max_length=64)]
    teacher: TeacherRecord
    temperature: DecimalString
    views: Positive
    hard_weight: DecimalString | UnsetType = UNSET
    head_rank: Positive | UnsetType = UNSET
    kl: DecimalString | UnsetType = UNSET


class ChosenImages(Closed, frozen=True):
    """How the stored images came about.

    ``chosen_by`` says by what, out of ``candidates`` images per class; each is whole or the best of
    ``crops`` crops, and ``factor`` x ``factor`` of them make an image. ``refined`` is the loss
    before and after pixels were moved by ``refined_steps`` steps.
    """

    candidates: Positive
    chosen_by: Line
    codec: Word
    crops: Positive
    factor: Positive
    ipc: Positive
    quality: Positive | UnsetType = UNSET
    refined: Annotated[list[DecimalString], Meta(min_length=2, max_length=2)] | UnsetType = UNSET
    refined_by: Word | UnsetType = UNSET
    refined_steps: Positive | UnsetType = UNSET


class Result(Closed, frozen=True):
    """What a student reached: its last accuracy with each seed, under one recipe.

    ``labels`` is ``soft``, of the label function ``function``, or ``hard``, ``stored`` or
    ``teacher``; ``images`` is ``archive``, or ``random`` for as many real images per class drawn at
    random, the baseline. ``evaluated`` are the images that were measured on. ``ipc`` is given where
    only the first images of each class were used, ``processes`` where several shared the training,
    ``views_per_image`` where every epoch e showed view e mod that number, ``label_dtype`` where the
    label function computed in another precision than float32.
    """

    accuracy: Annotated[list[Percent], Meta(min_length=1, max_length=64)]
    batch_size: Positive
    bfloat16: bool
    device: Line
    evaluated: SourceRecord
    images: Word
    labels: Word
    learning_rate: DecimalString
    recipe: Word
    seeds: Annotated[list[Count], Meta(min_length=1, max_length=64)]
    steps: Positive
    student: Line
    versions: Annotated[dict[Word, Word], Meta(max_length=16)]
    ema: DecimalString | UnsetType = UNSET
    function: Word | UnsetType = UNSET
    ipc: Positive | UnsetType = UNSET
    label_dtype: Word | UnsetType = UNSET
    processes: Positive | UnsetType = UNSET
    views_per_image: Positive | UnsetType = UNSET


class Record(Closed, frozen=True):
    """Everything that is remembered; what nobody knew is absent."""

    functions: Annotated[list[FittedFunction], Meta(max_length=16)] | UnsetType = UNSET
    images: ChosenImages | UnsetType = UNSET
    results: Annotated[list[Result], Meta(max_length=64)] | UnsetType = UNSET


def percent(value: float) -> str:
    """Spell a percentage as the record does, rounded to two decimals.

    Example:
        >>> percent(71.3)
        '71.3'
    """
    return decimal_string(round(value, 2))


def as_line(text: str, limit: int = 400) -> str:
    """``text`` as a record can hold it: UTF-8, cut to ``limit`` characters, never empty."""
    sound = text.encode("utf-8", "replace").decode("utf-8")
    return (sound if len(sound) <= limit else sound[: limit - 3] + "...") or "unknown"


def record_bytes(record: Record) -> bytes:
    """Serialise a record as canonical JSON."""
    return canonical(msgspec.to_builtins(record))


def parse_record(data: bytes, *, newer: bool = False) -> Record:
    """Parse section ``record``, which must be the canonical form of a record.

    ``newer`` says that the file is of a higher minor version, whose further keys are ignored.

    Raises:
        SpecError: not canonical JSON (E_JSON), or outside the schema (E_SCHEMA).
    """
    member = section_member("record")
    document = parse_canonical(data, member=member)
    if newer:
        document = known_only(document, Record)
    try:
        record = msgspec.convert(document, Record)
    except msgspec.ValidationError as error:
        raise SpecError.make(
            "E_SCHEMA", "", member=member, problems=[problem_of(error, "record")]
        ) from None
    for number, result in enumerate([] if record.results is UNSET else record.results):
        if len(result.seeds) != len(result.accuracy) or len({*result.seeds}) != len(result.seeds):
            text = f"`results.{number}.seeds`: expected one for each accuracy, each once"
            raise SpecError.make("E_SCHEMA", text, member=member)
    return record
