"""A data set whose worker meets a fault at one row; importable by workers that are spawned."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from torch.utils.data import get_worker_info

from hellofmt.loading import HelloDataset


class FaultyDataset(HelloDataset):
    """Whole images; the worker that is asked for ``row`` notes the time and fails."""

    def __init__(self, source, *, fault, row, note):
        super().__init__(source, labels="none", views=None, cache=0)
        self.fault, self.row, self.note = fault, row, str(note)

    def __getitems__(self, indices):
        if self.row in indices and get_worker_info() is not None:
            Path(self.note).write_text(str(time.time()), encoding="ascii")
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.fault == "exit":
                os._exit(0)
            elif self.fault == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif self.fault == "slow":
                time.sleep(1.0)
            elif self.fault == "missing":
                Path(self.note).with_name("absent").read_text(encoding="ascii")
        # The exception comes from the archive, which is damaged there.
        return super().__getitems__(indices)
