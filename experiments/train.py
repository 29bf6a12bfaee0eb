"""One run: config -> run folder.

Usage: python -m experiments.train CONFIG --folder=FOLDER
           [--config.field=value ...]

Runs the config as `get_config()` gives it, without its sweep. Exits with 3
where the run diverged.
"""

from collections.abc import Callable
import functools
import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from experiments import artifacts, trunk
from experiments.program import Program, check
from experiments.progress import Progress
from experiments.settings import SettingsError, load, parse

# report(fraction of the budget spent, the last metrics), called every interval
Report = Callable[[float, dict[str, float]], None]


def run(
  config: dict[str, Any],
  program: Program,
  folder: pathlib.Path,
  report: Report = lambda fraction, metrics: None,
  trunk_folder: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Trains one model and writes config, metrics and result to its folder.

  A run that ends before its budget, config['until'] < 1, is a trunk: it leaves
  a checkpoint of its last state.

  Args:
    config: all settings of the run.
    program: of the run's cell.
    folder: what an earlier run left there is replaced; result.json appears
      last, in one piece.
    report: called after every call of the program.
    trunk_folder: of the finished run that this one goes on from, if any.

  Returns:
    The result: `status` 'finished', or 'diverged' where the training loss
    stopped being finite, the final metrics, cost and seconds. Seconds are
    those of training: not of compiling, nor of evaluating.
  """
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'result.json').unlink(missing_ok=True)
  artifacts.write_json(
    folder / 'config.json', {'config': config} | artifacts.provenance()
  )
  program.compile()
  lines = _Lines(program, config)
  # Line by line, to be watched; a run that is cut off starts it anew.
  with (folder / 'metrics.jsonl').open('w', buffering=1) as file:
    if trunk_folder is None:
      state = program.init(config['seed'])
      file.write(lines.line(state, {'cost': 0, 'num_steps': 0}, 0.0))
    else:
      state, position = trunk.branch(program, config, trunk_folder)
      lines.position = position
      file.write((trunk_folder / 'metrics.jsonl').read_text())
    call_cost = 0
    while lines.finite and not _is_at_end(int(state.cost), call_cost, config):
      start, cost = time.perf_counter(), int(state.cost)
      state, summary = program.advance(
        state, config['optimizer']['learning_rate'], config['budget']
      )
      # One transfer, and with it the wait for the device.
      summary = {k: float(v) for k, v in jax.device_get(summary).items()}
      call_cost = summary['cost'] - cost
      file.write(lines.line(state, summary, time.perf_counter() - start))
      report(min(summary['cost'] / config['budget'], 1.0), summary)
    result = lines.result(state)
    if config['until'] < 1:
      trunk.save(folder, config, state, lines.position)
    else:
      file.write(artifacts.json_line(lines.last | result))
  artifacts.write_json(
    folder / 'result.json', result | {'config': config} | artifacts.provenance()
  )
  return result


def _is_at_end(cost: int, call_cost: float, config: dict[str, Any]) -> bool:
  """Whether the budget is spent, or one more call would pass the trunk's end.

  A trunk that ended later would be trained as itself where it should not be.
  """
  if config['until'] < 1:
    return cost + call_cost > config['until'] * config['budget']
  return cost >= config['budget']


class _Lines:
  """The lines of metrics.jsonl, and what they add up to.

  position: all that the next line depends on, as JSON holds it: steps and
            seconds so far, the cost of the last evaluation, the sum of each
            metric over its steps and their number.
  finite:   whether the loss still is.
  last:     the last line.
  """

  def __init__(self, program: Program, config: dict[str, Any]):
    self._program = program
    self._interval = config['budget'] / config['num_evaluations']
    self.position: dict[str, Any] = {
      'steps': 0,
      'seconds': 0.0,
      'evaluated_at': None,
      'sums': {},
    }
    self.finite = True
    self.last: dict[str, Any] = {}

  def line(self, state, summary: dict[str, float], seconds: float) -> str:
    """One line; with an exact evaluation where the last is an interval ago.

    Args:
      state: after the call.
      summary: of the call.
      seconds: that it took.
    """
    position = self.position
    steps = int(summary.pop('num_steps'))
    position['steps'] += steps
    position['seconds'] += seconds
    for name, value in summary.items():
      if name != 'cost':
        total, count = position['sums'].get(name, (0.0, 0))
        position['sums'][name] = (total + steps * value, count + steps)
    self.finite = math.isfinite(summary.get('loss', 0.0))
    line = {
      'step': position['steps'],
      'seconds': round(position['seconds'], 6),
    } | summary
    self.last = line
    if self.finite and self._is_due(summary['cost']):
      line = line | self._program.evaluate(state)
    return artifacts.json_line(line)

  def _is_due(self, cost: float) -> bool:
    last = self.position['evaluated_at']
    due = last is None or cost - last >= self._interval * (1 - 1e-6)
    if due:
      self.position['evaluated_at'] = cost
    return due

  def result(self, state) -> dict[str, Any]:
    """Status, exact final metrics, means over all steps, cost and seconds."""
    final = self._program.evaluate(state)
    average_precision = self._program.test_average_precision(state)
    if average_precision is not None:
      final['test_average_precision'] = average_precision
    finite = self.finite and np.isfinite(list(final.values())).all()
    means = {
      f'mean_{name}': total / max(count, 1)
      for name, (total, count) in self.position['sums'].items()
      if name not in ('loss', 'error')
    }
    return {
      'status': 'finished' if finite else 'diverged',
      **final,
      **means,
      'steps': self.position['steps'],
      'cost': int(state.cost),
      'seconds': self.position['seconds'],
    }


def main(arguments: list[str]) -> int:
  """Makes one run from the command line; returns the exit status."""
  try:
    command = parse(arguments)
    _, config, _ = load(command.path, command.changes)
    if command.folder is None:
      raise SettingsError('one run needs --folder=FOLDER for its files.')
    config = {k: v for k, v in config.items() if k != 'sweep'}
    check([config])
  except SettingsError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  program = Program(config)
  name = pathlib.Path(command.folder).name
  with Progress(1) as progress:
    result = run(
      config,
      program,
      pathlib.Path(command.folder),
      report=functools.partial(progress.update, name),
    )
  if result['status'] == 'diverged':
    print(f'{name}: {diverged(result)}', file=sys.stderr)
    return 3
  print(json.dumps(result, indent=2))
  return 0


def diverged(result: dict[str, Any]) -> str:
  """Says of a result with that status what happened and what to do."""
  return (
    f'diverged, its loss stopped being finite after {result["steps"]} steps; '
    'lower optimizer.learning_rate.'
  )


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
