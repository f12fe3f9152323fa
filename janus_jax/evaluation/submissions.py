"""Answers in the files that official servers and scripts read, written and read back."""

import collections
import dataclasses
import json
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Answer, Question
from janus_jax.evaluation.readers import records
from janus_jax.evaluation.readers.records import Record, first_ten
from janus_jax.evaluation.scores.yes_no import MME_COGNITION, MME_PERCEPTION, POPE_SPLITS
from janus_jax.storage import write_whole

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

MAX_SHEET_BYTES = 256 << 20
_MAX_CELL = 32767  # characters that a cell of a spreadsheet can hold


def joined(
    path: epath.Path, pairs: Iterable[tuple[Key, Value]], keys: Sequence[Key], unasked: Collection[Key] = ()
) -> dict[Key, Value]:
    """The value of each key. Raises UserError for keys that are missing, repeated or unknown, naming up to ten.

    Args:
        unasked: keys that may be there as well.
    """
    found: dict[Key, Value] = {}
    repeated: list[Key] = []
    for key, value in pairs:
        if key in found:
            repeated.append(key)
        found[key] = value
    known = {*keys, *unasked}
    missing = [key for key in keys if key not in found]
    extra = [key for key in found if key not in known]
    for what, wrong in (("missing", missing), ("repeated", repeated), ("unknown", extra)):
        if wrong:
            raise UserError(
                f"{path}: answers {what}: {first_ten(wrong)}, expected one for each of {len(keys)} questions"
            )
    return found


@dataclasses.dataclass(frozen=True)
class JsonRecords:
    """A JSON list, or JSON lines, with an id and an answer in each record."""

    file: str
    id_field: str
    text_field: str
    lines: bool = False
    numeric_id: bool = False
    convert: Callable[[str], str] = str  # what happens to an answer before it is uploaded
    also: Sequence[str] = ()  # ids that the server wants as well; they get an empty answer

    def write(self, questions: Sequence[Question], answers: Sequence[Answer], folder: epath.Path) -> list[epath.Path]:
        texts = {q.id: self.convert(answer.text) for q, answer in zip(questions, answers, strict=True)}
        texts |= {name: "" for name in self.also if name not in texts}
        content = [
            {self.id_field: int(name) if self.numeric_id and name.isdecimal() else name, self.text_field: text}
            for name, text in texts.items()
        ]
        if self.lines:
            return [_write_lines(folder / self.file, content)]
        return [_write_json(folder / self.file, content)]

    def read(self, questions: Sequence[Question], unasked: Collection[str], path: epath.Path) -> list[Answer]:
        path = _inside(path, self.file)
        rows = records.read_json_lines(path) if self.lines else records.records_of(path, records.read_json(path))
        pairs = ((row.name(self.id_field), row.text(self.text_field)) for row in rows)
        return [answer._replace(converted=True) for answer in _by_id(path, pairs, questions, {*unasked, *self.also})]


@dataclasses.dataclass(frozen=True)
class JsonObject:
    """A JSON object with one field per question."""

    file: str
    answer: Callable[[Question, Answer], str] = lambda question, answer: answer.text

    def write(self, questions: Sequence[Question], answers: Sequence[Answer], folder: epath.Path) -> list[epath.Path]:
        pairs = zip(questions, answers, strict=True)
        return [_write_json(folder / self.file, {q.id: self.answer(q, answer) for q, answer in pairs})]

    def read(self, questions: Sequence[Question], unasked: Collection[str], path: epath.Path) -> list[Answer]:
        path = _inside(path, self.file)
        row = Record(records.read_json(path), str(path))
        return _by_id(path, ((name, row.text(name)) for name in row.values), questions, unasked)


@dataclasses.dataclass(frozen=True)
class ChartQaList:
    """ChartQA: a JSON list of {imgname, query, answer}; a question that is repeated keeps its order."""

    file: str = "predictions.json"

    def write(self, questions: Sequence[Question], answers: Sequence[Answer], folder: epath.Path) -> list[epath.Path]:
        content = [
            {"imgname": question.fields["image"], "query": _query(question), "answer": answer.text}
            for question, answer in zip(questions, answers, strict=True)
        ]
        return [_write_json(folder / self.file, content)]

    def read(self, questions: Sequence[Question], unasked: Collection[str], path: epath.Path) -> list[Answer]:
        path = _inside(path, self.file)
        rows = records.records_of(path, records.read_json(path))
        found = numbered([(row.text("imgname"), row.text("query")) for row in rows])
        keys = numbered([(question.fields["image"], _query(question)) for question in questions])
        pairs = zip(found, [row.text("answer") for row in rows], strict=True)
        texts = joined(path, pairs, keys, found if unasked else ())
        return [Answer(question.index, texts[key]) for question, key in zip(questions, keys, strict=True)]


