r"""Low-rank adapters of the PEFT library, read and written as data.

They are a directory with ``adapter_config.json`` and ``adapter_model.safetensors``. PEFT is not
imported: its configuration can name modules to import, and its older files are pickles.
The configuration is read by a closed schema. What changes the function and cannot be said as
``W0 + s B A`` is refused by name (DoRA, trained biases, saved modules, initialisations that change
the base); what has no effect on a trained adapter is passed over; any other key must be empty.
Patterns are regular expressions in PEFT; here only those made of names, ``\.``, ``\d+`` and one
``.*`` are taken, because a file must not choose how long a match takes.

PEFT wraps modules, we name parameters, and ``torch.nn.MultiheadAttention`` is where this differs:
PEFT (0.15.0 to 0.21.2 at least, huggingface/peft#3774) adds the delta of ``out_proj`` twice, in the
forward pass and when it merges. An adapter trained so expects the double, so reading doubles ``s``
of these tensors and writing halves them: labels here equal those of PEFT. Wrapping also leaves
modules without effect whose weights are used but whose ``forward`` is never called (the attention
pool of CLIP's ResNets, the attention of EVA); writing refuses these.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from hellofmt.archive.local_files import open_regular, temporary_path
from hellofmt.errors import UserInputError, printable, target_exists
from hellofmt.projector.lowrank import MAX_INNER, MAX_SCALE, Delta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hellofmt.projector.base import LoadedBase

__all__ = ["MhaFix", "read_peft", "write_peft"]

MhaFix = Literal["auto", "on", "off"]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

#: Last PEFT release in which the double ``out_proj`` delta was measured.
LAST_MEASURED = (0, 21, 2)

_CONFIG_BYTES = 1 << 20
_WEIGHTS_BYTES = 1 << 30
_TENSORS = 4096

# Initial values, where training happened, which modules were wrapped: nothing of it changes what a
# trained adapter computes.
_WITHOUT_EFFECT = frozenset(
    {
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
_READ = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "use_rslora",
    }
)
# Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights before training.
_INITIAL = (True, False, "gaussian", "eva", "orthogonal")
_WHOLE_MODELS = frozenset({"CLIP", "CustomTextCLIP", "CoCa"})

_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,256})\.lora_(A|B)\.weight", re.ASCII)
# Anchors, names, escaped points, digits, and at most one wildcard, which is counted apart.
_PATTERN = re.compile(r"\^?(?:[A-Za-z0-9_.|]|\\\.|\\d\+|\[0-9\]\+|\.\*)+\$?", re.ASCII)
_PATTERN_LENGTH = 256
_WILD_PATTERNS = 64


def _refuse(fact: str) -> UserInputError:
    return UserInputError.make("E_DATA", f"PEFT adapter: {fact}")


# Reading ------------------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _read_bytes(path: Path, limit: int) -> bytes:
    with os.fdopen(open_regular(path)[0], "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise _refuse(f"`{path.name}` is larger than {limit} bytes")
    return data


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(
            _read_bytes(path, _CONFIG_BYTES).decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise _refuse(f"`{CONFIG_NAME}` cannot be read: {printable(error)}") from error
    if not isinstance(config, dict):
        raise _refuse(f"`{CONFIG_NAME}` is not an object")
    config = cast("dict[str, Any]", config)
    for key in sorted(config.keys() - _READ - _WITHOUT_EFFECT):
        if config[key] not in (None, False, "", [], {}):
            raise _refuse(f"`{printable(key)}` is set; expected an adapter without it")
    if config.get("peft_type") != "LORA":
        raise _refuse(f"`peft_type` is {printable(config.get('peft_type'))}; expected LORA")
    if config.get("bias", "none") != "none":
        raise _refuse(f"`bias` is {printable(config['bias'])}; expected none")
    initial = config.get("init_lora_weights", True)
    if not isinstance(initial, (bool, str)) or initial not in _INITIAL:
        raise _refuse(
            f"`init_lora_weights` is {printable(initial)}, which changes the base weights; "
            "expected an adapter converted to a plain one"
        )
    for key in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(key, False), bool):
            raise _refuse(f"`{key}`: expected true or false, got {printable(config[key])}")
    _positive(config.get("r", 8), "r")
    _positive(config.get("lora_alpha", 8), "lora_alpha")
    for key in ("rank_pattern", "alpha_pattern"):
        _check_patterns(config.get(key) or {}, key)
    return config


def _positive(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise _refuse(f"`{key}`: expected a number from above 0 to 1e6, got {printable(value)}")
    return value


def _check_patterns(patterns: object, key: str) -> None:
    if not isinstance(patterns, dict) or len(cast("dict[str, Any]", patterns)) > _TENSORS:
        raise _refuse(f"`{key}`: expected an object of at most {_TENSORS} keys")
    wild = 0
    for pattern, value in cast("dict[str, Any]", patterns).items():
        _positive(value, key)
        wildcards = pattern.count(".*")
        wild += bool(wildcards)
        if len(pattern) > _PATTERN_LENGTH or wildcards > 1 or not _PATTERN.fullmatch(pattern):
            raise _refuse(
                f"`{key}` has the pattern `{printable(pattern)}`; expected names, `\\.`, `\\d+`, "
                "`|` and at most one `.*`"
            )
    if wild > _WILD_PATTERNS:
        raise _refuse(f"`{key}` has {wild} patterns with `.*`; expected at most {_WILD_PATTERNS}")


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches, by PEFT's rule (`get_pattern_key`)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _read_factors(path: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors A and B by the name of the module that PEFT wrapped."""
    try:
        tensors = safetensors.torch.load(_read_bytes(path, _WEIGHTS_BYTES))
    except (OSError, UserInputError):
        raise
    except Exception as error:
        raise _refuse(f"`{WEIGHTS_NAME}` cannot be read: {printable(error)}") from error
    if not 1 <= len(tensors) <= _TENSORS:
        raise _refuse(f"{len(tensors)} tensors; expected from 1 to {_TENSORS}")
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        match = _KEY.fullmatch(name)
        if match is None:
            raise _refuse(
                f"tensor `{printable(name)}` is none of LoRA's A and B; expected names such as "
                "`base_model.model.visual.<module>.lora_A.weight`"
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise _refuse(f"tensor `{printable(name)}` is not of finite floating values")
        factors.setdefault(match[1], {})[match[2]] = tensor.float()
    for module, pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise _refuse(f"`{module}` has only one of lora_A and lora_B")
    return factors


def _prefix(modules: Iterable[str], config: Mapping[str, Any]) -> str:
    """``visual.`` where a whole model was wrapped, nothing where the image tower was."""
    mapping = config.get("auto_mapping")
    wrapped = cast("Any", mapping).get("base_model_class") if isinstance(mapping, dict) else None
    names = list(modules)
    is_whole = str(wrapped) in _WHOLE_MODELS or any(n.startswith("visual.") for n in names)
    if is_whole:
        other = [name for name in names if not name.startswith("visual.")]
        if other:
            raise _refuse(
                f"`{other[0]}` is outside the image tower; expected `visual.` modules alone"
            )
    return "visual." if is_whole else ""


def _is_doubled(config: Mapping[str, Any], mha_fix: str) -> bool:
    if mha_fix not in {"auto", "on", "off"}:
        raise UserInputError.make(
            "E_OPTION", f"mha_fix: expected auto, on or off, got {printable(mha_fix)}"
        )
    if mha_fix != "auto":
        return mha_fix == "on"
    stated = config.get("peft_version")
    if stated is None:
        # Only releases that doubled did not write their version.
        return True
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})", str(stated), re.ASCII)
    if match is None or tuple(int(part) for part in match.groups()) > LAST_MEASURED:
        raise UserInputError.make(
            "E_OPTION",
            f"PEFT {printable(stated)} wrote this adapter, and it is not known whether that "
            "release still adds the delta of attention's out_proj twice (huggingface/peft#3774); "
            "pass mha_fix on or off",
        )
    return True


