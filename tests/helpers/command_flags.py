"""Prints the flags of all commands as JSON: module -> {flag: default}.

    python -m tests.helpers.command_flags

Several commands define the same flag. So each is imported with the modules of `launch` forgotten and the flags of the
command before it removed, which must not happen in a process that also uses them.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

ROOT = Path(__file__).parents[2]
PACKAGES = ("launch", "examples")  # flags of libraries are not those of a command


def flags_of(module: str) -> dict[str, Any]:
    """Imports a command and removes its flags again."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]
    importlib.import_module(module)
    by_module = flags.FLAGS.flags_by_module_dict()
    found = {
        flag.name: flag.default
        for definer, defined in by_module.items()
        if definer.split(".")[0] in PACKAGES
        for flag in defined
    }
    for name in found:
        delattr(flags.FLAGS, name)
    return found


if __name__ == "__main__":
    modules = [f"launch.{path.stem}" for path in sorted((ROOT / "launch").glob("[!_]*.py"))]
    examples = ["quickstart", "example_data", "code_windows", "encoder_ablation.run"]
    modules += [f"examples.digits.{name}" for name in examples]
    json.dump({module: flags_of(module) for module in modules}, sys.stdout, default=str)
