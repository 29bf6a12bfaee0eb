"""experiments/studies: closed forms, exact variances, tables from configs."""

import collections
import contextlib
import csv
import io
import itertools
import json
import pathlib
import re
import types

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import artifacts, settings, studies, sweep
from experiments.studies import (
  gradient_variance,
  records,
  variances,
  weighted_epochs,
)
import isjax
from isjax import alias, data, resampling
from isjax.models import MLP

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORDS = str(ROOT / 'configs/weighted_records.py')
CLASSES = str(ROOT / 'configs/imbalanced_classes.py')
COUNTS = np.array([2555, 227, 621, 2552])
SIZE = 5955
SIGMAS = 4
SMALL_CLASSES = ('--config.class_counts=(30,3,7)', '--config.num_epochs=9')


@pytest.fixture
def made_up():
  """Record weights [5], gradients [5, 3], one of them 0, and the target law."""
  random = np.random.RandomState(0)
  gradients = random.normal(size=(5, 3)) * np.array(
    [[1], [30], [0], [0.1], [5]]
  )
  weights = np.array([1000.0, 1, 3, 7, 2])
  return weights, gradients, weights / weights.sum()


@pytest.fixture
def made_up_laws(made_up):
  weights, gradients, _ = made_up
  norms = np.linalg.norm(gradients, axis=1)
  return variances.laws(weights, norms, norms + 0.5, (0.1, 0.5))


# --- exact variances ----------------------------------------------------------


def enumerated_variance(law, target, gradients, batch_size):
  """E |mean of b weighted gradients - G|^2, over all batches there are."""
  mean = target @ gradients
  total = 0.0
  for batch in itertools.product(np.flatnonzero(law), repeat=batch_size):
    batch = list(batch)
    weights = target[batch] / law[batch]
    error = weights @ gradients[batch] / batch_size - mean
    total += law[batch].prod() * (error @ error)
  return total


@pytest.mark.parametrize('batch_size', [1, 2, 3])
def test_variance_is_that_of_all_batches(made_up, made_up_laws, batch_size):
  """V(p) / b, under every law of the study."""
  _, gradients, target = made_up
  for law in made_up_laws.values():
    exact = variances.moments(law, target, gradients).variance / batch_size
    brute = enumerated_variance(law, target, gradients, batch_size)
    np.testing.assert_allclose(exact, brute, rtol=1e-9)


def test_laws_are_laws_and_the_optimum_is_least(made_up, made_up_laws):
  """Each sums to one; (sum pi |g|)^2 - |G|^2 is reached, and by no other."""
  _, gradients, target = made_up
  mean = target @ gradients
  bound = (target @ np.linalg.norm(gradients, axis=1)) ** 2 - mean @ mean
  found = {}
  for name, law in made_up_laws.items():
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-12)
    found[name] = variances.moments(law, target, gradients).variance
  np.testing.assert_allclose(found.pop(variances.OPTIMAL), bound, rtol=1e-9)
  assert min(found.values()) > bound


def test_only_mixing_with_the_target_bounds_the_weights(made_up, made_up_laws):
  """By 1 / mix; with the uniform law by N max(pi) / mix, which is large."""
  _, gradients, target = made_up
  for mix in (0.1, 0.5):
    largest = {
      name: variances.moments(
        made_up_laws[f'optimum, {mix} mixed with {name}'], target, gradients
      ).largest_weight
      for name in ('r', 'uniform')
    }
    assert largest['r'] <= 1 / mix
  tiny = gradients * np.array([[1e-6], [1], [1], [1], [1]])
  norms = np.linalg.norm(tiny, axis=1)
  laws = variances.laws(1000 * target, norms, norms, (0.1,))
  free = variances.moments(
    laws['optimum, 0.1 mixed with uniform'], target, tiny
  )
  np.testing.assert_allclose(free.largest_weight, 50 * target.max(), rtol=1e-2)
  held = variances.moments(laws['optimum, 0.1 mixed with r'], target, tiny)
  np.testing.assert_allclose(held.largest_weight, 10, rtol=1e-2)


def test_weights_and_sample_size_by_hand():
  """Two records of weights 3 and 1, drawn uniformly: w = 1.5 and 0.5."""
  moments = variances.moments(
    np.array([0.5, 0.5]), np.array([0.75, 0.25]), np.array([[1.0], [-1.0]])
  )
  # w g = 1.5 or -0.5, whose mean is 0.5 and whose variance is 1.
  assert moments.variance == pytest.approx(1)
  assert moments.largest_weight == pytest.approx(1.5)
  assert moments.effective_sample_size == pytest.approx(1 / 1.25)


