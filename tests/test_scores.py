"""scores.py: each score against its closed form."""

import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import (
  importance_weighted,
  init_train_state,
  make_train_step,
  presample,
  scores,
)
from isjax.models import MLP, init, make_apply_fn
from isjax.types import Batch


def cross_entropy(logits, label):
  return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def random_logits(key, m=32, num_classes=10, scale=5.0):
  logit_key, label_key = jax.random.split(key)
  logits = scale * jax.random.normal(logit_key, (m, num_classes))
  return logits, jax.random.randint(label_key, (m,), 0, num_classes)


def norms(rows):
  rows = np.asarray(rows, np.float64)
  return np.sqrt(np.square(rows.reshape(len(rows), -1)).sum(1))


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
def test_softmax_cross_entropy(key, wrap):
  """|| softmax(z) - onehot(y) ||, in [0, sqrt 2]."""
  logits, labels = random_logits(key)
  score = wrap(scores.logit_gradient_norm(cross_entropy))(logits, labels)
  expected = norms(jax.nn.softmax(logits) - jax.nn.one_hot(labels, 10))
  np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-7)
  assert score.shape == (32,)
  assert score.dtype == jnp.float32
  assert score.max() <= np.sqrt(2) + 1e-6


def test_soft_targets(key):
  """|| softmax(z) - q || for target distributions q."""
  logits, _ = random_logits(key)
  q = jax.nn.softmax(jax.random.normal(key, (32, 10)))
  score = jax.jit(scores.logit_gradient_norm(optax.softmax_cross_entropy))(
    logits, q
  )
  expected = norms(jax.nn.softmax(logits) - q)
  np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-6)


def test_mean_squared_error(key):
  """(2/K) || z - t ||."""
  z, t = jax.random.normal(key, (2, 32, 6))
  score = jax.jit(
    scores.logit_gradient_norm(lambda z, t: jnp.mean((z - t) ** 2))
  )(z, t)
  np.testing.assert_allclose(score, 2 / 6 * norms(z - t), rtol=1e-5)


def test_sigmoid_cross_entropy(key):
  """(1/K) || sigmoid(z) - y ||."""
  z = jax.random.normal(key, (32, 6))
  y = (jax.random.uniform(key, (32, 6)) < 0.5).astype(jnp.float32)

  def loss_fn(z, y):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(z, y))

  score = jax.jit(scores.logit_gradient_norm(loss_fn))(z, y)
  np.testing.assert_allclose(score, norms(jax.nn.sigmoid(z) - y) / 6, rtol=1e-5)


def test_masked_sequences_with_pytree_outputs_and_targets(key):
  """Steps behind the mask add nothing; the norm runs over all the rest."""
  z = jax.random.normal(key, (4, 5, 3))
  labels = jax.random.randint(key, (4, 5), 0, 3)
  mask = jnp.arange(5)[None, :] < jnp.array([5, 3, 1, 0])[:, None]

  def loss_fn(output, target):
    labels, mask = target
    return jnp.sum(cross_entropy(output['logits'], labels) * mask)

  score = jax.jit(scores.logit_gradient_norm(loss_fn))(
    {'logits': z}, (labels, mask)
  )
  residuals = jax.nn.softmax(z) - jax.nn.one_hot(labels, 3)
  expected = norms(residuals * mask[:, :, None])
  np.testing.assert_allclose(score, expected, rtol=1e-5)
  assert score[3] == 0


def test_a_final_relu_belongs_to_the_loss():
  """Scored before it: a unit that the ReLU shuts off adds nothing."""
  z = jnp.array([[1.0, -2.0, 0.5], [-1.0, -1.0, -3.0]])
  t = jnp.array([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])

  def loss_fn(z, t):
    return jnp.mean((jax.nn.relu(z) - t) ** 2)

  score = jax.jit(scores.logit_gradient_norm(loss_fn))(z, t)
  np.testing.assert_allclose(score, [2 / 3, 0], atol=1e-7)


