"""``hello fit``: a label function for a data set, as an archive without images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hellofmt_cli.console import console
from hellofmt_cli.fit_options import fit_options
from hellofmt_cli.options import check_steps, command, data_options, json_option
from hellofmt_cli.text_options import text_options

if TYPE_CHECKING:
    from hellofmt_cli.fit_options import FitOptions
    from hellofmt_cli.options import DataOptions
    from hellofmt_cli.text_options import TextOptions


@command("fit", has_config=True)
@data_options
@fit_options
@text_options
@json_option
def fit(data: DataOptions, fit: FitOptions, texts: TextOptions, as_json: bool) -> None:
    """Fit a label function to a teacher on DATA and write it as an archive without images.

    DATA is as for `hello teach`.

    `hello pack IMAGES --projector FILE` joins it with images; HelloDataset(FILE, images=...) labels
    a data set that is there already.

    A fit that was killed continues where it was. `torchrun -m hellofmt fit ...` divides each batch
    among processes, also of a teacher that has to be trained first.

    \b
    hello fit photos --teacher timm:resnet18=best.pth --base seeded -o labels.hello
    hello pack photos --projector labels.hello -o photos.hello
    """  # noqa: D301 - click wants the character
    check_steps(fit.steps, fit.epochs)
    with console.stage("loading PyTorch"):
        from hellofmt.distillation import DistillSettings
        from hellofmt_cli.making import make_archive
    make_archive(data, fit, texts.read(), as_json=as_json, chosen=DistillSettings(select=None))
