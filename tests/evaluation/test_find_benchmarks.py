"""What is recognised below a folder, and what is ambiguous."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Answer
from janus_jax.evaluation.readers.find import find
from tests.helpers.golden_evaluation import DATA, copied, load, refused
from tests.helpers.small_benchmarks import png, write_captions, write_images, write_mme, write_mmvet


def test_all_that_a_folder_holds(tmp_path):
    data = copied(tmp_path, "pope", "vqav2", "gqa", "seed_bench", "textvqa", "chartqa", "mmmu", "mmbench")
    write_mme(data / "x")
    write_mmvet(data / "y")
    write_captions(data / "z", "coco_captions")
    write_captions(data / "w", "flickr30k")
    assert find(data).benchmarks == sorted(registry.DEFINITIONS)
    found = {benchmark.name: benchmark for benchmark in registry.load(data, ["all"])}
    assert {name: len(found[name].requests) for name in ("pope", "mme", "mmmu")} == {"pope": 33, "mme": 6, "mmmu": 16}
    # VQAv2 and POPE each have a folder val2014 of their own, and every image is found in the right one.
    assert all(benchmark.missing_images() == [] for benchmark in found.values())


def test_folder_names_carry_no_meaning(tmp_path):
    shutil.copytree(DATA / "hf_textvqa", tmp_path / "MME")
    assert find(tmp_path).benchmarks == ["textvqa"]


@pytest.mark.parametrize("name", ["pope", "chartqa"])
def test_two_sources_are_refused_and_listed(name, tmp_path):
    other = {"pope": "hf_pope", "chartqa": "hf_chartqa_m4"}[name]
    data = copied(tmp_path, name, other)
    refused(data, name, "2 sources", "parquet", "official")
    file = next((data / other).rglob("*.parquet"))
    assert load(file, name).layout == "parquet"


def test_the_same_file_twice_is_refused(tmp_path):
    data = copied(tmp_path, "gqa")
    shutil.copytree(data / "gqa", data / "again")
    refused(data, "gqa", "2 sources", "again")
    assert len(load(data / "again/testdev_balanced_questions.json", "gqa").requests) == 16


def test_one_file_of_several(tmp_path):
    data = copied(tmp_path, "pope")
    benchmark = load(data / "pope/coco_pope_popular.json", "pope")
    assert len(benchmark.requests) == 11 and benchmark.missing_images() == []
    assert {tuple(question.fields["splits"]) for question in benchmark.requests} == {("popular",)}


def test_a_renamed_file_is_known_by_its_fields(tmp_path):
    data = copied(tmp_path, "seed_bench")
    (data / "seed_bench/SEED-Bench.json").rename(data / "seed_bench/questions.json")
    assert len(load(data, "seed").requests) == 15
    (data / "seed_bench/questions.json").rename(data / "seed_bench/train.json")
    refused(data, "seed", "no benchmark")


def test_the_split_of_the_papers_is_preferred(tmp_path):
    data = copied(tmp_path, "vqav2")
    questions = json.loads((DATA / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    for split, part in {"test-dev2015": questions[:3], "test2015": questions[:5]}.items():
        (data / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": part}))
    assert load(data, "vqav2").split == "val2014"
    test_dev = load(data / "v2_OpenEnded_mscoco_test-dev2015_questions.json", "vqav2")
    answers = [Answer(question.index, "Yes.") for question in test_dev.requests]
    assert test_dev.score(answers).metrics == {}
    assert test_dev.requests[0].images[0].name == "COCO_test2015_000000391045.jpg"


def test_annotations_alone_are_no_benchmark(tmp_path):
    file = tmp_path / "v2_mscoco_val2014_annotations.json"
    shutil.copy(DATA / "vqav2" / file.name, file)
    refused(tmp_path, "vqav2", file.name, "questions")
    refused(file, "vqav2", file.name, "questions")


def test_all_of_test2015_is_filled_in(tmp_path):
    """EvalAI wants every id of test2015, of which test-dev is a part."""
    questions = json.loads((DATA / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    for split, part in {"test-dev2015": questions[:3], "test2015": questions[:5]}.items():
        (tmp_path / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": part}))
    benchmark = load(tmp_path, "vqav2")
    answers = [Answer(question.index, "Yes.") for question in benchmark.requests]
    assert benchmark.split == "test-dev2015" and any("empty answers" in note for note in benchmark.notes)
    (path,) = benchmark.write_submission(answers, tmp_path / "out")
    assert [row["answer"] for row in json.loads(path.read_text())] == ["yes", "yes", "yes", "", ""]
    assert [answer.text for answer in benchmark.read_submission(path)] == ["yes"] * 3


def test_questions_of_llava_are_refused_with_the_reason(tmp_path):
    file = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    file.write_text("{}\n")
    refused(tmp_path, "textvqa", str(file), "OCR")
    refused(file, "textvqa", str(file), "OCR")


def test_unknown_names_and_paths(tmp_path):
    refused(tmp_path / "none", "pope", "--data", "none")
    refused(DATA / "pope", "popo", "--benchmarks=popo")
    refused(tmp_path, "all", "holds no benchmark")
    refused(DATA / "pope/val2014/COCO_val2014_000000087114.jpg", "pope", "not recognised")


def test_depth_and_big_folders(tmp_path):
    deep = tmp_path / "1/2/3/4/5"
    shutil.copytree(DATA / "pope", deep)
    assert find(tmp_path).benchmarks == ["pope"]
    shutil.move(deep, tmp_path / "1/2/3/4/six")
    (deep).mkdir()
    shutil.move(tmp_path / "1/2/3/4/six", deep / "6")
    assert find(tmp_path).benchmarks == []
    big = tmp_path / "big"
    write_images(big, [f"{number}.png" for number in range(3)])
    shutil.copy(DATA / "gqa/testdev_balanced_questions.json", big)
    assert find(big).benchmarks == ["gqa"]
    for number in range(201):
        (big / f"more{number}.jpg").touch()
    assert find(big).benchmarks == []


def test_missing_images_are_named(tmp_path):
    data = copied(tmp_path, "pope")
    (data / "pope/val2014/COCO_val2014_000000312077.jpg").unlink()
    benchmark = load(data, "pope")
    (missing,) = benchmark.missing_images()
    assert missing.endswith("val2014/COCO_val2014_000000312077.jpg")
    with pytest.raises(UserError, match="COCO_val2014_000000312077.jpg"):
        benchmark.requests[0].images[0].read()


def test_paths_that_leave_the_folder_are_refused(tmp_path):
    data = copied(tmp_path, "chartqa")
    path = data / "chartqa/test/test_human.json"
    rows = json.loads(path.read_text())
    rows[0]["imgname"] = "../../../../secret.png"
    path.write_text(json.dumps(rows))
    (tmp_path.parent / "secret.png").write_bytes(png("red"))
    with pytest.raises(UserError, match="secret.png"):
        load(data, "chartqa").requests[0].images[0].read()


def test_a_name_that_no_file_can_have_is_a_missing_image(tmp_path):
    data = copied(tmp_path, "chartqa")
    path = data / "chartqa/test/test_human.json"
    rows = json.loads(path.read_text())
    for row, name in zip(rows, ("x" * 300 + ".png", "a\0b.png"), strict=False):
        row["imgname"] = name
    path.write_text(json.dumps(rows))
    benchmark = load(data, "chartqa")
    assert len(benchmark.missing_images()) == 2
    for question in benchmark.requests[:2]:
        with pytest.raises(UserError, match=r"\.png"):
            question.images[0].read()
    assert benchmark.requests[2].images[0].read()


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


IMAGE = {"bytes": png("red"), "path": None}


def test_parquet_copies_without_golden_data(tmp_path):
    """Columns of lmms-lab's copies of MME, MMBench, MM-Vet and captions."""
    yes_no = [
        {"question_id": f"OCR/{i}.jpg", "image": IMAGE, "question": f"q{i}", "answer": a, "category": "OCR"}
        for i, a in ((1, "Yes"), (1, "No"))
    ]
    options = {"index": "7", "question": "q", "hint": "nan", "A": "x", "B": "y", "C": "nan", "D": "nan"}
    options |= {
        "answer": "B",
        "category": "ocr",
        "L2-category": "perception",
        "image": IMAGE,
        "source": "s",
        "split": "dev",
    }
    judged = {"question_id": "v1_0", "image": IMAGE, "question": "q", "answer": "a", "image_source": "s"}
    coco = {"question_id": "COCO_val2014_000000391895.jpg", "image": IMAGE, "answer": ["One.", "Two."], "id": 1}
    flickr = {"img_id": "0", "image": IMAGE, "caption": ["One."], "filename": "1.jpg", "sentids": ["1"]}
    write_parquet(tmp_path / "a/test-00000-of-00001.parquet", yes_no)
    write_parquet(tmp_path / "b/dev-00000-of-00001.parquet", [options])
    write_parquet(tmp_path / "c/test-00000-of-00001.parquet", [{**judged, "capability": "ocr,math"}])
    write_parquet(tmp_path / "d/val-00000-of-00001.parquet", [coco])
    write_parquet(tmp_path / "e/test-00000-of-00001.parquet", [flickr])
    found = {benchmark.name: benchmark for benchmark in registry.load(tmp_path, ["all"])}
    assert sorted(found) == ["coco_captions", "flickr30k", "mmbench", "mme", "mmvet"]
    assert found["mmbench"].requests[0].prompt.startswith("q\nA. x\nB. y\n\n")
    assert [question.cluster for question in found["mme"].requests] == ["OCR/1.jpg"] * 2
    assert found["mmvet"].requests[0].fields["type"] == ["ocr", "math"]
    assert found["coco_captions"].requests[0].id == "391895"
    assert all(question.images[0].read() == png("red") for b in found.values() for question in b.requests)


