"""sharding/: laws of samplers and of the training step, on several devices.

test_sharding.py runs them, in a process that has the devices. The data, the
model and the batch are small, so that collectives tell by their size what
crosses.
"""

import functools
import itertools
import re

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax
import pytest
from scipy import stats

from isjax import (
  Batch,
  Draw,
  Observation,
  Sampler,
  init_train_state,
  logit_gradient_norm,
  make_train_step,
  memory,
  presample,
  record_weighted,
  sharding,
  transforms,
)
from isjax.losses import cross_entropy
from isjax.samplers import SAMPLERS

D = jax.device_count()
SHARDS = sharding.Shards(
  jax.make_mesh((D,), ('data',), axis_types=(AxisType.Auto,)), 'data'
)
SIZE = 4  # of a shard, where all is enumerated
LABELS = np.arange(D * SIZE) // 2 % 2
RECORDS = np.array([1.0, 5, 0, 2] * D) * np.repeat(1.0 + np.arange(D), SIZE)
OPTIONS = {
  'presample': {'pool_size': 2, 'tau_threshold': 0.0},
  'memory': {'rebuild_every': 2},
  'class_balanced': {'num_classes': 2},
  'early_importance': {
    'warmup_epochs': 1.0,
    'score': 'el2n',
    'draws': 'independent',
  },
}


def score_of(indices):
  """A fixed, skewed score per example."""
  return jnp.asarray(indices, jnp.float32) ** 2 + 0.25


def in_turn(sampler, state, key, proposal, given):
  """One step of a sampler, on a given proposal or on its own."""
  keys = jax.random.split(key)
  own, needs_scores = sampler.propose(keys[0], state)
  indices = jnp.where(given, proposal, own)
  scores = jnp.where(needs_scores, score_of(indices), 0.0)
  draw, after, _ = sampler.select(keys[1], state, indices, scores)
  laws = sampler.law(state, scores, indices)
  seen = score_of(draw.indices)
  return sampler.observe(after, draw, Observation(seen, seen, {})), draw, laws


