"""benchmarks: the statistics on a made-up clock, and what ends in an error."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import (
  host_loop,
  laws,
  loops,
  rivals,
  sampler,
  sampler_figure,
  sampler_report,
  step,
  timing,
)
from experiments.benchmarks.laws import Exactness
from experiments.benchmarks.sampler_report import Case
from experiments.benchmarks.timing import (
  Contender,
  Row,
  Seconds,
  Target,
  Timing,
)


class Clock:
  """Stands still, but for what the contenders let pass."""

  def __init__(self):
    self.now = 0.0
    self.calls = []

  def __call__(self):
    return Seconds(self.now, 2 * self.now)

  def contender(self, name, durations, steps):
    """Takes the next of `durations` at each call."""
    remaining = iter(durations)

    def run():
      self.calls.append(name)
      self.now += next(remaining)

    return Contender(run, steps)


def timing_of(*processor):
  return Timing(tuple(Seconds(p, p) for p in processor))


def test_interleave_takes_turns_and_times_the_second_call_of_each():
  """Neither the warm-up nor a turn's first call counts; per step."""
  clock = Clock()
  contenders = {
    'a': clock.contender('a', [100, 90, 3, 80, 1, 70, 8], steps=1),
    'b': clock.contender('b', [100, 90, 12, 80, 4, 70, 8], steps=4),
  }
  times = timing.interleave(contenders, rounds=3, warmups=1, clock=clock)
  assert clock.calls == ['a', 'b'] + 3 * ['a', 'a', 'b', 'b']
  assert [s.processor for s in times['a'].samples] == [3, 1, 8]
  assert [s.processor for s in times['b'].samples] == [3, 1, 2]
  assert [s.elapsed for s in times['b'].samples] == [6, 2, 4]


def test_interleave_lets_slow_ones_sit_out():
  """Rounds that fit the seconds, at even distances; three in any case."""
  clock = Clock()
  contenders = {
    'quick': clock.contender('quick', 21 * [0.5], steps=1),
    'slow': clock.contender('slow', 21 * [1.0], steps=1),
    'slower': clock.contender('slower', 21 * [9.0], steps=1),
  }
  times = timing.interleave(
    contenders, rounds=10, warmups=1, seconds=20.0, clock=clock
  )
  taken = [len(times[name].samples) for name in contenders]
  assert taken == [10, 5, 3]
  turns = clock.calls[3::2]  # each is two calls
  slow = [i for i, name in enumerate(turns) if name == 'slow']
  quick_before = [turns[:i].count('quick') for i in slow]
  assert quick_before == [2, 4, 6, 8, 10]


def test_timing_of_an_odd_and_an_even_number_of_rounds():
  """The median of two is their mean."""
  assert timing_of(5.0, 1.0, 2.0).minimum == 1.0
  assert timing_of(5.0, 1.0, 2.0).median == 2.0
  assert timing_of(5.0, 1.0).median == 3.0
  assert Timing((Seconds(1.0, 1.0), Seconds(2.0, 5.0))).share == 0.5


@pytest.mark.parametrize(
  ('relation', 'bound', 'verdict'),
  [
    ('<=', 3.0, 'yes'),
    ('<=', 2.5, 'undecided'),
    ('<=', 1.9, 'no'),
    ('>=', 2.0, 'yes'),
    ('>=', 2.5, 'undecided'),
    ('>=', 3.1, 'no'),
  ],
)
def test_a_target_is_met_where_both_ratios_meet_it(relation, bound, verdict):
  """Ratio of the minima 2, of the medians 3; a bound itself is allowed."""
  subject, reference = timing_of(2.0, 6.0, 9.0), timing_of(1.0, 2.0, 2.0)
  row = Row('s / r', subject, reference, Target(relation, bound), '')
  assert row.ratios == (2.0, 3.0)
  assert row.verdict == verdict
  assert row.record()['met'] == verdict


def test_the_table_names_times_ratios_target_and_model():
  """Microseconds; a row without a target has no verdict."""
  subject, reference = timing_of(2e-6, 3e-6), timing_of(1e-6, 4e-6)
  row = Row('s / r', subject, reference, Target('<=', 1.9), 'two')
  line = timing.table([row]).splitlines()[-1]
  assert line == (
    '| s / r | 2.0 / 1.0 | 2.5 / 2.5 | 2.000 | 1.000 | <= 1.9 | undecided '
    '| two |'
  )
  assert row._replace(target=None).verdict == '-'


