"""baselines/: each rival's rule against a second implementation of it.

The contract tests of the samplers run over BASELINES, too, but for the one that
they are unbiased.
"""

import collections
import functools
import itertools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
import test_samplers as contract

from isjax import importance_weighted, init_train_state, make_train_step
from isjax.baselines import (
  BASELINES,
  info_batch,
  random_pruning,
  selective_backprop,
)
from isjax.types import Batch, Observation
from isjax.weights import importance_weights

OPTIONS = {
  'selective_backprop': {'power': 1.0, 'pool_size': 5, 'history': 7},
  'info_batch': {'prune': 0.25, 'annealing': 0.25, 'num_steps': 22},
  'random_pruning': {'keep': 0.5},
}


@pytest.mark.parametrize(
  ('name', 'law'),
  [
    *itertools.product(OPTIONS, ('shapes', 'resumption')),
    ('selective_backprop', 'frequencies'),
  ],
)
def test_keeps_the_contract_of_the_samplers(name, law, key, monkeypatch):
  """Shapes and support; one trace and resumption; draws that follow the law."""
  monkeypatch.setattr(contract, 'SAMPLERS', BASELINES)
  {
    'shapes': contract.test_shapes_types_and_support,
    'resumption': contract.test_one_trace_serves_a_run_and_its_resumption,
    'frequencies': contract.test_propose_and_select_follow_the_law,
  }[law](name, OPTIONS[name], key)


def weights_of(draw):
  return importance_weights(draw.probabilities, draw.target_probabilities)


# --- epochs over a part of the examples ---------------------------------------

N, STEPS = 10, 22
LOSSES = np.random.default_rng(1).exponential(size=(STEPS, N))
LOSSES = LOSSES.astype(np.float32)  # of each example at each step
RUNS = {
  'info_batch': (info_batch, 3, OPTIONS['info_batch']),
  'of an epoch': (random_pruning, 4, {'keep': 0.3}),
  'of a run': (
    random_pruning,
    3,
    {
      'keep': 0.54,
      'subset': 'run',
      'rescale': True,
      'annealing': 0.25,
      'num_steps': STEPS,
    },
  ),
}
FIRST_FULL = 17  # of 22 steps, the last quarter of which is five


@functools.cache
def course(name):
  """State before each step, draw and info of a run that sees LOSSES."""
  factory, batch_size, options = RUNS[name]
  sampler = factory(N, batch_size, **options)

  def step(state, inputs):
    key, losses = inputs
    indices, _ = sampler.propose(key, state)
    draw, after, info = sampler.select(key, state, indices, None)
    seen = losses[draw.indices]
    after = sampler.observe(after, draw, Observation(seen, seen, {}))
    return after, (state, draw, info)

  def run(key):
    inputs = jax.random.split(key, STEPS), jnp.asarray(LOSSES)
    return lax.scan(step, sampler.init(key), inputs)[1]

  stacked = jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(3)))
  return [jax.tree.map(lambda v, at=at: v[at], stacked) for at in range(STEPS)]


def epochs_of(course):
  """The course in parts, one for each order that was made."""
  parts = itertools.groupby(course, lambda entry: entry[0].order.tobytes())
  return [list(part) for _, part in parts]


