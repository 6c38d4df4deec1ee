"""Train a student with Trainer of Hugging Face's transformers, and write it to the folder ``out``.

    python with_trainer.py FILE.hello [EPOCHS]

Without EPOCHS it trains for 300.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import transformers
from torch.nn import functional

import hellofmt

if TYPE_CHECKING:
    from torch import Tensor


def train(file: str, epochs: int = 300) -> None:
    """Train a small ViT on ``file`` alone."""
    dataset = hellofmt.HelloDataset(file, as_dict=("pixel_values", "labels"))
    size = dataset.views.size
    config = transformers.ViTConfig(
        image_size=size,
        patch_size=max(size // 8, 1),
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        num_labels=len(dataset.classes),
    )

    # Models of transformers take float labels for several classes at once, hence this loss.
    def loss_of(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        log_p = functional.log_softmax(outputs.logits / dataset.temperature, dim=1)
        return functional.kl_div(log_p, labels, reduction="batchmean")

    trainer = transformers.Trainer(
        model=transformers.ViTForImageClassification(config),
        args=transformers.TrainingArguments(
            output_dir="out",
            num_train_epochs=epochs,
            per_device_train_batch_size=50,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=dataset,
        compute_loss_func=loss_of,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    train(sys.argv[1], *map(int, sys.argv[2:]))
