"""One run: config -> run folder.

Usage: python -m experiments.train CONFIG --folder=FOLDER
           [--config.field=value ...]

Runs the config as `get_config()` gives it, without its sweep. A run that was
cut off goes on from its last checkpoint; a finished one is not made again.
Exits with 3 where the run diverged, with 75 after SIGTERM and 130 after Ctrl-C,
when it has saved where it is.
"""

from collections.abc import Callable
import functools
import json
import math
import os
import pathlib
import shutil
import sys
import time
from typing import Any

import jax
import numpy as np

from experiments import artifacts, trunk
from experiments.artifacts import BusyError
from experiments.checkpoints import CheckpointError, Checkpoints
from experiments.interruption import InterruptedRunError, Interruption
from experiments.program import Program, check
from experiments.progress import Progress
from experiments.settings import SettingsError, differences, load, parse

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
  comes to the same numbers as if it had not been, bit for bit.

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
    InterruptedRunError: after it was told to stop, and has saved its state.
    SettingsError: where the folder is that of a run of another config.
  """
  interruption = interruption or Interruption()
  interruption.check()
  with artifacts.claim(folder):
    _begin(config, folder)
    program.compile()
    with Checkpoints(folder / trunk.CHECKPOINTS, config) as kept:
      lines = _Lines(program, config, folder / 'metrics.jsonl')
      state = _first_state(program, config, kept, lines, trunk_folder)
      state = _train(program, config, state, lines, kept, report, interruption)
      if _keeps_last_state(config):
        kept.save(int(state.step), state, lines.position)
      result = lines.finish(state)
    if not _keeps_last_state(config):
      shutil.rmtree(folder / trunk.CHECKPOINTS, ignore_errors=True)
    artifacts.write_json(
      folder / 'result.json',
      result | {'config': config} | artifacts.provenance(),
    )
  return result


def _begin(config: dict[str, Any], folder: pathlib.Path) -> None:
  """Writes config.json, once it is known to be this run's folder."""
  path = folder / 'config.json'
  if path.exists():
    different = differences(artifacts.read_json(path)['config'], config)
    if different:
      raise SettingsError(
        f'{folder} is of a run of another config: {different}. Set that back, '
        'or give another folder.'
      )
  (folder / 'result.json').unlink(missing_ok=True)
  artifacts.write_json(path, {'config': config} | artifacts.provenance())


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
  shutil.copyfile(trunk_folder / lines.path.name, lines.path)
  lines.go_on(position)
  return state


def _train(program, config, state, lines, kept, report, interruption):
  """Makes the steps up to the end of the run."""
  every = 60 * config['checkpoints']['minutes']
  saved_at = time.monotonic()
  call_cost = 0.0
  while lines.finite and not _is_at_end(int(state.cost), call_cost, config):
    start, cost = time.perf_counter(), int(state.cost)
    state, summary = program.advance(
      state, config['optimizer']['learning_rate'], config['budget']
    )
    # One transfer, and with it the wait for the device.
    summary = {k: float(v) for k, v in jax.device_get(summary).items()}
    call_cost = summary['cost'] - cost
    lines.write(state, summary, time.perf_counter() - start)
    report(min(summary['cost'] / config['budget'], 1.0), summary)
    if interruption.is_due or time.monotonic() - saved_at > every:
      kept.save(int(state.step), state, lines.position)
      saved_at = time.monotonic()
    if interruption.is_due:
      kept.wait()
      interruption.check()
  return state


def _keeps_last_state(config: dict[str, Any]) -> bool:
  return config['until'] < 1 or config['checkpoints']['final']


def _is_at_end(cost: int, call_cost: float, config: dict[str, Any]) -> bool:
  """Whether the budget is spent, or one more call would pass the trunk's end.

  A trunk that ended later would be trained as itself where it should not be.
  """
  if config['until'] < 1:
    return cost + call_cost > config['until'] * config['budget']
  return cost >= config['budget']


class _Lines:
  """The lines of metrics.jsonl, and what they add up to.

  Written line by line, to be watched.

  path:   of the file.
  finite: whether the loss still is.
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
      'last': {},  # line
    }
    self.path = path
    self.finite = True

  @property
  def position(self) -> dict[str, Any]:
    """Where they stand, for `go_on`."""
    return self._position | {'size': self.path.stat().st_size}

  def begin(self, state) -> None:
    """Starts the file anew, with the line of the first state."""
    self.path.write_text('')
    self.write(state, {'cost': 0, 'num_steps': 0}, 0.0)

  def go_on(self, position: dict[str, Any]) -> None:
    """Cuts the file back to the position."""
    self._position = {k: v for k, v in position.items() if k != 'size'}
    os.truncate(self.path, position['size'])

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
    self.finite = math.isfinite(metrics.get('loss', 0.0))
    line = {
      'step': position['steps'],
      'seconds': round(position['seconds'], 6),
    } | metrics
    position['last'] = line
    if self.finite and self._is_due(metrics['cost']):
      line = line | self._program.evaluate(state)
    self._append(line)

  def _append(self, line: dict[str, Any]) -> None:
    with self.path.open('a') as file:
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


def main(arguments: list[str]) -> int:
  """Makes one run from the command line; returns the exit status."""
  try:
    command = parse(arguments)
    _, config, _ = load(command.path, command.changes)
    if command.folder is None:
      raise SettingsError('one run needs --folder=FOLDER for its files.')
    config = {k: v for k, v in config.items() if k != 'sweep'}
    folder = pathlib.Path(command.folder)
    result = artifacts.read_result(folder)
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
  sys.exit(main(sys.argv[1:]))
