"""experiments/studies/robust_gradient.py: noise and bias of ABSGD's step."""

import csv
import itertools
import math
import re

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import settings, sweep
from experiments.studies import robust_gradient
from experiments.studies.robust_gradient_report import OPTIMAL, SCORES, UNIFORM
import isjax
from isjax import alias, data

CONFIG = 'configs/robust_gradient.py'
SIGMAS = 4
BATCH_SIZE = 2


@pytest.fixture
def examples():
  """Losses f64[5], gradients f64[5, 3] and a law that is far from uniform."""
  random = np.random.RandomState(0)
  losses = np.array([0.1, 2.0, 0.7, 1.5, 0.0])
  gradients = random.normal(size=(5, 3))
  law = np.array([0.4, 0.1, 0.2, 0.05, 0.25])
  return losses, gradients, law


def at(examples, temperature):
  """The Examples of the study; scores are those of the best laws."""
  losses, gradients, _ = examples
  powers = np.exp(losses / temperature)
  target = powers / powers.sum()
  norms = np.linalg.norm(gradients, axis=1)
  by_score = {'gradient norm': norms, OPTIMAL: target * norms}
  return robust_gradient.Examples(
    losses, target, gradients, target @ gradients, by_score
  )


def config_of(*arguments):
  _, config, _ = settings.load(CONFIG, arguments)
  return {k: v for k, v in config.items() if k != 'sweep'}


# --- with the exact u ---------------------------------------------------------


@pytest.mark.parametrize('temperature', [0.5, 5.0, -1.0])
def test_closed_forms_are_those_of_all_batches(examples, temperature):
  """Mean, noise, and the scale that weights left out of u leave."""
  losses, gradients, law = examples
  shown = at(examples, temperature)
  powers = np.exp(losses / temperature)
  batches = [list(b) for b in itertools.product(range(5), repeat=BATCH_SIZE)]
  chances = np.array([law[b].prod() for b in batches])
  weighted = (powers / (5 * law))[:, None] * gradients
  steps = np.array([weighted[b].mean(0) for b in batches])
  right, wrong = steps / powers.mean(), steps / (law @ powers)
  mean = chances @ right
  np.testing.assert_allclose(mean, shown.exact, rtol=1e-12)
  noise = chances @ np.square(right - mean).sum(1) / (mean @ mean)
  found = robust_gradient._exact_u({'batch_size': BATCH_SIZE}, shown, law)
  assert found['noise'] == pytest.approx(noise, rel=1e-9)
  np.testing.assert_allclose(
    chances @ wrong, found['wrong_scale'] * mean, rtol=1e-9
  )
  assert found['wrong_bias'] == pytest.approx(abs(found['wrong_scale'] - 1))


@pytest.mark.parametrize('temperature', [0.5, -1.0])
def test_no_law_is_less_noisy_than_the_tilted_norm(examples, temperature):
  """(sum p* |g|)^2 - |G|^2 is reached by it, and by no other."""
  shown = at(examples, temperature)
  laws = robust_gradient.laws(shown.scores, 0.25)
  assert len(laws) == 1 + 2 * 2
  noises = {}
  for name, law in laws.items():
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-12)
    found = robust_gradient._exact_u({'batch_size': 1}, shown, law)
    noises[name] = found['noise']
  norms = np.linalg.norm(shown.gradients, axis=1)
  least = (shown.target @ norms) ** 2 / (shown.exact @ shown.exact) - 1
  assert noises.pop((OPTIMAL, 0.0)) == pytest.approx(least)
  assert min(noises.values()) > least
  np.testing.assert_allclose(
    laws[OPTIMAL, 0.25], 0.75 * laws[OPTIMAL, 0.0] + 0.25 / 5
  )


# --- with the moving u --------------------------------------------------------


def test_the_softmax_over_the_full_set_is_exact(examples):
  """At gamma 1, every example once: the gradient of F by jax.grad."""
  losses, gradients, _ = (jnp.asarray(a, jnp.float32) for a in examples)

  def objective(x):
    return 0.7 * (jax.nn.logsumexp((losses + gradients @ x) / 0.7) - np.log(5))

  tx = robust_gradient.transform(5, 0.7, 1.0)

  @jax.jit
  def step():
    return tx.update(
      isjax.PerExample.from_stacked(losses, gradients),
      tx.init(None),
      probabilities=jnp.full(5, 1 / 5),
    )[0]

  expected = jax.grad(objective)(jnp.zeros(3))
  np.testing.assert_allclose(step(), expected, rtol=1e-5)


def simulate(key, examples, gamma, num_settling, size):
  losses, _, law = examples
  chains = robust_gradient.simulate(
    key,
    alias.build(law.astype(np.float32)),
    losses.astype(np.float32),
    0.5,
    gamma,
    num_settling,
    num_chains=size,
    num_batches=50,
    batch_size=BATCH_SIZE,
  )
  return jax.tree.map(np.asarray, chains)


