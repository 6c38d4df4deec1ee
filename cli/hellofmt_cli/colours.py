"""One colour for each source of labels, in every picture.

Of Okabe and Ito's palette, which stays distinct for colour-blind readers; greys for the rest.
"""

from __future__ import annotations

from typing import Final

OURS: Final = "#D55E00"
RANDOM: Final = "#8B5A2B"
TEACHER: Final = "#0072B2"
HARD: Final = "#888888"
STORED: Final = "#56B4E9"
TOPK: Final = "#009E73"
PRUNED: Final = "#CC79A7"
PROBE: Final = "#E69F00"
FULL: Final = "#555555"
OTHER: Final = "#A9B3BA"
INK: Final = "#222222"
