"""Contract tests over the SAMPLERS registry.

Every sampler registered runs through these, by its factory's defaults and, in
VARIANTS, by the settings that reach its other branches. Unbiasedness is exact:
all proposals and all draws are enumerated through `law`.
"""

import itertools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from isjax.samplers import SAMPLERS
from isjax.types import Observation
from isjax.weights import importance_weights

RECORDS = (1.0, 5.0, 0.0, 2.0)
VARIANTS = {
  'presample': (
    {'pool_size': 4, 'tau_threshold': 0.0},
    {'pool_size': 3, 'tau_threshold': 0.0, 'tau_from': 'batch', 'mix': 0.5},
    {'pool_size': 3, 'tau_threshold': 0.0, 'resampling': 'systematic'},
    {'pool_size': 3, 'tau_threshold': 0.0, 'resampling': 'stratified'},
  ),
  'record_weighted': (
    {'law': True, 'mix': 0.5},
    {'scores': True, 'mix': 0.25, 'draws': 'epoch'},
  ),
  'memory': (
    {'rebuild_every': 2, 'pressure': 10.0, 'mix': 0.5},
    {'remember': 'p_sgd', 'decay': 'mean', 'auto_off': True},
  ),
  'class_balanced': ({'draws': 'epoch'},),
  'early_importance': (
    {'warmup_epochs': 1.0, 'score': 'el2n', 'draws': 'independent'},
  ),
}
CASES = [
  pytest.param(name, options, id=f'{name}-{index}')
  for name in SAMPLERS
  for index, options in enumerate(({}, *VARIANTS.get(name, ())))
]
WITH_RECORDS = [
  pytest.param(*case.values, records, id=f'{case.id}-{kind}')
  for case in CASES
  for kind, records in (('equal', None), ('records', RECORDS))
  if kind == 'equal' or case.values[0] != 'class_balanced'
]


def make(name, options, n=4, b=2, records=None):
  options = dict(options)
  if records is not None:
    options['record_weights'] = jnp.asarray(records, jnp.float32)
  for name_of_law in {'law', 'scores'} & set(options):
    options[name_of_law] = jnp.arange(1, n + 1, dtype=jnp.float32)
  if name == 'class_balanced':
    options.setdefault('labels', jnp.array([0, 1, 1, 1, 2, 0, 0, 2])[:n] % 2)
  return SAMPLERS[name](n, b, **options)


def score_of(indices):
  """A fixed, skewed score per example, positive on all but example 1."""
  return jnp.asarray(indices, jnp.float32) ** 2 + 0.25 * (indices != 1)


def observation(draw):
  """What a training pass would report."""
  scores = score_of(draw.indices)
  return Observation(scores, scores, {'label_probability': 1 / (1 + scores)})


def advance(sampler, state, key):
  """One whole step of the sampler."""
  propose_key, select_key = jax.random.split(key)
  indices, needs_scores = sampler.propose(propose_key, state)
  scores = jnp.where(needs_scores, score_of(indices), 0.0)
  draw, state, info = sampler.select(select_key, state, indices, scores)
  return sampler.observe(state, draw, observation(draw)), draw, info


def states(sampler, key, num=3):
  """The first state and two later ones."""
  step = jax.jit(lambda state, k: advance(sampler, state, k)[0])
  state = sampler.init(key)
  for k in jax.random.split(key, num - 1):
    yield state
    state = step(state, k)
  yield state


