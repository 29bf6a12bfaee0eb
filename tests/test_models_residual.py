"""Residual networks and their norms: counts, and second ways in numpy."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import models
from isjax.models import layers

K = 10
PHOTO = (32, 32, 3)
# Programs run once: what counts is how long they compile.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_use_fusion_emitters': False,
}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
# Of two blocks a stage, so that blocks without strides are among them.
SMALL = {
  'resnet': models.ResNet(3, width=4, blocks_per_stage=2, num_groups=2),
  'cifar_resnet': models.CifarResNet(3, depth=14, width=4, num_groups=2),
  'bottleneck': models.BottleneckResNet(3, (2, 2), width=4, num_groups=2),
}


def _random(tree):
  """Parameters and statistics > 0 in place of the arrays."""
  random = np.random.RandomState(0)
  return jax.tree.map(
    lambda leaf: (
      random.uniform(0.1, 0.9, leaf.shape).astype(np.float32)
      * random.choice([1, -1] if leaf.ndim > 1 else [1], leaf.shape)
    ),
    tree,
  )


def _shapes(module, shape):
  """Those of (params, model_state)."""
  inputs = jnp.zeros((1, *shape))
  key = jax.random.key(0)
  return jax.eval_shape(lambda: models.init(module, key, inputs))


def _size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


# In numpy, float64. ----------------------------------------------------------


def _convolve(x, params, strides=1, padding=None):
  """Padded to one pixel for each stride where nothing is said."""
  kernel = params['kernel']
  size = kernel.shape[0]
  pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
  if padding is None:
    total = [
      max(-(-n // strides) * strides - strides + size - n, 0) for n in x.shape
    ]
    pads[1:3] = [(n // 2, n - n // 2) for n in total[1:3]]
  windows = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, pads), (size, size), (1, 2)
  )[:, ::strides, ::strides]
  return np.einsum('mhwcij,ijco->mhwo', windows, kernel)


def _group_norm(x, params, statistics=None, num_groups=2):
  del statistics
  groups = x.reshape(*x.shape[:3], num_groups, -1)
  centred = groups - groups.mean((1, 2, 4), keepdims=True)
  squares = (centred**2).mean((1, 2, 4), keepdims=True)
  normalised = (centred / np.sqrt(squares + 1e-6)).reshape(x.shape)
  return normalised * params['scale'] + params['bias']


def _frozen_norm(x, params, statistics):
  normalised = (x - statistics['mean']) / np.sqrt(statistics['var'] + 1e-5)
  return normalised * params['scale'] + params['bias']


def _relu(x):
  return np.maximum(x, 0)


def _dense(x, params):
  return x @ params['kernel'] + params['bias']


def _network(params, statistics):
  """Layers by their paths: conv(x, path, ...), norm(x, path)."""
  name, norm = 'GroupNorm', _group_norm
  if statistics:
    name, norm = 'BatchNorm', _frozen_norm

  def at(tree, path):
    for part in path.split('/'):
      tree = tree.get(part, {})
    return tree

  def convolve(x, path, strides=1, padding=None):
    return _convolve(x, at(params, path), strides, padding)

  def normalise(x, path):
    path = path.replace('Norm', name)
    return norm(x, at(params, path), at(statistics, path))

  return convolve, normalise


def _resnet(params, statistics, x):
  """He et al. (2016): norm and relu before each convolution."""
  conv, norm = _network(params, statistics)
  x = conv(x, 'Conv_0')
  for i, strides in enumerate((1, 1, 2, 1, 2, 1)):
    block = f'_Block_{i}/'
    activated = _relu(norm(x, block + 'Norm_0'))
    first, second = 'Conv_0', 'Conv_1'
    if strides > 1:
      x = conv(activated, block + 'Conv_0', strides)
      first, second = 'Conv_1', 'Conv_2'
    y = conv(activated, block + first, strides)
    x = x + conv(_relu(norm(y, block + 'Norm_1')), block + second)
  features = _relu(norm(x, 'Norm_0')).mean((1, 2))
  return _dense(features, params['Dense_0'])


def _linear_head(features, params):
  return _dense(features, params['Dense_0'])


def _cosine_head(features, params):
  directions = params['CosineHead_0']['kernel']
  lengths = np.outer(
    np.linalg.norm(features, axis=1), np.linalg.norm(directions, axis=0)
  )
  return features @ directions / lengths


def _cifar_resnet(params, statistics, x, head=_linear_head):
  """He et al. (2015): relu after the sum, shortcuts padded with zeros."""
  conv, norm = _network(params, statistics)
  x = _relu(norm(conv(x, 'Conv_0', padding=1), 'Norm_0'))
  for i, strides in enumerate((1, 1, 2, 1, 2, 1)):
    block = f'_Block_{i}/'
    y = conv(x, block + 'Conv_0', strides, padding=1)
    y = _relu(norm(y, block + 'Norm_0'))
    y = norm(conv(y, block + 'Conv_1', padding=1), block + 'Norm_1')
    if strides > 1:
      some = np.zeros((*y.shape[:3], x.shape[-1] // 2))
      x = np.concatenate([some, x[:, ::2, ::2], some], -1)
    x = _relu(x + y)
  return head(x.mean((1, 2)), params)


def _bottleneck(params, statistics, x):
  """He et al. (2015), with the stride in the middle of a block."""
  conv, norm = _network(params, statistics)
  x = _relu(norm(conv(x, 'stem', 2, padding=3), 'stem_norm'))
  x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])  # all >= 0
  x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
  x = x[:, ::2, ::2].max((-1, -2))
  for stage, strides in ((1, 1), (2, 2)):
    for i in (1, 2):
      block = f'stage{stage}_block{i}/'
      y = _relu(norm(conv(x, block + 'Conv_0'), block + 'Norm_0'))
      y = conv(y, block + 'Conv_1', strides if i == 1 else 1, padding=1)
      y = _relu(norm(y, block + 'Norm_1'))
      y = norm(conv(y, block + 'Conv_2'), block + 'Norm_2')
      if i == 1:
        x = norm(conv(x, block + 'Conv_3', strides), block + 'Norm_3')
      x = _relu(x + y)
  return _dense(x.mean((1, 2)), params['head'])


@pytest.mark.parametrize('norm', ['group', 'frozen_batch'])
@pytest.mark.parametrize(
  ('module', 'second_way'),
  [
    (SMALL['resnet'], _resnet),
    (SMALL['cifar_resnet'], _cifar_resnet),
    (
      SMALL['cifar_resnet'].clone(head='cosine'),
      functools.partial(_cifar_resnet, head=_cosine_head),
    ),
    (SMALL['bottleneck'], _bottleneck),
  ],
  ids=['resnet', 'cifar_resnet', 'cosine head', 'bottleneck'],
)
def test_networks_are_those_of_the_papers(module, second_way, norm, key):
  """Layer by layer in numpy, on images of an odd and an even side."""
  module = module.clone(norm=norm)
  inputs = jax.random.normal(key, (2, 9, 12, 3))
  params, model_state = _random(_shapes(module, inputs.shape[1:]))
  apply_fn = models.make_apply_fn(module)
  outputs, _ = quick_jit(lambda *args: apply_fn(*args, train=False, rngs=None))(
    params, model_state, inputs
  )
  exact = jax.tree.map(
    functools.partial(np.asarray, dtype=np.float64),
    (params, model_state.get('batch_stats', {}), inputs),
  )
  expected = second_way(*exact)
  assert np.ptp(expected, axis=0).min() > 0
  np.testing.assert_allclose(
    outputs, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
  )


# What is known of their sizes. -----------------------------------------------


@pytest.mark.parametrize(
  ('module', 'shape', 'size'),
  [
    (models.wide_resnet(10), PHOTO, 1_467_610),
    (models.wide_resnet(10, norm='layer'), PHOTO, 1_467_610),
    (models.CifarResNet(10, depth=8), PHOTO, 75_290),
    (models.CifarResNet(10, depth=20), PHOTO, 269_722),
    (models.CifarResNet(10, norm='batch'), PHOTO, 464_154),
    (models.CifarResNet(10, head='cosine'), PHOTO, 464_144),
    (models.BottleneckResNet(1000, norm='batch'), (224, 224, 3), 25_557_032),
    (models.BottleneckResNet(1000), (64, 64, 3), 25_557_032),
    (models.BottleneckResNet(1000, (3, 4, 23, 3)), PHOTO, 44_549_160),
  ],
  ids=lambda value: None if isinstance(value, tuple) else str(value),
)
def test_sizes_are_those_that_are_published(module, shape, size):
  assert _size(_shapes(module, shape)[0]) == size


@pytest.mark.parametrize(
  ('channels', 'width', 'blocks_per_stage'), [(1, 16, 1), (3, 16, 1), (3, 8, 2)]
)
def test_resnet_has_the_parameters_of_its_layers(
  channels, width, blocks_per_stage
):
  """Added up by hand from the paper's figure."""
  module = models.ResNet(K, width=width, blocks_per_stage=blocks_per_stage)
  size, fan_in = 9 * channels * width, width
  for fan_out in (width, 2 * width, 4 * width):
    for _ in range(blocks_per_stage):
      norms = 2 * fan_in + 2 * fan_out
      shortcut = fan_in * fan_out if fan_in != fan_out else 0
      size += norms + 9 * fan_in * fan_out + 9 * fan_out**2 + shortcut
      fan_in = fan_out
  size += 2 * fan_in + (fan_in + 1) * K
  assert _size(_shapes(module, (8, 8, channels))[0]) == size


