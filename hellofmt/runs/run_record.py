"""What the record of an archive says about a run, without what is private.

No time, host, user or folder goes into an archive: the same run gives the same bytes, and a file
that is shared tells nothing about the machine that made it but its kind.
"""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

import torch

from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.format.record import Run, as_line
from hellofmt.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGES: Final = ("numpy", "open_clip_torch", "pillow", "timm", "torchvision")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_HUB: Final = re.compile(r"hf-hub:[\w.-]+/[\w.-]+")


def run_record(device: str | torch.device, seeds: Mapping[str, int], command: str = "") -> Run:
    """Describe a run that happens now, in this process; seeds by what they are for."""
    return Run(
        device=device_name(device),
        seeds=dict(seeds),
        versions=versions(),
        command=as_line(command, 4096) if command else UNSET,
    )


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, by name."""
    found = {
        "hellofmt": VERSION,
        "python": platform.python_version(),
        # With the build, `+cu130`, which its package leaves out.
        "torch": as_line(str(torch.__version__), 80),
    }
    for name in _PACKAGES:
        try:
            found[name] = as_line(version(name), 80)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def device_name(device: str | torch.device) -> str:
    """``cpu``, or what the maker of a GPU calls it."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def without_paths(text: str) -> str:
    """A word of a command line with every path in it reduced to its last part.

    A URL loses its server, user, query and folders. ``hf-hub:ORG/NAME`` is a name and stays.

    Example:
        >>> without_paths("resnet18=/home/me/runs/best.pth")
        'resnet18=best.pth'
        >>> without_paths("https://me:secret@host/a/b.tar?key=1")
        'b.tar'
    """
    if _HUB.fullmatch(text):
        return text
    text = _URL.sub(_last_of_url, text)
    return "".join(_last(part) for part in re.split(r"([=:])", text))


def _last_of_url(match: re.Match[str]) -> str:
    path = re.split(r"[?#]", match[0].partition("://")[2])[0]
    _, slash, rest = path.partition("/")
    return _last(rest) if slash and rest.strip("/") else "URL"


def _last(path: str) -> str:
    stripped = path.rstrip("/\\")
    return re.split(r"[/\\]", stripped)[-1] if stripped else path[:1]
