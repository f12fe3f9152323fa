"""Compiles several variants of a config and sorts them."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from janus_jax.compile_check.check import Check, check_plan
from janus_jax.compile_check.program import topology_devices
from janus_jax.compile_check.progress import tell
from janus_jax.compiler_options import Options
from janus_jax.errors import UserError
from janus_jax.models.scan_layers import REMAT_POLICIES
from janus_jax.sharding import MESH_AXES
from janus_jax.training.auto_remat import plan_with_remat

Variant = dict[str, Any]
KEYS = ("remat", "batch", "mesh")


class Impossible(NamedTuple):
    """A variant that cannot be compiled. Its fields have the names of those of a `Check`."""

    remat: str
    rows: int
    mesh: dict[str, int]
    reason: str
    fits: bool = False


def parse_sweep(text: str) -> list[Variant]:
    """Every combination of a text such as "remat=full,attention;batch=256;mesh=4x16x1".

    Raises UserError if the text has another form.
    """
    choices: dict[str, list[Any]] = {}
    for part in text.split(";"):
        key, _, values = part.strip().partition("=")
        if key not in KEYS or not values:
            raise UserError(f"--sweep={text!r}: expected {'=...;'.join(KEYS)}=...")
        choices[key] = [_value(key, value.strip(), text) for value in values.split(",")]
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def _value(key: str, value: str, text: str) -> Any:
    if key == "remat":
        if value not in REMAT_POLICIES:
            raise UserError(f"--sweep={text!r}: remat {value!r} is not one of {sorted(REMAT_POLICIES)}")
        return value
    numbers = value.split("x") if key == "mesh" else [value]
    if not all(number.lstrip("-").isdigit() for number in numbers) or len(numbers) != (3 if key == "mesh" else 1):
        raise UserError(f"--sweep={text!r}: {key} {value!r}, expected {'4x16x1' if key == 'mesh' else 'a number'}")
    sizes = tuple(int(number) for number in numbers)
    return sizes if key == "mesh" else sizes[0]


def with_variant(config: ConfigDict, variant: Variant) -> ConfigDict:
    """A copy of the config with the values of a variant."""
    config = copy.deepcopy(config)
    if "remat" in variant:
        config.remat = variant["remat"]
    if "batch" in variant:
        config.train.batch_size = variant["batch"]
    if "mesh" in variant:
        config.mesh.update(dict(zip(MESH_AXES, variant["mesh"], strict=True)))
    return config


def sweep(
    config: ConfigDict, variants: Sequence[Variant], topology: str, slices: int, options: Options
) -> tuple[list[Check], list[Impossible]]:
    """The results, those with the most rows per second first, and the variants that are impossible on this topology.

    Each is told on stderr as soon as it is known; the impossible ones before anything is compiled.

    Raises:
        UserError: all variants are impossible.
    """
    devices = topology_devices(topology, slices)
    checks, impossible, plans = [], [], []
    for variant in variants:
        trial = with_variant(config, variant)
        try:
            plans.append((trial, plan_with_remat(trial, devices)[0]))
        except UserError as error:
            mesh = {axis: trial.mesh[axis] for axis in MESH_AXES}
            impossible.append(Impossible(trial.remat, trial.train.batch_size, mesh, str(error)))
            tell(format_line(impossible[-1]))
    if not plans:
        reasons = dict.fromkeys(variant.reason for variant in impossible)
        raise UserError(f"--sweep: every combination is impossible: {'; '.join(reasons)}")
    for trial, plan in plans:
        checks.append(check_plan(trial, plan, topology, options))
        tell(format_line(checks[-1]))
    return sorted(checks, key=_seconds_per_row), impossible


def _seconds_per_row(check: Check) -> float:
    return check.estimate.predicted / check.rows if check.estimate and check.fits else float("inf")


def format_line(check: Check | Impossible) -> str:
    """One variant on one line."""
    mesh = "x".join(str(size) for size in check.mesh.values())
    line = f"{check.remat:<12} {check.rows:>6} rows  mesh {mesh:<10}"
    if isinstance(check, Impossible):
        return f"{line} impossible: {check.reason}"
    if check.micro_batches > 1:
        line += f" micro_batches {check.micro_batches:<4}"
    if check.estimate is None:
        return f"{line} does not fit: {check.reason[:80]}"
    result = check.estimate
    mfu = f", MFU {100 * check.mfu:.1f} %" if check.mfu is not None else ""
    seconds = f"{result.low:.3f} / {result.predicted:.3f} / {result.high:.3f} s"
    return f"{line} {seconds}{mfu}, {check.needed_bytes / 1e9:.1f} GB{'' if check.fits else ', DOES NOT FIT'}"


def format_sweep(checks: Sequence[Check], impossible: Sequence[Impossible]) -> str:
    """The best variants first, those that are impossible last."""
    return "\n".join(["", "best first:", *map(format_line, checks), *map(format_line, impossible)])