def test_resnet_of_two_blocks_is_wrn_16_1():
  resnet = models.ResNet(K, blocks_per_stage=2)
  wide = models.wide_resnet(K, depth=16, width_factor=1)
  assert wide.clone(stem_width=None) == resnet
  assert _shapes(wide, PHOTO) == _shapes(resnet, PHOTO)


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


# Norms. ----------------------------------------------------------------------


class _Norm(nn.Module):
  """A norm alone."""

  norm: str

  @nn.compact
  def __call__(self, x, train=False):
    return layers.norm_layer(self.norm, num_groups=2, train=train)()(x)


def _apply_norm(norm, x, train):
  """(outputs, params, statistics before, statistics after)."""
  module = _Norm(norm)
  params, model_state = _random(_shapes(module, x.shape[1:]))
  apply_fn = models.make_apply_fn(module)
  outputs, new_state = quick_jit(
    lambda *args: apply_fn(*args, train=train, rngs=None)
  )(params, model_state, x)
  [params] = params.values()
  statistics = (
    list(state['batch_stats'].values())[0] if state else None
    for state in (model_state, new_state)
  )
  return outputs, params, *statistics


@pytest.mark.parametrize(
  ('norm', 'axes', 'epsilon'),
  [
    ('group', (1, 2, 4), 1e-6),
    ('layer', (1, 2, 3, 4), 1e-6),
    ('batch', (0, 1, 2), 1e-5),
  ],
)
def test_norms_average_over_their_axes_and_scale_channels(
  norm, axes, epsilon, key
):
  """Of [m, H, W, groups, channels]."""
  x = 3 + 2 * jax.random.normal(key, (3, 4, 5, 6))
  outputs, params, *_ = _apply_norm(norm, x, train=True)
  groups = np.asarray(x, np.float64).reshape(3, 4, 5, 2, 3)
  centred = groups - groups.mean(axes, keepdims=True)
  squares = (centred**2).mean(axes, keepdims=True)
  normalised = (centred / np.sqrt(squares + epsilon)).reshape(x.shape)
  expected = normalised * params['scale'] + params['bias']
  np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('norm', 'train'),
  [('batch', False), ('frozen_batch', False), ('frozen_batch', True)],
)
def test_running_averages_normalise_and_stay(norm, train, key):
  x = jax.random.normal(key, (3, 4, 5, 6))
  outputs, params, old, new = _apply_norm(norm, x, train)
  expected = _frozen_norm(np.asarray(x, np.float64), params, old)
  np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, old, new)


