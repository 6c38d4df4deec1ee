"""Networks of teachers with the input rule that their library publishes for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from hellofmt.errors import HelloIOError, UserInputError, foreign_text, printable
from hellofmt.student.networks import (
    CIFAR,
    STUDENTS,
    TIMM,
    TORCHVISION,
    build_student,
    is_student,
    similar_names,
    torchvision_names,
)
from hellofmt.teacher.rule import INTERPOLATIONS, InputRule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from hellofmt.teacher.rule import RuleChange

# Their published weights expect mean and std 0.5: torchvision's own constructor converts ImageNet's
# inside (`transform_input`) when it loads them, which a bare state dict cannot say.
_HALVES: Final = {"inception_v3", "googlenet"}


def _said_in_training(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's training program was told of the input, where that is numbers."""
    said: dict[str, Any] = {}
    for name in ("img_size", "crop_pct", "input_size", "mean", "std"):
        value: Any = arguments.get(name)
        numbers = value if isinstance(value, list | tuple) else [value]
        count = 1 if name in {"img_size", "crop_pct"} else 3
        if len(numbers) == count and all(type(n) in {int, float} and n >= 0 for n in numbers):
            said[name] = numbers[0] if count == 1 else tuple(numbers)
    return said


def _timm_rule(network: nn.Module, arguments: Mapping[str, Any]) -> InputRule:
    from timm.data.config import resolve_data_config

    said = _said_in_training(arguments)
    config = cast("dict[str, Any]", resolve_data_config(said, model=network))
    name = str(config["interpolation"])
    source = "timm's data config" + (f" and the checkpoint's {', '.join(said)}" if said else "")
    if name not in INTERPOLATIONS:
        source += f", whose {printable(name, 20)} is taken as bicubic"
    return InputRule(
        config["mean"],
        config["std"],
        size=int(config["input_size"][-1]),
        interpolation=name if name in INTERPOLATIONS else "bicubic",
        crop=float(config["crop_pct"]),
        source=source,
    )


def factory_rule(network: nn.Module) -> InputRule:
    """State the rule of a network from the user's code: timm's if timm made it, else ImageNet's."""
    return _timm_rule(network, {}) if hasattr(network, "pretrained_cfg") else InputRule()


def _torchvision_rule(weights: Any) -> InputRule:
    transform = weights.transforms()
    size, short = transform.crop_size[0], transform.resize_size[0]
    return InputRule(
        tuple(transform.mean),
        tuple(transform.std),
        size=size,
        interpolation=str(transform.interpolation.value),
        crop=min(1.0, size / short),
        source=f"torchvision's {weights}",
    )


def _weights(name: str) -> Any:
    """Torchvision's default weights of a network, typed as an enumeration without members."""
    from torchvision import models

    return cast("Any", models.get_model_weights(name)).DEFAULT


def library_network(
    name: str, classes: int, side: int, change: RuleChange, arguments: Mapping[str, Any]
) -> tuple[nn.Module, InputRule]:
    """Build a network as its library publishes it, with fresh weights, and state its input rule.

    Networks of our own take views of any ``side``; a transformer is built for the size in
    ``change``, else for that in ``arguments``, those of the training program that a checkpoint
    keeps.
    """
    plain = name.removeprefix(TORCHVISION)
    if plain in torchvision_names() and name not in STUDENTS:
        rule = _torchvision_rule(_weights(plain))
        if plain in _HALVES:
            rule = replace(rule, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        rule = change.of(rule)
        return build_student(name, classes, rule.size or side), rule
    if name in STUDENTS or name.endswith(CIFAR) or not is_student(name):
        return build_student(name, classes, change.size or side), change.of(InputRule())
    import timm

    cfg = timm.get_pretrained_cfg(name.removeprefix(TIMM), allow_unregistered=True)
    published = int(cfg.input_size[-1]) if cfg is not None else 224
    said = _said_in_training(arguments)
    trained = said.get("img_size") or said.get("input_size", (published,))[-1]
    network = build_student(name, classes, change.size or int(trained))
    return network, change.of(_timm_rule(network, arguments))


def pretrained_network(name: str, change: RuleChange) -> tuple[nn.Module, InputRule]:
    """Load ``timm:NAME`` or ``torchvision:NAME`` with the library's own weights, and their rule.

    They are downloaded where they are not cached.
    """
    try:
        if name.startswith(TIMM):
            import timm

            network = timm.create_model(name.removeprefix(TIMM), pretrained=True)
            return network, change.of(_timm_rule(network, {}))
        from torchvision import models

        weights = _weights(name.removeprefix(TORCHVISION))
        network = models.get_model(name.removeprefix(TORCHVISION), weights=weights)
        return network, change.of(_torchvision_rule(weights))
    except OSError as error:
        # What the libraries raise names neither the network nor what was wanted.
        raise HelloIOError.make(
            "E_HTTP", f"weights of `{printable(name)}` cannot be downloaded: {foreign_text(error)}"
        ) from error
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserInputError.make(
            "E_OPTION",
            f"{name.partition(':')[0]} has no trained `{printable(name.partition(':')[2])}`:"
            f" {foreign_text(error)}",
            advice=similar_names(name),
        ) from error