@pytest.mark.parametrize('name', RUNS)
def test_an_epoch_shows_each_kept_example_once(name):
  """ceil(E / b) batches of it, the last filled up from the first ones."""
  _, batch_size, options = RUNS[name]
  epochs = epochs_of(course(name))
  assert len(epochs) > 2
  for part in epochs[:-1]:
    state = part[0][0]
    assert state.position == 0
    kept = set(np.flatnonzero(state.weights))
    assert state.num_kept == len(kept)
    drawn = np.concatenate([draw.indices for _, draw, _ in part])
    if 'num_steps' not in options or state.step + len(part) != FIRST_FULL:
      assert len(part) == -(-len(kept) // batch_size)
      assert set(drawn) == kept
    order = drawn[: len(kept)]
    assert len(set(order)) == len(order)
    np.testing.assert_array_equal(drawn, np.resize(order, len(drawn)))
    for _, draw, info in part:
      np.testing.assert_allclose(draw.probabilities, 1 / len(kept), rtol=1e-6)
      np.testing.assert_allclose(
        weights_of(draw), state.weights[draw.indices], rtol=1e-6
      )
      np.testing.assert_allclose(info['kept_share'], len(kept) / N, rtol=1e-6)
      assert info['num_scored'] == 0


@pytest.mark.parametrize('name', ['info_batch', 'of a run'])
def test_the_last_steps_train_on_all_examples(name):
  """From the first of them on, in the middle of an epoch or not; w = 1."""
  run = course(name)
  assert [state.step for state, _, _ in run] == list(range(STEPS))
  assert run[FIRST_FULL][0].position == 0
  assert (run[FIRST_FULL - 1][0].weights == 0).any()
  for state, draw, _ in run[FIRST_FULL:]:
    np.testing.assert_array_equal(state.weights, 1)
    np.testing.assert_array_equal(weights_of(draw), 1)


def test_proposals_ahead_of_the_training_stay_in_their_epoch(key):
  """Until the first observation after its end, with the epoch's weights."""
  sampler = random_pruning(8, 2, keep=0.5, rescale=True)

  @jax.jit
  def run(key):
    state = first = sampler.init(key)
    draws = []
    for k in jax.random.split(key, 3):
      indices, _ = sampler.propose(k, state)
      draw, state, _ = sampler.select(k, state, indices, None)
      draws.append(draw)
    return first, draws, sampler.observe(state, draws[0], None)

  first, draws, state = run(key)
  np.testing.assert_array_equal(draws[2].indices, draws[0].indices)
  np.testing.assert_allclose(weights_of(draws[2]), 2)
  assert state.position == 0
  assert (state.order[:4] != first.order[:4]).any()


# --- InfoBatch ----------------------------------------------------------------


def test_info_batch_prunes_by_the_mean_of_the_last_losses():
  """A dictionary of last losses says who must stay, and with what weight."""
  last = {}
  for number, part in enumerate(epochs_of(course('info_batch'))):
    start = part[0][0]
    if number == 0:
      np.testing.assert_array_equal(start.weights, 1)
    elif start.step < FIRST_FULL:
      assert len(last) == N  # all were seen in the first epoch
      mean = np.mean(list(last.values()), dtype=np.float64)
      small = np.array([last[i] < mean for i in range(N)])
      np.testing.assert_array_equal(start.weights[~small], 1)
      of_small = start.weights[small]
      np.testing.assert_allclose(of_small[of_small > 0], 4 / 3, rtol=1e-6)
    for state, draw, _ in part:
      for i in draw.indices:
        last[i] = LOSSES[state.step, i]
  assert number > 3


PRUNE, NUM_KEYS = 0.25, 4000


@functools.cache
def second_epochs():
  """losses f32[5] -> what follows one batch of all five, under many keys.

  Weights, law and order of the second epoch.
  """
  sampler = info_batch(5, 5, prune=PRUNE, annealing=0.0)

  def of_one(key, losses):
    state = sampler.init(key)
    indices, _ = sampler.propose(key, state)
    draw, state, _ = sampler.select(key, state, indices, None)
    seen = losses[draw.indices]
    state = sampler.observe(state, draw, Observation(seen, seen, {}))
    return state.weights, sampler.law(state, None)[0], state.order

  keys = jax.random.split(jax.random.key(5), NUM_KEYS)
  compiled = jax.jit(jax.vmap(of_one, (0, None)))
  return lambda losses: jax.tree.map(
    np.asarray, compiled(keys, jnp.asarray(losses, jnp.float32))
  )


def test_info_batch_is_unbiased_over_its_pruning_and_takes_longer_steps():
  """Enumerated over all 2^3 prunings: sum w f is the full sum; a step's N/E.

  The mean loss is 4, and the loss that equals it is not below it.
  """
  small = [0, 2, 4]
  weights, law, _ = second_epochs()([1.0, 4.0, 2.0, 10.0, 3.0])
  patterns, first, of_key, counts = np.unique(
    weights > 0,
    axis=0,
    return_index=True,
    return_inverse=True,
    return_counts=True,
  )
  assert len(patterns) == 8
  assert patterns[:, [1, 3]].all()
  num_pruned = (~patterns[:, small]).sum(1)
  chance = PRUNE**num_pruned * (1 - PRUNE) ** (3 - num_pruned)
  assert stats.chisquare(counts, NUM_KEYS * chance).pvalue > 1e-3
  np.testing.assert_array_equal(weights, weights[first][of_key])
  f = np.array([1.0, -2.0, 0.5, 4.0, 3.0])
  weights, law = weights[first].astype(np.float64), law[first]
  np.testing.assert_allclose(chance @ (weights @ f), f.sum(), rtol=1e-6)
  # One step of an epoch, under the law that is reported, and E / b of them.
  of_step = (law * weights) @ f
  np.testing.assert_allclose(
    chance @ (of_step * patterns.sum(1)), f.sum(), rtol=1e-6
  )


def test_each_place_of_a_pruned_epoch_follows_the_law():
  """Chi-square of the first two, which two kept examples at least fill."""
  _, law, order = second_epochs()([1.0, 4.0, 2.0, 10.0, 3.0])
  contract.expect_frequencies(order[:, 0], law)
  contract.expect_frequencies(order[:, 1], law)


def test_info_batch_keeps_what_it_cannot_compare():
  """Equal losses, whose mean is rounded; infinite and NaN ones."""
  nan, inf = np.nan, np.inf
  for losses in ([0.81] * 5, [0.97] * 5, [nan] * 5, [nan, 5, inf, 5, 5]):
    weights, _, _ = second_epochs()(losses)
    np.testing.assert_array_equal(weights, 1)
  weights, _, _ = second_epochs()([nan, 1, inf, 9, 1])
  np.testing.assert_array_equal(weights[:, [0, 2, 3]], 1)
  pruned = (weights[:, [1, 4]] == 0).sum()
  spread = np.sqrt(2 * NUM_KEYS * PRUNE * (1 - PRUNE))
  assert abs(pruned - 2 * NUM_KEYS * PRUNE) <= 4 * spread


# --- random pruning -----------------------------------------------------------


def test_random_pruning_keeps_a_part_of_fixed_size():
  """E = round(keep N), anew for each epoch or the same for the run; w."""
  for name, num_kept, weight in (('of an epoch', 3, 1), ('of a run', 5, 2)):
    steps = course(name)[:FIRST_FULL]
    subsets = {tuple(np.flatnonzero(state.weights)) for state, _, _ in steps}
    assert {len(kept) for kept in subsets} == {num_kept}
    assert (len(subsets) == 1) == (name == 'of a run')
    for _, draw, _ in steps:
      np.testing.assert_allclose(weights_of(draw), weight, rtol=1e-6)


def test_random_pruning_keeps_each_pair_equally_often(key):
  """Chi-square over the 10 pairs of 5."""
  sampler = random_pruning(5, 2, keep=0.4)
  init = jax.jit(jax.vmap(lambda k: sampler.init(k).weights))
  pairs, counts = np.unique(
    init(jax.random.split(key, 4000)), axis=0, return_counts=True
  )
  assert len(pairs) == 10
  assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
  ('options', 'num_kept'),
  [
    ({'keep': 0.01}, 1),
    ({'keep': 1}, 5),
    ({'annealing': 1.0, 'num_steps': 3}, 5),
  ],
)
def test_random_pruning_at_its_ends(options, num_kept, key):
  """One example at least, where keep N rounds to none; all at most."""
  sampler = random_pruning(5, 2, **options)
  weights = jax.jit(lambda key: sampler.init(key).weights)(key)
  np.testing.assert_array_equal(np.sort(weights)[-num_kept:], 1)
  assert np.count_nonzero(weights) == num_kept


