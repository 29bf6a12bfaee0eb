"""How noisy and how biased the step of ABSGD is under each sampling law.

ABSGD descends F = lambda log mean exp(l / lambda), whose gradient is
sum_i p*_i grad l_i with p* proportional to exp(l / lambda). Its step weights
b draws of a law q by exp(l / lambda) / (N q u), and u is the mean of
exp(l / lambda), or what a moving average over batches makes of it:

- with the exact u a draw gives (p*_i / q_i) grad l_i, without bias and with a
  variance that is a sum over all examples;
- with a moving u noise and bias are measured, by the transforms themselves
  and with the parameters held fixed, on chains of batches.
"""

from collections.abc import Callable
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
from scipy import sparse

from experiments.settings import SettingsError, choose
from experiments.studies import robust_gradient_report, training, variances
from experiments.studies.study import (
  Report,
  Study,
  UnavailableError,
  are_integers,
  are_steps,
  expect,
)
import isjax
from isjax import alias, scores
from isjax.data import load, rescale
from isjax.models import MLP
from isjax.weights import mix_with

_MNIST_EXAMPLES = 3000  # per-example gradients of all are held at once
_MEMORIES = 7  # of a moving average, until e^-7 of its start is left


# --- training sets ------------------------------------------------------------


def _digits(config: dict[str, Any]) -> isjax.Batch:
  del config
  batch, metadata = load('digits', 'train')
  pixels = rescale(metadata.max_value)(batch.inputs)
  return isjax.Batch(pixels.reshape(len(pixels), -1), batch.targets)


def _noisy_digits(config: dict[str, Any]) -> isjax.Batch:
  """A share of the labels replaced by another class each."""
  batch = _digits(config)
  random = np.random.RandomState(0)
  labels = np.array(batch.targets)
  num_flipped = round(config['flipped_share'] * len(labels))
  flipped = random.permutation(len(labels))[:num_flipped]
  labels[flipped] += random.randint(1, 10, num_flipped)
  return batch._replace(targets=jnp.asarray(labels % 10))


def _mnist(config: dict[str, Any]) -> isjax.Batch:
  """The first images, each 4 x 4 block of pixels averaged."""
  del config
  try:
    batch, metadata = load('mnist', 'train')
  except (ValueError, FileNotFoundError) as error:
    reason = str(error).splitlines()[0].partition('. ')[0]
    raise UnavailableError(
      f'{reason}. It is read from mnist.npz in the folder that ISJAX_DATA_DIR '
      'names.'
    ) from error
  pixels = rescale(metadata.max_value)(batch.inputs[:_MNIST_EXAMPLES])
  blocks = pixels.reshape(-1, 7, 4, 7, 4).mean((2, 4))
  return isjax.Batch(
    blocks.reshape(len(blocks), -1), batch.targets[:_MNIST_EXAMPLES]
  )


# name -> (config) -> Batch; UnavailableError where its file is not there.
SETS: dict[str, Callable[[dict[str, Any]], isjax.Batch]] = {
  'digits': _digits,
  'noisy digits': _noisy_digits,
  'mnist': _mnist,
}


# --- the step of ABSGD --------------------------------------------------------


def laws(
  by_score: dict[str, np.ndarray], mix: float
) -> dict[tuple[str, float], np.ndarray]:
  """Returns the sampling laws by name and share of the uniform law, f64[N].

  Args:
    by_score: name -> scores [N] >= 0, not all 0.
    mix: the share; each law comes as it is (0) and mixed.
  """
  size = len(next(iter(by_score.values())))
  uniform = np.full(size, 1 / size)
  found = {(robust_gradient_report.UNIFORM, 0.0): uniform}
  for name, values in by_score.items():
    values = np.asarray(values, np.float64)
    law = values / values.sum()
    found[name, 0.0] = law
    found[name, mix] = mix_with(law, uniform, mix)
  return found


