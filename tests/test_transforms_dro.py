"""transforms.py: objectives that weight by loss or class, in closed form."""

import functools
import itertools

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import Batch, init_train_state, losses, make_train_step, uniform
from isjax.scores import logit_gradient_norm
from isjax.transforms import (
  PerExample,
  ScaleByAbsgdState,
  average_gradient,
  by_progress,
  clip_weights,
  importance_weighted,
  per_example_gradient,
  scale_by_absgd,
  scale_by_chi_square,
  scale_by_class,
  scale_by_cvar,
  scale_by_importance,
  scale_by_progress,
  self_normalise_weights,
)

N, F, K = 12, 5, 3
INITIAL = scale_by_absgd(1.0).init(None)
fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=60)
LOSSES = hnp.arrays(np.float32, 6, elements=st.floats(-1e4, 1e4, width=32))
WEIGHTS = hnp.arrays(
  np.float32,
  6,
  elements=st.one_of(st.just(0.0), st.floats(0.0625, 8, width=32)),
)


def apply(tx, state, losses, weights=None, **extra):
  """The weights that tx gives to examples of these losses, and its state."""
  losses = jnp.asarray(losses)
  weights = jnp.ones_like(losses) if weights is None else jnp.asarray(weights)
  per_example, state = tx.update(
    PerExample(losses, weights, None), state, **extra
  )
  return per_example.weights, state


@functools.partial(jax.jit, static_argnames='alpha')
def absgd(state, batch, weights, temperature, decay, alpha=None):
  """One update of ABSGD, compiled once for all parameters."""
  tx = scale_by_absgd(temperature, decay=decay, authors_alpha=alpha)
  return apply(tx, state, batch, weights)


def run(batches, temperature, decay=0.9, alpha=None):
  """The weights of each batch in turn, and the last state."""
  state, weights = INITIAL, []
  for batch in batches:
    new, state = absgd(
      state, batch, np.ones_like(batch), temperature, decay, alpha
    )
    weights.append(np.asarray(new))
  return weights, state


def log_u(state):
  """The whole logarithm of u, in float64."""
  return float(state.anchor) / float(state.temperature) + float(state.log_u)


def tilted_losses(losses, temperature, weights=1.0):
  """log mean w exp(l / temperature) in float64."""
  z = np.asarray(losses, np.float64) / np.float64(np.float32(temperature))
  return z.max() + np.log(np.mean(weights * np.exp(z - z.max())))


@pytest.fixture
def problem(key):
  """Data, parameters and a skewed law."""
  keys = jax.random.split(key, 4)
  x = jax.random.normal(keys[0], (N, F))
  y = jax.random.randint(keys[1], (N,), 0, K)
  params = jax.random.normal(keys[2], (F, K))
  p = jax.nn.softmax(jax.random.normal(keys[3], (N,)))
  return params, x, y, p


def losses_fn(params, x, y):
  return jax.vmap(losses.cross_entropy())(jnp.tanh(x) @ params, y)


def estimate(tx, params, x, y, state=None, **extra):
  """The averaged gradient that the chain makes of one batch."""
  per_example = per_example_gradient(losses_fn)(params, x, y)
  state = tx.init(params) if state is None else state
  return tx.update(per_example, state, params, **extra)


def objective_gradient(objective, params, x, y):
  return jax.grad(lambda q: objective(losses_fn(q, x, y)))(params)


