"""Where the numbers of a run go: TensorBoard, `metrics.jsonl` in the workdir, a progress bar or plain log lines."""

import json
import math
import resource
import sys
import time

import jax
import numpy as np
import tqdm
from etils import epath

from janus_jax.storage import write_whole
from janus_jax.training.objectives.base import Metrics
from janus_jax.training.tensorboard import Scalars


class MetricsLog:
    """Collects metrics per step without waiting for the device; writes means every `log_every` steps.

    A line of `metrics.jsonl` holds the step, the means since the last line (of counts, as `tokens/generate`, per step),
    and of the same time:
        images_per_second, tokens_per_second, steps_per_second: of the whole run, all processes.
        step_seconds/median, /p90, /max: from the end of a step to the end of the next; not the first one's.
        data_wait_share, save_wait_share: the part in which the devices had nothing to do for want of data (but for a
            process's first batch), and in which the loop waited for checkpoints.
        goodput: since the run was first started, the part of the wall time in which steps were done that count; not
            starts, compilation, waiting, and what a crash lost. With `time` (Unix) and `wall_seconds` it goes on
            through restarts.
        mfu: of those steps on average, where the peak of the devices and the operations of the model are known.
        memory/host_gib, memory/device_gib: the peaks of this process and of its fullest device.
        memory/save_gib: what the last save held on the host of this process, beside the devices' own; one at a time.
    On a terminal a progress bar shows loss, images/s and the remaining time; elsewhere each write is one plain line.
    """

    def __init__(
        self, workdir: epath.Path | None, name: str, num_steps: int, first_step: int, ideal_seconds: float | None = None
    ):
        """Without a workdir nothing is written or shown: the other processes of a run.

        Args:
            ideal_seconds: of a step that does what the model needs at the peak of the devices; None if unknown.
        """
        self._ideal_seconds = ideal_seconds
        self._file = workdir / "metrics.jsonl" if workdir else None
        self._lines = ""  # of the file
        last_line = self._discard_after(first_step)
        now = time.time()
        wall_seconds = last_line.get("wall_seconds", 0.0)
        self._first_start = last_line.get("time", now) - wall_seconds
        self._productive = last_line.get("goodput", 0.0) * wall_seconds
        self._step_ended: float | None = None  # None before the first step of this process, which compiles
        self._step_seconds: list[float] = []
        self._scalars = Scalars(workdir / "tensorboard", first_step + 1) if workdir else None
        self._pending: list[Metrics] = []
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
        """Whether there is anything to write."""
        return bool(self._pending)

    def write(self, step: int, waited: float, saving: float, extra: dict[str, float]) -> dict[str, float]:
        """Means since the last write, to all sinks; this waits for the device.

        Args:
            waited: seconds since the last write in which the devices waited for data.
            saving: those in which the loop waited for checkpoints.

        Raises:
            OSError: the file cannot be written, e.g. on a full disk.
        """
        pending = jax.device_get(self._pending)
        elapsed = time.monotonic() - self._started
        means = {}
        for key in pending[0]:
            total, weight = (sum(float(metrics[key][i]) for metrics in pending) for i in (0, 1))
            means[key] = total / weight if weight else float("nan")
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
            **extra,
        }
        # A task absent from the batch has no mean: leave it out, since NaN (and infinity) is not JSON.
        known = {key: value for key, value in means.items() if math.isfinite(value)}
        if self._file and self._scalars:
            self._lines += json.dumps({"step": step, **known}) + "\n"
            try:
                write_whole(self._file, self._lines)  # a bucket has no appending
                self._scalars.write(step, {key: known[key] for key in known.keys() - {"time"}})
            except OSError as error:
                raise OSError(f"{self._file.parent}: metrics cannot be written ({error.strerror})") from error
            self._show(step, means)
        self._pending, self._step_seconds, self._started = [], [], time.monotonic()
        return means

    def close(self) -> None:
        self._bar.close()
        if self._scalars:
            self._scalars.close()

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
        """Drops lines of steps that a crash lost and this run will repeat, and a last line that it cut short.

        Returns the last line that is kept; without one, an empty dictionary.
        """
        if not (self._file and self._file.exists()):
            return {}
        text = self._file.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        kept = [line for line in lines if line["step"] <= step]
        self._lines = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self._file, self._lines)
        return kept[-1] if kept else {}


def _peak_memory() -> dict[str, float]:
    """Peaks so far in GiB; a CPU has no device memory of its own."""
    peaks = {"memory/host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    statistics = [device.memory_stats() for device in jax.local_devices()]
    in_use = [entry["peak_bytes_in_use"] for entry in statistics if entry and "peak_bytes_in_use" in entry]
    return peaks | ({"memory/device_gib": max(in_use) / 2**30} if in_use else {})
