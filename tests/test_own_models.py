"""Users' own losses, inputs and models: the training step takes them as is."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import (
  importance_weighted,
  init_train_state,
  logit_gradient_norm,
  make_eval_step,
  make_loop,
  make_train_step,
  presample,
  record_weighted,
)
from isjax.types import Batch, take

N, F, B = 48, 4, 8
softmax_loss = optax.softmax_cross_entropy_with_integer_labels


def train(apply_fn, loss_fn, sampler, params, data, model_state={}, **options):
  """Sixty steps; returns the mean loss of the first and of the last ten."""
  tx = importance_weighted(optax.adam(0.05), N)
  score = logit_gradient_norm(loss_fn)
  step = make_train_step(apply_fn, loss_fn, sampler, tx, score=score, **options)
  state = init_train_state(jax.random.key(1), params, model_state, sampler, tx)
  state, metrics = make_loop(step, 60)(state, data)
  return metrics['loss'][:10].mean(), metrics['loss'][-10:].mean(), state


def resampling():
  """A sampler that scores a pool at every step."""
  return presample(N, B, pool_size=24, tau_threshold=0.0)


def pinball(prediction, target):
  """Of ONE example: least at the .9 quantile."""
  error = target - prediction
  return jnp.maximum(0.9 * error, -0.1 * error)


def linear(params, model_state, inputs, *, train, rngs):
  """A model that is a plain function."""
  del train, rngs
  return inputs @ params['kernel'] + params['bias'], model_state


def line():
  return {'kernel': jnp.zeros(F), 'bias': jnp.zeros(())}


@pytest.fixture(scope='module')
def points():
  """A line with one-sided noise: 9 of 10 points lie within .9 of it."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(N, F)).astype(np.float32)
  noise = rng.uniform(size=N).astype(np.float32)
  return Batch(jnp.asarray(x), jnp.asarray(x.sum(1) + noise))


def test_a_loss_of_ones_own(points):
  """A quantile is learnt: the loss falls, and 9 of 10 points lie below."""
  before, after, state = train(linear, pinball, resampling(), line(), points)
  assert after < 0.2 * before
  outputs, _ = linear(state.params, {}, points.inputs, train=False, rngs=None)
  assert 0.75 < np.mean(points.targets < outputs) <= 1


def test_the_update_is_the_weighted_mean_of_gradients(points):
  """By hand, example by example in float64: w_i = (r_i/R) / p_i."""
  records = np.arange(1, N + 1, dtype=np.float32)
  law = np.arange(N, 0, -1, dtype=np.float32)
  sampler = record_weighted(N, B, record_weights=records, law=law)
  tx = importance_weighted(optax.sgd(0.5), N)
  step = make_train_step(
    linear, pinball, sampler, tx, score=logit_gradient_norm(pinball)
  )
  data = points._replace(record_weights=jnp.asarray(records))
  state = init_train_state(jax.random.key(0), line(), {}, sampler, tx)
  proposal, _ = step.propose(state, state.step)
  new_state, metrics = jax.jit(step)(state, data)
  drawn = np.asarray(proposal.indices)
  weights = (records / records.sum() / (law / law.sum()))[drawn]
  x, y = (np.asarray(rows, np.float64)[drawn] for rows in points[:2])
  slopes = np.where(y > 0, -0.9, 0.1)  # the prediction is 0
  expected = {
    'kernel': -0.5 * (weights * slopes) @ x / B,
    'bias': -0.5 * np.mean(weights * slopes),
  }
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    new_state.params,
    expected,
  )
  losses = np.where(y > 0, 0.9 * y, -0.1 * y)
  np.testing.assert_allclose(
    metrics['loss'], np.mean(weights * losses), rtol=1e-5
  )


def two_inputs(params, model_state, inputs, *, train, rngs):
  """A mean of word vectors beside features; a class and a number come out."""
  del train, rngs
  words = params['table'][inputs['words']]
  present = inputs['words'] > 0
  mean = jnp.sum(words * present[..., None], 1) / present.sum(1, keepdims=True)
  hidden = jnp.concatenate([mean, inputs['features']], axis=1)
  outputs = {name: hidden @ params[name] for name in ('logits', 'number')}
  return outputs, model_state


def two_losses(output, target):
  """Of ONE example: dicts without a leading axis."""
  error = output['number'][0] - target['number']
  return softmax_loss(output['logits'], target['label']) + error**2


def several():
  """A data set whose inputs and targets are dicts of arrays."""
  rng = np.random.default_rng(1)
  words = rng.integers(1, 6, (N, 5), dtype=np.int32)
  words[:, 3:] *= rng.integers(0, 2, (N, 2), dtype=np.int32)
  features = rng.integers(0, 256, (N, 2)).astype(np.uint8)
  label = (words[:, 0] > 2).astype(np.int32)
  number = features[:, 0].astype(np.float32) / 255
  return jax.tree.map(
    jnp.asarray,
    Batch(
      {'words': words, 'features': features},
      {'label': label, 'number': number},
    ),
  )


def to_floats(inputs):
  return inputs | {'features': inputs['features'] / 255.0}


def jitter(key, example):
  """Augments ONE example, of whose inputs it sees all."""
  noise = 0.01 * jax.random.normal(key, example['features'].shape)
  return example | {'features': example['features'] + noise}


