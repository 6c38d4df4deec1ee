"""Real images: listed, decoded, labelled and packed by one rule for every command.

Names are imported when they are first used: a data set reads images, but packs none.
"""

from hellofmt.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
