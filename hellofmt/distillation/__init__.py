"""Distillation: real images and a teacher become an archive of few images and a label function."""

from __future__ import annotations

from hellofmt.distillation.archive_of import check_settings, write_distilled
from hellofmt.distillation.budget import planned
from hellofmt.distillation.distill import distill
from hellofmt.distillation.fidelity import Fidelity, Precision, fidelity, fidelity_table
from hellofmt.distillation.fit import FitSettings, default_steps, fit_projector
from hellofmt.distillation.report import DistillReport
from hellofmt.distillation.select import select_images
from hellofmt.distillation.selection import Selection, SelectSettings
from hellofmt.distillation.settings import DistillSettings, FitHooks, ProjectorSettings
from hellofmt.distillation.stage_calls import fitted_projector
from hellofmt.distillation.stored_images import StoredImages, quality_of
from hellofmt.distillation.validation import split_validation

__all__ = [
    "DistillReport",
    "DistillSettings",
    "Fidelity",
    "FitHooks",
    "FitSettings",
    "Precision",
    "ProjectorSettings",
    "SelectSettings",
    "Selection",
    "StoredImages",
    "check_settings",
    "default_steps",
    "distill",
    "fidelity",
    "fidelity_table",
    "fit_projector",
    "fitted_projector",
    "planned",
    "quality_of",
    "select_images",
    "split_validation",
    "write_distilled",
]
