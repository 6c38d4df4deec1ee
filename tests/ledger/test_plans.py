"""Plans against the paper's figures, open_clip's models and arithmetic done by hand."""

import logging
import math

import pytest

from hellofmt import ledger
from hellofmt.archive import DEFAULT_LIMITS
from hellofmt.errors import UserInputError
from hellofmt.ledger import DATASETS, PRECISIONS, TOWERS, paper_head_rank, plan, tower_named
from hellofmt.ledger.towers import RESNET18_GFLOP

QUICK = {"RN50", "ViT-B-32", *(name for name in TOWERS if name.startswith("timm:"))}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TOWERS]
)
def test_towers_are_those_of_their_libraries(name):
    import torch
    from open_clip import create_model
    from open_clip.timm_model import TimmModel
    from torch.utils.flop_counter import FlopCounterMode

    from hellofmt.projector.targets import delta_shapes

    logging.disable(logging.WARNING)
    library, _, plain = name.rpartition(":")
    try:
        with torch.device("meta"):
            if library:
                model = torch.nn.Module()
                model.visual = TimmModel(plain, 0, proj="none")
            else:
                model = create_model(name, load_weights=False, device="meta")
    finally:
        logging.disable(logging.NOTSET)
    visual, tower = model.visual.eval(), TOWERS[name]
    counter = FlopCounterMode(display=False)
    # With gradients, so that attention is counted and not one opaque fused call.
    with counter:
        embedding = visual(torch.empty(1, 3, tower.size, tower.size, device="meta"))
    parameters = sum(p.numel() for p in visual.parameters())
    assert counter.get_total_flops() == tower.flop
    assert parameters == tower.parameters
    assert sum(b.numel() for b in visual.buffers() if b.is_floating_point()) == tower.buffers
    assert sum(p.numel() for p in model.parameters()) - parameters == tower.text_parameters
    assert tuple(embedding.shape) == (1, tower.dim)
    shapes = {name: tuple(p.shape) for name, p in visual.named_parameters()}
    found = delta_shapes(shapes, tower.kind, 8)
    planned = tower.adapter(8, "int8").targets
    assert [(t.param, tuple(t.shape), tuple(t.a), tuple(t.b)) for t in planned] == [
        (t.param, t.shape, t.a, t.b) for t in found
    ]


def test_a_tower_of_timm_takes_other_sizes():
    tower = tower_named("timm:efficientnet_lite1", 128)
    native = TOWERS["timm:efficientnet_lite1"]
    assert (tower.parameters, tower.weights) == (native.parameters, native.weights)
    # 120, 60, 30, 15 and 8 pixels against 64, 32, 16, 8 and 4.
    assert tower.flop / native.flop == pytest.approx((128 / 240) ** 2, rel=0.05)


def test_a_base_without_text_stores_its_head():
    whole, factors = (
        plan(1000, 50_000, 300, "timm:efficientnet_lite1", head_rank=rank) for rank in (None, 64)
    )
    assert (whole.head_rank, factors.head_rank) == (None, 64)
    # Values, scales, the scale of the logits and a header.
    assert 1_280_000 + 4_000 < whole.function.head < 1_280_000 + 4_300
    assert 64 * 2_280 + 4 * 1_064 < factors.function.head < 64 * 2_280 + 4 * 1_064 + 400
    assert whole.values - factors.values == 1_280_000 - 64 * 2_280
    assert any("head of rank 64 as two factors" in text for text in factors.assumptions)


def test_resnet18_is_that_of_torchvision():
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import resnet18

    with torch.device("meta"):
        model = resnet18(num_classes=1000).eval()
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 1e9 == RESNET18_GFLOP
    assert sum(p.numel() for p in model.parameters()) == ledger.resnet18_parameters(1000)


def test_the_inner_limit_is_the_reader_s():
    from hellofmt.projector import targets

    assert DEFAULT_LIMITS.rank == targets.MAX_INNER


@pytest.mark.parametrize(
    ("precision", "values", "sections"),
    [
        ("float32", 3_267_424, 3_271_068),
        ("float16", 1_633_712, 1_637_324),
        ("int8", 816_856, 877_140),
        ("int4", 408_428, 468_700),
    ],
)
def test_the_paper_s_label_function(precision, values, sections):
    made = plan(1000, 50_000, 300, precision=precision)
    ours = made.function
    assert (made.values, made.targets, made.head_rank) == (816_856, 19, 128)
    assert ours.precision == precision
    assert ours.values_bytes == values
    assert ours.adapter + ours.head == sections
    # Two probes of 1,000 float32 logits and a header.
    assert ours.public == sections + 8_080
    bits = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}[precision]
    assert ours.charged == ours.public + (38_316_896 + 53_248) * bits // 8


