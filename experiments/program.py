"""The compiled functions of a cell: from settings to a program on the device.

A `Program` is compiled once for all runs that differ in learning rate, seed
and budget only; these are arrays among its arguments.
"""

import functools
import json
import math
from typing import Any

import jax
import numpy as np
from sklearn.metrics import average_precision_score

from experiments import components, on_mesh
from experiments.settings import SettingsError, UnavailableError, choose
from isjax import sharding
from isjax.data import Metadata, load, transform
from isjax.losses import cross_entropy
from isjax.metrics import class_balanced, error, label_probability, summarise
from isjax.models import init, make_apply_fn
from isjax.scores import SCORES
from isjax.step import (
  init_train_state,
  is_slow_to_scan,
  make_eval_step,
  make_loop,
  make_train_step,
)
from isjax.types import Batch, num_examples

# Fields that one compiled program takes as arguments.
ARGUMENTS = ('seed', 'budget', 'optimizer.learning_rate')

_MODELS = {}  # of this process


class Program:
  """The compiled functions of all runs of one cell.

  Args:
    config: of one of the runs. Of the fields named in ARGUMENTS only the budget
      is used, by samplers that anneal at its end; see `components.anneals`.

  Raises:
    SettingsError: where a setting is wrong, before anything is compiled.
  """

  def __init__(self, config: dict[str, Any]):
    self.config = config
    self._form = config['sharding']['form']
    self._shards = on_mesh.shards(self._form)
    train_set, self.metadata = load_set(config, 'train')
    test_set, self.test_metadata = load_set(config, 'test')
    self.preprocess = components.preprocess(train_set, self.metadata)
    self._sample = self.preprocess(train_set.inputs[:1])
    if self._shards is not None:
      train_set, test_set = (
        on_mesh.padded(data, self._form, self._shards)
        for data in (train_set, test_set)
      )
    self.sampler = components.sampler(
      config['sampler'],
      train_set,
      config['budget'],
      self._shards,
      self._form,
    )
    self.train_set, self.test_set = map(self._placed, (train_set, test_set))
    self.loss_fn = components.loss_fn(config['loss'], self.metadata)
    self.score = choose(SCORES, config['score'], 'score')(self.loss_fn)
    self.model, self.apply_fn, self._evaluate = self._shared_model()
    self.init = jax.jit(self._init, out_shardings=self._layout())
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
      jax.jit(
        self._advance,
        donate_argnums=0,
        out_shardings=(self._layout(), self._everywhere),
      )
      .lower(state, self.train_set, np.float32(0), np.uint32(0))
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
      state, self.train_set, np.float32(learning_rate), np.uint32(budget)
    )

  def _placed(self, data: Batch) -> Batch:
    """The set on its devices."""
    if self._shards is None:
      return data
    return sharding.shard(data, self._shards)

  @property
  def _everywhere(self):
    """The sharding of what all devices have, None for one device."""
    return None if self._shards is None else self._shards.whole

  def _layout(self):
    """The shardings of a state, None for one device."""
    if self._shards is None:
      return None
    state = jax.eval_shape(self._init, 0)
    size = num_examples(self.train_set)
    return on_mesh.state_layout(state, self._form, self._shards, size)

  def _shared_model(self):
    """Module, apply_fn and evaluation, shared by cells that agree on them.

    Whatever loss they train with, all are evaluated by the cross entropy.
    """
    fields = ('data', 'transformations', 'model', 'sharding')
    key = _key({field: self.config[field] for field in fields})
    if key not in _MODELS:
      module = components.model(self.config['model'], self.metadata)
      apply_fn = make_apply_fn(module)
      evaluate = {
        'train': self._make_evaluation(apply_fn, self.metadata),
        'test': self._make_evaluation(apply_fn, self.test_metadata),
      }
      _MODELS[key] = module, apply_fn, evaluate
    return _MODELS[key]

  def _make_evaluation(self, apply_fn, metadata: Metadata):
    counts = metadata.class_counts
    evaluate = make_eval_step(
      apply_fn,
      cross_entropy(),
      preprocess=self.preprocess,
      statistics={
        'error': error,
        'balanced_error': class_balanced(error, counts),
      },
      batch_size=min(500, metadata.num_examples),
    )
    if self._shards is None:
      return evaluate
    return on_mesh.evaluation(evaluate, self._shards)

  def _transform(self, learning_rate):
    return components.transform(self.config, learning_rate, self.metadata)

  def _init(self, seed):
    model_key, run_key = jax.random.split(jax.random.key(seed))
    params, model_state = init(self.model, model_key, self._sample)
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
    augment, augment_by = components.augmentation(self.config['augmentations'])
    return make_train_step(
      self.apply_fn,
      self.loss_fn,
      self.sampler,
      self._transform(learning_rate),
      score=self.score,
      draw_score=self._draw_score(),
      preprocess=self.preprocess,
      augment=augment,
      augment_by=augment_by,
      statistics={'error': error, 'label_probability': label_probability},
      budget=budget,
    )

  def _advance(self, state, data, learning_rate, budget):
    step = self._step(learning_rate, budget)
    state, stacked = make_loop(step, self.steps_per_call)(state, data)
    return state, summarise(stacked)

  def evaluate(self, state) -> dict[str, float]:
    """Returns exact loss, error and balanced error on both splits."""
    metrics = {}
    for split, data in (('train', self.train_set), ('test', self.test_set)):
      values = self._evaluate[split](state.params, state.model_state, data)
      metrics |= {f'{split}_{k}': float(v) for k, v in values.items()}
    return metrics

  @functools.cached_property
  def _margins(self):
    """(params, model_state, inputs) -> the logit of class 1 less the other."""

    def margins(params, model_state, inputs):
      outputs, _ = self.apply_fn(
        params, model_state, self.preprocess(inputs), train=False, rngs=None
      )
      return outputs[:, 1] - outputs[:, 0]

    return jax.jit(margins, out_shardings=self._everywhere)

  def test_average_precision(self, state) -> float | None:
    """Of class 1 by its logit less that of class 0; None for other than two."""
    if self.metadata.num_classes != 2:
      return None

    margins = np.asarray(
      self._margins(state.params, state.model_state, self.test_set.inputs)
    )
    targets = load_set(self.config, 'test')[0].targets
    margins = margins[: len(targets)]  # without what pads the set
    if not np.isfinite(margins).all():
      return math.nan
    return float(average_precision_score(np.asarray(targets), margins))


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
  sampler = configs[0]['sampler']
  budgets = sorted({config['budget'] for config in configs})
  if len(budgets) > 1 and components.anneals(sampler):
    raise SettingsError(
      f'{sampler["name"]} anneals at the end of its budget and takes one '
      f'budget per cell; got {budgets} in {configs[0]["cell"]!r}.'
    )
  try:
    Program(configs[0])
  except (ValueError, TypeError) as error:
    text = ' '.join(str(error).split())
    raise SettingsError(f'cell {configs[0]["cell"]!r}: {text}') from error


def load_set(config: dict[str, Any], split: str) -> tuple[Batch, Metadata]:
  """Loads and transforms a split, once per process.

  Raises:
    UnavailableError: where there is no such data set or transformation.
  """
  return _load_set(config['data'], _key(config['transformations']), split)


def _key(settings: dict[str, Any]) -> str:
  """Settings as what a cache knows them by."""
  return json.dumps(settings)


@functools.cache
def _load_set(name: str, transformations: str, split: str):
  try:
    batch, metadata, _ = transform(
      *load(name, split), json.loads(transformations), seed=0
    )
  except (ValueError, FileNotFoundError, ImportError) as error:
    raise UnavailableError(f'data: {" ".join(str(error).split())}') from error
  return batch, metadata
