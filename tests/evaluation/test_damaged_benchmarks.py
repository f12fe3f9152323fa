"""Damaged files of questions and images: refused, with the file and the field."""

import json
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Answer
from tests.helpers.golden_evaluation import DATA, copied, load, refused


def edit_json(change):
    def edit(path):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content)))

    return edit


def put(content, *keys):
    """Replaces the value under the keys; ... removes it."""

    def change(values):
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        if content is ...:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = content
        return values

    return edit_json(change)


def replace(old, new, count=1):
    def edit(path):
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new, count))

    return edit


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


GQA, VQA = "gqa/testdev_balanced_questions.json", "vqav2/v2_mscoco_val2014_annotations.json"
VQA_QUESTIONS = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
POPE, SEED = "pope/coco_pope_popular.json", "seed_bench/SEED-Bench.json"
TEXT, CHART = "textvqa/TextVQA_0.5.1_val.json", "chartqa/test/test_human.json"
MMB, KIT = "mmbench/MMBench_DEV_EN.tsv", "vlmevalkit/{}.tsv"
DAMAGE = [
    (GQA, cut, "JSON"),
    (GQA, edit_json(lambda content: []), "a list"),
    (GQA, edit_json(lambda content: {}), "no questions"),
    (GQA, put(5, "00917460", "question"), "'question'"),
    (GQA, put("yes", "00917460", "isBalanced"), "'isBalanced'"),
    (GQA, put(None, "00917460", "types"), "types"),
    (GQA, put(..., "00917461", "imageId"), "'imageId'"),
    (GQA, replace(b"toaster", b"toa\xffter"), "UTF-8"),
    (GQA, replace(b"toaster", b"toa\\ud83dter"), "'question'"),
    (VQA, put(..., "annotations", 0), "391045000"),
    (VQA, put([], "annotations", 0, "answers"), "'answers'"),
    (VQA, put(..., "annotations", 0, "answers", 0, "answer"), "'answers'"),
    (VQA, put(391045001, "annotations", 0, "question_id"), "'question_id'"),
    (VQA, put({"a": 1}, "annotations"), "'annotations'"),
    (VQA_QUESTIONS, put(391045001, "questions", 0, "question_id"), "391045001"),
    (VQA_QUESTIONS, put(True, "questions", 0, "image_id"), "'image_id'"),
    (POPE, replace(b'"label": "yes"', b'"label": "maybe"'), "'label'"),
    (POPE, replace(b"}\n", b"\n"), "line 1"),
    (POPE, replace(b'"question_id": 502', b'"question_id": 501'), "popular/501"),
    (POPE, lambda path: path.write_bytes(b""), "empty"),
    (SEED, put("E", "questions", 0, "answer"), "'answer'"),
    (SEED, put(99, "questions", 0, "question_type_id"), "'question_type_id'"),
    (SEED, put(None, "questions", 0, "choice_b"), "'choice_b'"),
    (SEED, put("audio", "questions", 0, "data_type"), "'data_type'"),
    (TEXT, put("casio", "data", 0, "answers"), "'answers'"),
    (TEXT, put([1] * 10, "data", 0, "answers"), "'answers'"),
    (CHART, put(40, 0, "label"), "'label'"),
    (CHART, put("a row", 0), "a str"),
    (MMB, replace(b"index\tquestion", b"number\tquestion"), "'index'"),
    (MMB, replace(b"\thint\t", b"\tquestion\t"), "'question' is repeated"),
    (MMB, cut, "row 24 has 10 cells"),
    (MMB, replace(b"\tIs the", b""), "row 2 has 13 cells"),
    (MMB, replace(b"1000737\t", b"x1000737\t"), "'index'"),
    (MMB, replace(b"\t737\t", b"\t7377\t"), "'image'"),
    (MMB, replace(b"\tD\tnatural_relation\t737\t", b"\t\tnatural_relation\t737\t"), "3000737"),
    (MMB, replace(b"\tD\tnatural_relation\t737\t", b"\tF\tnatural_relation\t737\t"), "'answer'"),
    (MMB, replace(b"valve", b"va\xe9ve"), "UTF-8"),
    (MMB, replace(b"Copper\t", b'"Copper\t'), "MMBench_DEV_EN.tsv"),
    (KIT.format("POPE"), replace(b"adversarial", b"adversary"), "'category'"),
    (KIT.format("TextVQA_VAL"), replace(b"['casio'", b"[casio'"), "'answer'"),
    (KIT.format("ChartQA_TEST"), replace(b"test_human", b"test_people"), "'split'"),
    (KIT.format("SEEDBench_IMG"), replace(b"Scene Understanding", b"Scenery"), "'category'"),
    (KIT.format("MMMU_DEV_VAL"), replace(b"validation_Music_12", b"validation_Music_11"), "validation_Music_11"),
    ("hf_textvqa/data/validation-00000-of-00001.parquet", cut, "parquet"),
    ("hf_textvqa/data/validation-00000-of-00001.parquet", lambda path: path.write_bytes(b"PAR1"), "parquet"),
    ("hf_gqa/testdev_balanced_images/testdev-00000-of-00001.parquet", lambda path: path.unlink(), "0 tables"),
]
NAMES = {"seed_bench": "seed", "vlmevalkit/POPE": "pope", "vlmevalkit/TextVQA_VAL": "textvqa", "hf_textvqa": "textvqa"}
NAMES |= {"vlmevalkit/ChartQA_TEST": "chartqa", "vlmevalkit/SEEDBench_IMG": "seed", "hf_gqa": "gqa"}
NAMES |= {"vlmevalkit/MMMU_DEV_VAL": "mmmu"}


