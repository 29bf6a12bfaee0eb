"""One run: config -> run folder.

Usage: python -m experiments.train CONFIG --folder=FOLDER
           [--deterministic] [--config.field=value ...]

Runs the config as `get_config()` gives it, without its sweep. A run that was
cut off goes on from its last checkpoint; a finished one is not made again.
Exits with 3 where the run diverged, with 75 after SIGTERM and 130 after Ctrl-C,
when it has saved where it is. --deterministic: on a GPU, the same numbers bit
for bit each time, at some cost in speed; a CPU gives them anyway.
"""

from collections.abc import Callable
import contextlib
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import sys
import time
from typing import Any
import warnings

import jax
import numpy as np

from experiments import artifacts, determinism, peers, trunk
from experiments.artifacts import BusyError, DamagedError
from experiments.checkpoints import CheckpointError, Checkpoints
from experiments.interruption import (
  UNFINISHED,
  InterruptedRunError,
  Interruption,
)
from experiments.program import Program, check
from experiments.progress import Progress
from experiments.settings import (
  SettingsError,
  differences,
  load,
  parse,
  some,
)

# report(fraction of the budget spent, the last metrics), called every interval
Report = Callable[[float, dict[str, float]], None]


def run(
  config: dict[str, Any],
  program: Program,
  folder: pathlib.Path,
  report: Report = lambda fraction, metrics: None,
  trunk_folder: pathlib.Path | None = None,
  interruption: Interruption | None = None,
) -> dict[str, Any]:
  """Trains one model and writes config, metrics and result to its folder.

  Checkpoints are saved every config['checkpoints']['minutes'] and when the run
  is told to stop. One that was cut off goes on from the last of them, and
  comes to the same numbers as if it had not been, bit for bit. A finished one
  is not made again. Of several processes each calls this, and the first one
  reads and writes the folder.

  A run that ends before its budget, config['until'] < 1, is a trunk: like one
  with config['checkpoints']['final'], it leaves its last state.

  Args:
    config: all settings of the run.
    program: of the run's cell.
    folder: of this run alone; result.json appears last, in one piece.
    report: called after every call of the program.
    trunk_folder: of the finished run that this one goes on from, if any.
    interruption: tells it to stop.

  Returns:
    The result: `status` 'finished', or 'diverged' where the training loss
    stopped being finite, the final metrics, cost and seconds. Seconds are
    those of training: not of compiling, evaluating or saving.

  Raises:
    BusyError: where another process is at work in the folder.
    CheckpointError: where a checkpoint could not be written.
    DamagedError: where metrics.jsonl has lost what it had at the checkpoint.
    InterruptedRunError: after it was told to stop, and has saved its state.
    OSError: where another file could not be written.
    SettingsError: where the folder is that of a run of another config.

  Warns:
    UserWarning: where a metric other than the loss is not finite: a score or a
      weight is not. Samplers pass over such scores, and the run goes on.
  """
  interruption = interruption or Interruption()
  if peers.any_of(interruption.is_due)[0]:
    _stop(interruption)
  first = peers.is_first()
  with artifacts.claim(folder) if first else contextlib.nullcontext():
    result = peers.from_first(_begin(config, folder) if first else None)
    if result is not None:
      return result
    program.compile()
    with Checkpoints(folder / trunk.CHECKPOINTS, config) as kept:
      lines = _Lines(program, config, folder / 'metrics.jsonl')
      state = _first_state(program, config, kept, lines, trunk_folder)
      state = _train(program, config, state, lines, kept, report, interruption)
      if _keeps_last_state(config):
        kept.save(int(state.step), state, lines.position)
      result = lines.finish(state)
    if first:
      artifacts.write_json(
        folder / 'result.json',
        result | {'config': config} | artifacts.provenance(),
      )
      if not _keeps_last_state(config):
        shutil.rmtree(folder / trunk.CHECKPOINTS, ignore_errors=True)
  return result


def _begin(
  config: dict[str, Any], folder: pathlib.Path
) -> dict[str, Any] | None:
  """Writes config.json, once it is known to be this run's folder.

  Returns:
    The result, if the run is finished.
  """
  before = artifacts.read_config(folder)
  if before is not None:
    different = differences(before, config)
    if different:
      raise SettingsError(
        f'{folder} is of a run of another config: {different}. Set that back, '
        'or give another folder.'
      )
  result = artifacts.read_result(folder)
  if result is None:
    artifacts.write_json(
      folder / 'config.json', {'config': config} | artifacts.provenance()
    )
  return result


