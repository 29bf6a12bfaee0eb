"""How noisy each sampling law leaves the gradient of weighted records.

A small model is trained on records drawn by r/R. At some steps the gradients
of all records are taken, and with them the exact variance under each law.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
import numpy as np
import optax

from experiments.settings import SettingsError, choose
from experiments.studies import gradient_variance_report, training, variances
from experiments.studies.records import RECORDS, Records
from experiments.studies.study import (
  Report,
  Study,
  are_integers,
  are_steps,
  expect,
)
import isjax
from isjax.models import MLP


def _check(config: dict[str, Any]) -> None:
  choose(RECORDS, config['data'], 'data')
  for field, requirement, holds in (
    ('batch_size', 'at least 1', lambda b: b >= 1),
    ('num_batches', 'at least 2', lambda m: m >= 2),
    ('learning_rate', 'positive', lambda rate: 0 < rate < math.inf),
    ('hidden', 'widths of at least 1', lambda h: are_integers(h, 1)),
    ('steps', 'increasing integers from 0 on', are_steps),
    ('mixes', 'shares in (0, 1]', _are_shares),
    ('synthetic.heavy_share', 'in [0, 1]', lambda share: 0 <= share <= 1),
    ('synthetic.heavy_weight', 'positive', lambda w: 0 < w < math.inf),
    ('synthetic.max_light_weight', 'at least 1', lambda w: w >= 1),
  ):
    expect(config, field, requirement, holds)


def _are_shares(values: tuple[Any, ...]) -> bool:
  numbers = all(isinstance(value, (int, float)) for value in values)
  return len(values) > 0 and numbers and 0 < min(values) <= max(values) <= 1


def _program(
  config: dict[str, Any], records: Records
) -> tuple[isjax.TrainState, Callable[..., Any], Callable[..., Any]]:
  """Returns the first state, the training loop and `at_all_records`."""
  size = isjax.num_examples(records.batch)
  sampler = isjax.record_weighted(
    size, config['batch_size'], record_weights=records.batch.record_weights
  )
  apply_fn, state, loop = training.start(
    MLP(records.num_classes, tuple(config['hidden'])),
    sampler,
    optax.sgd(config['learning_rate']),
    records.batch,
    steps=config['steps'],
    seed=config['seed'],
  )

  @jax.jit
  def at_all_records(params, data):
    """Gradients f32[N, P], scores f32[N] and losses f32[N]."""

    def loss(params, inputs, target):
      logits, _ = apply_fn(params, {}, inputs[None], train=False, rngs=None)
      return training.loss_fn(logits[0], target)

    gradients = jax.lax.map(
      lambda record: ravel_pytree(jax.grad(loss)(params, *record))[0],
      (data.inputs, data.targets),
      batch_size=256,
    )
    logits, _ = apply_fn(params, {}, data.inputs, train=False, rngs=None)
    losses = jax.vmap(training.loss_fn)(logits, data.targets)
    return gradients, training.score(logits, data.targets), losses

  return state, loop, at_all_records


def _measure(config: dict[str, Any], report: Report) -> dict[str, Any]:
  records = RECORDS[config['data']](config)
  state, loop, at_all_records = _program(config, records)
  weights = np.asarray(records.batch.record_weights, np.float64)
  rows = []
  for step in config['steps']:
    while int(state.step) < step:
      state, metrics = loop(state, records.batch)
      fraction = int(state.step) / config['steps'][-1]
      report(fraction, {'loss': float(metrics['loss'][-1])})
    gradients, scores, losses = (
      np.asarray(values, np.float64)
      for values in at_all_records(state.params, records.batch)
    )
    if not np.isfinite(gradients).all():
      raise SettingsError(
        f'{config["data"]}: the gradients are not finite after {step} steps; '
        'lower learning_rate.'
      )
    loss = float(weights @ losses / weights.sum())
    rows += [
      {'step': step, 'loss': loss} | row
      for row in _rows(config, weights, gradients, scores)
    ]
  heaviest = np.sort(weights)[-max(1, len(weights) // 50) :]
  return {
    'origin': records.origin,
    'num_records': len(weights),
    'sum_of_weights': float(weights.sum()),
    'heaviest_share': float(heaviest.sum() / weights.sum()),
    'rows': rows,
  }


def _rows(config, weights, gradients, scores) -> list[dict[str, Any]]:
  """One row per law, and one for the biased estimate."""
  target = weights / weights.sum()
  norms = np.linalg.norm(gradients, axis=1)
  laws = variances.laws(weights, norms, scores, tuple(config['mixes']))
  moments = {
    name: variances.moments(law, target, gradients)
    for name, law in laws.items()
  }
  uniform = moments[variances.UNIFORM].variance
  batch_size = config['batch_size']
  rows = [
    {
      'law': name,
      'variance': of_law.variance,
      'relative_variance': of_law.variance / uniform,
      'equivalent_batch': batch_size * uniform / of_law.variance,
      'largest_weight': of_law.largest_weight,
      'effective_sample_size': of_law.effective_sample_size,
    }
    for name, of_law in moments.items()
  ]
  sampled = variances.self_normalised(
    jax.random.key(config['seed'] + 1),
    target,
    gradients,
    batch_size,
    config['num_batches'],
  )
  scale = batch_size / uniform
  return [
    *rows,
    {
      'law': variances.SELF_NORMALISED,
      'relative_variance': scale * sampled.mean_square,
      'standard_error': scale * sampled.mean_square_error,
      'bias': sampled.bias,
      'bias_standard_error': sampled.bias_error,
    },
  ]


STUDY = Study(
  field='data',
  check=_check,
  measure=_measure,
  sections=gradient_variance_report.sections,
  figures=gradient_variance_report.figures,
)
