"""samplers/memory.py: what is remembered, and the law made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.samplers import diagnostics, memory
from isjax.types import Observation

N, B = 6, 4
SCORES = np.array([4.0, 0.5, 1.0, 0.0, 2.0, 0.25])


def seen(sampler, state, indices, scores, **statistics):
  """The state after a training pass on these examples."""
  indices = jnp.asarray(indices, jnp.int32)
  draw, state, _ = sampler.select(jax.random.key(0), state, indices, None)
  values = jnp.asarray(scores, jnp.float32)
  return sampler.observe(state, draw, Observation(values, values, statistics))


def all_seen(sampler, scores=SCORES):
  """The state after every example was trained on once, in batches of two."""
  state = sampler.init(jax.random.key(0))
  for start in range(0, N, 2):
    at = np.arange(start, start + 2)
    state = seen(sampler, state, at, scores[at])
  return state


def visits(num_batches, rng):
  """Batches with duplicates, and what each draw showed."""
  for _ in range(num_batches):
    yield rng.integers(0, N, B), rng.exponential(size=B)


@pytest.mark.parametrize('decay', [0.0, 0.75, 'mean'])
def test_averages_are_those_of_plain_python(decay):
  """Moving or plain, with duplicates in a batch, against a dictionary."""
  sampler = memory(N, B, decay=decay)
  state = sampler.init(jax.random.key(0))
  observe = jax.jit(lambda *args: seen(sampler, *args))
  histories = {i: [] for i in range(N)}
  average = np.zeros(N)
  last = np.zeros(N)
  for step, (at, values) in enumerate(visits(12, np.random.default_rng(0)), 1):
    state = observe(state, at, values)
    for i in set(at):
      shown = values[at == i]
      keep = decay if decay != 'mean' and histories[i] else 0
      average[i] = keep * average[i] + (1 - keep) * shown.mean()
      histories[i].extend(shown)
      if decay == 'mean':
        average[i] = np.mean(histories[i])
      last[i] = step
    np.testing.assert_allclose(state.remembered, average, rtol=1e-5)
    np.testing.assert_array_equal(
      state.visits, [len(histories[i]) for i in range(N)]
    )
    np.testing.assert_array_equal(state.last_scored, last)


@pytest.mark.parametrize('rebuild_every', [None, 1, 3])
@pytest.mark.parametrize('power', [0.0, 0.5, 2.0])
def test_the_law_is_the_power_of_the_scores_mixed(rebuild_every, power):
  """(1 - mix) s^alpha / sum + mix / N, from tree and table alike."""
  sampler = memory(N, 2, mix=0.2, power=power, rebuild_every=rebuild_every)
  state = all_seen(sampler)
  law, _ = sampler.law(state, None)
  powers = SCORES**power
  np.testing.assert_allclose(
    law, 0.8 * powers / powers.sum() + 0.2 / N, rtol=1e-5
  )


def test_record_weights_multiply_the_scores():
  """p proportional to r s, mixed with r / R; a record of weight 0 is out."""
  r = np.array([1.0, 10.0, 0.0, 3.0, 1.0, 5.0])
  sampler = memory(N, 2, mix=0.5, record_weights=jnp.asarray(r))
  law, _ = sampler.law(all_seen(sampler), None)
  tilted = r * SCORES
  expected = 0.5 * tilted / tilted.sum() + 0.5 * r / r.sum()
  np.testing.assert_allclose(law, expected, rtol=1e-5)


def test_ranks_fall_by_the_pressure_from_first_to_last():
  """p_rank proportional to s_e^(-rank/N), whatever the scores' scale."""
  sampler = memory(N, 2, mix=1e-6, pressure=100.0, rebuild_every=3)
  law, _ = sampler.law(all_seen(sampler), None)
  order = np.argsort(-SCORES)
  expected = 100.0 ** (-np.arange(N) / N)
  np.testing.assert_allclose(law[order], expected / expected.sum(), rtol=1e-4)


def test_a_table_stands_still_between_two_rebuilds():
  """R = 3: the first law until step 3, and draws that report it."""
  sampler = memory(N, 2, rebuild_every=3)
  state = sampler.init(jax.random.key(0))
  first, _ = sampler.law(state, None)
  laws = []
  for at in ([0, 1], [2, 3], [4, 5], [0, 1]):
    state = seen(sampler, state, at, SCORES[at])
    laws.append(sampler.law(state, None)[0])
  np.testing.assert_array_equal(laws[0], first)
  np.testing.assert_array_equal(laws[1], first)
  assert np.abs(laws[2] - first).max() > 0.1
  np.testing.assert_array_equal(laws[3], laws[2])


def test_warm_up_draws_from_the_target_law():
  """Until its last step; what it saw is remembered."""
  sampler = memory(N, 2, warmup_steps=3, mix=0.2)
  state = sampler.init(jax.random.key(0))
  for at in ([0, 1], [2, 3]):
    np.testing.assert_allclose(sampler.law(state, None)[0], 1 / N)
    state = seen(sampler, state, at, SCORES[at])
  _, _, info = sampler.select(jax.random.key(0), state, jnp.arange(2), None)
  assert info['importance_sampled'] == 0
  state = seen(sampler, state, [4, 5], SCORES[4:])
  law, _ = sampler.law(state, None)
  np.testing.assert_allclose(
    law, 0.8 * SCORES / SCORES.sum() + 0.2 / N, rtol=1e-5
  )