def _first_state(program, config, kept, lines, trunk_folder):
  """Where the run goes on, or begins: the state, with the lines up to there."""
  state = program.init(config['seed'])
  restored = kept.restore(state)
  if restored is not None:
    lines.go_on(restored.position)
    return restored.state
  if trunk_folder is None:
    lines.begin(state)
    return state
  state, position = trunk.branch(program, config, trunk_folder)
  lines.go_on(position, trunk_folder / lines.path.name)
  return state


def _train(program, config, state, lines, kept, report, interruption):
  """Makes the steps up to the end of the run."""
  every = 60 * config['checkpoints']['minutes']
  saved_at = time.monotonic()
  while lines.finite and not _is_at_end(lines, config):
    start = time.perf_counter()
    state, summary = program.advance(
      state, config['optimizer']['learning_rate'], config['budget']
    )
    # One transfer, and with it the wait for the device.
    summary = {k: float(v) for k, v in jax.device_get(summary).items()}
    lines.write(state, summary, time.perf_counter() - start)
    report(min(summary['cost'] / config['budget'], 1.0), summary)
    stop, save = peers.any_of(
      interruption.is_due, time.monotonic() - saved_at > every
    )
    if stop or save:
      kept.save(int(state.step), state, lines.position)
      saved_at = time.monotonic()
    if stop:
      kept.wait()
      _stop(interruption)
  return state


def _stop(interruption: Interruption) -> None:
  """Raises InterruptedRunError, of whichever process it is time to stop."""
  interruption.check()
  raise InterruptedRunError(UNFINISHED)


def _keeps_last_state(config: dict[str, Any]) -> bool:
  return config['until'] < 1 or config['checkpoints']['final']


def _is_at_end(lines: '_Lines', config: dict[str, Any]) -> bool:
  """Whether the budget is spent, or one more call would pass the trunk's end.

  A trunk that ended later would be trained as itself where it should not be.
  """
  if config['until'] < 1:
    return lines.cost + lines.call_cost > config['until'] * config['budget']
  return lines.cost >= config['budget']


class _Lines:
  """The lines of metrics.jsonl, and what they add up to.

  Written line by line, to be watched. Whether the run goes on depends on
  nothing else, so that one that was cut off ends where it would have.

  path: of the file.
  """

  def __init__(
    self, program: Program, config: dict[str, Any], path: pathlib.Path
  ):
    self._program = program
    self._interval = config['budget'] / config['num_evaluations']
    # All that the next line depends on, as JSON holds it.
    self._position: dict[str, Any] = {
      'steps': 0,
      'seconds': 0.0,
      'evaluated_at': None,  # cost
      'sums': {},  # of each metric over its steps, and their number
      'call_cost': 0.0,  # of the last call
      'last': {},  # line
    }
    self._warned = False
    self.path = path

  @property
  def cost(self) -> float:
    """Spent so far."""
    return self._position['last'].get('cost', 0.0)

  @property
  def call_cost(self) -> float:
    """Spent by the last call."""
    return self._position['call_cost']

  @property
  def finite(self) -> bool:
    """Whether the loss still is."""
    return math.isfinite(self._position['last'].get('loss', 0.0))

  @property
  def position(self) -> dict[str, Any]:
    """Where they stand, for `go_on`."""
    if not peers.is_first():
      return self._position
    lines = self.path.read_bytes()
    return self._position | {'size': len(lines), 'digest': _digest(lines)}

  def begin(self, state) -> None:
    """Starts the file anew, with the line of the first state."""
    if peers.is_first():
      with artifacts.errors_named(self.path):
        self.path.write_text('')
    self.write(state, {'cost': 0, 'num_steps': 0}, 0.0)

  def go_on(
    self, position: dict[str, Any], path: pathlib.Path | None = None
  ) -> None:
    """Cuts the file back to the position; a copy of another one, if given.

    Raises:
      DamagedError: where it is not what it was there.
    """
    path = path or self.path
    self._position = dict(position)
    size, digest = (self._position.pop(k, None) for k in ('size', 'digest'))
    if not peers.is_first():
      return
    lines = path.read_bytes()[:size] if path.exists() else b''
    if _digest(lines) != digest:
      raise DamagedError(
        f'{path} is not what it was at the checkpoint. Remove {path.parent}, '
        'and the same command makes the run anew.'
      )
    with artifacts.errors_named(self.path):
      if path != self.path:
        shutil.copyfile(path, self.path)
      os.truncate(self.path, size)

  def write(self, state, summary: dict[str, float], seconds: float) -> None:
    """Adds a line; with an exact evaluation where the last is an interval ago.

    Args:
      state: after the call.
      summary: of the call.
      seconds: that it took.
    """
    position = self._position
    steps = int(summary['num_steps'])
    metrics = {k: v for k, v in summary.items() if k != 'num_steps'}
    position['steps'] += steps
    position['seconds'] += seconds
    for name, value in metrics.items():
      if name != 'cost':
        total, count = position['sums'].get(name, (0.0, 0))
        position['sums'][name] = (total + steps * value, count + steps)
    line = {
      'step': position['steps'],
      'seconds': round(position['seconds'], 6),
    } | metrics
    position['call_cost'] = metrics['cost'] - self.cost
    position['last'] = line
    self._warn_of([k for k, v in metrics.items() if not math.isfinite(v)])
    if self.finite and self._is_due(metrics['cost']):
      line = line | self._program.evaluate(state)
    self._append(line)

  def _warn_of(self, names: list[str]) -> None:
    """Tells once which metrics are not finite, where the loss is."""
    if names and self.finite and not self._warned:
      self._warned = True
      warnings.warn(
        f'{self.path.parent.name}: a score or a weight is not finite at step '
        f'{self._position["steps"]}, as {some(names)} show; samplers pass over '
        'such scores.',
        stacklevel=3,
      )

  def _append(self, line: dict[str, Any]) -> None:
    if not peers.is_first():
      return
    with artifacts.errors_named(self.path), self.path.open('a') as file:
      file.write(artifacts.json_line(line))

  def _is_due(self, cost: float) -> bool:
    last = self._position['evaluated_at']
    due = last is None or cost - last >= self._interval * (1 - 1e-6)
    if due:
      self._position['evaluated_at'] = cost
    return due

  def finish(self, state) -> dict[str, Any]:
    """Adds the last line, and returns the result of the run.

    Status, exact final metrics, means over all steps, cost and seconds.
    """
    final = self._program.evaluate(state)
    average_precision = self._program.test_average_precision(state)
    if average_precision is not None:
      final['test_average_precision'] = average_precision
    finite = self.finite and np.isfinite(list(final.values())).all()
    means = {
      f'mean_{name}': total / max(count, 1)
      for name, (total, count) in self._position['sums'].items()
      if name not in ('loss', 'error')
    }
    result = {
      'status': 'finished' if finite else 'diverged',
      **final,
      **means,
      'steps': self._position['steps'],
      'cost': int(state.cost),
      'seconds': self._position['seconds'],
    }
    self._append(self._position['last'] | result)
    return result


