"""experiments/studies/normalisation: the bias of weighted gradients."""

import csv
import functools
import pathlib
import re

from flax import linen as nn
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

from experiments import settings, sweep
from experiments.studies import normalisation, normalisation_report
import isjax
from isjax import alias
from isjax.models import ResNet, init, make_apply_fn

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / 'configs/normalisation.py')
N, K = 24, 3
SIGMAS = 4
loss_fn = optax.softmax_cross_entropy_with_integer_labels


class Tiny(nn.Module):
  """A dense network with a norm, in the place of the residual one."""

  num_classes: int = K
  width: int = 8
  norm: str = 'none'

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(self.width)(x.reshape(x.shape[0], -1))
    if self.norm == 'batch':
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    elif self.norm == 'layer':
      x = nn.LayerNorm()(x)
    elif self.norm == 'group':
      x = nn.GroupNorm(2)(x)
    return nn.Dense(self.num_classes)(nn.relu(x))


@functools.cache
def task(norm):
  """Returns apply_fn, params, model_state and data.

  The later examples have the larger inputs.
  """
  random = np.random.RandomState(0)
  inputs = random.normal(size=(N, 4)) + np.linspace(-2, 2, N)[:, None]
  data = isjax.Batch(jnp.asarray(inputs, jnp.float32), jnp.arange(N) % K)
  model = Tiny(norm=norm)
  variables = init(model, jax.random.key(1), data.inputs[:1])
  return make_apply_fn(model), *variables, data


@pytest.fixture
def law():
  """Prefers the later ones."""
  return (1 + np.arange(N)) / (N * (N + 1) / 2)


def repeated(gradient, model, weights, key, num_repeats=32):
  """The estimate in independent repeats, f64[G, P]."""
  table = alias.build(jnp.asarray(weights, jnp.float32))
  keys = jax.random.split(key, num_repeats)
  return np.array([gradient(*model, table, k) for k in keys], np.float64)


def gradients_of(apply_fn, params, model_state, data):
  """Of each example on its own, f64[N, P]."""

  def gradient(x, y):
    def loss(params):
      logits, _ = apply_fn(params, model_state, x[None], train=False, rngs=None)
      return loss_fn(logits[0], y)

    return ravel_pytree(jax.grad(loss)(params))[0]

  rows = jax.jit(jax.vmap(gradient))(data.inputs, data.targets)
  return np.asarray(rows, np.float64)


# --- the comparison -----------------------------------------------------------


def test_without_noise_the_bias_is_the_distance():
  """(3, 4) from (0, 2), relative to that: sqrt(13) / 2."""
  a, b = np.tile([3.0, 4.0], (5, 1)), np.tile([0.0, 2.0], (5, 1))
  found = normalisation.compare(a, b)
  np.testing.assert_allclose(found, [np.sqrt(13) / 2, 0, 0], atol=1e-12)
  assert normalisation.compare(b, b).bias == 0


def test_what_two_estimates_share_is_no_noise():
  """Draws in common cancel in the difference."""
  noise = np.random.RandomState(0).normal(size=(32, 5))
  b = 1 + 0.1 * noise
  assert normalisation.compare(b + 0.01, b).floor < 1e-9


@pytest.mark.parametrize('scales', [[1.0], [1.0, 0.5, 0.2], np.ones(50)])
def test_noise_alone_seldom_exceeds_the_floor(scales):
  """In one of 30 measurements or fewer; yet the estimate is not all zeros."""
  random = np.random.RandomState(0)
  b = np.zeros((32, len(scales)))
  b[:, 0] = 5
  found = [
    normalisation.compare(b + scales * random.normal(size=b.shape), b)
    for _ in range(600)
  ]
  rate = np.mean([bias > floor for bias, _, floor in found])
  assert rate < 1 / 30 + SIGMAS * np.sqrt(1 / 30 / 600)
  assert 0.2 < np.mean([bias > 0 for bias, _, _ in found]) < 0.6