def transform(
  num_examples: int,
  temperature: float | jax.Array,
  gamma: float | jax.Array,
  *,
  wrong: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Returns the transform from a PerExample to the step of ABSGD.

  Args:
    num_examples: N.
    temperature: lambda.
    gamma: in (0, 1], share of the batch in the moving u.
    wrong: leaves the importance weights out, for the caller to multiply into
      the gradients alone; `scale_by_importance` refuses to come second.
  """
  absgd = isjax.scale_by_absgd(temperature, decay=1 - gamma)
  first = () if wrong else (isjax.scale_by_importance(num_examples),)
  return optax.chain(*first, absgd, isjax.average_gradient())


class Chains(NamedTuple):
  """Steps at fixed parameters, as combinations of per-example gradients.

  indices:      i32[C, M, b], examples drawn in M batches of each of C chains.
  coefficients: f32[C, M, b], of their gradients in the step.
  wrong:        f32[C, M, b], the same with weights that do not enter u.
  """

  indices: jax.Array
  coefficients: jax.Array
  wrong: jax.Array


@functools.partial(
  jax.jit, static_argnames=('num_chains', 'num_batches', 'batch_size')
)
def simulate(
  key: jax.Array,
  table: alias.AliasTable,
  losses: jax.Array,
  temperature: jax.Array | float,
  gamma: jax.Array | float,
  num_settling: jax.Array | int,
  *,
  num_chains: int,
  num_batches: int,
  batch_size: int,
) -> Chains:
  """Runs the transforms on batches drawn from a law.

  The step is linear in the per-example gradients. The rows of the identity
  stand for them, so that its coefficients come out.

  Args:
    key: of the draws.
    table: of the law q.
    losses: f32[N].
    temperature: lambda.
    gamma: in (0, 1], share of the batch in the moving u.
    num_settling: batches of each chain that only move u, before those counted.
    num_chains: C.
    num_batches: M.
    batch_size: b.
  """
  right = transform(len(losses), temperature, gamma)
  wrong = transform(len(losses), temperature, gamma, wrong=True)
  basis = jnp.eye(batch_size)

  def step(states, key):
    indices, probabilities = alias.sample_with_probabilities(
      key, table, (batch_size,)
    )
    drawn = isjax.PerExample.from_stacked(losses[indices], basis)
    coefficients, first = right.update(
      drawn, states[0], probabilities=probabilities
    )
    unweighted, second = wrong.update(drawn, states[1])
    weights = 1 / (len(losses) * probabilities)
    step = Chains(indices, coefficients, weights * unweighted)
    return (first, second), step

  def chain(key):
    settling_key, key = jax.random.split(key)
    states = jax.lax.fori_loop(
      0,
      num_settling,
      lambda i, states: step(states, jax.random.fold_in(settling_key, i))[0],
      (right.init(None), wrong.init(None)),
    )
    return jax.lax.scan(step, states, jax.random.split(key, num_batches))[1]

  return jax.vmap(chain)(jax.random.split(key, num_chains))


# --- its errors ---------------------------------------------------------------


class Estimate(NamedTuple):
  """A figure from chains, and its standard error."""

  value: float
  error: float


def _mean(of_chains: np.ndarray) -> Estimate:
  error = of_chains.std(ddof=1) / math.sqrt(len(of_chains))
  return Estimate(float(of_chains.mean()), float(error))


class Errors(NamedTuple):
  """Of the step, relative to the exact gradient G of F.

  bias:  |E step - G| / |G|.
  scale: (E step, G) / |G|^2. Where the bias is |scale - 1|, the step has the
         right direction and a wrong length.
  """

  bias: Estimate
  scale: Estimate


def errors(means: np.ndarray, exact: np.ndarray) -> Errors:
  """Returns the errors of the expected step.

  |bias|^2 is the mean product of the errors of two different chains, which
  noise does not enlarge; its standard error is that of the jackknife.

  Args:
    means: f64[C, P], the mean step of each of C >= 3 independent chains.
    exact: G f64[P].
  """
  count, square = len(means), exact @ exact
  products = (means - exact) @ (means - exact).T / square
  np.fill_diagonal(products, 0)
  total = products.sum()
  without = total - 2 * products.sum(1)
  without /= (count - 1) * (count - 2)
  error = math.sqrt((count - 1) * without.var())
  squared = max(total / (count * (count - 1)), 0.0)
  bias = math.sqrt(squared)
  return Errors(
    Estimate(bias, math.sqrt(squared + error) - bias),
    _mean(means @ exact / square),
  )


def mean_steps(
  indices: np.ndarray, coefficients: np.ndarray, gradients: np.ndarray
) -> np.ndarray:
  """Returns the mean step of each chain, f64[C, P].

  Args:
    indices: i32[C, M, b].
    coefficients: f32[C, M, b].
    gradients: f64[N, P].
  """
  of_examples = [
    np.bincount(i.ravel(), c.ravel(), len(gradients))
    for i, c in zip(indices, coefficients, strict=True)
  ]
  return np.stack(of_examples) @ gradients / indices.shape[1]


def squared_deviations(
  indices: np.ndarray,
  coefficients: np.ndarray,
  gradients: np.ndarray,
  center: np.ndarray,
) -> np.ndarray:
  """Returns |step - center|^2 of every batch, f32[C, M].

  Args:
    indices: i32[C, M, b].
    coefficients: f32[C, M, b].
    gradients: f32[N, P].
    center: f32[P].
  """
  num_chains, num_batches, batch_size = indices.shape
  starts = np.arange(0, indices.size + 1, batch_size)
  steps = sparse.csr_array(
    (coefficients.ravel(), indices.ravel(), starts),
    (num_chains * num_batches, len(gradients)),
  )
  squares = np.square(steps @ gradients - center).sum(1)
  return squares.reshape(num_chains, num_batches)


# --- the study ----------------------------------------------------------------


def _check(config: dict[str, Any]) -> None:
  choose(SETS, config['data'], 'data')
  for field, requirement, holds in (
    ('batch_size', 'at least 1', lambda b: b >= 1),
    ('num_chains', 'at least 3', lambda c: c >= 3),
    ('num_batches', 'at least 1', lambda m: m >= 1),
    ('noise_every', 'at least 1', lambda every: every >= 1),
    ('learning_rate', 'positive', lambda rate: 0 < rate < math.inf),
    ('hidden', 'widths of at least 1', lambda h: are_integers(h, 1)),
    ('steps', 'increasing integers from 0 on', are_steps),
    ('temperatures', 'numbers other than 0', _are_temperatures),
    ('gammas', 'numbers in (0, 1]', _are_gammas),
    ('mix', 'in (0, 1]', lambda mix: 0 < mix <= 1),
    ('flipped_share', 'in [0, 1]', lambda share: 0 <= share <= 1),
  ):
    expect(config, field, requirement, holds)


def _are_numbers(values: tuple[Any, ...]) -> bool:
  return len(values) > 0 and all(isinstance(v, (int, float)) for v in values)


def _are_temperatures(values: tuple[Any, ...]) -> bool:
  return _are_numbers(values) and all(0 < abs(v) < math.inf for v in values)


def _are_gammas(values: tuple[Any, ...]) -> bool:
  return _are_numbers(values) and 0 < min(values) <= max(values) <= 1


class Examples(NamedTuple):
  """What the training set shows at some parameters and temperature.

  losses:    [N].
  target:    [N], p*.
  gradients: [N, P].
  exact:     [P], the gradient of F.
  scores:    name -> [N], what the laws are proportional to.
  """

  losses: jax.Array
  target: jax.Array
  gradients: jax.Array
  exact: jax.Array
  scores: dict[str, jax.Array]


def _program(
  config: dict[str, Any], data: isjax.Batch
) -> tuple[isjax.TrainState, Callable[..., Any], Callable[..., Examples]]:
  """Returns the first state, the training loop and `at_all_examples`."""
  size = isjax.num_examples(data)
  apply_fn, state, loop = training.start(
    MLP(10, tuple(config['hidden'])),
    isjax.uniform(size, config['batch_size']),
    optax.sgd(config['learning_rate']),
    data,
    steps=config['steps'],
    seed=config['seed'],
  )

  def forward(params, data):
    outputs, _ = apply_fn(params, {}, data.inputs, train=False, rngs=None)
    return outputs, jax.vmap(training.loss_fn)(outputs, data.targets)

  @jax.jit
  def at_all_examples(params, data, temperature):
    def gradient(example):
      batch_of_one = jax.tree.map(lambda a: a[None], example)
      return ravel_pytree(
        jax.grad(lambda p: forward(p, batch_of_one)[1][0])(params)
      )[0]

    def objective(params):
      tilts = forward(params, data)[1] / temperature
      return temperature * (jax.nn.logsumexp(tilts) - math.log(size))

    outputs, losses = forward(params, data)
    target = jax.nn.softmax(losses / temperature)
    gradients = jax.lax.map(gradient, data, batch_size=256)
    norms = jnp.linalg.norm(gradients, axis=1)
    tilted = scores.tilted(training.score, training.loss_fn, temperature)
    by_score = losses, training.score(outputs, data.targets), norms
    by_score += tilted(outputs, data.targets), target * norms
    return Examples(
      losses,
      target,
      gradients,
      ravel_pytree(jax.grad(objective)(params))[0],
      dict(zip(robust_gradient_report.SCORES, by_score, strict=True)),
    )

  return state, loop, at_all_examples


def _measure(config: dict[str, Any], report: Report) -> dict[str, Any]:
  data = SETS[config['data']](config)
  state, loop, at_all_examples = _program(config, data)
  key = jax.random.key(config['seed'] + 1)
  places = list(itertools.product(config['steps'], config['temperatures']))
  rows = []
  for number, (training_step, temperature) in enumerate(places):
    while int(state.step) < training_step:
      state, _ = loop(state, data)
    examples = jax.tree.map(
      lambda a: np.asarray(a, np.float64),
      at_all_examples(state.params, data, temperature),
    )
    if not np.isfinite(examples.gradients).all():
      raise SettingsError(
        f'{config["data"]}: the gradients are not finite after '
        f'{training_step} steps; lower learning_rate.'
      )
    start = {
      'step': training_step,
      'loss': float(examples.losses.mean()),
      'temperature': temperature,
    }
    found = _rows(
      config, jax.random.fold_in(key, number), examples, temperature
    )
    rows += [start | row for row in found]
    report((number + 1) / len(places), {'loss': start['loss']})
  return {'num_examples': len(examples.losses), 'rows': rows}


def _rows(
  config: dict[str, Any], key: jax.Array, examples: Examples, temperature: float
) -> list[dict[str, Any]]:
  """One row per law and gamma; gamma 0 is the exact u."""
  by_score = {
    name: examples.scores[name] for name in robust_gradient_report.SCORES
  }
  rows = []
  for number, ((name, mix), law) in enumerate(
    laws(by_score, config['mix']).items()
  ):
    of_law = {'law': name, 'mix': mix}
    rows.append(of_law | {'gamma': 0.0} | _exact_u(config, examples, law))
    table = alias.build(law.astype(np.float32))
    for gamma in config['gammas']:
      # The same draws for every gamma.
      chains = simulate(
        jax.random.fold_in(key, number),
        table,
        examples.losses.astype(np.float32),
        temperature,
        gamma,
        math.ceil(_MEMORIES / gamma),
        num_chains=config['num_chains'],
        num_batches=config['num_batches'],
        batch_size=config['batch_size'],
      )
      moving = _moving_u(config, examples, jax.tree.map(np.asarray, chains))
      rows.append(of_law | {'gamma': gamma} | moving)
  uniform = {
    row['gamma']: row['noise']
    for row in rows
    if row['law'] == robust_gradient_report.UNIFORM
  }
  return [
    row | {'relative_noise': row['noise'] / uniform[row['gamma']]}
    for row in rows
  ]


def _exact_u(
  config: dict[str, Any], examples: Examples, law: np.ndarray
) -> dict[str, float]:
  """Of the step that knows u, by sums over all examples."""
  _, target, gradients, exact, _ = examples
  variance = variances.moments(law, target, gradients).variance
  # Where no importance weights enter u, it is the mean under the law.
  wrong_scale = float(target.mean() / (law @ target))
  return {
    'noise': variance / config['batch_size'] / float(exact @ exact),
    'bias': 0.0,
    'scale': 1.0,
    'wrong_bias': abs(wrong_scale - 1),
    'wrong_scale': wrong_scale,
  }


def _moving_u(
  config: dict[str, Any], examples: Examples, chains: Chains
) -> dict[str, float]:
  """Of the step of the transforms, from chains of batches."""
  _, _, gradients, exact, _ = examples
  row = {}
  for prefix, coefficients in (
    ('wrong_', chains.wrong),
    ('', chains.coefficients),
  ):
    means = mean_steps(chains.indices, coefficients, gradients)
    for name, estimate in errors(means, exact)._asdict().items():
      row[f'{prefix}{name}'] = estimate.value
      row[f'{prefix}{name}_error'] = estimate.error
  every = config['noise_every']
  squares = squared_deviations(
    chains.indices[:, ::every],
    chains.coefficients[:, ::every],
    gradients.astype(np.float32),
    means.mean(0).astype(np.float32),
  )
  noise = _mean(squares.mean(1) / (exact @ exact))
  return row | {'noise': noise.value, 'noise_error': noise.error}


STUDY = Study(
  field='data',
  check=_check,
  measure=_measure,
  sections=robust_gradient_report.sections,
  figures=robust_gradient_report.figures,
)
