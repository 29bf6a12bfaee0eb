"""experiments/studies/boundary: exact laws and risks, table and figures."""

import csv
import pathlib
import re
import types

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import settings, studies, sweep
from experiments.studies import boundary, boundary_figures, boundary_report
from experiments.studies.training import loss_fn
from isjax.scores import SCORES

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / 'configs/boundary.py')
SIGMAS = 4
SMALL = (
  '--config.num_examples=256',
  '--config.hidden=(8,)',
  '--config.budget=4000',
  '--config.stages=(0.5,1.0)',
  '--config.learning_rates=(0.01,0.1)',
  '--config.num_seeds=2',
  '--config.map_size=12',
)


# --- the square ---------------------------------------------------------------


def test_chances_by_hand():
  """Half on the boundary, sigmoid(4) a tenth above it, sigmoid(-4) below."""
  np.testing.assert_allclose(boundary.boundary(np.array([-0.5])), 0.5)
  np.testing.assert_allclose(
    boundary.boundary(np.array([0.5])), 0.5 - 0.2523, atol=1e-4
  )
  x = np.linspace(0, 1, 7)
  y = boundary.boundary(x)
  assert 1 / 6 <= y.min() < y.max() <= 5 / 6
  for above, expected in ((0, 0.5), (0.1, 0.98201), (-0.1, 0.01799)):
    points = np.stack([x, y + above], 1)
    np.testing.assert_allclose(
      boundary.chance(points, 40.0), expected, atol=1e-5
    )


def test_labels_are_drawn_by_their_chances():
  """Uniform points; as many of class 1 as the chances say, near and far."""
  n = 4000
  batch = boundary.draw_points(3, n, 40.0)
  points, labels = (np.asarray(a, np.float64) for a in batch[:2])
  assert 0 <= points.min() < points.max() <= 1
  np.testing.assert_allclose(
    points.mean(0), 0.5, atol=SIGMAS * (12 * n) ** -0.5
  )
  eta = boundary.chance(points, 40.0)
  for chosen in (eta < 0.2, (eta >= 0.2) & (eta <= 0.8), eta > 0.8):
    sigma = np.sqrt(np.sum((eta * (1 - eta))[chosen]))
    assert abs(np.sum((labels - eta)[chosen])) < SIGMAS * sigma


def test_the_grid_is_read_row_by_row():
  """Middles of the squares, x the fastest: the first row has the least y."""
  expected = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
  np.testing.assert_array_equal(boundary.grid(2), expected)


def test_distances_against_all_points_of_the_curve():
  """A point on it has none; elsewhere the least over a finer curve."""
  random = np.random.RandomState(0)
  points = random.uniform(size=(20, 2))
  points[0] = 0.3, boundary.boundary(0.3)
  x = np.linspace(0, 1, 100_003)
  curve = np.stack([x, np.sin(4 * (x + 0.5) ** 5) / 3 + 0.5], 1)
  expected = [np.linalg.norm(curve - point, axis=1).min() for point in points]
  found = boundary.distance_to_boundary(points)
  # Half the longest step of the curve, at a slope of 34.
  np.testing.assert_allclose(found, expected, atol=34 / 2 / 20_000)


def test_examples_of_the_square_are_a_law():
  """Chances sum to one; each point has both classes, as the labels have."""
  where = boundary.square(5, 40.0)
  assert where.chances.sum() == pytest.approx(1)
  points = np.asarray(where.examples.inputs, np.float64)
  targets = np.asarray(where.examples.targets)
  eta = boundary.chance(points, 40.0)
  expected = np.where(targets == 1, eta, 1 - eta)
  np.testing.assert_allclose(where.label_chances, expected, rtol=2e-4)


# --- laws ---------------------------------------------------------------------


def test_density_by_hand():
  """Two points; the second is of class 1 with chance 1/4."""
  chances = np.array([0.5, 0.375, 0.0, 0.125])
  scores = np.array([1.0, 0.0, 7.0, 12.0])
  found = boundary.density(scores, chances)
  np.testing.assert_allclose(found, [0.5, 1.5])  # .5 and 1.5
  np.testing.assert_array_equal(boundary.density(0 * scores, chances), 1)
  np.testing.assert_allclose(boundary.density(1 + 0 * scores, chances), 1)


def test_second_moment_is_that_of_weighted_draws():
  """Sum over the draws of a law of |g / (N p)|^2; no law has less than |g|."""
  random = np.random.RandomState(1)
  chances = random.dirichlet(np.ones(9))
  norms, scores = random.exponential(size=(2, 9))
  p = chances * scores / (chances @ scores)
  weights = chances / p
  expected = p @ (weights * norms) ** 2 / (chances @ norms**2)
  found = boundary.compare(scores, norms, chances)
  assert found['second_moment'] == pytest.approx(expected)
  ideal = boundary.compare(norms, norms, chances)
  assert ideal['second_moment'] < found['second_moment']
  assert ideal['correlation'] == pytest.approx(1)
  uniform = boundary.compare(np.ones(9), norms, chances)
  assert uniform == {'second_moment': pytest.approx(1)}