@pytest.mark.parametrize('name', SAMPLERS)
def test_quotas_are_unbiased_by_enumeration(name, key):
  """E[w f] = sum pi f: each device through all proposals, and all its slots.

  The sampler has observed two batches by then. Every weight that a draw
  reports is that of the law, and its rows are its device's own.
  """
  n, b, m = D * SIZE, D * 2, D * 2
  arrays = {'record_weights': RECORDS}
  pi = RECORDS / RECORDS.sum()
  if name == 'class_balanced':
    arrays, pi = {'labels': LABELS}, np.full(n, 1 / n)  # 2 of each class
  make = functools.partial(SAMPLERS[name], **OPTIONS.get(name, {}))
  sampler = sharding.quota(make, n, b, SHARDS, arrays=arrays)
  step = jax.jit(functools.partial(in_turn, sampler))
  state, nothing = sampler.init(key), np.zeros(m, np.int32)
  for k in jax.random.split(key):
    state, draw, _ = step(state, k, nothing, False)
    owners = np.asarray(draw.indices).reshape(D, -1) // SIZE
    np.testing.assert_array_equal(owners, np.arange(D)[:, None] + 0 * owners)
  if name == 'presample':
    assert np.ptp(state.own.tau_sum) == 0  # all gates go by the mean
  f = np.random.default_rng(0).normal(size=n)
  expectation = 0.0
  for pattern in itertools.product(range(SIZE), repeat=m // D):
    rows = (np.arange(D)[:, None] * SIZE + np.array(pattern)).astype(np.int32)
    _, draw, laws = step(state, key, rows.ravel(), True)
    p, slots = (np.asarray(law, np.float64) for law in laws)
    np.testing.assert_allclose([p.sum(), slots.sum()], 1, rtol=1e-6)
    chance = (D * p)[rows].prod(1, keepdims=True)  # of the pattern, by device
    law = m * slots * p[rows.ravel()]
    weights = np.divide(pi[rows.ravel()], law, out=np.zeros(m), where=law > 0)
    drawn = np.asarray(draw.slots)
    np.testing.assert_array_equal(draw.indices, rows.ravel()[drawn])
    reported = draw.target_probabilities / draw.probabilities
    possible = np.repeat(chance > 0, b // D)
    np.testing.assert_allclose(
      np.asarray(reported)[possible], weights[drawn][possible], rtol=1e-4
    )
    expectation += chance * (slots * weights * f[rows.ravel()]).reshape(D, -1)
  np.testing.assert_allclose(expectation.sum(), pi @ f, rtol=1e-4)


def test_by_quota_each_device_has_an_ordinary_sampler(key):
  """Its draws and its state are those of `memory` alone with the shard."""
  n, b = D * SIZE, D * 2
  make = functools.partial(memory, initial_score=8.0)
  arrays = {'record_weights': RECORDS}
  sampler = sharding.quota(make, n, b, SHARDS, arrays=arrays)
  states = [sampler.init(key)]
  step = jax.jit(functools.partial(in_turn, sampler))
  for k in jax.random.split(key, 3):
    states.append(step(states[-1], k, np.zeros(b, np.int32), False)[0])

  @jax.jit
  def alone(device, state, k):
    propose_key, select_key = (
      jax.random.fold_in(key, device) for key in jax.random.split(k)
    )
    indices, _ = one.propose(propose_key, state)
    draw, state, _ = one.select(select_key, state, indices, None)
    seen = score_of(draw.indices + device * SIZE)
    return one.observe(state, draw, Observation(seen, seen, {}))

  for device, records in enumerate(RECORDS.reshape(D, SIZE)):
    one = make(SIZE, 2, record_weights=records)
    state = one.init(jax.random.fold_in(key, device))
    for k in jax.random.split(key, 3):
      state = alone(device, state, k)
    for field in ('remembered', 'visits', 'last_scored', 'second_moments'):
      np.testing.assert_allclose(
        getattr(states[-1].own, field)[device],
        getattr(state, field),
        rtol=1e-4,
        err_msg=field,
      )


def test_quotas_propose_by_their_law(key):
  """Chi-square of the proposal, at .001."""
  n, b = D * SIZE, 40_000
  sampler = sharding.quota(
    record_weighted, n, b, SHARDS, arrays={'record_weights': RECORDS}
  )
  propose = jax.jit(lambda key, state: sampler.propose(key, state)[0])
  state = sampler.init(key)
  indices = np.asarray(propose(key, state))
  assert len(np.unique(indices.reshape(D, -1) % SIZE, axis=0)) == D
  counts = np.bincount(indices, minlength=n)
  law = np.asarray(sampler.law(state, jnp.zeros(b))[0], np.float64)
  assert (counts[law == 0] == 0).all()
  expected = law[law > 0] / law.sum() * b
  assert stats.chisquare(counts[law > 0], expected).pvalue > 1e-3


def test_a_quota_of_shuffled_epochs_shows_each_example_once(key):
  """N / b batches, N different examples; in a new order each time."""
  n, b = D * SIZE, D * 2
  sampler = sharding.quota(SAMPLERS['shuffle'], n, b, SHARDS)
  step = jax.jit(functools.partial(in_turn, sampler))
  state = sampler.init(key)
  order = []
  for k in jax.random.split(key, 6):
    state, draw, _ = step(state, k, np.zeros(b, np.int32), False)
    order.append(np.asarray(draw.indices))
  epochs = np.concatenate(order).reshape(3, n)
  np.testing.assert_array_equal(np.sort(epochs), [np.arange(n)] * 3)
  assert len({tuple(epoch) for epoch in epochs}) == 3


N, B, POOL, WIDTH, HIDDEN, CLASSES = 2048, 32, 64, 5, 7, 3
NUM_STEPS = 8
PARAMETERS = {(WIDTH, HIDDEN), (HIDDEN, CLASSES)}


def data():
  """Classes that a linear map tells apart, of very unequal difficulty."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(N, WIDTH)).astype(np.float32)
  noise = rng.exponential(size=(N, CLASSES)) ** 2
  logits = 3 * x @ rng.normal(size=(WIDTH, CLASSES)) + noise
  return Batch(x, logits.argmax(1).astype(np.int32))


def apply_fn(params, model_state, inputs, *, train, rngs):
  del train, rngs
  hidden = jnp.tanh(inputs @ params['in'])
  return hidden @ params['out'], model_state


def a_step(sampler):
  """The step and its first state; weights by ABSGD, capped, in one chain."""
  tx = optax.chain(
    transforms.scale_by_importance(N),
    transforms.scale_by_absgd(0.5),
    transforms.clip_weights(4.0),
    transforms.average_gradient(),
    optax.adam(0.05),
  )
  keys = jax.random.split(jax.random.key(0), 2)
  params = {
    'in': jax.random.normal(keys[0], (WIDTH, HIDDEN)),
    'out': 0.1 * jax.random.normal(keys[1], (HIDDEN, CLASSES)),
  }
  step = make_train_step(
    apply_fn,
    cross_entropy(),
    sampler,
    tx,
    score=logit_gradient_norm(cross_entropy()),
  )
  return step, init_train_state(jax.random.key(1), params, {}, sampler, tx)


def train(sampler, on_mesh):
  """States and metrics of a run, and the program."""
  step, state = a_step(sampler)
  rows = jax.tree.map(jnp.asarray, data())
  if on_mesh:
    state = sharding.place(state, SHARDS, N)
    rows = sharding.shard(data(), SHARDS)
  program = jax.jit(step).lower(state, rows).compile()
  states, metrics = [state], []
  for _ in range(NUM_STEPS):  # refuses a state that is not placed as before
    state, values = program(state, rows)
    states.append(state)
    metrics.append(values)
  return states, metrics, program.as_text()


def collectives(program):
  """The kind and the shapes of all that crosses between devices."""
  kinds = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute'
  pattern = rf'= (\S.*?) ({kinds}|collective-broadcast)(?:-start)?\('
  for shapes, kind in re.findall(pattern, program):
    for shape in re.findall(r'\w+\[([\d,]*)\]', shapes):
      yield kind, tuple(int(n) for n in shape.split(',') if n)


def expect_same_run(run, reference, rtol=2e-4):
  """Losses, weights and parameters, step by step."""
  for values, wanted in zip(run[1], reference[1], strict=True):
    for name in ('loss', 'effective_sample_size', 'clipped_mass'):
      np.testing.assert_allclose(
        values[name], wanted[name], rtol=rtol, atol=1e-6, err_msg=name
      )
  for got, wanted in zip(
    jax.tree.leaves(run[0][-1].params),
    jax.tree.leaves(reference[0][-1].params),
    strict=True,
  ):
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
  'make',
  [
    functools.partial(presample, pool_size=POOL, tau_threshold=0.0),
    memory,
  ],
  ids=['presample', 'memory'],
)
def test_the_global_step_is_that_of_one_device(make):
  """Same losses, same state; and nothing crosses that is larger than b rows.

  Rows of the data cross once, each to one device. The rest is the gradient, and
  for each draw a few words: the 16 children of a node of a sum tree.
  """
  one = train(make(N, B), on_mesh=False)
  all_ = train(sharding.global_law(make, N, B, SHARDS), on_mesh=True)
  expect_same_run(all_, one)
  for got, wanted in zip(
    jax.tree.leaves(all_[0][-1].sampler_state),
    jax.tree.leaves(one[0][-1].sampler_state),
    strict=True,
  ):
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-6)
  rows = 0
  for kind, shape in collectives(all_[2]):
    if WIDTH in shape and set(shape) != {WIDTH, HIDDEN}:
      assert kind == 'reduce-scatter'
      assert shape in ((B // D, WIDTH), (POOL // D, WIDTH))
      rows += shape[0] * D
    else:
      assert np.prod(shape) <= 16 * B
  assert rows == B + POOL * (make is not memory)


LAW = 1.0 + np.arange(N) % 10


@pytest.mark.parametrize('two_level', [False, True])
def test_fixed_laws_are_drawn_globally(two_level, key):
  """p by the law, pi by the records; no more than b words cross at a time.

  From the table that one device builds, the draws are that device's.
  """
  records = 1.0 + np.arange(N) % 3
  arrays = {'record_weights': records, 'law': LAW}
  if two_level:
    sampler = sharding.two_level(LAW, B, SHARDS, record_weights=records)
  else:
    sampler = sharding.global_law(record_weighted, N, B, SHARDS, arrays=arrays)
  _, state = a_step(sampler)
  state = sharding.place(state, SHARDS, N).sampler_state
  law = np.asarray(sampler.law(state, None)[0], np.float64)
  np.testing.assert_allclose(law, LAW / LAW.sum(), rtol=2e-6)

  def propose_and_select(key, state):
    indices, _ = sampler.propose(key, state)
    return sampler.select(key, state, indices, jnp.zeros(B))[0]

  program = jax.jit(propose_and_select).lower(key, state).compile()
  draw = program(key, state)
  indices = np.asarray(draw.indices)
  np.testing.assert_allclose(draw.probabilities, law[indices], rtol=1e-6)
  np.testing.assert_allclose(
    draw.target_probabilities, (records / records.sum())[indices], rtol=1e-5
  )
  assert max(np.prod(s) for _, s in collectives(program.as_text())) == B
  if not two_level:
    one = record_weighted(N, B, **arrays)
    np.testing.assert_array_equal(indices, one.propose(key, one.init(key))[0])


def recorded(sampler):
  """The sampler, whose state keeps the last draw."""

  def select(key, state, indices, scores):
    draw, inner, info = sampler.select(key, state[0], indices, scores)
    return draw, (inner, draw), info

  zeros = jnp.zeros(B, jnp.int32)
  first = Draw(zeros, zeros, jnp.ones(B), jnp.ones(B))
  first = jax.device_put(first, SHARDS.split)
  return Sampler(
    lambda key: (sampler.init(key), first),
    lambda key, state: sampler.propose(key, state[0]),
    select,
    lambda state, draw, seen: (sampler.observe(state[0], draw, seen), state[1]),
    lambda state, *args: sampler.law(state[0], *args),
    sampler.take,
  )


def replayed(draws):
  """A sampler that makes the draws it is told, one after the other."""

  def select(key, state, indices, scores):
    del key, scores
    draw = jax.tree.map(lambda x: x[state], draws)
    draw = draw._replace(slots=lax.iota(jnp.int32, B), indices=indices)
    return draw, state + 1, {'num_scored': jnp.zeros((), jnp.int32)}

  return Sampler(
    lambda key: jnp.zeros((), jnp.int32),
    lambda key, state: (draws.indices[state], False),
    select,
    lambda state, draw, observation: state,
    lambda state, scores, indices: (jnp.ones(N) / N, jnp.ones(B) / B),
  )


@pytest.mark.parametrize(
  'make',
  [
    functools.partial(presample, pool_size=POOL // D, tau_threshold=0.0),
    functools.partial(memory, rebuild_every=2),
  ],
  ids=['presample', 'memory'],
)
def test_by_quota_no_row_crosses(make):
  """The gradient does, and scalars; each device trains on rows of its own.

  One device that is told the draws has the same losses and weights.
  """
  sampler = sharding.quota(make, N, B, SHARDS)
  run = train(recorded(sampler), on_mesh=True)
  draws = [jax.tree.map(np.asarray, s.sampler_state[1]) for s in run[0][1:]]
  stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *draws)
  assert len({tuple(indices) for indices in stacked.indices.tolist()}) > 1
  owners = np.asarray(stacked.indices) // (N // D)
  np.testing.assert_array_equal(
    owners, np.repeat(np.arange(D), B // D)[None] + 0 * owners
  )
  if make.func is presample:
    expect_same_run(run, train(replayed(stacked), on_mesh=False))
  for kind, shape in collectives(run[2]):
    assert kind == 'all-reduce'
    assert shape == () or tuple(sorted(shape)) in {
      tuple(sorted(p)) for p in PARAMETERS
    }
