"""Being told to stop: a run saves where it is, then ends."""

import contextlib
import math
import os
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
  ends the process at once, even while the device has the main thread wait: with
  128 plus its number. Signals come to the main thread alone; in others there is
  only the time.

  Args:
    deadline: of time.monotonic().
  """

  def __init__(self, deadline: float = math.inf):
    self._deadline = deadline
    self._status: int | None = None
    self._exit = contextlib.ExitStack()

  def __enter__(self) -> 'Interruption':
    if threading.current_thread() is threading.main_thread():
      for number in _STATUS:
        former = signal.signal(number, self._remember)
        self._exit.callback(signal.signal, number, former)
      self._watch()
    return self

  def __exit__(self, *error) -> None:
    self._exit.close()

  def _watch(self) -> None:
    """Has a thread told of each signal when it comes: handlers may wait."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread = threading.Thread(
      target=_leave_at_the_second, args=(read,), daemon=True
    )
    thread.start()
    self._exit.callback(thread.join)
    self._exit.callback(os.close, write)  # with which the thread ends
    self._exit.callback(signal.set_wakeup_fd, former)

  def _remember(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._status = _STATUS[number]

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


def _leave_at_the_second(pipe: int) -> None:
  """Ends the process at the second of the signals; returns at their end."""
  seen = 0
  with open(pipe, 'rb', buffering=0) as numbers:
    while number := numbers.read(1):
      seen += number[0] in _STATUS
      if seen == 2:
        os._exit(128 + number[0])
