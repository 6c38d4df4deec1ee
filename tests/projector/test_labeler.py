from __future__ import annotations

import dataclasses
import multiprocessing
import os

import builders
import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional

from hellofmt.archive import Arch, VisionArch, open_archive
from hellofmt.errors import BaseModelError, SpecError, UserInputError
from hellofmt.projector import Labeler, Projector, load_base, seeded_base
from hellofmt.projector.base import Encoder
from hellofmt.projector.head import LinearHead
from hellofmt.projector.labeler import refuse_fork
from hellofmt.projector.probe_check import compare_labels
from hellofmt_kernels import ViewForm


def assemble(base, part, adapter=None):
    return Projector.assembled(
        base,
        adapter or part.adapter,
        {n: t.numpy() for n, t in part.adapter_tensors.items()},
        part.head,
        {n: t.numpy() for n, t in part.head_tensors.items()},
        ["a", "b", "c", "d"],
    ).labeler()


# What a reader may get wrong without any digest or shape noticing.


class _Swapped(Encoder):
    """BGR for RGB."""

    def resized(self, views):
        return super().resized(views.flip(1))


class _Raw(Encoder):
    """No mean, no standard deviation."""

    def __init__(self, visual, preprocess):
        super().__init__(visual, preprocess)
        self.mean.zero_()
        self.std.fill_(1.0)


def quick_gelu(base):
    arch = msgspec.structs.replace(base.spec.arch, quick_gelu=True)
    return seeded_base(arch, base.spec.preprocess, seed=base.spec.seed)


def entrance(kind, **changes):
    def change(base):
        preprocess = msgspec.structs.replace(base.spec.preprocess, **changes)
        return dataclasses.replace(base, encoder=kind(base.visual, preprocess).eval())

    return change


