"""A hostile file makes the reader import, run, start, connect and write nothing."""

import json
import subprocess
import sys

from tracing import HERE
from zoo import VALID, ZOO


def seen(warm, files):
    command = [sys.executable, HERE / "audited.py", *warm, "--", *files]
    done = subprocess.run(  # noqa: S603 (our own program)
        command, capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(done.stdout)


def test_nothing_is_run_for_any_hostile_file(tmp_path):
    warm = []
    # Refused ones too: the way of an error may import what success does not.
    for name, make in VALID.items():
        warm.append(tmp_path / f"{name}.valid")
        warm[-1].write_bytes(make())
    warm += [
        ZOO[name].write(tmp_path / f"{name}.warm")
        for name in (
            *("json_nan", "tensor_missing", "zstd_trailing_byte", "png_data_short"),
            # Escaped in the message, and of a newer version.
            *("zero_block_first", "newer_version_with_more"),
            # The first record that is read evaluates its types.
            "record_empty_object",
        )
    ]
    files = [file.write(tmp_path / f"{name}.hello") for name, file in ZOO.items()]
    assert seen(warm, files) == []


def test_the_hook_sees_what_it_looks_for(tmp_path):
    path = tmp_path / "valid.hello"
    path.write_bytes(VALID["images"]())
    # Without a warm file the first reading imports, and the marker runs a command.
    events = {event for _, event, _ in seen([], [path, f"{path}!run"])}
    assert {"import", "exec", "os.system"} <= events