def test_a_final_relu_agrees_with_torchs_retained_gradient(key):
  """An independent autograd gives the same pre-activation norm."""
  try:
    import torch
  except ImportError:
    pytest.skip('torch is not installed')
  z, t = np.asarray(jax.random.normal(key, (2, 16, 7)))
  x = torch.tensor(z, requires_grad=True)
  pre_activation = 1.0 * x
  pre_activation.retain_grad()
  losses = ((torch.relu(pre_activation) - torch.tensor(t)) ** 2).mean(1)
  losses.sum().backward()

  def loss_fn(z, t):
    return jnp.mean((jax.nn.relu(z) - t) ** 2)

  np.testing.assert_allclose(
    jax.jit(scores.logit_gradient_norm(loss_fn))(z, t),
    pre_activation.grad.norm(dim=1).numpy(),
    rtol=1e-5,
  )


def test_the_norm_neither_underflows_nor_overflows():
  """Gradients of 1e-30 and 1e30, whose squares float32 cannot hold."""
  score = scores.logit_gradient_norm(lambda z, t: jnp.sum(z * t))
  gradients = jnp.array([[3e-30, 4e-30], [3e30, 4e30], [0, 0]])
  np.testing.assert_allclose(
    score(jnp.ones((3, 2)), gradients), [5e-30, 5e30, 0], rtol=1e-6
  )


def test_bfloat16_outputs_are_scored_in_float32(key):
  """The norm of a bfloat16 gradient is taken in float32."""
  logits, labels = random_logits(key)
  score = scores.logit_gradient_norm(cross_entropy)
  half = score(logits.astype(jnp.bfloat16), labels)
  assert half.dtype == jnp.float32


def test_loss_is_the_loss_of_each_example(key):
  """The same numbers as the losses of the batch."""
  logits, labels = random_logits(key)
  np.testing.assert_allclose(
    scores.loss(cross_entropy)(logits, labels), cross_entropy(logits, labels)
  )


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
@pytest.mark.parametrize('temperature', [0.7, 3.0, -1.0, np.inf])
def test_tilted_multiplies_by_the_exponential_of_the_loss(
  wrap, temperature, key
):
  """score exp(loss / temperature) as in float64; the plain score at inf."""
  logits, labels = random_logits(key, scale=2.0)
  plain = scores.logit_gradient_norm(cross_entropy)
  score = scores.tilted(plain, cross_entropy, temperature)
  losses = np.asarray(cross_entropy(logits, labels), np.float64)
  assert losses.max() / 0.7 < 40
  expected = plain(logits, labels) * np.exp(losses / temperature)
  values = wrap(score)(logits, labels)
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert values.dtype == jnp.float32


def test_tilted_ratios_are_the_same_in_every_batch(key):
  """score_i / score_j exp((loss_i - loss_j) / temperature), alone or not."""
  logits, labels = random_logits(key, scale=2.0)
  score = scores.tilted(scores.loss(cross_entropy), cross_entropy, 1.5)
  together = score(logits, labels)
  alone = [score(logits[i : i + 1], labels[i : i + 1]) for i in range(3)]
  np.testing.assert_allclose(np.ravel(alone), together[:3], rtol=1e-6)
  losses = cross_entropy(logits, labels)
  ratio = losses[0] / losses[1] * np.exp((losses[0] - losses[1]) / 1.5)
  np.testing.assert_allclose(together[0] / together[1], ratio, rtol=1e-5)


@pytest.mark.parametrize('temperature', [0.01, -0.01, 1e-30])
def test_tilted_scores_and_their_squares_are_finite(temperature):
  """At losses of 0 and 1e4; 0 only where the plain score is."""
  losses = jnp.array([0.0, 1.0, 1e4, 1e4])
  plain = jnp.array([0.5, 2.0, 1.4, 0.0])
  score = scores.tilted(lambda z, t: plain, lambda z, t: z, temperature)
  values = np.asarray(score(losses, losses))
  assert np.isfinite(values).all()
  assert np.isfinite(np.square(values)).all()
  assert (values[:3] > 0).all()
  assert values[3] == 0
  sharp = np.sign(temperature) * np.log(values[:3] / plain[:3])
  assert (np.diff(sharp) >= 0).all()


@pytest.mark.parametrize('temperature', [0, 0.0, np.nan])
def test_tilted_refuses_a_temperature_that_is_none(temperature):
  """The error names it."""
  with pytest.raises(ValueError, match='temperature'):
    scores.tilted(scores.loss(cross_entropy), cross_entropy, temperature)


