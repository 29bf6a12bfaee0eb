"""Shapes, parameter counts and purity of the models."""

import functools

from flax import errors
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import models

K = 10
DIGIT = (8, 8, 1)
PHOTO = (32, 32, 3)


def _shapes(module, shape):
  inputs = jnp.zeros((1, *shape))
  key = jax.random.key(0)
  return jax.eval_shape(lambda: models.init(module, key, inputs))[0]


def _random_params(module, shape):
  """Parameters with no zeros among them: biases and scales count too."""
  random = np.random.RandomState(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype),
    _shapes(module, shape),
  )


@functools.cache
def _forward(module):
  apply_fn = models.make_apply_fn(module)
  return jax.jit(
    lambda params, inputs: apply_fn(params, {}, inputs, train=False, rngs=None)[
      0
    ]
  )


@functools.cache
def _model(name):
  module = models.MODELS[name](num_classes=K)
  return _forward(module), _random_params(module, DIGIT)


def _size(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _dense(fan_in, fan_out):
  return (fan_in + 1) * fan_out


def _resnet_size(channels, width, blocks_per_stage):
  """Adds up the layers of the paper's figure by hand."""
  size, fan_in = 9 * channels * width, width
  for stage in range(3):
    fan_out = width * 2**stage
    for _ in range(blocks_per_stage):
      norms = 2 * fan_in + 2 * fan_out
      shortcut = fan_in * fan_out if fan_in != fan_out else 0
      size += norms + 9 * fan_in * fan_out + 9 * fan_out**2 + shortcut
      fan_in = fan_out
  return size + 2 * fan_in + _dense(fan_in, K)


@pytest.mark.parametrize('name', models.MODELS)
def test_logits_are_finite_float32_of_one_row_per_example(name, key):
  forward, params = _model(name)
  logits = forward(params, jax.random.uniform(key, (5, *DIGIT)))
  assert logits.shape == (5, K)
  assert logits.dtype == jnp.float32
  assert jnp.isfinite(logits).all()


@pytest.mark.parametrize('shape', [DIGIT, PHOTO])
@pytest.mark.parametrize('name', models.MODELS)
def test_models_take_grey_and_colour_and_keep_no_state(name, shape):
  module = models.MODELS[name](num_classes=3)

  def forward(key):
    inputs = jnp.zeros((2, *shape))
    params, model_state = models.init(module, key, inputs)
    return models.make_apply_fn(module)(
      params, model_state, inputs, train=True, rngs=None
    )

  logits, model_state = jax.eval_shape(forward, jax.random.key(0))
  assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)
  assert model_state == {}


@pytest.mark.parametrize('hidden', [(), (7,), (7, 5)])
def test_mlp_has_the_parameters_of_its_dense_layers(hidden):
  params = _shapes(models.MLP(num_classes=K, hidden=hidden), (2, 3, 4))
  widths = [2 * 3 * 4, *hidden, K]
  assert _size(params) == sum(map(_dense, widths[:-1], widths[1:]))


def test_mlp_is_the_composition_of_its_layers(key):
  """An independent second way, in numpy: relu between, none at the end."""
  module = models.MLP(num_classes=3, hidden=(6,))
  inputs = np.asarray(jax.random.normal(key, (4, 2, 2, 1)))
  params = _random_params(module, (2, 2, 1))
  first, last = (
    jax.tree.map(np.asarray, params[f'Dense_{i}']) for i in range(2)
  )
  hidden = inputs.reshape(4, 4) @ first['kernel'] + first['bias']
  expected = np.maximum(hidden, 0) @ last['kernel'] + last['bias']
  assert (hidden < 0).any()
  assert (expected < 0).any()
  logits = _forward(module)(params, inputs)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('channels', 'width', 'blocks_per_stage'), [(1, 16, 1), (3, 16, 1), (3, 8, 2)]
)
def test_resnet_has_the_parameters_of_its_layers(
  channels, width, blocks_per_stage
):
  module = models.ResNet(
    num_classes=K, width=width, blocks_per_stage=blocks_per_stage
  )
  size = _resnet_size(channels, width, blocks_per_stage)
  assert _size(_shapes(module, (8, 8, channels))) == size


def test_resnet_halves_the_image_twice():
  module = models.ResNet(num_classes=K)
  _, captured = jax.eval_shape(
    lambda: module.init_with_output(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), capture_intermediates=True
    )
  )
  blocks = captured['intermediates']
  assert [blocks[f'_Block_{i}']['__call__'][0].shape for i in range(3)] == [
    (1, 32, 32, 16),
    (1, 16, 16, 32),
    (1, 8, 8, 64),
  ]