def test_chains_agree_with_numpy(examples, key):
  """u of all batches so far, with weights and without; draws by the law."""
  losses, _, law = examples
  chains = simulate(key, examples, 0.2, 0, 200)
  powers = np.exp(losses / 0.5)
  for weights, found in (
    (1 / (5 * law), chains.coefficients),
    (np.ones(5), chains.wrong),
  ):
    for indices, coefficients in zip(
      chains.indices[:3], found[:3], strict=True
    ):
      u = None
      for batch, of_batch in zip(indices, coefficients, strict=True):
        mean = (weights * powers)[batch].mean()
        u = mean if u is None else 0.8 * u + 0.2 * mean
        expected = powers[batch] / (5 * law[batch]) / u / BATCH_SIZE
        np.testing.assert_allclose(of_batch, expected, rtol=1e-5)
  counts = np.bincount(chains.indices.ravel(), minlength=5)
  total = counts.sum()
  deviations = np.sqrt(total * law * (1 - law))
  assert (abs(counts - total * law) < SIGMAS * deviations).all()


def test_the_bias_goes_down_with_gamma(examples, key):
  """And all else to the closed forms, but for terms of gamma var(u) / u^2."""
  losses, _, law = examples
  shown = at(examples, 0.5)
  config = {'batch_size': BATCH_SIZE, 'noise_every': 1}
  gammas = 1.0, 0.1, 0.01, 0.001
  rows = [
    robust_gradient._moving_u(
      config, shown, simulate(key, examples, gamma, math.ceil(7 / gamma), 200)
    )
    for gamma in gammas
  ]
  for more, less in itertools.pairwise(rows[:3]):
    error = math.hypot(more['bias_error'], less['bias_error'])
    assert more['bias'] - less['bias'] > SIGMAS * error
  exact = robust_gradient._exact_u(config, shown, law)
  powers = np.exp(losses / 0.5)
  for prefix, weighted in (('', powers / (5 * law)), ('wrong_', powers)):
    spread = law @ weighted**2 / (law @ weighted) ** 2 - 1
    small = 2 * gammas[-1] * spread / BATCH_SIZE
    assert small < 0.01
    difference = rows[-1][f'{prefix}scale'] - exact[f'{prefix}scale']
    error = SIGMAS * rows[-1][f'{prefix}scale_error']
    assert abs(difference) < error + small * exact[f'{prefix}scale']
  difference = rows[-1]['noise'] - exact['noise']
  error = SIGMAS * rows[-1]['noise_error']
  assert abs(difference) < error + 0.02 * exact['noise']


def test_mean_steps_and_deviations_by_hand(examples):
  """Sums over chains, batches and draws, one by one."""
  _, gradients, _ = examples
  random = np.random.RandomState(1)
  indices = random.randint(0, 5, (3, 4, 2))
  coefficients = random.normal(size=(3, 4, 2))
  steps = (coefficients[..., None] * gradients[indices]).sum(2)
  np.testing.assert_allclose(
    robust_gradient.mean_steps(indices, coefficients, gradients),
    steps.mean(1),
    rtol=1e-12,
  )
  center = random.normal(size=3)
  np.testing.assert_allclose(
    robust_gradient.squared_deviations(
      indices, coefficients, gradients, center
    ),
    np.square(steps - center).sum(2),
    rtol=1e-12,
  )


def test_errors_of_chains():
  """Against all pairs of chains, and all sets without one of them."""
  random = np.random.RandomState(2)
  exact = np.array([3.0, 4.0])
  means = exact + np.array([0.6, 0.0]) + 0.3 * random.normal(size=(8, 2))

  def squared(chosen):
    products = [
      (means[i] - exact) @ (means[j] - exact)
      for i, j in itertools.permutations(chosen, 2)
    ]
    return np.mean(products) / 25

  every = squared(range(8))
  without = np.array([squared(set(range(8)) - {i}) for i in range(8)])
  error = np.sqrt(7 * np.mean(np.square(without - without.mean())))
  bias, scale = robust_gradient.errors(means, exact)
  assert bias.value == pytest.approx(np.sqrt(every))
  assert bias.error == pytest.approx(np.sqrt(every + error) - bias.value)
  along = means @ exact / 25
  assert scale == pytest.approx((along.mean(), along.std(ddof=1) / np.sqrt(8)))
  assert robust_gradient.errors(np.tile(2 * exact, (4, 1)), exact) == (
    (pytest.approx(1), pytest.approx(0)),
    (pytest.approx(2), pytest.approx(0)),
  )


def test_noise_alone_is_no_bias():
  """The estimate of |bias|^2 is 0 on average; so half of them are cut off."""
  random = np.random.RandomState(3)
  exact = np.ones(50)
  found = [
    robust_gradient.errors(exact + random.normal(size=(16, 50)), exact).bias
    for _ in range(400)
  ]
  share = np.mean([bias.value == 0 for bias in found])
  assert abs(share - 0.5) < SIGMAS * 0.5 / 20 + 0.05  # it is a little skew
  within = np.mean([bias.value <= SIGMAS * bias.error for bias in found])
  assert within > 0.95


# --- sets and runs ------------------------------------------------------------