@pytest.mark.parametrize(("file", "edit", "named"), DAMAGE, ids=lambda value: value if isinstance(value, str) else "")
def test_damaged_questions_are_refused(file, edit, named, tmp_path):
    top = file.split("/")[0]
    copied(tmp_path, file if top == "vlmevalkit" else top)
    edit(tmp_path / file)
    name = NAMES.get(top) or NAMES.get(file.removesuffix(".tsv")) or top
    folder = "hf_gqa" if top == "hf_gqa" else file
    refused(tmp_path, name, named, str(tmp_path / folder))


def damage_at_random(random, data):
    """Cuts, deletes, overwrites or inserts something somewhere."""
    data, place = bytearray(data), random.randrange(len(data))
    pieces = [b"\0", b"null", b"[]", b'"', b"\n", b"\t", b"1e999", b"NaN", b"\\ud800", bytes([random.randrange(256)])]
    action = random.randrange(4)
    if action == 0:
        return bytes(data[:place])
    if action == 1:
        del data[place : place + random.choice([1, 5, 500])]
    elif action == 2:
        data[place : place + 1] = random.choice(pieces)
    else:
        data[place:place] = random.choice(pieces)
    return bytes(data)


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_never_crashes(seed, tmp_path):
    """Questions are read, scored, handed in and shown, or refused."""
    random = Random(seed)
    files = sorted(path for path in DATA.rglob("*") if path.suffix in (".json", ".tsv", ".parquet"))
    file = random.choice(files).relative_to(DATA)
    copied(tmp_path, str(file) if file.parts[0] == "vlmevalkit" else file.parts[0])
    (tmp_path / file).write_bytes(damage_at_random(random, (tmp_path / file).read_bytes()))
    try:
        for benchmark in registry.load(tmp_path, ["all"]):
            answers = [Answer(q.index, random.choice(["yes", "A", "no."])) for q in benchmark.requests]
            assert len(benchmark.score(answers).samples) == len(benchmark.requests)
            for question in benchmark.requests:
                for image in question.images:
                    image.read()
    except UserError as error:
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize("what", ["base64", "bytes", "text"])
def test_damaged_images_are_refused_when_they_are_read(what, tmp_path):
    if what == "base64":
        copied(tmp_path, "vlmevalkit/POPE.tsv")
        replace(b"iVBORw0KGgo", b"iVBO*w0KGgo")(tmp_path / "vlmevalkit/POPE.tsv")
        name = "pope"
    else:
        table = pq.read_table(DATA / "hf_textvqa/data/validation-00000-of-00001.parquet")
        image = [None if what == "bytes" else "no*base64"] * table.num_rows
        table = table.set_column(table.schema.get_field_index("image"), "image", [pa.array(image)])
        pq.write_table(table, tmp_path / "validation-00000-of-00001.parquet")
        name = "textvqa"
    image = load(tmp_path, name).requests[0].images[0]
    with pytest.raises(UserError) as error:
        image.read()
    assert str(tmp_path) in str(error.value)
