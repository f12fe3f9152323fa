"""The output folder of a quickstart run: which files it may delete, and how long each part of the run has taken."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from etils import epath

from janus_jax.errors import UserError

# Files and folders that a run writes.
WRITTEN = ("report.json", "report.html", "samples.png", "runs", "ablation", "checkpoint", "data", "examples")
# Model, seed and seconds of the run so far. Only a folder with this file is ever cleared.
MARKER = ".janus_jax_quickstart"


class RunFolder:
    """A folder that belongs to one run of the quickstart; `claim` opens it.

    Attributes:
        path: the folder.
        seconds: seconds of each part of the run, also over several attempts.
    """

    def __init__(self, path: epath.Path, model: str, seed: int, seconds: dict[str, float]):
        self.path, self.seconds = path, seconds
        self._model, self._seed = model, seed
        self._write_marker()

    @classmethod
    def claim(cls, path: epath.Path, *, model: str, seed: int, add_to_finished: bool = False) -> "RunFolder":
        """Makes the folder that of a run, and clears it where it holds a finished run.

        An interrupted run goes on. So does a finished run with `add_to_finished`; it will be evaluated again.

        Raises UserError where files of somebody else would be overwritten, and where a run would go on with another
        model or seed.
        """
        if not (path / MARKER).exists():
            for name in WRITTEN:
                if (path / name).exists():
                    raise UserError(f"--output={path}: holds {name}, which no quickstart wrote; expected a new folder")
            return cls(path, model, seed, {})
        if (path / "report.json").exists() and not add_to_finished:
            for name in WRITTEN:
                written = path / name
                written.rmtree() if written.is_dir() else written.unlink(missing_ok=True)
            return cls(path, model, seed, {})
        started = json.loads((path / MARKER).read_text())
        if started.get("model", "janus") != model:
            raise UserError(f"--model={model}, but the run in {path} is of {started['model']}")
        if started["seed"] != seed:
            raise UserError(
                f"--seed={seed}, but the run in {path} has seed {started['seed']}: "
                "go on with that one, or remove the folder"
            )
        seconds = started["seconds"]
        if (path / "report.json").exists():
            (path / "report.json").unlink()
            seconds.pop("evaluation", None)
        return cls(path, model, seed, seconds)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes to `seconds[name]`, also when the block is interrupted."""
        start, before = time.monotonic(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = before + time.monotonic() - start
            self._write_marker()

    def _write_marker(self) -> None:
        content = {"model": self._model, "seed": self._seed, "seconds": self.seconds}
        (self.path / MARKER).write_text(json.dumps(content) + "\n")
