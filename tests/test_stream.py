"""stream.py and data/source.py: rows that are read, as rows on the device."""

import collections
from concurrent import futures
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import scores
from isjax.data import (
  Source,
  array_source,
  load,
  npy_source,
  record_source,
  tfds_source,
)
from isjax.losses import cross_entropy
from isjax.samplers import SAMPLERS, presample, uniform
from isjax.step import (
  Proposal,
  TrainStep,
  init_train_state,
  make_loop,
  make_train_step,
)
from isjax.stream import make_stream_loop
from isjax.transforms import importance_weighted
from isjax.types import Batch, Observation, take

N, F, K, B = 40, 5, 3, 4
NUM_STEPS = 7
loss_fn = cross_entropy()
score = scores.logit_gradient_norm(loss_fn)


def apply_fn(params, model_state, inputs, *, train, rngs):
  del train, rngs
  return inputs['x'] @ params['kernel'], model_state


@pytest.fixture(scope='module')
def host():
  """A training set on the host, its inputs a dict."""
  rng = np.random.default_rng(0)
  inputs = {'x': rng.normal(size=(N, F)).astype(np.float32)}
  return Batch(inputs, rng.integers(0, K, N).astype(np.int32))


def make_sampler(name):
  options = {
    'class_balanced': {'labels': jnp.arange(N) % 3},
    'early_importance': {'score': 'el2n'},
    'presample': {'pool_size': 12, 'tau_threshold': 1.002, 'tau_decay': 0.5},
  }
  return SAMPLERS[name](N, B, **options.get(name, {}))


def make(sampler):
  tx = importance_weighted(optax.sgd(0.3), N)
  step = make_train_step(apply_fn, loss_fn, sampler, tx, score=score)
  params = {'kernel': jnp.zeros((F, K))}
  return step, init_train_state(jax.random.key(3), params, {}, sampler, tx)


