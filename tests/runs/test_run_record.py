import platform

import pytest
import torch

from hellofmt.runs.run_record import device_name, run_record, versions, without_paths


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("photos", "photos"),
        ("/home/me/photos", "photos"),
        ("/home/me/photos/", "photos"),
        ("../photos", "photos"),
        ("~me/photos", "photos"),
        (".", "."),
        ("/", "/"),
        ("", ""),
        (r"C:\Users\me\photos", "C:photos"),
        ("resnet18=/home/me/best.pth", "resnet18=best.pth"),
        ("mine.models:build=/home/me/best.pth", "mine.models:build=best.pth"),
        ("torchvision:cifar10:/home/me/data:train", "torchvision:cifar10:data:train"),
        ("local-dir:/home/me/clip", "local-dir:clip"),
        ("open_clip:RN50:openai", "open_clip:RN50:openai"),
        ("open_clip:RN50:/home/me/rn50.pt", "open_clip:RN50:rn50.pt"),
        ("hf-hub:someone/model", "hf-hub:someone/model"),
        ("hf-hub:/home/me/model", "hf-hub:model"),
        ("seeded:3", "seeded:3"),
        ("https://me:secret@host/a/b.tar?key=1#x", "b.tar"),
        ("s3://bucket/set/{0..9}.tar", "{0..9}.tar"),
        ("https://me:secret@host", "URL"),
        ("https://me:secret@host/?key=1", "URL"),
        ("timm:vit=https://me:secret@host/w.pth", "timm:vit=w.pth"),
        ("file:///home/me/x.hello", "x.hello"),
    ],
)
def test_paths_and_servers_are_reduced_to_their_last_part(typed, kept):
    assert without_paths(typed) == kept


def test_a_run_says_its_versions_and_device():
    run = run_record("cpu", {"fit": 3}, "hello fit photos")
    assert (run.device, run.seeds, run.command) == ("cpu", {"fit": 3}, "hello fit photos")
    assert run.versions["python"] == platform.python_version()
    assert run.versions["torch"] == str(torch.__version__) == versions()["torch"]
    assert list(run.versions) == sorted(run.versions)


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert device_name("cuda:1") == "GPU 1"


def test_text_that_no_record_could_hold_is_made_sound():
    assert run_record("cpu", {}, "hello fit caf\udce9").command == "hello fit caf?"
    assert len(run_record("cpu", {}, "x" * 9000).command) == 4096