def test_standard_errors_are_those_of_the_bias():
  """Noise in either estimate, dependent; the bias is 0.3 exactly."""
  random = np.random.RandomState(0)
  scores = []
  for _ in range(400):
    b = 1 + 0.5 * random.normal(size=(32, 20))
    a = 0.7 * b + 0.1 * random.normal(size=(32, 20))
    bias, error, _ = normalisation.compare(a, b)
    scores.append((bias - 0.3) / error)
  assert abs(np.mean(scores)) < SIGMAS / np.sqrt(400)
  assert 0.9 < np.std(scores) < 1.2


def test_gradients_lost_in_noise_are_one_line():
  """With the settings to change."""
  b = np.array([[1.0], [-1.0], [0.0]])
  with pytest.raises(settings.SettingsError, match='raise num_repeats or'):
    normalisation.compare(b + 1, b)


# --- the estimates ------------------------------------------------------------


def test_every_batch_passes_on_its_own(law, key):
  """The mean over batches, one by one, each with its own statistics."""
  apply_fn, *model = task('batch')
  params, model_state, data = model
  table = alias.build(jnp.asarray(law, jnp.float32))
  gradient = normalisation.weighted_gradient(apply_fn, 4, 5, train=True)
  indices = np.asarray(alias.sample(key, table, (5, 4)))

  @jax.jit
  def gradient_of(drawn):
    def loss(params):
      outputs, _ = apply_fn(
        params, model_state, data.inputs[drawn], train=True, rngs=None
      )
      weights = 1 / (N * jnp.asarray(law)[drawn])
      return jnp.mean(weights * loss_fn(outputs, data.targets[drawn]))

    return ravel_pytree(jax.grad(loss)(params))[0]

  expected = np.mean([gradient_of(drawn) for drawn in indices], 0)
  np.testing.assert_allclose(
    gradient(*model, table, key), expected, rtol=1e-4, atol=1e-6
  )


def test_no_bias_without_a_norm_and_the_known_one_without_weights(
  law, key, monkeypatch
):
  """Below the floor; and |sum p g - mean g| / |mean g| within 4 errors."""
  apply_fn, *model = task('none')
  gradients = gradients_of(apply_fn, *model)

  def found():
    gradient = normalisation.weighted_gradient(apply_fn, 4, 64, train=True)
    return normalisation.compare(
      repeated(gradient, model, law, key),
      repeated(gradient, model, np.ones(N), key),
    )

  unbiased = found()
  assert unbiased.bias <= unbiased.floor < 0.2
  monkeypatch.setattr(
    normalisation, 'importance_weights', lambda p, _: jnp.ones_like(p)
  )
  biased = found()
  mean = gradients.mean(0)
  exact = np.linalg.norm(law @ gradients - mean) / np.linalg.norm(mean)
  assert abs(biased.bias - exact) < SIGMAS * biased.standard_error
  assert biased.bias > 2 * biased.floor


def test_batch_statistics_are_biased_and_running_ones_are_not(law, key):
  """The law tells the statistics of the batch from those of the set."""
  apply_fn, *model = task('batch')
  for statistics, train in normalisation.NORMS['batch'].items():
    gradient = normalisation.weighted_gradient(apply_fn, 4, 64, train=train)
    bias, error, floor = normalisation.compare(
      repeated(gradient, model, law, key),
      repeated(gradient, model, np.ones(N), key),
    )
    if statistics == normalisation.OF_BATCH:
      assert bias > floor + SIGMAS * error
    else:
      assert bias <= floor


def test_under_statistics_of_the_example_the_batch_size_is_nothing(law, key):
  """The same draws, as 16 batches and as one."""
  apply_fn, *model = task('group')
  table = alias.build(jnp.asarray(law, jnp.float32))
  gradients = [
    normalisation.weighted_gradient(apply_fn, b, 64 // b, train=True)(
      *model, table, key
    )
    for b in (4, 64)
  ]
  np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_the_law_is_that_of_running_statistics():
  """By |softmax - one-hot| in evaluation, a tenth of it uniform."""
  apply_fn, params, model_state, data = task('batch')
  model_state = jax.tree.map(lambda leaf: leaf + 0.5, model_state)
  got, loss = normalisation._law(apply_fn, 0.1)(params, model_state, data)

  @jax.jit
  @jax.vmap
  def output(x):
    return apply_fn(params, model_state, x[None], train=False, rngs=None)[0][0]

  outputs = output(data.inputs)
  residual = jax.nn.softmax(outputs) - jax.nn.one_hot(data.targets, K)
  scores = np.linalg.norm(residual, axis=1)
  expected = 0.9 * scores / scores.sum() + 0.1 / N
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  expected = loss_fn(outputs, data.targets).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('norm', normalisation.NORMS)
def test_the_residual_network_has_every_norm(norm):
  """Only BatchNorm has a state."""
  _, state = jax.eval_shape(
    lambda key: init(ResNet(10, 8, norm=norm), key, jnp.ones((1, 8, 8, 1))),
    jax.random.key(0),
  )
  assert list(state) == (['batch_stats'] if norm == 'batch' else [])


