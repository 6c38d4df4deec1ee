from hellofmt.archive import open_archive
from hellofmt.archive.format.implied import expected_tensors


def test_expected_tensors(everything):
    with open_archive(everything) as file:
        manifest = file.manifest
    assert expected_tensors(manifest, "adapter") == {
        "conv1.weight::A": ("F16", (1, 12)),
        "conv1.weight::B": ("F16", (4, 1)),
    }
    assert expected_tensors(manifest, "head") == {
        "logit_scale": ("F32", (1,)),
        "bias": ("F32", (2,)),
        "weight": ("F16", (2, 3)),
        "weight::A": ("F16", (1, 3)),
        "weight::B": ("F16", (2, 1)),
    }
    assert expected_tensors(manifest, "probes") == {"logits": ("F32", (1, 2))}
    assert expected_tensors(manifest, "index")["sha256"] == ("U8", (2, 32))
    assert expected_tensors(manifest, "base") == {}
