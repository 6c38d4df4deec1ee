import sys

import torch

from hellofmt.runs.workers import made


def test_a_worker_that_loses_its_parent_prints_no_traceback():
    def is_loud(_key):
        return torch.tensor(sys.excepthook is sys.__excepthook__)

    assert [bool(each) for each in made(is_loud, [0], workers=0)] == [True]
    assert [bool(each) for each in made(is_loud, [0], workers=1)] == [False]