# --- selective backprop -------------------------------------------------------


@pytest.mark.parametrize(('power', 'history'), [(2.0, 20), (0.5, 4)])
def test_selective_backprop_follows_a_deque_of_losses(power, history, key):
  """The law of the candidates is CDF^beta, by a queue in plain Python."""
  n, pool_size = 9, 6
  sampler = selective_backprop(
    n, 3, power=power, history=history, pool_size=pool_size
  )

  @jax.jit
  def step(state, key, losses):
    indices, needs_scores = sampler.propose(key, state)
    assert needs_scores is True
    scores = losses[indices]
    _, law = sampler.law(state, scores, indices)
    return *sampler.select(key, state, indices, scores), scores, law

  rng = np.random.default_rng(0)
  losses = np.round(rng.exponential(size=(8, n)), 1)  # with ties
  queue = collections.deque(maxlen=history)
  state = sampler.init(key)
  for now, k in zip(losses, jax.random.split(key, 8), strict=True):
    draw, state, info, scores, law = step(state, k, jnp.asarray(now))
    scores = np.asarray(scores)
    queue.extend(scores)
    chance = np.array([np.mean(np.array(queue) <= s) for s in scores]) ** power
    g = chance / chance.sum()
    np.testing.assert_allclose(law, g, rtol=1e-5)
    np.testing.assert_allclose(info['num_kept'], chance.sum(), rtol=1e-5)
    np.testing.assert_array_equal(weights_of(draw), 1)
    np.testing.assert_allclose(
      draw.probabilities, pool_size / n * g[draw.slots], rtol=1e-5
    )


