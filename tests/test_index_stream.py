"""index_stream.py: a sampler's draws, as loaders of other libraries take them.

Each loader is the real one, where it is installed.
"""

from concurrent import futures
import copy
import functools
import itertools
import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from isjax import index_stream
from isjax.index_stream import IndexStream
from isjax.samplers import (
  SAMPLERS,
  class_balanced,
  memory,
  presample,
  record_weighted,
  shuffle,
  uniform,
)

N, B = 60, 8
RECORDS = np.arange(N) % 4
LAW = 1.0 + np.arange(N) % 7
LABELS = (np.arange(N) > 45).astype(np.int32)
SAMPLER = {
  'uniform': lambda: uniform(N, B),
  'uniform_records': lambda: uniform(N, B, record_weights=RECORDS),
  'shuffle': lambda: shuffle(N, B),
  'record_weighted': lambda: record_weighted(
    N, B, record_weights=RECORDS, law=LAW
  ),
  'record_weighted_epoch': lambda: record_weighted(
    N, B, record_weights=RECORDS, law=LAW, mix=0.5, draws='epoch'
  ),
  'class_balanced': lambda: class_balanced(N, B, labels=LABELS),
}
WITHOUT_A_MODEL = {'uniform', 'shuffle', 'record_weighted', 'class_balanced'}


@functools.cache
def compiled(name):
  """One stream for all tests: each compiles anew."""
  return IndexStream(SAMPLER[name](), seed=5)


def make(name):
  """A stream before its first epoch."""
  stream = compiled(name)
  stream.load_state_dict({'epoch': 0, 'position': 0})
  return stream


def epochs(name, *numbers):
  """The draws of some epochs, one after the other."""
  return np.concatenate([compiled(name).epoch(number) for number in numbers])


@pytest.mark.parametrize('name', ['uniform', 'record_weighted_epoch'])
def test_an_epoch_is_a_function_of_seed_and_number(name):
  """Whatever was drawn before; one by one, by position, or at once."""
  other = IndexStream(SAMPLER[name](), seed=5)
  for number in (3, 0, 2):
    np.testing.assert_array_equal(other.epoch(number), epochs(name, number))
  places = range(0, 4 * N, 7)
  drawn = [other[i] for i in places]
  assert drawn == epochs(name, *range(4))[places].tolist()
  assert all(type(i) is int for i in drawn)
  stream = make(name)
  assert len(stream) == N
  assert [list(stream), list(stream)] == [list(other), list(other)]
  assert list(stream) == epochs(name, 2).tolist()
  distinct = [epochs(name, number) for number in range(4)]
  if name == 'uniform':
    distinct.append(IndexStream(SAMPLER[name](), seed=6).epoch(0))
  for a, b in itertools.combinations(distinct, 2):
    assert not np.array_equal(a, b)


@pytest.mark.parametrize('name', SAMPLER)
def test_draws_follow_the_samplers_law(name, key):
  """Chi-square over 200 epochs of independent draws; others by their counts."""
  sampler = SAMPLER[name]()
  law, _ = sampler.law(sampler.init(key), jnp.zeros(B))
  law = np.asarray(law, np.float64)
  if name in ('shuffle', 'record_weighted_epoch'):
    for number in range(3):
      counts = np.bincount(epochs(name, number), minlength=N)
      assert (np.abs(counts - N * law) < 1).all()
    return
  counts = np.bincount(epochs(name, *range(200)), minlength=N)
  p = stats.chisquare(counts, 200 * N * law, sum_check=False).pvalue
  assert p > 1e-4


@pytest.mark.parametrize('name', SAMPLER)
def test_weights_correct_the_law_to_the_objective(name):
  """w_i = pi_i / p_i for all i, as the samplers define them, in float64."""
  pi = p = np.full(N, 1 / N)
  if 'record' in name:
    pi = RECORDS / RECORDS.sum()
  if name.startswith('record_weighted'):
    p = LAW / LAW.sum()
  if name == 'record_weighted_epoch':
    p = (p + pi) / 2
  if name == 'class_balanced':  # changes the objective on purpose
    pi = p
  weights = compiled(name).weights
  assert weights.dtype == np.float32
  np.testing.assert_allclose(weights, pi / p, rtol=1e-5)


def test_what_is_never_drawn_has_no_weight():
  """p = pi = 0 is no 0/0; all others have weight 1 under p = r/R."""
  stream = IndexStream(record_weighted(N, B, record_weights=RECORDS), 0)
  np.testing.assert_allclose(stream.weights, RECORDS > 0, rtol=1e-5)


