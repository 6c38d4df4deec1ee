"""The ledger: what labels cost, as bytes of an archive and in every other form; without torch.

A label function is only worth its bytes beside something, so both sides are counted with the same
rules: `ledger_of` an archive that exists, `plan` for one that does not.
"""

from __future__ import annotations

from hellofmt.ledger.datasets import DATASETS, DataSet
from hellofmt.ledger.function_bytes import (
    adapter_bytes,
    break_even_data_sets,
    factor_values,
    head_bytes,
    model_bytes,
    probe_bytes,
    resnet18_parameters,
)
from hellofmt.ledger.label_bytes import (
    PRUNING_RATIOS,
    break_even_epochs,
    pruned_label_bytes,
    stored_label_bytes,
    top_k_label_bytes,
    view_record_bytes,
)
from hellofmt.ledger.ledger import Ledger, ledger_of
from hellofmt.ledger.plans import PRECISIONS, Plan, paper_head_rank, plan
from hellofmt.ledger.rivals import LabelFunction, Rival
from hellofmt.ledger.towers import RESNET18_GFLOP, TOWERS, Tower, tower_named

__all__ = [
    "DATASETS",
    "PRECISIONS",
    "PRUNING_RATIOS",
    "RESNET18_GFLOP",
    "TOWERS",
    "DataSet",
    "LabelFunction",
    "Ledger",
    "Plan",
    "Rival",
    "Tower",
    "adapter_bytes",
    "break_even_data_sets",
    "break_even_epochs",
    "factor_values",
    "head_bytes",
    "ledger_of",
    "model_bytes",
    "paper_head_rank",
    "plan",
    "probe_bytes",
    "pruned_label_bytes",
    "resnet18_parameters",
    "stored_label_bytes",
    "top_k_label_bytes",
    "tower_named",
    "view_record_bytes",
]
