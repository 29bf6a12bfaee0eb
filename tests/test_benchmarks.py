"""benchmarks: the statistics on a made-up clock, and what ends in an error."""

import sys

import pytest

from experiments.benchmarks import host_loop, loops, step, timing
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