def test_without_torch_the_benchmark_fails_before_it_measures(
  monkeypatch, capsys
):
  """A peer that is not there is an error with status 1, not an empty pass."""

  def must_not_run(*args):
    raise AssertionError('it went on without torch')

  monkeypatch.setitem(sys.modules, 'torch', None)
  monkeypatch.setattr(timing, 'pin', must_not_run)
  with pytest.raises(SystemExit) as stopped:
    step.main([])
  # A text is printed to stderr, and the status is 1.
  assert str(stopped.value.code).startswith('error: ')
  assert "pip install 'isjax[bench]'" in stopped.value.code
  assert capsys.readouterr().out == ''


def test_a_loop_that_does_not_train_is_an_error():
  """It may be as fast as it likes."""

  class Idle:
    def __init__(self, params):
      self.params = params

    def advance(self, num_steps):
      del num_steps

  problem = loops.Problem(loops.made_up_images(4, 500), 255, (8,))
  with pytest.raises(SystemExit, match='idle: .* that is no training'):
    loops.train('made up', problem, {'idle': Idle(problem.params())})


def test_the_model_by_multiplications_spares_the_images_their_gradient():
  """Two layers as wide as the image: 1 + 3 (1 + 1 + K/w) / (2 + 3 + 3 K/w)."""
  network = step.Network(side=16, width=256, targets=True, steps=1)
  share = loops.NUM_CLASSES / 256
  expected = 1 + 3 * (2 + share) / (5 + 3 * share)
  assert step.layer_model(network) == pytest.approx(expected)


def test_the_host_loop_trains():
  """The rival does the work that it is timed for."""
  problem = loops.Problem(loops.made_up_images(8, 500), 255, (32,))
  setting = loops.Setting(
    batch_size=16, pool_size=48, mix=0.1, learning_rate=0.02, momentum=0.9
  )
  loop = host_loop.HostLoop(problem, setting)
  [losses] = loops.train('made up', problem, {'host': loop})
  assert losses['after'] < loops.TRAINED * losses['before']


def test_the_law_of_a_search_by_trying_all_uniforms():
  """Ends on the grid and between, parts of no width, both sides."""
  bits = 6
  uniforms = np.arange(2**bits) / 2**bits
  random = np.random.default_rng(0)
  for _ in range(20):
    ends = np.sort(random.integers(0, 2 ** (bits + 2), size=9)) / 2 ** (
      bits + 2
    )
    cumulative = np.append(ends, 1.0)
    for side in ('left', 'right'):
      drawn = np.searchsorted(cumulative, uniforms, side)
      expected = np.bincount(drawn, minlength=10) / 2**bits
      law = laws.by_search(cumulative, side, bits)
      np.testing.assert_array_equal(law, expected)


