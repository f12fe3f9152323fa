"""What README, CONTRIBUTING and docs/ say exists; their Python snippets run, or fit the signatures of a model."""

import inspect
import json
import re
import typing

import PIL.Image
import pytest

import janus_jax
from tests.helpers.documents import ROOT, blocks, command_flags, problems

DOCUMENTS = {str(path.relative_to(ROOT)): path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
SNIPPETS = [
    pytest.param(block.text, id=f"{name} {number}")
    for name, path in DOCUMENTS.items()
    for number, block in enumerate(blocks(path.read_text()))
    if block.language == "python"
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_flags_fields_files_and_links_exist(name):
    path = DOCUMENTS[name]
    assert problems(path.read_text(), path.parent) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\npython -m launch.trian --config=configs/vq16.py\n```", "python -m launch.trian"),
        ("```\npython -m launch.chat \\\n    --checkpiont=a\n```", "--checkpiont"),
        ("```\nX=1 python -m launch.chat --num_images=4  # of another command\n```", "--num_images"),
        ("Run `python -m launch.convert --input=a --from=hf`.", "--from"),
        ("Run `launch.convert --outptu=a`.", "--outptu"),
        ("```\npython -m launch.train --config=configs/vq17.py\n```", "--config=configs/vq17.py"),
        ("Take `configs/janus_pro_1b.py:stage4`.", "--config=configs/janus_pro_1b.py:stage4"),
        (
            "```\npython -m launch.train --config=configs/vq16.py --config.train.batch=1\n```",
            "--config.train.batch=1 of configs/vq16.py",
        ),
        (
            "```\npython -m launch.train --config=configs/vq16.py --config.train.batch_size=few\n```",
            "--config.train.batch_size=few of configs/vq16.py",
        ),
        ("```\n--config.data.heldout=5\n```", "config field data.heldout"),
        ("Set `train.learningrate`.", "config field train.learningrate"),
        ("Set `--config.train.learningrate=1`.", "config field train.learningrate"),
        ("Give `--quantise=int8`.", "--quantise"),
        ('```\nxpk create --command="python -m launch.train --multihsot"\n```', "--multihsot"),
        ("```\nlaunch/tpu/pod.sh run --config=configs/vq16.py --workdri=a\n```", "--workdri"),
        ("```\nlaunch/tpu/pod.sh start\n```", "pod.sh start"),
        ("```\nmake quikstart\n```", "make quikstart"),
        ("`make lnt` finds mistakes.", "make lnt"),
        ("```\npip install -e '.[gpu]'\n```", "extra [gpu]"),
        ("```\npip install -e '.[data,gpu]'\n```", "extra [gpu]"),
        ("In `janus_jax/modles/vq.py`.", "path janus_jax/modles/vq.py"),
        ("In `vqq.py`.", "file vqq.py"),
        ("Call `janus_jax.from_pretraned`.", "name janus_jax.from_pretraned"),
        ("Call `model.draw_images`.", "name model.draw_images"),
        ("See [it](docs/nothing.md).", "link docs/nothing.md"),
        ("See [it](CONTRIBUTING.md#nothing).", "anchor CONTRIBUTING.md#nothing"),
        ("# Title\nSee [it](#titel).", "anchor #titel"),
    ],
)
def test_a_mistake_is_found(text, problem):
    assert problems(text, ROOT) == [problem]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_defaults_in_tables_of_flags_are_those_of_the_command():
    """Rows `--flag` | number of the tables about launch.train."""
    text = DOCUMENTS["docs/reliability.md"].read_text()
    rows = re.findall(r"^\| `--(\w+)` \| (\d+) \|", text, re.MULTILINE)
    assert len(rows) >= 5
    assert {name: int(default) for name, default in rows} == {
        name: command_flags()["launch.train"][name] for name, _ in rows
    }


class Described:
    """In the place of an object of `cls`: takes the calls that its methods would take, and computes nothing."""

    def __init__(self, cls):
        self._cls = cls

    def __getattr__(self, name):
        method = getattr(self._cls, name)

        def call(*args, **options):
            signature, hints = inspect.signature(method), typing.get_type_hints(method)
            signature.bind(self, *args, **options)
            (passed_on,) = typing.get_args(hints["options"]) if "options" in hints else ({},)  # Unpack[a TypedDict]
            known = {*signature.parameters, *getattr(passed_on, "__annotations__", {})}
            assert set(options) <= known, f"{name} has no {set(options) - known}"
            return Described(hints["return"]) if name == "conversation" else None

        return call


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet, tmp_path, monkeypatch):
    """Without weights: a model only checks how it is called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    PIL.Image.new("RGB", (8, 8)).save("cat.jpg")
    signature = inspect.signature(janus_jax.from_pretrained)

    def from_pretrained(*args, **options):
        signature.bind(*args, **options)
        return Described(janus_jax.JanusPipeline)

    monkeypatch.setattr(janus_jax, "from_pretrained", from_pretrained)
    exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize(
    "call", ["chat(prompt='a')", "chat([], 'a', heat=1)", "generate_images('a', number=2)", "draw_images('a')"]
)
def test_a_wrong_call_is_found(call):
    with pytest.raises((TypeError, AttributeError, AssertionError)):
        eval(f"model.{call}", {"model": Described(janus_jax.JanusPipeline)})


def test_json_blocks_are_json():
    found = [block for path in DOCUMENTS.values() for block in blocks(path.read_text()) if block.language == "json"]
    assert [json.loads(block.text) for block in found]
