"""What ``teach``, ``fit`` and ``distill`` share: data, views, teacher, base, and what they say.

The three differ in what they write and in nothing they read, so an option means the same in each.
Everything they say while working goes to stderr; stdout holds the result alone. Under ``torchrun``
only rank 0 speaks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from hellofmt.archive import (
    Arch,
    Preprocess,
    VisionArch,
    check_target,
    decimal_string,
    default_views,
    read_class_lines,
)
from hellofmt.distillation import (
    DistillSettings,
    FitHooks,
    FitSettings,
    ProjectorSettings,
    RefineSettings,
    SelectSettings,
    check_settings,
    default_steps,
    distill,
    fidelity_table,
    predicted_seconds,
    split_validation,
)
from hellofmt.errors import HelloError, HelloIOError, UserInputError, shown_path
from hellofmt.projector import load_base, seeded_base
from hellofmt.runs import Stages, digest_of, joined, network_gflop
from hellofmt.sources import read_source
from hellofmt.student import small_image_advice
from hellofmt.teacher import (
    RuleChange,
    TeacherPool,
    build_network,
    is_network,
    load_named_teacher,
    maturity,
    train_trajectory,
)
from hellofmt_cli.output import (
    Choice,
    count,
    device_option,
    echo_json,
    echo_page,
    is_speaking,
    progress,
    say,
    size,
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from hellofmt.archive import Storage, Views
    from hellofmt.distillation import Fidelity, Precision
    from hellofmt.projector import LoadedBase, Projector
    from hellofmt.runs import Meter, StageCost
    from hellofmt.sources import ArrayImages

__all__ = [
    "Data",
    "advise",
    "arithmetic",
    "bar",
    "cost_documents",
    "cost_lines",
    "data_options",
    "fit_options",
    "load_teacher_of",
    "make_archive",
    "measured_kind",
    "read_data",
    "steps_of",
    "teacher_options",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _all(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


data_options = _all(
    click.argument("data", nargs=-1, required=True),
    click.option(
        "--size",
        "view_size",
        type=click.IntRange(4, 1024),
        help="Side of a view in pixels.  [default: that of the images]",
    ),
    click.option(
        "--classes",
        metavar="FILE",
        help="Class list in label order: `key TAB name` a line, or a published list.",
    ),
    click.option("--name", help="Of the data set.  [default: name of DATA]"),
    click.option(
        "--view-crop",
        nargs=2,
        type=click.FloatRange(0, 1, min_open=True),
        help="Area of crops.  [default: 0.08 1]",
    ),
    click.option("--view-flip", type=click.FloatRange(0, 1), help="[default: 0.5]"),
    click.option("--view-mix", type=Choice(["none", "cutmix", "mixup"])),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    device_option("Where networks run."),
    click.option(
        "--bfloat16",
        is_flag=True,
        help="Train in bfloat16 autocast: faster on GPUs and on CPUs with AMX, slower elsewhere.",
    ),
)
"""DATA and how it is seen, read by ``read_data``; seed and device."""

teacher_options = _all(
    click.option(
        "--teacher-mean",
        nargs=3,
        type=float,
        help="Mean of each channel that the teacher's network expects, in [0, 1]; 0 0 0 with"
        " --teacher-std 1 1 1 for a network that normalises inside.  [default: its library's, else"
        " ImageNet's]",
    ),
    click.option(
        "--teacher-std",
        nargs=3,
        type=click.FloatRange(0, min_open=True),
        help="Standard deviation of each channel that the teacher's network expects.",
    ),
    click.option(
        "--teacher-size",
        type=click.IntRange(4, 1024),
        help="Side in pixels that views are resized to for the teacher.  [default: its library's,"
        " else that of the views]",
    ),
    click.option(
        "--teacher-classes",
        metavar="FILE",
        help="Class list in the order of the teacher's outputs, whose keys pick those of DATA."
        "  [default: WordNet ids for a teacher of ImageNet, else the classes of DATA]",
    ),
)
"""How a teacher sees images and what its outputs mean; read by ``load_teacher_of``."""

fit_options = _all(
    click.option(
        "--teacher",
        "teachers",
        multiple=True,
        required=True,
        metavar="TEACHER",
        help="Teacher to imitate: a folder of `hello teach`; NETWORK=FILE, where FILE holds weights"
        " as safetensors or as torch.save writes them, and NETWORK is a name of torchvision or"
        " timm, torchvision:NAME, timm:NAME or MODULE:FACTORY; timm:NAME=pretrained or"
        " torchvision:NAME=pretrained, which downloads; MODULE:FACTORY alone, a function of yours"
        " that returns it. A bare NETWORK is trained first. Several teachers give their mean.",
    ),
    teacher_options,
    click.option(
        "--teacher-epochs",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        help="Passes over DATA of a teacher that is trained first.",
    ),
    click.option(
        "--maturity",
        type=click.FloatRange(0, 1, min_open=True),
        help="Fraction of its final accuracy at which a teacher of `hello teach` is taken."
        "  [default: by --ipc, else 1]",
    ),
    click.option(
        "--base",
        required=True,
        metavar="BASE",
        help="open_clip:NAME:PRETRAINED, local-dir:PATH, hf-hub:ORG/NAME, or seeded[:SEED].",
    ),
    click.option("--rank", type=click.IntRange(1), default=8, show_default=True),
    click.option("--head-rank", type=click.IntRange(1), help="Of a head from class names."),
    click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="RULE",
        help="`paper`, `transformer`, `all`, or PATTERN[:RANK[:SCALE]].  [default: all]",
    ),
    click.option(
        "--start",
        type=Choice(["text", "stored"]),
        help="Of the head: class names, or a whole matrix.  [default: whichever is smaller]",
    ),
    click.option("--prompt", "prompts", multiple=True, help="`{}` stands for the class name."),
    click.option(
        "--temperature", type=click.FloatRange(0, min_open=True), default=4.0, show_default=True
    ),
    click.option(
        "--loss",
        type=Choice(["kl", "mse_ce"]),
        default="kl",
        show_default=True,
        help="KL at T = 2, or the paper's MSE of logits + 0.1 cross-entropy.",
    ),
    click.option("--steps", type=click.IntRange(1), help="Of the fit."),
    click.option(
        "--epochs", type=click.IntRange(1), help="Passes instead.  [default: 50, <= 4,000 steps]"
    ),
    click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True),
    click.option("--lr", type=click.FloatRange(0, min_open=True), default=3e-3, show_default=True),
    click.option(
        "--precision",
        type=Choice(["fp32", "fp16", "bf16", "int8", "int4"]),
        default="fp16",
        show_default=True,
        help="How the label function is stored.",
    ),
    click.option(
        "--precision-table/--no-precision-table",
        "table",
        default=True,
        show_default=True,
        help="Bytes against fidelity of every precision, on 512 new views.",
    ),
    click.option("--license", "license_name", default="NOASSERTION", show_default=True),
    click.option("--work", metavar="DIR", help="Keep finished stages here, also when all is done."),
    click.option("--force", is_flag=True, help="Replace an existing archive."),
)
"""Teacher, base and fit; read by ``make_archive``."""

STORAGES: Final[dict[str, Storage]] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "int4": "int4",
}
"""Words of ``--precision``, and the manifest's."""