FAULTS = {
    "quickgelu": quick_gelu,
    "no antialias": entrance(Encoder, antialias=False),
    "bilinear for bicubic": entrance(Encoder, interpolation="bilinear"),
    "nearest": entrance(Encoder, interpolation="nearest"),
    "bgr": entrance(_Swapped),
    "mean and std off": entrance(_Raw),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_probes_refuse_a_silent_fault(trained, fault):
    part = trained.part("int8")
    with pytest.raises(BaseModelError, match="computes other logits than its writer did") as info:
        assemble(FAULTS[fault](trained.base), part).check_probes(part.probe_logits)
    assert info.value.code == "E_BASE_PROBES"
    assert info.value.exit_code == 8


def test_probes_refuse_an_attention_output_delta_applied_twice(trained):
    part = trained.part("int8")
    param = "transformer.resblocks.1.attn.out_proj.weight"
    targets = [
        msgspec.structs.replace(t, scale="2.0") if t.param == param else t
        for t in part.adapter.targets
    ]
    doubled = msgspec.structs.replace(part.adapter, targets=targets)
    assemble(trained.base, part).check_probes(part.probe_logits)
    with pytest.raises(BaseModelError, match="expected at most 1e-04") as info:
        assemble(trained.base, part, doubled).check_probes(part.probe_logits)
    assert info.value.code == "E_BASE_PROBES"


def test_probes_are_compared_on_the_cosine_scale(trained):
    """A logit is off by exp(scale) |W_c| times the cosine's error, so that is divided out."""
    labeler = trained.labeler()
    logits = labeler.probe_logits(2)
    with torch.no_grad():
        scale = float(trained.head.logit_scale.exp())
        norms = trained.head.weight.norm(dim=1).numpy()
    for cls in range(4):
        for error, is_refused in ((0.9e-4, False), (1.2e-4, True)):
            stored = logits.copy()
            stored[1, cls] += error * scale * norms[cls]
            if is_refused:
                with pytest.raises(
                    BaseModelError, match=f"probe 1, class {cls} differs by 0.00012"
                ):
                    labeler.check_probes(stored)
            else:
                labeler.check_probes(stored)


def test_labels_of_probes_are_compared_at_the_temperature():
    stored = np.array([[2.0, 0.0], [0.0, 30.0]], np.float32)
    labels = torch.softmax(torch.tensor(stored).double() / 4, 1).float().numpy()
    compare_labels(labels, stored, temperature=4.0, largest=0.01)
    for temperature, computed in ((2.0, labels), (4.0, np.full_like(labels, np.nan))):
        with pytest.raises(BaseModelError, match="labels of the probes") as info:
            compare_labels(computed, stored, temperature=temperature, largest=0.01)
        assert info.value.code == "E_BASE_PROBES"


def test_labels_that_are_no_numbers_are_an_error(trained, views):
    labeler = trained.labeler()
    with torch.no_grad():
        next(labeler._encoder.parameters()).fill_(torch.nan)
    for make in (labeler.labels, labeler.logits):
        with pytest.raises(BaseModelError, match="are not finite") as info:
            make(views)
        assert info.value.code == "E_BASE_PROBES"


def test_probes_of_nan_or_of_other_classes_are_refused(trained):
    labeler = trained.labeler()
    with pytest.raises(BaseModelError, match="other logits"):
        labeler.check_probes(np.full((1, 4), np.nan, np.float32))
    with pytest.raises(BaseModelError, match=r"shape \(1, 3\); expected \(1, 4\)"):
        labeler.check_probes(np.zeros((1, 3), np.float32))


def test_half_precision_is_near_and_says_so(trained, views):
    half = Labeler(
        trained.base, list(trained.deltas), trained.head, temperature=4.0, dtype=torch.bfloat16
    )
    labels = half.labels(views)
    assert labels.dtype == torch.float32
    difference = float((labels - trained.labeler().labels(views)).abs().max())
    assert 1e-6 < difference < 2e-2
    half.check_probes(trained.labeler().probe_logits(2))
    with pytest.raises(BaseModelError, match=r"expected at most 2e-02 \(bfloat16\)"):
        half.check_probes(trained.labeler().probe_logits(2) + 1.0)


def test_labels_can_be_learned_from(trained, views):
    """Inference tensors could not be saved for backward."""
    student = torch.zeros(6, 4, requires_grad=True)
    labels = trained.labeler().labels(views)
    assert not labels.requires_grad
    functional.kl_div(student.log_softmax(1), labels, reduction="sum").backward()
    np.testing.assert_allclose(student.grad.numpy(), 0.25 - labels.numpy(), rtol=0, atol=1e-6)
    logits = trained.labeler().logits(views)
    (student.detach().requires_grad_() - logits).square().sum().backward()


def test_labels_do_not_depend_on_the_batch(trained, views):
    labeler = trained.labeler()
    together = labeler.labels(views)
    alone = torch.cat([labeler.labels(v[None]) for v in views])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_kernel_names_the_algorithm(trained):
    labeler = trained.labeler()
    assert (labeler.kernel, labeler.classes, labeler.temperature) == ("reference", 4, 4.0)
    assert labeler.device == torch.device("cpu")


RESNET = Arch(
    embed_dim=16,
    quick_gelu=True,
    vision=VisionArch(image_size=32, layers=[1, 1, 1, 1], width=16),
)


def as_inputs(labeler, form, views):
    """Views in a form, by the words of its docstring."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (form.mean, form.std))
    layout = torch.channels_last if form.is_channels_last else torch.contiguous_format
    return ((views - mean) / std).to(form.dtype, memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_padded", [False, True])
def test_views_in_the_input_form_give_the_same_embeddings(trained, views, is_padded, dtype):
    base = trained.base
    if is_padded:
        entrance = msgspec.structs.replace(base.spec.preprocess, size=32)
        base = seeded_base(RESNET, entrance, seed=4)
    preprocess, features = base.spec.preprocess, base.spec.arch.embed_dim
    rows = torch.randn(4, features, generator=torch.Generator().manual_seed(1))
    head = LinearHead(rows, delta=None, bias=None, logit_scale=1.0, train_scale=False)
    labeler = Labeler(base, [], head, temperature=1.0, dtype=dtype)
    form = labeler.input_form(preprocess.size)
    # A patch embedding took the normalisation over; a padded stem cannot.
    assert (form == ViewForm(dtype=dtype, is_channels_last=True)) is not is_padded
    if is_padded:
        numbers = tuple(float(v) for v in preprocess.mean), tuple(float(v) for v in preprocess.std)
        assert form == ViewForm(*numbers, dtype, is_channels_last=True)
    of_size = functional.interpolate(views, size=preprocess.size, mode="bilinear")
    got = labeler.embeddings_of_inputs(as_inputs(labeler, form, of_size))
    assert torch.equal(got, labeler.embeddings(of_size))
    assert not got.is_inference()


def test_views_of_another_size_have_no_input_form(trained):
    size = trained.base.spec.preprocess.size
    assert trained.labeler().input_form(size + 1) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x.half(), "float32, N >= 1, got (2, 3, {0}, {0}) float16"),
        (lambda x: x[:, :, 1:], "expected (N, 3, {0}, {0}) float32, N >= 1, got (2, 3, {1}, {0})"),
        (lambda x: x[:, :1], "got (2, 1, {0}, {0}) float32"),
        (lambda x: x[0], "got (3, {0}, {0}) float32"),
        (lambda x: x[:0], "got (0, 3, {0}, {0}) float32"),
    ],
)
def test_inputs_in_another_form_are_refused(trained, change, text):
    size = trained.base.spec.preprocess.size
    with pytest.raises(UserInputError, match="E_DATA: inputs: expected") as caught:
        trained.labeler().embeddings_of_inputs(change(torch.zeros(2, 3, size, size)))
    assert text.format(size, size - 1) in str(caught.value)


def test_a_bad_temperature_is_refused(trained, views):
    with pytest.raises(ValueError, match="expected a finite number > 0"):
        trained.labeler().labels(views, temperature=0.0)


def _in_fork(queue, pid):
    try:
        refuse_fork(torch.device("cuda"), pid)
    except UserInputError as error:
        queue.put(str(error))
    else:
        queue.put("accepted")


def test_cuda_in_a_forked_worker_is_refused():
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=_in_fork, args=(queue, os.getpid()))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0
    message = queue.get()
    assert message.startswith(
        "E_OPTION: labels on CUDA cannot be made in a forked DataLoader worker"
    )
    assert "hellofmt.soft_batches(loader, labeler)" in message
    refuse_fork(torch.device("cuda"), os.getpid())
    refuse_fork(torch.device("cpu"), 0)


# Archives.


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("start", ["text", "stored"])
def test_an_archive_gives_the_labels_that_were_fitted(
    tmp_path, text_vit, vit, classes, randomise, write_projector, views, storage, start
):
    base, head_rank = (text_vit, 2) if start == "text" else (vit, None)
    projector = randomise(
        Projector.build(
            base, classes, start=start, head_rank=head_rank, rank=4, temperature=4.0, seed=1
        )
    )
    path = tmp_path / "p.hello"
    write_projector(path, projector, classes, storage)
    labeler = Labeler.from_file(path)
    allowed = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2, "int8": 1e-2, "int4": 0.3}
    expected = projector.labeler().labels(views)
    moved = float((labeler.labels(views) - expected).abs().max())
    assert moved <= allowed[storage]
    assert labeler.temperature == 4.0
    with open_archive(path) as file:
        again = Projector.from_file(file)
        # A reader's projector computes what its labeler computes, and can be written again.
        torch.testing.assert_close(again(views).detach(), labeler.logits(views), rtol=0, atol=1e-4)
        assert again.names == projector.names
        if storage == "float32":
            assert again.part(storage).adapter_tensors == projector.part(storage).adapter_tensors


def test_a_loaded_base_may_be_given(tmp_path, trained, classes, write_projector, views):
    path = tmp_path / "p.hello"
    write_projector(path, trained, classes)
    with open_archive(path) as file:
        labels = Labeler.from_file(file, trained.base).labels(views)
    assert torch.equal(labels, Labeler.from_file(path).labels(views))


def test_another_base_is_refused_by_the_part_that_differs(
    tmp_path, trained, classes, write_projector, with_preprocess
):
    path = tmp_path / "p.hello"
    write_projector(path, trained, classes)
    spec = trained.base.spec
    other_weights = seeded_base(spec.arch, spec.preprocess, seed=99)
    with pytest.raises(BaseModelError, match="weights of base `seeded` differ") as info:
        Labeler.from_file(path, other_weights)
    assert info.value.code == "E_BASE_WEIGHTS"
    assert spec.tensors in str(info.value)
    assert other_weights.spec.tensors in str(info.value)

    other_arch = quick_gelu(trained.base)
    with pytest.raises(BaseModelError, match="`quick_gelu` False against True") as info:
        Labeler.from_file(path, other_arch)
    assert info.value.code == "E_BASE_CONFIG"
    assert spec.digest in str(info.value)
    assert other_arch.spec.digest in str(info.value)

    entrance = msgspec.structs.replace(spec.preprocess, interpolation="bilinear")
    other_entrance = seeded_base(spec.arch, entrance, seed=spec.seed)
    with pytest.raises(BaseModelError, match="`interpolation` bicubic against bilinear") as info:
        Labeler.from_file(path, other_entrance)
    assert info.value.code == "E_BASE_PREPROC"
    assert spec.digest in str(info.value)
    assert other_entrance.spec.digest in str(info.value)


def test_another_text_tower_is_refused(tmp_path, text_vit, vit, classes, write_projector):
    path = tmp_path / "p.hello"
    projector = Projector.build(text_vit, classes, head_rank=2, temperature=1.0, seed=0)
    write_projector(path, projector, classes)
    with pytest.raises(BaseModelError, match="text tower of base `seeded` differs") as info:
        Labeler.from_file(path, vit)
    assert info.value.code == "E_BASE_WEIGHTS"
    assert f"expected {text_vit.text_digest}, got none" in str(info.value)


def test_probes_are_checked_at_opening_unless_told_otherwise(
    tmp_path, trained, classes, write_projector, monkeypatch
):
    path = tmp_path / "p.hello"
    part = trained.part
    monkeypatch.setattr(
        Projector,
        "part",
        lambda self, *a: dataclasses.replace(
            part(*a), probe_logits=part(*a).probe_logits + np.float32(0.5)
        ),
    )
    write_projector(path, trained, classes)
    with pytest.raises(BaseModelError, match="E_BASE_PROBES"):
        Labeler.from_file(path)
    Labeler.from_file(path, check_probes=False)


def test_an_archive_without_a_projector_has_no_labeler(tmp_path):
    from hellofmt.archive import ClassLine, Draft, ImageItem, ImageSet, encode_image, write_archive

    png = encode_image(np.zeros((4, 4, 3), np.uint8), "png")
    draft = Draft(
        dataset=builders.dataset(),
        classes=[ClassLine("a", ("a",))],
        views=builders.views(4),
        images=ImageSet(codec="png", items=[ImageItem(0, png)]),
    )  # fmt: skip
    path = tmp_path / "images.hello"
    write_archive(path, draft)
    with pytest.raises(UserInputError, match="the archive has no projector") as info:
        Labeler.from_file(path)
    assert info.value.code == "E_OPTION"


def test_an_embedded_base_needs_nothing_else(
    tmp_path, vit, classes, randomise, write_projector, views
):
    projector = randomise(
        Projector.build(vit.embedded(), classes, start="stored", temperature=2.0, seed=0)
    )
    path = tmp_path / "p.hello"
    write_projector(path, projector, classes)
    labels = Labeler.from_file(path).labels(views)
    torch.testing.assert_close(labels, projector.labeler().labels(views), rtol=0, atol=1e-6)


def test_a_missing_file_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Labeler.from_file(tmp_path / "none.hello")
    with pytest.raises(FileNotFoundError):
        load_base(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"logit_scale": np.array([12.0], np.float32)}, "gives logits up to 1.06e"),
        ({"logit_scale": np.array([np.nan], np.float32)}, "gives logits up to nan; expected at"),
        ({"bias": np.full(4, 1e30, np.float32)}, r"gives logits up to 1e\+30; expected at"),
        ({"weight": np.full((4, 32), 1e9, np.float32)}, r"a row of the head has length \d"),
    ],
)
def test_head_tensors_that_do_not_fit_are_refused(trained, change, text):
    part = trained.part("float32")
    tensors = {n: t.numpy() for n, t in part.head_tensors.items()} | change
    with pytest.raises(SpecError, match=text) as info:
        Projector.assembled(
            trained.base,
            part.adapter,
            {n: t.numpy() for n, t in part.adapter_tensors.items()},
            part.head,
            tensors,
            ["a", "b", "c", "d"],
        )
    assert info.value.code == "E_TENSOR"
    assert info.value.member == "__hello__/head"
