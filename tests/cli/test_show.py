"""``hello show``: the labels shown are those of the views shown."""

from html.parser import HTMLParser

import builders
import numpy as np
import pytest
from PIL import Image

import hellofmt
from hellofmt.loading import EpochIndex


@pytest.fixture
def photos(tmp_path):
    """An archive of two images for each of three classes, with an unfitted label function."""
    images = builders.image_set(*builders.stripes(2))
    return builders.write_unfitted(tmp_path / "photos.hello", images, temperature=0.05)


class Page(HTMLParser):
    """The headings of labelled images with their pictures and bars, in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self._words, self._within = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.found.append(("img", values["alt"]))
        elif tag == "i":
            self.found.append(("bar", float(values["style"].split(":")[1].strip(" %"))))
        self._within, self._words = tag in ("h2", "h3", "bdi"), ""

    def handle_data(self, data):
        if self._within:
            self._words += data


def shares(path, row, views):
    """Label rows of an image's first views, as a data set gives them."""
    dataset = hellofmt.HelloDataset(path)
    return np.array([dataset[EpochIndex(row, epoch)][1].numpy() for epoch in range(views)])


def test_a_page_shows_the_labels_of_its_views(photos, tmp_path, invoke):
    out = tmp_path / "page.html"
    result = invoke("show", photos, "--images", 3, "--errors", 0, "-o", out)
    assert result.exit_code == 0, result.output
    page = Page(out.read_text()).found
    pictures = [value for kind, value in page if kind == "img"]
    assert pictures == [
        f"view {view} of {name}" for name in ("rows", "columns", "grey") for view in (1, 2, 3)
    ]
    bars = np.array([value for kind, value in page if kind == "bar"]).reshape(3, 3, 3)
    for place, row in enumerate((0, 2, 4)):
        wanted = -np.sort(-100 * shares(photos, row, 3), axis=1)
        np.testing.assert_allclose(bars[place], wanted, atol=0.051)


def test_errors_are_those_that_give_least_to_their_class(photos, invoke):
    result = invoke("show", photos, "--images", 1, "--errors", 2)
    text = result.stdout[result.stdout.index("largest errors") :]
    own = [shares(photos, row, 3)[:, row // 2].mean() for row in range(6)]
    shown = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if ", image " in line]
    assert shown == list(np.argsort(own, kind="stable")[:2])


def test_a_sheet_is_a_picture(photos, tmp_path, invoke):
    out = tmp_path / "sheet.png"
    assert invoke("show", photos, "--class", "grey", "-o", out).exit_code == 0
    with Image.open(out) as sheet:
        assert sheet.size[0] > 400


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--class", "gray"], 2, "`--class gray` is no class, as are "),
        (["-o", "x.pdf"], 2, "expected a name in .html or .png"),
    ],
)
def test_wrong_words_get_one_line(photos, invoke, options, code, text):
    result = invoke("show", photos, *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr


def test_an_archive_without_images_is_refused(tmp_path, invoke):
    result = invoke("show", builders.write_unfitted(tmp_path / "function.hello"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the archive has no images to show" in result.stderr


def test_a_page_that_exists_is_refused_before_labels_are_made(photos, tmp_path, invoke):
    (tmp_path / "page.html").write_text("mine")
    result = invoke("show", photos, "--base", "none", "-o", tmp_path / "page.html")
    assert result.exit_code == 10
    assert (tmp_path / "page.html").read_text() == "mine"


def test_an_archive_without_labels_is_refused(image_folder, tmp_path, invoke):
    path = tmp_path / "hard.hello"
    invoke("pack", image_folder, "-o", path)
    result = invoke("show", path)
    assert result.exit_code == 2
    assert "soft labels need a projector, which the archive lacks" in result.stderr
