"""The rules of the house: who may import whom, no import circles, no private names of others, no long files.

They are read from the source, so that they also hold for imports inside functions and for type checkers only.
"""

import ast
import functools
import itertools
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

PACKAGE = REPOSITORY / "janus_jax"
CODE = ("janus_jax", "launch", "examples", "benchmarks", "configs")
FOLDERS = (*CODE, "tests")

# Each package with the packages of janus_jax that it may import, itself left out. Modules at the top count as packages.
BASE = {"errors", "batches", "phases", "storage", "text"}
MODELS = {"ops", "hardware", "compiler_options", *BASE}
RUNS = {"weights", "data", "models", "sharding", "free_memory", *MODELS}
MAY_IMPORT = {
    "errors": set(),
    "batches": set(),
    "phases": set(),
    "storage": BASE,
    "text": BASE,
    "hardware": BASE,
    "free_memory": set(),
    "compiler_options": {"hardware", "ops", *BASE},
    "ops": {"hardware", *BASE},
    "sharding": {"models", *MODELS},
    "data": BASE,
    "models": MODELS,
    "weights": {"data", "models", "sharding", *MODELS},
    "training": RUNS,
    "inference": RUNS,
    "evaluation": {"inference", "training", *RUNS},
    "compile_check": {"inference", "training", *RUNS},
    "reports": {"inference", "training", *RUNS},
    "serving": {"inference", "training", *RUNS},
    "__init__": {"inference", *RUNS},
}
# Outside packages that a package must not import.
FORBIDDEN_OUTSIDE = {
    "data": {"jax", "jaxlib", "flax", "torch", "tensorflow"},
    "errors": {"jax", "flax"},
    "batches": {"jax", "flax"},
    "text": {"jax", "flax"},
    "ops": {"flax", "torch"},
    "models": {"torch"},
}


def python_files(*folders):
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def short(path):
    return path.relative_to(REPOSITORY).as_posix()


@functools.cache
def parse(path):
    return ast.parse(path.read_text())


def module_name(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files(*FOLDERS)}


@functools.cache
def imports(path):
    """Dotted names of everything that a file imports, also inside functions; `from a import b` gives a.b and a."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def imported_modules(path):
    """The modules of this repository that a file imports. A package counts only where a name of its own is imported."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found & MODULES.keys()


def room(path):
    """The package, or the module at the top of janus_jax, that a file of janus_jax belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("name", sorted({room(path) for path in python_files("janus_jax")}))
def test_imports_go_one_way(name):
    allowed = {name, *MAY_IMPORT[name]}
    for path in (path for path in python_files("janus_jax") if room(path) == name):
        ours = [name.split(".") for name in imports(path) if name.startswith("janus_jax.")]
        assert [".".join(parts) for parts in ours if parts[1] not in allowed] == [], short(path)
        others = {name.split(".")[0] for name in imports(path)}
        assert not others & {"launch", "configs", "tests", "examples", "benchmarks"}, short(path)
        assert not others & FORBIDDEN_OUTSIDE.get(name, set()), short(path)


def test_every_rule_belongs_to_a_room_or_to_one_that_is_coming():
    rooms = {room(path) for path in python_files("janus_jax")}
    assert MAY_IMPORT.keys() - rooms <= {"serving"}


def test_only_models_knows_flax_modules():
    others = [path for path in python_files(*CODE) if not path.is_relative_to(PACKAGE / "models")]
    assert [short(path) for path in others if any(name.split(".")[0] == "flax" for name in imports(path))] == []


def test_no_import_circle():
    """Circles of modules, with the imports inside functions and of type checkers."""
    graph = {name: imported_modules(path) - {name} for name, path in MODULES.items()}
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    # What is left imports a circle; what nobody of them imports is in none.
    while free := graph.keys() - set(itertools.chain.from_iterable(graph.values())):
        for name in free:
            del graph[name]
    assert graph.keys() == set()


def is_private(name):
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_uses(path):
    """Private names that a file uses and does not define: attributes of others, and imported names or modules."""
    tree = parse(path)
    defined = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            defined.add(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if is_private(node.attr) and not is_own(node.value) and node.attr not in defined:
                yield node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for name in (part for alias in node.names for part in f"{module}.{alias.name}".split(".")):
                if is_private(name):
                    yield name
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("setattr", "delattr"):  # monkeypatch
            for argument in node.args[:2]:
                value = argument.value if isinstance(argument, ast.Constant) else ""
                if isinstance(value, str) and any(is_private(part) for part in value.split(".")):
                    yield value


def is_own(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "super")


# Methods of a namedtuple and os._exit are public. The private names of libraries each have no public replacement.
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_exit"}
LIBRARIES = {
    "benchmarks/inference.py": {"_compile_all_devices"},
    "janus_jax/compile_check/pallas.py": {"_src"},
    "janus_jax/training/resilience/preemption.py": {"_src"},
    "launch/cli/distributed.py": {"_src"},
    "tests/training/test_loop.py": {"_src", "_async_serialize_replica_slices"},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_private_name_is_used_outside_its_file(folder):
    found = {
        f"{short(path)}: {name}"
        for path in python_files(folder)
        for name in private_uses(path)
        if name not in PUBLIC and name not in LIBRARIES.get(short(path), ())
    }
    assert sorted(found) == []


def has_a_reason(path):
    """Whether the docstring of a file says "This file is long because ..."."""
    return "long because" in (ast.get_docstring(parse(path)) or "")


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short(folder):
    long = []
    for path in python_files(folder):
        lines, limit = len(path.read_text().splitlines()), 400
        if path.parent == REPOSITORY / "launch":
            limit = 150
        elif has_a_reason(path):
            limit = 600
        if lines > limit:
            long.append(f"{short(path)}: {lines} lines, expected at most {limit}")
    assert long == []


def test_test_files_have_names_of_their_own():
    """pytest imports test files by their base name, because their folders are no packages."""
    names = [path.name for path in python_files("tests") if path.name.startswith("test_")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_only_janus_jax_is_installed():
    setup = (REPOSITORY / "setup.py").read_text()
    assert 'packages=find_packages(include=["janus_jax", "janus_jax.*"])' in setup


def test_the_rules_find_offenders(tmp_path):
    """Each kind of private use is found, and what is a file's own is not."""
    file = tmp_path / "offender.py"
    file.write_text(
        "import jax._src.core\nfrom a import _b\n\n\nclass C:\n    def __init__(self, other):\n        self._own = 1\n"
        "        other._own, other._theirs\n\n\ndef test(monkeypatch):\n    monkeypatch.setattr('a._patched', 1)\n"
    )
    assert sorted(private_uses(Path(file))) == ["_b", "_src", "_theirs", "a._patched"]