def test_tilted_takes_a_traced_temperature():
  """One program for all temperatures."""
  outputs, targets = jnp.eye(3), jnp.array([0, 0, 2])
  plain = scores.loss(cross_entropy)

  @jax.jit
  def scored(temperature):
    return scores.tilted(plain, cross_entropy, temperature)(outputs, targets)

  expected = scores.tilted(plain, cross_entropy, 2.0)(outputs, targets)
  np.testing.assert_allclose(scored(2.0), expected, rtol=1e-6)


def test_one_minus_label_probability(key):
  """Equals 1 - softmax(z)[y] in float64, within rounding of the logits."""
  logits, labels = random_logits(key)
  logits += jnp.linspace(0, 30, 32)[:, None] * jax.nn.one_hot(labels, 10)
  z = np.asarray(logits, np.float64)
  others = np.exp(z) * (1 - np.eye(10)[np.asarray(labels)])
  expected = others.sum(1) / np.exp(z).sum(1)
  score = scores.one_minus_label_probability(logits, labels)
  assert expected.min() < 1e-4
  np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-7)
  certain = scores.one_minus_label_probability(
    jnp.array([[0.0, -14.0]]), jnp.array([0])
  )
  np.testing.assert_allclose(certain, 1 / (1 + np.exp(14.0)), rtol=0.1)


def test_label_log_probability_is_log_softmax_at_the_label(key):
  """The other half of the cross entropy."""
  logits, labels = random_logits(key)
  np.testing.assert_allclose(
    scores.label_log_probability(logits, labels),
    -cross_entropy(logits, labels),
    rtol=1e-5,
    atol=1e-6,
  )


def test_one_hot_targets_are_refused():
  """The error tells shapes and remedy."""
  with pytest.raises(ValueError, match='argmax'):
    scores.one_minus_label_probability(jnp.ones((4, 3)), jnp.ones((4, 3)))


def test_the_logit_norm_bounds_the_gradient_up_to_one_factor(key):
  """For a linear model the bound is exact: ||grad|| = ||g_z|| ||(x, 1)||."""
  x = jax.random.normal(key, (16, 5))
  x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
  labels = jax.random.randint(key, (16,), 0, 4)
  params = jax.random.normal(key, (5, 4)), jnp.zeros(4)

  def loss(params, x, y):
    return cross_entropy(x @ params[0] + params[1], y)

  gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, labels)
  exact = np.sqrt(norms(gradients[0]) ** 2 + norms(gradients[1]) ** 2)
  score = jax.jit(scores.logit_gradient_norm(cross_entropy))(
    x @ params[0], labels
  )
  np.testing.assert_allclose(exact, np.sqrt(2) * score, rtol=1e-4)


@pytest.mark.parametrize('name', scores.SCORES)
def test_every_score_is_finite_and_non_negative(name, key):
  """At ordinary, certain and wildly wrong logits; one number an example."""
  logits, labels = random_logits(key)
  score = jax.jit(scores.SCORES[name](cross_entropy))
  for scale in (0.0, 1.0, 1e4):
    values = score(scale * logits, labels)
    assert values.shape == labels.shape
    assert np.isfinite(values).all()
    assert (values >= 0).all()


# Programs run once: what counts is how long they compile.
quick_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


class Task(NamedTuple):
  """A small MLP and examples for it."""

  apply_fn: Any
  params: Any
  batch: Batch


@pytest.fixture(scope='module')
def task():
  """Seven examples of three classes."""
  inputs = jax.random.normal(jax.random.key(0), (7, 5))
  params, _ = init(MLP(3, (6,)), jax.random.key(1), inputs[:1])
  batch = Batch(inputs, jnp.arange(7) % 3, jnp.arange(7.0))
  return Task(make_apply_fn(MLP(3, (6,))), params, batch)


def test_gradient_norm_equals_that_of_a_loop_over_examples(task):
  """One jax.grad each; record weights play no part."""

  @jax.jit
  def norm(params, i):
    def loss(params):
      outputs, _ = task.apply_fn(
        params, {}, task.batch.inputs[i][None], train=False, rngs=None
      )
      return cross_entropy(outputs[0], task.batch.targets[i])

    return optax.tree.norm(jax.grad(loss)(params))

  expected = [norm(task.params, i) for i in range(7)]
  for method in ('ghost', 'vmap'):
    score = scores.gradient_norm(task.apply_fn, cross_entropy, method=method)
    values = jax.jit(score)(task.params, {}, task.batch)
    assert values.shape == (7,)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize('factory', scores.DRAW_SCORES.values())
