"""What every model of the registry keeps; the plain ones, layer by layer."""

import functools

from flax import errors
from flax import linen as nn
import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import isjax
from isjax import ghost, models
from isjax.samplers import SAMPLERS

K = 10
DIGIT = (8, 8, 1)
PHOTO = (32, 32, 3)
# Settings that compile fast; a model that is not named has its defaults.
SMALL = {
  'cifar_resnet': {'depth': 8, 'width': 4, 'num_groups': 2},
  'cnn': {'channels': (4, 6), 'hidden': 8},
  'lstm': {'hidden': 6},
  'mlp': {'hidden': (16, 16)},
  'resnet': {'width': 4, 'num_groups': 2},
  'resnet50': {'num_blocks': (1, 1), 'width': 8, 'num_groups': 4},
  'transformer': {
    'num_tokens': 11,
    'max_length': 9,
    'width': 8,
    'num_blocks': 1,
    'num_heads': 2,
  },
}
TAKE_TOKENS = {'transformer'}
WITHOUT_NORM_RULE = {'lstm'}
# Programs run once: what counts is how long they compile.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_use_fusion_emitters': False,
}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
loss_fn = optax.softmax_cross_entropy_with_integer_labels


def _small(name, **fields):
  return models.MODELS[name](num_classes=K, **SMALL.get(name, {}), **fields)


# wide_resnet returns a ResNet: once is enough.
ONE_OF_A_TYPE = [name for name in models.MODELS if name != 'wide_resnet']


def _inputs(name, key, num_examples):
  if name in TAKE_TOKENS:
    return jax.random.randint(key, (num_examples, 9), 0, 11)
  return jax.random.uniform(key, (num_examples, *DIGIT))


def _others(inputs):
  """The first example, and the rest changed beyond recognition."""
  if jnp.issubdtype(inputs.dtype, jnp.integer):
    return inputs.at[1:].set(10 - inputs[1:])
  return inputs.at[1:].set(100 * inputs[1:] - 7)


def _shapes(module, inputs):
  return jax.eval_shape(lambda: models.init(module, jax.random.key(0), inputs))


def _random_params(module, inputs):
  """Parameters with no zeros among them: biases and scales count too."""
  random = np.random.RandomState(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype),
    _shapes(module, inputs)[0],
  )


def _forward(module):
  """As in training, where the norms must be of one example too."""
  apply_fn = models.make_apply_fn(module)
  return lambda params, inputs: apply_fn(
    params, {}, inputs, train=True, rngs=None
  )[0]


@functools.cache
def _model(name):
  """What the tests ask of a model, with five examples, in one program."""
  module, half = _small(name), _small(name, dtype='bfloat16')
  inputs = _inputs(name, jax.random.key(3), 5)

  @quick_jit
  def results(params, inputs):
    forward = _forward(module)
    return {
      'logits': forward(params, inputs),
      'among others': forward(params, _others(inputs)),
      'bfloat16': _forward(half)(params, inputs),
    }

  return results(_random_params(module, inputs), inputs)


def _size(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _dense(fan_in, fan_out):
  return (fan_in + 1) * fan_out


@pytest.mark.parametrize('name', ONE_OF_A_TYPE)
def test_logits_are_finite_float32_of_one_row_per_example(name):
  logits = _model(name)['logits']
  assert logits.shape == (5, K)
  assert logits.dtype == jnp.float32
  assert jnp.isfinite(logits).all()


@pytest.mark.parametrize('shape', [DIGIT, PHOTO])
@pytest.mark.parametrize('name', models.MODELS)
def test_models_take_grey_and_colour_and_keep_no_state(name, shape):
  """With all settings but K at their defaults."""
  module = models.MODELS[name](num_classes=3)
  inputs = jnp.zeros((2, *shape))
  if name in TAKE_TOKENS:
    inputs = jnp.zeros((2, 64), jnp.int32)

  def forward(key):
    params, model_state = models.init(module, key, inputs)
    return models.make_apply_fn(module)(
      params, model_state, inputs, train=True, rngs=None
    )

  logits, model_state = jax.eval_shape(forward, jax.random.key(0))
  assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)
  assert model_state == {}


@pytest.mark.parametrize('name', ONE_OF_A_TYPE)
def test_an_example_does_not_feel_the_rest_of_its_batch(name):
  logits, among_others = _model(name)['logits'], _model(name)['among others']
  np.testing.assert_allclose(among_others[0], logits[0], rtol=1e-5, atol=1e-6)
  assert jnp.abs(logits[1:] - logits[:1]).max() > 1e-3