@pytest.mark.parametrize(('name', 'options'), CASES)
def test_shapes_types_and_support(name, options, key):
  """Static shapes, indices in range, positive p, finite weights, one law."""
  n, b = 4, 2
  sampler = make(name, options, n, b)

  @jax.jit
  def one(state):
    indices, needs_scores = sampler.propose(key, state)
    scores = score_of(indices)
    draw, _, info = sampler.select(key, state, indices, scores)
    laws = sampler.law(state, scores, indices)
    return indices, jnp.asarray(needs_scores), draw, info, laws

  for state in states(sampler, key):
    indices, needs_scores, draw, info, (proposal_law, slot_law) = one(state)
    assert needs_scores.dtype == jnp.bool_
    assert draw.slots.shape == draw.indices.shape == (b,)
    for integers in (indices, draw.slots, draw.indices):
      assert integers.dtype == jnp.int32
    assert set(np.asarray(indices)) <= set(range(n))
    np.testing.assert_array_equal(
      draw.indices, np.asarray(indices)[np.asarray(draw.slots)]
    )
    assert (np.asarray(draw.probabilities) > 0).all()
    weights = draw.target_probabilities / draw.probabilities
    assert np.isfinite(weights).all()
    assert info['num_scored'].shape == ()
    assert proposal_law.shape == (n,)
    assert slot_law.shape == indices.shape
    np.testing.assert_allclose(proposal_law.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(slot_law.sum(), 1, rtol=1e-6)


def published(sampler, state, indices, scores, num_keys=64):
  """Importance weight of each slot as select reports it, NaN if never drawn.

  The same slot must report the same probability whatever the key.
  """
  keys = jax.random.split(jax.random.key(0), num_keys)
  draw, _, _ = jax.vmap(
    lambda key: sampler.select(key, state, indices, scores)
  )(keys)
  slots = draw.slots.ravel()
  w = importance_weights(draw.probabilities, draw.target_probabilities).ravel()
  low = jnp.full(indices.shape, jnp.inf).at[slots].min(w)
  high = jnp.full(indices.shape, -jnp.inf).at[slots].max(w)
  return low, high


@pytest.mark.parametrize(('name', 'options', 'records'), WITH_RECORDS)
def test_exactly_unbiased_by_enumeration(name, options, records, key):
  """E[pi/p f] = sum pi f over all N^m proposals and all slots, through law."""
  n, b = 4, 2
  if name == 'presample' and 'pool_size' not in options:
    options = options | {'pool_size': 4}  # N^10 proposals are too many
  sampler = make(name, options, n, b, records)
  f = np.array([1.0, -2.0, 0.5, 4.0])
  pi = np.full(n, 1 / n) if records is None else np.array(RECORDS) / 8
  if name == 'class_balanced':
    pi = np.array([3, 1, 1, 1]) / 6  # the objective that it is for
  m = sampler.propose(key, sampler.init(key))[0].shape[0]
  proposals = np.array(list(itertools.product(range(n), repeat=m)), np.int32)

  @jax.jit
  def of_all_proposals(state):
    def of_one(indices):
      _, needs_scores = sampler.propose(key, state)
      scores = jnp.where(needs_scores, score_of(indices), 0.0)
      weights = published(sampler, state, indices, scores)
      return *weights, *sampler.law(state, scores, indices)

    return jax.vmap(of_one)(jnp.asarray(proposals))

  for state in states(sampler, key):
    low, high, proposal_law, slot_law = map(np.asarray, of_all_proposals(state))
    chance = np.prod(
      np.take_along_axis(proposal_law.astype(np.float64), proposals, 1), 1
    )
    np.testing.assert_allclose(chance.sum(), 1, rtol=1e-6)
    possible = chance > 0
    chance, rows, low, high, slot_law = (
      values[possible] for values in (chance, proposals, low, high, slot_law)
    )
    drawn = np.isfinite(low)
    np.testing.assert_allclose(low[drawn], high[drawn], rtol=1e-6)
    slot_law = slot_law.astype(np.float64)
    assert (slot_law[~drawn] * 64 * b < 25).all()
    of_law = weights_of_the_law(slot_law, proposal_law[possible], pi, rows, m)
    values = np.where(drawn, low, of_law) * f[rows]
    expectation = (chance[:, None] * slot_law * values).sum()
    np.testing.assert_allclose(expectation, (pi * f).sum(), rtol=2e-5)


def weights_of_the_law(slot_law, proposal_law, pi, proposals, m):
  """pi / (m slot proposal), for slots too rare to have been drawn."""
  p = m * slot_law * np.take_along_axis(proposal_law, proposals, 1)
  return np.where(p > 0, pi[proposals] / np.where(p > 0, p, 1), 0.0)


@pytest.mark.parametrize(('name', 'options'), CASES)
def test_propose_and_select_follow_the_law(name, options, key):
  """Chi-square of both stages at the .001 level, over independent keys."""
  n, b = 6, 3
  sampler = make(name, options, n, b)

  @jax.jit
  def draws(key):
    keys = jax.random.split(key, 5)
    state, _, _ = advance(sampler, sampler.init(keys[0]), keys[1])
    indices, needs_scores = sampler.propose(keys[2], state)
    pool = jnp.arange(indices.shape[0], dtype=jnp.int32) % n
    scores = jnp.where(needs_scores, score_of(pool), 0.0)
    draw, _, _ = sampler.select(keys[3], state, pool, scores)
    laws = sampler.law(state, scores, pool)
    last = jnp.max(jnp.where(laws[1] > 0, jnp.arange(len(pool)), 0))
    slot = draw.slots[jax.random.randint(keys[4], (), 0, b)]
    return indices[0], indices[last], slot, laws

  first, last, slots, laws = jax.vmap(draws)(jax.random.split(key, 20_000))
  expect_frequencies(first, laws[0])
  expect_frequencies(last, laws[0])
  expect_frequencies(slots, laws[1])


def expect_frequencies(outcomes, laws):
  """Each outcome i counted against the sum of its chances over the runs."""
  expected = np.asarray(laws, np.float64).sum(0)
  counts = np.bincount(outcomes, minlength=len(expected))
  assert (counts[expected == 0] == 0).all()
  counts, expected = counts[expected > 0], expected[expected > 0]
  expected *= counts.sum() / expected.sum()
  if len(counts) > 1:
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize(('name', 'options'), CASES)
def test_one_trace_serves_a_run_and_its_resumption(name, options, key):
  """State and info keep their types; saved through numpy, draws repeat."""
  sampler = make(name, options, 8, 3)
  keys = jax.random.split(key, 8)
  traces = []

  @jax.jit
  def step(state, key):
    traces.append(None)
    return advance(sampler, state, key)

  state = sampler.init(key)
  for k in keys[:4]:
    state, _, info = step(state, k)
    assert all(jnp.shape(value) == () for value in info.values())
  saved = jax.tree.map(np.asarray, state)
  resumed = jax.tree.map(jnp.asarray, saved)
  for k in keys[4:]:
    state, draw, _ = step(state, k)
    resumed, again, _ = step(resumed, k)
    jax.tree.map(np.testing.assert_array_equal, draw, again)
  jax.tree.map(np.testing.assert_array_equal, state, resumed)
  assert len(traces) == 1


@pytest.mark.parametrize('name', [n for n in SAMPLERS if n != 'class_balanced'])
@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    ((0, 2), {}, 'num_examples must be an integer of at least 1; got 0'),
    ((4, 2.5), {}, 'batch_size must be an integer of at least 1; got 2.5'),
    ((4, 2), {'record_weights': jnp.ones(3)}, r'one weight per example, \(4,'),
    (
      (4, 2),
      {'record_weights': jnp.array([1.0, 2, -3, 1])},
      r'weights\[2\] = -3',
    ),
  ],
)
def test_bad_arguments_are_named(name, arguments, options, message):
  """Argument, value and remedy, before anything is traced."""
  with pytest.raises(ValueError, match=message):
    SAMPLERS[name](*arguments, **options)