# --- from the command line ----------------------------------------------------


def test_a_study_from_the_command_line(monkeypatch, tmp_path, capsys):
  """Two tables and a figure."""
  monkeypatch.setattr(normalisation, 'ResNet', Tiny)
  arguments = [
    *(CONFIG, f'--folder={tmp_path}', '--config.num_examples=24'),
    *('--config.steps=(0,4)', '--config.batch_sizes=(8,)'),
    *('--config.num_repeats=8', '--config.examples_per_repeat=64'),
    "--config.sweep.norm=('batch',)",
  ]
  assert sweep.main(arguments) == 0
  text = (tmp_path / 'table.md').read_text()
  assert text.rstrip() in capsys.readouterr().out
  for words in (
    '| norm | statistics | step | loss | tau | b | bias, % | floor |',
    '| step | b | uniform, % | floor | importance, % | floor |',
    'the weighted gradient is off by ',
    'of 2 measurements are above their floors',
  ):
    assert words in text
  with (tmp_path / 'rows.csv').open() as file:
    rows = list(csv.DictReader(file))
  found = [(row['statistics'], row['step'], row['batch_size']) for row in rows]
  assert found == [
    ('running', '0', ''),
    ('of the batch', '0', '8'),
    ('running', '4', ''),
    ('of the batch', '4', '8'),
  ]
  assert float(rows[-1]['loss']) < float(rows[0]['loss'])
  assert matplotlib.image.imread(tmp_path / 'bias.png').std() > 0.05


def test_a_bias_below_its_floor_is_told_so():
  """And one above it comes with its error."""
  row = {'bias': 0.05, 'standard_error': 0.02, 'floor': 0.06}
  assert normalisation_report._cells(row) == ['< floor', '6.0']
  row['bias'] = 0.5
  assert normalisation_report._cells(row) == ['50.0 ± 2.0', '6.0']


def test_the_verdict_is_on_trained_networks():
  """Its range leaves step 0 out, its count the statistics of the batch."""
  rows = [
    {'bias': bias, 'floor': 0.1, 'step': step, 'batch_size': size}
    for bias, step, size in (
      (0.01, 0, 8),
      (0.4, 5, 8),
      (0.6, 9, 32),
      (0.2, 9, None),
      (0.1, 9, None),
    )
  ]
  text = normalisation_report._verdict(rows)
  assert 'off by 40% to 60%,' in text
  assert '1 of 2 measurements' in text


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('norm=none', 'norm must be one of batch, group, layer'),
    ('num_examples=0', 'num_examples must be at least 1'),
    ('width=12', 'width must be a positive multiple of 8; got 12'),
    ('batch_size=0', 'batch_size must be at least 1'),
    ('learning_rate=0.0', 'learning_rate must be positive'),
    ('steps=(5,5)', r'steps must be increasing .*; got \(5, 5\)'),
    ('mix=0.0', r'mix must be in \(0, 1\]'),
    ('num_repeats=2', 'num_repeats must be at least 3'),
    ('batch_sizes=(8,100)', 'divisors of examples_per_repeat, 1024; got'),
    ('batch_sizes=()', r'batch_sizes must be .*; got \(\)'),
  ],
)
def test_a_bad_setting_is_one_line(argument, message, tmp_path, capsys):
  """Status 2, and nothing was written."""
  folder = tmp_path / 'runs'
  arguments = [CONFIG, f'--config.{argument}', f'--folder={folder}']
  assert sweep.main(arguments) == 2
  *_, last = capsys.readouterr().err.splitlines()
  assert re.search(message, last), last
  assert not folder.exists()
