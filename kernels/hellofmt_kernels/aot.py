"""Compile every shipped kernel configuration without a GPU and hold it to a budget.

``python -m hellofmt_kernels.aot`` plans launches exactly as the operators do, on tensors without
memory, compiles them for sm_80 and sm_90 and reads the machine code: registers per thread, spills
to local memory, shared memory, tensor-core instructions, 128-bit stores. A kernel that starts to
spill or to lose its tensor-core instructions still gives right numbers, only slowly, so no other
test would notice. ``aot_budget.json`` beside this module is the committed result of the newest
Triton, ``aot_budget_3.6.json`` and so on those of earlier ones; ``--update`` rewrites the one of
the installed Triton, and the difference is for a person to review.

What Triton specialises on is taken from the arguments themselves, as its launcher does: pointers
and integers that 16 divides are marked, and an integer that is 1 becomes a constant. Otherwise
another kernel than the one that runs would be measured. Strides and sizes are those of common
shapes; a class count of 1000 stands for those that 16 does not divide.

Run times are not measured here, nor can they be: they need a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hellofmt_kernels import config, soft_label_kl_triton, soft_labels_triton, views_triton
from hellofmt_kernels.view_form import ViewForm
from hellofmt_kernels.view_row import VIEW_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hellofmt_kernels.launch import Launch

__all__ = [
    "Compiled",
    "Configuration",
    "compile_launch",
    "configurations",
    "main",
    "problems",
    "read_budget",
]

CAPABILITIES = ((8, 0), (9, 0))

# Versions that allocate registers and shared memory so differently that they have their own budget.
_OWN_BUDGET = ("3.6", "3.7", "3.8")

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Configuration:
    """One launch that the package ships, by name.

    Attributes:
        name: kernel, dtype, shape and architecture; the key of the budget.
        launch: planned on tensors without memory.
        capability: CUDA compute capability to compile for.
        is_gemm: must use tensor cores, on sm_90 those of whole warp groups.
    """

    name: str
    launch: Launch
    capability: tuple[int, int]
    is_gemm: bool


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one configuration says.

    Attributes:
        registers: per thread.
        spills: instructions that read or write local memory.
        shared_bytes: shared memory per program.
        wgmma: tensor-core instructions of a warp group (Hopper).
        mma: tensor-core instructions of a warp.
        wide_stores: global stores of 128 bits.
        stores: all global stores.
        instructions: in total.
    """

    registers: int
    spills: int
    shared_bytes: int
    wgmma: int
    mma: int
    wide_stores: int
    stores: int
    instructions: int