@dataclasses.dataclass(frozen=True)
class PopeLines:
    """POPE: JSON lines per split, `pope_<split>.jsonl`, of {question_id, question, answer}."""

    def write(self, questions: Sequence[Question], answers: Sequence[Answer], folder: epath.Path) -> list[epath.Path]:
        return [
            _write_lines(
                folder / f"pope_{split}.jsonl",
                [
                    {"question_id": _pope_id(question, split), "question": _query(question), "answer": answer.text}
                    for question, answer in zip(questions, answers, strict=True)
                    if split in question.fields["splits"]
                ],
            )
            for split in _splits(questions)
        ]

    def read(self, questions: Sequence[Question], unasked: Collection[str], path: epath.Path) -> list[Answer]:
        """Also reads files without `question_id`, whose lines are in the order of the questions."""
        splits = _splits(questions)
        texts: dict[str, str] = {}
        if not path.is_dir() and len(splits) > 1:
            raise UserError(f"{path}: a file, expected the folder with pope_<split>.jsonl for {', '.join(splits)}")
        for split in splits:
            file = _inside(path, f"pope_{split}.jsonl")
            rows = list(records.read_json_lines(file))
            asked = [question for question in questions if split in question.fields["splits"]]
            if all("question_id" in row.values for row in rows):
                names = [row.name("question_id") for row in rows]
            else:
                names = [_pope_id(question, split) for question in asked][: len(rows)]
                names += [f"line {number}" for number in range(len(names) + 1, len(rows) + 1)]
            answers = [row.text("answer" if "answer" in row.values else "text") for row in rows]
            left_out = {name.removeprefix(f"{split}/") for name in unasked}
            found = joined(
                file, zip(names, answers, strict=True), [_pope_id(question, split) for question in asked], left_out
            )
            for question in asked:
                text = found[_pope_id(question, split)]
                if texts.setdefault(question.id, text) != text:
                    raise UserError(f"{file}: question {question.id} has another answer than in the other splits")
        return [Answer(question.index, texts[question.id]) for question in questions]


@dataclasses.dataclass(frozen=True)
class MmeText:
    """MME: `<task>.txt` with image, question, right answer and response in columns; a response is one line."""

    def write(self, questions: Sequence[Question], answers: Sequence[Answer], folder: epath.Path) -> list[epath.Path]:
        tasks: dict[str, list[str]] = {}
        for question, answer in zip(questions, answers, strict=True):
            response = " ".join(answer.text.split())
            cells = (*_mme_key(question), question.gold.capitalize(), response)
            tasks.setdefault(question.fields["task"], []).append("\t".join(cells))
        paths = [folder / f"{task}.txt" for task in tasks]
        for path, lines in zip(paths, tasks.values(), strict=True):
            write_whole(path, "\n".join(lines) + "\n")
        return paths

    def read(self, questions: Sequence[Question], unasked: Collection[str], path: epath.Path) -> list[Answer]:
        tasks = {question.fields["task"] for question in questions}
        if not path.is_dir() and len(tasks) > 1:
            raise UserError(f"{path}: a file, expected the folder with <task>.txt for {len(tasks)} tasks")
        texts: dict[str, str] = {}
        for task in (*MME_PERCEPTION, *MME_COGNITION):
            if task not in tasks:
                continue
            file = _inside(path, f"{task}.txt")
            rows = [
                (number, line.rstrip("\r").split("\t"))
                for number, line in enumerate(records.read_text(file).split("\n"), 1)
                if line.strip()
            ]
            for number, cells in rows:
                if len(cells) != 4:
                    raise UserError(
                        f"{file}: line {number} has {len(cells)} columns, expected image, question, answer and response"
                    )
            asked = [question for question in questions if question.fields["task"] == task]
            keys = numbered([_mme_key(question) for question in asked])
            found = numbered([(cells[0], cells[1]) for _, cells in rows])
            pairs = zip(found, [cells[3] for _, cells in rows], strict=True)
            by_key = joined(file, pairs, keys, found if unasked else ())
            texts |= {question.id: by_key[key] for question, key in zip(asked, keys, strict=True)}
        return [Answer(question.index, texts[question.id]) for question in questions]


