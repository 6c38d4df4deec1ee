"""``python -m hellofmt``: the command line ``hello``."""

from __future__ import annotations

from hellofmt_cli.entry import run

if __name__ == "__main__":
    run()
