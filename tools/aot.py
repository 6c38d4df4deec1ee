"""Compile every shipped kernel configuration without a GPU and check it against a budget.

``make aot`` plans launches exactly as the operators do, on tensors without memory, compiles them
for sm_80 and sm_90, and reads the machine code: registers per thread, spills to local memory,
shared memory, tensor-core instructions, 128-bit stores. A kernel that starts to spill or loses its
tensor-core instructions still computes the right numbers, only slowly, so no other test would
notice. ``aot_budget_3.9.json`` in this folder is the committed result of Triton 3.9; the two newest
versions have one. ``--update`` rewrites the budget of the installed Triton, and a person reviews
the diff. For other versions of Triton only the essentials are checked: no spills, and tensor cores
where a kernel multiplies matrices.

Specialisation follows the arguments, as in Triton's launcher: pointers and integers divisible by 16
are marked, None and an integer 1 become constants. Otherwise the measured kernel would differ from
the one that runs. Strides and sizes are those of common shapes; a class count of 1000 represents
counts that 16 does not divide.
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

from hellofmt_kernels.labels import fused as labels
from hellofmt_kernels.labels.reference import LabelOptions
from hellofmt_kernels.tiles import table
from hellofmt_kernels.views import fused as views
from hellofmt_kernels.views.reference import ViewForm
from hellofmt_kernels.views.row import VIEW_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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

Capability = tuple[int, int]

CAPABILITIES: tuple[Capability, ...] = ((8, 0), (9, 0))

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Configuration:
    """One named launch that the package ships.

    Attributes:
        name: kernel, dtype, shape and architecture; the key of the budget.
        launch: the launch, planned on tensors without memory.
        capability: CUDA compute capability to compile for.
        is_gemm: whether it must use tensor cores, on sm_90 those of whole warp groups.
    """

    name: str
    launch: Launch
    capability: tuple[int, int]
    is_gemm: bool


@dataclass(frozen=True)
class Compiled:
    """Numbers from the machine code of one configuration.

    Attributes:
        registers: registers per thread.
        spills: instructions that read or write local memory.
        shared_bytes: shared memory per program.
        wgmma: tensor-core instructions of a warp group (Hopper).
        mma: tensor-core instructions of a warp.
        wide_stores: global stores of 128 bits.
        stores: all global stores.
        instructions: all instructions.
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
    """Derive types, constants and divisibility of a launch as Triton's launcher does."""
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
        elif value is None or value == 1:
            signature[name], constants[at] = "constexpr", value
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
            # Runs Triton's binaries on a file that we have just written.
            subprocess.run(  # noqa: S603
                [_tool(tool), *flags, str(path)], check=True, capture_output=True, text=True
            ).stdout
            for tool, flags in (("cuobjdump", ["-res-usage"]), ("nvdisasm", ["-c"]))
        )
    return usage, code


def compile_launch(launch: Launch, capability: tuple[int, int]) -> Compiled:
    """Compile a launch for an architecture, without a device or a driver.

    Args:
        launch: a launch planned on tensors of any device, including ``"meta"``.
        capability: CUDA compute capability.

    Returns:
        Numbers from the machine code.
    """
    signature, constants, attributes = _signature(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    usage, code = _disassemble(compiled.asm["cubin"])
    match = re.search(r"REG:(\d+)", usage)
    if match is None:
        msg = f"cuobjdump: no register count in {usage!r}"
        raise ValueError(msg)
    opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.M)

    def count(pattern: str) -> int:
        return sum(re.match(pattern, opcode) is not None for opcode in opcodes)

    return Compiled(
        registers=int(match[1]),
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
    shape: tuple[int, int, int], dtype: torch.dtype, options: LabelOptions, capability: Capability
) -> list[Launch]:
    n, d, c = shape
    x, weight = _empty(n, d, dtype=dtype), _empty(c, d, dtype=dtype)
    tile = table().labels(n, c, dtype.itemsize, capability)
    return labels.plan(x, weight, _empty(c, dtype=torch.float32), options, tile)[1]


def _labels(capability: Capability) -> Iterator[Configuration]:
    half, full = torch.float16, torch.float32
    # ((N, D, C), dtype of the operands, dtype of the result, softmax): what the tables distinguish.
    # The last three serve a labeler in half precision: its labels are float32.
    cases = (
        ((1024, 768, 10), half, half, True),
        ((1024, 768, 100), half, half, True),
        ((1024, 768, 200), half, half, True),
        ((1024, 768, 1000), half, half, True),
        ((1024, 768, 1000), torch.bfloat16, torch.bfloat16, True),
        ((64, 768, 1000), half, half, True),
        ((1024, 768, 21841), half, half, True),
        ((1024, 768, 1000), half, half, False),
        ((1024, 768, 100), full, full, True),
        ((1024, 768, 200), full, full, True),
        ((1024, 768, 1000), full, full, True),
        ((1024, 768, 10), half, full, True),
        ((1024, 768, 1000), half, full, True),
        ((1024, 768, 21841), half, full, True),
    )
    for shape, dtype, out_dtype, is_softmax in cases:
        options = LabelOptions(100.0, 2.0, out_dtype, is_softmax)
        launches = _label_launches(shape, dtype, options, capability)
        dtypes = "-".join(dict.fromkeys(map(_short, (dtype, out_dtype))))
        size = "x".join(map(str, shape))
        what = "labels" if is_softmax else "logits"
        yield _configuration(f"{what} {dtypes} {size}", launches[0], capability, is_gemm=True)
        # Only the grid of the second launch depends on the rows, so one count is enough.
        for launch in launches[1:] if shape[0] == 1024 else ():
            yield _configuration(f"normalise {dtypes} {size}", launch, capability)


