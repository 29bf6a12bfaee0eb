"""The compiled functions of a cell: from settings to a program on the device.

A `Program` is compiled once for all runs that differ in learning rate, seed
and budget only; these are arrays among its arguments.
"""

from collections.abc import Callable
import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.settings import SettingsError, choose, options
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
