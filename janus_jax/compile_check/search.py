"""Finds how many rows a chip can take at a time, with compilations that stay small.

A chip does its micro-batches in a loop: more of them change nothing but the number of turns. So the program with one
row at a time is the smallest one of a batch of any size. Many rows at a time take long to compile, the more so where
they do not fit. Memory grows with the rows at a time along a straight line, which two small programs give.
"""

import math

from ml_collections import ConfigDict

from janus_jax.compile_check.check import Check, check_plan, too_large
from janus_jax.compile_check.program import machine_of, topology_devices
from janus_jax.compile_check.progress import tell
from janus_jax.compile_check.sweep import format_line
from janus_jax.compiler_options import Options
from janus_jax.models.scan_layers import REMAT_POLICIES
from janus_jax.sharding import row_shares
from janus_jax.training.auto_remat import plan_with_remat
from janus_jax.training.plan import Plan, make_plan

FEW_ROWS = 4  # so many rows at a time are compiled at once, without asking two smaller programs whether they fit


class Search:
    """Checks of a config as it is, with more micro-batches and with cheaper remat policies. Each is compiled once.

    Raises UserError for a config or a topology that cannot work.
    """

    def __init__(self, config: ConfigDict, topology: str, slices: int, options: Options):
        self._config, self._topology, self._options = config, topology, options
        self._devices = topology_devices(topology, slices)
        self._capacity = machine_of(self._devices).hbm_bytes
        self._plan, remat = plan_with_remat(config, self._devices, compare=True)
        if remat is not None:
            tell(remat.describe())
        self._remat = self._plan.execution.remat
        self._rows = config.train.batch_size // row_shares(self._plan.mesh) // config.train.micro_batches
        self._sizes = [rows for rows in range(1, self._rows + 1) if self._rows % rows == 0]
        self._checks: dict[tuple[int, str], Check] = {}

    def given(self) -> Check:
        """The config as it is. Many rows at a time are compiled only if smaller programs say that they may fit."""
        if self._rows > FEW_ROWS and self._rows not in self._sizes[:2]:
            first, second = self._sizes[:2]
            tell(f"a chip has {self._rows} rows at a time: at first {first} and {second} at a time are compiled")
            needed = self._expected_bytes(self._rows, self._remat)
            if needed > self._capacity:
                reason = f"{self._rows} rows at a time need about {needed / 1e9:.1f} GB, as {first} and {second} tell"
                return too_large(self._config, self._plan, self._topology, reason)
        return self._check(self._rows, self._remat)

    def fitting(self) -> Check | None:
        """What fits of a config that does not: the most rows at a time, with the least recomputation. None: nothing.

        A cheaper remat policy is tried only where one row at a time does not fit.
        """
        policies = list(REMAT_POLICIES)
        given, *cheaper = policies[policies.index(self._remat) :]
        tell(f"it does not fit: trying fewer rows at a time, and remat {', '.join(cheaper) or 'as it is'} if none fits")
        for remat in (given, *cheaper):
            if self._check(self._sizes[0], remat).fits:
                return self._most_rows(remat)
        return None

    def _most_rows(self, remat: str) -> Check | None:
        for rows in reversed(self._sizes[:-1]):
            if self._expected_bytes(rows, remat) <= self._capacity:
                check = self._check(rows, remat)
                if check.fits:
                    return check
        return self._check(self._sizes[0], remat)

    def _expected_bytes(self, rows: int, remat: str) -> float:
        """Bytes per chip of a number of rows at a time, on the line through the two smallest numbers."""
        first, second = (self._check(size, remat) for size in self._sizes[:2])
        if not second.fits:
            return first.needed_bytes if rows == self._sizes[0] else math.inf
        slope = (second.needed_bytes - first.needed_bytes) / (self._sizes[1] - self._sizes[0])
        return first.needed_bytes + slope * (rows - self._sizes[0])

    def _check(self, rows: int, remat: str) -> Check:
        key = rows, remat
        if key not in self._checks:
            config, plan = self._variant(rows, remat)
            self._checks[key] = check_plan(config, plan, self._topology, self._options)
            tell(format_line(self._checks[key]))
        return self._checks[key]

    def _variant(self, rows: int, remat: str) -> tuple[ConfigDict, Plan]:
        config = self._config.copy_and_resolve_references()
        config.remat = remat
        config.train.micro_batches *= self._rows // rows
        return config, make_plan(config, self._devices)
