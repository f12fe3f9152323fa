"""How long the benchmarks take on a slice, from the predicted time of a batch.

Every host of a slice works alone on the batches of its share (docs/evaluation.md), so that a slice of N hosts has N
workers. Loading, compilation, the work of the hosts and the scores are not counted.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from janus_jax.compile_check.batches import ANSWER_SLOTS, IMAGES_PER_PROMPT, ROWS, TEXT_TOKENS, BatchCheck, Part

WORKERS = {"v5e-4": 1, "v5e-16": 4, "v5e-64": 16}  # hosts of four chips


class Workload(NamedTuple):
    """What a benchmark asks for. Equal questions about one image are asked once."""

    name: str
    requests: int  # questions, or images
    tokens: int = 0  # length of the longest answer of a batch, its end included: an assumption; 0 for images


YES_NO, SHORT, CAPTION, LONG = 3, 8, 32, 512
WORKLOADS = (
    Workload("pope", 5_127, YES_NO),
    Workload("mme", 2_374, YES_NO),
    Workload("mmbench", 4_329, YES_NO),
    Workload("seed", 14_232, YES_NO),
    Workload("vqav2", 214_354, SHORT),
    Workload("gqa", 12_578, SHORT),
    Workload("mmmu", 900, SHORT),
    Workload("textvqa", 5_000, SHORT),
    Workload("chartqa", 2_500, SHORT),
    Workload("coco_captions", 5_000, CAPTION),
    Workload("flickr30k", 1_000, CAPTION),
    Workload("mmvet", 218, LONG),
    Workload("geneval", 553 * IMAGES_PER_PROMPT),
    Workload("dpg", 1_065 * IMAGES_PER_PROMPT),
    Workload("coco_fid", 30_000),
    Workload("mjhq_fid", 30_000),
)


def batch_of(check: BatchCheck, workload: Workload) -> Part:
    """One batch of a benchmark."""
    return check.answers(workload.tokens) if workload.tokens else check.images


def hours(check: BatchCheck, workload: Workload, workers: int) -> float:
    """Predicted hours until the last worker is done."""
    batches = math.ceil(math.ceil(workload.requests / ROWS) / workers)
    return batches * batch_of(check, workload).predicted / 3600


def as_dict(check: BatchCheck) -> dict[str, Any]:
    """All numbers, JSON-serialisable."""
    table = {
        workload.name: workload._asdict()
        | {"hours": {slice_: hours(check, workload, workers) for slice_, workers in WORKERS.items()}}
        for workload in WORKLOADS
    }
    short = check.answers(YES_NO)
    return dataclasses.asdict(check) | {
        "answers_per_second": ROWS / short.predicted,
        "images_per_second": ROWS / check.images.predicted,
        "benchmarks": table,
    }


def format_report(check: BatchCheck) -> str:
    """The tables for people."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in check.mesh.items())
    kind = check.dtype if check.quantization is None else f"{check.quantization} weights, {check.dtype}"
    short, images = check.answers(YES_NO), check.images
    rows = [
        (f"{ROWS} questions: an image, {TEXT_TOKENS} tokens before and {TEXT_TOKENS} behind it", check.questions),
        ("the second token of the answers", check.answer_call),
        ("each further token", check.answer_step),
        (f"{ROWS} answers of {YES_NO} tokens", short),
        (f"prompts of {ROWS // IMAGES_PER_PROMPT} x {IMAGES_PER_PROMPT} images", check.prompts),
        (f"all further codes of {ROWS} images", check.code_steps),
        (f"decoding {ROWS} images", check.pixels),
        (f"{ROWS} guided images", images),
    ]
    fits = "fits" if check.needed_bytes <= check.hbm_bytes else "DOES NOT FIT"
    return "\n".join(
        [
            f"{check.name} ({kind}) on {check.topology}: {check.chips} chips ({mesh})",
            f"needed per chip, GB: {check.needed_bytes / 1e9:.1f} of {check.hbm_bytes / 1e9:.1f}: {fits}",
            "",
            f"{'milliseconds: lowest, predicted, highest':<42}",
            *(_row(name, *(1e3 * seconds for seconds in (part.low, part.predicted, part.high))) for name, part in rows),
            "",
            f"questions per second: {ROWS / short.predicted:.1f}",
            f"images per second: {ROWS / images.predicted:.2f}",
            "",
            f"{'hours, one worker per host of four chips':<42}" + "".join(f"{name:>10}" for name in WORKERS),
            *(
                f"{_title(workload):<42}"
                + "".join(f"{hours(check, workload, count):>10.2g}" for count in WORKERS.values())
                for workload in WORKLOADS
            ),
            "",
            f"Answers have room for {ANSWER_SLOTS} tokens.",
            "Times are predicted from the compiled programs, not measured.",
        ]
    )


def _title(workload: Workload) -> str:
    what = f"answers of {workload.tokens}" if workload.tokens else "images"
    return f"{workload.name}: {workload.requests:,} {what}"


def _row(name: str, *values: float) -> str:
    return f"{name:<42}" + "".join(f"{value:>10,.1f}" for value in values)