def test_records_without_gradient_leave_a_law():
  """All norms 0: the optimum is any law, here the uniform one."""
  laws = variances.laws(np.ones(3), np.zeros(3), np.ones(3), (0.1,))
  np.testing.assert_allclose(laws[variances.OPTIMAL], 1 / 3)


def test_self_normalised_agrees_with_all_batches(made_up, key):
  """Mean square error and bias, each within 4 standard errors."""
  weights, gradients, target = made_up
  batches = [list(b) for b in itertools.product(range(5), repeat=2)]
  errors = np.array(
    [weights[b] @ gradients[b] / weights[b].sum() for b in batches]
  )
  errors -= target @ gradients
  sampled = variances.self_normalised(key, target, gradients, 2, 20_000)
  square = np.square(errors).sum(1).mean()
  bias = np.linalg.norm(errors.mean(0)) / np.linalg.norm(target @ gradients)
  assert abs(sampled.mean_square - square) < SIGMAS * sampled.mean_square_error
  assert abs(sampled.bias - bias) < SIGMAS * sampled.bias_error
  assert bias > 10 * SIGMAS * sampled.bias_error  # it is biased


def test_self_normalised_is_the_mean_where_weights_are_equal(key):
  """Variance V(uniform) / b; of bias no more than chance leaves, sqrt(2/P)."""
  dimensions, num_batches = 400, 1000
  random = np.random.RandomState(0)
  gradients = 1 + random.normal(size=(500, dimensions))
  uniform = np.full(500, 1 / 500)
  exact = variances.moments(uniform, uniform, gradients).variance / 4
  sampled = variances.self_normalised(key, uniform, gradients, 4, num_batches)
  assert abs(sampled.mean_square - exact) < SIGMAS * sampled.mean_square_error
  squared_bias = (sampled.bias * np.linalg.norm(gradients.mean(0))) ** 2
  chance = SIGMAS * np.sqrt(2 / dimensions)
  assert squared_bias < chance * exact / num_batches


# --- records ------------------------------------------------------------------


def config_of(path, *arguments):
  _, config, _ = settings.load(path, arguments)
  return {k: v for k, v in config.items() if k != 'sweep'}


def test_the_sets_of_records_are_what_they_say():
  """Few heavy ones; every digit counted once."""
  config = config_of(RECORDS)
  synthetic = records.RECORDS['synthetic'](config)
  weights = np.asarray(synthetic.batch.record_weights)
  assert (weights == 1000).sum() == 41 == round(0.02 * len(weights))
  light = weights[weights < 1000]
  assert (light.min(), light.max()) == (1, 10)
  digits = records.RECORDS['digits'](config)
  images, labels, _ = data.load('digits', 'train')[0]
  images = np.asarray(images[..., 0], int)
  rows = images[:, ::2] + images[:, 1::2]
  sums = rows[:, :, ::2] + rows[:, :, 1::2]
  expected = collections.Counter(
    (tuple(on), label)
    for on, label in zip(
      (sums > 4 * 8).reshape(-1, 16).tolist(), labels.tolist(), strict=True
    )
  )
  inputs, targets, weights = digits.batch
  found = zip(
    map(tuple, np.asarray(inputs).reshape(-1, 16).tolist()),
    targets.tolist(),
    strict=True,
  )
  assert dict(zip(found, weights.tolist(), strict=True)) == expected


def test_gradients_and_scores_are_those_of_the_objective(key):
  """Their weighted mean is its gradient; scores are |softmax - one-hot|."""
  random = np.random.RandomState(0)
  batch = isjax.Batch(
    jnp.asarray(random.normal(size=(6, 3)), jnp.float32),
    jnp.asarray([0, 1, 2, 0, 1, 2]),
    jnp.asarray([1.0, 50, 2, 1, 9, 3]),
  )
  config = config_of(RECORDS, '--config.hidden=(4,)')
  state, _, at_all_records = gradient_variance._program(
    config, records.Records(batch, 3, '')
  )
  gradients, scores, losses = at_all_records(state.params, batch)
  target = batch.record_weights / batch.record_weights.sum()

  def objective(params):
    logits = MLP(3, (4,)).apply({'params': params}, batch.inputs)
    log_p = jax.nn.log_softmax(logits)
    own = -log_p[jnp.arange(6), batch.targets]
    return target @ own, (own, jnp.exp(log_p))

  gradient, (own, p) = jax.grad(objective, has_aux=True)(state.params)
  expected, _ = jax.flatten_util.ravel_pytree(gradient)
  np.testing.assert_allclose(target @ gradients, expected, atol=1e-6)
  np.testing.assert_allclose(losses, own, rtol=1e-5)
  residual = p - jax.nn.one_hot(batch.targets, 3)
  expected = np.linalg.norm(residual, axis=1)
  np.testing.assert_allclose(scores, expected, rtol=1e-5)


