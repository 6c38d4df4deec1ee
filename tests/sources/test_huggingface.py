"""Tables of Hugging Face's `datasets`, against what the library itself gives."""

import datasets
import numpy as np
import pytest
from PIL import Image

from hellofmt.archive import ClassLine
from hellofmt.errors import UserInputError
from hellofmt.sources import decode_centre, open_source

FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench, Tinca tinca", "shark"])}
)


def table(count=5, **columns):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    rows = {"image": list(map(Image.fromarray, pixels)), "label": [row % 2 for row in range(count)]}
    return datasets.Dataset.from_dict(rows | columns, FEATURES)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=["parquet", "saved", "splits", "loaded"])
def words(request, tmp_path):
    made = table()
    root = tmp_path / "fish"
    root.mkdir()
    match request.param:
        case "parquet":
            made.select(range(3)).to_parquet(root / "0.parquet")
            made.select(range(3, 5)).to_parquet(root / "1.parquet")
            return str(root)
        case "saved":
            made.save_to_disk(root)
            return f"hf:{root}"
        case "splits":
            datasets.DatasetDict(train=table(2), test=made).save_to_disk(root)
            return f"hf:{root}:test"
        case "loaded":
            made.to_parquet(root / "train-0.parquet")
            return f"hf:{root}"


def test_rows_are_read_as_the_library_gives_them(words):
    source, reference = open_source(words), table()
    assert (source.name, len(source)) == ("fish", 5)
    assert source.labels.tolist() == list(reference["label"])
    assert source.classes == (
        ClassLine("tench, Tinca tinca", ("tench", "Tinca tinca")),
        ClassLine("shark", ("shark",)),
    )
    for row in range(5):
        assert np.array_equal(decode_centre(source, row, 8), np.asarray(reference[row]["image"]))
    assert source.name_of(3) == "fish: row 3"
    assert open_source(words).digest() == source.digest()


def test_classes_are_looked_up_in_a_list(tmp_path):
    table().save_to_disk(tmp_path / "fish")
    lines = [ClassLine("shark", ("s",)), ClassLine("tench, Tinca tinca", ("t",))]
    assert open_source(f"hf:{tmp_path}/fish", classes=lines).labels.tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table(label=[0, 1, -1, None, 1]), r"2 of 5 rows have no class, such as row 2; is"),
        (
            lambda: table().remove_columns("label"),
            "columns of `fish`; expected one of type ClassLabel, got 0",
        ),
    ],
)
def test_tables_that_are_refused(tmp_path, make, message):
    make().save_to_disk(tmp_path / "fish")
    with pytest.raises(UserInputError, match="E_DATA: .*" + message):
        open_source(f"hf:{tmp_path}/fish")


def test_what_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserInputError, match=r"E_DATA: cannot read `hf:.*none`"):
        open_source(f"hf:{tmp_path}/none")
    table().save_to_disk(tmp_path / "fish")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.parquet").write_bytes(b"no")
    with pytest.raises(UserInputError, match=r"E_DATA: cannot read the Parquet files of `.*bad`"):
        open_source(tmp_path / "bad")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserInputError, match=r"E_OPTION: .*`pip install 'hellofmt\[hf\]'`"):
        open_source(f"hf:{tmp_path}/fish")