def test_the_paper_s_ratio_holds_at_int8_and_50_per_class():
    # The abstract's 0.003 %: one byte per value, and still with scales, headers and probes.
    def percent(images, precision):
        return 100 * plan(1000, images, 300, precision=precision).rivals[0].public

    assert f"{percent(50_000, 'int8'):.3f}" == "0.003"
    assert [f"{percent(50_000, p):.3f}" for p in PRECISIONS] == ["0.011", "0.005", "0.003", "0.002"]
    assert f"{percent(10_000, 'int8'):.3f}" == "0.015"


def test_rivals_by_hand():
    made = plan(1000, 10_000, 300)
    sizes = {rival.name: rival.size_bytes for rival in made.rivals}
    assert sizes == {
        "float16 labels": 6_000_000_000,
        "float16 labels with view records": 6_087_000_000,
        "top 10 labels": 120_000_000,
        "top 100 labels": 1_200_000_000,
        "pruned and quantised labels, 40x": 152_175_000,
        "pruned and quantised labels, 80x": 76_087_500,
        "pruned and quantised labels, 200x": 30_435_000,
        "float32 teacher": 46_758_048,
        "float16 teacher": 23_379_024,
        "int8 teacher": 11_689_512,
    }
    for rival in made.rivals:
        assert rival.public == made.function.public / rival.size_bytes
        assert rival.charged == made.function.charged / rival.size_bytes
        if "teacher" in rival.name:
            assert (rival.break_even_public, rival.break_even_charged) == (None, None)
            assert rival.epoch_bytes == 0
        else:
            assert rival.epoch_bytes == pytest.approx(rival.size_bytes / 300, rel=1e-6)


def test_break_even_is_the_first_epoch_at_which_a_rival_weighs_more():
    made = plan(10, 100, 300)
    checked = 0
    for place, rival in enumerate(made.rivals):
        if rival.break_even_public is None:
            continue
        for epochs, ours in (
            (rival.break_even_public, made.function.public),
            (rival.break_even_charged, made.function.charged),
        ):
            assert plan(10, 100, epochs).rivals[place].size_bytes > ours
            assert plan(10, 100, epochs - 1).rivals[place].size_bytes <= ours
            checked += 1
    assert checked == 10


def test_few_classes_have_nothing_to_win():
    made = plan(10, 100, 300)
    # No top-k: 10 classes have no 100 best, and 10 of 10 with an index are more than all.
    assert not [rival for rival in made.rivals if rival.name.startswith("top")]
    assert made.head_rank is None
    assert made.values == 557_784 + 10 * 1024
    assert made.smaller[0] == "float16 labels"
    assert plan(1000, 10_000, 300).smaller == ()


def test_top_k_stands_only_where_it_is_smaller_than_the_whole_row():
    # Ten values of two bytes and indices of one are 30 bytes, as are 15 values.
    assert "top 10 labels" not in {rival.name for rival in plan(15, 100, 300).rivals}
    assert "top 10 labels" in {rival.name for rival in plan(16, 100, 300).rivals}


@pytest.mark.parametrize(
    ("classes", "dim", "rank"),
    [(1000, 1024, 128), (999, 1024, 64), (100, 1024, 64), (68, 1024, None), (69, 1024, 64)],
)
def test_the_head_is_low_rank_only_where_that_is_smaller(classes, dim, rank):
    assert paper_head_rank(classes, dim) == rank
    values = (64 if classes < 1000 else 128) * (classes + dim)
    assert (values < classes * dim) == (rank is not None)


def test_imagenet_100_and_other_ranks():
    assert plan(100, 1000, 300).values == 629_720
    assert plan(1000, 1000, 300, head_rank="full").values == 557_784 + 1000 * 1024
    assert plan(1000, 1000, 300, rank=16, head_rank=1).values == 2 * 557_784 + 2024
    # Rank 8 on four weights of each of twelve blocks, 768 wide.
    vit = plan(1000, 1000, 300, "ViT-B-16")
    assert vit.values == 8 * 12 * 16 * 768 + 128 * (1000 + 512)


