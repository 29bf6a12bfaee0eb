"""experiments/studies/early_law: frozen laws, agreement, tables and figures."""

import csv
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from experiments import settings, studies, sweep
from experiments.studies import early_law, early_law_report
import isjax
from isjax import alias
from isjax.samplers import early_importance

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / 'configs/early_law.py')
SMALL = (
  '--config.num_seeds=3',
  '--config.factors=(1.0,0.2)',
  '--config.shares=(0.3,)',
  '--config.batch_size=20',
  '--config.problems.digits.class_size=20',
  '--config.problems.digits.warmup_epochs=2.0',
  "--config.problems.digits.models=('wide_mlp','deep_mlp')",
)
# What the sampler is told, for each law of the study.
OPTIONS = {
  'focal': {'score': 'focal'},
  'focal, squared': {'score': 'focal', 'power': 2.0},
  'confusion': {'score': 'confusion'},
  'std': {'score': 'std'},
  'el2n': {'score': 'el2n'},
  'forgetting': {'score': 'forgetting'},
}
N, B, EPOCHS = 12, 5, 4


# --- laws ---------------------------------------------------------------------


def test_laws_are_those_that_the_sampler_freezes(key):
  """Each score's sampler watches one window of made-up observations."""
  samplers = {
    name: early_importance(N, B, warmup_epochs=EPOCHS, mix=0.0, **options)
    for name, options in OPTIONS.items()
  }
  together = early_law._together(list(samplers.values()))
  seen = jax.random.uniform(key, (3, 10, B))

  @jax.jit
  def window(key):
    def step(states, values):
      indices, _ = together.propose(key, states)
      draw, states, _ = together.select(key, states, indices, jnp.zeros(B))
      observation = isjax.Observation(
        losses=values[0],
        scores=values[1],
        statistics={
          'label_probability': values[0],
          'error': (values[2] > 0.5).astype(jnp.float32),
        },
      )
      return together.observe(states, draw, observation), indices

    return jax.lax.scan(step, together.init(key), seen.swapaxes(0, 1))

  states, indices = window(key)
  assert indices.size == 50  # ceil(4 * 12 / 5) batches: the whole window
  states = dict(zip(OPTIONS, states, strict=True))
  found = early_law.laws(
    *(states[name].shown for name in ('focal', 'el2n', 'forgetting'))
  )
  assert found.keys() == {'uniform', *OPTIONS}
  np.testing.assert_array_equal(found.pop('uniform'), 1 / N)
  assert np.bincount(np.ravel(indices), minlength=N).min() >= 4
  for name, law in found.items():
    frozen = alias.probabilities(states[name].source.table)
    np.testing.assert_allclose(law, frozen, rtol=2e-5, atol=1e-9)


def test_laws_by_hand():
  """No example was ever forgotten: that score gives the uniform law."""
  key = jax.random.key(0)
  moments = early_importance(2, 1).init(key).shown
  moments = moments._replace(
    visits=jnp.array([4, 2]),
    mean=jnp.array([0.5, 0.75]),
    squares=jnp.array([1.0, 2.0]),
  )
  forgetting = early_importance(2, 1, score='forgetting').init(key).shown
  found = early_law.laws(moments, moments, forgetting)
  np.testing.assert_allclose(found['forgetting'], 1 / 2)
  np.testing.assert_allclose(found['focal'], [2 / 3, 1 / 3])
  np.testing.assert_allclose(found['focal, squared'], [4 / 5, 1 / 5])
  np.testing.assert_allclose(found['confusion'], [4 / 7, 3 / 7])
  np.testing.assert_allclose(found['std'], [1 / 3, 2 / 3])
  np.testing.assert_allclose(found['el2n'], [2 / 5, 3 / 5])


@pytest.mark.parametrize(
  ('mass', 'expected'),
  [
    ([0.25] * 4, 4),
    ([0, 1, 0], 1),
    ([0.5, 0.5, 0], 2),
    ([0.75, 0.25], 4 / 27**0.25),
  ],
)
def test_effective_classes_by_hand(mass, expected):
  """K for K equal classes, classes of mass 0 not counted."""
  found = early_law.effective_classes(np.array(mass))
  assert found == pytest.approx(expected)


