"""Students: train networks from an archive by a named recipe, and measure them on real images."""

from __future__ import annotations

from hellofmt.student.average import Average
from hellofmt.student.curve import Curve, Point
from hellofmt.student.evaluate import evaluate
from hellofmt.student.networks import SMALL_IMAGE_SIZE, build_student, small_image_advice
from hellofmt.student.recipes import Recipe, recipe
from hellofmt.student.results import compared, with_result
from hellofmt.student.train import train_from_archive, train_from_dataset, train_student

__all__ = [
    "SMALL_IMAGE_SIZE",
    "Average",
    "Curve",
    "Point",
    "Recipe",
    "build_student",
    "compared",
    "evaluate",
    "recipe",
    "small_image_advice",
    "train_from_archive",
    "train_from_dataset",
    "train_student",
    "with_result",
]