# --- what only one sampler promises ------------------------------------------


def test_shuffle_sees_every_example_once_an_epoch(key):
  """Also where batches run across the border: N = 7, b = 3, six epochs."""
  sampler = make('shuffle', {}, 7, 3)
  keys = jax.random.split(key, 14)
  _, draws = lax.scan(
    lambda state, k: advance(sampler, state, k)[:2], sampler.init(key), keys
  )
  epochs = np.asarray(draws.indices).reshape(6, 7)
  np.testing.assert_array_equal(
    np.sort(epochs, 1), np.tile(np.arange(7), (6, 1))
  )
  assert len({tuple(epoch) for epoch in epochs}) == 6


def test_presample_reports_the_pools_law(key):
  """p_i = B g_i / N, not g_i, with g mixed before it is reported."""
  n, pool_size, mix = 10, 5, 0.25
  options = {'pool_size': pool_size, 'tau_threshold': 0.0, 'mix': mix}
  sampler = make('presample', options, n, 3)
  indices = jnp.array([3, 1, 4, 1, 9])
  scores = jnp.array([1.0, 0.0, 2.0, 3.0, 4.0])
  draw, _, _ = sampler.select(key, sampler.init(key), indices, scores)
  g = (1 - mix) * np.asarray(scores) / 10 + mix / pool_size
  np.testing.assert_allclose(
    draw.probabilities, pool_size * g[draw.slots] / n, rtol=1e-6
  )
  weights = importance_weights(draw.probabilities, draw.target_probabilities)
  assert (weights <= 1 / mix + 1e-5).all()


