"""The scaling study: its arithmetic, and a run in small."""

import json
import math

import jax
from matplotlib.image import imread
import numpy as np
import pytest

from experiments.benchmarks import (
  scaling,
  scaling_cases,
  scaling_plan,
  scaling_report,
  scaling_staleness,
  timing,
)
from experiments.benchmarks.scaling_plan import Kind, Run
from experiments.benchmarks.scaling_staleness import Drift

PROGRAM = """
  %a = f32[4,8]{1,0} all-reduce(%p), replica_groups={{0,1}}
  %b = (f32[8]{0}, pred[3]{0}) all-gather(%x, %y), dimensions={0}
  ROOT %c = s32[2,3]{1,0} reduce-scatter(%z), to_apply=%sum
  %d = u32[] all-reduce(%n), metadata={op_name="all-gather(x)"}
  %e = f32[7]{0} add(%u, %all-reduce.1)
"""


def test_what_crosses_is_read_from_a_program():
  """Every array of each collective, whole; names and texts are none."""
  assert scaling_plan.crossings(PROGRAM, 2) == [
    ('all-reduce', 128),
    ('all-gather', 32),
    ('all-gather', 3),
    ('reduce-scatter', 48),
    ('all-reduce', 4),
  ]


def test_a_program_that_is_not_understood_is_an_error():
  """A collective in two halves, and a dtype without a width."""
  with pytest.raises(ValueError, match='all-gather-start'):
    scaling_plan.crossings('%a = f32[4] all-gather-start(%p)', 2)
  with pytest.raises(ValueError, match='c64'):
    scaling_plan.crossings('%a = c64[4] all-reduce(%p)', 2)


def test_traffic_by_hand():
  """All-reduces count twice; rows are what is scattered."""
  pairs = scaling_plan.crossings(PROGRAM, 2)
  assert scaling_plan.around(pairs) == 2 * 132 + 35 + 48
  assert scaling_plan.traffic(pairs, 128, 4) == (256, 12, 43 / 4)


def test_the_plan_by_hand():
  """3e9 examples of 16 bytes, 40 at the peak, on hosts of 32e9 and of 1e12."""
  kind = Kind(held=16, peak=40, seconds=5e-8, words=32, scalars=200)
  run = Run(host=32e9, batch_size=1000, row=100, gradient=10**6)
  found = scaling_plan.plan(3 * 10**9, kind, run)
  assert found == pytest.approx(
    {
      'hosts': 4,
      'held': 12e9,
      'peak': 30e9,
      'seconds': 37.5,
      'sent_globally': 0.75 * 132_000,
      'sent_by_quota': 0.75 * 200,
      'sent_gradient': 1.5e6,
      'epoch': 3e6,
    }
  )
  large = scaling_plan.plan(3 * 10**9, kind, run._replace(host=1e12))
  assert large['hosts'] == 3  # 2^30 each
  assert scaling_plan.plan(10**9, kind, run._replace(host=1e12))['hosts'] == 1


@pytest.mark.parametrize('ratio', [0.1, 1.0, 3.0])
@pytest.mark.parametrize('mix', [0.0, 0.1, 1.0])
def test_unseen_examples_solve_their_equation(ratio, mix):
  """dE/du = -1 / (u h(u)), by central differences; E(1) = 0; and back."""
  assert scaling_staleness.epochs_until(1.0, ratio, mix) == 0
  for u in (0.9, 0.3, 1e-3):
    sides = [
      scaling_staleness.epochs_until(u * f, ratio, mix) for f in (1.001, 0.999)
    ]
    rate = (1 - mix) / (u + (1 - u) * ratio) + mix
    assert (sides[1] - sides[0]) / 0.002 == pytest.approx(1 / rate, rel=1e-4)
    epochs = scaling_staleness.epochs_until(u, ratio, mix)
    assert scaling_staleness.unseen_after(epochs, ratio, mix) == pytest.approx(
      u
    )


def test_uniform_draws_leave_exponentially_few_unseen():
  """u = exp(-E) if all count the same, or all draws are uniform."""
  for ratio, mix in ((1.0, 0.3), (0.2, 1.0)):
    unseen = scaling_staleness.unseen_after(2.0, ratio, mix)
    assert unseen == pytest.approx(math.exp(-2))


