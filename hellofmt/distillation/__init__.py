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
from hellofmt.distillation.pipeline import (
    DistillReport,
    ProjectorSettings,
    check_contents,
    check_target,
    distill,
    fitted_projector,
    split_validation,
    write_distilled,
)
from hellofmt.distillation.refine import Refinement, RefineSettings, refine_images
from hellofmt.distillation.select import Selection, SelectSettings, select_images

__all__ = [
    "DistillReport",
    "Fidelity",
    "FitSettings",
    "Precision",
    "ProjectorSettings",
    "RefineSettings",
    "Refinement",
    "SelectSettings",
    "Selection",
    "check_contents",
    "check_target",
    "default_steps",
    "distill",
    "fidelity",
    "fidelity_table",
    "fit_projector",
    "fitted_projector",
    "predicted_seconds",
    "refine_images",
    "select_images",
    "split_validation",
    "write_distilled",
]