@functools.cache
def first_step():
  """(key, losses f32[12]) -> Draw and law at the first step, power 1, b = 4."""
  sampler = selective_backprop(12, 4, power=1.0, pool_size=12)

  @jax.jit
  def step(key, losses):
    state = sampler.init(key)
    draw, _, _ = sampler.select(key, state, jnp.arange(12), losses)
    return draw, sampler.law(state, losses)[1]

  return lambda key, losses: step(key, jnp.asarray(losses, jnp.float32))


def test_a_candidate_is_not_repeated_while_its_chance_is_below_one(key):
  """b c_j / sum c is 8/13 at most here; everybody is kept at times."""
  seen = set()
  for k in jax.random.split(key, 200):
    draw, law = first_step()(k, np.arange(12))
    np.testing.assert_allclose(law, np.arange(1, 13) / 78, rtol=1e-6)
    assert len(set(np.asarray(draw.slots))) == 4
    seen |= set(np.asarray(draw.slots))
  assert len(seen) == 12


def test_the_authors_queue_draws_from_the_law_of_the_set(key):
  """Candidates until b are kept: frequencies are those of the sampler's law.

  The sampler's pool is the set itself, each example once, so that its CDF is
  that of the simulation.
  """
  losses = np.array([0.5, 0.1, 2.0, 1.0, 0.7])
  n, power = 5, 2.0
  sampler = selective_backprop(n, 4, power=power, pool_size=n)
  _, law = sampler.law(sampler.init(key), jnp.asarray(losses, jnp.float32))
  rng = np.random.default_rng(2)
  chance = np.array([np.mean(losses <= loss) for loss in losses]) ** power
  trained = []
  for _ in range(3000):
    batch = []
    while len(batch) < 4:
      candidate = rng.integers(n)
      if rng.random() < chance[candidate]:
        batch.append(candidate)
    trained.extend(batch)
  expected = np.asarray(law, np.float64)
  expected *= len(trained) / expected.sum()
  counts = np.bincount(trained, minlength=n)
  assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_the_bias_of_selective_backprop_is_that_of_its_rule(key):
  """Enumerated over all pools: losses 1, 2, 3 with mean 2 are seen as 2.20."""
  n, pool_size = 3, 3
  losses = np.array([1.0, 2.0, 3.0])
  sampler = selective_backprop(n, 2, power=1.0, pool_size=pool_size)
  state = sampler.init(key)
  pools = np.array(list(itertools.product(range(n), repeat=pool_size)))
  scores = jnp.asarray(losses[pools], jnp.float32)
  uniform, slots = jax.vmap(sampler.law, (None, 0))(state, scores)
  np.testing.assert_allclose(uniform, 1 / n)
  seen = np.mean((np.asarray(slots) * losses[pools]).sum(1))
  rank = (losses[pools][:, None, :] <= losses[pools][:, :, None]).mean(2)
  of_rule = np.mean((rank * losses[pools]).sum(1) / rank.sum(1))
  np.testing.assert_allclose(seen, of_rule, rtol=1e-6)
  assert round(of_rule, 2) == 2.2


def test_selective_backprop_survives_broken_losses(key):
  """NaN is kept only where nothing else is, inf always; weights are finite."""
  nan, inf = np.nan, np.inf
  for losses, law in (
    ([nan] * 4, [0.25] * 4),
    ([nan, 1, 1, 1], [0, 1 / 3, 1 / 3, 1 / 3]),
    ([inf, 1, 2, 3], [4 / 10, 1 / 10, 2 / 10, 3 / 10]),
    ([0, 0, 0, 0], [0.25] * 4),
  ):
    draw, of_rule = first_step()(key, np.tile(losses, 3))
    np.testing.assert_allclose(of_rule, np.tile(law, 3) / 3, rtol=1e-6)
    np.testing.assert_array_equal(weights_of(draw), 1)


# --- in a training step -------------------------------------------------------


def linear(params, model_state, inputs, *, train, rngs):
  del train, rngs
  return inputs @ params, model_state


def squared_error(output, target):
  return (output - target) ** 2


def losses_of(outputs, targets):
  return jax.vmap(squared_error)(outputs, targets)


