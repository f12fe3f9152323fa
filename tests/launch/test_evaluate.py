"""The command launch.evaluate, on a few questions of POPE's form and a model with random weights."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.digits import data as digits
from janus_jax.data.prompts import Message
from janus_jax.data.records import Record, write_records
from janus_jax.inference.janus import JanusPipeline
from janus_jax.training.resilience.exit_codes import RESTART
from tests.helpers import REPOSITORY
from tests.helpers.forked_commands import run_commands
from tests.helpers.small_models import DECODED, random_params

DATA = REPOSITORY / "tests/data_files/evaluation"
POPE = ("launch.evaluate", f"--data={DATA}/data/pope", "--benchmarks=pope")
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
MODEL_FLAGS = ("--rows=8", "--max_new_tokens=4", "--buckets=32,16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def model(folder):
    tokenizer = digits.build_tokenizer(digits.text_records(), DECODED.llama.vocab_size, DECODED.prompt_style)
    JanusPipeline(DECODED, random_params(DECODED, seed=12), tokenizer).save_pretrained(folder / "model")
    return folder / "model"


def samples_of(output):
    return [json.loads(line) for line in (output / "pope/samples.jsonl").read_text().split("\n")[:-1]]


def predictions(path, answers):
    lines = [json.loads(line) for line in (DATA / "predictions/pope.jsonl").read_text().splitlines()]
    texts = [{"index": line["index"], "text": answers.get(line["index"], line["text"])} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in texts))
    return path


@pytest.fixture(scope="module")
def scored(folder):
    """Outputs of two programs that were not ours, scored without any device of JAX."""
    files = {"a": predictions(folder / "a.jsonl", {}), "b": predictions(folder / "b.jsonl", {0: "no", 4: "no"})}
    commands = [(*POPE, f"--predictions={file}", f"--output={folder}/{name}") for name, file in files.items()]
    outcomes = run_commands(commands, folder, JAX_PLATFORMS="none_at_all")
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    return folder / "a", folder / "b", outcomes[0].out


def test_predictions_are_scored_without_a_device_and_all_files_are_written(scored):
    output, _, table = scored
    results = json.loads((output / "results.json").read_text())["benchmarks"]["pope"]
    expected = json.loads((DATA / "expected/pope.json").read_text())
    f1 = results["metrics"]["f1_random"]["value"]
    assert f"{f1:.2f}" in table and f"{f1:.2f}" in (output / "results.md").read_text()
    assert expected
    samples = [json.loads(line) for line in (output / "pope/samples.jsonl").read_text().split("\n")[:-1]]
    assert (
        len(samples) == 33
        and {"index", "id", "prompt", "text", "parsed", "gold", "score", "cluster"} <= samples[0].keys()
    )
    assert {"pope_random.jsonl", "pope_popular.jsonl", "pope_adversarial.jsonl"} <= set(os.listdir(output / "pope"))


def test_the_page_is_one_file_with_the_wrong_answers_and_their_images(scored):
    page = (scored[0] / "report.html").read_text()
    samples = samples_of(scored[0])
    wrong = [sample for sample in samples if sample["score"] < 1]
    assert page.count('<li class="wrong">') == len(wrong) > 0
    assert page.count("data:image/jpeg;base64,") == len(wrong)
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    assert "confusion, random" in page


MISTAKES = {
    "no data": (["launch.evaluate"], "--data"),
    "unknown benchmark": ([*POPE[:2], "--benchmarks=pop"], "--benchmarks=pop"),
    "nothing to score": ([*POPE, "--output={folder}/empty"], "--checkpoint"),
    "predictions with a model": (
        [*POPE, "--output={folder}/x", "--checkpoint=m", "--predictions={folder}/a.jsonl"],
        "--predictions",
    ),
    "missing predictions": ([*POPE, "--output={folder}/x", "--predictions={folder}/none"], "{folder}/none"),
    "no model": ([*POPE, "--output={folder}/x", "--checkpoint={folder}/none"], "{folder}/none"),
    "process number": (
        [*POPE, "--output={folder}/x", "--checkpoint={folder}/none", "--process_id=2", "--num_processes=2"],
        "--process_id=2",
    ),
    "half a process number": (
        [*POPE, "--output={folder}/x", "--checkpoint={folder}/none", "--process_id=2"],
        "--num_processes",
    ),
    "compared with nothing": (
        ["launch.evaluate", "--compare={folder}/a", "--output={folder}/x"],
        "--compare={folder}/a",
    ),
    "samples without a model": ([*POPE, "--samples=0"], "--checkpoint"),
    "contamination without files": (
        [*POPE, "--contamination={folder}/none-*", "--output={folder}/x"],
        "--contamination",
    ),
}


@pytest.fixture(scope="module")
def outcomes(scored, folder):
    """What each mistake does, and two commands on what was scored; without any device of JAX."""
    a, b, _ = scored
    image = (DATA / "data/pope/val2014/COCO_val2014_000000087114.jpg").read_bytes()
    messages = (Message("user", "<image>\nDescribe it."), Message("assistant", "A photo."))
    records = [Record(task="understand", messages=messages, images=(image,), key="train 1")]
    write_records(folder / "understand-0.array_record", records)
    commands = {name: [part.format(folder=folder) for part in command] for name, (command, _) in MISTAKES.items()}
    commands["compare"] = [*POPE, f"--compare={a},{b}", f"--output={folder}/compared"]
    commands["contamination"] = [*POPE, f"--contamination={folder}/*.array_record", f"--output={a}"]
    commands["list"] = [*POPE, "--list"]
    (folder / "outcomes").mkdir()
    done = run_commands(commands.values(), folder / "outcomes", JAX_PLATFORMS="none_at_all")
    return dict(zip(commands, done, strict=True))


def test_runs_are_compared_with_what_flipped(outcomes, folder):
    assert outcomes["compare"].code == 0, outcomes["compare"].err
    (found,) = json.loads((folder / "compared/compare.json").read_text())["benchmarks"]
    assert {flip["index"] for flip in found["flipped"]} <= {0, 4} and found["flipped"]
    assert "A is better" in (folder / "compared/compare.html").read_text()


def test_training_data_that_holds_benchmark_images_is_found(outcomes, scored):
    assert outcomes["contamination"].code == 0, outcomes["contamination"].err
    (found,) = json.loads((scored[0] / "contamination.json").read_text())["benchmarks"]
    samples = samples_of(scored[0])
    expected = {sample["index"] for sample in samples if "000000087114" in sample["images"][0]}
    assert set(map(int, found["same_images"])) == expected and set(found["same_images"].values()) == {"train 1"}
    rest = [sample["score"] for sample in samples if sample["index"] not in found["found"]]
    assert found["score_of_the_rest"] == [pytest.approx(100 * sum(rest) / len(rest)), len(rest)]


def test_the_listing_counts_questions_and_names_files(outcomes):
    assert re.search(r"^pope +official +33 +23 +2 +0$", outcomes["list"].out, re.MULTILINE), outcomes["list"]
    assert "coco_pope_popular.json" in outcomes["list"].out


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_it_before_any_device_is_touched(outcomes, folder, name):
    code, out, err = outcomes[name]
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ") and MISTAKES[name][1].format(folder=folder) in err


def batch_files(output):
    return {path.name: path.read_bytes() for path in (output / "pope/batches").iterdir()}


@pytest.mark.slow
def test_a_model_answers(model, folder):
    run = (*POPE, f"--checkpoint={model}", f"--output={folder}/run", "--limit=2", *MODEL_FLAGS)
    (outcome,) = run_commands([run], folder, **QUICK)
    assert outcome.code == 0, outcome.err
    samples = samples_of(folder / "run")
    assert len(samples) == 2 and all(sample["tokens"] <= 4 and sample["sha256"] for sample in samples)
    assert json.loads((folder / "run/run.json").read_text())["checkpoint"]["sha256"]
    assert "not comparable" in (folder / "run/results.md").read_text()


@pytest.mark.slow
def test_a_run_refuses_to_go_on_with_another_model_or_other_options(model, folder):
    run = [*POPE, f"--checkpoint={model}", f"--output={folder}/refused", "--limit=3", *MODEL_FLAGS]
    (outcome,) = run_commands([run], folder, **QUICK)
    assert outcome.code == 0, outcome.err
    before = batch_files(folder / "refused")
    copied = folder / "other_model"
    shutil.copytree(model, copied)
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
    others = {
        "seed=0": [*run, "--seed=5"],
        "buckets.answer=16": [*run, "--buckets=32,32"],
        "asked.max_new_tokens=4": [*run, "--max_new_tokens=5"],
        "protocol='janus'": [*run, "--protocol=llava"],
        "checkpoint.sha256=": [part.replace(str(model), str(copied)) for part in run],
        "requests.count=3": [*run, "--limit=4"],
    }
    for field, outcome in zip(others, run_commands(others.values(), folder, **QUICK), strict=True):
        assert outcome.code == 2 and f"begun with {field}" in outcome.err, outcome.err
    assert batch_files(folder / "refused") == before


@pytest.fixture
def start(model, folder):
    """Starts a process of the command; all are ended when the test ends."""
    processes = []

    def start(output, number, count):
        arguments = [*POPE[1:], f"--checkpoint={model}", f"--output={folder}/{output}", "--rows=2", *MODEL_FLAGS[1:]]
        arguments += [f"--process_id={number}", f"--num_processes={count}"]
        command = [sys.executable, "-m", "launch.evaluate", *arguments]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"} | QUICK | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(timeout=60)


@pytest.mark.slow
def test_kills_and_two_processes_give_the_bytes_of_one_process(start, folder):
    """True processes with a model: one alone; two, of which one is killed and one is stopped by SIGTERM, then two."""

    def wait_for(output, number):
        end = time.monotonic() + 300
        while len(list(Path(folder / output / "pope/batches").glob("0*"))) < number:
            assert time.monotonic() < end
            time.sleep(0.05)

    assert start("alone", 0, 1).wait(timeout=300) == 0
    processes = [start("several", number, 2) for number in range(2)]
    wait_for("several", 2)
    processes[0].kill()
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=300) for process in processes] in ([-signal.SIGKILL, RESTART], [-signal.SIGKILL, 0])
    processes = [start("several", number, 3) for number in range(2)]  # the third never starts
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert batch_files(folder / "several") == batch_files(folder / "alone")
    for name in ("results.json", "report.html", "pope/scores.json", "pope/samples.jsonl"):
        assert (folder / "several" / name).read_bytes() == (folder / "alone" / name).read_bytes()