def read_peft(
    directory: str | os.PathLike[str],
    parameters: Mapping[str, tuple[int, ...]],
    *,
    mha_fix: MhaFix = "auto",
) -> list[Delta]:
    """The deltas of a PEFT adapter of an open_clip model or of its image tower.

    ``s = lora_alpha / r`` (``/ sqrt(r)`` with ``use_rslora``), with ``rank_pattern``,
    ``alpha_pattern`` and ``fan_in_fan_out``. Convolutions are flattened: PEFT's (r, I, k, k) and
    (O, r, 1, 1) are A (r, I k k) and B (O, r).

    Args:
        directory: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        parameters: state-dict names and shapes of the base's image tower.
        mha_fix: whether the adapter's ``out_proj`` of `torch.nn.MultiheadAttention` acted twice
            while it was trained: ``on`` doubles its s, ``off`` does not, ``auto`` is ``on`` for
            releases that were measured and refuses later ones.

    Returns:
        One delta per tensor pair, sorted by parameter.

    Raises:
        UserInputError: E_DATA, an adapter that is not plain LoRA of this base; E_OPTION, ``auto``
            cannot know.
        OSError: a file cannot be read.
    """
    folder = Path(directory)
    config = _read_config(folder / CONFIG_NAME)
    if not (folder / WEIGHTS_NAME).exists() and (folder / "adapter_model.bin").exists():
        raise _refuse(f"`adapter_model.bin` is a pickle; expected `{WEIGHTS_NAME}`")
    factors = _read_factors(folder / WEIGHTS_NAME)
    prefix = _prefix(factors, config)
    deltas: dict[str, Delta] = {}
    # Sorted, for safetensors gives the tensors in any order, and the first fault is reported.
    for module, pair in sorted(factors.items()):
        name = module.removeprefix(prefix)
        inner = name.removesuffix(".base_layer.out_proj")
        is_out = inner != name
        param = f"{inner}.out_proj.weight" if is_out else f"{name}.weight"
        if f"{name}.in_proj_weight" in parameters:
            param = f"{name}.in_proj_weight"
        if param not in parameters:
            raise _refuse(f"`{module}`: the image tower has no weight `{param}`")
        if param in deltas:
            raise _refuse(f"`{param}` is adapted twice")
        a, b = _matrices(param, pair, parameters[param], config)
        # PEFT gives both weights of an attention the rank and alpha of the attention.
        scale = _scale(f"{prefix}{inner}", a.shape[0], config)
        if is_out and _is_doubled(config, mha_fix):
            scale *= 2.0
        if not abs(scale) <= MAX_SCALE:
            raise _refuse(f"`{param}` has scale {scale:g}; expected at most {MAX_SCALE:g}")
        deltas[param] = Delta(param, a, b, scale)
    return [deltas[param] for param in sorted(deltas)]


