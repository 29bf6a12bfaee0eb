"""transforms.py: exact unbiasedness, equalities of routes, refused orders."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import transforms
from isjax.transforms import (
  PerExample,
  average_gradient,
  clip_weights,
  importance_weighted,
  per_example_gradient,
  reweighting,
  scale_by_importance,
  scale_by_progress,
)

N, F, K = 12, 5, 3


def losses_fn(params, x, y):
  """Cross entropies of a two-layer network, f32[b]."""
  hidden = jnp.tanh(x @ params['hidden'])
  logits = hidden @ params['out'] + params['bias'][None, :]
  return optax.softmax_cross_entropy_with_integer_labels(logits, y)


@pytest.fixture
def problem(key):
  """Data, parameters and a skewed law with an exact zero on no example."""
  keys = jax.random.split(key, 5)
  x = jax.random.normal(keys[0], (N, F))
  y = jax.random.randint(keys[1], (N,), 0, K)
  params = {
    'hidden': jax.random.normal(keys[2], (F, 4)),
    'out': jax.random.normal(keys[3], (4, K)),
    'bias': jnp.zeros(K),
  }
  p = jax.nn.softmax(2 * jax.random.normal(keys[4], (N,)))
  return params, x, y, p


def flat(tree):
  return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def eager_estimate(tx, params, x, y, p, pi=None):
  """The averaged gradient that the chain tx makes of one batch."""
  per_example = per_example_gradient(losses_fn)(params, x, y)
  gradient, _ = tx.update(
    per_example,
    tx.init(params),
    params,
    probabilities=p,
    target_probabilities=pi,
  )
  return gradient


estimate = jax.jit(eager_estimate, static_argnums=0)


def averaged(**options):
  return optax.chain(scale_by_importance(N, **options), average_gradient())


@pytest.mark.parametrize('batch_size', [1, 2])
@pytest.mark.parametrize('target', ['uniform', 'records'])
def test_exactly_unbiased_by_enumeration(problem, batch_size, target):
  """Over all N^b draws, sum p w g / b is the gradient of the objective."""
  params, x, y, p = problem
  pi = jnp.full(N, 1 / N)
  if target == 'records':
    pi = jnp.arange(1, N + 1) / jnp.arange(1, N + 1).sum()
  given = None if target == 'uniform' else pi
  draws = jnp.stack(
    jnp.meshgrid(*[jnp.arange(N)] * batch_size, indexing='ij'), -1
  ).reshape(-1, batch_size)

  def one(draw):
    at = None if given is None else given[draw]
    gradient = estimate(averaged(), params, x[draw], y[draw], p[draw], at)
    return jnp.prod(p[draw]) * flat(gradient)

  expectation = np.asarray(jax.jit(jax.vmap(one))(draws), np.float64).sum(0)
  full = flat(jax.grad(lambda q: jnp.sum(pi * losses_fn(q, x, y)))(params))
  np.testing.assert_allclose(expectation, full, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
def test_equals_weights_folded_into_the_loss(problem, wrap):
  """The same bits as grad of mean(w l): difference 0."""
  params, x, y, p = problem
  x, y, p = x[:8], y[:8], p[:8]
  deferred = wrap(functools.partial(eager_estimate, averaged()))

  def folded(params, x, y, p):
    w = (1 / N) / p
    return jax.grad(lambda q: jnp.mean(w * losses_fn(q, x, y)))(params)

  jax.tree.map(
    np.testing.assert_array_equal,
    deferred(params, x, y, p),
    wrap(folded)(params, x, y, p),
  )


def test_equals_stacked_per_example_gradients(problem):
  """from_stacked and the pullback are two routes to one number."""
  params, x, y, p = problem
  stacked = jax.vmap(
    jax.grad(lambda q, x, y: losses_fn(q, x[None], y[None])[0]), (None, 0, 0)
  )(params, x, y)
  losses = losses_fn(params, x, y)
  tx = averaged()
  from_stacked, _ = tx.update(
    PerExample.from_stacked(losses, stacked),
    tx.init(params),
    params,
    probabilities=p,
  )
  np.testing.assert_allclose(
    flat(from_stacked),
    flat(estimate(tx, params, x, y, p)),
    rtol=1e-5,
    atol=1e-6,
  )


def test_without_weights_it_is_the_plain_mean(problem):
  """average_gradient alone: grad of the mean loss, 1/b included."""
  params, x, y, p = problem
  plain = jax.grad(lambda q: losses_fn(q, x, y).mean())(params)
  got = estimate(average_gradient(), params, x, y, p)
  np.testing.assert_allclose(flat(got), flat(plain), rtol=1e-6, atol=1e-7)


def test_auxiliary_output_and_losses_come_out(problem):
  """has_aux passes aux on; losses are those of the forward pass."""
  params, x, y, _ = problem
  with_aux = per_example_gradient(
    lambda q, x, y: (losses_fn(q, x, y), {'mean': x.mean()}), has_aux=True
  )
  per_example, aux = with_aux(params, x, y)
  np.testing.assert_array_equal(per_example.losses, losses_fn(params, x, y))
  np.testing.assert_array_equal(aux['mean'], x.mean())
  np.testing.assert_array_equal(per_example.weights, np.ones(N))


@pytest.mark.parametrize(
  ('exponent', 'normalise'),
  [(1.0, 'none'), (0.5, 'none'), (0.0, 'none'), (0.5, 'max'), (0.7, 'mean')],
)
def test_exponent_and_normaliser(problem, exponent, normalise):
  """w^beta over its named normaliser, written out."""
  params, x, y, p = problem
  w = (1 / (N * np.asarray(p, np.float64))) ** exponent
  w /= {'none': 1, 'max': w.max(), 'mean': w.mean()}[normalise]
  tx = averaged(exponent=exponent, normalise=normalise)
  expected = jax.grad(lambda q: jnp.mean(w * losses_fn(q, x, y)))(params)
  np.testing.assert_allclose(
    flat(estimate(tx, params, x, y, p)),
    flat(expected),
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.parametrize('normalise', ['max', 'mean'])
def test_a_batch_of_weight_zero_moves_nothing(problem, normalise):
  """Its weights stay 0 under every normaliser, not NaN."""
  params, x, y, p = problem
  tx = averaged(normalise=normalise)
  gradient = estimate(tx, params, x, y, p, jnp.zeros(N))
  np.testing.assert_array_equal(flat(gradient), 0)


def test_an_exponent_schedule_follows_the_number_of_updates(problem):
  """Update t uses schedule(t), and the count is the state."""
  params, x, y, p = problem
  schedule = optax.linear_schedule(0.0, 1.0, 2)
  tx = averaged(exponent=schedule)
  state = tx.init(params)
  for exponent in (0.0, 0.5, 1.0, 1.0):
    per_example = per_example_gradient(losses_fn)(params, x, y)
    gradient, state = tx.update(per_example, state, params, probabilities=p)
    expected = estimate(averaged(exponent=exponent), params, x, y, p)
    np.testing.assert_allclose(
      flat(gradient), flat(expected), rtol=1e-5, atol=1e-6
    )
  assert state[0].count == 4


def test_the_exponent_may_be_an_argument_of_the_program(problem):
  """One trace serves every exponent, also at 1."""
  params, x, y, p = problem
  traces = []

  @jax.jit
  def program(exponent):
    traces.append(None)
    return eager_estimate(averaged(exponent=exponent), params, x, y, p)

  for exponent in (0.0, 0.3, 1.0):
    expected = estimate(averaged(exponent=exponent), params, x, y, p)
    np.testing.assert_allclose(
      flat(program(exponent)), flat(expected), rtol=1e-5, atol=1e-6
    )
  assert len(traces) == 1


def test_clip_weights_caps_and_reports(problem):
  """min(w, cap), and the share of the sum that was cut off."""
  params, x, y, p = problem
  w = 1 / (N * np.asarray(p, np.float64))
  cap = float(np.median(w))
  tx = optax.chain(
    scale_by_importance(N), clip_weights(cap), average_gradient()
  )
  per_example = per_example_gradient(losses_fn)(params, x, y)
  gradient, state = tx.update(
    per_example, tx.init(params), params, probabilities=p
  )
  clipped = np.minimum(w, cap)
  expected = jax.grad(lambda q: jnp.mean(clipped * losses_fn(q, x, y)))(params)
  np.testing.assert_allclose(
    flat(gradient), flat(expected), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    state[1].clipped_mass, 1 - clipped.sum() / w.sum(), rtol=1e-5
  )


def inner_optimisers(params):
  matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
  return {
    'sgd': optax.sgd(0.1, momentum=0.9),
    'adamw': optax.adamw(1e-2),
    'clip': optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    'masked': optax.masked(optax.sgd(0.1), matrices),
    'multi_steps': optax.MultiSteps(optax.adamw(1e-2), 2),
    'multi_steps_transformation': optax.MultiSteps(
      optax.adamw(1e-2), 2
    ).gradient_transformation(),
    'apply_if_finite': optax.apply_if_finite(optax.sgd(0.1), 3),
    'inject_hyperparams': optax.inject_hyperparams(optax.adamw)(
      learning_rate=optax.linear_schedule(1e-2, 0, 20)
    ),
  }


@pytest.mark.parametrize('name', list(inner_optimisers({})))
def test_every_inner_optimiser_works_after_the_average(problem, name):
  """Ten scanned steps equal those of the loss with weights folded in."""
  params, x, y, p = problem
  inner = inner_optimisers(params)[name]
  tx = importance_weighted(inner, N)
  draws = jax.random.randint(jax.random.key(1), (10, 8), 0, N)

  def step(carry, draw):
    params, state = carry
    per_example = per_example_gradient(losses_fn)(params, x[draw], y[draw])
    updates, state = tx.update(
      per_example, state, params, probabilities=p[draw]
    )
    return (optax.apply_updates(params, updates), state), None

  def folded(carry, draw):
    params, state = carry
    w = (1 / N) / p[draw]
    gradient = jax.grad(lambda q: jnp.mean(w * losses_fn(q, x[draw], y[draw])))(
      params
    )
    updates, state = inner.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  (got, _), _ = jax.jit(functools.partial(lax.scan, step))(
    (params, tx.init(params)), draws
  )
  (expected, _), _ = jax.jit(functools.partial(lax.scan, folded))(
    (params, inner.init(params)), draws
  )
  np.testing.assert_allclose(flat(got), flat(expected), rtol=1e-5, atol=1e-6)
  assert not np.array_equal(flat(got), flat(params))


def test_vmap_of_the_whole_step_equals_one_by_one(problem):
  """Seeds can be batched."""
  params, x, y, p = problem
  tx = importance_weighted(optax.adamw(1e-2), N)

  @jax.jit
  def step(draw):
    per_example = per_example_gradient(losses_fn)(params, x[draw], y[draw])
    updates, _ = tx.update(
      per_example, tx.init(params), params, probabilities=p[draw]
    )
    return flat(optax.apply_updates(params, updates))

  draws = jax.random.randint(jax.random.key(2), (4, 6), 0, N)
  np.testing.assert_allclose(
    jax.vmap(step)(draws),
    jnp.stack([step(draw) for draw in draws]),
    rtol=1e-5,
    atol=1e-6,
  )


BEFORE = {
  'clip_by_global_norm': optax.clip_by_global_norm(1.0),
  'elementwise_clip': optax.clip(1.0),
  'scale': optax.scale(0.1),
  'zero_nans': optax.zero_nans(),
  'adamw': optax.adamw(1e-3),
  'sgd': optax.sgd(0.1),
}
AROUND = {
  'MultiSteps': lambda tx: optax.MultiSteps(tx, 2),
  'apply_if_finite': lambda tx: optax.apply_if_finite(tx, 3),
  'masked': lambda tx: optax.masked(tx, dict.fromkeys(PARAMS, True)),
  'partition': lambda tx: optax.partition(
    {'all': tx}, dict.fromkeys(PARAMS, 'all')
  ),
}
PARAMS = ('hidden', 'out', 'bias')


@pytest.mark.parametrize('route', ['pullback', 'stacked'])
@pytest.mark.parametrize('name', [*BEFORE, *AROUND])
def test_wrong_orders_say_what_to_change(problem, name, route):
  """A transform of plain gradients before or around the average raises."""
  params, x, y, p = problem
  if name in BEFORE:
    tx = optax.chain(BEFORE[name], scale_by_importance(N), average_gradient())
  else:
    tx = AROUND[name](importance_weighted(optax.sgd(0.1), N))
  per_example = per_example_gradient(losses_fn)(params, x, y)
  if route == 'stacked':
    rows = jax.tree.map(lambda leaf: jnp.ones((N, *leaf.shape)), params)
    per_example = PerExample.from_stacked(losses_fn(params, x, y), rows)
  with pytest.raises(ValueError, match=r'put average_gradient\(\) before'):
    tx.update(per_example, tx.init(params), params, probabilities=p)


def test_a_transform_of_ones_own_is_a_formula(problem):
  """It sees losses, weights so far and the arguments of update."""
  params, x, y, p = problem

  def weigh(per_example, *, probabilities, **extra):
    del extra
    return per_example.weights * per_example.losses / probabilities

  own = optax.chain(
    scale_by_importance(N), reweighting('own', weigh), average_gradient()
  )

  def folded(params):
    losses = losses_fn(params, x, y)
    weights = jax.lax.stop_gradient(losses / (N * p * p))
    return jnp.mean(weights * losses)

  expected = flat(jax.grad(folded)(params))
  for route in (eager_estimate, estimate):
    actual = flat(route(own, params, x, y, p))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match='own expects a PerExample'):
    reweighting('own', weigh).update(params, optax.EmptyState())


def test_importance_comes_first_and_once(problem):
  """Twice, or after a cap, is an error that names the trail."""
  params, x, y, p = problem
  for early in (scale_by_importance(N), clip_weights(2.0)):
    tx = optax.chain(early, averaged())
    with pytest.raises(ValueError, match='must come first in the chain'):
      estimate(tx, params, x, y, p)


def test_the_cap_comes_last(problem):
  """A transform after clip_weights would undo it."""
  params, x, y, p = problem
  tx = optax.chain(clip_weights(2.0), clip_weights(3.0), average_gradient())
  with pytest.raises(ValueError, match='clip_weights last before'):
    estimate(tx, params, x, y, p)


def test_inject_hyperparams_may_go_around_the_chain(problem):
  """It maps over no gradient; exponent and rate then live in its state."""
  params, x, y, p = problem
  tx = optax.inject_hyperparams(
    lambda rate, exponent: importance_weighted(
      optax.sgd(rate), N, exponent=exponent
    )
  )(rate=0.1, exponent=0.5)

  @jax.jit
  def update(state):
    per_example = per_example_gradient(losses_fn)(params, x, y)
    return tx.update(per_example, state, params, probabilities=p)[0]

  state = tx.init(params)
  for exponent in (0.5, 1.0):
    state.hyperparams['exponent'] = jnp.asarray(exponent)
    expected = estimate(averaged(exponent=exponent), params, x, y, p)
    np.testing.assert_allclose(
      flat(update(state)), -0.1 * flat(expected), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
  'transform', [scale_by_importance(N), clip_weights(2.0), average_gradient()]
)
def test_plain_gradients_are_refused_before_the_average(problem, transform):
  """A pytree where a PerExample belongs: the error names per_example_gradient.

  The case of a second average_gradient is among these.
  """
  params, _, _, p = problem
  with pytest.raises(ValueError, match='expects a PerExample'):
    transform.update(params, transform.init(params), params, probabilities=p)


def test_missing_probabilities_say_what_to_pass(problem):
  """Not given, and dropped by a wrapper."""
  params, x, y, _ = problem
  tx = importance_weighted(optax.sgd(0.1), N)
  per_example = per_example_gradient(losses_fn)(params, x, y)
  with pytest.raises(ValueError, match='probabilities=draw.probabilities'):
    tx.update(per_example, tx.init(params), params)


def test_a_per_example_crosses_no_jit(problem):
  """Neither out of a jitted function nor into one."""
  params, x, y, _ = problem
  per_example = per_example_gradient(losses_fn)(params, x, y)
  with pytest.raises(ValueError, match='crosses no jit'):
    jax.jit(per_example_gradient(losses_fn))(params, x, y)
  with pytest.raises(ValueError, match='crosses no jit'):
    jax.jit(lambda q: q.losses)(per_example)


def test_averaged_losses_are_refused(problem):
  """A scalar loss cannot be weighted per example."""
  params, x, y, _ = problem
  with pytest.raises(ValueError, match='one loss per example'):
    per_example_gradient(lambda *a: losses_fn(*a).mean())(params, x, y)
  with pytest.raises(ValueError, match='leading axis b'):
    PerExample.from_stacked(jnp.ones(4), {'w': jnp.ones((3, 2))})


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: scale_by_importance(0), 'num_examples must be an integer'),
    (lambda: scale_by_importance(2.5), 'num_examples must be .* got 2.5'),
    (lambda: scale_by_importance(4, exponent=float('nan')), 'exponent must'),
    (lambda: scale_by_importance(4, normalise='sum'), "'mean'; got 'sum'"),
    (lambda: clip_weights(0.0), 'max_weight must be positive; got 0.0'),
  ],
)
def test_bad_arguments_are_named(make, message):
  """Before any tracing."""
  with pytest.raises(ValueError, match=message):
    make()


def test_scale_by_progress_follows_the_budget():
  """updates * schedule(progress); without progress an error says why."""
  tx = scale_by_progress(lambda progress: 1 - progress)
  updates = {'w': jnp.ones(3)}
  scaled, _ = tx.update(updates, tx.init(updates), progress=0.25)
  np.testing.assert_allclose(scaled['w'], np.full(3, 0.75))
  with pytest.raises(ValueError, match='give make_train_step a budget'):
    tx.update(updates, tx.init(updates))


def test_every_transform_keeps_the_state_tree_static(problem):
  """The state after an update has the structure and types of the first."""
  params, x, y, p = problem
  tx = optax.chain(
    transforms.scale_by_importance(N),
    transforms.clip_weights(3.0),
    transforms.average_gradient(),
  )
  state = tx.init(params)
  per_example = per_example_gradient(losses_fn)(params, x, y)
  _, after = tx.update(per_example, state, params, probabilities=p)
  assert isinstance(after[0], transforms.ScaleByImportanceState)
  assert isinstance(after[1], transforms.ClipWeightsState)
  assert jax.tree.map(jnp.result_type, state) == jax.tree.map(
    jnp.result_type, after
  )