def test_microbatches_change_nothing(task, factory):
  """Whether or not they divide the number of examples."""

  @quick_jit
  def scored(params, batch):
    return [
      factory(task.apply_fn, cross_entropy, microbatch_size=size)(
        params, {}, batch
      )
      for size in (None, 1, 3, 7, 100)
    ]

  whole, *parts = scored(task.params, task.batch)
  for values in parts:
    np.testing.assert_allclose(values, whole, rtol=1e-5)


def test_a_microbatch_bounds_the_size_of_arrays(task):
  """In 'vmap', by so many gradients; the parts are made in a loop."""

  def largest(microbatch_size):
    score = scores.gradient_norm(
      task.apply_fn,
      cross_entropy,
      method='vmap',
      microbatch_size=microbatch_size,
    )
    program = jax.jit(score).lower(task.params, {}, task.batch).as_text()
    return '7x5x6x' in program or '7x6x5x' in program, 'while' in program

  assert largest(None) == (True, False)
  assert largest(2) == (False, True)


def test_last_layer_gradient_norm(task):
  """|| softmax(z) - onehot(y) || sqrt(|| h ||^2 + 1), below the full norm."""
  last = scores.last_layer_gradient_norm(task.apply_fn, cross_entropy)
  values = quick_jit(last)(task.params, {}, task.batch)
  first, head = (
    jax.tree.map(np.asarray, task.params[name]) for name in sorted(task.params)
  )
  x, labels = np.asarray(task.batch.inputs), np.asarray(task.batch.targets)
  h = np.maximum(x @ first['kernel'] + first['bias'], 0)
  powers = np.exp(h @ head['kernel'] + head['bias'])
  residuals = powers / powers.sum(1, keepdims=True) - np.eye(3)[labels]
  expected = norms(residuals) * np.sqrt(norms(h) ** 2 + 1)
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  full = scores.gradient_norm(task.apply_fn, cross_entropy)
  bound = quick_jit(full)(task.params, {}, task.batch)
  assert (values <= (1 + 1e-6) * bound).all()


@pytest.mark.parametrize('name', scores.DRAW_SCORES)
def test_draw_scores_follow_the_scale_of_the_loss(task, name):
  """|| c g || = c || g ||, where float32 cannot hold the squares; 0 at 0."""
  scales = 1.0, 0.0, 1e-30, 1e30

  @quick_jit
  def scored(params, batch):
    return [
      scores.DRAW_SCORES[name](
        task.apply_fn, lambda z, y, c=scale: c * cross_entropy(z, y)
      )(params, {}, batch)
      for scale in scales
    ]

  values = scored(task.params, task.batch)
  assert values[0].shape == (7,)
  assert (values[0] > 0).all()
  for scale, scaled in zip(scales, values, strict=True):
    np.testing.assert_allclose(scaled, scale * values[0], rtol=1e-5)


def test_gradient_norm_of_pytrees(task):
  """Outputs, targets and inputs may be pytrees."""

  def apply_fn(params, model_state, inputs, *, train, rngs):
    outputs, state = task.apply_fn(
      params, model_state, inputs['x'], train=train, rngs=rngs
    )
    return {'logits': outputs, 'twice': 2 * outputs}, state

  def loss_fn(output, target):
    logits = output['twice'] - output['logits']
    return target[1] * cross_entropy(logits, target[0])

  batch = Batch({'x': task.batch.inputs}, (task.batch.targets, jnp.ones(7)))
  score = scores.gradient_norm(apply_fn, loss_fn)
  expected = scores.gradient_norm(task.apply_fn, cross_entropy)
  np.testing.assert_allclose(
    quick_jit(score)(task.params, {}, batch),
    quick_jit(expected)(task.params, {}, task.batch),
    rtol=1e-5,
  )


