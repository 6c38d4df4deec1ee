"""A fuzzing driver of the standard library alone: seeds, mutations, a fixed sequence of choices.

It knows nothing of coverage, which is what atheris is for; it is there so that the targets run
wherever the tests run, and so that a run can be repeated exactly.
"""

import random
import time

from targets import TOKENS, run_one, seeds


def mutated(data, choose, others):
    """``data`` with one to four small changes."""
    out = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 2, 4))):
        kind = choose.randrange(9)
        at = choose.randrange(len(out) + 1)
        length = min(choose.choice((1, 1, 2, 4, 8, 32, 512)), len(out) - at)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << choose.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = choose.randrange(256)
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = bytes(choose.randrange(256) for _ in range(choose.choice((1, 2, 8))))
        elif kind == 4:
            token = choose.choice(TOKENS)
            out[at : at + choose.choice((0, len(token)))] = token
        elif kind == 5:
            out[at:at] = out[at : at + length]
        elif kind == 6:
            other = choose.choice(others)
            start = choose.randrange(len(other) + 1)
            out[at : at + length] = other[start : start + length]
        elif kind == 7:
            to = choose.randrange(len(out) + 1)
            piece = out[at : at + length]
            out[to : to + length] = piece
        elif kind == 8 and at < len(out) and 0x30 <= out[at] <= 0x39:
            out[at] = 0x30 + choose.randrange(10)
    return bytes(out)


def fuzz(target, mode, runs, seed=0, slowest=None):
    """Run ``runs`` inputs; what was accepted stays in the corpus.

    Returns:
        Accepted inputs, and the most seconds that one input took.
    """
    choose = random.Random(f"{target} {mode} {seed}")  # noqa: S311 (repeatable on purpose)
    corpus = seeds(target)
    for data in corpus:
        if not run_one(target, mode, data):
            raise ValueError(f"a seed of {target} was refused in mode {mode}")
    fixed, accepted, longest = len(corpus), 0, 0.0
    for _ in range(runs):
        parent = choose.choice(corpus)
        data = mutated(parent, choose, corpus)
        if data == parent:
            data += b"\0"
        start = time.perf_counter()
        try:
            kept = run_one(target, mode, data)
        except Exception as error:
            raise Crash(target, mode, data) from error
        longest = max(longest, time.perf_counter() - start)
        if slowest is not None and longest > slowest:
            raise Crash(target, mode, data)
        if kept:
            accepted += 1
            if len(data) < 1 << 16 and len(corpus) < 256:
                corpus.append(data)
            elif len(data) < 1 << 16:
                corpus[fixed + choose.randrange(256 - fixed)] = data
    return accepted, longest


class Crash(Exception):
    """An input that ended in something else than acceptance or a ``HelloError``."""

    def __init__(self, target, mode, data):
        super().__init__(f"{target} {mode}: {len(data)} bytes {data[:200]!r}")
        self.data = data