def _signature(
    launch: Launch,
) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], list[list[Any]]]]:
    """Types, constants and divisibility of a launch, as Triton's launcher derives them."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for position, name in enumerate(launch.kernel.arg_names):
        at = (position,)
        if name in launch.constants:
            signature[name], constants[at] = "constexpr", launch.constants[name]
            continue
        value = launch.arguments[name]
        is_aligned = False
        if isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            is_aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], constants[at] = "constexpr", 1
        else:
            signature[name] = "i32"
            is_aligned = value % 16 == 0
        if is_aligned:
            attributes[at] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _tool(name: str) -> str:
    return str(resources.files("triton") / "backends" / "nvidia" / "bin" / name)


def _disassemble(cubin: bytes) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            # Triton's own binaries on a file we have just written.
            subprocess.run(  # noqa: S603
                [_tool(tool), *flags, str(path)], check=True, capture_output=True, text=True
            ).stdout
            for tool, flags in (("cuobjdump", ["-res-usage"]), ("nvdisasm", ["-c"]))
        )
    return usage, code


def compile_launch(launch: Launch, capability: tuple[int, int]) -> Compiled:
    """Compile a launch for an architecture, without a device or a driver.

    Args:
        launch: planned, on tensors of any device, also ``"meta"``.
        capability: CUDA compute capability.

    Returns:
        What the machine code says.
    """
    signature, constants, attributes = _signature(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    usage, code = _disassemble(compiled.asm["cubin"])
    found = re.search(r"REG:(\d+)", usage)
    if found is None:
        msg = f"cuobjdump: no register count in {usage!r}"
        raise ValueError(msg)
    opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.M)

    def count(pattern: str) -> int:
        return sum(re.match(pattern, opcode) is not None for opcode in opcodes)

    return Compiled(
        registers=int(found[1]),
        spills=count(r"(LDL|STL)\b"),
        shared_bytes=int(compiled.metadata.shared),
        wgmma=count(r"[HQI]?GMMA\b|HGMMA\b"),
        mma=count(r"HMMA\b"),
        wide_stores=count(r"STG(\.\w+)*\.128\b"),
        stores=count(r"STG\b"),
        instructions=len(opcodes),
    )


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _short(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def _label_launches(
    n: int,
    d: int,
    c: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    rank: int,
    is_soft: bool,
    out_dtype: torch.dtype | None = None,
) -> list[Launch]:
    out = _empty(n, config.padded_row(c, "cuda"), dtype=out_dtype or dtype)
    low_rank = None
    if rank:
        low_rank = (_empty(rank, d, dtype=dtype), _empty(c, rank, dtype=dtype), 1.0)
    return soft_labels_triton.plan(
        _empty(n, d, dtype=dtype),
        _empty(c, d, dtype=dtype),
        _empty(c, dtype=torch.float32),
        100.0,
        2.0,
        out,
        is_soft,
        low_rank,
        capability=capability,
    )


def _labels() -> Iterable[tuple[str, bool, Callable[[tuple[int, int]], Launch]]]:
    half, full = torch.float16, torch.float32
    # (N, D, C, dtype, rank, softmax): what the tables distinguish.
    shapes = (
        (1024, 768, 10, half, 0, True),
        (1024, 768, 100, half, 0, True),
        (1024, 768, 200, half, 0, True),
        (1024, 768, 1000, half, 0, True),
        (1024, 768, 1000, torch.bfloat16, 0, True),
        (64, 768, 1000, half, 0, True),
        (1024, 768, 21841, half, 0, True),
        (1024, 768, 1000, half, 16, True),
        (1024, 768, 1000, half, 64, True),
        (1024, 768, 1000, half, 0, False),
        (1024, 768, 100, full, 0, True),
        (1024, 768, 200, full, 0, True),
        (1024, 768, 1000, full, 0, True),
    )
    for n, d, c, dtype, rank, is_soft in shapes:
        name = f"{'labels' if is_soft else 'logits'} {_short(dtype)} {n}x{d}x{c}"
        name += f" r{rank}" if rank else ""

        def planned(
            capability: tuple[int, int],
            shape: tuple[int, int, int] = (n, d, c),
            dtype: torch.dtype = dtype,
            rank: int = rank,
            is_soft: bool = is_soft,
            at: int = 0,
        ) -> Launch:
            return _label_launches(*shape, dtype, capability, rank, is_soft)[at]

        yield name, True, planned
    for c in (1000, 21841):

        def normalise(capability: tuple[int, int], c: int = c) -> Launch:
            return _label_launches(1024, 768, c, half, capability, 0, True)[1]

        yield f"normalise fp16 1024x{c}", False, normalise
    # What a labeler in half precision hands out: labels in float32.
    for c in (10, 1000, 21841):
        for at, name in enumerate(("labels", "normalise") if c > 256 else ("labels",)):

            def wide(capability: tuple[int, int], c: int = c, at: int = at) -> Launch:
                return _label_launches(1024, 768, c, half, capability, 0, True, full)[at]

            yield f"{name} fp16-fp32 1024x768x{c}", at == 0, wide


def _losses() -> Iterable[tuple[str, bool, Callable[[tuple[int, int]], Launch]]]:
    for c in (10, 1000, 8192, 21841):

        def planned(capability: tuple[int, int], c: int = c) -> Launch:
            half = torch.float16
            return soft_label_kl_triton.plan(
                _empty(1024, 768, dtype=half),
                _empty(c, 768, dtype=half),
                None,
                100.0,
                2.0,
                _empty(1024, c, dtype=half),
                2.0,
                _empty(1024, dtype=torch.float32),
                _empty(1024, config.padded_row(c, "cuda"), dtype=half),
                capability=capability,
            )[1]

        yield f"loss fp16 1024x{c}", False, planned


def _view_launch(stored: int, size: int, forms: Sequence[ViewForm]) -> Launch:
    return views_triton.plan(
        _empty(1000, stored, stored, 3, dtype=torch.uint8),
        _empty(1024, VIEW_COLUMNS, dtype=torch.int32),
        [form.empty(1024, size, "meta") for form in forms],
        True,
        forms,
    )


def _views() -> Iterable[tuple[str, bool, Callable[[tuple[int, int]], Launch]]]:
    half, full = torch.float16, torch.float32
    # (stored side, S, (dtype, channels_last) of each output). Two taps per axis are one kernel,
    # with antialiasing of images no larger than S or without it. Pairs are what `HelloLoader` asks
    # for: a student's float32 beside what a transformer or a ResNet takes, or beside plain views.
    shapes = (
        (64, 64, ((half, False),)),
        (224, 224, ((half, False),)),
        (224, 224, ((half, True),)),
        (224, 224, ((full, False),)),
        (256, 224, ((half, False),)),
        (448, 224, ((half, False),)),
        (224, 224, ((full, False), (half, False))),
        (224, 224, ((full, False), (half, True))),
        (224, 224, ((full, True), (half, True))),
        (224, 224, ((full, False), (full, False))),
        (256, 224, ((full, False), (half, False))),
        (448, 224, ((full, True), (half, True))),
    )
    for stored, size, outputs in shapes:
        forms = [
            ViewForm((0.5,) * 3, (0.25,) * 3, dtype, is_channels_last)
            for dtype, is_channels_last in outputs
        ]
        dtypes = "+".join(_short(form.dtype) for form in forms)
        layouts = "+".join("channels_last" if form.is_channels_last else "planar" for form in forms)
        name = f"views {dtypes} {stored}->{size} {layouts}"

        def planned(
            _: tuple[int, int],
            stored: int = stored,
            size: int = size,
            forms: Sequence[ViewForm] = tuple(forms),
        ) -> Launch:
            return _view_launch(stored, size, forms)

        yield name, False, planned


def configurations() -> list[Configuration]:
    """Every kernel configuration that the tables of `config` ship, for each architecture.

    Returns:
        With names that are unique.
    """
    return [
        Configuration(
            f"{name} sm_{capability[0]}{capability[1]}", plan(capability), capability, gemm
        )
        for name, gemm, plan in (*_labels(), *_losses(), *_views())
        for capability in CAPABILITIES
    ]


def _budget() -> str:
    """Name of the budget that the installed Triton is held to."""
    minor = ".".join(triton.__version__.split(".")[:2])
    return f"aot_budget_{minor}.json" if minor in _OWN_BUDGET else "aot_budget.json"


def read_budget() -> dict[str, dict[str, int]]:
    """The committed budget of the installed Triton.

    Returns:
        Numbers of `Compiled` by configuration name.
    """
    text = (resources.files("hellofmt_kernels") / _budget()).read_text(encoding="utf-8")
    return json.loads(text)["configurations"]


def problems(
    configuration: Configuration, compiled: Compiled, budget: dict[str, dict[str, int]]
) -> list[str]:
    """Where machine code is worse than the budget or than what every kernel must keep.

    Registers may rise by 8 before it counts: the allocator rounds to 8, and other compiler
    versions differ by a few. Instructions may rise by a quarter.

    Args:
        configuration: what was compiled.
        compiled: what came out.
        budget: the committed one.

    Returns:
        One line per problem.
    """
    found: list[str] = []
    name = configuration.name
    allowed = budget.get(name)
    if allowed is None:
        return [f"{name}: not in the budget; run with --update and review"]
    limits = (
        ("registers", compiled.registers, allowed["registers"] + 8),
        ("spills", compiled.spills, allowed["spills"]),
        ("shared_bytes", compiled.shared_bytes, allowed["shared_bytes"]),
        ("instructions", compiled.instructions, allowed["instructions"] * 5 // 4),
    )
    found += [
        f"{name}: {what} {value}; expected at most {limit}"
        for what, value, limit in limits
        if value > limit
    ]
    if compiled.wide_stores < allowed["wide_stores"]:
        found.append(
            f"{name}: {compiled.wide_stores} stores of 128 bits; "
            f"expected at least {allowed['wide_stores']}"
        )
    if configuration.is_gemm:
        for what in ("wgmma", "mma"):
            if allowed[what] and not getattr(compiled, what):
                found.append(f"{name}: no {what} instruction; expected {allowed[what]}")
    return found


def _table(rows: Sequence[tuple[str, Compiled]]) -> str:
    width = max(len(name) for name, _ in rows)
    columns = ("registers", "spills", "shared_bytes", "wgmma", "mma", "wide_stores", "stores")
    lines = [f"{'configuration':{width}}  {'  '.join(columns)}  instructions"]
    for name, compiled in rows:
        numbers = "  ".join(f"{getattr(compiled, column):{len(column)}}" for column in columns)
        lines.append(f"{name:{width}}  {numbers}  {compiled.instructions:12}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile everything, print a table on stdout and problems on stderr.

    Args:
        arguments: of the command line; ``--update`` rewrites the budget, ``--only TEXT`` limits to
            names that contain it.

    Returns:
        Exit code: 0, or 1 if something is worse than the budget.
    """
    parser = argparse.ArgumentParser(prog="python -m hellofmt_kernels.aot", description=__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite the committed budget")
    parser.add_argument("--only", default="", metavar="TEXT", help="names that contain TEXT")
    options = parser.parse_args(arguments)
    chosen = [one for one in configurations() if options.only in one.name]
    if not chosen:
        parser.error(f"--only: no configuration has `{options.only}` in its name")
    compiled = [compile_launch(one.launch, one.capability) for one in chosen]
    names = [one.name for one in chosen]
    sys.stdout.write(_table(list(zip(names, compiled, strict=True))) + "\n")
    if options.update:
        numbers = {name: asdict(one) for name, one in zip(names, compiled, strict=True)}
        merged = dict(sorted(((read_budget() if options.only else {}) | numbers).items()))
        budget = {"triton": triton.__version__, "configurations": merged}
        path = Path(__file__).with_name(_budget())
        path.write_text(json.dumps(budget, indent=1) + "\n", encoding="utf-8")
        return 0
    budget = read_budget()
    found = [
        line
        for one, result in zip(chosen, compiled, strict=True)
        for line in problems(one, result, budget)
    ]
    for line in found:
        sys.stderr.write(line + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
