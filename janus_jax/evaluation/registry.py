"""The benchmarks of questions by name: how each is read, asked, scored and handed in."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation import prompts, submissions
from janus_jax.evaluation.benchmark import Answer, Question, Scores
from janus_jax.evaluation.question_benchmark import QuestionBenchmark, Rule, Submission
from janus_jax.evaluation.readers import official, parquet_items, tsv_items
from janus_jax.evaluation.readers.find import OFFICIAL, PARQUET, Found, Source, find
from janus_jax.evaluation.readers.parquet import Table
from janus_jax.evaluation.readers.records import Item, first_ten
from janus_jax.evaluation.readers.row_items import DEVELOPMENT, VIDEO
from janus_jax.evaluation.scores import captions, chartqa, choices, gqa, mmmu, tables, vqa, yes_no
from janus_jax.phases import phase

_STEP_BY_STEP = (
    "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be sure you get "
    "the right answer."
)
_LEFT_OUT = {VIDEO: "about videos", DEVELOPMENT: "of the development split"}  # parts that are not asked
TEST_DEV, TEST = "test-dev2015", "test2015"  # splits of VQAv2 whose answers are not public


class Definition(NamedTuple):
    """What the library knows about a benchmark before any file is read."""

    kind: str  # of its prompts, one of prompts.KINDS
    rule: Rule
    submission: Submission
    system_prompt: str = ""
    max_new_tokens: int = 128


def _judged(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    return tables.unscored("MM-Vet is scored by its official GPT-4 judge: give it predictions.json.", answers)


def _mmmu_answer(question: Question, answer: Answer) -> str:
    """The official script compares letters, so options are read first; an undecided answer stays as it is."""
    options = question.fields["options"]
    return mmmu.read_option(answer.text, options) or answer.text if options else answer.text


DEFINITIONS: dict[str, Definition] = {
    "pope": Definition("yes_no", yes_no.score_pope, submissions.PopeLines()),
    "mme": Definition("yes_no_kept", yes_no.score_mme, submissions.MmeText()),
    "mmbench": Definition("options", choices.score_mmbench, submissions.MmbenchSheet()),
    "seed": Definition(
        "options",
        choices.score_seed,
        submissions.JsonRecords("predictions.jsonl", "question_id", "prediction", lines=True),
    ),
    "vqav2": Definition(
        "short",
        vqa.score_vqav2,
        submissions.JsonRecords(
            "predictions.json", "question_id", "answer", numeric_id=True, convert=vqa.process_evalai
        ),
    ),
    "gqa": Definition(
        "short",
        gqa.score,
        submissions.JsonRecords("testdev_balanced_predictions.json", "questionId", "prediction", convert=gqa.convert),
    ),
    "mmmu": Definition("options", mmmu.score, submissions.JsonObject("predictions.json", _mmmu_answer)),
    "mmvet": Definition(
        "free", _judged, submissions.JsonObject("predictions.json"), _STEP_BY_STEP, max_new_tokens=1024
    ),
    "textvqa": Definition(
        "short",
        vqa.score_textvqa,
        submissions.JsonRecords("predictions.json", "question_id", "answer", numeric_id=True),
    ),
    "chartqa": Definition("short", chartqa.score, submissions.ChartQaList()),
    "coco_captions": Definition(
        "caption",
        captions.score,
        submissions.JsonRecords("predictions.json", "image_id", "caption", numeric_id=True),
    ),
    "flickr30k": Definition(
        "caption",
        captions.score,
        submissions.JsonRecords("predictions.json", "image_id", "caption", numeric_id=True),
    ),
}


def load(data: epath.PathLike | Found, names: Sequence[str], protocol: str = "janus") -> list[QuestionBenchmark]:
    """Reads benchmarks from a folder or a file, or from what `find` returned for it.

    Args:
        names: Names in DEFINITIONS, or "all" for what the folder holds.

    Raises:
        UserError: a name is unknown, nothing or more than one source is found, or a file is damaged.
    """
    found = data if isinstance(data, Found) else find(data)
    if list(names) == ["all"]:
        names = found.benchmarks
        if not names:
            raise UserError(f"--data={found.data}: holds no benchmark of {', '.join(DEFINITIONS)}")
    unknown = [name for name in names if name not in DEFINITIONS]
    if unknown:
        raise UserError(f"--benchmarks={unknown[0]}: expected all or some of {', '.join(DEFINITIONS)}")
    return [build(found, found.source(name), protocol) for name in names]


def build(found: Found, source: Source, protocol: str = "janus") -> QuestionBenchmark:
    """The benchmark of one source. Raises UserError where its files are damaged."""
    definition = DEFINITIONS[source.benchmark]
    with phase(f"opening {source.benchmark}"):
        items = read_items(found, source)
    _check_items(items, source)
    left_out = {index: item.id for index, item in enumerate(items) if item.fields.get("part") in _LEFT_OUT}
    questions = [
        _question(index, item, prompts.render(definition.kind, item, protocol))
        for index, item in enumerate(items)
        if index not in left_out
    ]
    parts = collections.Counter(items[index].fields["part"] for index in left_out)
    notes = [f"{count} questions {_LEFT_OUT[part]} are left out." for part, count in parts.items()]
    submission = definition.submission
    if source.benchmark == "vqav2" and source.split == TEST_DEV:
        submission, note = _with_all_of_test(submission, found)
        notes.append(note)
    return QuestionBenchmark(
        source.benchmark,
        source.paths,
        questions,
        definition.rule,
        submission,
        split=source.split,
        layout=source.layout,
        protocol=protocol,
        system_prompt=definition.system_prompt,
        max_new_tokens=definition.max_new_tokens,
        unasked=left_out,
        notes=notes,
    )


def _check_items(items: Sequence[Item], source: Source) -> None:
    """Raises UserError for repeated ids, and where some questions lack the right answer that others have."""
    files = first_ten(source.paths)
    repeated = [name for name, count in collections.Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise UserError(f"{files}: ids repeated: {first_ten(repeated)}, expected each question once")
    without = [item.id for item in items if item.gold is None]
    if 0 < len(without) < len(items):
        raise UserError(f"{files}: questions without an answer: {first_ten(without)}, expected all or none to have one")


def _with_all_of_test(submission: Submission, found: Found) -> tuple[Submission, str]:
    """EvalAI wants an answer to every question of test2015, of which test-dev is a part."""
    whole = [source for source in found.sources if source.benchmark == "vqav2" and source.split == TEST]
    if len(whole) != 1 or not isinstance(submission, submissions.JsonRecords):
        return submission, "EvalAI wants all of test2015: put its file of questions beside, to fill in empty answers."
    also = official.vqav2_ids(whole[0].files["questions"][0])
    return dataclasses.replace(submission, also=also), "The rest of test2015 gets empty answers in predictions.json."


def read_items(found: Found, source: Source) -> list[Item]:
    """The questions of a source, in the order of its files."""
    if source.layout == OFFICIAL:
        files = {role: paths[0] for role, paths in source.files.items()}
        return official.READERS[source.benchmark](files, found.folders)
    if source.layout == PARQUET:
        return parquet_items.READERS[source.benchmark]({role: Table(paths) for role, paths in source.files.items()})
    return tsv_items.read_items(source.benchmark, source.files["rows"][0])


def _question(index: int, item: Item, prompt: str) -> Question:
    fields = {**item.fields, "question": item.question}
    return Question(index, item.id, prompt, item.images, item.gold, item.cluster, fields)