def test_presample_survives_a_pool_of_zero_or_broken_scores(key):
  """All zero or NaN: finite weights, and a tau that sees no gain."""
  sampler = make('presample', {'pool_size': 4, 'tau_threshold': 0.0}, 8, 2)
  indices = jnp.arange(4)
  for scores in (jnp.zeros(4), jnp.full(4, jnp.nan)):
    draw, state, _ = sampler.select(key, sampler.init(key), indices, scores)
    np.testing.assert_allclose(draw.probabilities, 1 / 8)
    state = sampler.observe(state, draw, observation(draw))
    assert state.tau == 1


def gate_run(taus, threshold, decay):
  """The gate's course, written in plain Python: on or off before each tau."""
  total = share = 0.0
  course = []
  for tau in taus:
    estimate = total / share if share else 0.0
    course.append(estimate >= threshold)
    total = decay * total + (1 - decay) * tau
    share = decay * share + (1 - decay)
  return course


def test_tau_is_averaged_without_start_up_bias(key):
  """After one observation tau is that observation, not a tenth of it."""
  options = {'pool_size': 4, 'tau_threshold': 0.0, 'mix': 0.0}
  sampler = make('presample', options, 8, 2)
  indices = jnp.arange(4)
  scores = jnp.array([0.0, 0.0, 1.0, 3.0])
  tau = np.sqrt(4 * (0.25**2 + 0.75**2))
  state = sampler.init(key)
  assert state.tau == 0
  for _ in range(3):
    draw, state, _ = sampler.select(key, state, indices, scores)
    state = sampler.observe(state, draw, observation(draw))
    np.testing.assert_allclose(state.tau, tau, rtol=1e-6)


def test_the_gate_goes_by_earlier_scores_only(key):
  """This step's scores move the next step's gate, not their own."""
  options = {'pool_size': 4, 'tau_threshold': 1.5, 'tau_decay': 0.0}
  sampler = make('presample', options, 8, 2)
  indices = jnp.arange(4)
  peaked = jnp.array([0.0, 0.0, 0.0, 1.0])
  draw, _, info = sampler.select(key, sampler.init(key), indices, peaked)
  assert info['importance_sampled'] == 0
  assert info['num_scored'] == 0
  np.testing.assert_array_equal(draw.slots, [0, 1])
  assert not sampler.propose(key, sampler.init(key))[1]


