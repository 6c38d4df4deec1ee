"""The ledger: what labels cost, as bytes of an archive and in every other form; without torch.

A label function is only worth its bytes beside something, so both sides are counted with the same
rules: `ledger_of` an archive that exists, `plan` for one that does not.
"""

from __future__ import annotations

from hellofmt.ledger.budget import Spending, Way, assumed_ways, spend, ways_of
from hellofmt.ledger.ledger import Ledger, ledger_of
from hellofmt.ledger.plans import DATASETS, PRECISIONS, Plan, paper_head_rank, plan
from hellofmt.ledger.rivals import LabelFunction, Rival
from hellofmt.ledger.sizes import (
    break_even_data_sets,
    factor_values,
    model_bytes,
    resnet18_parameters,
    view_record_bytes,
)
from hellofmt.ledger.towers import TOWERS, Tower, tower_named

__all__ = [
    "DATASETS",
    "PRECISIONS",
    "TOWERS",
    "LabelFunction",
    "Ledger",
    "Plan",
    "Rival",
    "Spending",
    "Tower",
    "Way",
    "assumed_ways",
    "break_even_data_sets",
    "factor_values",
    "ledger_of",
    "model_bytes",
    "paper_head_rank",
    "plan",
    "resnet18_parameters",
    "spend",
    "tower_named",
    "view_record_bytes",
    "ways_of",
]