@dataclasses.dataclass(frozen=True)
class MmbenchSheet:
    """MMBench: a spreadsheet with the columns of the annotations and `prediction`."""

    file: str = "predictions.xlsx"

    def write(self, questions: Sequence[Question], answers: Sequence[Answer], folder: epath.Path) -> list[epath.Path]:
        """Control characters, which the format cannot hold, become blanks. Raises UserError for a longer answer."""
        openpyxl = _openpyxl()
        letters = sorted({letter for question in questions for letter in question.fields["options"]})
        fields = {"hint": "hint", "category": "category", "l2-category": "l2_category", "source": "source"}
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()
        sheet.append(["index", "question", *letters, "answer", *fields, "split", "prediction"])
        illegal = openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE
        for question, answer in zip(questions, answers, strict=True):
            texts = [
                _query(question),
                *(question.fields["options"].get(letter, "") for letter in letters),
                question.gold or "",
                *(question.fields.get(field, "") for field in fields.values()),
                question.fields.get("split", ""),
                answer.text,
            ]
            cells = []
            for text in texts:
                if len(text) > _MAX_CELL:
                    raise UserError(
                        f"{self.file}: question {question.id} has a text of {len(text)} characters, "
                        f"a cell holds {_MAX_CELL}"
                    )
                cell = openpyxl.cell.WriteOnlyCell(sheet, illegal.sub(" ", text))
                cell.data_type = "s"  # a text that begins with "=" is no formula
                cells.append(cell)
            sheet.append([int(question.id), *cells])
        path = folder / self.file
        book.save(str(path))
        return [path]

    def read(self, questions: Sequence[Question], unasked: Collection[str], path: epath.Path) -> list[Answer]:
        path = _inside(path, self.file)
        if path.suffix.lower() != ".xlsx" or path.stat().length > MAX_SHEET_BYTES:
            raise UserError(f"{path}: expected a .xlsx file of at most {MAX_SHEET_BYTES} bytes")
        openpyxl = _openpyxl()
        try:
            sheet = openpyxl.load_workbook(str(path), read_only=True, data_only=True).worksheets[0]
            head, *rows = [list(row) for row in sheet.iter_rows(values_only=True)]
        except Exception as error:  # a damaged archive raises what its parser raises
            raise UserError(f"{path}: not readable as a spreadsheet ({type(error).__name__}: {error})") from error
        pairs = []
        for number, cells in enumerate(rows, 2):
            row = Record(dict(zip(map(str, head), cells, strict=False)), f"{path}: row {number}")
            text = row.values.get("prediction")
            pairs.append(
                (row.name("index"), "" if text is None and "prediction" in row.values else row.text("prediction"))
            )
        return _by_id(path, pairs, questions, unasked)


def numbered(keys: Sequence[Key]) -> list[tuple[Key, int]]:
    """Keys with the number of their occurrence, so that repeated ones differ."""
    seen: collections.Counter[Key] = collections.Counter()
    result = []
    for key in keys:
        seen[key] += 1
        result.append((key, seen[key]))
    return result


def _by_id(
    path: epath.Path, pairs: Iterable[tuple[str, str]], questions: Sequence[Question], unasked: Collection[str]
) -> list[Answer]:
    texts = joined(path, pairs, [question.id for question in questions], unasked)
    return [Answer(question.index, texts[question.id]) for question in questions]


def _inside(path: epath.Path, name: str) -> epath.Path:
    """The file itself, or the one of this name in a folder. Raises UserError if it is missing."""
    path = path / name if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path} is missing, expected the predictions there")
    return path


def _write_json(path: epath.Path, content: Sequence[Any] | Mapping[str, Any]) -> epath.Path:
    write_whole(path, json.dumps(content) + "\n")
    return path


def _write_lines(path: epath.Path, content: Sequence[Mapping[str, Any]]) -> epath.Path:
    write_whole(path, "".join(json.dumps(record) + "\n" for record in content))
    return path


def _query(question: Question) -> str:
    """The question as the benchmark has it, without what a prompt adds."""
    return question.fields["question"]


def _splits(questions: Sequence[Question]) -> list[str]:
    return [split for split in POPE_SPLITS if any(split in question.fields["splits"] for question in questions)]


def _pope_id(question: Question, split: str) -> str:
    return question.id.removeprefix(f"{split}/")


def _mme_key(question: Question) -> tuple[str, str]:
    return question.fields["image"], _query(question)


def _openpyxl() -> Any:
    try:
        import openpyxl
        import openpyxl.cell
    except ImportError as error:
        raise UserError("MMBench's spreadsheet needs openpyxl: pip install 'janus_jax[eval]'") from error
    return openpyxl
