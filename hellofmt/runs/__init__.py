"""Shared by all long runs: the loop, its state, ranks, stages, result files, and costs."""

from __future__ import annotations

from hellofmt.runs.cost import Meter, StageCost, network_gflop
from hellofmt.runs.handed import hand_folder
from hellofmt.runs.ranks import (
    current,
    first_on_machine,
    handed,
    is_unanimous,
    joined,
    leads_machine,
    union_,
)
from hellofmt.runs.results import digest_of
from hellofmt.runs.run_record import device_name, versions, without_paths
from hellofmt.runs.stages import Stages
from hellofmt.runs.workers import default_workers

__all__ = [
    "Meter",
    "StageCost",
    "Stages",
    "current",
    "default_workers",
    "device_name",
    "digest_of",
    "first_on_machine",
    "hand_folder",
    "handed",
    "is_unanimous",
    "joined",
    "leads_machine",
    "network_gflop",
    "union_",
    "versions",
    "without_paths",
]
