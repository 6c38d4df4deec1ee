"""A fixed sequence of random inputs through every target: accepted, or refused with our error.

The sequence is the same in every run, so a failure here can be repeated; ``tests/fuzz/run.py`` is
the search that finds new ones.
"""

import plain
import pytest
import targets
from zoo import ZOO

# A container is read to its end and its pictures are decoded, which costs ten times as much as the
# others; a label function is built and run, which costs a thousand times as much.
RUNS = {"container": 4_000, "manifest": 10_000, "tensors": 10_000, "index": 10_000, "labels": 250}


@pytest.mark.parametrize(("target", "mode"), targets.CELLS)
def test_random_inputs(target, mode):
    accepted, _ = plain.fuzz(target, mode, RUNS[target])
    if (target, mode) == ("container", "raw"):
        # Every byte of an archive is covered by a digest or fixed.
        assert accepted == 0
    else:
        assert accepted > 0


@pytest.mark.slow
def test_labels_of_many_random_changes():
    # About half an hour on one busy core; `make fuzz` does the same.
    assert plain.fuzz("labels", "resigned", 50_000, seed=1)[0] > 0


def test_the_zoo_through_the_container_target():
    for file in ZOO.values():
        made = file.make()
        if isinstance(made, bytes) and file.code:
            assert targets.run_one("container", "raw", made) is False
        if isinstance(made, bytes):
            targets.run_one("container", "resigned", made)


def test_a_foreign_exception_is_a_crash(monkeypatch):
    # What a missing check would let out.
    def broken(data):
        if b"9" in data:
            raise KeyError("9")

    monkeypatch.setitem(targets.RUN, "manifest", broken)
    monkeypatch.setattr(plain, "seeds", lambda _: [b"{}", b'{"a":1}'])
    with pytest.raises(plain.Crash, match="manifest raw"):
        plain.fuzz("manifest", "raw", 10_000)


def test_an_accepted_lie_is_a_crash(monkeypatch):
    # A reader that takes two spellings of one manifest for the same.
    data = targets.seeds("manifest")[0]
    monkeypatch.setattr(targets, "manifest_bytes", lambda *_: b"another spelling")
    with pytest.raises(targets.Violated):
        targets.run_one("manifest", "raw", data)