def test_a_share_of_the_labels_is_flipped():
  """Just so many, each to another class; the images stay."""
  config = config_of()
  clean = robust_gradient.SETS['digits'](config)
  noisy = robust_gradient.SETS['noisy digits'](config)
  labels, _ = data.load('digits', 'train')
  np.testing.assert_array_equal(clean.targets, labels.targets)
  differ = np.asarray(clean.targets != noisy.targets)
  assert differ.sum() == round(0.2 * len(differ))
  assert set(np.asarray(noisy.targets).tolist()) == set(range(10))
  np.testing.assert_array_equal(clean.inputs, noisy.inputs)


def read_csv(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_a_run_from_the_command_line(tmp_path, monkeypatch, capsys):
  """Tables and figures; the set without a file is left out in one line."""
  monkeypatch.delenv('ISJAX_DATA_DIR', raising=False)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  arguments = [
    *(CONFIG, f'--folder={tmp_path}', '--config.steps=(20,)'),
    *('--config.temperatures=(-1.0,0.5)', '--config.gammas=(1.0,0.1)'),
    *('--config.num_chains=4', '--config.num_batches=8', '--config.hidden=()'),
    "--config.sweep.data=('digits', 'mnist')",
  ]
  assert sweep.main(arguments) == 0
  text = (tmp_path / 'table.md').read_text()
  for word in ('## digits', 'training steps 20:', 'γ = 0.1', 'Commit: '):
    assert word in text
  assert re.search('- mnist: left out. .* ISJAX_DATA_DIR names.', text)
  assert text.rstrip() in capsys.readouterr().out
  rows = read_csv(tmp_path / 'rows.csv')
  assert len(rows) == 2 * 11 * 3
  for row in rows:
    if row['law'] == UNIFORM:
      assert float(row['relative_noise']) == 1
      assert float(row['wrong_bias']) == pytest.approx(float(row['bias']))
  for name in ('noise', 'bias'):
    assert matplotlib.image.imread(tmp_path / f'{name}.png').std() > 0.05


def test_what_all_examples_show():
  """Of a linear model, by numpy; F's gradient is the mean under p*."""
  config = config_of('--config.hidden=()')
  images = robust_gradient.SETS['digits'](config)
  batch = jax.tree.map(lambda a: a[:20], images)
  state, _, at_all_examples = robust_gradient._program(config, batch)
  labels = np.asarray(batch.targets)
  pixels = np.asarray(batch.inputs, np.float64)
  kernel, bias = (
    np.asarray(state.params['Dense_0'][name]) for name in ('kernel', 'bias')
  )
  powers = np.exp(pixels @ kernel + bias)
  p = powers / powers.sum(1, keepdims=True)
  losses = -np.log(p[np.arange(20), labels])
  residuals = p - np.eye(10)[labels]
  logit_norms = np.linalg.norm(residuals, axis=1)
  norms = logit_norms * np.sqrt(np.square(pixels).sum(1) + 1)
  for temperature in (0.5, -1.0, 1e6):
    found = at_all_examples(state.params, batch, temperature)
    tilts = np.exp(losses / temperature)
    target = tilts / tilts.sum()
    np.testing.assert_allclose(found.target, target, rtol=1e-5)
    expected = losses, logit_norms, norms, logit_norms * tilts, norms * target
    for name, values in zip(SCORES, expected, strict=True):
      np.testing.assert_allclose(found.scores[name], values, rtol=1e-4)
    mean = target @ np.asarray(found.gradients)
    np.testing.assert_allclose(found.exact, mean, atol=1e-6 * abs(temperature))
    np.testing.assert_allclose(
      np.linalg.norm(found.gradients, axis=1), norms, rtol=1e-4
    )
  np.testing.assert_allclose(target, 1 / 20, rtol=1e-4)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ('data=digit', 'data must be one of digits, mnist, noisy digits'),
    ('batch_size=0', 'batch_size must be at least 1'),
    ('num_chains=2', 'num_chains must be at least 3'),
    ('num_batches=0', 'num_batches must be at least 1'),
    ('noise_every=0', 'noise_every must be at least 1'),
    ('learning_rate=0.0', 'learning_rate must be positive'),
    ('hidden=(0,)', 'hidden must be widths'),
    ('steps=()', 'steps must be increasing integers'),
    ('temperatures=(0.0,)', r'temperatures must be .*; got \(0.0,\)'),
    ('temperatures=()', 'temperatures must be numbers other than 0'),
    ('gammas=(0.0,)', r'gammas must be numbers in \(0, 1\]'),
    ('gammas=(2.0,)', r'gammas must be .*; got \(2.0,\)'),
    ('mix=0.0', r'mix must be in \(0, 1\]'),
    ('flipped_share=2.0', r'flipped_share must be in \[0, 1\]'),
  ],
)
def test_a_bad_setting_is_one_line(change, message, tmp_path, capsys):
  """Status 2, and nothing was written."""
  folder = tmp_path / 'runs'
  arguments = [CONFIG, f'--config.{change}', f'--folder={folder}']
  assert sweep.main(arguments) == 2
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith('error: ')
  assert re.search(message, last), last
  assert not folder.exists()