# --- agreement ----------------------------------------------------------------


def test_agreement_by_hand():
  """Ceiling sqrt(.81 * .49), whatever pairs of one seed would say."""
  correlations = np.zeros((2, 3, 2, 3))
  for (a, b), value in {(0, 0): 0.81, (1, 1): 0.49, (0, 1): 0.3}.items():
    correlations[a, :, b] = correlations[b, :, a] = value
  for seed in range(3):
    correlations[:, seed, :, seed] = 1
  found = early_law.agreement(correlations, 0, 1)
  expected = (0.3, 0, 0.63, -0.33, -0.33, -0.33)
  np.testing.assert_allclose(found, expected, atol=1e-12)
  found = early_law.agreement(correlations, 1, 1)
  np.testing.assert_allclose(found, (0.49, 0, 0.49, 0, 0, 0), atol=1e-12)


def test_interval_of_a_difference_leaves_out_seeds():
  """Against a second way, where correlations differ from seed to seed."""
  random = np.random.RandomState(0)
  values = random.normal(size=(8, 50)) + random.normal(size=50)
  correlations = np.corrcoef(values).reshape(2, 4, 2, 4)

  def difference(seeds):
    pairs = [(s, t) for s in seeds for t in seeds if s != t]
    r = np.array([[correlations[:, s, :, t] for s, t in pairs]])[0].mean(0)
    return r[0, 1] - np.sqrt(r[0, 0] * r[1, 1])

  found = early_law.agreement(correlations, 0, 1)
  assert found.difference == pytest.approx(difference(range(4)))
  without = [difference(set(range(4)) - {out}) for out in range(4)]
  error = np.sqrt(3 / 4 * np.sum((without - np.mean(without)) ** 2))
  reach = stats.t(3).ppf(0.975) * error
  assert found.high - found.difference == pytest.approx(reach)
  assert found.difference - found.low == pytest.approx(reach)


def test_a_network_that_agrees_with_none_has_the_ceiling_0():
  """Where two seeds of one network rank the examples in opposite ways."""
  correlations = np.full((2, 3, 2, 3), -0.2)
  found = early_law.agreement(correlations, 0, 1)
  assert found.ceiling == 0
  assert found.difference == pytest.approx(-0.2)


# --- data ---------------------------------------------------------------------


def config_of(**changes):
  _, config, _ = settings.load(CONFIG, SMALL)
  return config | changes


