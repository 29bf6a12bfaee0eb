"""experiments/comparisons.py and claims.py: rows, targets, groups, answers."""

import types

import numpy as np
import pytest
from scipy import stats

from experiments import claims, comparisons, tables
from experiments.claims import Claim
from experiments.settings import SettingsError

LOSSES = np.array([0.2, 0.3, 0.25, 0.4])


def record(cell, seed, metrics=(), **result):
  config = {
    'name': 'made up',
    'cell': cell,
    'seed': seed,
    'budget': 100,
    'optimizer': {'learning_rate': 0.1},
    'sampler': {'name': 'uniform', 'batch_size': 4},
  }
  result = {
    'status': 'finished',
    'train_loss': 1.0,
    'test_error': 0.5,
    'steps': 10,
    'cost': 100,
    'seconds': 1.0,
    'device': 'none',
    'commit': 'none',
    'python': '3',
    'versions': {},
    **result,
  }
  return comparisons.Record(config, result, list(metrics))


def rows_of(name, **values):
  """A row per cell, its runs in the order of the values."""
  records = [
    record(cell, seed, **{name: float(value)})
    for cell, of_cell in values.items()
    for seed, value in enumerate(of_cell)
  ]
  return comparisons.best(comparisons.rows(records))


def test_a_comparison_is_the_paired_t_test_of_scipy():
  """Interval and p-value, in points, and in logarithms for a ratio."""
  theirs = LOSSES + np.array([0.01, 0.05, -0.02, 0.03])
  rows = rows_of('test_error', a=LOSSES, b=theirs)
  compared = comparisons.compare(rows['a'], rows['b'], 'test_error')
  expected = stats.ttest_rel(100 * LOSSES, 100 * theirs)
  assert compared.p_value == pytest.approx(expected.pvalue)
  interval = expected.confidence_interval(0.95)
  np.testing.assert_allclose(compared.difference[1:], interval)
  assert compared.num_pairs == 4
  rows = rows_of('train_loss', a=LOSSES, b=theirs)
  compared = comparisons.compare(rows['a'], rows['b'], 'train_loss')
  expected = stats.ttest_rel(np.log(LOSSES), np.log(theirs))
  assert compared.p_value == pytest.approx(expected.pvalue)
  ratio = np.exp(np.mean(np.log(LOSSES / theirs)))
  assert compared.text.startswith(f'x {ratio:.3g} [')


def test_a_difference_that_never_varies_has_no_p_value():
  """Nor has that of one pair; both are undecided."""
  rows = rows_of('test_error', a=[0.25, 0.5], b=[0.5, 0.75], c=[0.1])
  for other in ('b', 'c'):
    compared = comparisons.compare(rows['a'], rows[other], 'test_error')
    assert np.isnan(compared.p_value)
    assert not compared.is_better
    assert not compared.is_worse


@pytest.mark.parametrize(
  ('metric', 'direction'),
  [('test_error', -1), ('test_average_precision', 1), ('train_loss', -1)],
)
def test_a_claim_holds_where_the_interval_is_on_its_side(metric, direction):
  """Both ways round, for metrics of which more, or less, is better."""
  noise = np.array([1.0, 1.02, 0.98, 1.01])
  rows = rows_of(
    metric, low=0.2 * noise, high=0.4 * noise[::-1], same=0.2 * noise[::-1]
  )
  better, worse = ('low', 'high') if direction < 0 else ('high', 'low')

  def answer(cell, other):
    line = claims.judge(Claim('x beats y', cell, other, metric), rows)
    return line.partition(':')[0]

  assert answer(better, worse) == '- Holds'
  assert answer(worse, better) == '- Does not hold'
  assert answer('low', 'same') == '- Undecided'
  assert answer('low', 'absent') == '- Not run'


def test_a_claim_says_by_how_much():
  """With both names, the interval and n."""
  rows = rows_of('test_error', a=[0.1, 0.12], b=[0.2, 0.23])
  line = claims.judge(Claim('a is right', 'a', 'b', 'test_error'), rows)
  assert line.startswith(
    '- Holds: a is right. The test error of "a" differs by'
  )
  assert '-10.50 [' in line
  assert line.endswith('points from that of "b" (n = 2).')


