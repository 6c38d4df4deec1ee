"""Run benchmarks cell by cell: one measurement, one JSON file; a run can be killed anywhere.

A cell has a name, the settings that determine its result, the cells it needs, and a function. Its
file name contains the name and a digest of settings and needs, so a changed setting means another
file and nothing stale is ever read. Workers claim cells by an exclusive lock that names a process;
the lock of a dead process is broken. A cell that fails is recorded with its error, and so is every
cell that needs it, so every gap in a table is explained.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_WAIT_SECONDS = 1.0
PLAN = "plan.txt"

# Tensors of a training step are tens of megabytes: glibc maps and unmaps each of them, and a page
# fault per 4 KiB costs more than the arithmetic. Measured here: 408 to 223 ms a step.
MALLOC = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        name: path-like; the first part is the data set.
        settings: everything except the needs that determines the result; JSON.
        make: maps the documents of the needs, by name, to the result; JSON.
        needs: names of cells that must be finished first.
        order: cells with lower numbers are tried first, needs permitting.
    """

    name: str
    settings: Mapping[str, Any]
    make: Callable[[Mapping[str, dict[str, Any]]], dict[str, Any]]
    needs: tuple[str, ...] = ()
    order: int = 0


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return versions and device, for every result file."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "torchvision", "hellofmt")},
        "device": processor(),
        "cores": os.cpu_count(),
    }
    if device != "cpu":
        import torch

        facts["device"] = torch.cuda.get_device_name()
    return facts


def processor() -> str:
    """Return the processor's name and bfloat16 instructions: AMX decides how long a step takes."""
    import torch

    can = torch.cpu.get_capabilities()
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
    units = [name for key, name in known.items() if can.get(key)]
    has = f"with {' and '.join(units)}" if units else "without bfloat16 arithmetic"
    return f"{can.get('cpu_name', 'cpu')} {has}"


@dataclass
class Cells:
    """The cells of a run and the folder of their files."""

    folder: Path
    cells: Sequence[Cell]
    machine: Mapping[str, Any] = field(default_factory=machine)
    _keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name every cell's file, needs first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for cell in self.cells:
            if cell.name in self._keys:
                raise ValueError(f"duplicate cell `{cell.name}`")
            parts = [cell.name, cell.settings, [self._keys[name] for name in cell.needs]]
            text = json.dumps(parts, sort_keys=True)
            self._keys[cell.name] = hashlib.sha256(text.encode()).hexdigest()[:12]
        # For the report, which says what was not run.
        (self.folder / PLAN).write_text("".join(f"{cell.name}\n" for cell in self.cells))

    def path(self, name: str) -> Path:
        """Return the file of a cell."""
        return self.folder / f"{name.replace('/', '--')}-{self._keys[name]}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """Read the document of a finished cell."""
        path = self.path(name)
        return json.loads(path.read_text()) if path.exists() else None

    def adopt(self, documents: Mapping[str, dict[str, Any]]) -> int:
        """Adopt finished cells with the same settings from a results file; return their number."""
        count = 0
        for name, key in self._keys.items():
            document = documents.get(name, {})
            if document.get("key") == key and "error" not in document:
                if not self.path(name).exists():
                    self.path(name).write_text(json.dumps(document, indent=1) + "\n")
                count += 1
        return count

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return the documents of all finished cells by name."""
        found = {cell.name: self.read(cell.name) for cell in self.cells}
        return {name: document for name, document in found.items() if document is not None}

    def work(self, say: Callable[[str], None]) -> None:
        """Run cells until none is left; several processes may do this at once."""
        while True:
            waiting = [cell for cell in self.cells if not self.path(cell.name).exists()]
            if not waiting:
                return
            waiting.sort(key=lambda cell: cell.order)
            if not any(self._try(cell, say) for cell in waiting):
                time.sleep(_WAIT_SECONDS)

    def _try(self, cell: Cell, say: Callable[[str], None]) -> bool:
        documents = {name: self.read(name) for name in cell.needs}
        if any(document is None for document in documents.values()):
            return False
        lock = self.path(cell.name).with_suffix(".lock")
        if not _claimed(lock):
            return False
        try:
            if self.path(cell.name).exists():
                return True
            failed = [name for name, document in documents.items() if "error" in document]
            start = time.monotonic()
            if failed:
                result: dict[str, Any] = {"error": f"needs {failed[0]}, which failed"}
            else:
                try:
                    result = cell.make(documents)
                except Exception as error:
                    # A failure is a result: the table says so, and the run goes on.
                    traceback.print_exc()
                    result = {"error": f"{type(error).__name__}: {error}"}
            document = {
                "cell": cell.name,
                "key": self._keys[cell.name],
                **result,
                "settings": cell.settings,
                "machine": self.machine,
                "seconds": round(time.monotonic() - start, 2),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
            }
            temporary = self.path(cell.name).with_suffix(".tmp")
            temporary.write_text(json.dumps(document, indent=1) + "\n")
            temporary.replace(self.path(cell.name))
            left = sum(not self.path(other.name).exists() for other in self.cells)
            say(
                f"{time.strftime('%H:%M:%S')} {document['seconds']:7.1f} s  {left:3d} left  "
                f"{cell.name}  {_short(result)}"
            )
        finally:
            lock.unlink(missing_ok=True)
        return True


def _short(result: Mapping[str, Any]) -> str:
    numbers = {k: v for k, v in result.items() if isinstance(v, int | float | str)}
    return json.dumps(numbers)[:160]


def _claimed(lock: Path) -> bool:
    """Try to take the lock, breaking that of a dead process first; tell whether it is ours."""
    try:
        owner = int(lock.read_text() or 0)
        if owner and not Path(f"/proc/{owner}").exists():
            lock.unlink(missing_ok=True)
    except (FileNotFoundError, ValueError):
        pass
    temporary = lock.with_suffix(f".{os.getpid()}")
    temporary.write_text(str(os.getpid()))
    try:
        os.link(temporary, lock)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def run_workers(command: Sequence[str], jobs: int) -> int:
    """Run ``jobs`` copies of a command with one thread each; return the largest exit status."""
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    environment = {**os.environ, **MALLOC, **threads}
    # The command is this program itself.
    workers = [subprocess.Popen(command, env=environment) for _ in range(jobs)]  # noqa: S603
    try:
        return max(worker.wait() for worker in workers)
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        sys.exit(130)
