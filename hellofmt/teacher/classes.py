"""Which outputs of a teacher stand for the data set's classes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hellofmt.errors import UserInputError, printable
from hellofmt.teacher.match import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["columns_of", "imagenet_keys"]


def imagenet_keys(outputs: int) -> tuple[str, list[str]] | None:
    """WordNet ids of ImageNet's classes in the order of published networks.

    Args:
        outputs: of the teacher; 1,000 is ImageNet-1K, 21,841 all of ImageNet, and timm knows three
            more selections by their size.

    Returns:
        Name of the selection and its ids; None for another number.
    """
    # Half a second, so only where it is needed.
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    return None if subset is None else (subset, ImageNetInfo(subset).label_names())


def columns_of(
    teacher: str, outputs: int, keys: Sequence[str], named: Sequence[str] | None
) -> tuple[list[int] | None, str]:
    """Outputs of a teacher for the classes of the data set.

    A teacher of as many outputs as the data has classes is taken as it is; its order is checked
    against the images later. Any other needs keys: the ones that the user lists, or ImageNet's
    WordNet ids.

    Args:
        teacher: as the user named it, for messages.
        outputs: logits of the teacher.
        keys: of the data set's classes in label order.
        named: keys of the teacher's classes in the order of its outputs, where they are known.

    Returns:
        One output for each key, None for all in their order; and what to tell the user, or "".

    Raises:
        UserInputError: E_TEACHER: the list is not of the teacher, the teacher lacks a class, or
            nothing says what its outputs mean.
    """
    where = f"teacher `{printable(teacher)}`"
    source = "its class list"
    if named is None:
        if outputs == len(keys):
            return None, ""
        imagenet = imagenet_keys(outputs)
        if imagenet is None or set(keys).isdisjoint(imagenet[1]):
            raise UserInputError.make(
                "E_TEACHER",
                f"{where} has {outputs:,} outputs for {len(keys):,} classes of the data",
                advice="{teacher_classes:FILE} says which, a class key a line in their order",
            )
        source, named = imagenet
    if len(named) != outputs:
        raise UserInputError.make(
            "E_TEACHER",
            f"classes of {where}: {len(named):,} in the list; expected {outputs:,}, one per output",
        )
    place = {key: k for k, key in enumerate(named)}
    lacking = [key for key in keys if key not in place]
    if lacking:
        raise UserInputError.make(
            "E_TEACHER",
            f"{where} lacks {len(lacking):,} of {len(keys):,} classes by {source}:"
            f" {listed(lacking)}",
        )
    counts = Counter(named)
    twice = [key for key in keys if counts[key] > 1]
    if twice:
        raise UserInputError.make(
            "E_TEACHER", f"classes of {where}: more than one output is {listed(twice)}"
        )
    columns = [place[key] for key in keys]
    if columns == list(range(outputs)):
        return None, ""
    return columns, f"{where}: {len(keys):,} of its {outputs:,} outputs, by {source}"
