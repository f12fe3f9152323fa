"""The papers' figures: units, names, and sums that the papers print too."""

import pytest

from janus_jax.evaluation import paper, registry
from janus_jax.models.presets import PRESETS

GENERATION = {"geneval", "dpg", "coco_fid", "mjhq_fid"}


@pytest.mark.parametrize("model", paper.PAPER)
def test_names_are_those_of_presets_and_benchmarks(model):
    assert model in PRESETS
    for figures in (paper.PAPER[model], paper.INDEPENDENT.get(model, {})):
        assert {name.split("/")[0] for name in figures} <= {*registry.DEFINITIONS, *GENERATION}
    assert all(", Table " in figure.source for figure in paper.PAPER[model].values())


@pytest.mark.parametrize("model", paper.PAPER)
def test_geneval_overall_is_the_mean_of_its_tags(model):
    figures = paper.PAPER[model]
    tags = [figure.value for name, figure in figures.items() if name.startswith("geneval/")]
    assert len(tags) == 6 and sum(tags) / 6 == pytest.approx(figures["geneval"].value, abs=0.0051)


def test_unknown_names_have_no_figure():
    assert paper.paper_figure("janus_pro_7b", "vqav2") is None
    assert paper.independent_figure("another", "pope") is None
