"""Reads Markdown documents and finds what they name that does not exist.

Checked are commands (module, flags, config fields and their types, make targets, extras of pip), links and anchors, and
files, modules, flags and config fields named in inline code.
"""

import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from absl import flags
from ml_collections import config_flags

import janus_jax

ROOT = Path(__file__).parents[2]
# A config of each kind; a field that is named without a config exists in one of them.
KINDS = ("janus_pro_1b.py:stage1", "janusflow_1p3b.py:stage1", "vq16.py", "semantic_vq16.py")
ABSL_FLAGS = {"help", "helpfull", "helpshort"}
FOLDERS = ("janus_jax", "configs", "launch", "examples", "benchmarks", "tests", "docs")
POD_SCRIPT = "launch/tpu/pod.sh"


class Block(NamedTuple):
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document."""
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def prose(text: str) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    """What stands between backticks; a table writes | as \\|."""
    return [code.replace("\\|", "|").replace("\n", " ") for code in re.findall(r"`([^`]+)`", prose(text))]


def problems(text: str, folder: Path) -> list[str]:
    """What a document in `folder` says that is not so, one line each."""
    found: list[str] = []
    for line in commands(text):
        found += _command_problems(line)
    for code in inline_code(text):
        found += _code_problems(code)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        found += _link_problems(target, text, folder)
    return found


def commands(text: str) -> Iterator[str]:
    """The lines of shell blocks and the commands of inline code, continued lines joined."""
    for block in blocks(text):
        if block.language in ("", "bash", "sh"):
            yield from block.text.replace("\\\n", " ").splitlines()
    for code in inline_code(text):
        if re.match(r"(\S+=\S+ )*(make|pip|launch/\S+\.sh|\S*python3?(\.\d+)? -m) ", code):
            yield code
        elif re.match(r"launch\.\w+ --", code):
            yield f"python -m {code}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower()).replace(" ", "-")


@functools.cache
def command_flags() -> dict[str, dict[str, Any]]:
    """Module of a command -> its flags and their defaults, those of `launch.cli` that it imports included."""
    command = [sys.executable, "-m", "tests.helpers.command_flags"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def all_flags() -> set[str]:
    """The flags of all commands."""
    return set().union(*command_flags().values())


def _source(module: str | None) -> Path | None:
    """The file of a module of this repository."""
    base = ROOT.joinpath(*(module or "").split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _command_problems(line: str) -> Iterator[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # no command: a diagram, a sentence
        return
    for place, word in enumerate(words):
        rest = words[place + 1 :]
        if " -m " in word:  # a command within a command
            yield from _command_problems(word.partition("=")[2] if word.startswith("--") else word)
        elif word == "-m" and place and "python" in words[place - 1]:
            yield from _module_problems(rest[0], rest[1:])
        elif word.endswith("pod.sh"):
            yield from _pod_problems(word, rest)
        elif word == "make" and all("=" in before for before in words[:place]):
            makefile = (ROOT / "Makefile").read_text()
            yield from (f"make {target}" for target in rest if not re.search(rf"^{target}:", makefile, re.MULTILINE))
        elif word.startswith(".["):
            setup = (ROOT / "setup.py").read_text()
            yield from (f"extra [{extra}]" for extra in word[2:-1].split(",") if f'"{extra}": ' not in setup)
    if words and words[0].startswith("--"):  # only flags, to be added to a command
        yield from _argument_problems(words, all_flags())


def _pod_problems(script: str, arguments: list[str]) -> Iterator[str]:
    if script != POD_SCRIPT:
        yield script
    actions = re.findall(r"^  ([a-z |]+)\) \"\$action\"", (ROOT / POD_SCRIPT).read_text(), re.MULTILINE)
    if arguments and arguments[0] not in actions[0].split(" | "):
        yield f"pod.sh {arguments[0]}"
    if arguments[:1] == ["run"]:
        yield from _module_problems("launch.train", arguments[1:])


def _module_problems(module: str, arguments: list[str]) -> Iterator[str]:
    if module.split(".")[0] not in FOLDERS:  # venv, pytest: not ours
        return
    if _source(module) is None:
        yield f"python -m {module}"
    else:
        yield from _argument_problems(arguments, command_flags().get(module, {}))


def _argument_problems(arguments: list[str], known: Container[str]) -> Iterator[str]:
    overrides = []
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument.removeprefix("--").partition("=")[0]
        if name.startswith("config."):
            overrides.append(argument)
        elif name not in known and name.removeprefix("no") not in known and name not in ABSL_FLAGS:
            yield f"--{name}"
    configs = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    if configs:
        yield from _config_problems(configs[0], overrides)
    elif overrides:
        names = (override.removeprefix("--config.").partition("=")[0] for override in overrides)
        yield from (f"config field {name}" for name in names if not has_field(name))


def _config_problems(path: str, overrides: list[str]) -> Iterator[str]:
    """Problems of a config file with each of its overrides, also where a value has another type than the field."""
    try:
        _load(path)
    except Exception:  # a config file is a program, which may raise anything
        yield f"--config={path}"
        return
    for override in overrides:
        try:
            _load(path, override)
        except Exception:  # absl and ml_collections raise many types
            yield f"{override} of {path}"


def _load(path: str, *overrides: str) -> Any:
    """The config as a command gets it."""
    arguments = ["command", f"--config={ROOT / path}", *overrides]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    with mock.patch.object(sys, "argv", arguments):  # the parser looks there for the fields that are set
        values(arguments)
    config = holder.value
    config.lock()  # the first access raises what went wrong in the file
    return config


@functools.cache
def _configs() -> list[Any]:
    return [_load(f"configs/{kind}") for kind in KINDS]


def has_field(name: str) -> bool:
    """Whether a config has the field a.b.c."""
    for config in _configs():
        value = config
        for part in name.split("."):
            if not hasattr(value, "keys") or part not in value:
                break
            value = value[part]
        else:
            return True
    return False


def _code_problems(code: str) -> Iterator[str]:
    """Of inline code that is no command."""
    groups = "|".join(sorted(name for name in _configs()[0] if hasattr(_configs()[0][name], "keys")))
    if code.startswith("--"):
        yield from _argument_problems(shlex.split(code), all_flags())
    elif match := re.fullmatch(rf"(?:config\.)?((?:{groups}|validate|sample)\.[a-z_0-9.]+)(=.*)?", code):
        if not has_field(match[1]):
            yield f"config field {match[1]}"
    elif match := re.fullmatch(r"configs/(\w+\.py):(\w+(?::\w+)?)", code):
        if match[2].isupper():  # stands for any
            yield from _path_problems(f"configs/{match[1]}")
        else:
            yield from _config_problems(code, [])
    elif re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w/.*\-]*", code) or re.fullmatch(r"\.ci/\w+", code):
        yield from _path_problems(code)
    elif match := re.match(r"model\.(?!json)(\w+)", code):  # as `from_pretrained` returns it
        if not any(hasattr(cls, match[1]) for cls in (janus_jax.JanusPipeline, janus_jax.JanusFlowPipeline)):
            yield f"name {code}"
    elif match := re.fullmatch(r"(\w+\.py)(:\w+)*", code):
        if not any(path.name == match[1] for name in FOLDERS for path in (ROOT / name).rglob("*.py")):
            yield f"file {code}"
    elif re.fullmatch(rf"({'|'.join(FOLDERS)})(\.\w+)+", code) and not _resolves(code):
        yield f"name {code}"


def _path_problems(path: str) -> Iterator[str]:
    if not any(ROOT.glob(path.rstrip("/"))):
        yield f"path {path}"


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module of this repository or something in one."""
    module, attributes = name, []
    while _source(module) is None and not ROOT.joinpath(*module.split(".")).is_dir():
        module, _, last = module.rpartition(".")
        attributes.insert(0, last)
    if not attributes:
        return True
    value = importlib.import_module(module)
    for attribute in attributes:
        if not hasattr(value, attribute):
            return False
        value = getattr(value, attribute)
    return True


def _link_problems(target: str, text: str, folder: Path) -> Iterator[str]:
    if re.match(r"\w+:", target):  # another site
        return
    path, _, anchor = target.partition("#")
    file = folder / path if path else None
    if file is not None and not file.exists():
        yield f"link {path}"
    elif anchor:
        content = text if file is None else file.read_text()
        headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", content, flags=re.M | re.S), re.MULTILINE)
        if anchor not in map(slug, headings):
            yield f"anchor {target}"