def test_the_uniform_phase_pools_the_last_scores(key):
  """Tau is that of the last B scores of the training passes, oldest out."""
  options = {'pool_size': 4, 'tau_threshold': float('inf'), 'tau_decay': 0.0}
  sampler = make('presample', options, 8, 2)
  state = sampler.init(key)
  history = []
  for scores in ([1.0, 2.0], [0.5, 4.0], [3.0, 3.0], [9.0, 0.0]):
    indices, _ = sampler.propose(key, state)
    draw, state, _ = sampler.select(key, state, indices, jnp.zeros(4))
    seen = jnp.array(scores)
    state = sampler.observe(state, draw, Observation(seen, seen, {}))
    history = (history + scores)[-4:]
    g = np.array(history) / np.sum(history)
    np.testing.assert_allclose(
      state.tau, np.sqrt(len(g) * np.square(g).sum()), rtol=1e-6
    )


def test_tau_from_the_batch_is_that_of_the_training_scores(key):
  """Drawn by one score and gated by another: weighted moments of the other."""
  options = {
    'pool_size': 4,
    'tau_threshold': 0.0,
    'tau_from': 'batch',
    'tau_decay': 0.0,
    'mix': 0.0,
  }
  sampler = make('presample', options, 4, 4)
  indices = jnp.arange(4)
  draw, state, _ = sampler.select(
    key, sampler.init(key), indices, jnp.array([1.0, 1.0, 2.0, 4.0])
  )
  other = jnp.array([3.0, 1.0, 1.0, 1.0])[draw.indices]
  state = sampler.observe(state, draw, Observation(other, other, {}))
  w = np.array(1 / (4 * draw.probabilities), np.float64)
  s = np.asarray(other, np.float64)
  tau = np.sqrt(w.sum() * (w * s * s).sum()) / (w * s).sum()
  np.testing.assert_allclose(state.tau, tau, rtol=1e-5)


def test_the_gate_follows_tau_across_the_threshold_both_ways(key):
  """Skewed scores switch it on, equal ones off, as the plain course says."""
  threshold, decay = 1.4, 0.5
  options = {
    'pool_size': 4,
    'tau_threshold': threshold,
    'tau_decay': decay,
    'mix': 0.0,
  }
  sampler = make('presample', options, 8, 4)
  skewed, equal = jnp.array([0.0, 0.0, 0.0, 1.0]), jnp.ones(4)
  phases = [equal] * 3 + [skewed] * 6 + [equal] * 6 + [skewed] * 3
  taus = [1.0] * 3 + [2.0] * 6 + [1.0] * 6 + [2.0] * 3
  state = sampler.init(key)
  course = []
  for scores in phases:
    indices, needs_scores = sampler.propose(key, state)
    draw, state, info = sampler.select(
      key, state, indices, jnp.where(needs_scores, scores, 0.0)
    )
    assert info['num_scored'] == (4 if needs_scores else 0)
    state = sampler.observe(state, draw, Observation(scores, scores, {}))
    course.append(bool(needs_scores))
  assert course == gate_run(taus, threshold, decay)
  assert [course[3], course[8], course[14]] == [False, True, False]


def test_presample_predicts_what_it_gains(key):
  """At tau 2.31, B = 5b = 80, it breaks even; before any tau it gains none."""
  sampler = SAMPLERS['presample'](1000, 16)
  state = sampler.init(key)
  tau = np.sqrt(16 / 3)
  for known, equivalent in ((0.0, 1 / (1 / 16 + 15 / 16 / 80)), (tau, 128 / 3)):
    state = state._replace(
      tau_sum=jnp.float32(known), tau_share=jnp.float32(known > 0)
    )
    indices, _ = sampler.propose(key, state)
    _, _, info = sampler.select(key, state, indices, jnp.ones(80))
    np.testing.assert_allclose(
      info['equivalent_batch_size'], equivalent, rtol=1e-5
    )
    np.testing.assert_allclose(
      info['predicted_cost_ratio'], 128 / 3 / equivalent, rtol=1e-5
    )


