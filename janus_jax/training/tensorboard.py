"""Writes scalars, images and texts for TensorBoard.

tensorboardX's SummaryWriter (version 2.6) is not used: its thread ends on a full disk, and its queue then blocks the
run for ever.
"""

import time
from collections.abc import Mapping

import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class TensorBoard:
    """A new file of events in `folder`. All methods raise OSError when the file cannot be written.

    Args:
        first_step: The first step that will be written. TensorBoard drops the events that earlier files have of this
            step and of later ones, since a crash lost those steps.
    """

    def __init__(self, folder: epath.Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._write(
            step, Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        )

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Shows pixels [height, width, 3], uint8."""
        self._write(step, summary.image(name, pixels, dataformats="HWC"))

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a text, which TensorBoard reads as Markdown."""
        self._write(step, summary.text(name, text))

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, content: Summary) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=content))
        self._events.flush()
