"""Distillation: real images and a teacher become an archive of few images and a label function."""

from __future__ import annotations

from hellofmt.distillation.fit import Fidelity, FitSettings, fidelity, fit_projector
from hellofmt.distillation.pipeline import DistillReport, distill, write_distilled
from hellofmt.distillation.select import Selection, SelectSettings, select_images
from hellofmt.distillation.sources import (
    ArrayImages,
    digits,
    read_image_folder,
    stratified_split,
)
from hellofmt.distillation.teacher import (
    Teacher,
    check_teacher,
    load_teacher,
    save_teacher,
    teacher_accuracy,
    train_teacher,
)

__all__ = [
    "ArrayImages",
    "DistillReport",
    "Fidelity",
    "FitSettings",
    "SelectSettings",
    "Selection",
    "Teacher",
    "check_teacher",
    "digits",
    "distill",
    "fidelity",
    "fit_projector",
    "load_teacher",
    "read_image_folder",
    "save_teacher",
    "select_images",
    "stratified_split",
    "teacher_accuracy",
    "train_teacher",
    "write_distilled",
]
