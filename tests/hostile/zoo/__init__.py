"""Named hostile files, each made by a small function from valid parts; see ``zoo.parts``.

``ZOO`` maps a name to a file with the code that a reader must give, ``VALID`` the archives that the
lies start from.
"""

from zoo import container, images, manifest, sections, tensors
from zoo.parts import VALID, ZOO

__all__ = ["VALID", "ZOO", "container", "images", "manifest", "sections", "tensors"]
