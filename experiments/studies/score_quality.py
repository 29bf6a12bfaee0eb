"""How well each score stands in for the norm of an example's gradient.

A network is trained on uniform draws. At some steps, over a fixed part of its
training set, every example's gradient is taken and every score: what variance
each score leaves, by formula and by draws, and whether a pool pays for it.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from experiments.components import OPTIMIZERS
from experiments.settings import SettingsError, choose, options
from experiments.studies import score_quality_estimates as estimates
from experiments.studies import (
  score_quality_figures,
  score_quality_report,
  training,
)
from experiments.studies.study import (
  Report,
  Study,
  UnavailableError,
  are_integers,
  are_steps,
  expect,
)
import isjax
from isjax import alias
from isjax.data import Metadata, load, rescale
from isjax.models import MODELS
from isjax.scores import (
  SCORES,
  gradient_norm,
  last_layer_gradient_norm,
)
from isjax.weights import (
  equivalent_batch_size,
  mix_with,
  normalise,
  variance_reduction,
)

_MAX_CHUNK = 32  # examples whose gradients are formed at a time
_NUM_POINTS = 256  # examples of the scatter


def _check(config: dict[str, Any]) -> None:
  problem = choose(config['problems'], config['problem'], 'problem')
  for field, requirement, holds in (
    ('batch_size', 'at least 1', lambda b: b >= 1),
    ('num_batches', 'at least 2', lambda n: n >= 2),
    ('subset_size', 'at least 2', lambda m: m >= 2),
    ('clip_norm', 'positive', lambda norm: norm > 0),
    ('mix', 'in (0, 1]', lambda mix: 0 < mix <= 1),
    ('pool_multiples', 'numbers of at least 1', _are_at_least_1),
    ('backward_costs', 'positive numbers', _are_positive),
    ('batch_sizes', 'integers of at least 1', _are_sizes),
  ):
    expect(config, field, requirement, holds)
  expect(
    config,
    'pool_size',
    f'at least batch_size, {config["batch_size"]}',
    lambda size: size >= config['batch_size'],
  )
  expect(problem, 'steps', 'increasing integers from 0 on', are_steps)
  expect(problem, 'block', 'at least 1', lambda block: block >= 1)
  _model(problem, num_classes=2)
  _optimizer(problem)


def _are_sizes(values: tuple[Any, ...]) -> bool:
  return len(values) > 0 and are_integers(values, 1)


def _are_at_least_1(values: tuple[Any, ...]) -> bool:
  return len(values) > 0 and min(values) >= 1


def _are_positive(values: tuple[Any, ...]) -> bool:
  return len(values) > 0 and min(values) > 0


def _model(problem: dict[str, Any], num_classes: int):
  return _made(MODELS, 'model', problem, num_classes=num_classes)


def _optimizer(problem: dict[str, Any]):
  return _made(OPTIMIZERS, 'optimizer', problem)


def _made(registry, field: str, problem: dict[str, Any], **more: Any) -> Any:
  """What the settings of a field describe."""
  settings = problem[field]
  factory = choose(registry, settings['name'], f'{field}.name')
  try:
    return factory(**more, **options(settings))
  except TypeError as error:
    raise SettingsError(f'{field}: {error}') from error


class _Task(NamedTuple):
  """A network in training, and what is measured on it.

  state:      before the first step.
  loop:       (state, data) -> (state, metrics), of some steps.
  data:       the training set.
  metadata:   of the training set.
  num_params: P.
  at_subset:  (params) -> (losses f64[M], scores by name f64[M], gradients
              f32[M, P]) of the fixed part of the training set.
  """

  state: isjax.TrainState
  loop: Callable[..., Any]
  data: isjax.Batch
  metadata: Metadata
  num_params: int
  at_subset: Callable[..., Any]


def _load(problem: dict[str, Any]) -> tuple[isjax.Batch, Metadata]:
  name = problem['data']
  try:
    return load(name, 'train')
  except (ValueError, FileNotFoundError, ImportError) as error:
    reason = str(error).splitlines()[0].split('. ')[0]
    raise UnavailableError(
      f'No {name}.npz was read from the folder that ISJAX_DATA_DIR names: '
      f'{reason}.'
    ) from error


def _preprocess(problem: dict[str, Any], metadata: Metadata):
  """Scales the pixels to [0, 1] and averages blocks of them."""
  scale, block = rescale(metadata.max_value), problem['block']
  height, width, channels = metadata.input_shape
  if height % block or width % block:
    raise SettingsError(
      f'block must divide the {height} x {width} pixels of '
      f'{problem["data"]}; got {block}.'
    )
  shape = height // block, block, width // block, block, channels

  def preprocess(inputs):
    return scale(inputs).reshape(len(inputs), *shape).mean((2, 4))

  return preprocess


def _task(config: dict[str, Any]) -> _Task:
  problem = config['problems'][config['problem']]
  data, metadata = _load(problem)
  if config['subset_size'] > metadata.num_examples:
    raise SettingsError(
      f'subset_size must be at most the {metadata.num_examples} examples of '
      f'{problem["data"]}; got {config["subset_size"]}.'
    )
  preprocess = _preprocess(problem, metadata)
  apply_fn, state, loop = training.start(
    _model(problem, metadata.num_classes),
    isjax.uniform(metadata.num_examples, config['batch_size']),
    optax.chain(
      optax.clip_by_global_norm(config['clip_norm']), _optimizer(problem)
    ),
    data,
    steps=problem['steps'],
    seed=config['seed'],
    preprocess=preprocess,
  )
  chosen = np.random.RandomState(config['seed']).permutation(
    metadata.num_examples
  )[: config['subset_size']]
  subset = isjax.take(data, jnp.asarray(chosen))
  subset = subset._replace(inputs=preprocess(subset.inputs))
  return _Task(
    state,
    loop,
    data,
    metadata,
    sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    _at_subset(apply_fn, subset),
  )


def _at_subset(apply_fn: Callable[..., Any], subset: isjax.Batch):
  """`_Task.at_subset`, chunk by chunk: convolutions are slow in a loop."""
  norm = gradient_norm(apply_fn, training.loss_fn, fallback='vmap')
  last_layer = last_layer_gradient_norm(apply_fn, training.loss_fn)

  def loss(params, inputs, target):
    outputs, _ = apply_fn(params, {}, inputs[None], train=False, rngs=None)
    return training.loss_fn(outputs[0], target)

  def gradient(params, inputs, target):
    return ravel_pytree(jax.grad(loss)(params, inputs, target))[0]

  @jax.jit
  def at_chunk(params, chunk):
    outputs, _ = apply_fn(params, {}, chunk.inputs, train=False, rngs=None)
    scores = {
      score_quality_report.OPTIMAL: norm(params, {}, chunk),
      'last_layer_gradient_norm': last_layer(params, {}, chunk),
    } | {
      name: make(training.loss_fn)(outputs, chunk.targets)
      for name, make in SCORES.items()
    }
    losses = jax.vmap(training.loss_fn)(outputs, chunk.targets)
    gradients = jax.vmap(functools.partial(gradient, params))(
      chunk.inputs, chunk.targets
    )
    return losses, scores, gradients

  size = isjax.num_examples(subset)
  length = math.gcd(size, _MAX_CHUNK)
  chunks = [
    jax.tree.map(lambda rows, i=i: rows[i : i + length], subset)
    for i in range(0, size, length)
  ]

  def at_subset(params):
    parts = [jax.device_get(at_chunk(params, chunk)) for chunk in chunks]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

  return at_subset


def _measure(config: dict[str, Any], report: Report) -> dict[str, Any]:
  task = _task(config)
  steps = config['problems'][config['problem']]['steps']
  state, rows, points = task.state, [], []
  for step in steps:
    while int(state.step) < step:
      state, metrics = task.loop(state, task.data)
      fraction = int(state.step) / max(1, steps[-1])
      report(fraction, {'loss': float(metrics['loss'][-1])})
    losses, scores, gradients = task.at_subset(state.params)
    if not np.isfinite(gradients).all():
      raise SettingsError(
        f'{config["problem"]}: the gradients are not finite after {step} '
        'steps; lower optimizer.learning_rate.'
      )
    key = jax.random.fold_in(jax.random.key(config['seed'] + 1), step)
    at_step, laws = _at_step(config, key, scores, gradients)
    stage = {'step': step, 'loss': float(losses.mean(dtype=np.float64))}
    rows += [stage | row for row in at_step]
    points.append({'step': step} | {k: _points(p) for k, p in laws.items()})
  return {
    'num_examples': task.metadata.num_examples,
    'input_shape': list(task.metadata.input_shape),
    'num_params': task.num_params,
    'rows': rows,
    'points': points,
  }


def _points(law: np.ndarray) -> list[float]:
  """M p of some examples, to four digits."""
  return [float(f'{len(law) * p:.4g}') for p in law[:_NUM_POINTS]]


def _at_step(
  config, key, scores, gradients
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """The rows of one stage, and the law of each score."""
  gradients = estimates.in_their_span(gradients)
  size = len(gradients)
  scores = {score_quality_report.UNIFORM: np.ones(size, np.float32)} | scores
  tables = {
    name: alias.build(normalise(jnp.asarray(values)))
    for name, values in scores.items()
  }
  laws = {name: _law(table) for name, table in tables.items()}
  uniform = estimates.exact(np.full(size, 1 / size), gradients).variance
  norms = np.linalg.norm(gradients, axis=1)
  optimum = laws[score_quality_report.OPTIMAL]
  rows = []
  for i, (name, law) in enumerate(laws.items()):
    keys = jax.random.split(jax.random.fold_in(key, i))
    errors = estimates.exact(law, gradients)
    rows.append(
      {'row': 'score', 'score': name}
      | _by_table(config, keys[0], tables[name], law, gradients, uniform)
      | _by_pools(config, keys[1], scores[name], errors, gradients, uniform)
      | _agreement(law, optimum)
    )
    if name == score_quality_report.OPTIMAL:
      rows[-1]['norm_difference'] = _difference(scores[name], norms)
    if name == score_quality_report.BOUND:
      rows += [{'row': 'map', 'score': name} | r for r in _map(config, errors)]
  return rows, laws


def _law(table: isjax.AliasTable) -> np.ndarray:
  """The law f64[M] that the table follows."""
  law = np.asarray(alias.probabilities(table), np.float64)
  return law / law.sum()


def _difference(norms: np.ndarray, formed: np.ndarray) -> float:
  """The largest difference of two sets of norms, in that of the largest."""
  return float(np.max(np.abs(norms - formed)) / formed.max())


def _agreement(law: np.ndarray, optimum: np.ndarray) -> dict[str, Any]:
  """How alike two laws are; empty for a law that is constant."""
  if law.max() - law.min() < 1e-6 * law.max():
    return {}
  return {
    'correlation': float(np.corrcoef(law, optimum)[0, 1]),
    'rank_correlation': float(stats.spearmanr(law, optimum).statistic),
  }


def _by_table(config, key, table, law, gradients, uniform) -> dict[str, Any]:
  """Draws from a table over all examples, exactly and by drawing."""
  b = config['batch_size']
  mixed = mix_with(law, 1 / len(law), config['mix'])
  shape = config['num_batches'], b
  indices, p = alias.sample_with_probabilities(key, table, shape)
  drawn = estimates.sampled(indices, 1 / (len(law) * p), gradients)
  relative = estimates.exact(law, gradients).of_batch(b) * b / uniform
  tau = float(variance_reduction(jnp.asarray(law, jnp.float32)))
  return {
    'relative_variance': relative,
    'drawn': drawn.mean * b / uniform,
    'drawn_error': drawn.standard_error * b / uniform,
    'mixed': estimates.exact(mixed, gradients).of_batch(b) * b / uniform,
    'never_drawn': float(np.mean(law == 0)),
    'tau': tau,
    'formula_batch': float(equivalent_batch_size(tau, b)),
    'exact_batch': b / relative,
  }


def _by_pools(config, key, scores, errors, gradients, uniform):
  """Draws from pools, by formula, exactly and by drawing."""
  b, size = config['batch_size'], config['pool_size']
  pools = estimates.draw_pools(
    key, jnp.asarray(scores), b, size, config['num_batches']
  )
  drawn = estimates.sampled(pools.indices, pools.weights, gradients)
  tau = float(jnp.mean(pools.taus))
  return {
    'pool_tau': tau,
    'pool_formula_batch': float(equivalent_batch_size(tau, b, size)),
    'pool_exact_batch': uniform / errors.of_pool(b, size),
    'pool_drawn_batch': uniform / drawn.mean,
    'pool_drawn_batch_error': uniform * drawn.standard_error / drawn.mean**2,
  }


def _map(config: dict[str, Any], errors: estimates.Errors):
  """The gain of pools, a row per b and B and a column per cost."""
  relative = errors.variance / errors.uniform_variance
  for b in config['batch_sizes']:
    for multiple in config['pool_multiples']:
      size = multiple * b
      yield {'batch_size': b, 'pool_size': size} | {
        f'gain_c{cost:g}': estimates.gain(relative, b, size, cost)
        for cost in config['backward_costs']
      }


STUDY = Study(
  field='problem',
  check=_check,
  measure=_measure,
  sections=score_quality_report.sections,
  figures=score_quality_figures.figures,
)
