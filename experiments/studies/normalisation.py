"""What importance weights are worth under each norm of a network.

A small residual network is trained by uniform draws. At some steps its training
pass is repeated on many batches drawn by importance and on many drawn
uniformly, and the expectations of the two gradients are compared.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax

from experiments.settings import SettingsError, choose
from experiments.studies import normalisation_report, training
from experiments.studies.study import (
  Report,
  Study,
  are_integers,
  are_steps,
  expect,
)
import isjax
from isjax import alias
from isjax.data import load, rescale
from isjax.models import ResNet
from isjax.weights import (
  importance_weights,
  mix_with,
  normalise,
  variance_reduction,
)

OF_BATCH = 'of the batch'
# Norm -> the statistics that its gradient is taken with -> their `train`.
NORMS = {
  'layer': {'of the example': True},
  'group': {'of the example': True},
  'batch': {'running': False, OF_BATCH: True},
}


class Bias(NamedTuple):
  """Of one estimate against another, relative to the other's expectation.

  bias:           |E a - E b| / |E b|, 0 where noise explains the difference.
  standard_error: of the bias, good where that is well above the floor.
  floor:          what noise alone exceeds in about one of 30 measurements: the
                  bias whose square is three standard deviations of noise.
  """

  bias: float
  standard_error: float
  floor: float


def compare(a: np.ndarray, b: np.ndarray) -> Bias:
  """Measures how far apart the expectations of two estimates are.

  The inner product of two independent differences has the expectation
  |E a - E b|^2, and so has its mean over all pairs of repeats. If that is 0,
  the pairs are uncorrelated, and the mean of their squares tells how far from 0
  the mean of the pairs will be.

  Args:
    a: f64[G, P], the one estimate in G >= 3 independent repeats.
    b: f64[G, P], the other one; what the two share within a repeat cancels.

  Raises:
    SettingsError: where noise hides E b.
  """
  differences = a - b
  square = _squared_expectation(b)
  if not square > 0:
    raise SettingsError(
      'the gradients are lost in noise: raise num_repeats or '
      'examples_per_repeat.'
    )
  norm = math.sqrt(square)
  bias = math.sqrt(max(_squared_expectation(differences), 0.0)) / norm
  # How each repeat moves the ratio of the two lengths, to first order.
  moves = differences @ _direction(differences) - bias * (b @ _direction(b))
  centred = differences - differences.mean(0)
  squares = np.square(centred @ centred.T)
  pairs = len(a) * (len(a) - 1)
  noise = math.sqrt(2 * (squares.sum() - np.trace(squares))) / pairs
  return Bias(
    bias=bias,
    standard_error=float(moves.std(ddof=1)) / math.sqrt(len(a)) / norm,
    floor=math.sqrt(3 * noise) / norm,
  )


def _squared_expectation(repeats: np.ndarray) -> float:
  """|E repeat|^2, from the products of different repeats."""
  total = repeats.sum(0)
  own = np.square(repeats).sum()
  return float(total @ total - own) / (len(repeats) * (len(repeats) - 1))


def _direction(repeats: np.ndarray) -> np.ndarray:
  """Of their mean."""
  mean = repeats.mean(0)
  return mean / max(np.linalg.norm(mean), np.finfo(np.float64).tiny)


def weighted_gradient(
  apply_fn: Callable[..., Any],
  batch_size: int,
  num_batches: int,
  *,
  train: bool,
) -> Callable[..., jax.Array]:
  """Returns the mean over some batches of the importance-weighted gradient.

  Each batch passes on its own, so that batch statistics are those of b
  examples; the backward pass of the mean loss is one for all of them.

  Args:
    apply_fn: of the model.
    batch_size: b.
    num_batches: how many to average over.
    train: whether the pass is one of training.

  Returns:
    (params, model_state, data, table, key) -> f32[P], jitted. Examples are
    drawn from the table's law p and weighted by 1 / (N p).
  """

  @jax.jit
  def gradient(params, model_state, data, table, key):
    shape = num_batches, batch_size
    indices, p = alias.sample_with_probabilities(key, table, shape)
    weights = importance_weights(p, 1 / isjax.num_examples(data))

    def batch_loss(params, batch, weights):
      losses = _losses(apply_fn, params, model_state, batch, train)
      return jnp.mean(weights * losses)

    def loss(params):
      batches = isjax.take(data, indices)
      return jnp.mean(
        jax.vmap(batch_loss, (None, 0, 0))(params, batches, weights)
      )

    return ravel_pytree(jax.grad(loss)(params))[0]

  return gradient


def _losses(apply_fn, params, model_state, batch, train: bool) -> jax.Array:
  outputs, _ = apply_fn(
    params, model_state, batch.inputs, train=train, rngs=None
  )
  return jax.vmap(training.loss_fn)(outputs, batch.targets)


def _check(config: dict[str, Any]) -> None:
  choose(NORMS, config['norm'], 'norm')
  for field, requirement, holds in (
    ('num_examples', 'at least 1', lambda n: n >= 1),
    ('width', 'a positive multiple of 8', lambda w: w >= 8 and w % 8 == 0),
    ('batch_size', 'at least 1', lambda b: b >= 1),
    ('learning_rate', 'positive', lambda rate: 0 < rate < math.inf),
    ('steps', 'increasing integers from 0 on', are_steps),
    ('mix', 'in (0, 1]', lambda mix: 0 < mix <= 1),
    ('num_repeats', 'at least 3', lambda n: n >= 3),
    (
      'batch_sizes',
      f'divisors of examples_per_repeat, {config["examples_per_repeat"]}',
      lambda sizes: (
        len(sizes) > 0
        and are_integers(sizes, 1)
        and all(config['examples_per_repeat'] % b == 0 for b in sizes)
      ),
    ),
  ):
    expect(config, field, requirement, holds)


def _data(config: dict[str, Any]) -> tuple[isjax.Batch, int]:
  """The first digits, in floating point, and the number of classes."""
  (images, labels, _), metadata = load('digits', 'train')
  size = config['num_examples']
  inputs = rescale(metadata.max_value)(images[:size])
  return isjax.Batch(inputs, labels[:size]), metadata.num_classes


def _training(
  config: dict[str, Any], data: isjax.Batch, num_classes: int
) -> training.Training:
  return training.start(
    ResNet(num_classes, width=config['width'], norm=config['norm']),
    isjax.uniform(isjax.num_examples(data), config['batch_size']),
    optax.sgd(config['learning_rate']),
    data,
    steps=config['steps'],
    seed=config['seed'],
  )


def _law(
  apply_fn: Callable[..., Any], mix: float
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns what takes the law f32[N] and the loss, in evaluation mode."""

  @jax.jit
  def law(params, model_state, data):
    outputs, _ = apply_fn(
      params, model_state, data.inputs, train=False, rngs=None
    )
    scores = training.score(outputs, data.targets)
    uniform = 1 / isjax.num_examples(data)
    loss = jnp.mean(jax.vmap(training.loss_fn)(outputs, data.targets))
    return mix_with(normalise(scores), uniform, mix), loss

  return law


