import sys
from multiprocessing.util import get_temp_dir

import torch

from hellofmt.runs.workers import made


def test_a_worker_that_loses_its_parent_prints_no_traceback():
    def is_loud(_key):
        return torch.tensor(sys.excepthook is sys.__excepthook__)

    assert [bool(each) for each in made(is_loud, [0], workers=0)] == [True]
    assert [bool(each) for each in made(is_loud, [0], workers=1)] == [False]


def test_sockets_of_workers_lie_where_this_process_removes_them():
    def name(_key):
        return torch.tensor(list(get_temp_dir().encode()))

    (found,) = made(name, [0], workers=1)
    assert bytes(found.tolist()).decode() == get_temp_dir()
