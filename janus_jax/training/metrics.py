"""Where the numbers of a run go: TensorBoard, `metrics.jsonl` in the workdir, a progress bar or plain log lines."""

import json
import math
import sys
import time

import jax
import tqdm
from etils import epath
from tensorboardX import SummaryWriter

from janus_jax.training.objectives import Metrics


class MetricsLog:
    """Collects metrics per step without waiting for the device; writes means every `log_every` steps.

    A line of `metrics.jsonl` holds the step, the means since the last line, `images_per_second`, `steps_per_second`
    and `data_wait_share`, the part of the time in which the loop waited for data. On a terminal a progress bar shows
    loss, images/s and the remaining time; elsewhere each write is one plain line.
    """

    def __init__(self, workdir: epath.Path | None, name: str, num_steps: int, first_step: int):
        """Without a workdir nothing is written or shown: the other processes of a run."""
        self._file = workdir / "metrics.jsonl" if workdir else None
        self._discard_after(first_step)
        self._writer = SummaryWriter(str(workdir / "tensorboard")) if workdir else None
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
        self._pending.append(metrics)
        self._bar.update()

    def write(self, step: int, waited: float, extra: dict[str, float]) -> dict[str, float]:
        """Means since the last write, to all sinks; this waits for the device.

        Args:
            waited: seconds since the last write in which the loop waited for data.
        """
        pending = jax.device_get(self._pending)
        elapsed = time.monotonic() - self._started
        means = {}
        for key in pending[0]:
            total, weight = (sum(float(metrics[key][i]) for metrics in pending) for i in (0, 1))
            means[key] = total / weight if weight else float("nan")
        images = sum(float(metrics["images"][0]) for metrics in pending)
        means |= {
            "images_per_second": images / elapsed,
            "steps_per_second": len(pending) / elapsed,
            "data_wait_share": waited / elapsed,
            **extra,
        }
        # A task absent from the batch has no mean: leave it out, since NaN (and infinity) is not JSON.
        known = {key: value for key, value in means.items() if math.isfinite(value)}
        if self._file and self._writer:
            with self._file.open("a") as file:
                file.write(json.dumps({"step": step, **known}) + "\n")
            for key, value in known.items():
                self._writer.add_scalar(key, value, step)
            self._show(step, means)
        self._pending, self._started = [], time.monotonic()
        return means

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()

    def _show(self, step: int, means: dict[str, float]) -> None:
        self._bar.set_postfix_str(f"loss {means['loss']:.3f}, {means['images_per_second']:.0f} images/s")
        if not self._interactive:
            remaining = (self._num_steps - step) / means["steps_per_second"]
            print(
                f"{self._name} step {step}/{self._num_steps} loss {means['loss']:.4f}, "
                f"{means['images_per_second']:.0f} images/s, {remaining:.0f} s left",
                flush=True,
            )

    def _discard_after(self, step: int) -> None:
        """Drops lines of steps that a crash lost and this run will repeat, and a last line that it cut short."""
        if self._file and self._file.exists():
            text = self._file.read_text()
            whole = text[: text.rfind("\n") + 1].splitlines()
            lines = [line for line in whole if json.loads(line)["step"] <= step]
            self._file.write_text("".join(line + "\n" for line in lines))
