"""One run: config -> run folder.

Usage: python -m experiments.train CONFIG --folder=FOLDER
           [--config.field=value ...]

Runs the config as `get_config()` gives it, without its sweep. Exits with 3
where the run diverged. A `Program` is compiled once for all runs that differ
in learning rate, seed and budget only; these are arrays among its arguments.
"""

from collections.abc import Callable
import functools
import inspect
import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import artifacts
from experiments.progress import Progress
from experiments.settings import SettingsError, choose, options, parse
from experiments.settings import load as load_settings
import isjax
from isjax.data import load, rescale
from isjax.metrics import error, summarise
from isjax.models import MODELS, init, make_apply_fn
from isjax.samplers import SAMPLERS
from isjax.scores import SCORES
from isjax.step import (
  init_train_state,
  is_slow_to_scan,
  make_eval_step,
  make_loop,
  make_train_step,
)
from isjax.transforms import importance_weighted, scale_by_progress

# Fields that one compiled program takes as arguments.
ARGUMENTS = ('seed', 'budget', 'optimizer.learning_rate')
OPTIMIZERS = {
  'sgd': optax.sgd,
  'rmsprop': optax.rmsprop,
  'adam': optax.adam,
}
SCHEDULES = {
  'constant': lambda progress: 1.0,
  'linear': lambda progress: 1 - progress,
  'cosine': lambda progress: 0.5 * (1 + jnp.cos(math.pi * progress)),
}
LOSSES = {
  'cross_entropy': optax.softmax_cross_entropy_with_integer_labels,
}

# report(fraction of the budget spent, the last metrics), called every interval
Report = Callable[[float, dict[str, float]], None]


class Program:
  """The compiled functions of all runs of one cell.

  Args:
    config: of one of the runs; the fields named in ARGUMENTS are not used.

  Raises:
    SettingsError: where a setting is wrong, before anything is compiled.
  """

  def __init__(self, config: dict[str, Any]):
    self.config = config
    self.train_set, self.metadata = load_set(config['data'], 'train')
    self.test_set, _ = load_set(config['data'], 'test')
    self.sampler = _sampler(config['sampler'], self.train_set)
    self.exponent = float(config['exponent'])
    self.loss_fn = choose(LOSSES, config['loss'], 'loss')
    self.score = choose(SCORES, config['score'], 'score')(self.loss_fn)
    choose(SCHEDULES, config['optimizer']['schedule'], 'optimizer.schedule')
    _check_options(
      choose(OPTIMIZERS, config['optimizer']['name'], 'optimizer.name'),
      'optimizer',
      _optimizer_options(config),
    )
    self.model, self.apply_fn, self._evaluate = _model(
      config['data'], config['loss'], _frozen(config['model'])
    )
    self.init = jax.jit(self._init)
    self.steps_per_call = int(config['steps_per_call'])
    slow = is_slow_to_scan(
      self._step(0.1, 1), jax.eval_shape(self.init, 0), self.train_set
    )
    if slow:  # dispatch one by one
      self.steps_per_call = 1
    self._compiled = None

  def compile(self) -> None:
    """Compiles all that a run calls, unless that is done."""
    if self._compiled is not None:
      return
    state = self.init(0)
    self._compiled = (
      jax.jit(self._advance, donate_argnums=0)
      .lower(state, self.train_set, jnp.float32(0), jnp.uint32(0))
      .compile()
    )
    self.evaluate(state)

  def advance(self, state, learning_rate: float, budget: int):
    """Makes `steps_per_call` steps, or fewer where the budget ends.

    Returns:
      (state, summary): the state passed in is donated; summary as
      `metrics.summarise` returns it.
    """
    self.compile()
    return self._compiled(
      state, self.train_set, jnp.float32(learning_rate), jnp.uint32(budget)
    )

  def _transform(self, learning_rate):
    settings = self.config['optimizer']
    inner = optax.chain(
      OPTIMIZERS[settings['name']](
        learning_rate, **_optimizer_options(self.config)
      ),
      scale_by_progress(SCHEDULES[settings['schedule']]),
    )
    return importance_weighted(
      inner, self.metadata.num_examples, exponent=self.exponent
    )

  def _init(self, seed):
    model_key, run_key = jax.random.split(jax.random.key(seed))
    sample = _preprocess(self.metadata)(self.train_set.inputs[:1])
    params, model_state = init(self.model, model_key, sample)
    return init_train_state(
      run_key, params, model_state, self.sampler, self._transform(0.1)
    )

  def _draw_score(self):
    """The score of the proposal, or None where it is that of the gate."""
    if self.config['draw_score'] == self.config['score']:
      return None
    score = choose(SCORES, self.config['draw_score'], 'draw_score')(
      self.loss_fn
    )

    def draw_score(params, model_state, batch):
      outputs, _ = self.apply_fn(
        params, model_state, batch.inputs, train=False, rngs=None
      )
      return score(outputs, batch.targets)

    return draw_score

  def _step(self, learning_rate, budget):
    return make_train_step(
      self.apply_fn,
      self.loss_fn,
      self.sampler,
      self._transform(learning_rate),
      score=self.score,
      draw_score=self._draw_score(),
      preprocess=_preprocess(self.metadata),
      statistics={'error': error},
      budget=budget,
    )

  def _advance(self, state, data, learning_rate, budget):
    step = self._step(learning_rate, budget)
    state, stacked = make_loop(step, self.steps_per_call)(state, data)
    return state, summarise(stacked)

  def evaluate(self, state) -> dict[str, float]:
    """Returns exact loss and error on both splits."""
    metrics = {}
    for split, data in (('train', self.train_set), ('test', self.test_set)):
      values = self._evaluate(state.params, state.model_state, data)
      metrics |= {f'{split}_{k}': float(v) for k, v in values.items()}
    return metrics