@pytest.mark.parametrize('name', models.MODELS)
def test_an_example_does_not_feel_the_rest_of_its_batch(name, key):
  forward, params = _model(name)
  inputs = jax.random.uniform(key, (5, *DIGIT))
  others = inputs.at[1:].set(100 * inputs[1:] - 7)
  logits = forward(params, inputs)
  np.testing.assert_allclose(
    forward(params, others)[0], logits[0], rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    forward(params, inputs[:1])[0], logits[0], rtol=1e-5, atol=1e-6
  )
  assert jnp.abs(logits[1:] - logits[:1]).max() > 1e-3


@pytest.mark.parametrize('name', models.MODELS)
def test_every_parameter_is_used(name, key):
  forward, params = _model(name)
  inputs = jax.random.uniform(key, (5, *DIGIT))
  gradient = jax.jit(jax.grad(lambda p: (forward(p, inputs) ** 2).sum()))
  used = jax.tree.map(np.any, jax.device_get(gradient(params)))
  assert all(jax.tree.leaves(used)), used


class _WithStatistics(nn.Module):
  """Keeps running statistics and has no parameters."""

  @nn.compact
  def __call__(self, x, train=False):
    norm = nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,
      use_bias=False,
      use_scale=False,
    )
    return norm(x)


class _WithDropout(nn.Module):
  """Drops half of its inputs in training."""

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dropout(0.5, deterministic=not train)(x)


@pytest.mark.parametrize('jit', [False, True])
def test_training_moves_the_running_statistics(jit, key):
  inputs = jnp.array([[1.0], [5.0]])
  params, model_state = models.init(_WithStatistics(), key, inputs)
  apply_fn = functools.partial(
    models.make_apply_fn(_WithStatistics()), train=True, rngs=None
  )
  outputs, new_state = (jax.jit(apply_fn) if jit else apply_fn)(
    params, model_state, inputs
  )
  assert params == {}
  np.testing.assert_allclose(outputs, [[-1.0], [1.0]], rtol=1e-5)
  statistics = new_state['batch_stats']['BatchNorm_0']
  # 0.9 of what was there (mean 0, variance 1) and 0.1 of the batch's 3 and 4.
  np.testing.assert_allclose(statistics['mean'], [0.3], rtol=1e-6)
  np.testing.assert_allclose(statistics['var'], [1.3], rtol=1e-6)
  assert jax.tree.structure(new_state) == jax.tree.structure(model_state)


def test_evaluation_uses_the_running_statistics_and_keeps_them(key):
  inputs = jnp.array([[1.0], [5.0]])
  _, model_state = models.init(_WithStatistics(), key, inputs)
  outputs, new_state = models.make_apply_fn(_WithStatistics())(
    {}, model_state, inputs, train=False, rngs=None
  )
  np.testing.assert_allclose(outputs, inputs, rtol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, new_state, model_state)


def test_dropout_draws_from_the_key_that_it_is_given(key):
  inputs = jnp.ones((4, 64))
  params, model_state = models.init(_WithDropout(), key, inputs)
  assert (params, model_state) == ({}, {})
  apply_fn = models.make_apply_fn(_WithDropout())

  def train(dropout_key):
    rngs = {'dropout': dropout_key}
    return apply_fn({}, {}, inputs, train=True, rngs=rngs)[0]

  keys = jax.random.split(key)
  outputs = train(keys[0])
  assert set(np.unique(outputs)) == {0.0, 2.0}
  np.testing.assert_array_equal(outputs, jax.jit(train)(keys[0]))
  assert (outputs != train(keys[1])).any()


def test_dropout_needs_no_key_in_evaluation_and_one_in_training():
  apply_fn = models.make_apply_fn(_WithDropout())
  inputs = jnp.ones((4, 64))
  outputs, _ = apply_fn({}, {}, inputs, train=False, rngs=None)
  np.testing.assert_array_equal(outputs, inputs)
  with pytest.raises(errors.InvalidRngError, match='dropout'):
    apply_fn({}, {}, inputs, train=True, rngs=None)


def test_initial_parameters_follow_the_key():
  module = models.MLP(num_classes=2, hidden=())
  inputs = jnp.zeros((1, 3))
  kernels = [
    models.init(module, jax.random.key(seed), inputs)[0]['Dense_0']['kernel']
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert (kernels[0] != kernels[2]).all()