def test_several_inputs_and_targets():
  """Dicts go through the gather, the view, the score, the loss, evaluation."""
  params = {
    'table': 0.1 * jax.random.normal(jax.random.key(0), (6, 3)),
    'logits': jnp.zeros((5, 2)),
    'number': jnp.zeros((5, 1)),
  }
  data = several()
  before, after, state = train(
    two_inputs,
    two_losses,
    resampling(),
    params,
    data,
    preprocess=to_floats,
    augment=jitter,
  )
  assert after < 0.8 * before
  evaluate = make_eval_step(
    two_inputs, two_losses, preprocess=to_floats, batch_size=16
  )
  outputs, _ = two_inputs(
    state.params, {}, to_floats(data.inputs), train=False, rngs=None
  )
  np.testing.assert_allclose(
    evaluate(state.params, {}, data)['loss'],
    np.mean(jax.vmap(two_losses)(outputs, data.targets)),
    rtol=1e-5,
  )


def test_the_score_of_several_outputs_is_the_norm_over_all():
  """Over logits and number together: p - onehot, and twice the error."""
  outputs = {'logits': jnp.array([[1.0, -1.0]]), 'number': jnp.array([[2.0]])}
  targets = {'label': jnp.array([1]), 'number': jnp.array([0.5])}
  p = np.exp([1.0, -1.0]) / np.exp([1.0, -1.0]).sum()
  expected = np.linalg.norm([p[0], p[1] - 1, 2 * 1.5])
  score = jax.jit(logit_gradient_norm(two_losses))(outputs, targets)
  np.testing.assert_allclose(score, [expected], rtol=1e-6)


def from_nnx(model):
  """A flax.nnx model as (apply_fn, params, model_state)."""
  kinds = nnx.Param, nnx.BatchStat, ...

  def apply_fn(params, model_state, inputs, *, train, rngs):
    module = nnx.merge(graphdef, params, *model_state.values(), copy=True)
    module.train() if train else module.eval()
    nnx.reseed(module, **(rngs or {}))
    outputs = module(inputs)
    _, _, statistics, other = nnx.split(module, *kinds)
    return outputs, {'batch_stats': statistics, 'other': other}

  graphdef, params, statistics, other = nnx.split(model, *kinds)
  return apply_fn, params, {'batch_stats': statistics, 'other': other}


def nnx_model(norm, rate=0.2):
  rngs = nnx.Rngs(params=0, dropout=1)
  return nnx.Sequential(
    nnx.Linear(F, 16, rngs=rngs),
    getattr(nnx, norm)(16, rngs=rngs),
    nnx.relu,
    nnx.Dropout(rate, rngs=rngs),
    nnx.Linear(16, 2, rngs=rngs),
  )


def classes(points):
  return points._replace(targets=(points.targets > 0.5).astype(jnp.int32))


def test_a_model_of_nnx(points):
  """It learns, under a budget, too; evaluation is without dropout."""
  apply_fn, params, model_state = from_nnx(nnx_model('LayerNorm'))
  data = classes(points)
  before, after, state = train(
    apply_fn,
    softmax_loss,
    resampling(),
    params,
    data,
    model_state,
    budget=10**6,
  )
  assert after < 0.5 * before

  @functools.partial(jax.jit, static_argnames='train')
  def outputs(train, key):
    rngs = {'dropout': key} if train else None
    return apply_fn(
      state.params, state.model_state, data.inputs, train=train, rngs=rngs
    )[0]

  first, again, other = (outputs(True, jax.random.key(i)) for i in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  kept = outputs(False, jax.random.key(0))
  np.testing.assert_array_equal(kept, outputs(False, jax.random.key(1)))


def test_nnx_updates_as_by_hand(points):
  """One step is nnx's own gradient of the weighted mean loss."""
  model = nnx_model('LayerNorm', rate=0.0)
  data = classes(points)
  law = jnp.arange(1.0, N + 1)
  apply_fn, params, model_state = from_nnx(model)
  sampler = record_weighted(N, B, law=law)
  tx = importance_weighted(optax.sgd(0.5), N)
  step = make_train_step(
    apply_fn, softmax_loss, sampler, tx, score=logit_gradient_norm(softmax_loss)
  )
  state = init_train_state(jax.random.key(0), params, model_state, sampler, tx)
  drawn = step.propose(state, state.step)[0].indices
  rows = take(data, drawn)
  weights = jnp.sum(law) / (N * law[drawn])

  def weighted_loss(model):
    return jnp.mean(weights * softmax_loss(model(rows.inputs), rows.targets))

  gradient = nnx.jit(nnx.grad(weighted_loss))(model)
  expected = jax.tree.map(lambda w, g: w - 0.5 * g, params, gradient)
  new_state, _ = jax.jit(step)(state, data)
  for a, b in zip(
    *map(jax.tree.leaves, (new_state.params, expected)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_batch_statistics_of_nnx_are_warned_of(points):
  """The step knows them by the name; they move in training alone."""
  apply_fn, params, model_state = from_nnx(nnx_model('BatchNorm'))
  tx = importance_weighted(optax.sgd(0.1), N)
  step = make_train_step(
    apply_fn,
    softmax_loss,
    resampling(),
    tx,
    score=logit_gradient_norm(softmax_loss),
  )
  state = init_train_state(
    jax.random.key(0), params, model_state, resampling(), tx
  )
  with pytest.warns(UserWarning, match='batch statistics'):
    jax.eval_shape(step, state, classes(points))
  for train in (True, False):
    _, after = apply_fn(
      params, model_state, points.inputs, train=train, rngs=None
    )
    before, after = (
      jnp.concatenate(jax.tree.leaves(tree['batch_stats']))
      for tree in (model_state, after)
    )
    assert (before != after).all() == train
