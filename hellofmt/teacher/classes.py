"""Choose the outputs of a teacher that stand for the data set's classes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hellofmt.errors import UserInputError, printable
from hellofmt.weights import listed

if TYPE_CHECKING:
    from collections.abc import Sequence


def imagenet_keys(outputs: int) -> tuple[str, list[str]] | None:
    """Return the name and the WordNet ids of the selection of ImageNet with so many classes.

    1,000 is ImageNet-1K, 21,841 all of ImageNet, and timm knows three more by their size; None for
    any other number. Ids are in the order of published networks.
    """
    # Half a second, so only where it is needed.
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    return None if subset is None else (subset, ImageNetInfo(subset).label_names())


def columns_of(
    teacher: str, outputs: int, keys: Sequence[str], named: Sequence[str] | None
) -> tuple[list[int] | None, str]:
    """Choose one output of a teacher for each class; None for all in their order. And what to say.

    A teacher with as many outputs as the data has classes is taken as it is; its order is checked
    against the images later. Any other needs keys: those that the user lists (``named``), or
    ImageNet's WordNet ids.
    """
    where, source = f"teacher `{printable(teacher)}`", "its class list"
    if named is None:
        if outputs == len(keys):
            return None, ""
        imagenet = imagenet_keys(outputs)
        if imagenet is not None and not set(keys).isdisjoint(imagenet[1]):
            source, named = imagenet
    if named is None:
        fact = f"{where} has {outputs:,} outputs for {len(keys):,} classes of the data"
        advice = "{teacher_classes:FILE} says which, a class key a line in their order"
        raise UserInputError.make("E_TEACHER", fact, advice=advice)
    place = {key: k for k, key in enumerate(named)}
    lacking = [key for key in keys if key not in place]
    counts = Counter(named)
    twice = [key for key in keys if counts[key] > 1]
    if len(named) != outputs:
        fact = f"classes of {where}: {len(named):,} in the list; expected {outputs:,}, one per"
        fact += " output"
    elif lacking:
        fact = f"{where} lacks {len(lacking):,} of {len(keys):,} classes by {source}:"
        fact += f" {listed(lacking)}"
    elif twice:
        fact = f"classes of {where}: more than one output is {listed(twice)}"
    else:
        fact = ""
    if fact:
        raise UserInputError.make("E_TEACHER", fact)
    columns = [place[key] for key in keys]
    if columns == list(range(outputs)):
        return None, ""
    return columns, f"{where}: {len(keys):,} of its {outputs:,} outputs, by {source}"
