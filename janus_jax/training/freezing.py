"""Which parameters a stage trains: an ordered list of (path regex, trainable) splits the parameters into two trees.

Only the trainable tree is differentiated, so frozen parameters have no gradients and no optimizer moments.
"""

import re
from collections.abc import Sequence
from typing import Any

from janus_jax.errors import UserError
from janus_jax.models.params import Params, count, flatten, unflatten

Rules = Sequence[tuple[str, bool]]


def trainable_mask(params: Any, rules: Rules) -> dict[str, bool]:
    """Path -> whether it is trained. The first rule whose regex matches the whole path decides.

    Raises UserError for a parameter that no rule matches, and for a rule that is no regex or matches no parameter.
    """
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.trainable: {pattern!r} is not a regular expression ({error})") from error
    paths = list(flatten(params))
    mask = {}
    for path in paths:
        decision = next((bool(trainable) for pattern, trainable in rules if re.fullmatch(pattern, path)), None)
        if decision is None:
            raise UserError(f"config.trainable: no rule matches parameter {path}")
        mask[path] = decision
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise UserError(f"config.trainable: {pattern!r} matches no parameter")
    return mask


def split(params: Any, mask: dict[str, bool]) -> tuple[Params, Params]:
    """The trainable and the frozen sub-tree."""
    flat = flatten(params)
    trainable = {path: leaf for path, leaf in flat.items() if mask[path]}
    frozen = {path: leaf for path, leaf in flat.items() if not mask[path]}
    return unflatten(trainable), unflatten(frozen)


def merge(trainable: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    return unflatten(flatten(trainable) | flatten(frozen))


def module_table(params: Any, mask: dict[str, bool]) -> list[tuple[str, int, int]]:
    """Rows (module, number of parameters, number of trained parameters): one per top-level module, then the total."""
    flat = flatten(params)
    rows = []
    for module in params:
        inside = [path for path in flat if path.split("/")[0] == module]
        trained = [flat[path] for path in inside if mask[path]]
        rows.append((module, count([flat[path] for path in inside]), count(trained)))
    return [*rows, ("total", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def format_table(rows: Sequence[tuple[str, int, int]]) -> str:
    """The table printed when training starts."""
    lines = [f"{'module':<14}{'parameters':>15}{'trained':>15}"]
    lines += [
        f"{name:<14}{total:>15,}{trained if trained else 'frozen':>15{',' if trained else ''}}"
        for name, total, trained in rows
    ]
    return "\n".join(lines)
