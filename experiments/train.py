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

from experiments import artifacts
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
) -> dict[str, Any]:
  """Trains one model and writes config, metrics and result to its folder.

  Args:
    config: all settings of the run.
    program: of the run's cell.
    folder: what an earlier run left there is replaced; result.json appears
      last, in one piece.
    report: called after every call of the program.

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
  state = program.init(config['seed'])
  lines = _Lines(program, config)
  # Line by line, to be watched; a run that is cut off starts it anew.
  with (folder / 'metrics.jsonl').open('w', buffering=1) as file:
    seconds = 0.0
    file.write(lines.line(state, {'cost': 0, 'num_steps': 0}, 0.0))
    while int(state.cost) < config['budget'] and lines.finite:
      start = time.perf_counter()
      state, summary = program.advance(
        state, config['optimizer']['learning_rate'], config['budget']
      )
      # One transfer, and with it the wait for the device.
      summary = {k: float(v) for k, v in jax.device_get(summary).items()}
      seconds += time.perf_counter() - start
      file.write(lines.line(state, summary, seconds))
      report(min(summary['cost'] / config['budget'], 1.0), summary)
    result = lines.result(state, seconds)
    file.write(artifacts.json_line(lines.last | result))
  artifacts.write_json(
    folder / 'result.json', result | {'config': config} | artifacts.provenance()
  )
  return result


class _Lines:
  """The lines of metrics.jsonl, and what they add up to."""

  def __init__(self, program: Program, config: dict[str, Any]):
    self._program = program
    self._interval = config['budget'] / config['num_evaluations']
    self._evaluated_at = -math.inf
    self._sums: dict[str, float] = {}
    self._steps = 0
    self.finite = True
    self.last: dict[str, Any] = {}

  def line(self, state, summary: dict[str, float], seconds: float) -> str:
    """One line; with an exact evaluation where the last is an interval ago."""
    steps = summary.pop('num_steps')
    self._steps += int(steps)
    for name, value in summary.items():
      if name != 'cost':
        self._sums[name] = self._sums.get(name, 0.0) + steps * value
    self.finite = math.isfinite(summary.get('loss', 0.0))
    line = {'step': self._steps, 'seconds': round(seconds, 6)} | summary
    self.last = line
    if self.finite and self._is_due(summary['cost']):
      line = line | self._program.evaluate(state)
    return artifacts.json_line(line)

  def _is_due(self, cost: float) -> bool:
    due = cost - self._evaluated_at >= self._interval * (1 - 1e-6)
    if due:
      self._evaluated_at = cost
    return due

  def result(self, state, seconds: float) -> dict[str, Any]:
    """Status, exact final metrics, means over all steps, cost and seconds."""
    final = self._program.evaluate(state)
    finite = self.finite and np.isfinite(list(final.values())).all()
    means = {
      f'mean_{name}': total / max(self._steps, 1)
      for name, total in self._sums.items()
      if name not in ('loss', 'error')
    }
    return {
      'status': 'finished' if finite else 'diverged',
      **final,
      **means,
      'steps': self._steps,
      'cost': int(state.cost),
      'seconds': seconds,
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