def test_an_example_never_visited_has_the_initial_score():
  """Until its first visit."""
  sampler = memory(N, 2, initial_score=3.0, mix=1e-6)
  state = seen(sampler, sampler.init(jax.random.key(0)), [0, 1], [1.0, 2.0])
  law, _ = sampler.law(state, None)
  np.testing.assert_allclose(law, np.array([1, 2, 3, 3, 3, 3]) / 15, rtol=1e-4)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_remembered(bad):
  """The old score stands; the law stays a law."""
  sampler = memory(N, 2)
  state = all_seen(sampler)
  after = seen(sampler, state, [0, 1], [bad, 3.0])
  np.testing.assert_allclose(after.remembered[:2], [4.0, 3.0])
  assert np.isfinite(after.second_moments).all()
  np.testing.assert_allclose(sampler.law(after, None)[0].sum(), 1, rtol=1e-5)


@pytest.mark.parametrize(
  ('remember', 'scores'),
  [('p_sgd', lambda m: 1 - m), ('c_sgd', lambda m: m * (1 - m))],
)
def test_label_probabilities_give_p_sgd_and_c_sgd(remember, scores):
  """From the mean over two visits, as the formulas say."""
  sampler = memory(2, 2, remember=remember, decay='mean', mix=0.5)
  state = sampler.init(jax.random.key(0))
  for values in ([0.9, 0.1], [0.7, 0.5]):
    state = seen(
      sampler, state, [0, 1], [1, 1], label_probability=jnp.array(values)
    )
  s = scores(np.array([0.8, 0.3]))
  np.testing.assert_allclose(
    sampler.law(state, None)[0], 0.5 * s / s.sum() + 0.25, rtol=1e-5
  )


def test_a_missing_statistic_is_named():
  """With what to give the step."""
  sampler = memory(2, 2, remember='p_sgd')
  with pytest.raises(ValueError, match='metrics.label_probability'):
    seen(sampler, sampler.init(jax.random.key(0)), [0, 1], [1, 1])


def second_moments(law, pi):
  """Of the scores under the target law and under the memory's."""
  squares = (pi * SCORES) ** 2
  return np.array([(squares / pi).sum(), (squares / law).sum()])


@pytest.mark.parametrize('warmup_steps', [0, 100])
def test_second_moments_are_unbiased_whatever_the_law(warmup_steps):
  """One draw enumerated over all examples: the sums over the laws."""
  sampler = memory(N, 2, mix=0.3, warmup_steps=warmup_steps)
  state = all_seen(sampler)._replace(second_moments=jnp.zeros(2))
  law = np.asarray(sampler.law(state, None)[0], np.float64)
  expectation = sum(
    law[i] * seen(sampler, state, [i, i], SCORES[[i, i]]).second_moments / 0.01
    for i in range(N)
  )
  memorys = 0.7 * SCORES / SCORES.sum() + 0.3 / N
  np.testing.assert_allclose(
    expectation, second_moments(memorys, np.full(N, 1 / N)), rtol=1e-4
  )


@pytest.mark.parametrize('auto_off', [False, True])
def test_it_switches_off_while_it_does_not_pay(auto_off):
  """Scores that turn round make the old law worse than none; later it pays."""
  sampler = memory(N, N, auto_off=auto_off, mix=0.1, rebuild_every=1000)
  state = sampler.init(jax.random.key(0))
  state = state._replace(source=all_seen(memory(N, 2, rebuild_every=3)).source)
  observe = jax.jit(lambda s, scores: seen(sampler, s, jnp.arange(N), scores))
  wrong = 1 / (SCORES + 0.1)
  shares = []
  for scores in [wrong] * 3 + [SCORES + 0.1] * 600:
    state = observe(state, scores)
    shares.append(float(state.mix))
  assert shares[2] == (1 if auto_off else np.float32(0.1))
  assert shares[-1] == np.float32(0.1)
  assert state.tau > 1


def test_diagnostics_count_visits_ages_and_class_mass():
  """By hand, after three steps."""
  sampler = memory(N, 2, mix=0.2)
  state = all_seen(sampler)
  labels = jnp.array([0, 0, 1, 1, 2, 2])
  vectors = jax.jit(diagnostics, static_argnames='num_classes')(
    state, labels=labels, num_classes=4
  )
  np.testing.assert_array_equal(vectors['visits'], np.ones(N))
  np.testing.assert_allclose(
    vectors['steps_since_scored'],
    np.quantile([2, 2, 1, 1, 0, 0], np.linspace(0, 1, 5)),
  )
  law, _ = sampler.law(state, None)
  np.testing.assert_allclose(
    vectors['class_mass'], [*np.asarray(law).reshape(3, 2).sum(1), 0], rtol=1e-6
  )
  assert set(diagnostics(state)) == {'visits', 'steps_since_scored'}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'remember': 'gradient'}, "must be one of 'score', 'loss', 'p_sgd'"),
    ({'decay': 1.0}, r'decay must be in \[0, 1\); got 1.0'),
    ({'decay': 'median'}, "decay must be one of 'mean'; got 'median'"),
    ({'power': -1.0}, 'power must be non-negative; got -1.0'),
    ({'mix': 0.0}, 'mix must be positive; got 0.0'),
    ({'mix': 2.0}, r'mix must be in \[0, 1\]; got 2.0'),
    ({'rebuild_every': 0}, 'rebuild_every must be an integer of at least 1'),
    ({'warmup_steps': -1}, 'warmup_steps must be non-negative; got -1'),
    ({'initial_score': -1.0}, 'initial_score must be non-negative'),
    ({'pressure': 10.0}, 'pressure, here 10.0, needs .* give rebuild_every'),
    ({'pressure': 0.5, 'rebuild_every': 1}, 'at least 1; got 0.5'),
  ],
)
def test_bad_options_are_named(options, message):
  """Argument, value, remedy."""
  with pytest.raises(ValueError, match=message):
    memory(N, B, **options)
