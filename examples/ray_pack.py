"""Pack millions of images on many machines: the shards of ``hello pack --shards N``, byte for byte.

    python ray_pack.py IMAGES TARGET.hello SHARDS

Every machine of the cluster sees IMAGES and the folder of TARGET under the same paths. This process
lists the images and measures their files; every shard is then written by one task and, once the
digests of all rows are known, completed by another. Files get their names only when all are
complete and verified. Ray repeats the tasks of a machine that is lost.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import hellofmt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def spread(work: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
    """``map`` in tasks of Ray, which have all ended when this ends."""
    import ray
    from ray.exceptions import RayTaskError

    task = ray.remote(work)
    begun = [task.remote(value) for value in values]
    try:
        for one in begun:
            yield ray.get(one)
    except RayTaskError as error:
        # What the work raised, which says what is wrong with an image.
        raise error.cause from None
    finally:
        ray.wait(begun, num_returns=len(begun), fetch_local=False)


if __name__ == "__main__":
    images, target, shards = sys.argv[1:]
    try:
        identity = hellofmt.pack(images, target, shards=int(shards), spread=spread)
    except hellofmt.HelloError as error:
        sys.exit(f"Error: {error}")
    sys.stdout.write(f"{identity}\n")