def test_batch_norm_moves_its_averages_by_a_tenth(key):
  x = jax.random.normal(key, (3, 4, 5, 6))
  _, _, old, new = _apply_norm('batch', x, train=True)
  for name, of_batch in (
    ('mean', x.mean((0, 1, 2))),
    ('var', x.var((0, 1, 2))),
  ):
    expected = 0.9 * old[name] + 0.1 * of_batch
    np.testing.assert_allclose(new[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('family', SMALL)
def test_only_batch_norm_mixes_examples_and_only_in_training(family, key):
  """And moves the state only then."""
  inputs = jax.random.normal(key, (3, 8, 8, 1))
  others = inputs.at[1:].set(3 * inputs[1:] - 1)

  @quick_jit
  def run():
    results = {}
    for norm, train in (
      ('batch', True),
      ('batch', False),
      ('frozen_batch', True),
    ):
      module = SMALL[family].clone(norm=norm)
      params, model_state = _random(_shapes(module, inputs.shape[1:]))
      apply_fn = functools.partial(
        models.make_apply_fn(module), train=train, rngs=None
      )
      outputs, new_states = jax.vmap(apply_fn, (None, None, 0))(
        params, model_state, jnp.stack([inputs, others])
      )
      moved = jax.tree.map(
        lambda old, new: (old[None] != new).any(), model_state, new_states
      )
      results[norm, train] = outputs[:, 0], moved
    return results

  for (norm, train), ((alone, in_others), moved) in run().items():
    mixes = norm == 'batch' and train
    difference = np.abs(alone - in_others).max() / np.abs(alone).max()
    assert difference > 1e-2 if mixes else difference < 1e-5, (norm, train)
    assert set(map(bool, jax.tree.leaves(moved))) == {mixes}


# Bad settings. ---------------------------------------------------------------


@pytest.mark.parametrize('family', SMALL)
def test_unknown_norms_are_refused(family):
  module = SMALL[family].clone(norm='instance')
  with pytest.raises(
    ValueError, match="norm must be one of 'group'.*'instance'"
  ):
    _shapes(module, PHOTO)


@pytest.mark.parametrize('depth', [27, 4, 2, -2, 0, 28.0])
def test_wide_resnets_have_the_depths_6n_plus_4(depth):
  with pytest.raises(ValueError, match='depth must be .*; got'):
    models.wide_resnet(K, depth=depth)


@pytest.mark.parametrize(
  ('depth', 'examples'), [(33, '32 or 38'), (2, '8 or 14'), (1, '8 or 14')]
)
def test_cifar_resnets_have_the_depths_6n_plus_2(depth, examples):
  match = rf'depth must be 6 n \+ 2 .* such as {examples}; got {depth}'
  with pytest.raises(ValueError, match=match):
    _shapes(models.CifarResNet(K, depth=depth), PHOTO)


def test_other_bad_settings_are_refused():
  with pytest.raises(ValueError, match="head must be one of .*; got 'sine'"):
    _shapes(models.CifarResNet(K, head='sine'), PHOTO)
  with pytest.raises(ValueError, match='width_factor must be an integer'):
    models.wide_resnet(K, width_factor=0)