# --- epochs -------------------------------------------------------------------


def law_of(kind, counts=COUNTS):
  """Chance of an image of each class, f64[K]."""
  weights = weighted_epochs.KINDS[kind](counts).astype(np.float64)
  return weights / (counts @ weights)


def test_closed_forms_of_the_question():
  """55.8 % of a big class never seen, 6.56 draws each, 3048 distinct."""
  law = law_of('inverse_frequency')
  iid = [
    weighted_epochs.expect_iid(np.full(n, p), SIZE)
    for n, p in zip(COUNTS, law, strict=True)
  ]
  assert round(100 * iid[0].never_seen, 1) == 55.8
  assert round(100 * iid[3].never_seen, 1) == 55.8
  assert round(iid[1].draws / 227, 2) == 6.56
  distinct = sum(
    n * (1 - e.never_seen) for n, e in zip(COUNTS, iid, strict=True)
  )
  assert round(distinct) == 3048
  systematic = weighted_epochs.expect_systematic(np.repeat(law, COUNTS), SIZE)
  assert round(100 * (1 - distinct / SIZE), 1) == 48.8
  assert round(100 * systematic.never_seen, 1) == 35.8


def test_iid_closed_forms_by_enumeration():
  """All 4^3 epochs of three draws from four images of unequal chance."""
  law = np.array([0.1, 0.2, 0.3, 0.4])
  group = np.array([0, 2])
  epochs = np.array(list(itertools.product(range(4), repeat=3)))
  chances = law[epochs].prod(1)
  never = np.mean([(epochs != i).all(1) for i in group], axis=0)
  draws = np.isin(epochs, group).sum(1)
  exact = weighted_epochs.expect_iid(law[group], 3)
  mean = chances @ draws
  np.testing.assert_allclose(
    exact,
    [chances @ never, mean, np.sqrt(chances @ (draws - mean) ** 2)],
    rtol=1e-12,
  )


def numpy_epoch(random, law, num_draws):
  """Systematic counts by numpy: marks at u, u + 1, ... on a rod of N p_i."""
  order = random.permutation(len(law))
  ends = np.cumsum(num_draws * law[order])
  marks = np.searchsorted(ends, random.uniform() + np.arange(num_draws))
  return order[np.minimum(marks, len(law) - 1)]


def test_systematic_closed_forms_against_numpy():
  """Never seen and draws of a group, within 4 standard errors."""
  random = np.random.RandomState(0)
  law = random.exponential(size=20) ** 2
  law /= law.sum()
  group = np.arange(8)
  counts = np.array(
    [
      np.bincount(numpy_epoch(random, law, 20), minlength=20)[group]
      for _ in range(4000)
    ]
  )
  exact = weighted_epochs.expect_systematic(law[group], 20)
  for values, expected in (
    ((counts == 0).mean(1), exact.never_seen),
    (counts.sum(1), exact.draws),
  ):
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - expected) < SIGMAS * error


def test_value_counts_gives_the_small_class_the_small_weight():
  """Class 1 (227 images) gets 1/2552, class 3 (2552 images) gets 1/227."""
  weights = weighted_epochs.KINDS['value_counts'](COUNTS)
  np.testing.assert_allclose(weights, [1 / 2555, 1 / 2552, 1 / 621, 1 / 227])
  shares = COUNTS * law_of('value_counts')
  np.testing.assert_allclose(
    shares, [0.0750, 0.0067, 0.0750, 0.8433], atol=5e-5
  )


