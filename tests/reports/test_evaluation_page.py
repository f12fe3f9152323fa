"""The page of an evaluation: one file of bounded size, worst answers first, nothing of strangers as HTML."""

import re

import numpy as np
import PIL.Image
import pytest

from janus_jax.reports.evaluation_page import LONGEST_SIDE, Section, Shown, render


@pytest.fixture(scope="module")
def page():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (48, 64, 3), np.uint8)
    photo = PIL.Image.fromarray(noise).resize((1600, 1200), PIL.Image.Resampling.BICUBIC)
    shown = [
        Shown(f"<id {n}>", "Is <b>it</b>?", [photo], [("answer", "<script>1</script>"), ("read as", "")], "undecided")
        for n in range(50)
    ]
    table = ("types & more", [["type", "score"], ["<a>", 12.34567], ["b", None]])
    section = Section("pope", "f1: 80", [table], "50 of 60", shown, ["a <note>"])
    return render("Evaluation of <model>", ["benchmark", "ours"], [["pope", "80 & more"]], [section])


def test_fifty_photos_fit_into_ten_megabytes_and_nothing_is_loaded_from_elsewhere(page):
    assert len(page.encode()) < 10e6
    assert page.count("data:image/jpeg;base64,") == 50
    assert not re.search(r'(src|href)="(?!data:|#)|url\(|@import|<script|<link', page)
    assert f'width="{LONGEST_SIDE}" height="{LONGEST_SIDE * 3 // 4}"' in page


def test_texts_of_strangers_are_escaped(page):
    for text in ("<id 0>", "<b>it</b>", "<model>", "<a>", "<note>"):
        assert text not in page and text.replace("<", "&lt;").replace(">", "&gt;") in page
    assert "12.35" in page and "(empty)" in page and '<li class="undecided">' in page


def test_it_adapts_to_a_phone(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "minmax(min(20rem, 100%), 1fr)" in page  # cards are no wider than the screen
    assert page.count('<div class="scroll">') == 2  # wide tables scroll by themselves