def test_development_questions_of_mmmu_are_left_out(tmp_path):
    copied(tmp_path, "vlmevalkit/MMMU_DEV_VAL.tsv")
    path = tmp_path / "vlmevalkit/MMMU_DEV_VAL.tsv"
    path.write_bytes(path.read_bytes().replace(b"\tvalidation\n", b"\tdev\n", 3))
    benchmark = load(tmp_path, "mmmu")
    assert [question.index for question in benchmark.requests] == list(range(3, 16)) and len(benchmark.unasked) == 3
    assert any("3 questions of the development split" in note for note in benchmark.notes)


def test_one_parquet_file_per_split_of_pope(tmp_path):
    """The config "Full" of lmms-lab's copy."""
    table = pq.read_table(DATA / "hf_pope/data/test-00000-of-00001.parquet")
    for start, split in enumerate(("random", "popular", "adversarial")):
        (tmp_path / "Full").mkdir(exist_ok=True)
        pq.write_table(table.slice(11 * start, 11), tmp_path / f"Full/{split}-00000-of-00001.parquet")
    assert len(load(tmp_path, "pope").requests) == 33


def test_shards_and_row_groups_of_parquet(tmp_path):
    """Rows are counted over files and row groups, and each image is that of its row."""
    table = pq.read_table(DATA / "hf_textvqa/data/validation-00000-of-00001.parquet")
    for number, (start, rows) in enumerate(((0, 10), (10, 12))):
        pq.write_table(
            table.slice(start, rows), tmp_path / f"validation-0000{number}-of-00002.parquet", row_group_size=4
        )
    whole, parts = load(DATA / "hf_textvqa", "textvqa"), load(tmp_path, "textvqa")
    assert [q.id for q in parts.requests] == [q.id for q in whole.requests]
    for place in (21, 0, 9, 10, 13):
        assert parts.requests[place].images[0].read() == whole.requests[place].images[0].read()


def test_a_train_split_is_not_evaluated(tmp_path):
    shutil.copy(DATA / "hf_textvqa/data/validation-00000-of-00001.parquet", tmp_path / "train-00000-of-00001.parquet")
    assert find(tmp_path).benchmarks == []
