"""Make what the benchmarks run on: data sets, teachers, label functions, archives, stored labels.

Everything is made once and kept in the work folder under the digest of its inputs, where later
cells read it. Test images decide nothing: teacher and fits record their progress on a validation
part of the training images (``split_validation``), and the constants of a profile were fixed before
any test image was used.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file

from hellofmt.archive import (
    Arch,
    ClassLine,
    Preprocess,
    VisionArch,
    changed_views,
    default_views,
    read_class_lines,
)
from hellofmt.distillation import FitSettings, ProjectorSettings, fitted_projector, split_validation
from hellofmt.projector import load_base, seeded_base
from hellofmt.runs import Stages, digest_of
from hellofmt.sources import (
    ArrayImages,
    decode_centre,
    digits,
    open_source,
    stratified_split,
)
from hellofmt.student import SMALL_IMAGE_SIZE, build_student
from hellofmt.teacher import train_trajectory

if TYPE_CHECKING:
    from hellofmt.archive import Views
    from hellofmt.projector import LoadedBase


# Of the fit: on the validation part of tiny100, 2 gave more agreement than 4 and the same KL.
FIT_TEMPERATURE = 2.0
DIGITS = "digits"
# Folders of the images that are measured on, the first that is there.
MEASURED_PARTS = ("val", "test")


@dataclass(frozen=True)
class Profile:
    """Everything that depends on the speed of a machine, for one data set."""

    teacher: str
    teacher_epochs: float
    fit_epochs: float
    ablation_epochs: float
    probe_epochs: float
    student: str
    steps: int
    ipcs: tuple[int, ...]
    long_ipcs: tuple[int, ...] = ()
    # Of the ablation's students; 0 takes ``steps``.
    ablation_steps: int = 0
    rank: int = 16
    ranks: tuple[int, ...] = ()
    curve_epochs: float = 0
    batch_size: int = 128
    fit_batch: int = 128
    teacher_rate: float = 3e-3
    # In a few epochs a teacher learns more without mixed views, and the field's see none.
    teacher_views: str = "plain views"
    fit_rate: float = 6e-3
    start: str = "stored"
    student_rate: float = 1e-3
    student_batch: int = 50
    seeds: tuple[int, ...] = (0, 1, 2)
    # Of hard labels, ours and the teacher's, whose differences are the claim.
    more_seeds: tuple[int, ...] = ()
    # Of each class, real images among which patches are chosen; RDED takes 300.
    candidates: int = 300
    cross: tuple[str, ...] = ()
    continual_steps: int = 0
    sensitivity: bool = False
    mixed: bool = True
    rded_epochs: float = 0
    # The side at which teacher and base see views; 0 is that of the views.
    side: int = 0
    recipe: str = "kl"
    # CutMix in the student's views, as a decimal string; teacher and fits see it in half of theirs.
    mix_probability: str = "0.5"
    # Of labels and students.
    temperature: float = 4.0
    # Views of an image that every run shares, with their labels; 0 makes new ones.
    views_per_image: int = 0
    held_out_views: int = 4
    targets: str | tuple[str, ...] = "all"
    checkpoints: int = 9
    # Of the curve over bytes: more images per class, and files of so many bytes.
    curve_ipcs: tuple[int, ...] = ()
    budgets: tuple[int, ...] = ()
    # Lengths of a run that show where the student stops learning.
    lengths: tuple[int, ...] = ()


_VIT = "vit_tiny_patch16_224"

# Fits chosen on the validation part of the digits: 160 epochs gave 85 % agreement, 480 88 %.
_DIGITS = Profile(
    teacher="cnn",
    teacher_epochs=30,
    fit_epochs=480,
    ablation_epochs=0,
    probe_epochs=4,
    student="cnn",
    steps=300,
    ipcs=(1, 10, 50),
    batch_size=64,
    fit_batch=32,
    student_rate=3e-3,
    sensitivity=True,
    mixed=False,
)

# Chosen on the validation part of tiny100: half an epoch in batches of 32 gave 43 % agreement, in
# batches of 64 at 6e-3 41 %; 200 steps of a student at 1e-3 gave 7 %, at 4e-3 11 %.
_SHORT: dict[str, Any] = {
    "fit_batch": 32,
    "fit_rate": 4e-3,
    "student_rate": 4e-3,
    "more_seeds": (3, 4),
}

_PUBLIC: dict[str, Any] = {
    "recipe": "strong",
    "views_per_image": 16,
    "held_out_views": 1,
    "checkpoints": 3,
    "more_seeds": (3, 4),
    "mixed": False,
}
# Of photos, by either number of classes.
_PUBLIC_PHOTOS: dict[str, Any] = {
    **_PUBLIC,
    "teacher": "timm:efficientnet_lite0",
    "teacher_epochs": 1.5,
    "batch_size": 64,
    "fit_rate": 6e-3,
    "fit_batch": 32,
    "ablation_epochs": 0,
    "rank": 5,
    "mix_probability": "1.0",
    "steps": 600,
    "ipcs": (1, 10, 50),
    "curve_ipcs": (2, 5, 20),
}

PROFILES: dict[str, dict[str, Profile]] = {
    # Everything, cut to two cores without AMX: a short teacher, a student that costs a tenth of
    # ConvNet-3 a view, 400 steps of 50.
    "small": {
        DIGITS: replace(_DIGITS, more_seeds=_SHORT["more_seeds"]),
        "heavy": Profile(
            teacher="resnet10w32",
            teacher_epochs=6,
            fit_epochs=7,
            ablation_epochs=0.5,
            probe_epochs=0.5,
            student="resnet10w16",
            steps=400,
            ablation_steps=200,
            ipcs=(1, 10),
            long_ipcs=(50,),
            rank=32,
            **_SHORT,
            ranks=(2, 8, 16, 64),
            curve_epochs=0.5,
            candidates=100,
            cross=("mobilenet_v2", "shufflenet_v2_x0_5", _VIT),
            continual_steps=5,
            mixed=False,
        ),
        "light": Profile(
            teacher="resnet10w32",
            teacher_epochs=2,
            fit_epochs=3,
            ablation_epochs=0,
            probe_epochs=0.25,
            student="resnet10w16",
            steps=400,
            ipcs=(10,),
            rank=32,
            **_SHORT,
            mixed=False,
            rded_epochs=5,
        ),
    },
    # Longer, and with the field's ConvNet-3: hours on two cores that multiply bfloat16 themselves.
    "long": {
        DIGITS: replace(_DIGITS, teacher_views="mixed views", fit_epochs=60, fit_batch=64),
        "heavy": Profile(
            teacher="resnet10w32",
            teacher_views="mixed views",
            teacher_epochs=12,
            fit_epochs=6,
            ablation_epochs=2,
            probe_epochs=1,
            student="convnet3",
            steps=400,
            ipcs=(1, 10),
            long_ipcs=(50,),
            ranks=(2, 8, 16, 64),
            curve_epochs=2,
            cross=("resnet10w32", "shufflenet_v2_x0_5", _VIT),
            continual_steps=5,
        ),
        "light": Profile(
            teacher="resnet10w32",
            teacher_views="mixed views",
            teacher_epochs=3,
            fit_epochs=3,
            ablation_epochs=0,
            probe_epochs=0.5,
            student="convnet3",
            steps=400,
            ipcs=(10,),
            rded_epochs=12,
        ),
    },
    # As published where a GPU is at hand: ResNet-18, 300 epochs of the distilled set.
    "published": {
        DIGITS: _DIGITS,
        "heavy": Profile(
            teacher="resnet18-cifar",
            teacher_epochs=100,
            fit_epochs=50,
            ablation_epochs=50,
            probe_epochs=10,
            student="resnet18-cifar",
            steps=6000,
            ipcs=(1, 10, 50),
            ranks=(2, 8, 16, 32, 64),
            teacher_rate=1e-3,
            fit_rate=1e-3,
            start="text",
            student_batch=100,
            curve_epochs=50,
            cross=("convnet3", "mobilenet_v2", "shufflenet_v2_x1_0", _VIT),
            continual_steps=5,
        ),
        "light": Profile(
            teacher="resnet18-cifar",
            teacher_epochs=100,
            fit_epochs=50,
            ablation_epochs=0,
            probe_epochs=10,
            student="resnet18-cifar",
            steps=3000,
            ipcs=(1, 10, 50),
            teacher_rate=1e-3,
            fit_rate=1e-3,
            start="text",
            rded_epochs=100,
        ),
    },
    # On public weights that have seen ImageNet, for six hours of a thread with AVX-512 BF16. A view
    # takes there, in milliseconds at 128 and 96 px: the teacher's step 13 and 10, its label 3 and
    # 1.7, a step of the fit with both networks 20 and 11, our label in bfloat16 2.6 and 1.6, the
    # student's step in bfloat16 1.9 and 1.3.
    # Chosen on validation parts, 600 steps at 10 per class, seed 0 (few validation images are among
    # the distilled ones). CIFAR-10, ConvNet-3, crops from half of an image, CutMix in all views:
    # `strong` 49.2, 48.0, 45.8 % at 1.5e-3, 4e-3, 1e-2, 48.1 after 1,200 steps, 46.6 at T = 1;
    # `kl` 44.9 at T = 20; crops from a quarter and no crops 48.9. ResNet-10 of width 32, crops from
    # a quarter, CutMix in half: `strong` 41.1, `kl` 40.2. tiny100, ResNet-10 of width 32: 22.2 at
    # T = 1, 22.3 with CutMix in all, 23.6 at T = 4; ConvNet-3 with `kl` at T = 20 14.2.
    # Of fits, 40 steps at 3e-3, 1e-2 and 3e-2 gave 25, 31 and 2 % agreement.
    # Of teachers, 1e-3 and 3e-3 gave 27 and 24 % of tiny100 in 70 steps, 62 and 67 % of CIFAR-10 in
    # 240.
    "public": {
        DIGITS: replace(
            _DIGITS,
            **{**_PUBLIC, "views_per_image": 32},
            curve_ipcs=(2, 5, 20),
            budgets=(90_000, 150_000, 300_000),
            lengths=(75, 150, 600, 1200),
        ),
        "heavy": Profile(
            teacher_rate=1e-3,
            fit_epochs=1.5,
            probe_epochs=1,
            side=128,
            student="resnet10w32",
            student_rate=4e-3,
            budgets=(700_000, 1_000_000, 3_000_000, 8_000_000),
            lengths=(300, 1200, 2400),
            **_PUBLIC_PHOTOS,
        ),
        "light": Profile(
            teacher_rate=3e-3,
            fit_epochs=1,
            probe_epochs=0.5,
            side=96,
            student="convnet3",
            student_rate=2e-3,
            budgets=(350_000, 500_000, 1_000_000, 2_000_000),
            lengths=(300, 1200, 2400),
            **{**_PUBLIC_PHOTOS, "views_per_image": 32},
        ),
    },
    # Every path in a minute; its numbers mean nothing.
    "smoke": {
        DIGITS: replace(
            _DIGITS,
            teacher_epochs=3,
            fit_epochs=1,
            ablation_epochs=1,
            probe_epochs=1,
            steps=4,
            ipcs=(1,),
            long_ipcs=(2,),
            rank=2,
            ranks=(1, 2),
            seeds=(0, 1),
            curve_epochs=0.02,
            cross=("resnet10w32",),
            continual_steps=2,
        ),
        "heavy": Profile(
            teacher="cnn",
            teacher_epochs=0.5,
            fit_epochs=0.02,
            ablation_epochs=0.02,
            probe_epochs=0.02,
            student="cnn",
            steps=2,
            ipcs=(1,),
            long_ipcs=(2,),
            rank=2,
            ranks=(1, 2),
            seeds=(0,),
            curve_epochs=0.02,
            cross=("resnet10w32",),
            continual_steps=2,
        ),
        "light": Profile(
            teacher="cnn",
            teacher_epochs=0.2,
            fit_epochs=0.01,
            ablation_epochs=0,
            probe_epochs=0.01,
            student="cnn",
            steps=2,
            ipcs=(1,),
            seeds=(0,),
        ),
    },
}


# Every path of `public` in minutes; its numbers mean nothing.
PROFILES["public-smoke"] = {
    kind: replace(
        profile,
        teacher_epochs=min(profile.teacher_epochs, 3) / 100,
        fit_epochs=profile.fit_epochs / 480,
        probe_epochs=0.02,
        side=profile.side and 32,
        steps=4,
        candidates=10,
        ipcs=(1, 2),
        curve_ipcs=(3,),
        lengths=(2,),
        budgets=(profile.budgets or (90_000,))[:1],
        seeds=(0, 1),
        more_seeds=(),
        views_per_image=2,
    )
    for kind, profile in PROFILES["public"].items()
}


# What archives and labels depend on, beside data, base and weights.
_OF_LABELS = (
    *("teacher", "teacher_epochs", "teacher_rate", "teacher_views", "batch_size", "side"),
    *("fit_epochs", "fit_rate", "fit_batch", "rank", "targets", "start", "probe_epochs"),
    *("candidates", "temperature", "views_per_image", "held_out_views", "mix_probability"),
)


def profile_of(name: str, data: str, classes: int) -> Profile:
    """Return the profile of a data set: digits by name, others by whether C >= 50."""
    kinds = PROFILES[name]
    if data == DIGITS:
        return kinds[DIGITS]
    return kinds["heavy" if classes >= 50 else "light"]


def seeded_digits_base() -> LoadedBase:
    """Build a vision transformer with generated weights, as in the demo: no download."""
    arch = Arch(
        embed_dim=128,
        vision=VisionArch(
            image_size=16, layers=2, width=128, patch_size=4, head_width=32, mlp_ratio="2.0"
        ),
        quick_gelu=False,
    )
    preprocess = Preprocess(
        size=16,
        mean=["0.3"] * 3,
        std=["0.32"] * 3,
        interpolation="bicubic",
        antialias=True,
    )
    return seeded_base(arch, preprocess, seed=0, name="digits-vit")


@dataclass
class Setting:
    """One data set with its teacher and everything made from both.

    Attributes:
        name: name of the data set.
        train: real images for teacher, fits and selection, including the validation part.
        test: real images used only to measure.
        base_text: base as for ``hello fit``; digits do not use it.
        profile: sizes.
        work: folder for everything that is made.
        device: device for everything.
        teacher_file: weights that the teacher starts from; empty for none.
        bfloat16: students are trained, and labels made, in bfloat16.
    """

    name: str
    train: ArrayImages
    test: ArrayImages
    base_text: str
    profile: Profile
    work: Path
    device: str = "cpu"
    teacher_file: str = ""
    bfloat16: bool = False
    datasets: dict[Any, Any] = field(default_factory=dict)
    made: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def base(self) -> LoadedBase:
        if self.name == DIGITS:
            return seeded_digits_base()
        base = load_base(self.base_text)
        if not self.profile.side:
            return base
        seen = msgspec.structs.replace(base.spec.preprocess, size=self.profile.side)
        return load_base(self.base_text, preprocess=seen)

    @property
    def base_argument(self) -> Any:
        """Return the ``base`` argument for reading an archive; a seeded base needs none."""
        return None if self.name == DIGITS else self.base

    @cached_property
    def split(self) -> tuple[ArrayImages, ArrayImages]:
        """Split the training images into a fitting part and a validation part."""
        return split_validation(self.train)

    @cached_property
    def digest(self) -> str:
        """Return the digest of data and views, on which every cell depends."""
        return digest_of([digest_of(self.train), digest_of(self.test), self.views])

    @property
    def size(self) -> int:
        return self.train.pixels.shape[1]

    @cached_property
    def views(self) -> Views:
        """Return the views of all arms: crops of 25 to 100 %, flips, CutMix in half the batch."""
        facts: dict[str, Any] = {
            "crop_scale": ["0.25", "1.0"],
            "mix": "cutmix",
            "mix_alpha": "1.0",
            "mix_probability": "0.5",
        }
        if self.name == DIGITS:
            # A flipped digit is another one, or none.
            facts |= {"flip": "0.0", "mean": ["0.3"] * 3, "std": ["0.32"] * 3}
        return changed_views(default_views(self.size), facts)

    @property
    def student_views(self) -> Views:
        """Return the views of archives and stored labels."""
        return changed_views(self.views, {"mix_probability": self.profile.mix_probability})

    def steps(self, epochs: float, batch: int) -> int:
        """Return the number of gradient steps for passes over the fitting part."""
        return max(1, round(epochs * len(self.split[0]) / batch))

    @cached_property
    def trajectory(self):
        """Return the teacher's run with its nine checkpoints; train it if missing."""
        recipe = replace(_teacher_recipe(), learning_rate=self.profile.teacher_rate)
        views = self.views
        if self.profile.teacher_views == "plain views":
            views = changed_views(views, {"mix": "none"})
        if self.profile.side:
            # Those of the pretrained weights.
            facts = {"size": self.profile.side, "mean": ["0.5"] * 3, "std": ["0.5"] * 3}
            views = changed_views(views, facts)
        return train_trajectory(
            self.split[0],
            views,
            self.work / "teacher",
            network=self.profile.teacher,
            steps=self.steps(self.profile.teacher_epochs, self.profile.batch_size),
            held_out=self.split[1],
            checkpoints=self.profile.checkpoints,
            batch_size=self.profile.batch_size,
            recipe=recipe,
            device=self.device,
            build=self._started,
            bfloat16=self.profile.mixed,
        )

    @cached_property
    def teacher_digest(self) -> str:
        """Return the digest of the weights that the teacher starts from; empty without any."""
        if not self.teacher_file or not self.profile.side:
            return ""
        return hashlib.sha256(Path(self.teacher_file).read_bytes()).hexdigest()[:16]

    def _started(self, name: str, classes: int, size: int, *, seed: int = 0):
        """Build a teacher; with a file, from its weights but for the classifier."""
        network = build_student(name, classes, size, seed=seed)
        if self.teacher_file and self.profile.side:
            state = network.state_dict()
            found = load_file(self.teacher_file)
            same = {n: t for n, t in found.items() if n in state and t.shape == state[n].shape}
            if len(state) - len(same) > 2:
                raise ValueError(f"{self.teacher_file}: expected the weights of {name}")
            network.load_state_dict(state | same)
        return network

    @cached_property
    def teacher(self):
        """Return the last checkpoint: the teacher of every comparison except the ablation."""
        return self.trajectory.load(-1).to(self.device)

    def projector_settings(
        self,
        *,
        rank: int | None = None,
        targets: str | tuple[str, ...] | None = None,
        start: str = "",
    ) -> ProjectorSettings:
        """Return the settings of the projector.

        A stored head also starts from the text rows if the base has a text tower, and is trained
        and stored whole. If text rows mean little, it learns much faster than a low-rank change of
        them: on the validation part of tiny100, with a base that saw none of its classes, 250 steps
        gave 37 % agreement instead of 26 %. That is why the small profile stores it.
        """
        start = start or self.profile.start
        count, dim = len(self.train.classes), self.base.embed_dim
        # A low-rank head pays only below C D / (C + D); here at half of that.
        head_rank = max(1, count * dim // (count + dim) // 2) if start == "text" else None
        return ProjectorSettings(
            targets=self.profile.targets if targets is None else targets,
            rank=self.profile.rank if rank is None else rank,
            start=start,
            head_rank=head_rank,
            temperature=self.profile.temperature,
        )

    def fit_settings(self, epochs: float) -> FitSettings:
        return FitSettings(
            temperature=FIT_TEMPERATURE,
            steps=self.steps(epochs, self.profile.fit_batch),
            batch_size=self.profile.fit_batch,
            learning_rate=self.profile.fit_rate,
            bfloat16=self.profile.mixed,
        )

    def fitted(
        self, settings: ProjectorSettings, epochs: float, *, teacher=None, random_head=False
    ):
        """Return a fitted projector and its fidelity, made now or read."""
        start = None
        if random_head:
            start = settings.build(self.base, self.train)
            words = torch.Generator().manual_seed(0)
            rows = torch.randn(start.head.weight.shape, generator=words)
            with torch.no_grad():
                start.head.weight.copy_(torch.nn.functional.normalize(rows, dim=1))
        folder = "fits-random-head" if random_head else "fits"
        return fitted_projector(
            self.split[0],
            self.views,
            teacher=self.teacher if teacher is None else teacher,
            base=self.base,
            projector=settings,
            fit=self.fit_settings(epochs),
            held_out=self.split[1],
            start=start,
            stages=Stages(self.work / folder),
        )

    def once(self, key, make):
        """Return what ``make`` gives, made or read once in a process."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def fitted_main(self):
        """Return the label function of every comparison."""
        epochs = self.profile.fit_epochs
        return self.once("main", lambda: self.fitted(self.projector_settings(), epochs))

    @cached_property
    def folder(self) -> Path:
        """Return the folder of what depends on teacher and fits, named after their settings."""
        profile = asdict(self.profile)
        made_by = [profile[name] for name in _OF_LABELS]
        facts = [self.digest, self.base.spec, self.teacher_digest, *made_by]
        return self.work / digest_of(facts)[:12]


def _teacher_recipe():
    from hellofmt.teacher import TEACHER_RECIPE

    return TEACHER_RECIPE


def read_setting(
    data: str | None,
    base: str,
    profile: str,
    work: Path,
    device: str = "cpu",
    *,
    teacher: str = "",
    bfloat16: bool = False,
) -> Setting:
    """Read a data set from its folder, or the digits.

    Args:
        data: folder that holds ``train`` and ``val`` or ``test``, each with a folder per class, and
            perhaps ``classes.tsv`` (folder TAB name); None takes the digits.
        base: base as for ``hello fit``.
        profile: name of the profile.
        work: folder for everything that is made.
        device: device for everything.
        teacher: weights that the teacher starts from.
        bfloat16: train students and make labels in bfloat16.
    """
    if data is None:
        images = digits(16)
        rest, test = stratified_split(images.labels, 500, seed=0)
        train, measured, name = images.subset(rest), images.subset(test), DIGITS
    else:
        root = Path(data)
        name = root.resolve().name
        # A prepared copy: decoding 30,000 files takes longer than many a cell.
        kept = work / name / "images.npz"
        folder = next(root / part for part in MEASURED_PARTS if (root / part).is_dir())
        listed = root / "classes.tsv"
        found = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
        lines = {line.key: line for line in read_class_lines(listed)} if listed.exists() else {}
        classes = tuple(lines[key] if lines else ClassLine(key, (key,)) for key in found)
        if not kept.exists():
            size = _side(root)
            train = in_memory(root / "train", size, classes)
            measured = in_memory(folder, size, classes)
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_suffix(f".{os.getpid()}.npz")
            np.savez(
                temporary,
                a=train.pixels,
                b=train.labels,
                c=measured.pixels,
                d=measured.labels,
            )
            temporary.replace(kept)
        # Read back even when just written: what a first run sees and a later one is the same, also
        # to the digest that names every cell.
        with np.load(kept, allow_pickle=False) as arrays:
            train = ArrayImages(arrays["a"], arrays["b"], classes, name)
            measured = ArrayImages(arrays["c"], arrays["d"], classes, name)
    sizes = profile_of(profile, name, len(train.classes))
    folder = work / name / f"{profile}"
    folder.mkdir(parents=True, exist_ok=True)
    return Setting(name, train, measured, base, sizes, folder, device, teacher, bfloat16)


def in_memory(folder, side, classes):
    """Read an image folder into squares."""
    source = open_source(folder, classes=classes)
    pixels = np.stack([decode_centre(source, row, side) for row in range(len(source))])
    return ArrayImages(pixels, source.labels, source.classes, source.name)


def _side(root: Path) -> int:
    """Return the side of the views: that of the first image, at most 224 px."""
    from PIL import Image

    first = next(path for path in sorted((root / "train").rglob("*.*")) if path.is_file())
    with Image.open(first) as image:
        side = min(image.size)
    return side if side <= SMALL_IMAGE_SIZE else 224