@pytest.mark.parametrize(
  ('name', 'options', 'cost'),
  [
    ('selective_backprop', {'power': 1.0}, 8 + 3 * 4),
    ('info_batch', {'annealing': 0.0}, 3 * 4),
  ],
)
def test_a_step_applies_the_rivals_own_weights(name, options, cost, key):
  """importance_weighted moves by the mean of w g, and charges what was run."""
  n, num_steps = 12, 6
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(n, 3)), rng.normal(size=n)
  data = Batch(*(jnp.asarray(v, jnp.float32) for v in (x, y)))
  sampler = BASELINES[name](n, 4, **options)
  tx = importance_weighted(optax.sgd(0.1), n)
  step = make_train_step(linear, squared_error, sampler, tx, score=losses_of)
  state = init_train_state(key, jnp.zeros(3), {}, sampler, tx)
  whole = jax.jit(step)
  num_weighted = 0
  for _ in range(num_steps):
    params = np.asarray(state.params, np.float64)
    rule = state.sampler_state
    state, metrics = whole(state, data)
    if name == 'selective_backprop':
      continue
    order = np.asarray(rule.order[: rule.num_kept])
    drawn = np.resize(np.roll(order, -rule.position), 4)
    weights = np.asarray(rule.weights, np.float64)[drawn]
    num_weighted += (weights == 2).sum()
    residual = x[drawn] @ params - y[drawn]
    gradient = (weights * 2 * residual) @ x[drawn] / 4
    np.testing.assert_allclose(
      state.params, params - 0.1 * gradient, rtol=1e-4, atol=1e-6
    )
  assert state.cost == num_steps * cost
  assert metrics['num_scored'] == (8 if name == 'selective_backprop' else 0)
  assert num_weighted > 0 or name == 'selective_backprop'


# --- errors -------------------------------------------------------------------


@pytest.mark.parametrize('name', BASELINES)
def test_record_weights_are_refused(name, key):
  """By the factory, and by a step whose data carry them."""
  records = jnp.ones(4)
  options = OPTIONS[name]
  message = rf'{name} takes no record_weights.*_replace\(record_weights=None\)'
  with pytest.raises(ValueError, match=message):
    BASELINES[name](4, 2, record_weights=records, **options)
  sampler = BASELINES[name](4, 2, **options)
  tx = importance_weighted(optax.sgd(0.1), 4)
  step = make_train_step(linear, squared_error, sampler, tx, score=losses_of)
  state = init_train_state(key, jnp.zeros(3), {}, sampler, tx)
  with pytest.raises(ValueError, match='record weights, of which the sampler'):
    step(state, Batch(jnp.ones((4, 3)), jnp.ones(4), records))


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('selective_backprop', {'power': -1.0}, 'power must be non-neg.*got -1.0'),
    ('selective_backprop', {'power': np.inf}, 'power must be a finite number'),
    ('selective_backprop', {'history': 0}, 'history must be an integer of at'),
    ('selective_backprop', {'pool_size': 1}, 'at least batch_size, 2; got 1'),
    ('info_batch', {'prune': 1.0}, r'prune must be in \[0, 1\); got 1.0'),
    (
      'info_batch',
      {},
      'annealing, here 0.125, .* give num_steps, or annealing',
    ),
    ('info_batch', {'annealing': 2}, r'annealing must be in \[0, 1\]; got 2'),
    ('info_batch', {'num_steps': 1.5}, 'num_steps must be an integer of at'),
    ('random_pruning', {'keep': 0}, 'keep must be positive; got 0'),
    ('random_pruning', {'keep': 1.5}, r'keep must be in \[0, 1\]; got 1.5'),
    ('random_pruning', {'subset': 'all'}, "one of 'epoch', 'run'; got 'all'"),
    ('random_pruning', {'annealing': 0.5}, 'give num_steps, or annealing=0.0'),
  ],
)
def test_bad_options_are_named(name, options, message):
  """Argument, value and remedy."""
  with pytest.raises(ValueError, match=message):
    BASELINES[name](4, 2, **options)


@pytest.mark.parametrize('name', BASELINES)
@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ((0, 2), 'num_examples must be an integer of at least 1; got 0'),
    ((4, 2.5), 'batch_size must be an integer of at least 1; got 2.5'),
  ],
)
def test_bad_sizes_are_named(name, sizes, message):
  """As by every sampler."""
  with pytest.raises(ValueError, match=message):
    BASELINES[name](*sizes, **OPTIONS[name])