def _views(capability: Capability) -> Iterator[Configuration]:
    half, full = torch.float16, torch.float32
    # (stored side, S, (dtype, channels_last) of each output). Two taps per axis are one kernel,
    # with antialiasing of images no larger than S or without it. `HelloLoader` draws pairs:
    # float32 for a student, and the input of a transformer or a ResNet, or plain views.
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
        launch = views.plan(
            _empty(1000, stored, stored, 3, dtype=torch.uint8),
            _empty(1024, VIEW_COLUMNS, dtype=torch.int32),
            [form.empty(1024, size, "meta") for form in forms],
            True,
            forms,
        )
        yield _configuration(f"views {dtypes} {stored}->{size} {layouts}", launch, capability)


def _configuration(
    name: str, launch: Launch, capability: Capability, *, is_gemm: bool = False
) -> Configuration:
    name = f"{name} sm_{capability[0]}{capability[1]}"
    return Configuration(name, launch, capability, is_gemm)


def configurations() -> list[Configuration]:
    """List every kernel configuration in the tables of `config`, for each architecture.

    Returns:
        The configurations; names are unique.
    """
    return [
        one for capability in CAPABILITIES for kind in (_labels, _views) for one in kind(capability)
    ]


def _budget_path() -> Path:
    minor = ".".join(triton.__version__.split(".")[:2])
    return Path(__file__).with_name(f"aot_budget_{minor}.json")


def read_budget() -> dict[str, dict[str, int]] | None:
    """Read the committed budget of the installed Triton.

    Returns:
        Numbers of `Compiled` by configuration name; None if this Triton has no budget.
    """
    path = _budget_path()
    return json.loads(path.read_text(encoding="utf-8"))["configurations"] if path.exists() else None


def problems(
    configuration: Configuration, compiled: Compiled, budget: dict[str, dict[str, int]] | None
) -> list[str]:
    """List where machine code is worse than the budget or lacks the essentials.

    Registers may rise by 8: the allocator rounds to 8, and compiler versions differ by a few.
    Instructions may rise by a quarter.

    Args:
        configuration: the compiled configuration.
        compiled: numbers from its machine code.
        budget: the committed budget. Without one (None) a kernel must only not spill, and use
            tensor cores if it multiplies matrices.

    Returns:
        One line per problem.
    """
    name = configuration.name
    lines: list[str] = []
    if compiled.spills:
        lines.append(f"{name}: spills {compiled.spills}; expected 0")
    if configuration.is_gemm and not compiled.wgmma + compiled.mma:
        lines.append(f"{name}: no tensor-core instruction")
    if budget is None:
        return lines
    allowed = budget.get(name)
    if allowed is None:
        return [*lines, f"{name}: not in the budget; run with --update and review"]
    limits = (
        ("registers", compiled.registers, allowed["registers"] + 8),
        ("shared_bytes", compiled.shared_bytes, allowed["shared_bytes"]),
        ("instructions", compiled.instructions, allowed["instructions"] * 5 // 4),
    )
    lines += [
        f"{name}: {what} {value}; expected at most {limit}"
        for what, value, limit in limits
        if value > limit
    ]
    if compiled.wide_stores < allowed["wide_stores"]:
        lines.append(
            f"{name}: {compiled.wide_stores} stores of 128 bits; "
            f"expected at least {allowed['wide_stores']}"
        )
    if configuration.is_gemm and allowed["wgmma"] and not compiled.wgmma:
        lines.append(f"{name}: no wgmma instruction; expected {allowed['wgmma']}")
    return lines


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
        arguments: command-line arguments; ``--update`` rewrites the budget, ``--only TEXT`` selects
            names that contain TEXT.

    Returns:
        Exit code: 0, or 1 if anything is worse than the budget.
    """
    parser = argparse.ArgumentParser(prog="python tools/aot.py", description=__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite the committed budget")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="compile only names that contain TEXT"
    )
    options = parser.parse_args(arguments)
    chosen = [one for one in configurations() if options.only in one.name]
    if not chosen:
        parser.error(f"--only: no configuration has `{options.only}` in its name")
    compiled = [compile_launch(one.launch, one.capability) for one in chosen]
    names = [one.name for one in chosen]
    sys.stdout.write(_table(list(zip(names, compiled, strict=True))) + "\n")
    budget = read_budget()
    if options.update:
        numbers = {name: asdict(one) for name, one in zip(names, compiled, strict=True)}
        merged = dict(sorted((((budget or {}) if options.only else {}) | numbers).items()))
        document = {"triton": triton.__version__, "configurations": merged}
        _budget_path().write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return 0
    if budget is None:
        sys.stderr.write(
            f"Triton {triton.__version__} has no budget: only spills and tensor cores are checked\n"
        )
    lines = [
        line
        for one, result in zip(chosen, compiled, strict=True)
        for line in problems(one, result, budget)
    ]
    for line in lines:
        sys.stderr.write(line + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
