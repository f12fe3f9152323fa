"""Figures that the papers print, and what independent users measured with the released weights.

The authors published few of their settings: MMBench is plain (no circular evaluation), POPE is the random split, MMMU
the validation split, answers are greedy (their adaptor, open-compass/VLMEvalKit#541, for Janus-1.3B; that the same
holds for Janus-Pro is not known). The figures of users are a band to be in, not a goal.
"""

from collections.abc import Mapping
from typing import NamedTuple

_JANUS = "Janus, arXiv 2410.13848"
_PRO = "Janus-Pro, arXiv 2501.17811"
_FLOW = "JanusFlow, arXiv 2411.07975"
_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


class Figure(NamedTuple):
    """A published figure in the unit of the paper: percent, points of MME-P, FID, or shares from 0 to 1 for GenEval."""

    value: float
    source: str
    high: float | None = None  # upper end, where the source gives a range from `value`


def _figures(source: str, **values: float) -> dict[str, Figure]:
    return {name: Figure(value, source) for name, value in values.items()}


def _geneval(source: str, overall: float, *tags: float) -> dict[str, Figure]:
    named = {f"geneval/{tag}": value for tag, value in zip(_TAGS, tags, strict=True)}
    return {name: Figure(value, source) for name, value in {"geneval": overall, **named}.items()}


# Preset of `models.presets` -> benchmark, or benchmark/part -> figure. It is to be compared with the headline.
PAPER: Mapping[str, Mapping[str, Figure]] = {
    "janus_1p3b": {
        **_figures(
            f"{_JANUS}, Table 2",
            pope=87.0,
            mme=1338.0,
            mmbench=69.4,
            seed=63.7,
            vqav2=77.3,
            gqa=59.1,
            mmmu=30.5,
            mmvet=34.3,
        ),
        **_geneval(f"{_JANUS}, Table 3", 0.61, 0.97, 0.68, 0.30, 0.84, 0.46, 0.42),
        **_figures(f"{_JANUS}, Table 4", coco_fid=8.53, mjhq_fid=10.10),
        **_figures(f"{_PRO}, Table 5", dpg=79.68),
    },
    "janus_pro_1b": {
        **_figures(f"{_PRO}, Table 3", pope=86.2, mme=1444.0, mmbench=75.5, seed=68.3, gqa=59.3, mmmu=36.3, mmvet=39.8),
        **_geneval(f"{_PRO}, Table 4", 0.73, 0.98, 0.82, 0.51, 0.89, 0.65, 0.56),
        **_figures(f"{_PRO}, Table 5", dpg=82.63),
    },
    "janus_pro_7b": {
        **_figures(f"{_PRO}, Table 3", pope=87.4, mme=1567.1, mmbench=79.2, seed=72.1, gqa=62.0, mmmu=41.0, mmvet=50.0),
        **_geneval(f"{_PRO}, Table 4", 0.80, 0.99, 0.89, 0.59, 0.90, 0.79, 0.66),
        **_figures(f"{_PRO}, Table 5", dpg=84.19),
    },
    "janusflow_1p3b": {
        **_figures(
            f"{_FLOW}, Table 5",
            pope=88.0,
            mme=1333.1,
            mmbench=74.9,
            seed=70.5,
            vqav2=79.8,
            gqa=60.3,
            mmmu=29.3,
            mmvet=30.9,
            chartqa=64.6,
            textvqa=55.5,
        ),
        **_geneval(f"{_FLOW}, Table 2", 0.63, 0.97, 0.59, 0.45, 0.83, 0.53, 0.42),
        **_figures(f"{_FLOW}, Table 3", dpg=80.09),
        **_figures(f"{_FLOW}, Table 4", mjhq_fid=9.51),
    },
}

_ADAPTOR = "open-compass/VLMEvalKit#541, by an author"
_USER_239 = "deepseek-ai/Janus#239, VLMEvalKit"
_USER_205 = "deepseek-ai/Janus#205, lmms-eval, circular"
_USER_210 = "deepseek-ai/Janus#210, 4 images, temperature 1"

INDEPENDENT: Mapping[str, Mapping[str, Figure]] = {
    "janus_1p3b": {
        **_figures(_ADAPTOR, pope=87.1, mme=1342.4, mmbench=69.8, seed=63.8, mmmu=31.2, mmvet=36.8),
        "pope/overall": Figure(85.5, _ADAPTOR),
    },
    "janus_pro_1b": {
        "pope": Figure(84.11, f"{_USER_239}, all splits"),
        "mmbench": Figure(74.2, _USER_239, 74.3),
        "seed": Figure(67.28, _USER_239),
        "mmmu": Figure(34.89, _USER_239, 35.22),
        "mmvet": Figure(35.3, _USER_239, 37.5),
        "geneval/two_object": Figure(0.697, _USER_210),
        "geneval/position": Figure(0.4625, _USER_210),
        "dpg": Figure(74.64, "JiuhaiChen/BLIP3o#46, compared with the figure of the 1B"),
    },
    "janus_pro_7b": {
        "mmbench/circular": Figure(65.81, _USER_205),
        "chartqa/human": Figure(43.44, "open-compass/VLMEvalKit#948, final full stop removed"),
        "chartqa/augmented": Figure(75.04, "open-compass/VLMEvalKit#948, final full stop removed"),
        "chartqa": Figure(59.24, "open-compass/VLMEvalKit#948, final full stop removed"),
    },
}


def paper_figure(model: str, benchmark: str) -> Figure | None:
    """What the paper of a preset prints for a benchmark; None where it prints nothing."""
    return PAPER.get(model, {}).get(benchmark)


def independent_figure(model: str, benchmark: str) -> Figure | None:
    """What users of the released weights measured; None where nobody told."""
    return INDEPENDENT.get(model, {}).get(benchmark)