def test_the_law_by_enumeration_counts_uniforms():
  """Eight uniforms; those from .75 on lead to items that do not exist."""

  def pick(uniform):
    return jnp.where(uniform < 0.75, (uniform * 8).astype(int) // 4, 3)

  law = laws.by_enumeration(pick, 2, bits=3)
  np.testing.assert_array_equal(law, [4 / 8, 2 / 8, 0, 2 / 8])


def test_the_law_of_a_table_by_trying_all_fractions():
  """Thresholds are multiples of 2^28, so that 16 fractions say all."""
  threshold = np.array([3, 0, 15, 7], np.uint32) << 28
  alias = np.array([2, 0, 2, 1], np.int32)
  fractions = np.arange(16, dtype=np.uint32) << 28
  drawn = np.where(fractions[:, None] < threshold, np.arange(4), alias)
  expected = np.bincount(drawn.ravel(), minlength=4) / drawn.size
  np.testing.assert_array_equal(laws.of_table(threshold, alias), expected)


def test_exactness_by_hand():
  """An item without weight is never missed; draws of none count."""
  law = np.array([0.5, 0.25, 0.0, 0.0, 0.25])
  weights = np.array([2.0, 1.0, 1.0, 0.0], np.float32)
  assert laws.exactness(law, weights) == Exactness(0.25, 1)


def first_uniforms(kind, count):
  """What a new rival draws from: the seeds are those of rivals.py."""
  if kind.package == 'torch':
    import torch

    torch.manual_seed(0)
    return torch.rand(count, dtype=torch.float64).numpy()
  if kind.package == 'numpy':
    return np.random.default_rng(0).random(count)
  return np.asarray(jax.random.uniform(jax.random.key(0), (count,)))


def skip_unless_present(kind):
  if not rivals.is_present(kind):
    pytest.skip(f'{kind.package} is not installed')


SEARCHING = (
  rivals.JaxChoice,
  rivals.NumpyChoice,
  rivals.KeptSums,
  rivals.TorchMultinomial,
  rivals.TorchSampler,
  rivals.Flashbax,
)


@pytest.mark.parametrize('kind', SEARCHING)
def test_the_law_of_a_rival_yields_its_draws(kind):
  """Laid end to end, the chances turn its own uniforms into its draws."""
  skip_unless_present(kind)
  weights = sampler.lognormal(1000, spread=2.0)
  count = 2**20
  uniforms = first_uniforms(kind, count)
  rival = sampler.ready(kind, weights)
  ends, side = np.cumsum(rival.law()), 'right'
  assert ends[-1] == 1
  if kind is rivals.JaxChoice:  # which searches for 1 - u
    uniforms, side = 1 - uniforms, 'left'
  expected = np.searchsorted(ends, uniforms, side)
  np.testing.assert_array_equal(rival.draw(count), expected)


def test_an_item_too_light_for_float32_is_never_drawable():
  """A weight of 1e-9 of the others is lost in a sum of float32."""
  weights = np.array([1, 1e-9, 1], np.float32)

  def never(kind):
    law = sampler.ready(kind, weights).law()
    return laws.exactness(law, weights).never_drawable

  assert never(rivals.JaxChoice) == 1
  assert never(rivals.NumpyChoice) == 0
  assert never(rivals.AliasTable) == 0
  assert never(rivals.SumTree) == 0


@pytest.mark.parametrize('kind', rivals.CONTENDERS)
def test_rivals_draw_by_the_weights(kind):
  """Each that is installed passes the check that precedes its timing."""
  skip_unless_present(kind)
  assert sampler.check(kind) > 1e-6


@pytest.mark.parametrize(
  ('law', 'complaint'),
  [
    (lambda weights: np.ones(100), 'draws what has no weight'),
    (lambda weights: weights > 0, 'does not draw by the weights'),
    (lambda weights: np.append(weights, 1), 'draws what has no weight'),
  ],
)
def test_a_rival_that_draws_by_other_weights_is_an_error(law, complaint):
  """Uniform over all, uniform over those with a weight, one too many."""

  class Wrong(rivals.NumpyChoice):
    name = 'wrong'

    def __init__(self, weights):
      super().__init__(law(weights).astype(np.float32))

  with pytest.raises(SystemExit, match=f'wrong {complaint}'):
    sampler.check(Wrong)


def test_fewer_than_five_peers_are_an_error(monkeypatch, capsys):
  """It ends with status 1 before it measures, and names the extra."""

  def must_not_run(*args):
    raise AssertionError('it went on without its peers')

  for package in ('torch', 'vose', 'flashbax'):
    monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.setattr(timing, 'pin', must_not_run)
  with pytest.raises(SystemExit) as stopped:
    sampler.main([])
  assert stopped.value.code.startswith('error: ')
  assert 'torch.multinomial, torch WeightedRandomSampler, vose Sampler' in (
    stopped.value.code
  )
  assert "pip install 'isjax[bench]'" in stopped.value.code
  assert capsys.readouterr().out == ''


def test_what_a_peer_cannot_do_is_left_out(monkeypatch):
  """Torch takes 2^24 items; the categorical 2^26 numbers a call."""
  monkeypatch.setitem(sys.modules, 'vose', None)
  assert rivals.Vose not in sampler.able(100, 100)
  assert not rivals.TorchMultinomial.refusal(2**24, 1)
  assert rivals.TorchMultinomial.refusal(2**24 + 1, 1)
  assert not rivals.JaxCategorical.refusal(2**14, 2**12)
  assert rivals.JaxCategorical.refusal(2**14, 2**12 + 1)
  assert rivals.JaxCategorical not in sampler.able(10**5, 4096)
  assert rivals.WeightedEpoch not in sampler.able(100, 99)
  assert rivals.WeightedEpoch in sampler.able(100, 100)


@pytest.mark.parametrize(
  ('ours', 'theirs', 'calls'),
  [
    ((10.0, 1.0), (0.0, 3.0), 6),  # after five both have taken 15
    ((10.0, 1.0), (0.0, 12.0), 1),
    ((1.0, 1.0), (2.0, 2.0), 0),
    ((1.0, 2.0), (2.0, 2.0), np.inf),
  ],
)
def test_calls_until_a_build_has_paid(ours, theirs, calls):
  """The first number of calls after which the sum is smaller."""
  assert sampler_report.break_even(ours, theirs) == calls


def case_by_hand():
  """The table against jax, which misses no target, and scipy, which does."""
  table, tree = rivals.AliasTable, rivals.SumTree
  return Case(
    num_items=10**5,
    draws={
      table: timing_of(1e-5, 2e-5),
      tree: timing_of(5e-5),
      rivals.JaxChoice: timing_of(1e-4, 4e-4),
      rivals.ScipyUrn: timing_of(2e-5),
    },
    builds={table: timing_of(2e-3), rivals.ScipyUrn: timing_of(1e-3)},
    epochs={table: timing_of(1e-3), rivals.JaxChoice: timing_of(3e-3)},
    few_draws={tree: timing_of(1e-5)},
    updates={tree: timing_of(1e-5)},
    exactness=[{rivals.JaxChoice: Exactness(0.002, 1)}, {}],
  )


def test_the_table_of_draws_tells_who_missed_what():
  """Times, ratios, verdict, what pays when, exactness; and dashes."""
  case = case_by_hand()
  lines = sampler_report.document([case], {}).splitlines()

  def line(start):
    return next(line for line in lines if line.startswith(f'| {start}'))

  assert line('jax.random.choice |') == (
    '| jax.random.choice | 100.0 | 250.0 | 10 | 16.7 | >= 10 | yes | - | 9 '
    '| 2.0e-03 | 1 (0.001 %) | N + b log N |'
  )
  assert line('scipy DiscreteAliasUrn |') == (
    '| scipy DiscreteAliasUrn | 20.0 | 20.0 | 2 | 1.33 | - | - | 1.00 | 201 '
    '| - | - | b |'
  )
  assert line('torch.multinomial: not installed | - |')
  assert line('jax.random.categorical: N b > 2^26 | - |')
  assert not any('weighted_epoch' in line for line in lines)
  built = line('N = 100,000, build: isjax / scipy DiscreteAliasUrn')
  assert '| 2.000 | 2.000 | <= 1.5 | no |' in built


def test_a_comparison_from_weights_to_files(monkeypatch, tmp_path):
  """Few items, one round: each is timed at all that it does, and written."""
  table, tree = rivals.AliasTable, rivals.SumTree
  kinds = (table, tree, rivals.NumpyChoice, rivals.ScipyUrn)
  monkeypatch.setattr(rivals, 'CONTENDERS', kinds)
  monkeypatch.setattr(sampler, 'TURN', 0.0)
  for name in ('NUM_DRAWS', 'FEW'):  # one shape to compile
    monkeypatch.setattr(sampler, name, 64)
  case = sampler.measure(64, rounds=1)
  assert tuple(case.draws) == tuple(case.epochs) == kinds
  assert tuple(case.builds) == (table, tree, rivals.ScipyUrn)
  assert tuple(case.few_draws) == tuple(case.updates) == (tree,)
  for known in case.exactness:
    assert tuple(known) == kinds[:3]
    assert all(found.total_variation < 1e-6 for found in known.values())
  assert json.dumps(sampler_report.content([case]), allow_nan=False)
  sampler_figure.write([case], tmp_path / 'sampler.png')
  assert (tmp_path / 'sampler.png').read_bytes().startswith(b'\x89PNG')