def test_correlation_is_pearsons():
  """Under equal chances; under others, that of repeated examples."""
  random = np.random.RandomState(2)
  norms, scores = random.exponential(size=(2, 6))
  times = np.array([1, 2, 3, 1, 4, 1])
  found = boundary.compare(scores, norms, times / times.sum())
  repeated = np.corrcoef(np.repeat(scores, times), np.repeat(norms, times))
  assert found['correlation'] == pytest.approx(repeated[0, 1])


def test_an_example_that_is_never_drawn_is_missed():
  """Unless it has no gradient either."""
  chances = np.full(2, 0.5)
  missed = boundary.compare(np.array([0.0, 1.0]), np.array([1.0, 1.0]), chances)
  assert missed['second_moment'] == np.inf
  idle = boundary.compare(np.array([0.0, 1.0]), np.array([0.0, 1.0]), chances)
  assert idle['second_moment'] == pytest.approx(0.5)


def known_network(where):
  """A program whose network knows the chances, at the points of the square."""
  eta = where.label_chances.reshape(2, -1).T
  logits = jnp.log(jnp.asarray(eta, jnp.float32))
  return types.SimpleNamespace(
    outputs=lambda params, points: logits[jnp.arange(len(points)) % len(eta)]
  )


def test_the_known_scores_are_those_of_a_network_that_knows():
  """The registry's scores of log chances."""
  where = boundary.square(6, 4.0)
  logits = known_network(where).outputs({}, where.examples.inputs)
  for name, scores in boundary.known_scores(where).items():
    found = SCORES[name](loss_fn)(logits, where.examples.targets)
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-6)


def test_a_network_that_knows_the_chances_has_no_excess():
  """A constant one has log 2 - the least loss, and errs by its class."""
  where = boundary.square(6, 4.0)
  state = types.SimpleNamespace(params={}, step=3, cost=7)
  found = boundary._results(known_network(where), state, where.examples, where)
  assert found['excess_loss'] == pytest.approx(0, abs=1e-6)
  assert found['excess_error'] == pytest.approx(0, abs=1e-12)
  assert (found['steps'], found['cost']) == (3, 7)
  constant = types.SimpleNamespace(
    outputs=lambda params, points: jnp.zeros((len(points), 2))
  )
  found = boundary._results(constant, state, where.examples, where)
  eta = where.label_chances[36:]
  entropy = -eta @ np.log(eta) - (1 - eta) @ np.log(1 - eta)
  assert found['excess_loss'] == pytest.approx(np.log(2) - entropy / 36)
  assert found['train_loss'] == pytest.approx(np.log(2))
  error = np.mean(eta) - np.mean(np.minimum(eta, 1 - eta))
  assert found['excess_error'] == pytest.approx(error)


def test_noise_of_labels_bounds_what_there_is_to_gain():
  """E[s]^2 / E[s^2] = 4 x the mean of eta (1 - eta), 4 / smoothness."""
  where = boundary.square(400, 40.0)
  bound = boundary.known_scores(where)['logit_gradient_norm']
  found = boundary.compare(bound, bound, where.chances)
  # A band within the square has the area 1 / 40; sums err by its tails.
  assert found['second_moment'] == pytest.approx(4 / 40, rel=1e-3)


def test_the_learning_rate_falls_to_0():
  """From 1 by half a cosine."""
  found = boundary._cosine(jnp.array([0.0, 1 / 3, 0.5, 1.0]))
  np.testing.assert_allclose(found, [1, 0.75, 0.5, 0], atol=1e-6)


def test_maps_survive_their_encoding():
  """To within half a step of 2^(1/16), and within the range."""
  density = np.geomspace(2**-8, 200, 100)
  found = boundary_figures.decode(boundary_figures.encode(density))
  np.testing.assert_allclose(found, density, rtol=2 ** (1 / 32) - 1 + 1e-9)
  ends = boundary_figures.decode(boundary_figures.encode(np.array([0, 1e9])))
  np.testing.assert_allclose(ends, [2**-8, 2 ** (255 / 16 - 8)])