def test_a_claim_about_no_metric_is_an_error():
  """It lists those that there are."""
  module = types.ModuleType('config')
  module.CLAIMS = (('it is fast', 'a', 'b', 'speed'),)
  with pytest.raises(SettingsError, match="one of cost_to.*got 'speed'"):
    claims.of(module)


def lines(*points):
  """Evaluations (cost, test error), a step per unit of cost."""
  return [
    {'cost': c, 'step': c, 'seconds': c / 10, 'test_error': e}
    for c, e in points
  ]


def test_the_target_is_the_baselines_end_of_the_same_seed():
  """By hand: reached early, at the end, and not at all."""
  records = [
    record('u', 0, lines((0, 0.9), (50, 0.4), (100, 0.3)), test_error=0.3),
    record('u', 1, lines((0, 0.9), (50, 0.2), (100, 0.2)), test_error=0.2),
    record('i', 0, lines((0, 0.9), (20, 0.3), (80, 0.5)), test_error=0.5),
    record('i', 1, lines((0, 0.9), (20, 0.3), (80, 0.25)), test_error=0.25),
    record('i', 2, lines((0, 0.9)), test_error=0.1),
  ]
  u, i = comparisons.rows(records)
  u, i = comparisons.add_target([u, i], u, 'test_error')
  np.testing.assert_array_equal(u.values('cost_to_target'), [100, 50])
  np.testing.assert_array_equal(i.values('cost_to_target'), [20, 80])
  np.testing.assert_array_equal(i.values('steps_to_target'), [20, 80])
  np.testing.assert_allclose(i.values('seconds_to_target'), [2, 8])
  np.testing.assert_array_equal(i.values('reached_target'), [True, False])
  np.testing.assert_array_equal(u.values('reached_target'), [True, True])


def config_of(**attributes):
  module = types.ModuleType('config', 'Made up.')
  module.BASELINE = 'u'
  for name, value in attributes.items():
    setattr(module, name, value)
  return module


def test_cells_are_compared_within_their_group():
  """Each group has its table, its baseline and its answers."""
  records = [
    record(
      f'{group}: {cell}', seed, test_error=error + 0.01 * seed * (seed + k)
    )
    for k, (group, cell, error) in enumerate(
      [('A', 'u', 0.5), ('A', 'i', 0.1), ('B', 'u', 0.1), ('B', 'i', 0.5)]
    )
    for seed in range(3)
  ]
  claim = ('i is better', 'i', 'u', 'test_error')
  text = tables.document(records, config_of(CLAIMS=(claim,)))
  assert text.count('\n## ') == 3  # A, B, Claims
  assert '- Holds (A): i is better.' in text
  assert '- Does not hold (B): i is better.' in text
  (row,) = [x for x in text.splitlines() if x.startswith('| A: i |')]
  assert '| -39.00 [' in row  # -40 + (0 + 2 + 6) / 3 - (0 + 1 + 4) / 3


def test_the_table_has_the_metrics_and_the_papers_numbers_it_is_asked_for():
  """And leaves out columns in which nothing was measured."""
  records = [
    record(cell, seed, test_balanced_error=0.1 * seed)
    for cell in 'ui'
    for seed in range(2)
  ]
  text = tables.document(
    records,
    config_of(METRICS=('test_balanced_error',), PAPER={'i': '3 (their table)'}),
  )
  header, _, _, row = [x for x in text.splitlines() if x.startswith('|')]
  assert '| balanced test error %, mean (sd) |' in header
  assert 'train loss' not in header
  assert 'importance-sampled' not in header
  assert '| 5.00 (7.07) |' in row
  assert row.endswith('| 3 (their table) |')


def test_a_cell_that_was_left_out_is_a_line_of_dashes():
  """With the reason below."""
  records = [record('u', 0), record('u', 1)]
  text = tables.document(records, config_of(), {'lost': 'no such data.'})
  (row,) = [x for x in text.splitlines() if x.startswith('| lost |')]
  assert set(row.replace('lost', '').split()) == {'|', '-'}
  assert '- lost: left out. no such data.' in text
