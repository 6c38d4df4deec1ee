"""Distilled datasets that ship a label function instead of labels.

The public names are few and loaded on first use (PEP 562): ``import hellofmt`` and ``hello
inspect`` must answer at once, so neither may import torch. The rooms below have names of their own.
No room is called like a name here: once ``hellofmt.x`` were imported as a module, the function
``hellofmt.x`` could no longer be called.
"""

from hellofmt.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
