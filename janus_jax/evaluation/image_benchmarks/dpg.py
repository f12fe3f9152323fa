"""DPG-Bench: 1,065 long prompts, four images each, judged by the answers of a model to questions about them.

The official script asks mPLUG, outside of this package. The answers of that or any other model come as JSON Lines, one
object per question and image:

    {"item": "partiprompts97", "crop": 0, "proposition": 1, "answer": "yes"}

where `crop` is the number of the image: 0 top left, 1 top right, 2 bottom left, 3 bottom right in the official grid.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from janus_jax.data.images import decode_image, grid
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageRequest, SampleScore, Scores
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_files import generated_images
from janus_jax.evaluation.model_answers import to_png
from janus_jax.evaluation.readers.records import Record, first_ten, read_json_lines, read_text
from janus_jax.evaluation.scores.dpg import NUM_CROPS, RULES, ItemScore, Proposition, category_means, score_item
from janus_jax.evaluation.statistics import mean_metric
from janus_jax.storage import disk_errors

QUESTIONS_FILE = "dpg_bench.csv"
_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
_ITEM_ID = re.compile(r"[\w-]{1,100}")  # the official script takes the file name up to its first dot

Questions = Mapping[str, Sequence[Proposition]]  # by item, in the order of the table


@dataclasses.dataclass(frozen=True)
class Dpg:
    """The benchmark. The id of a request is the official item id."""

    requests: Sequence[ImageRequest]
    files: Sequence[epath.Path]
    options: MetricOptions
    questions: epath.Path | None  # the official table of questions; None where it was not found
    name: str = "dpg"

    def score(self, folder: epath.Path) -> Scores:
        """Aggregates the answers to all questions.

        Raises:
            UserError: images are missing from a folder that exists, the questions or the answers are not there, or
                answers are missing, repeated or unknown.
        """
        rule = self.options.dpg_rule
        if rule not in RULES:
            raise UserError(f"--dpg_rule={rule!r} is not one of {', '.join(RULES)}")
        if self.questions is None:
            raise UserError(f"{self.name}: {QUESTIONS_FILE} of the ELLA repository is missing beside the prompts")
        answers_file = self.options.require_judgement("answers", self, "answers to its questions as JSON Lines", folder)
        if folder.exists():
            generated_images(self.requests, folder)
        questions = read_questions(self.questions, rule)
        answers = read_answers(answers_file, self.requests, questions)
        scored = {
            request.id: score_item(questions.get(request.id, ()), answers[request.id], rule)
            for request in self.requests
        }
        items = {id: score for id, score in scored.items() if score is not None}
        left_out = [id for id in scored if id not in items]
        if left_out and (rule != "official" or not items):
            raise UserError(f"{self.questions}: questions that depend on none of their item: {first_ten(left_out)}")
        notes = [f"rule {rule}", f"answers of {answers_file.name}; only mPLUG's compare with published figures"]
        notes += [f"left out, as the official script fails for them: {first_ten(left_out)}"] * bool(left_out)
        categories = category_means(list(items.values()))
        return Scores(
            headline="overall",
            metrics={"overall": mean_metric([item.score for item in items.values()], scale=100)},
            samples=[_sample(request, scored[request.id]) for request in self.requests],
            counts={"left_out": len(left_out)},
            tables={
                "DPG-Bench by category": [
                    ["category", "percent of questions answered yes", "questions"],
                    *([name, 100 * mean, count] for name, (mean, count) in categories.items()),
                ]
            },
            notes=notes,
        )

    def write_submission(self, images: epath.Path, folder: epath.Path) -> Sequence[epath.Path]:
        """Writes one `<item_id>.png` per prompt, a grid of 2 x 2 images without margins; nothing else may be there."""
        written = []
        for request, files in zip(self.requests, generated_images(self.requests, images), strict=True):
            image = grid([decode_image(file.read(), file.name) for file in files], columns=2)
            path = folder / f"{request.id}.png"
            with disk_errors(path):
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(to_png(image))
            written.append(path)
        return written


def open_dpg(path: epath.PathLike, options: MetricOptions) -> Dpg:
    """Reads the prompts: a folder of `<item_id>.txt`, JSON Lines with `item_id` and `text`, or `dpg_bench.csv`.

    The table of questions is looked for in the folder of prompts and beside it.

    Raises:
        UserError: the file is damaged, an item has no prompt, or an id cannot be the name of a file.
    """
    path = epath.Path(path)
    if path.is_dir():
        prompts = {text.name.split(".")[0]: read_text(text) for text in sorted(path.glob("*.txt"))}
    elif path.suffix == ".csv":
        prompts = {row.name("item_id"): row.text("text") for row in _rows(path)}
    else:
        prompts = {}
        for line in read_json_lines(path):
            if line.name("item_id") in prompts:
                raise line.error("item_id", "another id in every line")
            prompts[line.name("item_id")] = line.text("text")
    if not prompts:
        raise UserError(f"{path}: holds no prompts of DPG-Bench")
    for id, prompt in prompts.items():
        if not _ITEM_ID.fullmatch(id) or not prompt.strip():
            raise UserError(f"{path}: item {id!r} with prompt {prompt!r:.40}, expected a plain id and a prompt")
    candidates = [path, path / QUESTIONS_FILE, path.parent / QUESTIONS_FILE]
    questions = next((file for file in candidates if file.suffix == ".csv" and file.is_file()), None)
    requests = [
        ImageRequest(index, id, prompt.strip(), NUM_CROPS) for index, (id, prompt) in enumerate(prompts.items())
    ]
    files = [file for file in dict.fromkeys((path, questions)) if file is not None and file.is_file()]
    return Dpg(requests, files, options, questions)


def read_questions(path: epath.Path, rule: str) -> Questions:
    """The official table. Under the rule "official" its first row is skipped, as the official script does.

    A question that stands twice in an item has the values of its last row, as in the official script. Raises UserError.
    """
    items: dict[str, dict[int, Proposition]] = {}
    for number, row in enumerate(_rows(path)):
        if number == 0 and rule == "official":
            continue
        id = _whole(row, "proposition_id", row.text("proposition_id"))
        parents = tuple(_whole(row, "dependency", part) for part in row.text("dependency").split(","))
        category = row.text("tuple").split("(")[0].strip()
        proposition = Proposition(id, parents, category, row.text("question_natural_language"))
        items.setdefault(row.text("item_id"), {})[id] = proposition
    return {item: tuple(propositions.values()) for item, propositions in items.items()}


def read_answers(
    path: epath.Path, requests: Sequence[ImageRequest], questions: Questions
) -> dict[str, list[dict[int, str]]]:
    """The answers of each item: for each of its four images, the answer to each question.

    Answers to questions that the rule "official" skips may be there.

    Raises:
        UserError: answers are missing, repeated, or of unknown items, images or questions. Up to ten are named.
    """
    answers: dict[str, list[dict[int, str]]] = {request.id: [{} for _ in range(NUM_CROPS)] for request in requests}
    unknown, repeated = [], []
    for line in read_json_lines(path):
        item, crop = line.name("item"), _whole(line, "crop", line.name("crop"))
        question = _whole(line, "proposition", line.name("proposition"))
        label = f"{item}/{crop}/{question}"
        if item not in answers or not 0 <= crop < NUM_CROPS:
            unknown.append(label)
        elif question in answers[item][crop]:
            repeated.append(label)
        else:
            answers[item][crop][question] = line.text("answer")
    missing = [
        f"{item}/{crop}/{proposition.id}"
        for item, crops in answers.items()
        for crop, given in enumerate(crops)
        for proposition in questions.get(item, ())
        if proposition.id not in given
    ]
    for what, labels in (("missing", missing), ("repeated", repeated), ("not of the benchmark", unknown)):
        if labels:
            raise UserError(f"{path}: answers (item/crop/proposition) {what}: {first_ten(labels)}")
    return answers


def _rows(path: epath.Path) -> list[Record]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}")
    try:
        return [Record(row, f"{path}: row {number}") for number, row in enumerate(reader, 1)]
    except csv.Error as error:
        raise UserError(f"{path}: not readable as CSV ({error})") from error


def _whole(record: Record, key: str, text: str) -> int:
    if not re.fullmatch(r"\s*\d{1,6}\s*", text):
        raise record.error(key, "a whole number")
    return int(text)


def _sample(request: ImageRequest, item: ItemScore | None) -> SampleScore:
    if item is None:
        return SampleScore(request.index, None, 0.0)
    per_crop: dict[str, Any] = {"per_image": list(item.per_crop)}
    return SampleScore(request.index, f"{100 * item.score:.1f}", item.score, per_crop)
