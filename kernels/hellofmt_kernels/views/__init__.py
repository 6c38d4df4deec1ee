"""Augmented views of images: crop, resize, flip, blend with a partner, normalise."""