@pytest.mark.parametrize('temperature', [0.3, 5.0, -1.0])
def test_absgd_descends_the_robust_objective(problem, temperature):
  """At full batch the update is grad of lambda log mean exp(l / lambda)."""
  params, x, y, _ = problem
  tx = optax.chain(scale_by_absgd(temperature), average_gradient())

  def objective(losses):
    return temperature * jax.nn.logsumexp(losses / temperature)

  np.testing.assert_allclose(
    estimate(tx, params, x, y)[0],
    objective_gradient(objective, params, x, y),
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.parametrize('temperature', [np.inf, -np.inf])
def test_an_infinite_temperature_is_sgd(temperature):
  """The weights stay what importance sampling made them."""
  batch = jnp.array([0.0, 1e4, -3.0, 2.0])
  weights = jnp.array([0.3, 0.0, 2.0, 1.1])
  got, state = apply(scale_by_absgd(temperature), INITIAL, batch, weights)
  np.testing.assert_array_equal(got, weights)
  assert float(state.log_u) == 0
  got, _ = apply(scale_by_chi_square(temperature), (), batch, weights)
  np.testing.assert_allclose(got, weights, rtol=1e-6)


@pytest.mark.parametrize('make', [scale_by_absgd, scale_by_chi_square])
def test_a_high_temperature_is_nearly_sgd(make):
  """Weights are 1 + O(1 / lambda)."""
  tx = make(1e6)
  weights, _ = apply(tx, tx.init(None), jnp.array([0.0, 1.0, 5.0]))
  np.testing.assert_allclose(weights, 1, atol=6e-6)


@pytest.mark.parametrize('temperature', [0.5, 0.01, -0.2])
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_without_decay_absgd_is_the_softmax_of_the_batch(temperature, scale):
  """gamma = 1; exact also where exp(l / lambda) is e^(10^6)."""
  batch = scale * (1 + np.array([0, 1e-7, 4e-7, 3e-7]) / 1e-3)
  batch = batch.astype(np.float32)
  weights, _ = run([batch - 1, batch], temperature, 0.0)
  z = batch.astype(np.float64) / np.float64(np.float32(temperature))
  softmax = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
  np.testing.assert_allclose(weights[1], 4 * softmax, rtol=2e-6, atol=1e-35)


def recursion(temperatures, decay, batches, alpha=None):
  """Weights by the moving average in float64, log u rescaled by hand."""
  log_u, previous, weights = None, None, []
  for temperature, batch in zip(temperatures, batches, strict=True):
    new = tilted_losses(batch, temperature) + np.log(alpha or 1)
    if log_u is None:
      log_u = new if alpha is None else np.log(1 - decay) + new
    else:
      log_u *= previous / temperature
      log_u = np.logaddexp(np.log(decay) + log_u, np.log(1 - decay) + new)
    previous = temperature
    weights.append(np.exp(batch.astype(np.float64) / temperature - log_u))
  return weights, log_u


@pytest.mark.parametrize(
  ('temperature', 'level', 'spread'),
  [
    (0.5, 1.0, 1.0),
    (0.5, 40.0, 2.0),
    (-0.25, 20.0, 1.0),
    (0.0078125, 1e4, 0.1),
  ],
)
@pytest.mark.parametrize('alpha', [None, 0.5])
def test_the_moving_average_by_float64(temperature, level, spread, alpha):
  """The weights of 30 batches, also where u itself is e^(10^6)."""
  random = np.random.RandomState(0)
  batches = (level + spread * random.uniform(size=(30, 8))).astype(np.float32)
  weights, state = run(batches, temperature, 0.875, alpha)
  expected, expected_log_u = recursion(
    [temperature] * 30, 0.875, batches, alpha
  )
  np.testing.assert_allclose(weights, expected, rtol=3e-6)
  np.testing.assert_allclose(log_u(state), expected_log_u, rtol=1e-6)
  assert state.count == 30


PACKAGE = [(0.5, 1.0), (5.0, 3.0), (0.5, 42.0), (-0.5, 42.0), (2.0, 60.0)]


def package_run(temperature, gamma, alpha, batches):
  """Weights b d loss / d l_i of the authors' package, batch by batch."""
  try:
    from absgd.losses import ABLoss
    import torch
  except ImportError:
    pytest.skip('absgd is not installed')
  loss = ABLoss(
    temperature,
    criterion=lambda output, target: output,
    abgamma=gamma,
    abalpha=alpha,
  )
  loss.updateLambda()
  weights = []
  for batch in batches:
    output = torch.tensor(batch, requires_grad=True)
    loss(output, None).backward()
    weights.append(len(batch) * output.grad.numpy())
  return weights


@pytest.mark.parametrize(('temperature', 'level'), PACKAGE)
@pytest.mark.parametrize(('gamma', 'alpha'), [(0.9, 1.0), (0.1, 0.3)])
def test_equals_the_authors_package(temperature, level, gamma, alpha):
  """Within 1e-5, up to l / lambda = 84 where it is still finite."""
  random = np.random.RandomState(1)
  batches = (level * random.uniform(0.9, 1, (20, 16))).astype(np.float32)
  expected = package_run(temperature, gamma, alpha, batches)
  weights, _ = run(batches, temperature, 1 - gamma, alpha)
  assert np.isfinite(expected).all()
  np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_finite_where_the_authors_package_dies():
  """One batch of losses 1e4 at lambda .01, then ordinary ones."""
  batches = np.array([[1e4, 1e4 - 0.01], [0.5, 0.51], [0.5, 0.5]], np.float32)
  weights, state = run(batches, 0.01)
  assert np.isfinite(weights).all()
  assert np.isfinite([float(leaf) for leaf in state]).all()
  np.testing.assert_allclose(weights[0].mean(), 1, rtol=1e-6)
  dead = package_run(0.01, 0.1, 1.0, batches)
  assert not np.isfinite(dead[0]).any()
  assert not np.any(dead[1:])  # u is inf for good: nothing moves any more


@fixed
@hypothesis.given(
  st.tuples(LOSSES, LOSSES),
  st.tuples(WEIGHTS, WEIGHTS),
  st.sampled_from([0.01, 1.0, 30.0, -0.01, -2.0]),
  st.sampled_from([0.0, 0.5, 0.875, 1 - 2**-10]),  # exact in float32
)
def test_the_mean_weight_is_at_most_one_over_gamma(
  batches, weights, temperature, decay
):
  """And every weight is finite and >= 0, whatever the losses."""
  state = INITIAL
  for batch, weight in zip(batches, weights, strict=True):
    got, state = absgd(state, batch, weight, temperature, decay)
    got = np.asarray(got)
    assert np.isfinite(got).all()
    assert (got >= 0).all()
    assert np.mean(got, dtype=np.float64) <= (1 + 1e-5) / (1 - decay)
    assert np.isfinite([float(state.anchor), float(state.log_u)]).all()


def test_importance_weights_enter_the_normaliser(problem):
  """Over all draws, E u is the full one, and with it E g the gradient.

  The full batch sets u; draws of two follow, with a decay so near 1 that u
  stays: what is left is the accuracy of the moving average.
  """
  params, x, y, p = problem
  tx = optax.chain(
    scale_by_importance(N),
    scale_by_absgd(0.5, decay=0.9999),
    average_gradient(),
  )
  uniform_law = jnp.full(N, 1 / N)
  full, state = estimate(tx, params, x, y, probabilities=uniform_law)
  draws = np.array(list(itertools.product(range(N), repeat=2)))
  each, states = jax.jit(
    jax.vmap(
      lambda draw: estimate(
        tx, params, x[draw], y[draw], state, probabilities=p[draw]
      )
    )
  )(draws)
  chance = np.prod(np.asarray(p, np.float64)[draws], 1)
  each = np.asarray(each, np.float64)
  moved = np.exp(
    np.asarray(states[1].anchor, np.float64) / 0.5
    + np.asarray(states[1].log_u, np.float64)
    - log_u(state[1])
  )
  np.testing.assert_allclose(np.dot(chance, moved), 1, rtol=1e-6)
  slack = np.abs(moved - 1).max() * np.tensordot(chance, np.abs(each), 1)
  assert slack.max() < 0.01 * np.abs(full).max()
  error = np.abs(np.tensordot(chance, each, 1) - full)
  assert (error <= slack + 1e-6).all()

  gradient_only = scale_by_absgd(0.5, decay=0.0)

  def weigh_the_gradient_alone(draw):
    per_example = per_example_gradient(losses_fn)(params, x[draw], y[draw])
    per_example, _ = gradient_only.update(per_example, INITIAL)
    weights = per_example.weights / (N * p[draw])
    return per_example.pullback(weights / 2)

  biased = jax.jit(jax.vmap(weigh_the_gradient_alone))(draws)
  biased = np.tensordot(chance, biased, 1)
  assert np.linalg.norm(biased - full) > 0.2 * np.linalg.norm(full)


def test_a_temperature_schedule_holds_the_objectives_value():
  """log u <- log u lambda_old / lambda_new, by the number of updates."""
  random = np.random.RandomState(2)
  batches = random.uniform(3, 4, (6, 8)).astype(np.float32)
  temperatures = [4.0, 2.0, 1.0, 0.5, 0.5, 8.0]
  tx = scale_by_absgd(
    lambda count: jnp.asarray(temperatures, jnp.float32)[count], decay=0.875
  )
  step = jax.jit(functools.partial(apply, tx))
  state, weights = tx.init(None), []
  for batch in batches:
    new, state = step(state, batch)
    weights.append(new)
  expected, expected_log_u = recursion(temperatures, 0.875, batches)
  np.testing.assert_allclose(weights, expected, rtol=3e-6)
  np.testing.assert_allclose(log_u(state), expected_log_u, rtol=1e-6)


@pytest.mark.parametrize('between', [np.inf, -np.inf, -3.0])
def test_u_is_reset_only_across_zero_and_infinity(between):
  """After another sign or an infinite temperature the next batch sets u."""
  first, second, third = np.random.RandomState(3).uniform(0, 3, (3, 5))
  ones = np.ones(5)
  _, state = absgd(INITIAL, first, ones, 2.0, 0.9)
  _, state = absgd(state, second, ones, between, 0.9)
  weights, after = absgd(state, third, ones, 1.0, 0.9)
  expected, fresh = absgd(INITIAL, third, ones, 1.0, 0.9)
  np.testing.assert_array_equal(weights, expected)
  assert after._replace(count=0) == fresh._replace(count=0)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('temperature', [1.0, -1.0])
def test_a_batch_that_is_not_finite_leaves_u_alone(bad, temperature):
  """At the start and later; the batches after it do not notice."""
  good = [np.float32([1, 2, 3]), np.float32([2, 0, 1])]
  spoilt = np.float32([1, bad, 2])
  expected, expected_state = run(good, temperature)
  weights, state = run([spoilt, good[0], spoilt, spoilt, good[1]], temperature)
  np.testing.assert_array_equal([weights[1], weights[4]], expected)
  assert state._replace(count=0) == expected_state._replace(count=0)
  assert state.count == 5


def test_apply_if_finite_drops_the_update_of_such_a_batch(problem):
  """The gradient says so: parameters stay, and u with them."""
  params, x, y, _ = problem
  tx = optax.chain(
    scale_by_absgd(1.0),
    average_gradient(),
    optax.apply_if_finite(optax.sgd(0.1), 3),
  )
  _, state = estimate(tx, params, x, y)
  updates, after = estimate(tx, params, x.at[0, 0].set(jnp.nan), y, state)
  np.testing.assert_array_equal(updates, 0)
  assert after[0]._replace(count=0) == state[0]._replace(count=0)
  assert after[2].notfinite_count == 1


def test_examples_of_weight_zero_do_not_count():
  """Not even by a huge loss; a batch of such examples only lets u decay."""
  batch = np.float32([1e4, 1, 1.01])
  weights, nothing = np.float32([0, 1, 2]), np.zeros(3, np.float32)
  got, state = absgd(INITIAL, batch, weights, 0.01, 0.9)
  tilted = np.array([1, 2 * np.exp((batch[2] - batch[1]) / 0.01)])
  np.testing.assert_allclose(got, [0, *(3 * tilted / tilted.sum())], rtol=1e-5)
  none, after = absgd(state, batch, nothing, 0.01, 0.9)
  np.testing.assert_array_equal(none, 0)
  np.testing.assert_allclose(
    log_u(after), log_u(state) + np.log(0.9), rtol=1e-6
  )
  none, after = absgd(INITIAL, batch, nothing, 0.01, 0.9)
  np.testing.assert_array_equal(none, 0)
  assert np.isinf(after.temperature)


def test_class_weights_enter_the_robust_objective(problem):
  """grad of lambda log mean c exp(l / lambda), c the weights of the classes."""
  params, x, y, _ = problem
  c = jnp.array([0.2, 1.0, 4.0])
  tx = optax.chain(scale_by_class(c), scale_by_absgd(0.7), average_gradient())
  got, _ = estimate(tx, params, x, y, targets=y)
  soft, _ = estimate(tx, params, x, y, targets=jax.nn.one_hot(y, K))

  def objective(losses):
    return 0.7 * jax.nn.logsumexp(losses / 0.7, b=c[y])

  expected = objective_gradient(objective, params, x, y)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(soft, expected, rtol=1e-4, atol=1e-6)


def test_class_weights_multiply_importance_weights():
  """c_y / (N p), for labels and for distributions; NaN for no class."""
  tx = optax.chain(
    scale_by_importance(4), scale_by_class(jnp.array([3.0, 1.0]))
  )
  p, labels = jnp.array([0.1, 0.2, 0.5]), jnp.array([0, 1, 2])
  halves = jnp.full((3, 2), 0.5)
  for targets, c in ((labels, (3, 1, np.nan)), (halves, (2, 2, 2))):
    weights, _ = apply(
      tx, tx.init(None), jnp.ones(3), probabilities=p, targets=targets
    )
    np.testing.assert_allclose(weights, c / (4 * np.asarray(p)), rtol=1e-6)


def test_class_weights_and_self_normalisation_give_the_weighted_mean(problem):
  """sum c l / sum c, as other libraries average; alone it is mean c l."""
  params, x, y, _ = problem
  c = jnp.array([0.2, 1.0, 4.0])
  by_class = optax.chain(scale_by_class(c), average_gradient())
  normalised = optax.chain(
    scale_by_class(c), self_normalise_weights(), average_gradient()
  )
  for tx, shares in ((by_class, c[y] / N), (normalised, c[y] / c[y].sum())):
    np.testing.assert_allclose(
      estimate(tx, params, x, y, targets=y)[0],
      objective_gradient(functools.partial(jnp.dot, shares), params, x, y),
      rtol=1e-4,
      atol=1e-6,
    )
  zero, _ = estimate(normalised, params, x, y, targets=jnp.zeros((N, K)))
  np.testing.assert_array_equal(zero, 0)


def test_cvar_by_hand():
  """The largest losses up to the share of the weight, the border in part."""
  batch = jnp.array([1.0, 4.0, 2.0, 3.0])
  for share, weights, expected in (
    (0.5, (1, 1, 1, 1), (0, 2, 0, 2)),
    (0.375, (1, 1, 1, 1), (0, 8 / 3, 0, 4 / 3)),
    (1.0, (0.5, 3, 0, 1), (0.5, 3, 0, 1)),
    (0.5, (2, 1, 2, 3), (0, 2, 0, 6)),
    (0.25, (2, 1, 2, 3), (0, 4, 0, 4)),
  ):
    got, _ = apply(scale_by_cvar(share), (), batch, jnp.float32(weights))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_cvar_descends_the_conditional_value_at_risk(problem):
  """grad of min over eta of eta + mean(max(l - eta, 0)) / alpha."""
  params, x, y, _ = problem
  tx = optax.chain(scale_by_cvar(0.3), average_gradient())

  def objective(losses):
    excess = jnp.maximum(losses[None, :] - losses[:, None], 0)
    return jnp.min(losses + jnp.mean(excess, 1) / 0.3)

  np.testing.assert_allclose(
    estimate(tx, params, x, y)[0],
    objective_gradient(objective, params, x, y),
    rtol=1e-4,
    atol=1e-6,
  )


def chi_square_by_bisection(batch, temperature, weights):
  """n p = max(l / lambda - h, 0) with the mean weight of before, in float64."""
  z = batch.astype(np.float64) / np.float64(np.float32(temperature))
  z -= z[weights > 0].max()
  low, high = -1 - np.ptp(z[weights > 0]), 0.0
  for _ in range(200):
    level = (low + high) / 2
    total = np.dot(weights, np.maximum(z - level, 0))
    low, high = (level, high) if total > weights.sum() else (low, level)
  return weights * np.maximum(z - level, 0)


def test_a_batch_of_weight_zero_stays_one():
  """Weights of 0, not 0/0, whichever transform meets them."""
  for function in (chi_square, cvar):
    got = function(np.arange(6.0), np.zeros(6), 0.5)
    np.testing.assert_array_equal(got, 0)


@fixed
@hypothesis.given(LOSSES, WEIGHTS, st.sampled_from([0.25, 30.0, 1e4, -2.0]))
def test_chi_square_by_bisection(batch, weights, temperature):
  """For any losses and weights; the mean weight stays."""
  hypothesis.assume(weights.any())
  got = chi_square(batch, weights, temperature)
  expected = chi_square_by_bisection(batch, temperature, weights)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(np.mean(got), weights.mean(), rtol=1e-4)


@jax.jit
def chi_square(batch, weights, temperature):
  return apply(scale_by_chi_square(temperature), (), batch, weights)[0]


def test_chi_square_descends_its_robust_objective(problem):
  """By hand, against all other laws, and as the gradient of the maximum."""
  params, x, y, _ = problem
  got, _ = apply(scale_by_chi_square(1.0), (), jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(got, [0.5, 1.5])
  batch = losses_fn(params, x, y)
  best, _ = apply(scale_by_chi_square(0.8), (), batch)

  def value(n_p):
    divergence = np.mean((n_p - 1) ** 2, -1)
    return np.mean(n_p * np.asarray(batch), -1) - 0.4 * divergence

  others = np.random.RandomState(4).dirichlet(np.ones(N), 2000) * N
  nearby = 0.99 * np.asarray(best) + 0.01 * others
  assert value(best) > max(value(others).max(), value(nearby).max())
  tx = optax.chain(scale_by_chi_square(0.8), average_gradient())
  np.testing.assert_allclose(
    estimate(tx, params, x, y)[0],
    objective_gradient(functools.partial(jnp.dot, best / N), params, x, y),
    rtol=1e-5,
    atol=1e-6,
  )


@fixed
@hypothesis.given(LOSSES, WEIGHTS, st.sampled_from([0.1, 0.5, 1.0]))
def test_cvar_keeps_the_mean_weight_and_the_order(batch, weights, share):
  """Total as before; no example gets less, per weight, than a smaller loss."""
  got = np.asarray(cvar(batch, weights, share))
  np.testing.assert_allclose(got.sum(), weights.sum(), rtol=1e-5)
  assert (got >= 0).all()
  counted = weights > 0
  per_weight = got[counted] / weights[counted]
  assert (per_weight <= 1 / share + 1e-4).all()
  order = np.argsort(batch[counted], kind='stable')
  losses, ratios = batch[counted][order], per_weight[order]
  rises = np.diff(losses) > 0
  assert (np.diff(ratios)[rises] >= -1e-4).all()


@jax.jit
def cvar(batch, weights, share):
  return apply(scale_by_cvar(share), (), batch, weights)[0]


ORDERS = [
  (scale_by_absgd(1.0), scale_by_importance(N), 'must come first'),
  (scale_by_class(jnp.ones(K)), scale_by_importance(N), 'must come first'),
  (scale_by_cvar(0.5), scale_by_class(jnp.ones(K)), 'before scale_by_cvar'),
  (scale_by_absgd(1.0), scale_by_cvar(0.5), 'must come before scale_by_absgd'),
  (scale_by_chi_square(1.0), scale_by_absgd(1.0), 'a chain has one of'),
  (scale_by_absgd(1.0), scale_by_absgd(2.0), 'a chain has one of'),
  (clip_weights(1.0), scale_by_absgd(1.0), 'comes after clip_weights'),
  (clip_weights(1.0), self_normalise_weights(), 'comes after clip_weights'),
  (clip_weights(1.0), scale_by_class(jnp.ones(K)), 'comes after clip_weights'),
]


@pytest.mark.parametrize(('first', 'second', 'message'), ORDERS)
def test_wrong_orders_are_refused(problem, first, second, message):
  """By the trail of names, when traced."""
  params, x, y, p = problem
  tx = optax.chain(first, second, average_gradient())
  with pytest.raises(ValueError, match=message):
    estimate(tx, params, x, y, probabilities=p, targets=y)


@pytest.mark.parametrize(
  'robust', [scale_by_absgd(0.7), scale_by_cvar(0.4), scale_by_chi_square(0.7)]
)
def test_sensible_orders_compose(problem, robust):
  """Importance, class, robust, normalised, capped: weights times gradients."""
  params, x, y, p = problem
  parts = (
    scale_by_importance(N, exponent=0.5, normalise='max'),
    scale_by_class(jnp.array([0.2, 1.0, 4.0])),
    robust,
    self_normalise_weights(),
    clip_weights(2.5),
  )
  tx = optax.chain(*parts, average_gradient())
  got, state = estimate(tx, params, x, y, probabilities=p, targets=y)
  per_example = per_example_gradient(losses_fn)(params, x, y)
  for part in parts:
    per_example, _ = part.update(
      per_example, part.init(params), probabilities=p, targets=y
    )
  weights = per_example.weights
  assert weights.max() <= 2.5
  assert len(per_example.applied) == 5
  np.testing.assert_allclose(
    got,
    objective_gradient(functools.partial(jnp.dot, weights / N), params, x, y),
    rtol=1e-4,
    atol=1e-6,
  )
  assert 0 <= state[4].clipped_mass < 1


def test_progress_switches_temperature_and_class_weights_in_one_program():
  """Plain averages until 80 %, then DRW and ABSGD, whose u begins there."""
  schedule = losses.deferred(jnp.array([3.0, 0.5]), start=0.8)
  tx = optax.chain(
    by_progress(lambda t: scale_by_class(schedule(t))),
    by_progress(lambda t: scale_by_absgd(jnp.where(t < 0.8, jnp.inf, 2.0))),
  )
  batch, targets = jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 1, 1])
  traces = []

  @jax.jit
  def step(state, progress):
    traces.append(None)
    return apply(tx, state, batch, targets=targets, progress=progress)

  state = tx.init(None)
  for progress in (0.0, 0.5, 0.79):
    weights, state = step(state, progress)
    np.testing.assert_array_equal(weights, 1)
  tilted = np.array([3, 0.5, 0.5]) * np.exp(np.array([1, 2, 4]) / 2)
  for progress in (0.8, 1.0):
    weights, state = step(state, progress)
    np.testing.assert_allclose(weights, tilted / tilted.mean(), rtol=1e-6)
  assert len(traces) == 1
  with pytest.raises(ValueError, match='by_progress needs progress='):
    apply(tx, state, batch, targets=targets)