@pytest.mark.parametrize('name', ONE_OF_A_TYPE)
def test_a_training_step_moves_all_parameters_and_lowers_the_loss(name, key):
  """A small step along the gradient of the whole set, by make_train_step."""
  num_examples = 8
  module = _small(name)
  inputs = _inputs(name, key, num_examples)
  data = isjax.Batch(inputs, jnp.arange(num_examples) % K)
  sampler = SAMPLERS['shuffle'](num_examples, num_examples)
  tx = isjax.importance_weighted(optax.sgd(0.01), num_examples)
  step = isjax.make_train_step(
    models.make_apply_fn(module),
    loss_fn,
    sampler,
    tx,
    score=isjax.logit_gradient_norm(loss_fn),
  )
  params = _random_params(module, inputs)
  start = isjax.init_train_state(key, params, {}, sampler, tx)
  step = quick_jit(step)
  state, before = step(start, data)
  _, after = step(state, data)
  assert after['loss'] < before['loss']
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), start.params, state.params
  )
  assert all(jax.tree.leaves(moved)), moved
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize('name', ONE_OF_A_TYPE)
def test_bfloat16_gives_logits_and_scores_near_those_of_float32(name):
  """And of the type float32.

  A rounding is off by 2^-9 at most of what it rounds. Up to ten layers round
  their inputs, kernels and results: together 30 * 2^-9, if no layer makes more
  of the earlier errors than of the values that they are part of.
  """
  exact, half = _model(name)['logits'], _model(name)['bfloat16']
  score = isjax.logit_gradient_norm(loss_fn)
  scores, half_scores = (score(x, jnp.arange(5)) for x in (exact, half))
  assert half.dtype == half_scores.dtype == jnp.float32
  bound = 30 * 2**-9
  for a, b in ((half, exact), (half_scores, scores)):
    assert np.linalg.norm(a - b) < bound * np.linalg.norm(b)


def _products(jaxpr):
  """Yields the types of all products of matrices and convolutions."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
      yield equation.outvars[0].aval.dtype
    for inner in jaxprs_in_params(equation.params):
      yield from _products(inner)


@pytest.mark.parametrize('name', ONE_OF_A_TYPE)
def test_all_products_but_the_last_are_of_the_dtype(name):
  """Which parameters are not: they are float32."""
  module = _small(name, dtype='bfloat16')
  inputs = _inputs(name, jax.random.key(0), 1)
  params, _ = _shapes(module, inputs)
  program = jax.make_jaxpr(_forward(module))(params, inputs)
  *products, last = _products(program.jaxpr)
  assert set(products) == {jnp.dtype('bfloat16')}
  assert last == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {last}


@pytest.mark.parametrize('name', ONE_OF_A_TYPE)
def test_gradient_norms_by_rules_are_those_of_the_gradients(name):
  """Every model but the recurrent one has a rule for each of its layers."""
  module = _small(name)
  x = _inputs(name, jax.random.key(4), 1)
  params = _random_params(module, x)

  def forward(params):
    return _forward(module)(params, x)[0]

  fallback = 'raise'
  if name in WITHOUT_NORM_RULE:
    with pytest.raises(ValueError, match='no norm rule covers'):
      ghost.vjp(forward, params)
    fallback = 'vmap'

  @quick_jit
  def both(params):
    logits, squared_norm = ghost.vjp(forward, params, fallback=fallback)
    _, pullback = jax.vjp(forward, params)
    [gradient] = pullback(jnp.cos(logits))
    squares = map(ghost.squares, jax.tree.leaves(gradient))
    return squared_norm(jnp.cos(logits)), sum(squares)

  squared_norm, expected = both(params)
  assert expected > 0
  np.testing.assert_allclose(squared_norm, expected, rtol=1e-5)


@pytest.mark.parametrize('hidden', [(), (7,), (7, 5)])
def test_mlp_has_the_parameters_of_its_dense_layers(hidden):
  module = models.MLP(num_classes=K, hidden=hidden)
  params, _ = _shapes(module, jnp.zeros((1, 2, 3, 4)))
  widths = [2 * 3 * 4, *hidden, K]
  assert _size(params) == sum(map(_dense, widths[:-1], widths[1:]))


def test_mlp_is_the_composition_of_its_layers(key):
  """An independent second way, in numpy: relu between, none at the end."""
  module = models.MLP(num_classes=3, hidden=(6,))
  inputs = np.asarray(jax.random.normal(key, (4, 2, 2, 1)))
  params = _random_params(module, inputs)
  first, last = (
    jax.tree.map(np.asarray, params[f'Dense_{i}']) for i in range(2)
  )
  hidden = inputs.reshape(4, 4) @ first['kernel'] + first['bias']
  expected = np.maximum(hidden, 0) @ last['kernel'] + last['bias']
  assert (hidden < 0).any()
  assert (expected < 0).any()
  logits = _forward(module)(params, inputs)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_cnn_of_mnist_has_the_parameters_of_its_layers():
  params, _ = _shapes(models.CNN(K), jnp.zeros((1, 28, 28, 1)))
  convolutions = _dense(9, 32) + _dense(9 * 32, 64)
  dense = _dense(12 * 12 * 64, 128) + _dense(128, K)
  assert _size(params) == convolutions + dense == 1_199_882


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