def _matrices(
    param: str, pair: Mapping[str, Tensor], shape: tuple[int, ...], config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """A (r, rest) and B (O, r) of a module, by the shape of its weight."""
    a, b = pair["A"], pair["B"]
    given = f"lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}"
    is_swapped = bool(config.get("fan_in_fan_out")) and len(shape) == 2
    if is_swapped and a.ndim == b.ndim == 2:
        # The weight lies (in, out), so its delta is the transposed product.
        a, b = b.T.contiguous(), a.T.contiguous()
    if len(shape) == 4 and a.ndim == b.ndim == 4:
        fits = tuple(a.shape[1:]) == shape[1:] and tuple(b.shape[2:]) == (1, 1)
        a, b = a.flatten(1), b.flatten(1)
    else:
        fits = a.ndim == b.ndim == 2 and a.shape[1] == math.prod(shape[1:])
    rank = a.shape[0]
    if not fits or b.shape[0] != shape[0] or b.shape[1] != rank:
        raise _refuse(f"`{param}`: {given} are no delta of the base's weight; expected {shape}")
    if not 1 <= rank <= MAX_INNER:
        raise _refuse(f"`{param}` has rank {rank}; expected from 1 to {MAX_INNER}")
    return a, b


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """Scale of a module, and a check that its rank is the one that PEFT would have given it."""
    stated = _by_pattern(config.get("rank_pattern") or {}, module, config.get("r", 8))
    if stated != rank:
        raise _refuse(f"`{module}` has rank {rank}; expected {stated:g} from `{CONFIG_NAME}`")
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


# Writing ------------------------------------------------------------------------------------------


def _called(base: LoadedBase, modules: Sequence[str]) -> set[str]:
    """Those of ``modules`` whose ``forward`` runs when the tower sees a view."""
    seen: set[str] = set()

    def note(name: str, module: nn.Module, arguments: object) -> None:
        del module, arguments
        seen.add(name)

    hooks = [
        base.visual.get_submodule(name).register_forward_pre_hook(functools.partial(note, name))
        for name in modules
    ]
    try:
        size = base.spec.preprocess.size
        device = next(base.visual.parameters()).device
        base.encode(torch.full((1, 3, size, size), 0.5, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _split(base: LoadedBase, param: str) -> tuple[str, nn.Module]:
    """The module that PEFT would wrap for a parameter: an attention for both of its weights."""
    name, _, leaf = param.rpartition(".")
    module = base.visual.get_submodule(name)
    parent_name, _, last = name.rpartition(".")
    parent = base.visual.get_submodule(parent_name)
    if leaf == "weight" and last == "out_proj" and isinstance(parent, nn.MultiheadAttention):
        return parent_name, parent
    # Exactly these: subclasses pad or standardise, which PEFT's wrapper would leave out.
    is_plain = leaf == "weight" and type(module) in {nn.Linear, nn.Conv2d}
    is_plain = is_plain and getattr(module, "groups", 1) == 1
    is_packed = leaf == "in_proj_weight" and isinstance(module, nn.MultiheadAttention)
    if not (is_plain or is_packed):
        raise _refuse(f"`{param}` is no weight of a module that PEFT can wrap")
    return name, module


def _padded(delta: Delta | None, shape: tuple[int, int], rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) with s folded into B; zeros where there is no delta."""
    a, b = torch.zeros(rank, shape[1]), torch.zeros(shape[0], rank)
    if delta is not None:
        inner = delta.a.shape[0]
        a[:inner] = delta.a.detach().cpu()
        b[:, :inner] = delta.b.detach().cpu() * delta.scale
    return a, b


def write_peft(
    directory: str | os.PathLike[str],
    base: LoadedBase,
    deltas: Sequence[Delta],
    *,
    mha_fix: MhaFix = "auto",
) -> None:
    """Write deltas of the image tower as an adapter that PEFT loads onto the whole open_clip model.

    The head is not part of it: PEFT then gives the adapted image tower, not the labels. s is folded
    into B. Deltas of ``out_proj`` are halved, because PEFT up to 0.21.2 adds them twice.

    Args:
        directory: a new directory.
        base: whose image tower the deltas belong to.
        deltas: in the flattened form.
        mha_fix: ``off`` for a PEFT that adds the delta of ``out_proj`` once.

    Raises:
        UserInputError: E_DATA, a delta that PEFT has no form for or would leave without effect, or
            no delta; E_OPTION, an unknown ``mha_fix``.
        HelloIOError: E_TARGET, the directory exists.
        OSError: it cannot be written.
    """
    half = 0.5 if _is_doubled({}, mha_fix) else 1.0
    by_module: dict[str, dict[str, Delta]] = {}
    for delta in deltas:
        shape = tuple(base.visual.get_parameter(delta.param).shape)
        if (delta.b.shape[0], delta.a.shape[1]) != (shape[0], math.prod(shape[1:])):
            raise _refuse(f"`{delta.param}` has the convolution form of B A, which PEFT has not")
        by_module.setdefault(_split(base, delta.param)[0], {})[delta.param] = delta
    silent = sorted(by_module.keys() - _called(base, list(by_module)))
    if silent:
        raise _refuse(
            f"`{silent[0]}` is used by its weight alone, so that PEFT's wrapper around it would "
            "have no effect; expected deltas of modules that are called"
        )
    if not by_module:
        raise _refuse("there is no delta to write")
    ranks = {name: max(d.a.shape[0] for d in group.values()) for name, group in by_module.items()}
    tensors: dict[str, Tensor] = {}
    for name, group in by_module.items():
        for suffix, param, weight in _wrapped(name, base.visual.get_submodule(name)):
            flat = (weight.shape[0], math.prod(weight.shape[1:]))
            a, b = _padded(group.get(param), flat, ranks[name])
            if suffix:
                b = b * half
            if weight.ndim == 4:
                a, b = a.reshape(-1, *weight.shape[1:]), b[:, :, None, None]
            key = f"base_model.model.visual.{name}{suffix}"
            tensors[f"{key}.lora_A.weight"] = a.contiguous()
            tensors[f"{key}.lora_B.weight"] = b.contiguous()
    _write_directory(Path(directory), _config(ranks), safetensors.torch.save(tensors))


def _wrapped(name: str, module: nn.Module) -> list[tuple[str, str, Tensor]]:
    """Key suffix, parameter and weight of what PEFT adapts when it wraps ``module``."""
    if isinstance(module, nn.MultiheadAttention):
        return [
            ("", f"{name}.in_proj_weight", module.in_proj_weight),
            (".base_layer.out_proj", f"{name}.out_proj.weight", module.out_proj.weight),
        ]
    return [("", f"{name}.weight", cast("Tensor", module.weight))]


def _config(ranks: Mapping[str, int]) -> bytes:
    """``adapter_config.json``: alpha equals the rank everywhere, so that PEFT's scale is 1."""
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    odd = {f"^visual\\.{re.escape(n)}": rank for n, rank in ranks.items() if rank != usual}
    config = {
        "alpha_pattern": odd,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": odd,
        "target_modules": [f"visual.{name}" for name in ranks],
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("ascii")


def _write_directory(target: Path, config: bytes, weights: bytes) -> None:
    """Both files under a temporary name, then the directory's own."""
    temporary = temporary_path(target.absolute())
    if os.path.lexists(target):
        raise target_exists(target, can_replace=False)
    temporary.mkdir(mode=0o700)
    try:
        (temporary / CONFIG_NAME).write_bytes(config)
        (temporary / WEIGHTS_NAME).write_bytes(weights)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