@pytest.mark.parametrize('kind', ['inverse_frequency', 'inverse_sqrt'])
def test_measured_epochs_agree_with_closed_forms(kind):
  """In every class, by both methods, within 4 standard errors."""
  config = config_of(CLASSES, f'--config.kind={kind}', '--config.num_epochs=50')
  result = weighted_epochs.STUDY.measure(config, lambda *_: None)
  assert len(result['rows']) == 2 * 5
  for row in result['rows']:
    for name in ('never_seen', 'distinct', 'draws'):
      error = row[f'{name}_sd'] / np.sqrt(50) + 1e-6 * row[f'exact_{name}']
      difference = row[name] - row[f'exact_{name}']
      assert abs(difference) <= SIGMAS * error, (row['draws_by'], name)
    law = law_of(kind)
    if row['class'] != 'all' and row['draws_by'] == 'systematic':
      most = np.ceil(SIZE * law[int(row['class'])])
      assert row['most_draws_of_an_image'] == most
      assert row['most_draws_of_an_image_ever'] == most


def test_statistics_of_epochs_by_hand():
  """Three epochs of two images, drawn (0, 2), (1, 1) and (4, 0) times."""
  counts = np.array([[0, 2], [1, 1], [4, 0]])
  assert weighted_epochs._statistics(counts) == pytest.approx(
    {
      'never_seen': 1 / 3,
      'never_seen_sd': np.sqrt(1 / 12),
      'distinct': 4 / 3,
      'distinct_sd': np.sqrt(1 / 3),
      'draws': 8 / 3,
      'draws_sd': np.sqrt(4 / 3),
      'most_draws_of_an_image': 7 / 3,
      'most_draws_of_an_image_ever': 4,
    }
  )


def test_a_systematic_epoch_without_weights_is_a_shuffle(key):
  """Every image once."""
  table = alias.build(np.ones(40, np.float32))
  drawn = resampling.weighted_epoch(key, table, 40)
  np.testing.assert_array_equal(np.sort(drawn), np.arange(40))
  assert (np.asarray(drawn) != np.arange(40)).any()


# --- from the command line ----------------------------------------------------


def read_csv(path):
  with path.open() as file:
    return list(csv.DictReader(file))


@pytest.fixture
def no_data(monkeypatch):
  monkeypatch.delenv('ISJAX_DATA_DIR', raising=False)


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
  """A run without the user's data: its arguments, its folder, what it said."""
  folder = tmp_path_factory.mktemp('records')
  arguments = [
    *(RECORDS, f'--folder={folder}', '--config.steps=(0,20)'),
    *(
      '--config.num_batches=1024',
      "--config.sweep.data=('synthetic', 'mammography')",
    ),
  ]
  said = io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
    patch.delenv('ISJAX_DATA_DIR', raising=False)
    assert sweep.main(arguments) == 0
  return arguments, folder, said.getvalue()


def test_variances_of_the_synthetic_records(recorded):
  """Near to those found once with another model and other records."""
  _, folder, _ = recorded
  rows = read_csv(folder / 'rows.csv')
  first = {row['law']: row for row in rows if row['step'] == '0'}
  for law, value in (
    ('r', 0.030),
    ('r ‖g‖, the optimum', 0.029),
    ('sqrt r', 0.090),
    ('optimum, 0.5 mixed with uniform', 0.051),
    (variances.SELF_NORMALISED, 0.32),
  ):
    found = float(first[law]['relative_variance'])
    assert found == pytest.approx(value, rel=0.1), law
  assert float(first['r']['largest_weight']) == pytest.approx(1)
  equivalent = 32 / float(first['r']['relative_variance'])
  assert float(first['r']['equivalent_batch']) == pytest.approx(equivalent)


def test_weighted_records_from_the_command_line(recorded):
  """A table, a figure, and one line for the set that was left out."""
  _, folder, said = recorded
  text = (folder / 'table.md').read_text()
  for word in ('## synthetic', 'relative variance, step 20', 'Commit: '):
    assert word in text
  assert '## mammography' not in text
  assert '- mammography: left out. no data set is called' in text
  assert text.rstrip() in said
  rows = read_csv(folder / 'rows.csv')
  laws = list(dict.fromkeys(row['law'] for row in rows))
  assert len(rows) == 2 * len(laws)
  assert text.count('\n| ') == len(laws) + 2
  assert matplotlib.image.imread(folder / 'variance.png').std() > 0.05


