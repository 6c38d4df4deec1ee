"""Looking at a file answers at once: no torch, no open_clip, proven in a process of its own."""

import os
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from hellofmt_cli.main import COMMANDS

HEAVY = ("torch", "torchvision", "open_clip", "timm", "triton", "webdataset", "PIL", "tqdm")

# A finder that is asked first sees every import, also one that would fail or is undone again.
WATCH = f"""
import sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            print("LOADED", name, file=sys.stderr)
            raise SystemExit(99)
sys.meta_path.insert(0, Watch())
"""


def run(code, *args, watch=WATCH):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", watch + code, *map(str, args)],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )


CLI = "from hellofmt_cli.main import hello\nhello(sys.argv[1:])"


def test_import_hellofmt():
    done = run("import hellofmt, hellofmt.archive, hellofmt.ledger, hellofmt.rng")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["inspect", "verify", "ls"])
def test_reading_commands(command, tiny_archive):
    done = run(CLI, command, tiny_archive)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_plan():
    done = run(CLI, "plan", "--dataset", "imagenet-22k", "--base", "ViT-B-16")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ViT-B-16" in done.stdout


def test_help_usage_errors_and_completion_of_every_command():
    # One process for all: what the first of them loads, none may load.
    code = """
import os
from hellofmt_cli.main import COMMANDS, hello
def tried(*words):
    try:
        hello(words)
    except SystemExit as end:
        return end.code
seen = [tried(*words) for c in ((), *([c] for c in COMMANDS)) for words in ([*c, "-h"], [*c, "-x"])]
os.environ["_HELLO_COMPLETE"] = "bash_complete"
for name in COMMANDS:
    os.environ |= {"COMP_WORDS": f"hello {name} --", "COMP_CWORD": "2"}
    try:
        hello(prog_name="hello")
    except SystemExit as end:
        seen.append(end.code)
print("SEEN", len(COMMANDS), seen)
"""
    done = run(code)
    assert "LOADED" not in done.stderr
    count = len(COMMANDS)
    assert f"SEEN {count} {[0, 2] * (count + 1) + [0] * count}" in done.stdout
    # Every command completed an option of its own.
    assert done.stdout.count("plain,--help") == count


def test_the_library_loads_other_libraries_when_it_needs_them():
    # A base, a network or a source brings its library; PIL takes no time, tqdm is torch's.
    later = {*HEAVY, "datasets", "sklearn", "sympy", "torch._dynamo", "transformers"}
    later -= {"torch", "PIL", "tqdm"}
    code = """
import hellofmt
names = [name for name in hellofmt.__all__ if hasattr(hellofmt, name)]
print(names == hellofmt.__all__, *sorted(set(sys.argv[1:]) & set(sys.modules)))
"""
    done = run(code, *sorted(later), watch="import sys\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "True\n"


@pytest.mark.parametrize("code", ["import torch", "import hellofmt\nhellofmt.Labeler"])
def test_the_check_can_fail(code):
    done = run(code)
    assert done.returncode == 99
    assert "LOADED" in done.stderr


def test_inspect_answers_at_once(tiny_archive, tmp_path):
    # Compiled in the first run, as an installed package is, wherever this process may not write it.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def used():
        usage = getrusage(RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(3):
        start = used()
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "hellofmt", "inspect", str(tiny_archive), "--json"],
            capture_output=True,
            timeout=60,
            check=False,
            env=environment,
        )
        times.append(used() - start)
        assert done.returncode == 0
    # Processor seconds, the best of three: a busy machine must not fail the suite, torch must.
    assert min(times) < 0.5, times


@pytest.fixture
def tiny_archive(tmp_path):
    """Two grey 4 x 4 pictures, written without a command."""
    import numpy as np

    from hellofmt.archive import encode_image
    from hellofmt.sources import pack_archive

    for label in range(2):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        pixels = np.full((4, 4), 100 * label, np.uint8)
        (folder / "a.png").write_bytes(encode_image(pixels, "png"))
    target = tmp_path / "tiny.hello"
    pack_archive(tmp_path / "images", target, layout="files")
    return target
