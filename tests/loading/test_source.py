from __future__ import annotations

import functools

import pytest
from torch.utils.data import DataLoader

from hellofmt.archive import open_archive
from hellofmt.errors import TrustError, UserInputError
from hellofmt.loading import HelloDataset, HelloLoader, webdataset_samples, write_labels
from hellofmt.loading.webdataset import WebdatasetSamples


def test_the_pin_is_checked_for_paths_and_open_archives(mixing):
    right, wrong = open_archive(mixing).id, "sha256:" + "0" * 64
    for source in (mixing, str(mixing), open_archive(mixing)):
        assert HelloDataset(source, expect=right).id == right
        with pytest.raises(TrustError, match="E_PIN"):
            HelloDataset(source, expect=wrong)
    with pytest.raises(FileNotFoundError):
        HelloDataset(mixing.parent / "absent.hello")


def test_wrong_things_are_refused_with_what_to_pass(mixing, tmp_path):
    dataset = HelloDataset(mixing, labels="none")
    loader = HelloLoader(mixing, batch_size=2, labels="none")
    wrong = {
        dataset: "`source` is a HelloDataset; expected an archive: pass its path, or its `.file`",
        loader: "`source` is a HelloLoader; .* or its `.dataset.file`",
        DataLoader(dataset): "`source` is a DataLoader; .* or its `.dataset.file`",
        webdataset_samples(mixing): "`source` is a WebdatasetSamples; .* or its `.file`",
        tmp_path: f"`source` is a folder: {tmp_path}; expected an archive: `hello pack FOLDER`",
        str(tmp_path): "`source` is a folder",
        7: "`source`; expected the path of an archive, the paths of its shards or an open arch",
        (): "`source`; expected the path of an archive, .* got tuple",
    }
    for thing, expected in wrong.items():
        for call in (
            HelloDataset,
            webdataset_samples,
            functools.partial(HelloLoader, batch_size=2, labels="none"),
        ):
            with pytest.raises(UserInputError, match=f"E_OPTION: {expected}"):
                call(thing)
    with pytest.raises(UserInputError, match="E_OPTION: `file`; expected an open archive, got str"):
        WebdatasetSamples(str(mixing))
    with pytest.raises(
        UserInputError, match="E_OPTION: `dataset`; expected a HelloDataset, got Po"
    ):
        write_labels(mixing, tmp_path / "labels", epochs=1)
