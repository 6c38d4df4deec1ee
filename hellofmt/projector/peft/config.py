r"""The configuration of a PEFT adapter, read by a closed schema.

What changes the function and cannot be said as ``W0 + s B A`` is refused by name (DoRA, trained
biases, saved modules, initialisations that change the base); what has no effect on a trained
adapter is ignored; any other key must be empty. Patterns are regular expressions in PEFT; here only
those made of names, ``\.``, ``\d+`` and one ``.*`` are accepted, because a file must not choose how
long a match takes.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any, Literal, cast

from hellofmt.archive.storage.local_files import open_regular
from hellofmt.errors import UserInputError, foreign_text, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


MhaFix = Literal["auto", "on", "off"]
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

#: Last PEFT release in which the double ``out_proj`` delta was measured.
LAST_MEASURED = (0, 21, 2)
_CONFIG_BYTES = 1 << 20
MAX_TENSORS = 4096

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

# Anchors, names, escaped points, digits, and at most one wildcard, which is counted apart.
_PATTERN = re.compile(r"\^?(?:[A-Za-z0-9_.|]|\\\.|\\d\+|\[0-9\]\+|\.\*)+\$?", re.ASCII)
_PATTERN_LENGTH = 256
_WILD_PATTERNS = 64


def refusal(fact: str) -> UserInputError:
    """Make the error for an adapter that cannot be read or written: E_DATA and ``fact``."""
    return UserInputError.make("E_DATA", f"PEFT adapter: {fact}")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes, or raise the error of `refusal`."""
    with os.fdopen(open_regular(path)[0], "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise refusal(f"`{path.name}` is larger than {limit} bytes")
    return data


def read_config(path: Path) -> dict[str, Any]:
    """Read ``adapter_config.json``, or raise the error of `refusal` if anything is unknown."""
    try:
        config = json.loads(
            read_bytes(path, _CONFIG_BYTES).decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise refusal(f"`{CONFIG_NAME}` cannot be read: {foreign_text(error)}") from error
    if not isinstance(config, dict):
        raise refusal(f"`{CONFIG_NAME}` is not an object")
    config = cast("dict[str, Any]", config)
    for key in sorted(config.keys() - _READ - _WITHOUT_EFFECT):
        if config[key] not in (None, False, "", [], {}):
            raise refusal(f"`{printable(key)}` is set; expected an adapter without it")
    if config.get("peft_type") != "LORA":
        raise refusal(f"`peft_type` is {printable(config.get('peft_type'))}; expected LORA")
    if config.get("bias", "none") != "none":
        raise refusal(f"`bias` is {printable(config['bias'])}; expected none")
    initial = config.get("init_lora_weights", True)
    if not isinstance(initial, (bool, str)) or initial not in _INITIAL:
        raise refusal(
            f"`init_lora_weights` is {printable(initial)}, which changes the base weights; "
            "expected an adapter converted to a plain one"
        )
    for key in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(key, False), bool):
            raise refusal(f"`{key}`: expected true or false, got {printable(config[key])}")
    _positive(config.get("r", 8), "r")
    _positive(config.get("lora_alpha", 8), "lora_alpha")
    for key in ("rank_pattern", "alpha_pattern"):
        _check_patterns(config.get(key) or {}, key)
    return config


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("duplicate key")
    return unique


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _positive(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise refusal(f"`{key}`: expected a number from above 0 to 1e6, got {printable(value)}")
    return value


def _check_patterns(patterns: object, key: str) -> None:
    if not isinstance(patterns, dict) or len(cast("dict[str, Any]", patterns)) > MAX_TENSORS:
        raise refusal(f"`{key}`: expected an object of at most {MAX_TENSORS} keys")
    wild = 0
    for pattern, value in cast("dict[str, Any]", patterns).items():
        _positive(value, key)
        wildcards = pattern.count(".*")
        wild += bool(wildcards)
        if len(pattern) > _PATTERN_LENGTH or wildcards > 1 or not _PATTERN.fullmatch(pattern):
            raise refusal(
                f"`{key}` has the pattern `{printable(pattern)}`; expected names, `\\.`, `\\d+`, "
                "`|` and at most one `.*`"
            )
    if wild > _WILD_PATTERNS:
        raise refusal(f"`{key}` has {wild} patterns with `.*`; expected at most {_WILD_PATTERNS}")


def by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that matches, by PEFT's rule (`get_pattern_key`)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def is_doubled(config: Mapping[str, Any], mha_fix: str) -> bool:
    """Whether the PEFT that wrote ``config`` adds the delta of attention's ``out_proj`` twice."""
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