def test_default_threshold_is_the_break_even_one():
  """B = 5 b = 80: on at 2.31 and not below; the paper's is 2.67."""
  for threshold, tau_on, tau_off in (
    ('break_even', 2.32, 2.30),
    ('paper', 2.67, 2.66),
    (1.5, 1.51, 1.49),
  ):
    sampler = SAMPLERS['presample'](1000, 16, tau_threshold=threshold)
    for tau, on in ((tau_on, True), (tau_off, False)):
      state = sampler.init(jax.random.key(0))
      state = state._replace(
        tau_sum=jnp.asarray(tau), tau_share=jnp.asarray(1.0)
      )
      assert bool(sampler.propose(jax.random.key(0), state)[1]) == on


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'pool_size': 1}, 'pool_size must be at least batch_size, 2; got 1'),
    ({'tau_threshold': 'always'}, "must be one of 'break_even', 'paper'"),
    ({'tau_threshold': -1.0}, 'tau_threshold must be non-negative'),
    ({'tau_decay': 1.0}, r'tau_decay must be in \[0, 1\); got 1.0'),
    ({'mix': 2}, r'mix must be in \[0, 1\]; got 2'),
    ({'tau_from': 'loss'}, "tau_from must be one of 'pool', 'batch'"),
    ({'resampling': 'residual'}, "one of 'multinomial', 'systematic', 'strat"),
    ({'resampling': 'top_k'}, "'top_k' does not draw .* biased.*'systematic'"),
    (
      {'resampling': 'without_replacement'},
      r'biased.*call resampling\.without_replacement',
    ),
  ],
)
def test_presample_names_bad_options(options, message):
  """Argument, value, choices."""
  with pytest.raises(ValueError, match=message):
    make('presample', options)


def test_a_pools_law_under_record_weights_asks_who_is_in_it(key):
  """law() without indices is an error that says so."""
  sampler = make('presample', {}, records=RECORDS)
  with pytest.raises(ValueError, match='pass indices'):
    sampler.law(sampler.init(key), jnp.ones(10))


def test_record_weighted_needs_no_weight_where_it_draws_by_records(key):
  """p = r/R: every importance weight is 1, and weight 0 is never drawn."""
  sampler = make('record_weighted', {}, 4, 1000, RECORDS)
  state = sampler.init(key)
  indices, _ = sampler.propose(key, state)
  draw, _, _ = sampler.select(key, state, indices, jnp.zeros(1000))
  np.testing.assert_allclose(
    draw.target_probabilities / draw.probabilities, 1, rtol=1e-6
  )
  assert 2 not in set(np.asarray(indices))


def test_record_weighted_tilts_by_scores(key):
  """p is r s over its sum, mixed with r/R; the target stays r/R."""
  scores, records = np.array([4.0, 1.0, 9.0, 0.0]), np.array(RECORDS)
  sampler = SAMPLERS['record_weighted'](
    4, 2, record_weights=jnp.array(records), scores=jnp.array(scores), mix=0.2
  )
  tilted = records * scores / (records @ scores)
  law, _ = sampler.law(sampler.init(key), jnp.zeros(2))
  np.testing.assert_allclose(law, 0.8 * tilted + 0.2 * records / 8, rtol=1e-6)
  state = sampler.init(key)
  np.testing.assert_allclose(state.target_probabilities, records / 8, rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'law': jnp.eye(4)[0]}, r'law\[1\] is 0, .* mix'),
    ({'scores': jnp.array([1.0, 1, 0, 0])}, r'scores\[3\] is 0, .* mix'),
    ({'law': jnp.ones(3)}, r'law must have one .* \(4,\).*\(3,\)'),
    ({'scores': jnp.ones((4, 1))}, r'scores must have one .* \(4, 1\)'),
    ({'scores': -jnp.ones(4)}, r'weights\[0\] = -1'),
    ({'law': jnp.ones(4), 'scores': jnp.ones(4)}, 'law and scores must not'),
    ({'draws': 'epochs'}, "one of 'independent', 'epoch'; got 'epochs'"),
  ],
)
def test_record_weighted_names_bad_options(options, message):
  """A zero where the objective counts, a wrong shape, two laws at once."""
  with pytest.raises(ValueError, match=message):
    SAMPLERS['record_weighted'](
      4, 2, record_weights=jnp.array(RECORDS), **options
    )