def test_data_sets_that_share_a_base():
    each = plan(1000, 10_000, 300).data_sets
    assert {key: round(number, 1) for key, number in each.items()} == {
        "image tower": 3.6,
        "and text rows": 3.9,
        "and text tower": 9.4,
    }
    saved = 11_689_512 - 885_220
    assert each["image tower"] == 38_370_144 / saved
    assert each["and text rows"] == 38_370_144 / (saved - 1_024_000)
    assert each["and text tower"] == (38_370_144 + 63_690_241) / saved
    # A full head is stored: there is no text to charge.
    assert len(set(plan(1000, 10, 1, head_rank="full").data_sets.values())) == 1
    assert plan(1000, 10, 1, teacher_parameters=800_000).data_sets["image tower"] is None


def test_work_by_hand():
    made = plan(1000, 10_000, 300, device_tflops=100, utilisation=0.5, bandwidth=2)
    assert made.gflop_total == pytest.approx(3_000_000 * 12.222939136)
    assert made.device_hours == pytest.approx(3_000_000 * 12.222939136 / 50_000 / 3600)
    assert made.read_hours == pytest.approx(3 / 3600)
    assert made.labels == 3_000_000


def test_up_to_400_million_images():
    whole = DATASETS["laion-400m"]
    made = plan(whole.classes, whole.images, whole.epochs, "ViT-B-16")
    assert made.stored == 32 * 400_000_000 * 21_841 * 2
    # Indices of 21,841 classes take two bytes.
    assert {r.name: r.size_bytes for r in made.rivals}["top 10 labels"] == 32 * 400_000_000 * 40
    assert made.device_hours == pytest.approx(12.8e9 * 35.12690688e9 / (989e12 * 0.4) / 3600)


@pytest.mark.parametrize("name", DATASETS)
def test_every_preset_can_be_planned(name):
    preset = DATASETS[name]
    made = plan(preset.classes, preset.images or preset.ipc * preset.classes, preset.epochs)
    assert made.function.public < 30_000_000
    assert all(math.isfinite(rival.charged) for rival in made.rivals)


def test_assumptions_name_every_number_that_is_not_arithmetic():
    text = " ".join(plan(1000, 10, 3, device_tflops=123, utilisation=0.25, bandwidth=7).assumptions)
    for word in ("29 bytes", "123 TFLOP/s", "25 %", "7 GB/s", "11,689,512", "RN50", "rank 128"):
        assert word in text
    other = " ".join(plan(10, 10, 3, "ViT-L-14", teacher_parameters=5).assumptions)
    assert "ResNet-18, " not in other
    assert "teacher: 5 parameters" in other
    assert "attention and MLP" in other
    assert "full head" in other


def test_towers_are_found_by_every_spelling():
    assert tower_named("ViT-B/32") is TOWERS["ViT-B-32"]
    assert tower_named("RN50-quickgelu") is TOWERS["RN50"]
    assert tower_named("mine") is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"classes": 0}, "classes: expected from 1 to 1,000,000,000,000,000, got 0"),
        ({"images": -1}, "images: expected from 1 to 1,000,000,000,000,000, got -1"),
        ({"epochs": 10**16}, "epochs: expected from 1 to 1,000,000,000,000,000, got 10,0"),
        ({"rank": 0}, "rank: expected from 1 to 85, got 0"),
        ({"rank": 86}, "rank: expected from 1 to 85, got 86"),
        ({"base": "ViT-B-32", "rank": 257}, "rank: expected from 1 to 256, got 257"),
        ({"head_rank": 0}, "head-rank: expected full, or from 1 to 256 here, got 0"),
        ({"classes": 9, "head_rank": 10}, "head-rank: expected full, or from 1 to 9 here, got 10"),
        ({"teacher_parameters": 0}, "teacher-parameters: expected from 1 to 1,000"),
        ({"base": "RN\x1b"}, r"base: expected one of RN50, .*lite2, got RN\\x1b"),
        ({"precision": "int2"}, "precision: expected one of float32, .*int4, got int2"),
        ({"device_tflops": 0.0}, "device-tflops: expected more than 0, got 0"),
        ({"device_tflops": math.inf}, "device-tflops: expected more than 0, got inf"),
        ({"bandwidth": math.nan}, "bandwidth: expected more than 0, got nan"),
        ({"utilisation": 0.0}, "utilisation: expected more than 0 and at most 1, got 0"),
        ({"utilisation": 1.5}, "utilisation: expected more than 0 and at most 1, got 1.5"),
    ],
)
def test_numbers_out_of_range(changes, text):
    with pytest.raises(UserInputError, match=f"E_OPTION: {text}"):
        plan(**{"classes": 1000, "images": 10, "epochs": 3, **changes})