def test_an_exponent_anneals_with_progress():
  """beta from 0 to 1, by its named normaliser."""
  tx = by_progress(
    lambda t: scale_by_importance(4, exponent=t, normalise='max')
  )
  p = jnp.array([0.1, 0.2, 0.7])
  w = np.array([2.5, 1.25, 0.25 / 0.7])
  for progress in (0.0, 0.25, 1.0):
    weights, state = apply(
      tx, tx.init(None), jnp.zeros(3), probabilities=p, progress=progress
    )
    np.testing.assert_allclose(weights, (w / w.max()) ** progress, rtol=1e-6)
  assert state.count == 1


def test_by_progress_of_a_plain_transform_is_scale_by_progress():
  """It also takes transforms that know no extra arguments."""
  updates = {'w': jnp.arange(3.0)}
  ours = by_progress(lambda t: optax.scale(1 - t))
  theirs = scale_by_progress(lambda t: 1 - t)
  for tx in (ours, theirs, by_progress(lambda t: theirs)):
    scaled, _ = tx.update(updates, tx.init(updates), progress=0.25)
    np.testing.assert_allclose(scaled['w'], 0.75 * np.arange(3))


def test_parameters_may_be_hyperparameters_of_the_program(problem):
  """inject_hyperparams around the chain: temperature, decay, share."""
  params, x, y, _ = problem

  def chain(temperature, decay):
    return optax.chain(
      scale_by_absgd(temperature, decay=decay), average_gradient()
    )

  tx = optax.inject_hyperparams(chain)(temperature=2.0, decay=0.5)
  state = tx.init(params)
  state.hyperparams['temperature'] = jnp.asarray(0.7)
  got, _ = estimate(tx, params, x, y, state)
  expected, _ = estimate(chain(0.7, 0.5), params, x, y)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_step_trains_with_the_robust_chain(problem):
  """make_train_step hands over what the chain needs; its state is scanned."""
  params, x, y, _ = problem
  inner = by_progress(
    lambda t: scale_by_absgd(jnp.where(t < 0.5, jnp.inf, 1.0))
  )
  tx = optax.chain(
    scale_by_importance(N), inner, average_gradient(), optax.sgd(0.3)
  )
  sampler = uniform(N, 4)
  loss_fn = losses.cross_entropy()

  def apply_fn(params, model_state, inputs, *, train, rngs):
    del train, rngs
    return jnp.tanh(inputs) @ params, model_state

  step = make_train_step(
    apply_fn,
    loss_fn,
    sampler,
    tx,
    score=logit_gradient_norm(loss_fn),
    budget=20 * 12,
  )
  state = init_train_state(jax.random.key(0), params, {}, sampler, tx)
  final, metrics = jax.jit(
    lambda state, data: lax.scan(
      lambda carry, _: step(carry, data), state, length=22
    )
  )(state, Batch(x, y))
  assert metrics['valid'].sum() == 20
  absgd_state = final.opt_state[1]
  assert absgd_state.count == 20
  assert absgd_state.temperature == 1
  assert np.isfinite(final.params).all()
  before, after = (losses_fn(q, x, y).mean() for q in (params, final.params))
  assert after < before