def test_blocks_of_pixels_are_averaged():
  """2 x 2 pixels into one, in [0, 1]; of each class as many examples."""
  whole, _ = early_law._load(config_of())
  config = config_of()
  config['problems']['digits']['block'] = 2
  halved, metadata = early_law._load(config)
  np.testing.assert_array_equal(whole.targets, halved.targets)
  assert metadata.class_counts == (20,) * 10
  images = np.asarray(whole.inputs, np.float64)
  assert 0 <= images.min() < images.max() == 1
  expected = sum(images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
  np.testing.assert_allclose(halved.inputs, expected, rtol=1e-6)


def test_a_window_is_training():
  """The network learns; seeds are repeatable, and each is another one."""
  config = config_of()
  data, metadata = early_law._load(config)
  train = early_law._window(config, 'wide_mlp', metadata)
  first, again, other = (train(data, seed) for seed in (0, 0, 1))
  assert first.error == again.error < 0.5
  for name, law in first.laws.items():
    assert law.sum() == pytest.approx(1)
    np.testing.assert_array_equal(law, again.laws[name])
  assert np.abs(first.laws['focal'] - other.laws['focal']).max() > 1e-4
  focal = stats.spearmanr(first.laws['focal'], other.laws['focal'])
  assert focal.statistic > 0.5  # what is hard is hard under any seed


# --- from the command line ----------------------------------------------------


def made_up_window(config, model, metadata):
  """In the place of `_window`: for the deep network all is the other way."""
  size = metadata.num_examples

  def train(data, seed):
    assert len(data.targets) == size
    noise = np.random.RandomState(seed).uniform(size=(2, size))
    mean = np.asarray(data.inputs).reshape(size, -1).std(1) + 0.02 * noise[0]
    mean = 1 - mean if model == 'deep_mlp' else mean
    key = jax.random.key(0)
    moments = early_importance(size, 1).init(key).shown
    moments = moments._replace(
      visits=moments.visits + 3,
      mean=jnp.asarray(mean),
      squares=jnp.asarray(noise[1]),
    )
    shown = early_importance(size, 1, score='forgetting').init(key).shown
    shown = shown._replace(events=jnp.arange(size) % 3)
    return early_law._Shown(early_law.laws(moments, moments, shown), 0.25)

  return train


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A run with made-up windows, without the user's data: its folder."""
  folder = tmp_path_factory.mktemp('laws')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(early_law, '_window', made_up_window)
    patch.delenv('ISJAX_DATA_DIR', raising=False)
    patch.setenv('TFDS_DATA_DIR', str(folder / 'none'))
    assert sweep.main([CONFIG, *SMALL, f'--folder={folder}']) == 0
  return folder


def rows_of(folder, kind):
  with (folder / 'rows.csv').open() as file:
    return [row for row in csv.DictReader(file) if row['row'] == kind]


def test_a_run_writes_tables_and_figures(small):
  """A line per law or pair, and one for the data that were not there."""
  text = (small / 'table.md').read_text()
  assert '- fashion_mnist: left out. No fashion_mnist.npz was read' in text
  for name in early_law._WATCHED:
    assert re.search(rf'^\| {name} \|', text, re.M)
  assert re.search(
    r'^\| wide mlp, deep mlp \| +\| -?0\.\d\d of 0\.', text, re.M
  )
  for name in ('balance', 'noise', 'networks'):
    assert matplotlib.image.imread(small / f'{name}.png').std() > 0.05


def test_shares_of_uniform_draws_are_those_of_the_examples(small):
  """Under a long tail and wrong labels; all laws sum to one."""
  balance = rows_of(small, 'balance')
  assert len(balance) == 2 * 3 * (len(OPTIONS) + 1)
  for row in balance:
    mass = np.array([float(row[f'class_{k}']) for k in range(10)])
    assert mass.sum() == pytest.approx(1)
    assert float(row['rarest_mass']) == mass[9]
    found = float(row['effective_classes'])
    assert found == pytest.approx(np.prod(mass[mass > 0] ** -mass[mass > 0]))
    if row['law'] == 'uniform':
      sizes = mass * int(row['size'])
      np.testing.assert_allclose(sizes, np.round(sizes), atol=1e-6)
      assert (np.diff(sizes) < 1e-6).all()
      assert mass[9] / mass[0] == pytest.approx(float(row['factor']))
  noise = rows_of(small, 'noise')
  assert len(noise) == 3 * (len(OPTIONS) + 1)
  for row in noise:
    assert 0 < float(row['effective_share']) < 1 + 1e-6
    if row['law'] == 'uniform':
      assert float(row['flipped_mass']) == pytest.approx(0.3)
      assert float(row['effective_share']) == pytest.approx(1)


def test_pairs_of_networks(small):
  """Each with each and with itself, under every score of ranks of its own."""
  rows = rows_of(small, 'models')
  found = {(row['law'], row['first'], row['second']) for row in rows}
  pairs = list(
    itertools.combinations_with_replacement(('wide_mlp', 'deep_mlp'), 2)
  )
  laws = OPTIONS.keys() - {'focal, squared'}
  assert found == {(law, *pair) for law in laws for pair in pairs}
  for row in rows:
    if row['law'] in ('focal', 'el2n'):
      assert float(row['ceiling']) > 0.5
      same = 1 if row['first'] == row['second'] else -1  # as they were made up
      expected = pytest.approx(same * float(row['ceiling']), abs=1e-3)
      assert float(row['correlation']) == expected


def result_of(**rows):
  _, config, _ = settings.load(CONFIG, [])
  rows = [{'row': kind} | row for kind, of in rows.items() for row in of]
  return {'config': config, 'num_classes': 4, 'rows': rows}


def test_sentences_follow_the_numbers():
  """How far towards balance, which way with wrong labels, below or not."""
  balance = [
    {'law': law, 'factor': factor, 'effective_classes': classes}
    for law, factor, classes in (
      ('uniform', 1.0, 4.0),
      ('uniform', 0.1, 2.0),
      ('focal', 1.0, 4.0),
      ('focal', 0.1, 3.0),
    )
  ]
  said = early_law_report._balance_verdict(result_of(balance=balance))
  assert said.startswith('At factor 0.1, of the way from the 2.00 effective')
  assert said.endswith('to 4: focal 50%.')
  noise = [
    {'law': law, 'share': share, 'flipped_mass': mass}
    for law, share, mass in (
      ('uniform', 0.1, 0.1),
      ('focal', 0.0, 0.0),
      ('focal', 0.1, 0.2),
      ('focal', 0.4, 0.5),
      ('std', 0.1, 0.01),
      ('el2n', 0.1, 0.2),
      ('el2n', 0.4, 0.3),
    )
  ]
  said = early_law_report._noise_verdict(result_of(noise=noise))
  assert 'in times their share: focal (1.25 to 2.00).' in said
  assert 'Away from them: std (0.10 to 0.10).' in said
  assert said.endswith('the other: el2n (0.75 to 2.00).')
  pair = {'law': 'focal', 'first': 'wide_mlp', 'difference': -0.1}
  models = [
    pair | {'second': 'deep_mlp', 'low': -0.2, 'high': -0.01},
    pair | {'second': 'cnn', 'low': -0.3, 'high': 0.1, 'difference': -0.2},
    pair | {'second': 'slow_wide_mlp', 'low': -0.2, 'high': -0.1},
    pair | {'second': 'wide_mlp', 'low': 0, 'high': 0},
  ]
  said = early_law_report._models_verdict(result_of(models=models))
  assert said.startswith(
    'Of two networks under one optimiser, 1 of 2 comparisons are below the '
    'ceiling, by focal -0.20 to -0.10. Of one network under two optimisers, 1 '
    'of 1 comparisons are below the ceiling, by focal -0.10. The intervals'
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config.problem=other'], 'problem must be one of digits, fashion_mni'),
    (['--config.batch_size=0'], 'batch_size must be at least 1; got 0'),
    (['--config.num_seeds=2'], 'num_seeds must be at least 3; got 2'),
    (['--config.factors=(0.0,)'], r'factors must be numbers in \(0, 1\]'),
    (['--config.factors=(0.001,)'], 'factors: factor leaves class'),
    (['--config.shares=(1.5,)'], r'shares must be numbers in \[0, 1\]'),
    (['--config.problems.digits.block=3'], 'block must divide the 8 x 8 pix'),
    (['--config.problems.digits.block=0'], 'block must be at least 1'),
    (['--config.problems.digits.warmup_epochs=0.5'], 'warmup_epochs must be'),
    (['--config.problems.digits.class_size=999'], 'at most 131, the smalles'),
    (['--config.batch_size=2000'], 'batch_size must be at most num_examples'),
    (["--config.problems.digits.models=('no',)"], 'models must be one of cnn'),
    (['--config.models.cnn.optimizer.name=sdg'], 'optimizer.name must be one'),
    (['--config.models.wide_mlp.model.name=cnm'], 'model.name must be one of'),
  ],
)
def test_a_bad_setting_is_one_line(arguments, message, tmp_path, capsys):
  """Status 2, and nothing was written."""
  folder = tmp_path / 'runs'
  only = "--config.sweep.problems=('digits',)"
  if 'models.cnn' in arguments[0]:
    arguments = [*arguments, "--config.problems.digits.models=('cnn',)"]
  assert sweep.main([CONFIG, *arguments, only, f'--folder={folder}']) == 2
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith('error: ')
  assert re.search(message, last), last
  assert not folder.exists()


def test_every_problem_of_the_config_is_known():
  """And passes the study's own check."""
  _, config, _ = settings.load(CONFIG, [])
  check = studies.STUDIES['early_law'].check
  for problem in config['sweep']['problems']:
    check(config | {'problem': problem})
