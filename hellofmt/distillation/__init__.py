"""Distillation: real images and a teacher become an archive of few images and a label function."""

from __future__ import annotations

from hellofmt.distillation.fit import (
    Fidelity,
    FitSettings,
    Precision,
    default_steps,
    fidelity,
    fidelity_table,
    fit_projector,
    predicted_seconds,
)
from hellofmt.distillation.named import build_network, is_network, load_named_teacher
from hellofmt.distillation.pipeline import (
    DistillReport,
    ProjectorSettings,
    check_target,
    distill,
    fitted_projector,
    split_validation,
    write_distilled,
)
from hellofmt.distillation.refine import Refinement, RefineSettings, refine_images
from hellofmt.distillation.select import Selection, SelectSettings, select_images
from hellofmt.distillation.sources import (
    ArrayImages,
    digits,
    read_image_folder,
    read_source,
    stratified_split,
)
from hellofmt.distillation.teacher import (
    TEACHER_RECIPE,
    Teacher,
    TeacherPool,
    check_teacher,
    load_teacher,
    save_teacher,
    teacher_accuracy,
    train_teacher,
)
from hellofmt.distillation.trajectory import (
    CHECKPOINTS,
    Trajectory,
    maturity,
    read_trajectory,
    train_trajectory,
)

__all__ = [
    "CHECKPOINTS",
    "TEACHER_RECIPE",
    "ArrayImages",
    "DistillReport",
    "Fidelity",
    "FitSettings",
    "Precision",
    "ProjectorSettings",
    "RefineSettings",
    "Refinement",
    "SelectSettings",
    "Selection",
    "Teacher",
    "TeacherPool",
    "Trajectory",
    "build_network",
    "check_target",
    "check_teacher",
    "default_steps",
    "digits",
    "distill",
    "fidelity",
    "fidelity_table",
    "fit_projector",
    "fitted_projector",
    "is_network",
    "load_named_teacher",
    "load_teacher",
    "maturity",
    "predicted_seconds",
    "read_image_folder",
    "read_source",
    "read_trajectory",
    "refine_images",
    "save_teacher",
    "select_images",
    "split_validation",
    "stratified_split",
    "teacher_accuracy",
    "train_teacher",
    "train_trajectory",
    "write_distilled",
]
