"""experiments/studies/score_quality: exact errors, draws, table and figures."""

import csv
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import settings, studies, sweep
from experiments.studies import (
  score_quality,
  score_quality_report,
)
from experiments.studies import (
  score_quality_estimates as estimates,
)
import isjax
from isjax import alias, data, weights
from isjax.models import LSTM, init, make_apply_fn
from isjax.scores import DRAW_SCORES, SCORES

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / 'configs/score_quality.py')
SIGMAS = 4
NAMES = {'uniform', *SCORES, *DRAW_SCORES}
SMALL = (
  '--config.problems.digits_mlp.steps=(0,20)',
  '--config.subset_size=64',
  '--config.batch_size=8',
  '--config.pool_size=32',
  '--config.num_batches=20000',
  '--config.mix=1.0',
)


def gradients_of(size, *, centred=False):
  """Gradients f64[size, 3] of very different lengths, and scores like them."""
  random = np.random.RandomState(size)
  gradients = random.normal(size=(size, 3)) * random.exponential(size=(size, 1))
  if centred:
    gradients[size // 2 :] = -gradients[: size // 2]
  scores = np.linalg.norm(gradients, axis=1) * random.uniform(0.5, 2, size)
  return gradients, scores.astype(np.float32)


def relative_tau(errors, pool_size):
  """The tau of a mean pool: 1/tau^2 = 1/B + (1 - 1/B) V(p)/V(u)."""
  ratio = errors.variance / errors.uniform_variance
  return (1 / pool_size + (1 - 1 / pool_size) * ratio) ** -0.5


# --- exact errors -------------------------------------------------------------


@pytest.mark.parametrize('shape', [(6, 40), (40, 6), (1, 3)])
def test_the_span_keeps_lengths_and_angles(shape):
  """All inner products, and each length to within rounding of itself."""
  random = np.random.RandomState(0)
  gradients = random.normal(size=shape) * 10.0 ** -np.arange(shape[0])[:, None]
  spanned = estimates.in_their_span(gradients.astype(np.float32))
  gradients = gradients.astype(np.float32).astype(np.float64)
  assert spanned.shape == (shape[0], min(shape))
  np.testing.assert_allclose(
    np.linalg.norm(spanned, axis=1),
    np.linalg.norm(gradients, axis=1),
    rtol=1e-12,
  )
  lengths = np.linalg.norm(gradients, axis=1)
  np.testing.assert_allclose(
    spanned @ spanned.T / np.outer(lengths, lengths),
    gradients @ gradients.T / np.outer(lengths, lengths),
    atol=1e-12,
  )


@pytest.mark.parametrize('zeros', [(), (1,), (0, 3)])
@pytest.mark.parametrize('batch_size', [1, 3])
def test_error_of_a_batch_is_that_of_all_batches(zeros, batch_size):
  """Also where some examples are never drawn, and the estimate is biased."""
  gradients, scores = gradients_of(4)
  scores[list(zeros)] = 0
  law = scores.astype(np.float64) / scores.sum(dtype=np.float64)
  expected = 0.0
  for batch in itertools.product(np.flatnonzero(law), repeat=batch_size):
    batch = list(batch)
    estimate = (gradients[batch] / (4 * law[batch, None])).mean(0)
    square = np.sum((estimate - gradients.mean(0)) ** 2)
    expected += law[batch].prod() * square
  errors = estimates.exact(law, gradients)
  assert (errors.squared_bias > 0) == bool(zeros)
  np.testing.assert_allclose(errors.of_batch(batch_size), expected, rtol=1e-9)


@pytest.mark.parametrize(('batch_size', 'pool_size'), [(1, 3), (2, 3), (2, 2)])
def test_error_of_a_pool_is_that_of_all_pools(batch_size, pool_size):
  """Every pool of B from 3 examples, and every batch of b from each."""
  gradients, scores = gradients_of(3)
  scores = scores.astype(np.float64)
  expected = 0.0
  for pool in itertools.product(range(3), repeat=pool_size):
    chances = scores[list(pool)] / scores[list(pool)].sum()
    weighted = gradients[list(pool)] / (pool_size * chances[:, None])
    for batch in itertools.product(range(pool_size), repeat=batch_size):
      batch = list(batch)
      error = weighted[batch].mean(0) - gradients.mean(0)
      expected += chances[batch].prod() / 3**pool_size * (error @ error)
  errors = estimates.exact(scores / scores.sum(), gradients)
  found = errors.of_pool(batch_size, pool_size)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_pool_of_a_zero_mean_gradient_is_the_formula_of_tau():
  """By the norms: V(u) / V(pool) is `equivalent_batch_size` of its tau."""
  gradients, _ = gradients_of(40, centred=True)
  norms = np.linalg.norm(gradients, axis=1)
  errors = estimates.exact(norms / norms.sum(), gradients)
  tau = 40 * np.sum((norms / norms.sum()) ** 2)
  np.testing.assert_allclose(errors.uniform_variance / errors.variance, tau)
  found = errors.uniform_variance / errors.of_pool(8, 20)
  formula = weights.equivalent_batch_size(relative_tau(errors, 20), 8, 20)
  np.testing.assert_allclose(found, formula, rtol=1e-6)


# --- draws --------------------------------------------------------------------


def test_sampled_errors_by_hand():
  """Two batches of two examples, g = 0 and 2, with weights of 1 and 3."""
  gradients = np.array([[0.0], [2.0]])
  indices, drawn_weights = (
    np.array([[0, 1], [1, 1]]),
    np.array([[1, 3], [1, 1]]),
  )
  # Estimates 3 and 2 of the mean 1: squares 4 and 1.
  sampled = estimates.sampled(indices, drawn_weights, gradients)
  assert sampled == pytest.approx((2.5, np.sqrt(4.5 / 2)))


@pytest.mark.parametrize('centred', [False, True])
def test_draws_agree_with_the_exact_errors(centred, key):
  """Off a table and from pools, within 4 standard errors that are small."""
  gradients, scores = gradients_of(64, centred=centred)
  table = alias.build(scores)
  law = np.asarray(alias.probabilities(table), np.float64)
  errors = estimates.exact(law, gradients)
  table_key, pool_key = jax.random.split(key)
  shape = 20_000, 8
  indices, p = alias.sample_with_probabilities(table_key, table, shape)
  drawn = estimates.sampled(indices, 1 / (64 * p), gradients)
  pools = estimates.draw_pools(pool_key, jnp.asarray(scores), 8, 32, 20_000)
  from_pools = estimates.sampled(pools.indices, pools.weights, gradients)
  for found, expected in (
    (drawn, errors.of_batch(8)),
    (from_pools, errors.of_pool(8, 32)),
  ):
    assert abs(found.mean - expected) < SIGMAS * found.standard_error
    assert found.standard_error < 0.02 * expected


def test_pools_tell_their_tau(key):
  """sqrt(B sum p^2), here of scores that are all 1 or all but one 0."""
  pools = estimates.draw_pools(key, jnp.ones(64), 8, 32, 20_000)
  np.testing.assert_allclose(pools.taus, 1, rtol=1e-6)
  pools = estimates.draw_pools(key, jnp.zeros(64).at[0].set(1.0), 8, 32, 20_000)
  times = np.asarray(pools.taus)
  # k of the pool are the example: tau^2 = 32 / k; k = 0: uniform, tau = 1.
  k = np.round(32 / times**2)
  np.testing.assert_allclose(times, np.sqrt(32 / k), rtol=1e-5)
  assert len(np.unique(k)) > 1


# --- where a pool pays --------------------------------------------------------


@pytest.mark.parametrize('rho', [0.005, 0.05, 0.1, 0.18, 0.5, 1.0])
@pytest.mark.parametrize(('b', 'size'), [(16, 80), (32, 100)])
def test_gain_is_the_library_s_prediction(rho, b, size):
  """1 / predicted_cost_ratio; above 1 just where tau is above break_even."""
  errors = estimates.Errors(rho, 1.0, 0.0)
  tau = relative_tau(errors, size)
  for cost in (1.0, 2.0, 5.0):
    ratio = (size + (1 + cost) * b) / ((1 + cost) * b)
    gain = estimates.gain(rho, b, size, cost)
    predicted = float(weights.predicted_cost_ratio(tau, b, size, ratio))
    np.testing.assert_allclose(gain, 1 / predicted, rtol=1e-5)
    assert (gain > 1) == (tau > float(weights.break_even(size, b, ratio)))


@pytest.mark.parametrize('rho', [0.01, 0.3])
@pytest.mark.parametrize('cost', [0.1, 2.0, 5.0])
def test_the_best_pool_is_the_best_of_all_sizes(rho, cost):
  """And its gain is 1 / (sqrt rho + 1 / sqrt(1 + c))^2, for large b."""
  b = 1e9
  multiples = np.geomspace(1, 100, 100_001)
  gains = estimates.gain(rho, b, multiples * b, cost)
  best = estimates.best_multiple(rho, cost)
  np.testing.assert_allclose(multiples[gains.argmax()], best, rtol=1e-3)
  closed = 1 / (np.sqrt(rho) + (1 + cost) ** -0.5) ** 2
  np.testing.assert_allclose(gains.max(), closed, rtol=1e-6)
  np.testing.assert_allclose(
    estimates.gain(rho, b, best * b, cost), closed, rtol=1e-6
  )


# --- what is measured ---------------------------------------------------------


def test_gradients_and_scores_are_those_of_the_examples(key):
  """Mean gradient of the mean loss, lengths by both ways, closed forms."""
  model = LSTM(3, hidden=4)
  random = np.random.RandomState(0)
  subset = isjax.Batch(
    jnp.asarray(random.normal(size=(48, 2, 2, 1)), jnp.float32),
    jnp.asarray(random.randint(0, 3, 48)),
  )
  apply_fn = make_apply_fn(model)
  params, _ = init(model, key, subset.inputs[:1])
  losses, scores, gradients = score_quality._at_subset(apply_fn, subset)(params)
  assert {'uniform', *scores} == NAMES

  def mean_loss(params):
    logits = model.apply({'params': params}, subset.inputs)
    log_p = jax.nn.log_softmax(logits)
    own = -log_p[jnp.arange(48), subset.targets]
    return own.mean(), (own, jnp.exp(log_p))

  gradient, (own, p) = jax.grad(mean_loss, has_aux=True)(params)
  expected, _ = jax.flatten_util.ravel_pytree(gradient)
  np.testing.assert_allclose(gradients.mean(0), expected, atol=1e-6)
  norms = scores.pop('gradient_norm')
  lengths = np.linalg.norm(gradients, axis=1)
  np.testing.assert_allclose(norms, lengths, rtol=1e-5)
  assert (scores.pop('last_layer_gradient_norm') < lengths).all()
  residual = p - jax.nn.one_hot(subset.targets, 3)
  bound = np.linalg.norm(residual, axis=1)
  np.testing.assert_allclose(losses, own, rtol=1e-5)
  np.testing.assert_allclose(scores.pop('loss'), own, rtol=1e-5)
  np.testing.assert_allclose(
    scores.pop('logit_gradient_norm'), bound, rtol=1e-5
  )
  np.testing.assert_allclose(
    scores.pop('one_minus_label_probability'), 1 - np.exp(-own), rtol=1e-5
  )


def test_agreement_by_hand():
  """Ranks agree where one law is the other squared; a constant has none."""
  law = np.array([0.1, 0.2, 0.7])
  found = score_quality._agreement(law, law**2)
  assert found['rank_correlation'] == pytest.approx(1)
  assert found['correlation'] == pytest.approx(0.99497, abs=1e-5)
  assert score_quality._agreement(np.full(3, 1 / 3), law) == {}
  assert score_quality._points(law) == [0.3, 0.6, 2.1]


def test_blocks_are_averaged():
  """2 x 2 pixels of the digits into one, scaled to [0, 1]."""
  batch, metadata = data.load('digits', 'train')
  preprocess = score_quality._preprocess({'block': 2}, metadata)
  images = np.asarray(batch.inputs[:5], np.float64) / 16
  expected = sum(images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
  found = preprocess(batch.inputs[:5])
  np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- from the command line ----------------------------------------------------


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A small run without the user's data: its folder."""
  folder = tmp_path_factory.mktemp('scores')
  problems = "--config.sweep.problems=('digits_mlp', 'mnist_mlp')"
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('ISJAX_DATA_DIR', raising=False)
    patch.setenv('TFDS_DATA_DIR', str(folder / 'none'))
    arguments = [CONFIG, *SMALL, problems, f'--folder={folder}']
    assert sweep.main(arguments) == 0
  return folder


def rows_of(folder, kind):
  with (folder / 'rows.csv').open() as file:
    return [row for row in csv.DictReader(file) if row['row'] == kind]


def test_a_run_writes_table_and_figures(small):
  """A line per step and score, the map, one line for what was left out."""
  text = (small / 'table.md').read_text()
  assert '## digits mlp' in text
  assert '- mnist_mlp: left out. No mnist.npz was read from the fold' in text
  rows = rows_of(small, 'score')
  assert len(rows) == 2 * len(NAMES)
  assert {row['score'] for row in rows} == NAMES
  assert len(rows_of(small, 'map')) == 2 * 7 * 2
  assert text.count('\n| 20 (') == len(NAMES) - 1
  assert re.search(r'with the norm by -?0\.\d\d, -?0\.\d\d, step by', text)
  for name in ('variance', 'scatter', 'pool_map'):
    assert matplotlib.image.imread(small / f'{name}.png').std() > 0.05


def test_what_a_run_finds_is_consistent(small):
  """The optimum is least, uniform is 1, draws agree, and so does the map."""
  rows = rows_of(small, 'score')
  for step in ('0', '20'):
    found = {row['score']: row for row in rows if row['step'] == step}
    variances = {k: float(v['relative_variance']) for k, v in found.items()}
    assert variances['uniform'] == pytest.approx(1, rel=1e-6)
    assert min(variances.values()) == variances['gradient_norm']
    assert float(found['gradient_norm']['correlation']) == pytest.approx(1)
    assert float(found['gradient_norm']['norm_difference']) < 1e-5
    for row in found.values():
      error = float(row['drawn']) - float(row['relative_variance'])
      assert abs(error) < SIGMAS * float(row['drawn_error'])
      assert float(row['exact_batch']) == pytest.approx(
        8 / float(row['relative_variance'])
      )
      assert float(row['mixed']) == pytest.approx(1)  # of the uniform law alone
      tau, pool_tau = float(row['tau']), float(row['pool_tau'])
      assert float(row['formula_batch']) == pytest.approx(8 * tau**2)
      formula = 1 / (1 / (8 * pool_tau**2) + (1 - 1 / 8) / 32)
      assert float(row['pool_formula_batch']) == pytest.approx(formula)
      error = float(row['pool_drawn_batch']) - float(row['pool_exact_batch'])
      assert abs(error) < SIGMAS * float(row['pool_drawn_batch_error'])
    rho = variances['logit_gradient_norm']
    for row in rows_of(small, 'map'):
      if row['step'] == step:
        b, size = int(row['batch_size']), float(row['pool_size'])
        for cost in (0.1, 1, 2, 3, 5):
          expected = estimates.gain(rho, b, size, cost)
          assert float(row[f'gain_c{cost:g}']) == pytest.approx(expected)
  assert float(rows[-1]['loss']) < float(rows[0]['loss'])


def result_of(bound, optimum, tau):
  """A result of one step with the given relative variances."""
  _, config, _ = settings.load(CONFIG, [])
  values = {
    'row': 'score',
    'step': 7,
    'drawn': 0.2,
    'drawn_error': 0.1,
    'correlation': 0.5,
    'never_drawn': 0.25,
    'formula_batch': 40.0,
    'exact_batch': 20.0,
    'pool_tau': tau,
    'pool_formula_batch': 3.0,
    'pool_exact_batch': 2.0,
    'pool_drawn_batch': 2.0,
    'pool_drawn_batch_error': 0.1,
  }
  variances = dict.fromkeys(sorted(NAMES - {'uniform'}), bound)
  variances['gradient_norm'] = optimum
  return {
    'config': config,
    'rows': [
      values | {'score': score, 'relative_variance': variance}
      for score, variance in variances.items()
    ],
  }


def test_sentences_follow_the_numbers():
  """Loose or not, worse than uniform or not, gates right or wrong."""
  loose = result_of(bound=1.2, optimum=0.6, tau=3.0)
  tight = result_of(bound=0.05, optimum=0.049, tau=2.0)
  said = score_quality_report._verdict(loose)
  assert 'It is loose, above 1.25 times, at step 7 (2.00).' in said
  assert (
    'Worse than uniform: last-layer gradient norm at step 7 (1.2); ' in said
  )
  assert 'At the end 25.0% of the examples' in said
  said = score_quality_report._verdict(tight)
  assert 'It is nowhere loose' in said
  assert 'Worse' not in said
  gates = score_quality_report._gates([loose, loose, tight])
  assert 'in 1 of the 3 stages' in gates
  assert 'in 0 (wrongly on in 2, wrongly off in 1); the paper' in gates
  agreement = score_quality_report._agreement([tight])
  assert '5 variances of a table, 100% as drawn lie within two' in agreement
  assert '(the farthest 1.5)' in agreement
  assert '2.00 to 2.00 times (1.50 to 1.50 for the pool)' in agreement


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config.problem=other'], 'problem must be one of cifar10_resnet, di'),
    (['--config.batch_size=0'], 'batch_size must be at least 1; got 0'),
    (['--config.num_batches=1'], 'num_batches must be at least 2'),
    (['--config.subset_size=1'], 'subset_size must be at least 2'),
    (['--config.subset_size=5000'], 'at most the 1347 examples of digits'),
    (['--config.clip_norm=0.0'], 'clip_norm must be positive'),
    (['--config.mix=0.0'], r'mix must be in \(0, 1\]; got 0.0'),
    (['--config.pool_size=31'], 'pool_size must be at least batch_size, 32'),
    (['--config.pool_multiples=(0.5,)'], 'pool_multiples must be numbers of'),
    (['--config.backward_costs=()'], 'backward_costs must be positive numb'),
    (['--config.batch_sizes=(0,)'], 'batch_sizes must be integers of at le'),
    (['--config.sweep.problems=()'], 'the sweep has no run'),
    (['--config.problems.digits_mlp.steps=(3,3)'], r'steps must be increas'),
    (['--config.problems.digits_mlp.block=0'], 'block must be at least 1'),
    (['--config.problems.digits_mlp.block=3'], 'block must divide the 8 x 8'),
    (
      ['--config.problems.digits_mlp.model.name=cnm'],
      'model.name must be one of',
    ),
    (
      ['--config.problems.digits_mlp.optimizer.name=sdg'],
      'optimizer.name must be one of adam',
    ),
    (['--config.draws=3'], 'sets no field of the config'),
  ],
)
def test_a_bad_setting_is_one_line(arguments, message, tmp_path, capsys):
  """Status 2, and nothing was written."""
  folder = tmp_path / 'runs'
  if not any('problem' in argument for argument in arguments):
    arguments = [*arguments, '--config.problem=digits_mlp']
  only = "--config.sweep.problems=('digits_mlp',)"
  if 'sweep' not in arguments[0]:
    arguments = [*arguments, only]
  assert sweep.main([CONFIG, *arguments, f'--folder={folder}']) == 2
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith('error: ')
  assert re.search(message, last), last
  assert not folder.exists()


def test_an_option_that_a_model_lacks_is_one_line():
  """With the name of the field."""
  problem = {'model': {'name': 'mlp', 'widths': (3,)}}
  with pytest.raises(settings.SettingsError, match='model: .*widths'):
    score_quality._model(problem, 10)


def test_every_problem_of_the_config_is_known():
  """And passes the study's own check."""
  _, config, _ = settings.load(CONFIG, [])
  for problem in config['sweep']['problems']:
    studies.STUDIES['score_quality'].check(config | {'problem': problem})
