"""Low-rank adapters of the PEFT library, read and written as data.

They are a directory with ``adapter_config.json`` and ``adapter_model.safetensors``. PEFT is not
imported: its configuration can name modules to import, and its older files are pickles.

PEFT wraps modules, we name parameters, and ``torch.nn.MultiheadAttention`` is where this differs:
PEFT (0.15.0 to 0.21.2 at least, huggingface/peft#3774) adds the delta of ``out_proj`` twice, in the
forward pass and when it merges. An adapter trained so expects the double, so reading doubles ``s``
of these tensors and writing halves them: labels here equal those of PEFT. Wrapping also leaves
modules without effect whose weights are used but whose ``forward`` is never called (the attention
pool of CLIP's ResNets, the attention of EVA); writing refuses these.
"""

from __future__ import annotations

from hellofmt.projector.peft.config import MhaFix
from hellofmt.projector.peft.read import read_peft
from hellofmt.projector.peft.write import write_peft

__all__ = ["MhaFix", "read_peft", "write_peft"]
