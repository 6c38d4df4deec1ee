"""Find the finished cells of ``evidence.py`` by what they measure."""

from __future__ import annotations

NAMES = {
    "hard": "hard labels",
    "hello": "**label function (ours)**",
    "teacher": "teacher, online (RDED)",
    "teacher-int8": "teacher, online, int8",
    "stored": "stored, float16 (SRe2L, FKD)",
    "topk": "stored, top 10 (TinyViT)",
    "pruned": "stored, top 10 of a tenth (LPQLD)",
    "probe": "linear probe on the base",
    "random": "ours on random images",
}
# Label sources that every suite has: a control, ours, and what ours imitates.
LONG_RIVALS = ("hard", "hello", "teacher")
# The field's usual schedule.
STORED_EPOCHS = 300


class Found:
    """Documents of one data set's cells, by name without the data set."""

    def __init__(self, name, cells):
        self.name = name
        head = f"{name}/"
        self.cells = {k[len(head) :]: v for k, v in cells.items() if k.startswith(head)}
        self.classes = self.cells.get("teacher", {}).get("classes", 0)

    def get(self, name):
        document = self.cells.get(name)
        return None if document is None or "error" in document else document

    def seeds(self, prefix, value="top1"):
        """Return top-1, or another value, by seed from the cells ``prefix/seedN``."""
        return {
            document["seed"]: document[value]
            for name, document in self.cells.items()
            if name.startswith(f"{prefix}/seed") and "error" not in document
        }

    def has(self, prefix):
        """Return whether there is a cell below a prefix, finished or failed."""
        return any(name.startswith(prefix) for name in self.cells)

    def first(self, prefix):
        """Return any finished cell below a prefix."""
        return next(
            (d for k, d in sorted(self.cells.items()) if k.startswith(prefix) and "error" not in d),
            None,
        )

    def ipcs(self, suite):
        parts = {k.split("/")[1] for k in self.cells if k.startswith(f"{suite}/ipc")}
        return sorted(int(part.removeprefix("ipc")) for part in parts)


def data_sets(cells):
    """Return names of data sets, most classes first."""
    names = {name.split("/")[0] for name in cells}
    return sorted(names, key=lambda name: (-Found(name, cells).classes, name))


def claims(cells):
    """Find settings where hard labels, ours and the teacher's are all present.

    Yields:
        Data set, images per class, top-1 by seed of the three, label bytes of the last two.
    """
    for name in data_sets(cells):
        found = Found(name, cells)
        for ipc in found.ipcs("rivals"):
            scores = [found.seeds(f"rivals/ipc{ipc}/{kind}") for kind in LONG_RIVALS]
            if all(scores):
                sources = (found.first(f"rivals/ipc{ipc}/{kind}/") for kind in LONG_RIVALS[1:])
                yield name, ipc, scores, [source["label_bytes"] for source in sources]


def long_bytes(kind, ipc, classes, measured=None):
    """Return bytes of labels for the field's schedule; of those that do not grow, as measured."""
    a_view = {"stored": 2 * classes, "topk": 44}.get(kind)
    return measured if a_view is None else STORED_EPOCHS * ipc * classes * a_view


def ranks_of(found):
    """Return cells of the curve's finished ranks, then those of the main label function."""
    names = [name for name in found.cells if name.startswith("curve/rank") and found.get(name)]
    cells = sorted((found.get(name) for name in names), key=lambda cell: cell["rank"])
    main = found.get("fit/main")
    return [*cells, main] if cells and main else cells