def test_states_keep_their_types():
  """What a scan and a checkpoint need."""
  tx = scale_by_absgd(1.0)
  _, after = apply(tx, INITIAL, jnp.ones(3, jnp.bfloat16))
  assert isinstance(after, ScaleByAbsgdState)
  assert jax.tree.map(jnp.result_type, after) == jax.tree.map(
    jnp.result_type, INITIAL
  )


@pytest.mark.parametrize(
  'transform',
  [
    scale_by_absgd(1.0),
    scale_by_cvar(0.5),
    scale_by_chi_square(1.0),
    scale_by_class(jnp.ones(K)),
    self_normalise_weights(),
  ],
)
def test_plain_gradients_are_refused(transform):
  """All of them stand before the average, and none goes into the optimiser."""
  params = {'w': jnp.ones(2)}
  with pytest.raises(ValueError, match='expects a PerExample'):
    transform.update(params, transform.init(params), params)
  late = importance_weighted(optax.chain(transform, optax.sgd(0.1)), N)
  with pytest.raises(ValueError, match='expects a PerExample'):
    late.update(
      PerExample.from_stacked(jnp.ones(2), {'w': jnp.ones((2, 2))}),
      late.init(params),
      params,
      probabilities=jnp.full(2, 0.5),
    )


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: scale_by_absgd(0.0), r'\|temperature\| must be positive; got 0'),
    (lambda: scale_by_absgd(np.nan), r'\|temperature\| must be positive'),
    (lambda: scale_by_chi_square(0.0), r'\|temperature\| must be positive'),
    (lambda: scale_by_absgd(1.0, decay=1.0), r'decay must be in \[0, 1\)'),
    (lambda: scale_by_absgd(1.0, authors_alpha=0.0), 'authors_alpha must be'),
    (lambda: scale_by_absgd(1.0, authors_alpha=2.0), 'authors_alpha must be'),
    (lambda: scale_by_cvar(0.0), 'share must be positive; got 0.0'),
    (lambda: scale_by_cvar(1.5), r'share must be in \[0, 1\]; got 1.5'),
    (
      lambda: apply(scale_by_class(jnp.ones(2)), (), jnp.ones(2)),
      'targets=batch.targets',
    ),
  ],
)
def test_bad_arguments_are_named(make, message):
  """Before any tracing, or where the argument is missed."""
  with pytest.raises(ValueError, match=message):
    make()
