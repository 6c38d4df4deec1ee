"""Fuzz the reader: ``run.py [--engine atheris|plain] [--runs N] [TARGET [MODE]]``.

Without a target all nine cells run one after another, each in a process of its own. Prints one
line per cell with executions per second; a crash ends with exit 1 and its input in ``--crashes``.
``--engine auto`` takes atheris where it is installed: guided by coverage, it finds more per run.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = ("container", "manifest", "tensors", "index", "labels")
MODES = ("raw", "resigned")
sys.path.insert(0, str(HERE))


def plain(target, mode, runs, crashes):
    from plain import Crash, fuzz

    start = time.perf_counter()
    try:
        accepted, longest = fuzz(target, mode, runs, slowest=1.0)
    except Crash as crash:
        path = crashes / f"{target}-{mode}"
        path.write_bytes(crash.data)
        sys.stdout.write(f"crash: {path}\n")
        raise
    return time.perf_counter() - start, f"{accepted} accepted, longest {longest * 1000:.0f} ms"


def guided(target, mode, runs, crashes):
    """Never returns: libFuzzer ends the process."""
    import atheris

    # Whatever is imported before this block would not be seen by the fuzzer.

    with atheris.instrument_imports(include=["hellofmt"]):
        import targets

    corpus = Path(tempfile.mkdtemp(prefix="hello-fuzz-"))
    for i, data in enumerate(targets.seeds(target)):
        (corpus / f"seed-{i}").write_bytes(data)
    words = corpus.parent / f"{corpus.name}.dict"
    escaped = ("".join(f"\\x{byte:02x}" for byte in token) for token in targets.TOKENS)
    words.write_text("".join(f'"{token}"\n' for token in escaped), encoding="ascii")
    options = [
        f"-runs={runs}",
        f"-dict={words}",
        f"-artifact_prefix={crashes}/{target}-{mode}-",
        *("-max_len=32768", "-timeout=5", "-rss_limit_mb=256", "-print_final_stats=1"),
        *("-verbosity=0", "-seed=1", str(corpus)),
    ]

    def test_one_input(data):
        targets.run_one(target, mode, data)

    atheris.Setup([sys.argv[0], *options], test_one_input)
    atheris.Fuzz()


def cell(target, mode, arguments):
    """One target and mode in a process of its own; its line of the table."""
    command = [sys.executable, __file__, "--one", "--engine", arguments.engine]
    command += ["--runs", str(arguments.runs), "--crashes", str(arguments.crashes), target, mode]
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 (this very program)
        command, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        return False
    said = [line for line in (done.stdout + done.stderr).splitlines() if "peak_rss_mb" in line]
    note = f", peak {said[-1].split()[-1]} MiB" if said else ""
    sys.stdout.write(
        f"{target} {mode}: {arguments.runs} runs in {seconds:.0f} s, "
        f"{arguments.runs / seconds:.0f}/s, {arguments.engine}{note}\n"
    )
    sys.stdout.flush()
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("mode", nargs="?", choices=MODES)
    parser.add_argument("--runs", type=int, default=50_000)
    parser.add_argument("--engine", choices=("auto", "atheris", "plain"), default="auto")
    parser.add_argument("--crashes", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine == "auto":
        found = importlib.util.find_spec("atheris")
        arguments.engine = "atheris" if found else "plain"
    arguments.crashes.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        engine = guided if arguments.engine == "atheris" else plain
        seconds, note = engine(arguments.target, arguments.mode, arguments.runs, arguments.crashes)
        sys.stdout.write(f"{seconds:.1f} s, {note}\n")
        return
    chosen = [
        (target, mode)
        for target in TARGETS
        for mode in MODES
        if arguments.target in (None, target) and arguments.mode in (None, mode)
        # An input of the fifth target is no file but a list of changes to one.
        if (target, mode) != ("labels", "raw")
    ]
    # All of them, whatever the first ones found.
    passed = [cell(target, mode, arguments) for target, mode in chosen]
    if not all(passed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
