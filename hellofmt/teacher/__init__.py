"""Teachers: networks that know the real data, each with its own input rule and class order."""

from __future__ import annotations

from hellofmt.teacher.check import teacher_accuracy
from hellofmt.teacher.convert import convert_weights
from hellofmt.teacher.files import load_teacher, save_network, save_teacher
from hellofmt.teacher.names import load_named_teacher
from hellofmt.teacher.network import Teacher, TeacherPool, device_of
from hellofmt.teacher.networks import build_network, is_network
from hellofmt.teacher.rule import InputRule, RuleChange
from hellofmt.teacher.shipped import label_source, read_teacher, write_teacher
from hellofmt.teacher.train import TEACHER_RECIPE, train_teacher
from hellofmt.teacher.trajectory import (
    TRAJECTORY_FILE,
    Trajectory,
    maturity,
    read_trajectory,
    train_trajectory,
)

__all__ = [
    "TEACHER_RECIPE",
    "TRAJECTORY_FILE",
    "InputRule",
    "RuleChange",
    "Teacher",
    "TeacherPool",
    "Trajectory",
    "build_network",
    "convert_weights",
    "device_of",
    "is_network",
    "label_source",
    "load_named_teacher",
    "load_teacher",
    "maturity",
    "read_teacher",
    "read_trajectory",
    "save_network",
    "save_teacher",
    "teacher_accuracy",
    "train_teacher",
    "train_trajectory",
    "write_teacher",
]
