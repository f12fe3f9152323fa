"""DPG-Bench's rules against its official script, and whole runs from files."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.image_benchmarks.dpg import open_dpg
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.scores.dpg import Proposition, category_means, score_item
from tests.helpers.generated_images import write_run
from tests.helpers.golden_evaluation import rules

GOLDEN = rules("dpg_bench")["item"]
IDS = [int(id) for id in GOLDEN["questions"]["qid2tuple"]]
COLUMNS = ["item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed"]
COLUMNS += ["tuple", "question_natural_language"]
ITEMS = {"partiprompts97": " A brown dog on a sofa.", "0": "A dog,\nbrown."}


def propositions():
    questions = GOLDEN["questions"]
    return [
        Proposition(
            id,
            tuple(questions["qid2dependency"][str(id)]),
            questions["qid2tuple"][str(id)].split("(")[0].strip(),
            questions["qid2question"][str(id)],
        )
        for id in IDS
    ]


def crops():
    return [{int(id): answer for id, answer in crop.items()} for crop in GOLDEN["answers_per_crop"]]


def write_table(path):
    """The official columns; both items have the questions of the golden item."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for item, text in ITEMS.items():
            for p in propositions():
                writer.writerow(
                    {
                        "item_id": item,
                        "text": text,
                        "proposition_id": p.id,
                        "dependency": ",".join(map(str, p.parents)),
                        "tuple": f"{p.category} (x)",
                        "question_natural_language": p.question,
                    }
                )
    return path


def answer_lines():
    """The golden answers for the first item, and yes to all for the second one."""
    for item in ITEMS:
        for crop, answers in enumerate(crops()):
            for id, answer in answers.items():
                yield {"item": item, "crop": crop, "proposition": id, "answer": answer if item != "0" else "yes"}


@pytest.fixture
def tmp_path(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in answer_lines()))
    return path


@pytest.fixture
def benchmark(tmp_path, answers):
    return open_dpg(write_table(tmp_path / "dpg_bench.csv"), MetricOptions(answers=answers))


@pytest.mark.parametrize("rule", ["all_rows", "official"])
def test_the_score_of_an_item_is_that_of_the_official_script(rule):
    item = score_item(propositions(), crops(), rule)
    assert item.per_crop == pytest.approx(GOLDEN["score_per_crop"], abs=1e-12)
    assert item.score == pytest.approx(GOLDEN["item_score"], abs=1e-12)


def test_categories_of_the_last_image_or_of_all_images():
    official = score_item(propositions(), crops(), "official")
    expected = GOLDEN["category_scores_official_last_crop_only"]
    assert [value for _, value in official.categories] == [expected[str(id)] for id in IDS]
    means = category_means([score_item(propositions(), crops(), "all_rows")])
    assert means["entity"] == means["entity - whole"] == (0.75, 8)
    assert means["relation - spatial"] == (0.75, 4)


def test_a_no_passes_on_to_the_questions_that_depend_on_it():
    chain = [Proposition(1, (0,), "a", ""), Proposition(2, (1,), "a", ""), Proposition(3, (2,), "a", "")]
    assert score_item(chain, [{1: "no", 2: "yes", 3: "yes"}], "all_rows").score == 0
    assert score_item(chain, [{1: "yes", 2: "yes", 3: "Yes"}], "all_rows").score == pytest.approx(2 / 3)
    assert score_item([Proposition(2, (1,), "a", "")], [{2: "yes"}], "all_rows") is None


def test_all_rows_and_the_official_rule(benchmark, answers, tmp_path):
    scores = benchmark.score(tmp_path / "elsewhere")
    assert scores.metrics["overall"].value == pytest.approx(100 * (GOLDEN["item_score"] + 1) / 2, abs=1e-9)
    assert [sample.score for sample in scores.samples] == pytest.approx([GOLDEN["item_score"], 1])
    official = open_dpg(tmp_path / "dpg_bench.csv", MetricOptions(answers=answers, dpg_rule="official"))
    scores = official.score(tmp_path / "elsewhere")
    assert scores.metrics["overall"].value == 100  # the first row is skipped, others depend on it, the item fails
    assert scores.counts == {"left_out": 1} and "partiprompts97" in " ".join(scores.notes)


def test_prompts_from_a_folder_json_lines_and_the_table_are_the_same(benchmark, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for item, text in ITEMS.items():
        (folder / f"{item}.txt").write_text(text)
    lines = "".join(json.dumps({"item_id": item, "text": text}) + "\n" for item, text in ITEMS.items())
    (tmp_path / "dpg_prompts.jsonl").write_text(lines)
    for path in (folder, tmp_path / "dpg_prompts.jsonl"):
        other = open_dpg(path, MetricOptions())
        assert {r.id: r.prompt for r in other.requests} == {r.id: r.prompt for r in benchmark.requests}
        assert other.questions == tmp_path / "dpg_bench.csv"
    assert [request.num_images for request in benchmark.requests] == [4, 4]
    assert benchmark.requests[0].prompt == "A brown dog on a sofa."


def test_grids_have_the_order_of_the_official_crops(benchmark, tmp_path):
    folder = write_run(benchmark.requests, tmp_path / "images", size=(8, 8))
    written = benchmark.write_submission(folder, tmp_path / "grids")
    assert [path.name for path in written] == ["partiprompts97.png", "0.png"]
    grid = np.asarray(PIL.Image.open(written[1]))
    assert grid.shape == (16, 16, 3)
    for number, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        image = np.asarray(PIL.Image.open(folder / f"00001/{number:05d}.png"))
        np.testing.assert_array_equal(grid[top : top + 8, left : left + 8], image)


def test_missing_repeated_and_unknown_answers_are_one_line(benchmark, answers, tmp_path):
    lines = answers.read_text().splitlines(keepends=True)
    extra = json.dumps({"item": "9", "crop": 0, "proposition": 1, "answer": "yes"})
    wrong = json.dumps({"item": "0", "crop": "first", "proposition": 1, "answer": "yes"})
    cases = {
        "missing: partiprompts97/0/1 ": lines[1:],
        "repeated: partiprompts97/0/1 ": [*lines, lines[0]],
        "not of the benchmark: 9/0/1 ": [*lines, extra],
        "line 1: field 'crop'": [wrong],
        "line 1 is not JSON": ["{"],
    }
    for message, changed in cases.items():
        answers.write_text("".join(changed))
        with pytest.raises(UserError, match=message):
            benchmark.score(tmp_path / "elsewhere")


def test_damaged_tables_are_one_line(tmp_path, answers):
    path = write_table(tmp_path / "dpg_bench.csv")
    options = MetricOptions(answers=answers)
    whole = path.read_text()
    path.write_text(whole.replace("proposition_id", "number"))
    with pytest.raises(UserError, match="lacks the columns proposition_id"):
        open_dpg(path, options)
    path.write_text(whole.replace('"1,4"', "one"))
    with pytest.raises(UserError, match="row 3: field 'dependency'"):
        open_dpg(path, options).score(tmp_path / "elsewhere")
    path.write_text(whole.replace('"1,4"', "7"))
    with pytest.raises(UserError, match="depend on none"):
        open_dpg(path, options).score(tmp_path / "elsewhere")
    (tmp_path / "dpg_prompts.jsonl").write_text(json.dumps({"item_id": "../x", "text": "a dog"}))
    with pytest.raises(UserError, match=r"item '\.\./x'"):
        open_dpg(tmp_path / "dpg_prompts.jsonl", options)
