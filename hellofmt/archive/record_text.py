"""An archive's record in words, a line for each fact, for whoever shows it.

Lines are made from plain values, as they stand in the record; whoever prints them escapes them.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def record_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the archive was made and what was reached with it: a label and a text for each line."""
    functions: list[dict[str, Any]] = record.get("functions", [])
    rows: list[tuple[str, str]] = []
    for function in functions:
        mark = f" of {function['name']}" if len(functions) > 1 else ""
        rows += [(name + mark, text) for name, text in _function_rows(function)]
    if "images" in record:
        rows.append(("images chosen", _images(record["images"])))
    return rows + [("student", result_line(result)) for result in record.get("results", [])]


def _function_rows(function: Mapping[str, Any]) -> list[tuple[str, str]]:
    run, teacher = function["run"], function["teacher"]
    rows = [
        ("made by", run.get("command", "a program that called the library")),
        ("with", _with(run)),
        ("from", _source(function["source"])),
        ("teacher", _measured(teacher["measured"])),
    ]
    rows += [("network", _network(network)) for network in teacher.get("networks", [])]
    how = (
        f"{function['loss']}, {_count(function['steps'], 'step')} of {function['batch_size']:,}"
        f" views, rank {function['rank']} on {', '.join(function['targets'])}"
    )
    rows.append(("fitted", f"{how}; {_measured(function['measured'])}"))
    fidelity = f"agreement {function['agreement']} %, KL {function.get('kl', 'not finite')}"
    rows.append(("fidelity", f"{fidelity} on {function['views']:,} new views"))
    return rows


def _with(run: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in run["seeds"].items())
    return f"{versions} on {run['device']}; seeds: {seeds or 'none'}"


def _source(source: Mapping[str, Any]) -> str:
    low, high = source["per_class"]
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    number = _count(source["classes"], "class", "classes")
    return f"{source['name']}: {_count(source['images'], 'image')} of {number}, {each} each"


def _measured(measured: Mapping[str, Any]) -> str:
    return f"{measured['accuracy']} % of {measured['images']:,} {measured['of']}"


def _network(network: Mapping[str, Any]) -> str:
    parts = [f"{network.get('network', 'network')} from {network['origin']}"]
    if "step" in network:
        reached = f", {network['accuracy']} %" if "accuracy" in network else ""
        parts.append(f"step {network['step']:,}{reached}")
    if "trained" in network and "command" in network["trained"]:
        parts.append(f"trained by {network['trained']['command']}")
    if "chosen" in network:
        parts.append(f"{_count(network['chosen'], 'output')} of more")
    if "input" in network:
        rule = network["input"]
        size = f"{rule['size']} px {rule['interpolation']}" if "size" in rule else "as views are"
        mean, std = (" ".join(rule[key]) for key in ("mean", "std"))
        parts.append(f"input {size}, mean {mean}, std {std} ({rule['stated_by']})")
    return "; ".join([*parts, network["digest"]])


def _images(images: Mapping[str, Any]) -> str:
    codec = images["codec"] + (f" at quality {images['quality']}" if "quality" in images else "")
    crops = f"the best of {images['crops']} crops" if images["crops"] > 1 else "whole"
    among = f"of up to {images['candidates']:,} candidates by {images['chosen_by']}"
    parts = [f"{images['ipc']:,} per class {among}", crops]
    if images["factor"] > 1:
        parts.append(f"{images['factor']} x {images['factor']} to an image")
    if "refined" in images:
        before, after = images["refined"]
        parts.append(
            f"refined by {images['refined_by']} in {_count(images['refined_steps'], 'step')},"
            f" loss {before} to {after}"
        )
    return ", ".join([*parts, codec])


def spread(accuracy: Sequence[float]) -> str:
    """``41.2 ± 1.7 %``: mean and standard deviation over seeds, or the one that there is."""
    mean = statistics.fmean(accuracy)
    if len(accuracy) == 1:
        return f"{mean:.1f} %"
    return f"{mean:.1f} ± {statistics.stdev(accuracy):.1f} %"


def result_line(result: Mapping[str, Any]) -> str:
    """What a student reached, in one line."""
    what = result["student"]
    # The recipe of hard labels has their name.
    if result["recipe"] != result["labels"]:
        what += f", {result['recipe']}"
    if result["labels"] != "soft":
        what += f", {result['labels']} labels"
    if result.get("function", "default") != "default":
        what += f", labels of {result['function']}"
    if result["images"] != "archive":
        what += f", {result['images']} images"
    if "ipc" in result:
        what += f", {result['ipc']} per class"
    if "views_per_image" in result:
        what += f", {result['views_per_image']} views each"
    reached = spread([float(text) for text in result["accuracy"]])
    evaluated = result["evaluated"]
    return (
        f"{what}, {_count(result['steps'], 'step')} of {result['batch_size']:,} views: {reached}"
        f" with {_count(len(result['seeds']), 'seed')}, of {evaluated['images']:,} images of"
        f" {evaluated['name']}"
    )