@pytest.mark.usefixtures('no_data')
def test_finished_runs_of_a_study_are_not_made_again(recorded, monkeypatch):
  """Table and figure are written from what lies there."""
  arguments, folder, _ = recorded
  before = (folder / 'rows.csv').read_text()
  made = []
  name = 'gradient_variance'
  study = studies.STUDIES[name]

  def recorded_measure(config, report):
    made.append(config['data'])
    return study.measure(config, report)

  replaced = study._replace(measure=recorded_measure)
  monkeypatch.setitem(studies.STUDIES, name, replaced)
  (folder / 'variance.png').unlink()
  assert sweep.main(arguments) == 0
  assert made == ['mammography']
  assert (folder / 'rows.csv').read_text() == before
  assert (folder / 'variance.png').exists()


def test_gradients_that_are_not_finite_are_one_line(
  monkeypatch, tmp_path, capsys
):
  """With the setting to change."""
  nothing = np.full((2, 1), np.nan), np.ones(2), np.ones(2)
  state = types.SimpleNamespace(step=0, params=None)
  program = state, None, lambda params, data: nothing
  monkeypatch.setattr(gradient_variance, '_program', lambda *_: program)
  arguments = [RECORDS, '--config.data=digits', '--config.steps=(0,)']
  assert sweep.main([*arguments, f'--folder={tmp_path}']) == 2
  error = capsys.readouterr().err
  assert 'digits: the gradients are not finite after 0 steps; lower' in error


def test_imbalanced_classes_from_the_command_line(tmp_path):
  """Five tables and a figure; results name commit, device and versions."""
  arguments = [CLASSES, *SMALL_CLASSES, f'--folder={tmp_path}']
  assert sweep.main(arguments) == 0
  text = (tmp_path / 'table.md').read_text()
  for kind in weighted_epochs.KINDS:
    assert f'## {kind}: ' in text
  rows = read_csv(tmp_path / 'rows.csv')
  assert len(rows) == 5 * 2 * 4
  assert matplotlib.image.imread(tmp_path / 'epochs.png').std() > 0.05
  results = list(tmp_path.glob('*/result.json'))
  assert len(results) == 5
  saved = json.loads(results[0].read_text())
  assert artifacts.provenance().keys() < saved.keys()


@pytest.mark.usefixtures('no_data')
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([RECORDS, '--config.study=other'], 'study must be one of boundary, early'),
    ([RECORDS, '--config.data=digit'], 'data must be one of digits, mammog'),
    ([RECORDS, '--config.data=mammography'], 'ISJAX_DATA_DIR names'),
    ([RECORDS, '--config.sweep.data=()'], 'the sweep has no run'),
    ([RECORDS, '--config.steps=(5,5)'], r'steps must be .*; got \(5, 5\)'),
    ([RECORDS, '--config.steps=()'], 'steps must be increasing integers'),
    ([RECORDS, '--config.steps=(0.5,)'], r'from 0 on; got \(0.5,\)'),
    ([RECORDS, '--config.mixes=(0.0,)'], r'mixes must be shares in \(0, 1\]'),
    ([RECORDS, '--config.mixes=()'], r'mixes must be .*; got \(\)'),
    ([RECORDS, '--config.batch_size=0'], 'batch_size must be at least 1'),
    ([RECORDS, '--config.num_batches=1'], 'num_batches must be at least 2'),
    ([RECORDS, '--config.hidden=(0,)'], 'hidden must be widths'),
    ([RECORDS, "--config.hidden=('a',)"], r"at least 1; got \('a',\)"),
    ([RECORDS, '--config.learning_rate=-1.0'], 'learning_rate must be pos'),
    (
      [RECORDS, '--config.synthetic.heavy_share=2.0'],
      r'synthetic.heavy_share must be in \[0, 1\]; got 2.0',
    ),
    ([CLASSES, '--config.kind=other'], 'kind must be one of effective_num'),
    ([CLASSES, '--config.num_epochs=1'], 'num_epochs must be at least 2'),
    ([CLASSES, '--config.class_counts=()'], r'class_counts .*got \(\)'),
    ([CLASSES, '--config.class_counts=(3,0)'], r'class_counts .*got \(3, 0\)'),
    ([CLASSES, '--config.draws=3'], 'sets no field of the config'),
  ],
)
def test_a_bad_setting_is_one_line(arguments, message, tmp_path, capsys):
  """Status 2, and nothing was written."""
  folder = tmp_path / 'runs'
  assert sweep.main([*arguments, f'--folder={folder}']) == 2
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith('error: ')
  assert re.search(message, last), last
  assert not folder.exists()
