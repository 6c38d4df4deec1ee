"""The entry script's one call, so that Ctrl-C during the first imports is no traceback."""

import signal
import sys


def run() -> None:
    """Run ``hello`` with the arguments of the process and exit."""
    try:
        from hellofmt_cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(128 + signal.SIGINT)
    main()
