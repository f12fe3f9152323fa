"""Who may import whom (design: arrows go one way), read from the source so that nothing needs to be imported."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "janus_jax"
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Dotted names of everything a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offenders(folder, *forbidden):
    return [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in FILES
        if path.is_relative_to(PACKAGE / folder)
        for name in imports(path)
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in forbidden)
    ]


OURS = [f"janus_jax.{name}" for name in ("ops", "models", "data", "training", "inference", "evaluation", "weights")]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("data", ["jax", "jaxlib", "flax", "torch", "tensorflow"]),
        ("data", [name for name in OURS if name != "janus_jax.data"]),
        ("ops", ["flax", "torch"]),
        ("ops", [name for name in OURS if name != "janus_jax.ops"]),
        ("models", [name for name in OURS if name not in ("janus_jax.ops", "janus_jax.models")] + ["torch"]),
        ("weights", ["janus_jax.training", "janus_jax.inference", "janus_jax.evaluation"]),
        ("training", ["janus_jax.inference", "janus_jax.evaluation"]),
        ("inference", ["janus_jax.training", "janus_jax.evaluation"]),
        (".", ["launch", "configs", "tests"]),
    ],
)
def test_folder_imports_nothing_forbidden(folder, forbidden):
    assert [path for path in FILES if path.is_relative_to(PACKAGE / folder)]
    assert offenders(folder, *forbidden) == []


def test_only_models_knows_linen():
    assert [line for line in offenders(".", "flax") if not line.startswith("models/")] == []


@pytest.mark.parametrize("name", ["batches.py", "errors.py"])
def test_what_data_shares_with_the_rest_is_free_of_jax(name):
    assert not [module for module in imports(PACKAGE / name) if module.split(".")[0] in ("jax", "flax")]