@pytest.mark.parametrize('stop', [0, 1, 15, 16, 17, N - 1])
@pytest.mark.parametrize('name', ['uniform', 'shuffle'])
def test_goes_on_where_it_was_saved(name, stop, monkeypatch):
  """Bitwise, in the epoch and in the next one, from numbers on paper."""
  monkeypatch.setattr(index_stream, '_PIECE', 16)
  stream = make(name)
  list(stream)
  draws = iter(stream)
  before = list(itertools.islice(draws, stop))
  saved = json.dumps(stream.state_dict())
  rest = list(draws)
  assert before + rest == epochs(name, 1).tolist()
  resumed = make(name)
  resumed.load_state_dict(json.loads(saved))
  assert resumed.state_dict() == json.loads(saved)
  following = epochs(name, 2).tolist()
  assert [list(resumed), list(resumed)] == [rest, following]


def test_an_epoch_at_its_end_is_the_next_one_at_its_start():
  """Whether its end was seen or not; one that was broken off stays so."""
  stream = make('uniform')
  assert stream.state_dict() == {'epoch': 0, 'position': 0}
  iter(stream)  # begins nothing: torch calls it twice
  draws = iter(stream)
  assert stream.state_dict() == {'epoch': 0, 'position': 0}
  for _ in range(N):
    next(draws)
  assert stream.state_dict() == {'epoch': 1, 'position': 0}
  assert next(draws, None) is None
  assert stream.state_dict() == {'epoch': 1, 'position': 0}
  next(iter(stream))
  assert stream.state_dict() == {'epoch': 1, 'position': 1}
  assert list(stream) == epochs('uniform', 2).tolist()


def test_a_state_loaded_replaces_the_iteration():
  """What was ahead in the one before no longer counts."""
  stream = make('uniform')
  next(iter(stream))
  stream.load_state_dict({'epoch': 7, 'position': 3})
  assert stream.state_dict() == {'epoch': 7, 'position': 3}
  assert list(stream) == epochs('uniform', 7)[3:].tolist()


def test_a_copy_goes_on_alike():
  """As in another process: made anew, and put in its place."""
  stream = make('uniform')
  draws = iter(stream)
  next(draws)
  copied = copy.copy(stream)
  assert [list(copied), list(copied)] == [list(draws), list(stream)]


def test_a_long_epoch_runs_on():
  """Three epochs of the sampler in one of the stream, each a permutation."""
  drawn = IndexStream(shuffle(N, B), 5, num_draws=3 * N).epoch(1).reshape(3, N)
  np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(N), (3, 1)))
  for a, b in itertools.combinations(drawn, 2):
    assert not np.array_equal(a, b)


def test_threads_share_an_epoch():
  """Readers that ask at once get one stream, drawn once per epoch."""
  calls = []
  sampler = SAMPLER['shuffle']()

  def init(key):
    calls.append(key)
    return sampler.init(key)

  stream = IndexStream(sampler._replace(init=init), seed=5)
  calls.clear()
  together = threading.Barrier(8)

  def read(start):
    together.wait()
    return [stream[i] for i in range(start, 2 * N, 8)]

  with futures.ThreadPoolExecutor(8) as readers:
    found = list(readers.map(read, range(8)))
  for start, drawn in enumerate(found):
    assert drawn == epochs('shuffle', 0, 1)[start::8].tolist()
  assert len(calls) == 2


def test_draws_beyond_2_to_the_24_items():
  """Where torch.multinomial stops and float32 uniforms fail: chi-square."""
  size = 2**24 + 5
  items = np.array([0, 2**23, *range(2**24 - 1, size)])
  records = np.zeros(size, np.float32)
  records[items] = np.arange(1, 1 + len(items))
  sampler = record_weighted(size, 4096, record_weights=records)
  stream = IndexStream(sampler, seed=0, num_draws=2**14)
  found, counts = np.unique(stream.epoch(0), return_counts=True)
  np.testing.assert_array_equal(found, items)
  expected = len(stream) * records[items] / records[items].sum()
  assert stats.chisquare(counts, expected, sum_check=False).pvalue > 1e-4


@pytest.mark.parametrize('name', SAMPLERS)
def test_every_sampler_streams_or_is_refused(name):
  """Who needs a model, to draw or to learn, is refused with a way out."""
  options = {'labels': LABELS} if name == 'class_balanced' else {}
  sampler = SAMPLERS[name](N, B, **options)
  if name in WITHOUT_A_MODEL:
    assert len(IndexStream(sampler, 0)) == N
    return
  with pytest.raises(ValueError, match='make_train_step'):
    IndexStream(sampler, 0)


def test_bad_arguments():
  """Each is named, with the remedy."""
  with pytest.raises(ValueError, match='without scores'):
    IndexStream(presample(N, B, tau_threshold=1e9), 0)
  with pytest.raises(ValueError, match='not learn from training'):
    IndexStream(memory(N, B, remember='p_sgd'), 0)
  sampler = uniform(N, B)

  def select(key, state, indices, scores):
    return sampler.select(key, state, indices[::-1], scores)

  with pytest.raises(ValueError, match='all that it proposes, in that order'):
    IndexStream(sampler._replace(select=select), 0)
  with pytest.raises(ValueError, match='num_draws must be an integer'):
    IndexStream(sampler, 0, 0)
  stream = make('uniform')
  with pytest.raises(IndexError, match='non-negative; got -1'):
    stream[-1]
  with pytest.raises(ValueError, match='position must be at most num_draws'):
    stream.load_state_dict({'epoch': 0, 'position': N + 1})
  with pytest.raises(ValueError, match='epoch must be non-negative'):
    stream.load_state_dict({'epoch': -1, 'position': 0})