def test_the_sampler_leaves_as_many_unseen(key):
  """`memory` itself: 4 standard deviations, and the draws of one step."""
  size, batch, initial = 4096, 64, 4.0
  drift = Drift(size, batch, spread=0.0, epochs=math.inf)
  options = (('initial_score', initial), ('mix', 0.1))
  seen = scaling_staleness.simulate(key, drift, 2 * size // batch, options)
  for epochs in (0.5, 1, 2):
    expected = scaling_staleness.unseen_after(epochs, 1 / initial, 0.1)
    got = float(seen.unseen[int(epochs * size / batch) - 1])
    bound = 4 * math.sqrt(expected * (1 - expected) / size) + batch / size
    assert abs(got - expected) < bound, epochs


def test_a_score_that_is_drawn_by_is_an_epoch_old():
  """Over draws N / b - 1/2 steps for any law; over examples by 1 / (N p)."""
  law = np.random.default_rng(0).lognormal(size=10**5)
  law = 0.9 * law / law.sum() + 0.1 / len(law)
  over_draws, over_examples = scaling_staleness.mean_age(law, 100)
  assert over_draws == pytest.approx(10**3, rel=1e-3)
  inverse = (1 / (100 * law)).mean()
  assert over_examples == pytest.approx(inverse, rel=1e-3)
  assert over_draws < over_examples < 10**3 / 0.1
  assert scaling_staleness.mean_age(np.full(4, 0.25), 1) == pytest.approx(
    (3, 3)
  )


def test_the_sampler_has_ages_as_reckoned(key):
  """Scores that stay: ages over T steps, within 4 standard deviations.

  A renewal process with exponential gaps of mean a has a mean age over T of
  variance 2 a^3 / T.
  """
  size, batch, steps = 512, 16, 2000
  drift = Drift(size, batch, spread=1.0, epochs=math.inf)
  seen = scaling_staleness.simulate(key, drift, 2 * steps)
  scores = np.asarray(jax.random.normal(jax.random.split(key)[0], (size,)))
  scores = np.exp(np.float64(scores))
  law = 0.9 * scores / scores.sum() + 0.1 / size
  expected = scaling_staleness.mean_age(law, batch)
  for i, shares in enumerate((law, np.full(size, 1 / size))):
    variances = 2 * (batch * law) ** -3 / steps
    bound = 4 * np.sqrt((shares**2 * variances).sum())
    assert abs(seen.age[steps:, i].mean() - expected[i]) < bound
  assert seen.unseen[-1] == 0
  least = scores.mean() ** 2
  np.testing.assert_allclose(
    seen.variance[-1], (scores**2 / (size * law)).mean() / least, rtol=1e-4
  )
  uniform = (scores**2).mean() / least
  np.testing.assert_allclose(seen.uniform[-1], uniform, rtol=1e-4)


def test_scores_that_forget_within_an_epoch_are_not_worth_drawing_by(key):
  """The second moment is above that of uniform draws."""
  drift = Drift(1024, 32, spread=1.0, epochs=0.1)
  seen = scaling_staleness.simulate(key, drift, 320)
  assert seen.variance[160:].mean() > seen.uniform[160:].mean()


def test_one_device_in_small(monkeypatch):
  """Sizes as the table and the tree have them; times of all calls."""
  monkeypatch.setattr(scaling_cases, 'NUM_DRAWS', 16)
  table = scaling_cases._table(1000, rounds=1)
  tree = scaling_cases._tree(1000, rounds=1)
  assert table['octets'] == 16 * 1000 + 4
  assert tree['octets'] == 4 * (1000 + 64 + 16 + 1)
  for found, calls in ((table, ('build', 'draw')), (tree, ('build', 'update'))):
    assert found['temporary'] > 0
    assert all(found[call]['minimum'] > 0 for call in calls)


@pytest.mark.slow
def test_devices_in_small():
  """In a process with two: a global draw crosses whole, by quota nothing."""
  found = scaling.measure(
    'on_devices',
    devices=2,
    num_items=256,
    rounds=1,
    only=['draw, global', 'draw, quota'],
  )
  assert found['devices'] == 2
  assert found['processes'] == 1
  octets = 4 * scaling_cases.NUM_DRAWS  # of an item, and of its chance
  programs = found['programs']
  assert sorted(programs) == ['draw, global', 'draw, quota']
  assert programs['draw, global']['crossings'] == [['all-reduce', octets]] * 2
  assert programs['draw, quota']['crossings'] == []
  assert scaling_report.sent(found, 'draw, global') == 2 * octets


def test_a_process_that_fails_is_an_error():
  """With the last of what it said."""
  with pytest.raises(SystemExit, match='(?s)error: nothing.*KeyError'):
    scaling.measure('nothing')


def test_processes_add_their_work():
  """Times are summed; what is the same for all is that of the first."""
  found = [
    {'devices': 2, 'programs': {'a': {'minimum': m, 'median': 3, 'elapsed': 5}}}
    for m in (1, 2)
  ]
  assert scaling._together(found) == {
    'devices': 2,
    'programs': {'a': {'minimum': 3, 'median': 6, 'elapsed': 5}},
  }


def made_up(function, processes=1, devices=1, *, num_items, rounds):
  """What `measure` would find, in round numbers."""
  del rounds
  time = {'minimum': 1e-6 * num_items, 'median': 2e-6 * num_items}
  time |= {'share_of_core': 1e5 / num_items}
  part = {'octets': 16 * num_items, 'temporary': 24 * num_items, 'peak': 0}
  if function == 'with_items':
    calls = {'build': time, 'draw': time, 'update': time, 'step': time}
    names = 'uniform', 'record_weighted', 'memory'
    return {
      'num_items': num_items,
      'table': part | calls,
      'tree': part | calls | {'octets': 4 * num_items},
      'steps': {n: part | calls | {'octets': 20 * num_items} for n in names},
    }
  gradient = ['all-reduce', scaling_cases.gradient_octets()]
  crossings = [gradient, ['reduce-scatter', 128 * 10], ['all-gather', 1024]]
  return {
    'num_items': num_items,
    'devices': processes * devices,
    'processes': processes,
    'programs': {
      name: time | {'crossings': crossings, 'loopback': 7}
      for name in scaling_cases._PROGRAMS
    },
  }


def test_a_run_in_small(monkeypatch, tmp_path, capsys):
  """All that was measured is in the tables; what was not is named.

  The plan is made of the largest N and the most devices.
  """
  monkeypatch.setattr(timing, 'RESULTS', tmp_path)
  monkeypatch.setattr(timing, 'pin', lambda core: None)
  monkeypatch.setattr(scaling, 'measure', made_up)
  monkeypatch.setattr(scaling_staleness, 'SIMULATED', Drift(256, 16, 1.0, 1.0))
  monkeypatch.setattr(scaling_staleness, 'FORGETTING', (1.0,))
  monkeypatch.setattr(
    scaling, 'shortage', lambda size: 'too large' if size > 10**5 else None
  )
  scaling.main(['--rounds=1', '--largest=1e6'])
  content = json.loads((tmp_path / 'scaling.json').read_text())
  assert [found['num_items'] for found in content['sizes']] == [10**4, 10**5]
  assert content['least_share_of_core'] == 1
  assert content['left_out'] == {
    '1e+06': 'too large',
    '1e+07': 'not asked for',
    '1e+08': 'not asked for',
  }
  assert len(content['parts']) == len(scaling.PARTS)
  assert len(content['simulated']) == len(scaling_staleness.SIMULATED_EPOCHS)
  kinds = scaling_report.kinds(content)
  assert kinds['memory, tree'] == (20, 40, 2e-6, 8, 1024)
  assert kinds['fixed law'] == (20, 48, 2e-6, 8, 1024)
  rebuilt = kinds['memory, rebuilt tables']
  assert rebuilt[:3] + rebuilt[4:] == (32, 76, 2e-6, 1024)
  assert math.isnan(rebuilt.words)
  assert len(content['plan']) == len(kinds) * len(scaling_report.PLANNED)
  text = (tmp_path / 'scaling.md').read_text()
  assert capsys.readouterr().out.startswith(text)
  for part in (
    '1e+06: too large',
    'D = 8',
    '2 processes',
    'fixed law',
    '1e+11',
  ):
    assert part in text
  pixels = imread(tmp_path / 'scaling.png')[..., :3]
  half, third = pixels.shape[0] // 2, pixels.shape[1] // 3
  for row in (0, half):
    for column in (0, third, 2 * third):
      panel = pixels[row : row + half, column : column + third]
      assert panel[::4, ::4].std() > 0.05


def test_a_case_that_memory_does_not_hold_is_left_out(monkeypatch):
  """With the gigabytes it would take; a small one is not."""
  assert scaling.shortage(10**4) is None
  monkeypatch.setattr(scaling, 'NEEDED', 10**9)
  assert scaling.shortage(10**6).startswith('it takes 1000000.0 GB')
