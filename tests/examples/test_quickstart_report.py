"""The page of a quickstart run: targets are judged, the time is stated, text of the model is escaped."""

import re

import numpy as np
import PIL.Image
import pytest

from examples.digits.recipes import RECIPES
from examples.digits.report import Phase, Question, ReportPage, render

IMAGE = PIL.Image.new("RGB", (4, 4))
SCORES = {
    "understanding_accuracy": 0.98,
    "generation_accuracy": 0.5,
    "generation_accuracy_permuted_prompts": 0.1,
    "generation_diversity": 0.8,
}


def page(losses, **report):
    metrics = [{"step": float(i + 1), "loss": loss, "loss/flow": loss / 2} for i, loss in enumerate(losses)]
    fields = {"seconds": {"stage1": 70.0}, "total_seconds": 99999.0, "cfg_weight": 2.0, "drawn_images": 4}
    return render(
        ReportPage(
            family="JanusFlow",
            report=SCORES | fields | report,
            targets=RECIPES["flow"].targets,
            phases=[Phase("stage1", "Stage 1", "a note", metrics, [("llm", 3, 3), ("total", 1234, 3)])],
            generated=[("zero", [IMAGE] * 2), ("one", [IMAGE] * 2)],
            real=[("zero", [IMAGE]), ("one", [IMAGE])],
            reconstructions=[],
            questions=[Question(IMAGE, "Which?", "<b>two", "two"), Question(IMAGE, "Which?", "two", "two")],
            confusion=np.array([[2, 0], [1, 1]]),
            class_names=["zero", "one"],
            versions={"python": "3"},
            notes=["<note>"],
        )
    )


def test_targets_are_counted_and_the_time_is_no_target():
    html = page([3.0, 2.0])
    assert "3 of 4 targets met" in html and html.count("✗ fail") == 1
    assert "1666&nbsp;min 39&nbsp;s" in html and not any(
        "total_seconds" in recipe.targets for recipe in RECIPES.values()
    )


def test_text_is_escaped_and_answers_are_judged():
    html = page([3.0, 2.0])
    assert "&lt;b&gt;two" in html and "&lt;note&gt;" in html and "<b>two" not in html
    assert html.count("✓ correct") == 1 and html.count("✗ wrong") == 1
    assert "2 of 2 right" in html and "1 of 2 right" in html


@pytest.mark.parametrize(("losses", "logarithmic"), [([3.0, 2.0], False), ([100.0, 1.0], True), ([1.0, 1.0], False)])
def test_losses_lie_inside_the_plot_on_the_axis_that_suits_them(losses, logarithmic):
    html = page(losses)
    assert ("loss (log scale)" in html) == logarithmic
    (points, *_) = re.findall(r'<polyline points="([^"]+)"', html)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert len(places) == 2
    assert all(64 <= x <= 466 and 36 <= y <= 248 for x, y in places)
    assert places[0][1] <= places[1][1]  # the loss falls


def test_sections_follow_what_the_report_holds():
    arms = {name: {"steps": 10, "accuracy": 0.5} for name in ("with", "without")}
    solver = {"solver": "heun", "steps": 2, "passes": 4, "accuracy": 0.25, "diversity": 0.5}
    html = page([3.0, 2.0], solvers=[solver], alignment=[{"tflop": 1.5, **arms}])
    assert "Heun</caption>" in html and "25.0%" in html and "<td>10</td>" in html
    assert 'id="tokenizer"' not in html and 'id="alignment"' not in page([3.0, 2.0])