def test_a_share_of_the_target_keeps_what_a_law_leaves_out(key):
  """With mix a law may be zero where the objective counts."""
  for options in ({'law': jnp.eye(4)[0]}, {'scores': jnp.eye(4)[0]}):
    sampler = SAMPLERS['record_weighted'](4, 2, mix=0.1, **options)
    law, _ = sampler.law(sampler.init(key), jnp.zeros(2))
    np.testing.assert_allclose(law, [0.925, 0.025, 0.025, 0.025], rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('record_weighted', {'law': True, 'draws': 'epoch'}),
    ('class_balanced', {'draws': 'epoch'}),
  ],
)
def test_weighted_epochs_show_each_example_as_often_as_its_law(
  name, options, key
):
  """Floor or ceil of N p_i, where batches run across the border: N 7, b 3."""
  n = 7
  sampler = make(name, options, n, 3)
  state = sampler.init(key)
  _, draws = jax.jit(
    lambda state, keys: lax.scan(
      lambda state, k: advance(sampler, state, k)[:2], state, keys
    )
  )(state, jax.random.split(key, 14))
  epochs = np.asarray(draws.indices).reshape(6, n)
  assert len({tuple(epoch) for epoch in epochs}) == 6
  counts = np.array([np.bincount(epoch, minlength=n) for epoch in epochs])
  high, low = np.asarray(state.table.mass).T  # of m_i = N p_i 2^32
  assert ((counts == high) | (counts == high + (low > 0))).all()


@pytest.mark.parametrize('name', ['shuffle', 'record_weighted'])
def test_epochs_refuse_a_batch_larger_than_the_set(name):
  """With the remedies."""
  options = {} if name == 'shuffle' else {'draws': 'epoch'}
  message = "at most num_examples, 3, .* got 4.*uniform.*draws='independent'"
  with pytest.raises(ValueError, match=message):
    SAMPLERS[name](3, 4, **options)


COUNTS = (2555, 227, 621, 2552)  # of the question that this answers


def test_class_balanced_draws_every_class_alike(key):
  """And each image of a class like the others; w = 1."""
  labels = jnp.repeat(jnp.arange(4), jnp.array(COUNTS))
  sampler = SAMPLERS['class_balanced'](len(labels), 50_000, labels=labels)
  state = sampler.init(key)
  indices, _ = sampler.propose(key, state)
  draw, _, _ = sampler.select(key, state, indices, jnp.zeros(50_000))
  np.testing.assert_allclose(
    draw.target_probabilities / draw.probabilities, 1, rtol=1e-6
  )
  counts = np.bincount(labels[indices], minlength=4)
  assert stats.chisquare(counts).pvalue > 1e-3
  # one epoch of N draws shows each image of the smallest class 6.56 times
  rarest = float(sampler.law(state, None)[0][2555]) * len(labels)
  np.testing.assert_allclose(rarest, 6.56, atol=0.005)


@pytest.mark.parametrize(
  ('labels', 'options', 'message'),
  [
    (jnp.eye(4, dtype=jnp.int32), {}, r'\(4,\); got shape \(4, 4\).*argmax'),
    (jnp.array([0, 1, 3, 3]), {}, 'no example of class 2'),
    (jnp.array([0, 1, 1, 2]), {'num_classes': 2}, r'labels\[3\] = 2'),
    (jnp.ones(4), {'num_classes': 2}, 'one integer per example'),
    (jnp.array([0, 1, 1, 0]), {'kind': 'inverse'}, "'inverse_frequency', 'inv"),
  ],
)
def test_class_balanced_says_what_is_wrong_with_labels(
  labels, options, message
):
  """One-hot, an empty class, out of range, floats, an unknown kind."""
  with pytest.raises(ValueError, match=message):
    SAMPLERS['class_balanced'](4, 2, labels=labels, **options)