def _full_gradient(
  apply_fn: Callable[..., Any], *, train: bool
) -> Callable[..., jax.Array]:
  """Returns what takes the gradient of the whole set as one batch, f32[P]."""

  @jax.jit
  def gradient(params, model_state, data):
    def loss(params):
      return jnp.mean(_losses(apply_fn, params, model_state, data, train))

    return ravel_pytree(jax.grad(loss)(params))[0]

  return gradient


class _Cell(NamedTuple):
  """One way to take a gradient.

  statistics:    of the norm.
  batch_size:    b, or None where the gradient is the same for any.
  full_gradient: function of (params, model_state, data).
  gradient:      function as `weighted_gradient` returns it.
  """

  statistics: str
  batch_size: int | None
  full_gradient: Callable[..., jax.Array]
  gradient: Callable[..., jax.Array]


def _cells(config: dict[str, Any], apply_fn: Callable[..., Any]) -> list[_Cell]:
  draws = config['examples_per_repeat']
  cells = []
  for statistics, train in NORMS[config['norm']].items():
    full_gradient = _full_gradient(apply_fn, train=train)
    sizes = config['batch_sizes'] if statistics == OF_BATCH else (None,)
    for size in sizes:
      b = draws if size is None else size
      gradient = weighted_gradient(apply_fn, b, draws // b, train=train)
      cells.append(_Cell(statistics, size, full_gradient, gradient))
  return cells


def _measure(config: dict[str, Any], report: Report) -> dict[str, Any]:
  data, num_classes = _data(config)
  apply_fn, state, loop = _training(config, data, num_classes)
  law_and_loss = _law(apply_fn, config['mix'])
  cells = _cells(config, apply_fn)
  key = jax.random.key(config['seed'] + 1)
  key = jax.random.fold_in(key, list(NORMS).index(config['norm']))
  rows = []
  for step in config['steps']:
    while int(state.step) < step:
      state, _ = loop(state, data)
    model = state.params, state.model_state, data
    law, loss = law_and_loss(*model)
    tau = variance_reduction(law)
    about = {'step': step, 'loss': float(loss), 'tau': float(tau)}
    for cell in cells:
      key, repeats_key = jax.random.split(key)
      keys = jax.random.split(repeats_key, config['num_repeats'])
      about |= {'statistics': cell.statistics, 'batch_size': cell.batch_size}
      rows.append(about | _compare_all(cell, model, law, keys))
      done = len(rows) / (len(cells) * len(config['steps']))
      report(done, {'bias': rows[-1]['bias']})
  return {'rows': rows}


def _compare_all(cell: _Cell, model, law, keys) -> dict[str, float]:
  """The bias, and how far either estimate is from the full gradient."""
  uniform = alias.build(jnp.ones_like(law))
  # Under the same keys the two laws share most of their draws.
  sampled, reference = (
    np.array([cell.gradient(*model, table, key) for key in keys], np.float64)
    for table in (alias.build(law), uniform)
  )
  full = np.asarray(cell.full_gradient(*model), np.float64)
  full = np.broadcast_to(full, sampled.shape)
  return compare(sampled, reference)._asdict() | {
    f'{name}_from_full_{field}': value
    for name, estimate in (('sampled', sampled), ('uniform', reference))
    for field, value in compare(estimate, full)._asdict().items()
  }


STUDY = Study(
  field='norm',
  check=_check,
  measure=_measure,
  sections=normalisation_report.sections,
  figures=normalisation_report.figures,
)
