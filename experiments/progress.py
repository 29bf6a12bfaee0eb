"""Progress of a sweep: a bar on a terminal, a line per interval elsewhere."""

import sys
import time

import rich.console
import rich.progress

_LOG_INTERVAL = 10.0  # seconds


def describe(metrics: dict[str, float]) -> str:
  """Returns the metrics worth watching, on one line."""
  shown = {
    'loss': ('loss', '{:.3g}'),
    'tau': ('tau', '{:.2f}'),
    'importance_sampled': ('on', '{:.0%}'),
    'effective_sample_size': ('ess', '{:.1f}'),
  }
  parts = [
    f'{label} {template.format(metrics[name])}'
    for name, (label, template) in shown.items()
    if name in metrics
  ]
  return '  '.join(parts)


class Progress:
  """Shows how far a sweep is; a context manager.

  Args:
    total: number of runs to make.
    stream: what it writes to; None: standard error.
  """

  def __init__(self, total: int, stream=None):
    self._total = total
    self._finished = 0.0  # runs, partial ones included
    self._fractions: dict[str, float] = {}
    self._stream = sys.stderr if stream is None else stream
    self._start = self._logged = time.monotonic()
    self._bar = None
    if self._stream.isatty():
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn('{task.completed:.1f}/{task.total:.0f} runs'),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn('{task.description}'),
        console=rich.console.Console(file=self._stream),
      )
      self._task = self._bar.add_task('', total=total)

  def __enter__(self) -> 'Progress':
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *exception) -> None:
    if self._bar is not None:
      self._bar.stop()

  def update(self, run: str, fraction: float, metrics: dict[str, float]):
    """Notes that `run` has spent this share of its budget.

    Args:
      run: name of the run.
      fraction: in [0, 1].
      metrics: its last ones.
    """
    self._fractions[run] = fraction
    done = self._finished + sum(self._fractions.values())
    text = f'{run}: {describe(metrics)}'
    if self._bar is not None:
      self._bar.update(self._task, completed=done, description=text)
    elif time.monotonic() - self._logged >= _LOG_INTERVAL:
      self._log(done, text)

  def finish(self, run: str) -> None:
    """Notes that `run` has ended."""
    self._fractions.pop(run, None)
    self._finished += 1
    if self._bar is not None:
      done = self._finished + sum(self._fractions.values())
      self._bar.update(self._task, completed=done)

  def say(self, text: str) -> None:
    """Prints a line that stays."""
    if self._bar is not None:
      self._bar.console.print(text, markup=False)
    else:
      print(text, file=self._stream, flush=True)

  def _log(self, done: float, text: str) -> None:
    self._logged = time.monotonic()
    elapsed = self._logged - self._start
    left = ''
    if done >= 0.1:
      left = f', {elapsed * (self._total - done) / done:.0f} s left'
    self.say(f'{done:.1f}/{self._total} runs{left}; {text}')