def assert_close(got, expected):
  def check(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

  jax.tree.map(check, got, expected)


@pytest.mark.parametrize('name', sorted(SAMPLERS.keys() - {'memory'}))
def test_equals_the_loop_on_the_device(host, name):
  """The law of these samplers does not age: ahead or not, it is one run."""
  step, state = make(make_sampler(name))
  on_device = jax.tree.map(jnp.asarray, host)
  expected = make_loop(step, NUM_STEPS)(
    jax.tree.map(jnp.copy, state), on_device
  )
  loop = make_stream_loop(
    step, array_source(host), NUM_STEPS, ahead=3, num_readers=2
  )
  assert_close(loop(state), expected)
  if name == 'presample':  # the gate opened on the way
    assert 0 < expected[1]['importance_sampled'].sum() < NUM_STEPS


def test_calls_of_the_loop_add_up(host):
  """Nothing is on its way between them: 3 + 4 steps are 7, bitwise."""
  step, state = make(make_sampler('shuffle'))
  copy = jax.tree.map(jnp.copy, state)
  source = array_source(host)
  at_once, _ = make_stream_loop(step, source, 7)(copy)
  first, _ = make_stream_loop(step, source, 3)(state)
  then, _ = make_stream_loop(step, source, 4)(first)
  for a, b in zip(*map(jax.tree.leaves, (at_once, then)), strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(a, b)


def test_the_law_of_a_draw_travels_with_it(host):
  """A memory's scores move on; the weights stay those of the proposal."""
  sampler = make_sampler('memory')
  step, state = make(sampler)
  key = jax.random.key(0)
  for number in range(20):  # until the memory draws by its scores
    step_state = state._replace(step=jnp.int32(number))
    state, _ = step(step_state, jax.tree.map(jnp.asarray, host))
  law, _ = sampler.law(state.sampler_state, jnp.zeros(B))
  proposal, state = step.propose(state, state.step)
  np.testing.assert_allclose(
    proposal.draw.probabilities, law[proposal.indices], rtol=1e-5
  )
  observed = sampler.observe(
    state.sampler_state,
    proposal.draw._replace(indices=jax.random.permutation(key, N)[:B]),
    Observation(jnp.ones(B), jnp.array([9.0, 5.0, 7.0, 1.0]), {}),
  )
  moved, _ = sampler.law(observed, jnp.zeros(B))
  assert jnp.abs(moved - law).max() > 1e-3
  rows = take(jax.tree.map(jnp.asarray, host), proposal.indices)
  _, metrics = step.train(
    state._replace(sampler_state=observed), proposal, rows
  )
  weights = 1 / (N * law[proposal.indices])
  np.testing.assert_allclose(
    metrics['largest_weight'], weights.max(), rtol=1e-5
  )


@pytest.mark.parametrize('name', sorted(SAMPLERS))
def test_a_proposal_that_may_need_scores_goes_by_its_key(name, host):
  """The contract that lets its rows be fetched ahead."""
  sampler = make_sampler(name)
  step, state = make(sampler)
  _, needs_scores = sampler.propose(state.key, state.sampler_state)
  if needs_scores is False:
    proposal, _ = step.propose(state, jnp.int32(0))
    assert proposal.draw is not None
    return
  later = state
  for _ in range(5):
    later, _ = step(later, jax.tree.map(jnp.asarray, host))
  for seed in range(5):
    key = jax.random.key(seed)
    before, _ = sampler.propose(key, state.sampler_state)
    after, _ = sampler.propose(key, later.sampler_state)
    np.testing.assert_array_equal(before, after)


def test_a_proposal_by_state_that_needs_scores_is_refused(host):
  """It would have changed since its rows were fetched."""
  pool = presample(N, B, pool_size=12, tau_threshold=0.0)

  def propose(key, state):
    indices, needs_scores = pool.propose(key, state)
    return (indices + (state.tau > 0)) % N, needs_scores

  step, state = make(pool._replace(propose=propose))
  loop = make_stream_loop(step, array_source(host), 9)
  with pytest.raises(ValueError, match='proposes by its state'):
    loop(state)


def test_rows_are_read_ahead_but_no_further(host):
  """While a step lasts, no more rows are read than the loop may hold."""
  ahead = 3
  reads, trained = [], []
  overtaken = threading.Event()
  source = array_source(host)

  def read(indices):
    reads.append(indices)
    if len(reads) - len(trained) > 2 * ahead + 1:
      overtaken.set()
    return source.read(indices)

  step, state = make(uniform(N, B))

  def last(_):
    """The third step ends when it is overtaken, or else after a while."""
    if len(trained) == 2:
      overtaken.wait(0.5)
    trained.append(len(reads))

  def train(state, proposal, rows):
    state, metrics = step.train(state, proposal, rows)
    jax.debug.callback(last, metrics['loss'])
    return state, metrics

  lasting = TrainStep(step.propose, train, step.whole, step.num_examples)
  loop = make_stream_loop(
    lasting, Source(N, read), 30, ahead=ahead, num_readers=3
  )
  jax.block_until_ready(loop(state))
  jax.effects_barrier()
  assert len(reads) == len(trained) == 30
  assert trained[0] > 1  # they are read ahead
  assert not overtaken.is_set()


def test_an_error_of_a_reader_reaches_the_caller(host):
  """As it is, at the step that it belongs to, and no thread is left behind."""
  source = array_source(host)
  reads = collections.Counter()

  def read(indices):
    reads['all'] += 1
    if reads['all'] == 4:
      raise OSError('the disk is gone')
    return source.read(indices)

  step, state = make(uniform(N, B))
  loop = make_stream_loop(step, Source(N, read), 100, ahead=2)
  with pytest.raises(OSError, match='the disk is gone'):
    loop(state)
  assert reads['all'] <= 4 + 2
  names = [thread.name for thread in threading.enumerate()]
  assert not any(name.startswith('isjax-reader') for name in names)


def test_a_source_of_another_size_is_refused(host):
  """Before anything is read."""
  step, state = make(uniform(N, B))
  loop = make_stream_loop(step, Source(N + 1, array_source(host).read), 1)
  with pytest.raises(ValueError, match='made for 40 .* source has 41'):
    loop(state)


@pytest.mark.parametrize('name', ['num_steps', 'ahead', 'num_readers'])
def test_bad_numbers_are_named(host, name):
  """Each must be at least 1."""
  step, _ = make(uniform(N, B))
  options = {'num_steps': 1, name: 0}
  with pytest.raises(ValueError, match=f'{name} must be an integer of at'):
    make_stream_loop(step, array_source(host), **options)


def test_a_proposal_is_a_pytree(host):
  """It crosses jit with its draw."""
  step, state = make(uniform(N, B))
  proposal, _ = jax.jit(step.propose)(state, jnp.int32(5))
  assert isinstance(proposal, Proposal)
  assert proposal.step == 5
  np.testing.assert_array_equal(proposal.draw.indices, proposal.indices)


# --- sources ------------------------------------------------------------------


def saved(folder, **arrays):
  for name, array in arrays.items():
    np.save(folder / f'{name}.npy', array)
  return folder


@pytest.mark.parametrize('kind', ['arrays', 'npy', 'records'])
def test_a_source_reads_the_rows_asked_for(kind, tmp_path):
  """In the order asked for, repeated ones repeated; as numpy indexes."""
  rng = np.random.default_rng(1)
  inputs = rng.integers(0, 256, (N, 3, 2), np.uint8)
  targets = rng.integers(0, 9, N).astype(np.int32)
  record_weights = rng.random(N).astype(np.float32)
  if kind == 'arrays':
    source = array_source(Batch(inputs, targets, record_weights))
  elif kind == 'npy':
    folder = saved(
      tmp_path, inputs=inputs, targets=targets, record_weights=record_weights
    )
    source = npy_source(folder)
  else:
    records = [
      {'image': x, 'label': y} for x, y in zip(inputs, targets, strict=True)
    ]
    source = record_source(records, lambda r: (r['image'], r['label']))
  indices = np.array([7, 0, 39, 7, 12])
  batch = source.read(indices)
  assert source.num_examples == N
  np.testing.assert_array_equal(batch.inputs, inputs[indices])
  np.testing.assert_array_equal(batch.targets, targets[indices])
  assert batch.inputs.dtype == np.uint8
  if kind != 'records':
    np.testing.assert_array_equal(batch.record_weights, record_weights[indices])


def test_records_are_asked_for_together_where_they_can_be():
  """`__getitems__`, as the data sources of tensorflow-datasets have it."""
  calls = []

  class Records(list):
    def __getitems__(self, places):
      calls.append(places)
      return [self[i] for i in places]

  source = record_source(Records(range(10)), lambda r: (np.float32(r), r))
  np.testing.assert_array_equal(source.read(np.array([3, 1])).targets, [3, 1])
  assert calls == [[3, 1]]


def test_a_file_of_rows_trains(host, tmp_path):
  """From .npy files to an update, with the file's weights refused or used."""
  folder = saved(tmp_path, inputs=host.inputs['x'], targets=host.targets)
  source = npy_source(folder)

  def read(indices):
    batch = source.read(indices)
    return batch._replace(inputs={'x': batch.inputs})

  step, state = make(uniform(N, B))
  streamed = make_stream_loop(step, Source(N, read), 3)
  resident = make_stream_loop(step, array_source(host), 3)
  assert_close(streamed(jax.tree.map(jnp.copy, state)), resident(state))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'targets': np.arange(N - 1)}, "one length; got {'inputs': 40"),
    ({'inputs': np.array([{}] * N)}, 'inputs.npy holds no array of'),
    ({'inputs': np.float32(3)}, r'an array \[N, ...\]'),
    ({'inputs': np.asfortranarray(np.ones((N, 3)))}, 'in C order'),
  ],
  ids=('lengths', 'objects', 'a number', 'order'),
)
def test_files_that_are_no_such_arrays_are_named(change, message, tmp_path):
  """With the file and the remedy."""
  arrays = {'inputs': np.zeros((N, 3)), 'targets': np.zeros(N, np.int32)}
  saved(tmp_path, **arrays | change)
  with pytest.raises(ValueError, match=message):
    npy_source(tmp_path)


