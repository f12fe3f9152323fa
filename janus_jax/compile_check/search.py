"""Finds how many rows a chip can take at a time, with compilations that stay small.

A chip does its micro-batches in a loop: more of them change nothing but the number of turns. So the program with one
row at a time is the smallest one of a batch of any size. Many rows at a time take long to compile, the more so where
they do not fit. What they need more than one row is estimated from the traced step, without compiling it.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from janus_jax.compile_check.check import Check, check_plan, too_large
from janus_jax.compile_check.program import machine_of, topology_devices
from janus_jax.compile_check.progress import tell
from janus_jax.compile_check.sweep import format_line
from janus_jax.compiler_options import Options
from janus_jax.models.scan_layers import REMAT_POLICIES
from janus_jax.sharding import row_shares
from janus_jax.training.auto_remat import plan_with_remat
from janus_jax.training.memory import predicted_peak
from janus_jax.training.plan import Plan, make_plan

_POLICIES = list(REMAT_POLICIES)  # that which keeps most first
FEW_ROWS = 4  # so many rows at a time are compiled at once, without asking a smaller program whether they fit


class Search:
    """Checks of a config as it is, with more micro-batches and with cheaper remat policies. Each is compiled once.

    With `remat="auto"` each number of rows at a time has the policy that "auto" means for it.

    Raises UserError for a config or a topology that cannot work.
    """

    def __init__(self, config: ConfigDict, topology: str, slices: int, options: Options, whole: bool = False):
        self._config, self._topology, self._options, self._whole = config, topology, options, whole
        self._devices = topology_devices(topology, slices)
        self._capacity = machine_of(self._devices).hbm_bytes
        self._plan, remat = plan_with_remat(config, self._devices, compare=True)
        if remat is not None:
            tell(remat.describe())
        self._rows = config.train.batch_size // row_shares(self._plan.mesh) // config.train.micro_batches
        self._sizes = [rows for rows in range(1, self._rows + 1) if self._rows % rows == 0]
        self._policies = {self._rows: self._plan.execution.remat}
        self._checks: dict[tuple[int, str], Check] = {}

    def given(self) -> Check:
        """The config as it is. Many rows at a time are compiled only if they may fit, as one row at a time tells."""
        remat = self._plan.execution.remat
        if self._rows > FEW_ROWS:
            tell(f"a chip has {self._rows} rows at a time: at first a program with one at a time is compiled")
            one = self.compiled(1, self._policy(1))
            needed = self.expected_bytes(self._rows, remat, one)
            if not one.fits or needed > self._capacity:
                reason = f"{self._rows} rows at a time on a chip need about {needed / 1e9:.0f} GB"
                return too_large(self._config, self._plan, self._topology, one.reason or reason)
        return self.compiled(self._rows, remat)

    def fitting(self) -> Iterator[Check]:
        """Checks of variants that fit, for a config that does not: one row at a time, then the most rows at a time.

        Cheaper remat policies are tried where one row at a time does not fit.
        """
        given, *cheaper = _POLICIES[_POLICIES.index(self._policy(1)) :]
        tell(f"it does not fit: trying fewer rows at a time, and remat {', '.join(cheaper) or 'as it is'} if none fits")
        for remat in (given, *cheaper):
            one = self.compiled(1, remat)
            if one.fits:
                yield one
                yield from self._most_rows(one)
                return

    def _most_rows(self, one: Check) -> Iterator[Check]:
        for rows in reversed(self._sizes[1:-1]):
            remat = max(one.remat, self._policy(rows), key=_POLICIES.index)
            if self.expected_bytes(rows, remat, one) <= self._capacity and self.compiled(rows, remat).fits:
                yield self.compiled(rows, remat)
                return

    def expected_bytes(self, rows: int, remat: str, one: Check) -> float:
        """Bytes per chip of a number of rows at a time: those of a check with one, and the growth that is estimated."""
        return one.needed_bytes + self._predicted_bytes(rows, remat) - self._predicted_bytes(1, one.remat)

    def _policy(self, rows: int) -> str:
        """The remat policy of a number of rows at a time."""
        if rows not in self._policies:
            plan, _ = plan_with_remat(self._with_rows(rows), self._devices)
            self._policies[rows] = plan.execution.remat
        return self._policies[rows]

    def _predicted_bytes(self, rows: int, remat: str) -> int:
        return predicted_peak(*self._variant(rows, remat))

    def compiled(self, rows: int, remat: str) -> Check:
        """The check with a number of rows at a time. It is told when it is new."""
        key = rows, remat
        if key not in self._checks:
            config, plan = self._variant(rows, remat)
            self._checks[key] = check_plan(config, plan, self._topology, self._options, self._whole)
            tell(format_line(self._checks[key]))
        return self._checks[key]

    def _variant(self, rows: int, remat: str) -> tuple[ConfigDict, Plan]:
        config = self._with_rows(rows)
        config.remat = remat
        return config, make_plan(config, self._devices)

    def _with_rows(self, rows: int) -> ConfigDict:
        config = self._config.copy_and_resolve_references()
        config.train.micro_batches *= self._rows // rows
        return config
