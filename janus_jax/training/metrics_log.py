"""Writes the numbers of a run: to TensorBoard, to `metrics.jsonl` in the workdir, and to the terminal."""

import json
import math
import resource
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
import tqdm
from etils import epath

from janus_jax.errors import UserError
from janus_jax.storage import write_whole
from janus_jax.training.objectives.base import Metrics, mean_metrics
from janus_jax.training.tensorboard import TensorBoard


class MetricsLog:
    """Collects metrics per step without waiting for the devices, and writes their means.

    A line of `metrics.jsonl` holds the step and the means since the last line. Counts, such as `tokens/generate`, are
    means per step. The usage and perplexity of codes are those of all images since the last line. Further values of the
    same time are:
        images_per_second, tokens_per_second, steps_per_second: rates of the whole run, with all its processes.
        step_seconds/median, /p90, /max: time from the end of a step to the end of the next, without the first step of
            the process.
        data_wait_share: share of the time in which the devices had nothing to do because no data came, except for the
            first batch of the process.
        save_wait_share: share of the time in which the loop waited for checkpoints.
        goodput: share of the wall time since the run was first started in which steps were done that count. Starts,
            compilation, waiting, other work between steps and steps that a crash lost do not count. `time` (Unix time)
            and `wall_seconds` make it continue after restarts.
        mfu: model FLOPs utilisation of those steps, if the peak of the devices and the FLOPs of the model are known.
        memory/host_gib, memory/device_gib: peak memory of this process and of its fullest device.
        memory/save_gib: memory that the last save took on the host of this process. Only one save runs at a time.
        validation/...: values of held-out data, in the lines of the steps that were validated.
    On a terminal, a progress bar shows loss, images/s and the remaining time. Otherwise each write prints one line.
    """

    def __init__(
        self, workdir: epath.Path | None, name: str, num_steps: int, first_step: int, ideal_seconds: float | None = None
    ):
        """Opens the files of the run.

        Args:
            workdir: None in all processes of a run but the first: these write and show nothing.
            name: Name of the run, which is shown.
            first_step: Number of steps already done.
            ideal_seconds: Time of a step that does what the model needs at the peak of the devices; None if unknown.
        """
        self._ideal_seconds = ideal_seconds
        self._file = workdir / "metrics.jsonl" if workdir else None
        self._lines = ""  # content of the file
        last_line = self._discard_after(first_step)
        now = time.time()
        wall_seconds = last_line.get("wall_seconds", 0.0)
        self._first_start = last_line.get("time", now) - wall_seconds
        self._productive = last_line.get("goodput", 0.0) * wall_seconds
        self._step_ended: float | None = None  # None until the first step of this process, which compiles, has ended
        self._step_seconds: list[float] = []
        self.tensorboard = TensorBoard(workdir / "tensorboard", first_step + 1) if workdir else None
        self._pending: list[Metrics] = []
        self._reports: dict[str, float] = {}
        self._means: dict[str, float] = {}
        self._started = time.monotonic()
        self._interactive = sys.stderr.isatty()
        self._name, self._num_steps = name, num_steps
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=first_step,
            desc=name,
            unit="step",
            disable=not (workdir and self._interactive),
            dynamic_ncols=True,
        )

    def add(self, metrics: Metrics) -> None:
        """Remembers one step's metrics."""
        now = time.monotonic()
        if self._step_ended is not None:
            self._step_seconds.append(now - self._step_ended)
        self._step_ended = now
        self._pending.append(metrics)
        self._bar.update()

    @property
    def has_steps(self) -> bool:
        """Whether there are steps to write."""
        return bool(self._pending)

    @property
    def has_reports(self) -> bool:
        """Whether there are reported values to write."""
        return bool(self._reports)

    @property
    def last_means(self) -> dict[str, float]:
        """What was written last; empty before the first write of this process."""
        return self._means

    def report(self, values: Mapping[str, float]) -> None:
        """Adds values to the next write."""
        self._reports |= values

    def leave_out(self, seconds: float) -> None:
        """Tells that the last seconds were spent on other work than steps, so that no rate or step time counts them."""
        self._started += seconds
        if self._step_ended is not None:
            self._step_ended += seconds

    def say(self, text: str) -> None:
        """Shows a line on the terminal, above the progress bar if there is one."""
        if self._file:
            tqdm.tqdm.write(text)
            sys.stdout.flush()

    def write(self, step: int, waited: float, saving: float, others: dict[str, float]) -> dict[str, float]:
        """Writes the means since the last write everywhere. This waits for the devices.

        Args:
            waited: Seconds since the last write in which the devices waited for data.
            saving: Seconds since the last write in which the loop waited for checkpoints.
            others: Further values of this step.

        Raises:
            OSError: The file cannot be written, e.g. on a full disk.
        """
        pending = jax.device_get(self._pending)
        elapsed = time.monotonic() - self._started

        def total(key: str, half: int) -> np.ndarray:
            return np.sum([np.asarray(metrics[key][half], np.float64) for metrics in pending], axis=0)

        means = mean_metrics({key: (total(key, 0), total(key, 1)) for key in pending[0]})
        rates = {
            f"{name}_per_second": sum(float(metrics[name][0]) for metrics in pending) / elapsed
            for name in ("images", "tokens")
            if name in pending[0]
        }
        means |= {
            **rates,
            "steps_per_second": len(pending) / elapsed,
            "data_wait_share": waited / elapsed,
            "save_wait_share": saving / elapsed,
            **self._step_times(waited + saving),
            **_peak_memory(),
            **others,
            **self._reports,
        }
        # A task that is absent from the batches has no mean. It is left out, since NaN and infinity are not JSON.
        known = {key: value for key, value in means.items() if math.isfinite(value)}
        if self._file and self.tensorboard:
            self._lines += json.dumps({"step": step, **known}) + "\n"
            try:
                write_whole(self._file, self._lines)  # as a whole, since files in a bucket cannot be appended to
                self.tensorboard.scalars(step, {key: known[key] for key in known.keys() - {"time"}})
            except OSError as error:
                raise OSError(f"{self._file.parent}: metrics cannot be written ({error.strerror})") from error
            self._show(step, means)
        self._pending, self._step_seconds, self._started = [], [], time.monotonic()
        self._reports, self._means = {}, means
        return means

    def close(self) -> None:
        """Ends the progress bar and the TensorBoard file."""
        self._bar.close()
        if self.tensorboard:
            self.tensorboard.close()

    def _step_times(self, waited: float) -> dict[str, float]:
        """Percentiles and MFU of the steps since the last write, and goodput."""
        seconds = self._step_seconds
        self._productive += max(sum(seconds) - waited, 0.0)
        now = time.time()
        wall_seconds = max(now - self._first_start, 1e-9)
        times = {"time": now, "wall_seconds": wall_seconds, "goodput": self._productive / wall_seconds}
        if seconds:
            median, p90 = np.percentile(seconds, (50, 90))
            times |= {"step_seconds/median": median, "step_seconds/p90": p90, "step_seconds/max": max(seconds)}
            if self._ideal_seconds is not None:
                times["mfu"] = self._ideal_seconds / (sum(seconds) / len(seconds))
        return {name: float(value) for name, value in times.items()}

    def _show(self, step: int, means: dict[str, float]) -> None:
        self._bar.set_postfix_str(f"loss {means['loss']:.3f}, {means['images_per_second']:.0f} images/s")
        if not self._interactive:
            remaining = (self._num_steps - step) / means["steps_per_second"]
            print(
                f"{self._name} step {step}/{self._num_steps} loss {means['loss']:.4f}, "
                f"{means['images_per_second']:.0f} images/s, {remaining:.0f} s left",
                flush=True,
            )

    def _discard_after(self, step: int) -> dict[str, float]:
        """Drops the lines of later steps, which a crash lost and this run will repeat, and an incomplete last line.

        Returns the last line that is kept, or an empty dictionary.
        """
        if not (self._file and self._file.exists()):
            return {}
        text = self._file.read_text()
        try:
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        except ValueError as error:
            raise UserError(f"{self._file}: damaged ({error}), expected JSON in each line; move it away") from error
        kept = [line for line in lines if line["step"] <= step]
        self._lines = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self._file, self._lines)
        return kept[-1] if kept else {}


def _peak_memory() -> dict[str, float]:
    """Peak memory so far in GiB. A CPU has no separate device memory."""
    peaks = {"memory/host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    statistics = [device.memory_stats() for device in jax.local_devices()]
    in_use = [entry["peak_bytes_in_use"] for entry in statistics if entry and "peak_bytes_in_use" in entry]
    return peaks | ({"memory/device_gib": max(in_use) / 2**30} if in_use else {})


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The lines of a workdir's metrics.jsonl."""
    return [json.loads(line) for line in (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