_EVALUATIONS: Final = 10
_STEPS_PER_EVALUATION: Final = 20
_SEEDED: Final = "seeded"
_HELD_OUT: Final = "held-out images"


@dataclass(frozen=True)
class Data:
    """DATA as a command works on it.

    Attributes:
        images: all of it.
        views: how students will see it.
    """

    images: ArrayImages
    views: Views


def read_data(data: Sequence[str], options: dict[str, Any]) -> Data:
    """Read DATA, and say what was changed on the way.

    Args:
        data: paths, or one name of a torchvision data set.
        options: of ``data_options``.

    Returns:
        Images and views.

    Raises:
        UserInputError: the data or an option cannot be used.
        OSError: something cannot be read.
    """
    lines = None if options["classes"] is None else read_class_lines(options["classes"], say=say)
    images = read_source(list(data), options["view_size"], classes=lines)
    for note in images.notes:
        warn(note)
    height, width = images.pixels.shape[1:3]
    if height != width:
        raise UserInputError.make(
            "E_OPTION",
            f"images are {width} x {height} pixels; pass `--size`, the side of a view",
        )
    number = count(len(images.classes), "class", "classes")
    say(f"data: {count(len(images), 'image')} of {number}, {height} x {width} pixels")
    crop, flip, mix = options["view_crop"], options["view_flip"], options["view_mix"]
    return Data(images, _views(height, crop, flip, mix))