def test_a_missing_file_is_named(tmp_path):
  """FileNotFoundError, with its path."""
  saved(tmp_path, inputs=np.zeros((N, 3)))
  with pytest.raises(FileNotFoundError, match='targets.npy'):
    npy_source(tmp_path)


def test_a_file_cut_short_is_told_when_its_row_is_read(tmp_path):
  """Not read as zeros."""
  saved(tmp_path, inputs=np.ones((N, 3)), targets=np.zeros(N, np.int32))
  source = npy_source(tmp_path)
  path = tmp_path / 'inputs.npy'
  with path.open('r+b') as file:
    file.truncate(path.stat().st_size - 8)
  assert source.read(np.array([N - 2])).inputs.sum() == 3
  with pytest.raises(OSError, match=f'ends within row {N - 1}: it has been'):
    source.read(np.array([0, N - 1]))


@pytest.mark.skipif(
  'TFDS_DATA_DIR' not in os.environ, reason='TFDS_DATA_DIR is not set'
)
def test_a_prepared_set_is_read_by_several_threads():
  """Rows as `load` has them: this set has no ids to be sorted by."""
  source = tfds_source('mnist:3.0.1', 'test')
  whole, metadata = load('mnist:3.0.1', 'test')
  assert source.num_examples == metadata.num_examples
  draws = np.random.default_rng(0).integers(0, source.num_examples, (6, 50))
  with futures.ThreadPoolExecutor(3) as readers:
    for indices, batch in zip(
      draws, readers.map(source.read, draws), strict=True
    ):
      np.testing.assert_array_equal(batch.inputs, whole.inputs[indices])
      np.testing.assert_array_equal(batch.targets, whole.targets[indices])