# --- from the command line ----------------------------------------------------


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A small run of two ways to draw: its folder."""
  folder = tmp_path_factory.mktemp('boundary')
  ways = "--config.sweep.sampling=('uniform','logit_gradient_norm')"
  assert sweep.main([CONFIG, *SMALL, ways, f'--folder={folder}']) == 0
  return folder


def rows_of(folder, kind):
  with (folder / 'rows.csv').open() as file:
    return [row for row in csv.DictReader(file) if row['row'] == kind]


def test_a_run_writes_table_and_figures(small):
  """A line per score and stage, and one per way to draw."""
  text = (small / 'table.md').read_text()
  lines = re.findall(r'^\| (?:50%|100%|known) +\| ', text, re.M)
  assert len(lines) == 2 * 3 + 2
  assert re.search(r'^\| uniform +\| 0\.', text, re.M)
  assert re.search(r'^\| logit-gradient norm \(the bound\) +\| 0\.', text, re.M)
  for name in ('maps', 'risk'):
    assert matplotlib.image.imread(small / f'{name}.png').std() > 0.05


def test_what_a_run_finds_is_consistent(small):
  """Equal cost, no risk below the least, the norm's law the best of all."""
  results = rows_of(small, 'result')
  assert len(results) == 2 * 2 * 2 * 2
  for row in results:
    step = 96 if row['sampling'] == 'uniform' else 256
    stage = float(row['stage'])
    assert 0 <= int(row['cost']) - stage * 4000 < step
    assert int(row['cost']) == step * int(row['steps'])
    assert float(row['excess_loss']) > 0
    assert float(row['excess_error']) >= 0
  losses = {
    rate: [
      float(r['train_loss']) for r in results if r['learning_rate'] == rate
    ]
    for rate in ('0.01', '0.1')
  }
  assert np.mean(losses['0.1']) < np.mean(losses['0.01'])  # so few steps
  laws = rows_of(small, 'law')
  assert len(laws) == 2 * 2 * 2 * 3
  by_place = {}
  for row in laws:
    place = row['sampling'], row['learning_rate'], row['stage']
    moment = float(row['second_moment'] or 'inf')
    by_place.setdefault(place, {})[row['score']] = moment
    assert -1 <= float(row['correlation']) <= 1 + 1e-9
    assert 0 < float(row['near_mass_0']) <= float(row['near_mass_1']) <= 1
  for moments in by_place.values():
    assert min(moments.values()) == moments['gradient_norm'] <= 1


def test_the_best_rate_is_that_of_the_least_training_loss():
  """By geometric mean, at the end of training."""
  rows = [
    {
      'row': 'result',
      'learning_rate': rate,
      'stage': stage,
      'train_loss': loss,
    }
    for rate, stage, losses in (
      (0.1, 1.0, (0.1, 10.0)),
      (0.2, 1.0, (2.0, 2.0)),
      (0.2, 0.5, (0.01, 0.01)),
    )
    for loss in losses
  ]
  result = {'config': {'learning_rates': (0.1, 0.2)}, 'rows': rows}
  assert boundary_report.best_rate(result) == 0.1


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('sampling=other', 'sampling must be one of logit_gradient_norm, loss'),
    ('smoothness=0.0', 'smoothness must be positive; got 0.0'),
    ('num_examples=0', 'num_examples must be at least 1'),
    ('hidden=(0,)', 'hidden must be widths of at least 1'),
    ('momentum=1.0', r'momentum must be in \[0, 1\)'),
    ('learning_rates=()', 'learning_rates must be positive numbers'),
    ('budget=0', 'budget must be at least 1'),
    ('stages=(0.5,)', r'stages must be increasing numbers in \(0, 1\], the l'),
    ('stages=(0.5,0.2,1.0)', 'stages must be increasing numbers'),
    ('num_seeds=1', 'num_seeds must be at least 2'),
    ('map_size=1', 'map_size must be at least 2'),
    ('distances=(0.0,)', 'distances must be positive numbers'),
    ('methods.loss.score=lost', 'score must be one of logit_gradient_norm'),
    ('methods.loss.sampler.name=lost', 'sampler.name must be one of '),
    ('learning_rates=(1e30,)', 'the training loss is not finite; lower learn'),
  ],
)
def test_a_bad_setting_is_one_line(argument, message, tmp_path, capsys):
  """Status 2, and nothing was written."""
  folder = tmp_path / 'runs'
  small = [*SMALL, "--config.sweep.sampling=('loss',)"]
  small = [s for s in small if argument.split('=')[0] not in s or 's.' in s]
  arguments = [CONFIG, *small, f'--config.{argument}', f'--folder={folder}']
  assert sweep.main(arguments) == 2
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith('error: ')
  assert re.search(message, last), last
  assert not folder.exists()


def test_every_way_to_draw_of_the_config_is_known():
  """And passes the study's own check."""
  _, config, _ = settings.load(CONFIG, [])
  for sampling in config['sweep']['sampling']:
    studies.STUDIES['boundary'].check(config | {'sampling': sampling})
