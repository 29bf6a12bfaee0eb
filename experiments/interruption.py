"""Being told to stop: a run saves where it is, then ends."""

import contextlib
import math
import signal
import threading
import time
from types import FrameType

UNFINISHED = 75  # exit status: what is left takes another call
_STATUS = {signal.SIGTERM: UNFINISHED, signal.SIGINT: 130}


class InterruptedRunError(Exception):
  """A run was told to stop, and what it needs to go on is saved.

  Attributes:
    status: that the program exits with: 130 after Ctrl-C, else 75.
  """

  def __init__(self, status: int):
    super().__init__(
      'stopped; the same command goes on with the unfinished runs.'
    )
    self.status = status


class Interruption(contextlib.AbstractContextManager):
  """Tells a run to stop: at a time, or once there is a signal.

  Within its block the first SIGTERM or Ctrl-C is remembered, and the second one
  ends the process at once. Signals come to the main thread alone; in others
  there is only the time.

  Args:
    deadline: of time.monotonic().
  """

  def __init__(self, deadline: float = math.inf):
    self._deadline = deadline
    self._status: int | None = None
    self._former = {}

  def __enter__(self) -> 'Interruption':
    if threading.current_thread() is threading.main_thread():
      for number in _STATUS:
        self._former[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *error) -> None:
    for number, handler in self._former.items():
      signal.signal(number, handler)

  def _remember(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._status = _STATUS[number]
    for other in _STATUS:
      signal.signal(other, signal.SIG_DFL)

  @property
  def is_signalled(self) -> bool:
    """Whether a signal has come."""
    return self._status is not None

  @property
  def is_due(self) -> bool:
    """Whether to stop."""
    return self.is_signalled or time.monotonic() > self._deadline

  def check(self) -> None:
    """Raises InterruptedRunError where it is time to stop."""
    if self.is_due:
      raise InterruptedRunError(self._status or UNFINISHED)
