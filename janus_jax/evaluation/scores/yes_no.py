"""POPE and MME: questions that are answered with yes or no.

POPE follows AoiDragon/POPE@08d957b (`evaluate.py`), MME the official tool (`calculation.py`). Beside them stand the
readings of VLMEvalKit@e8e78f0 (`yorn.py`) and lmms-eval@75571cf.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from janus_jax.evaluation.benchmark import Answer, Metric, Question, SampleScore, Scores
from janus_jax.evaluation.scores import tables, vqa
from janus_jax.evaluation.statistics import bootstrap_metric, cluster_totals, mean_metric

POPE_SPLITS = ("random", "popular", "adversarial")
MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def pope_label(text: str) -> str:
    """The official reading: "no" if the first sentence has the word No, no or not, otherwise "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def vlmevalkit_label(text: str) -> str | None:
    """VLMEvalKit's reading: yes or no if exactly one of them is among the words."""
    words = set(vqa.without_punctuation_vlmevalkit(text.lower()).split())
    return None if ("yes" in words) == ("no" in words) else "yes" if "yes" in words else "no"


def lmms_label(text: str) -> str | None:
    """lmms-eval's reading: the whole answer has to be yes or no."""
    word = text.lower().strip()
    return word if word in ("yes", "no") else None


def mme_label(text: str) -> str | None:
    """The official reading: yes or no within the first four characters."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def score_pope(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Percent, per split and the mean of the splits. The headline is F1 of the random split, as in the papers.

    `gold` is yes or no; `fields["splits"]` lists the splits that ask the question: one in the official files, up to
    three in VLMEvalKit's, which hold each question once.
    """
    samples = []
    for question, answer in zip(questions, answers, strict=True):
        read = None if answer.error else pope_label(answer.text)
        others = {
            "vlmevalkit": None if answer.error else vlmevalkit_label(answer.text),
            "lmms_eval": None if answer.error else lmms_label(answer.text),
        }
        fields = {name: float(label == question.gold) for name, label in others.items()}
        samples.append(SampleScore(answer.index, read, float(read == question.gold), {**fields, "labels": others}))
    metrics, found = {}, {}
    splits = [split for split in POPE_SPLITS if any(split in question.fields["splits"] for question in questions)]
    for split in splits:
        chosen = [place for place, question in enumerate(questions) if split in question.fields["splits"]]
        gold = [questions[place].gold for place in chosen]
        clusters = [questions[place].cluster for place in chosen]
        readings = [samples[place].parsed for place in chosen]
        for name, metric in _detection_metrics(gold, readings, clusters).items():
            metrics[f"{name}_{split}"] = metric
        for kit in ("vlmevalkit", "lmms_eval"):
            labels = [samples[place].fields["labels"][kit] for place in chosen]
            right = [samples[place].fields[kit] for place in chosen]
            # In F1 lmms-eval forgets answers that it cannot read, and VLMEvalKit takes them for no.
            outcomes = _outcomes(gold, [label or "no" for label in labels])
            if kit == "lmms_eval":
                outcomes[[label is None for label in labels]] = 0
            metrics[f"{kit}_f1_{split}"] = bootstrap_metric(cluster_totals(outcomes, clusters), f1_percent, len(gold))
            metrics[f"{kit}_accuracy_{split}"] = mean_metric(right, clusters, scale=100)
        found[f"confusion, {split}"] = tables.confusion(gold, readings)
    metrics["mean_f1"] = _mean_f1(questions, samples, splits)
    headline = "f1_random" if "random" in splits else "mean_f1"
    notes = [f"Splits: {', '.join(splits)}. The papers report the random split."]
    if not any(sample.parsed == "yes" for sample in samples):
        notes.append("No answer was read as yes: precision and F1 are set to 0.")
    return Scores(headline, metrics, samples, tables.count_undecided(samples), found, notes)