def _digest(lines: bytes) -> str:
  return hashlib.sha256(lines).hexdigest()


def show_warnings() -> None:
  """Shows warnings from now on as one line each."""
  warnings.showwarning = lambda message, *_: print(
    f'warning: {message}', file=sys.stderr, flush=True
  )


def main(arguments: list[str]) -> int:
  """Makes one run from the command line; returns the exit status."""
  show_warnings()
  try:
    command = parse(determinism.take(arguments))
    for name in ('part', 'minutes', 'workers'):
      if getattr(command, name) is not None:
        raise SettingsError(
          'one run has no --cell, --minutes or --workers; a sweep has.'
        )
    peers.join()
    _, config, _ = load(command.path, command.changes)
    if command.folder is None:
      raise SettingsError('one run needs --folder=FOLDER for its files.')
    config = {k: v for k, v in config.items() if k != 'sweep'}
    folder = pathlib.Path(command.folder)
    result = peers.from_first(artifacts.read_result(folder))
    if result is None or differences(result['config'], config):
      check([config])
      result = _run_and_show(config, folder)
  except InterruptedRunError as interruption:
    print(interruption, file=sys.stderr)
    return interruption.status
  except SettingsError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except (BusyError, CheckpointError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  if result['status'] == 'diverged':
    print(f'{folder.name}: {diverged(result)}', file=sys.stderr)
    return 3
  facts = ('config', *artifacts.provenance())
  print(json.dumps({k: result[k] for k in result if k not in facts}, indent=2))
  return 0


def _run_and_show(
  config: dict[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
  """Makes a run and shows its progress."""
  program = Program(config)
  with Progress(1) as progress, Interruption() as interruption:
    return run(
      config,
      program,
      folder,
      report=functools.partial(progress.update, folder.name),
      interruption=interruption,
    )


def diverged(result: dict[str, Any]) -> str:
  """Says of a result with that status what happened and what to do."""
  return (
    f'diverged, its loss stopped being finite after {result["steps"]} steps; '
    'lower optimizer.learning_rate.'
  )


if __name__ == '__main__':
  peers.leave(main(sys.argv[1:]))