def check(configs: list[dict[str, Any]]) -> None:
  """Finds what is wrong with the configs of a cell, before the first run.

  Raises:
    SettingsError: that says what.
  """
  for config in configs:
    for name in ('budget', 'steps_per_call', 'num_evaluations'):
      if not 1 <= config[name] <= 2**31:
        raise SettingsError(
          f'{name} must be from 1 to 2^31; got {config[name]}.'
        )
  try:
    Program(configs[0])
  except (ValueError, TypeError) as error:
    text = ' '.join(str(error).split())
    raise SettingsError(f'cell {configs[0]["cell"]!r}: {text}') from error


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


@functools.cache
def load_set(name: str, split: str):
  """Loads a split once per process.

  Raises:
    SettingsError: where there is no such data set.
  """
  try:
    return load(name, split)
  except (ValueError, FileNotFoundError, ImportError) as error:
    raise SettingsError(f'data: {" ".join(str(error).split())}') from error


def _preprocess(metadata):
  return rescale(metadata.max_value)


def _frozen(settings: dict[str, Any]) -> tuple:
  return tuple(
    (k, tuple(v) if isinstance(v, list) else v) for k, v in settings.items()
  )


@functools.cache
def _model(data: str, loss: str, settings: tuple):
  """Module, apply_fn and evaluation, shared by the cells that agree on them."""
  settings = dict(settings)
  _, metadata = load_set(data, 'train')
  module_class = choose(MODELS, settings['name'], 'model.name')
  fields = options(settings) | {'num_classes': metadata.num_classes}
  _check_options(module_class, 'model', fields)
  module = module_class(**fields)
  apply_fn = make_apply_fn(module)
  evaluate = make_eval_step(
    apply_fn,
    LOSSES[loss],
    preprocess=_preprocess(metadata),
    statistics={'error': error},
    batch_size=min(500, metadata.num_examples),
  )
  return module, apply_fn, evaluate


def _sampler(settings: dict[str, Any], train_set) -> isjax.Sampler:
  factory = choose(SAMPLERS, settings['name'], 'sampler.name')
  fields = {k: _number(v) for k, v in options(settings).items()}
  if train_set.record_weights is not None:
    fields['record_weights'] = train_set.record_weights
  if 'labels' in inspect.signature(factory).parameters:
    fields['labels'] = train_set.targets
  _check_options(factory, 'sampler', fields)
  try:
    return factory(isjax.num_examples(train_set), **fields)
  except ValueError as error:
    raise SettingsError(f'sampler: {error}') from error


def _number(value: Any) -> Any:
  """'1.5' as 1.5, for a field whose default is a word; words stay words."""
  if isinstance(value, str):
    try:
      return float(value)
    except ValueError:
      return value
  return value


def _optimizer_options(config: dict[str, Any]) -> dict[str, Any]:
  ours = ('name', 'learning_rate', 'schedule')
  return {k: v for k, v in config['optimizer'].items() if k not in ours}


def _check_options(
  factory: Callable[..., Any], field: str, settings: dict[str, Any]
) -> None:
  fields = inspect.signature(factory).parameters
  known = [k for k in fields if k not in ('parent', 'name')]  # flax's own
  for name in settings:
    if name not in known:
      raise SettingsError(
        f'{field}.{name} is no option of {factory.__name__}; those are '
        f'{", ".join(known)}.'
      )


def main(arguments: list[str]) -> int:
  """Makes one run from the command line; returns the exit status."""
  try:
    command = parse(arguments)
    _, config, _ = load_settings(command.path, command.changes)
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