def test_an_observe_of_ones_own_that_learns_nothing_will_do():
  """It is traced, not asked for its name."""
  sampler = uniform(N, B)._replace(observe=lambda state, draw, seen: state)
  assert IndexStream(sampler, 5).epoch(0).tolist() == list(make('uniform'))


def module(name):
  """A library, or a skip."""
  root = name.partition('.')[0]
  return pytest.importorskip(name, reason=f'{root} is not installed')


@pytest.fixture
def torch_set():
  """Examples that are their own index, each with its importance weight."""
  torch = module('torch')
  weights = torch.tensor(compiled('record_weighted').weights)
  return torch.utils.data.TensorDataset(torch.arange(N), weights)


def seen(loader):
  """The examples of each batch."""
  return [indices.tolist() for indices, _ in loader]


def batches(draws):
  """Batches of 7, the last one short."""
  draws = draws.tolist()
  return [draws[i : i + 7] for i in range(0, len(draws), 7)]


def test_torch_loads_in_the_streams_order(torch_set):
  """As sampler: the epochs in turn, and the weights as a column of the set."""
  loader = module('torch').utils.data.DataLoader(
    torch_set, batch_size=7, sampler=make('record_weighted')
  )
  assert len(loader) == 9
  for number in range(2):
    assert seen(loader) == batches(epochs('record_weighted', number))
  for indices, weights in loader:
    expected = compiled('record_weighted').weights[indices]
    np.testing.assert_array_equal(weights, expected)


@pytest.mark.filterwarnings(
  'ignore:os.fork:RuntimeWarning',
  'ignore:This DataLoader will create:UserWarning',
)
def test_torch_loads_with_workers(torch_set):
  """They read the examples; the stream, and JAX, stay in their parent."""
  loader = module('torch').utils.data.DataLoader(
    torch_set, batch_size=7, sampler=make('shuffle'), num_workers=2, timeout=60
  )
  assert seen(loader) == batches(epochs('shuffle', 0))


def test_torch_takes_batches_of_a_stream(torch_set):
  """As batch_sampler, through torch's own BatchSampler."""
  data = module('torch').utils.data
  sampler = data.BatchSampler(make('shuffle'), 7, drop_last=True)
  loader = data.DataLoader(torch_set, batch_sampler=sampler)
  for number in range(2):
    assert seen(loader) == batches(epochs('shuffle', number))[:-1]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize('stop', [0, 3, 8])
def test_torchdata_resumes_in_the_middle_of_an_epoch(torch_set, stop):
  """Its StatefulDataLoader finds the state of the sampler."""
  stateful = module('torchdata.stateful_dataloader').StatefulDataLoader

  def make_loader():
    return stateful(torch_set, batch_size=7, sampler=make('shuffle'))

  loader = make_loader()
  seen(loader)
  left = iter(loader)
  for _ in range(stop):
    next(left)
  state = loader.state_dict()
  resumed = make_loader()
  resumed.load_state_dict(state)
  assert seen(resumed) == batches(epochs('shuffle', 1))[stop:]
  assert seen(resumed) == batches(epochs('shuffle', 2))


@pytest.mark.parametrize('stop', [0, 3, 12])
def test_grain_reads_by_position(stop):
  """Two epochs of a MapDataset, read by threads and resumed by its state."""
  data = (
    module('grain')
    .MapDataset.range(2 * N)
    .map(compiled('shuffle').__getitem__)
    .map(lambda index: 10 * index)
    .batch(7)
    .to_iter_dataset()
  )
  expected = batches(10 * epochs('shuffle', 0, 1))
  left = iter(data)
  assert [next(left).tolist() for _ in range(stop)] == expected[:stop]
  resumed = iter(data)
  resumed.set_state(left.get_state())
  assert [batch.tolist() for batch in resumed] == expected[stop:]


def test_grain_loads_in_the_streams_order():
  """As the sampler of its DataLoader, which wants records' metadata."""
  grain = module('grain')
  metadata = module('grain.python').RecordMetadata

  class Sampler:
    def __len__(self):
      return 2 * N

    def __getitem__(self, index):
      return metadata(index=index, record_key=compiled('shuffle')[index])

  loader = grain.DataLoader(
    data_source=10 * np.arange(N),
    sampler=Sampler(),
    shard_options=grain.sharding.NoSharding(),
  )
  np.testing.assert_array_equal(list(loader), 10 * epochs('shuffle', 0, 1))