def _views(
    side: int, crop: tuple[float, float] | None, flip: float | None, mix: str | None
) -> Views:
    """Random crops, flips, and CutMix in half of the views, unless the user says otherwise."""
    changes: dict[str, Any] = {"mix": mix or "cutmix", "mix_probability": "0.5"}
    if mix == "none":
        changes["mix_probability"] = "0.0"
    else:
        changes["mix_alpha"] = "1.0"
    if crop is not None:
        if crop[0] > crop[1]:
            raise click.BadParameter("--view-crop: expected the smaller area first")
        changes["crop_scale"] = [decimal_string(bound) for bound in crop]
    if flip is not None:
        changes["flip"] = decimal_string(flip)
    return msgspec.structs.replace(default_views(side), **changes)


def advise(network: str, side: int) -> None:
    """Say it where another name suits small images better than the network that is trained."""
    advice = small_image_advice(network, side)
    if advice is not None:
        say(advice)


def bar(label: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """A progress bar of steps, from rank 0."""
    return progress(label, "step") if is_speaking() else nullcontext()


def measured_kind(images: ArrayImages, held_out: ArrayImages) -> str:
    """What ``split_validation`` measures on: with few images it gives the same ones twice."""
    return "the training images" if held_out is images else _HELD_OUT


def arithmetic(options: dict[str, Any]) -> str:
    """``bfloat16`` or ``float32``: what networks are trained in, by ``data_options``."""
    return "bfloat16" if options["bfloat16"] else "float32"


def steps_of(epochs: int, images: int, batch_size: int) -> int:
    """Gradient steps of so many passes."""
    return max(1, -(-epochs * images // batch_size))


def _duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _read_base(text: str, views: Views) -> LoadedBase:
    """The base that the user names; ``seeded`` is a small transformer with generated weights."""
    kind, _, seed = text.partition(":")
    if kind != _SEEDED:
        return load_base(text)
    if not (seed == "" or (seed.isascii() and seed.isdigit() and len(seed) < 19)):
        raise UserInputError.make(
            "E_OPTION", f"base `{shown_path(text)}`: expected `seeded` or `seeded:NUMBER`"
        )
    side = views.size
    # About sixteen patches, as the demo has: cheap, and enough for images this small.
    patch = next(p for p in range(max(2, side // 4), side + 1) if side % p == 0)
    arch = Arch(
        embed_dim=128,
        quick_gelu=False,
        vision=VisionArch(
            image_size=side, layers=2, width=128, patch_size=patch, head_width=32, mlp_ratio="2.0"
        ),
    )
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=views.mean,
        resize_mode="squash",
        size=side,
        std=views.std,
    )
    return seeded_base(arch, preprocess, seed=int(seed or 0), name=f"seeded-vit-{side}")


def _change(options: dict[str, Any]) -> RuleChange:
    """What the user says of the teachers' input."""
    mean, std = options["teacher_mean"] or None, options["teacher_std"] or None
    return RuleChange(mean, std, options["teacher_size"])


def load_teacher_of(
    text: str, keys: Sequence[str], side: int, options: dict[str, Any], fraction: float = 1.0
) -> torch.nn.Module:
    """The teacher that the user names, with what it takes said on stderr.

    Args:
        text: value of ``--teacher``.
        keys: of the data set's classes in label order.
        side: of the views in pixels.
        options: of ``teacher_options``.
        fraction: of its final accuracy that a trajectory's weak teachers should have.

    Raises:
        HelloError: as ``load_named_teacher``, or the class list cannot be used.
        OSError: a file cannot be read.
    """
    file = options["teacher_classes"]
    named = None if file is None else [line.key for line in read_class_lines(file, say=say)]
    return load_named_teacher(
        text,
        keys,
        side,
        fraction=fraction,
        change=_change(options),
        teacher_classes=named,
        say=say,
    )


def _read_teacher(
    texts: Sequence[str],
    data: Data,
    work: Path,
    options: dict[str, Any],
    ipc: int | None,
    bfloat16: bool,
    meter: Meter,
) -> torch.nn.Module:
    """The mean of the teachers that the user names; a bare network name is trained first."""
    images, views = data.images, data.views
    keys = [line.key for line in images.classes]
    fraction = options["maturity"]
    if fraction is None:
        fraction = 1.0 if ipc is None else maturity(ipc, len(keys))
    # What can be refused is refused before anything is trained.
    trained = [text for text in texts if is_network(text)]
    if trained and _change(options):
        raise UserInputError.make(
            "E_OPTION",
            f"--teacher-mean, --teacher-std, --teacher-size: teacher `{trained[0]}` is trained here"
            " on the views as they are; expected none of them",
        )
    loaded = {
        text: load_teacher_of(text, keys, views.size, options, fraction)
        for text in texts
        if text not in trained
    }
    teachers: list[torch.nn.Module] = []
    for text in texts:
        if text in trained:
            advise(text, views.size)
            train, held_out = split_validation(images, seed=options["seed"])
            kind = measured_kind(images, held_out)
            batch_size = min(options["batch_size"], len(train))
            facts = [
                digest_of(images),
                views,
                text,
                options["teacher_epochs"],
                batch_size,
                bfloat16,
            ]
            folder = work / f"teacher-{digest_of([*facts, options['seed']])[:20]}"
            steps = steps_of(options["teacher_epochs"], len(train), batch_size)
            with meter.stage("teacher"), bar(f"teacher {text}") as on_step:
                trajectory = train_trajectory(
                    train,
                    views,
                    folder,
                    network=text,
                    steps=steps,
                    held_out=held_out,
                    batch_size=batch_size,
                    seed=options["seed"],
                    device=options["device"],
                    build=build_network,
                    bfloat16=bfloat16,
                    on_step=on_step,
                )
            network = build_network(text, len(keys), views.size)
            meter.set_gflop(network_gflop(network, views.size, steps * batch_size, backward=True))
            last = trajectory.checkpoints[-1].accuracy
            say(f"teacher {text}: {last:.1f} % of {kind}, trained on {len(train):,}")
            loaded[text] = load_teacher_of(str(folder), keys, views.size, options, fraction)
        teachers.append(loaded[text])
    pool = teachers[0] if len(teachers) == 1 else TeacherPool(teachers)
    return pool.to(options["device"])


def _settings(options: dict[str, Any]) -> ProjectorSettings:
    """What is adapted."""
    targets: tuple[str, ...] = options["targets"]
    presets = {"paper", "transformer", "all"}
    is_preset = len(targets) == 1 and targets[0] in presets
    return ProjectorSettings(
        targets=targets[0] if is_preset else targets or "all",
        rank=options["rank"],
        head_rank=options["head_rank"],
        start=options["start"],
        prompts=options["prompts"] or ("a photo of a {}.",),
        temperature=options["temperature"],
        seed=options["seed"],
    )


def _plan(options: dict[str, Any], images: int, bfloat16: bool) -> FitSettings:
    """How the projector is fitted."""
    if options["steps"] is not None and options["epochs"] is not None:
        raise UserInputError.make("E_OPTION", "`--steps` and `--epochs`: expected one, got both")
    batch_size: int = options["batch_size"]
    if options["epochs"] is not None:
        steps = steps_of(options["epochs"], images, batch_size)
    else:
        steps = options["steps"] or default_steps(images, batch_size)
    return FitSettings(
        loss=options["loss"],
        # The paper's preset is the paper's throughout.
        raw_logits=options["targets"] == ("paper",),
        steps=steps,
        batch_size=batch_size,
        learning_rate=options["lr"],
        seed=options["seed"],
        bfloat16=bfloat16,
    )


def _fidelity_text(got: Fidelity) -> str:
    return f"agreement {got.agreement:.1f} %, KL {got.kl:.4f} on {got.views:,} new views"


def cost_documents(costs: Sequence[StageCost]) -> list[dict[str, Any]]:
    """Costs of stages for ``--json``."""
    return [
        {
            "stage": cost.stage,
            "seconds": round(cost.seconds, 3),
            "peak_bytes": cost.peak_bytes,
            "device_peak_bytes": cost.device_peak_bytes,
            "gflop": None if cost.gflop is None else float(f"{cost.gflop:.6g}"),
        }
        for cost in costs
    ]


def cost_lines(costs: Sequence[StageCost]) -> list[tuple[str, str]]:
    """Costs of stages for people, one line of seconds and work, one of memory."""
    texts = [
        f"{cost.stage} {_duration(cost.seconds)}"
        + ("" if cost.gflop is None else f" and {cost.gflop:,.0f} GFLOP")
        for cost in costs
    ]
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    memory = size(max(peaks)) if peaks else "not measured on this system"
    on_device = [c.device_peak_bytes for c in costs if c.device_peak_bytes is not None]
    if on_device:
        memory += f"; on the device {size(max(on_device))}"
    return [("cost", "; ".join(texts)), ("peak memory", memory)]


def _print_precisions(rows: Sequence[Precision], written: Storage) -> None:
    """Bytes against fidelity, one storage a line, after an empty line."""
    views = rows[0].fidelity.views
    click.echo(f"\nprecision       bytes  agreement      KL  on {views:,} new views")
    words = {storage: word for word, storage in STORAGES.items()}
    for row in rows:
        line = (
            f"{words[row.storage]:<9}  {row.size_bytes:>10,}  {row.fidelity.agreement:>7.2f} %"
            f"  {row.fidelity.kl:.4f}  {'written' if row.storage == written else ''}"
        )
        click.echo(line.rstrip())


def _remove_teachers(work: Path) -> None:
    """Delete the teachers that were trained in the work folder, and nothing else in it."""
    for file in work.glob("teacher-*/*"):
        if file.name == "teacher.json" or file.suffix == ".safetensors":
            file.unlink()
    for folder in work.glob("teacher-*"):
        with suppress(OSError):
            folder.rmdir()


def make_archive(
    data_arguments: Sequence[str],
    output: str,
    *,
    ipc: int | None,
    as_json: bool,
    select: SelectSettings | None = None,
    refine: RefineSettings | None = None,
    **options: Any,
) -> None:
    """Run ``hello fit`` (without ``ipc``) or ``hello distill`` and print what came of it.

    Args:
        data_arguments: DATA.
        output: the archive to write.
        ipc: images per class; None writes the label function alone.
        as_json: print one document.
        select: how images are chosen.
        refine: how they are refined.
        options: of ``data_options`` and ``fit_options``.

    Raises:
        HelloError: anything the user gave cannot be used, or the target exists.
        OSError: something cannot be read or written; finished stages stay.
    """
    with joined(options["device"]):
        try:
            _make_archive(data_arguments, output, ipc, as_json, select, refine, options)
        except BaseException as error:
            work = Path(options["work"] or f"{output}.work")
            if any(path.is_file() for path in work.rglob("*")):
                how = "; the same command continues" if _can_succeed(error) else ""
                say(f"kept: what is finished, in {shown_path(work)}{how}")
            elif options["work"] is None:
                with suppress(OSError):
                    work.rmdir()
            raise


def _can_succeed(error: BaseException) -> bool:
    """Whether the same command may succeed: it was interrupted, or a disk or server failed."""
    if isinstance(error, HelloError):
        return isinstance(error, HelloIOError) and error.code != "E_TARGET"
    lasting = FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
    return not isinstance(error, Exception) or (
        isinstance(error, OSError) and not isinstance(error, lasting | PermissionError)
    )


def _make_archive(
    data_arguments: Sequence[str],
    output: str,
    ipc: int | None,
    as_json: bool,
    select: SelectSettings | None,
    refine: RefineSettings | None,
    options: dict[str, Any],
) -> None:
    data = read_data(data_arguments, options)
    work = options["work"] or f"{output}.work"
    stages = Stages(work, say=say)
    base = _read_base(options["base"], data.views)
    train, held_out = split_validation(data.images, seed=options["seed"])
    kind = measured_kind(data.images, held_out)
    if kind != _HELD_OUT:
        warn(f"a class has too few images to hold one out: accuracies are of {kind}")
    plan = _plan(options, len(train), options["bfloat16"])
    check_target(output, force=options["force"])
    settings = DistillSettings(
        select=select,
        projector=_settings(options),
        fit=plan,
        refine=refine,
        storage=STORAGES[options["precision"]],
        name=options["name"],
        license_name=options["license_name"],
        seed=options["seed"],
    )
    check_settings(data.images, data.views, settings)
    for note in settings.projector.notes(base, data.images) if is_speaking() else ():
        warn(note)
    if any(map(is_network, options["teachers"])):
        # What the fit would refuse is refused before a teacher is trained for it.
        settings.projector.build(base, data.images)
    teacher = _read_teacher(
        options["teachers"], data, Path(work), options, ipc, options["bfloat16"], stages.meter
    )
    rows: list[Precision] = []

    def before(projector: Projector) -> None:
        seconds = predicted_seconds(projector, teacher, train, data.views, plan)
        say(
            f"fit: {projector.trained_count():,} values, {plan.steps:,} steps of"
            f" {plan.batch_size} views, about {_duration(seconds)}"
        )

    def after(projector: Projector, measured: ArrayImages) -> None:
        if options["table"]:
            on_cpu = teacher.cpu()
            rows.extend(fidelity_table(projector, on_cpu, measured, data.views))

    with bar("fit") as shown:

        def on_step(done: int, _: Tensor) -> None:
            if shown is not None:
                shown(done, plan.steps)

        def on_fidelity(done: int, got: Fidelity) -> None:
            say(f"fit: step {done:,}: agreement {got.agreement:.1f} %, KL {got.kl:.3f}")

        report = distill(
            data.images,
            output,
            settings,
            teacher=teacher,
            base=base,
            views=data.views,
            force=options["force"],
            work=stages,
            hooks=FitHooks(
                before,
                on_step,
                on_fidelity,
                # Each takes as long as a few steps.
                evaluations=min(_EVALUATIONS, plan.steps // _STEPS_PER_EVALUATION),
                after=after,
            ),
        )
    if not is_speaking():
        return
    if options["work"] is None:
        _remove_teachers(Path(work))
        stages.remove()
    size_bytes = Path(output).stat().st_size
    if as_json:
        echo_json(
            {
                "schema": "hello.fit/1" if ipc is None else "hello.distill/1",
                "path": output,
                "id": report.id,
                "bytes": size_bytes,
                "teacher": round(report.teacher_accuracy, 2),
                "projector": {
                    "accuracy": round(report.projector_accuracy, 2),
                    "agreement": round(report.fidelity.agreement, 2),
                    "kl": round(report.fidelity.kl, 4),
                    "trained": report.trained,
                },
                "ipc": ipc,
                "bfloat16": options["bfloat16"],
                "cost": cost_documents(report.costs),
                "refined": None if report.refined is None else list(report.refined),
                "precisions": [
                    {
                        "storage": row.storage,
                        "bytes": row.size_bytes,
                        "agreement": round(row.fidelity.agreement, 2),
                        "kl": round(row.fidelity.kl, 4),
                    }
                    for row in rows
                ],
            }
        )
        return
    lines: list[tuple[str, str] | None] = [
        ("written", f"{shown_path(output)}, {size(size_bytes)}"),
        ("teacher", f"{report.teacher_accuracy:.1f} % of {kind}"),
        ("label function", f"{report.projector_accuracy:.1f} %, {report.trained:,} values"),
        ("fidelity", _fidelity_text(report.fidelity)),
    ]
    if report.refined is not None:
        before_loss, after_loss = report.refined
        saved = 100 * (1 - after_loss / before_loss) if before_loss else 0.0
        lines.append(("refined", f"{before_loss:.3g} to {after_loss:.3g}, {saved:.0f} % lower"))
    lines.append(("trained in", arithmetic(options)))
    echo_page([*lines, *cost_lines(report.costs), ("id", report.id)])
    if rows:
        _print_precisions(rows, STORAGES[options["precision"]])
