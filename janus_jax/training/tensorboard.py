"""Scalars for TensorBoard.

Not by tensorboardX's SummaryWriter: its thread ends on a full disk, and its queue then blocks the run for ever.
"""

import time
from collections.abc import Mapping

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class Scalars:
    """A new file of events in `folder`. All methods raise OSError when it cannot be written.

    Args:
        first_step: the first that is written; TensorBoard drops what earlier files hold from it on, since a crash lost
            those steps.
    """

    def __init__(self, folder: epath.Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._events.flush()

    def close(self) -> None:
        self._events.close()
