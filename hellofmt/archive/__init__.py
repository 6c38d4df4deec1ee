"""Bytes to facts and back: the ``.hello`` archive, without torch.

Names are imported when they are first used, so that opening a file costs what opening needs.
"""

from hellofmt.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