class Regularised(nn.Module):
  """With dropout, and batch norm by the batch's statistics or by old ones."""

  frozen: bool

  @nn.compact
  def __call__(self, x, train):
    by_running_average = self.frozen or not train
    x = nn.BatchNorm(use_running_average=by_running_average)(nn.Dense(4)(x))
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return nn.Dense(3)(x)


def test_models_are_scored_in_evaluation_mode(key):
  """Dropout is off, and batch norm takes its running averages."""
  module = Regularised(frozen=True)
  x = jax.random.normal(key, (6, 5))
  params, state = init(module, key, x[:1])
  state = jax.tree.map(lambda leaf: leaf + 0.3, state)
  batch = Batch(x, jnp.arange(6) % 3)

  def loss(params, x, y):
    return cross_entropy(
      module.apply({'params': params, **state}, x[None], train=False)[0], y
    )

  gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, batch.targets)
  squares = [
    jnp.sum(jnp.square(g.reshape(6, -1)), 1) for g in jax.tree.leaves(gradients)
  ]
  for method in ('ghost', 'vmap'):
    score = scores.gradient_norm(
      make_apply_fn(module), cross_entropy, method=method
    )
    np.testing.assert_allclose(
      quick_jit(score)(params, state, batch), jnp.sqrt(sum(squares)), rtol=1e-5
    )


@pytest.mark.parametrize(
  'make_score',
  [
    scores.gradient_norm,
    functools.partial(scores.gradient_norm, method='vmap'),
    scores.last_layer_gradient_norm,
  ],
  ids=('ghost', 'vmap', 'last layer'),
)
def test_a_model_that_trains_on_batch_statistics_has_no_exact_norm(
  make_score, key
):
  """Though in evaluation it has: not those of the gradients in training."""
  module = Regularised(frozen=False)
  x = jax.random.normal(key, (6, 5))
  args = *init(module, key, x[:1]), Batch(x, jnp.arange(6) % 3)
  apply_fn = make_apply_fn(module)
  with pytest.raises(ValueError, match='no example has a gradient of its own'):
    jax.eval_shape(make_score(apply_fn, cross_entropy), *args)

  def on_running_statistics(*args, train, rngs):
    del train
    return apply_fn(*args, train=False, rngs=rngs)

  jax.eval_shape(make_score(on_running_statistics, cross_entropy), *args)


def test_the_fallback_is_asked_for(task):
  """A bare parameter needs it; 'vmap' needs nothing."""

  def apply_fn(params, model_state, inputs, *, train, rngs):
    net, scale = params
    outputs, _ = task.apply_fn(net, {}, inputs, train=train, rngs=rngs)
    return scale * outputs, model_state

  params = task.params, jnp.float32(1.5)
  factory = functools.partial(scores.gradient_norm, apply_fn, cross_entropy)
  with pytest.raises(ValueError, match="fallback='vmap'"):
    factory()(params, {}, task.batch)
  np.testing.assert_allclose(
    quick_jit(factory(fallback='vmap'))(params, {}, task.batch),
    quick_jit(factory(method='vmap'))(params, {}, task.batch),
    rtol=1e-5,
  )


def test_a_pool_may_be_drawn_by_the_exact_norm(task):
  """A step takes a draw score, behind the gate of its sampler."""
  sampler = presample(7, 2, pool_size=4)
  tx = importance_weighted(optax.sgd(0.1), 7)
  step = make_train_step(
    task.apply_fn,
    cross_entropy,
    sampler,
    tx,
    score=scores.logit_gradient_norm(cross_entropy),
    draw_score=scores.gradient_norm(task.apply_fn, cross_entropy),
  )
  state = init_train_state(jax.random.key(0), task.params, {}, sampler, tx)
  data = task.batch._replace(record_weights=None)
  after, _ = jax.eval_shape(step, state, data)
  assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'method': 'exact'}, "method must be one of 'ghost', 'vmap'; got 'exact'"),
    ({'fallback': 'no'}, "fallback must be one of 'raise', 'vmap'; got 'no'"),
    (
      {'microbatch_size': 0},
      'microbatch_size must be an integer of at least 1',
    ),
  ],
)
def test_bad_options_of_gradient_norm_are_named(task, options, message):
  """Before anything is traced."""
  with pytest.raises(ValueError, match=message):
    scores.gradient_norm(task.apply_fn, cross_entropy, **options)
