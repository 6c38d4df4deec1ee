"""``python -m hellofmt``: the command line ``hello``."""

from __future__ import annotations

from hellofmt_cli.main import main

if __name__ == "__main__":
    main()
