"""LSTM and transformer: second ways in numpy, and laws of symmetry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import models

K = 3
SMALL = models.Transformer(
  K, num_tokens=11, max_length=9, width=8, num_blocks=2, num_heads=2
)


def _params(module, inputs):
  random = np.random.RandomState(0)
  shapes, _ = jax.eval_shape(
    lambda: models.init(module, jax.random.key(0), inputs)
  )
  return jax.tree.map(
    lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
  )


# Programs run once: what counts is how long they compile.
@functools.partial(
  jax.jit,
  static_argnums=0,
  compiler_options={
    'xla_backend_optimization_level': 0,
    'xla_cpu_use_fusion_emitters': False,
  },
)
def _forward(module, params, inputs):
  apply_fn = models.make_apply_fn(module)
  return apply_fn(params, {}, inputs, train=True, rngs=None)[0]


def _float64(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def _size(module, inputs):
  return sum(leaf.size for leaf in jax.tree.leaves(_params(module, inputs)))


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _dense(x, params):
  return x @ params['kernel'] + params['bias']


def _lstm(params, x):
  """The equations of the layer, a step at a time."""
  cell = params['OptimizedLSTMCell_0']
  hidden = memory = np.zeros((len(x), cell['hi']['kernel'].shape[0]))
  for step in range(x.shape[1]):
    i, f, g, o = (
      x[:, step] @ cell[f'i{gate}']['kernel'] + _dense(hidden, cell[f'h{gate}'])
      for gate in 'ifgo'
    )
    memory = _sigmoid(f) * memory + _sigmoid(i) * np.tanh(g)
    hidden = _sigmoid(o) * np.tanh(memory)
  return _dense(hidden, params['Dense_0'])


@pytest.mark.parametrize('shape', [(7, 5), (3, 4, 2)])
def test_lstm_follows_its_equations(shape, key):
  """Sequences as they are, images row by row."""
  module = models.LSTM(K, hidden=6)
  inputs = jax.random.normal(key, (4, *shape))
  params = _params(module, inputs)
  expected = _lstm(*_float64((params, inputs.reshape(4, -1, shape[-1]))))
  outputs = _forward(module, params, inputs)
  np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_lstm_of_mnist_has_the_parameters_of_its_gates():
  size = 4 * (1 + 128 + 1) * 128 + (128 + 1) * 10
  assert _size(models.LSTM(10), jnp.zeros((1, 28, 28, 1))) == size == 67_850


def test_lstm_takes_no_series_without_features():
  with pytest.raises(
    ValueError, match=r'sequences \[m, T, D\].*got .*\(4, 7\)'
  ):
    _params(models.LSTM(K), jnp.zeros((4, 7)))


def _layer_norm(x, params):
  centred = x - x.mean(-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  return centred / deviation * params['scale'] + params['bias']


def _gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _attention(x, params):
  """Softmax of q k / sqrt(width of a head) over all tokens."""
  q, k, v = (
    np.einsum('mtd,dhe->mhte', x, params[name]['kernel'])
    for name in ('query', 'key', 'value')
  )
  weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('mhte,hed->mtd', weights @ v, params['out']['kernel'])


def _transformer(params, tokens):
  positions, vocabulary = (params[f'Embed_{i}']['embedding'] for i in range(2))
  x = vocabulary[tokens] + positions[: tokens.shape[1]]
  for i in range(2):
    block = params[f'_Block_{i}']
    y = _layer_norm(x, block['LayerNorm_0'])
    x = x + _attention(y, block['MultiHeadDotProductAttention_0'])
    y = _layer_norm(x, block['LayerNorm_1'])
    x = x + _dense(_gelu(_dense(y, block['Dense_0'])), block['Dense_1'])
  return _dense(_layer_norm(x, params['LayerNorm_0']), params['Dense_0'])


@pytest.mark.parametrize('length', [9, 1])
def test_transformer_follows_its_equations(length, key):
  """Of each token; of a sequence, the mean, for the last layer is linear."""
  tokens = jax.random.randint(key, (4, length), 0, 11)
  params = _params(SMALL, tokens)
  expected = _transformer(_float64(params), np.asarray(tokens))
  outputs = _forward(SMALL.clone(outputs='token'), params, tokens)
  assert outputs.shape == (4, length, K)
  np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
  outputs = _forward(SMALL, params, tokens)
  np.testing.assert_allclose(outputs, expected.mean(1), rtol=1e-4, atol=1e-5)


def test_transformer_knows_the_order_by_its_positions_only(key):
  tokens = jax.random.randint(key, (4, 9), 0, 11)
  params = _params(SMALL, tokens)
  assert (
    _forward(SMALL, params, tokens) != _forward(SMALL, params, tokens[:, ::-1])
  ).all()
  params['Embed_0']['embedding'] *= 0
  np.testing.assert_allclose(
    _forward(SMALL, params, tokens),
    _forward(SMALL, params, tokens[:, ::-1]),
    rtol=1e-4,
    atol=1e-5,
  )


def test_transformer_has_the_parameters_of_its_layers():
  embeddings = (256 + 512) * 64
  norms = 2 * 2 * 64
  dense = (64 + 1) * 256 + (256 + 1) * 64
  blocks = 2 * (norms + 4 * 64**2 + dense)
  size = embeddings + blocks + 2 * 64 + (64 + 1) * 10
  assert _size(models.Transformer(10), jnp.zeros((1, 12), jnp.int32)) == size


@pytest.mark.parametrize(
  ('inputs', 'match'),
  [
    (jnp.zeros((2, 9)), r'integers \[m, T\]; got float32\[2, 9\]'),
    (jnp.zeros((2, 8, 8, 1)), r'got float32\[2, 8, 8, 1\]'),
    (jnp.zeros((2, 3, 3), jnp.uint8), r'got uint8\[2, 3, 3\]'),
    (jnp.zeros((2, 10), jnp.int32), 'at most max_length=9 tokens; got 10'),
  ],
)
def test_transformer_takes_short_sequences_of_integers_only(inputs, match):
  with pytest.raises(ValueError, match=match):
    _params(SMALL, inputs)


def test_transformer_has_two_kinds_of_outputs():
  with pytest.raises(ValueError, match="outputs must be one of.*'tokens'"):
    _params(SMALL.clone(outputs='tokens'), jnp.zeros((1, 9), jnp.int32))