def score_mme(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Points: 100 times accuracy plus 100 times the share of images with both answers right, summed over tasks.

    `gold` is yes or no, `fields["task"]` the task; the cluster is the image, so pairs need not be neighbours.
    """
    samples = []
    for question, answer in zip(questions, answers, strict=True):
        read = None if answer.error else mme_label(answer.text)
        task = {"task": question.fields["task"]}
        samples.append(SampleScore(answer.index, read, float(read == question.gold), task))
    present = {question.fields["task"] for question in questions}
    metrics = {}
    for name, tasks in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION)):
        found = tuple(task for task in tasks if task in present)
        groups = [(name, found), *((task, (task,)) for task in found)] if found else []
        for group, members in groups:
            chosen = [place for place, question in enumerate(questions) if question.fields["task"] in members]
            pairs = [(questions[place].fields["task"], questions[place].cluster) for place in chosen]
            metrics[group] = mme_points(tables.points([samples[place] for place in chosen]), pairs)
    missing = [task for task in MME_PERCEPTION if task not in present]
    notes = [f"Tasks are missing, so perception is no sum of ten: {', '.join(missing)}."] if missing else []
    listed = {
        "tasks": tables.by_type([question.fields["task"] for question in questions], tables.points(samples)),
        "confusion": tables.confusion([question.gold for question in questions], [s.parsed for s in samples]),
    }
    headline = "perception" if "perception" in metrics else "cognition"
    return Scores(headline, metrics, samples, tables.count_undecided(samples), listed, notes)


def mme_points(scores: Sequence[float], pairs: Sequence[tuple[str, str]]) -> Metric:
    """The points of the questions' tasks together; the arguments are those of `mme_totals`."""
    return bootstrap_metric(mme_totals(scores, pairs), mme_sum, len(scores))


def mme_totals(scores: Sequence[float], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Sums of each image, [images, 4 tasks]: right answers, answers, images with all right, images; per task.

    Args:
        scores: 0 or 1 per question.
        pairs: Task and image of each question.
    """
    images: dict[tuple[str, str], list[float]] = {}
    for value, pair in zip(scores, pairs, strict=True):
        images.setdefault(pair, []).append(value)
    tasks = sorted({task for task, _ in images})
    totals = np.zeros((len(images), len(tasks), 4))
    for place, ((task, _), values) in enumerate(images.items()):
        totals[place, tasks.index(task)] = sum(values), len(values), all(values), 1
    return totals.reshape(len(images), -1)


def mme_sum(sums: np.ndarray) -> np.ndarray:
    """Points of sums [..., 4 tasks] over images, as `mme_totals` orders them."""
    right, count, both, number = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 4), -1, 0)
    return (100 * right / np.maximum(count, 1) + 100 * both / np.maximum(number, 1)).sum(axis=-1)


def _outcomes(gold: Sequence[str], read: Sequence[str | None]) -> np.ndarray:
    """One row per question: true positives, false positives, true negatives, false negatives. Unread is wrong."""
    rows = np.zeros((len(gold), 4))
    for row, right, label in zip(rows, gold, read, strict=True):
        if right == "yes":
            row[0 if label == "yes" else 3] = 1
        else:
            row[2 if label == "no" else 1] = 1
    return rows


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(100 * part, whole, out=np.zeros_like(part), where=whole > 0)


def f1_percent(outcomes: np.ndarray) -> np.ndarray:
    """F1 of sums [..., 4] of true positives, false positives, true negatives and false negatives."""
    true, false, _, missed = np.moveaxis(outcomes, -1, 0)
    return _ratio(2 * true, 2 * true + false + missed)


def _detection_metrics(
    gold: Sequence[str], read: Sequence[str | None], clusters: Sequence[str]
) -> Mapping[str, Metric]:
    totals = cluster_totals(_outcomes(gold, read), clusters)
    statistics = {
        "f1": f1_percent,
        "precision": lambda sums: _ratio(sums[..., 0], sums[..., 0] + sums[..., 1]),
        "recall": lambda sums: _ratio(sums[..., 0], sums[..., 0] + sums[..., 3]),
    }
    metrics = {name: bootstrap_metric(totals, statistic, len(gold)) for name, statistic in statistics.items()}
    right = [float(label == answer) for label, answer in zip(read, gold, strict=True)]
    metrics["accuracy"] = mean_metric(right, clusters, scale=100)
    metrics["yes_ratio"] = mean_metric([float(label == "yes") for label in read], clusters, scale=100)
    return metrics


def _mean_f1(questions: Sequence[Question], samples: Sequence[SampleScore], splits: Sequence[str]) -> Metric:
    """The mean of the splits' F1; they share images, so whole images are resampled over all splits at once."""
    outcomes = _outcomes([question.gold for question in questions], [sample.parsed for sample in samples])
    asked = np.array([[split in question.fields["splits"] for split in splits] for question in questions], np.float64)
    rows = (asked[:, :, None] * outcomes[:, None, :]).reshape(len(questions), -1)

    def mean(sums: np.ndarray) -> np.ndarray:
        return f1_percent(sums.reshape(*sums.shape[:-1], len(splits), 4)).mean(axis=-1)

    return bootstrap_metric(cluster_totals(rows, [question.cluster for question in questions]), mean, int(asked.sum()))
