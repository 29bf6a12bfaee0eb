"""A sampler's draws as plain indices, for the data loaders of other libraries.

The loader reads, decodes and collates as it always does; only the order in
which it asks for examples, and the weight of each, come from here.
"""

from collections.abc import Callable, Iterator
import functools
import itertools
import operator
import threading
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from isjax import _validate
from isjax.types import Observation, PyTree, Sampler
from isjax.weights import importance_weights

_PIECE = 4096  # indices that are Python integers at a time
_STATISTICS = ('label_probability', 'error')  # that samplers here may ask for


class IndexStream:
  """The indices that a sampler draws, epoch after epoch of num_draws each.

      stream = IndexStream(record_weighted(N, 4096, law=law), seed=0)
      loader = torch.utils.data.DataLoader(data, batch_size=32, sampler=stream)

  To torch it is a `sampler`, and torch's own BatchSampler makes a
  `batch_sampler` of it. To a library that reads by position, such as grain, it
  is stream[i]: draw i of the run, in epoch i // num_draws. `weights` can be a
  column of the data set: the mean of weight times loss over a batch estimates
  the objective without bias.

  An epoch is a function of the sampler, the seed and its number, the same at
  every call, on one kind of device. It starts the sampler anew: epochs of N
  draws are permutations under `shuffle`. Each iteration is an epoch, the one
  after that begun last, which is the one that `state_dict` follows.

  A torch loader with workers asks for more than it has yielded.
  StatefulDataLoader of torchdata counts that in, given a `sampler`; after a
  plain one, load_state_dict the epoch and the number of indices trained on.
  The workers do not call JAX, which warns all the same where they are forked.

  Args:
    sampler: of one law for all draws, that needs no model: `uniform`,
      `shuffle`, `record_weighted`, `class_balanced`. Its batch_size is only how
      many it draws at a time: some thousands are fastest.
    seed: integer, of all epochs.
    num_draws: of an epoch, which is drawn at once, 4 bytes each; None: N.

  Raises:
    ValueError: on a bad argument; for a sampler that may need scores, learns
      from training, or trains on a part of what it proposes.
  """

  def __init__(
    self, sampler: Sampler, seed: int, num_draws: int | None = None
  ) -> None:
    if num_draws is not None:
      _validate.positive_integers(num_draws=num_draws)
    self._sampler, self._seed = sampler, seed
    init_key, self._key = jax.random.split(jax.random.key(seed))
    self._state = sampler.init(init_key)
    self._facts = _inspect(sampler, self._state)
    self._num_draws = num_draws or self._facts.num_examples
    self._draw = _drawer(sampler, self._facts, self._num_draws)
    self._drawn = functools.lru_cache(maxsize=2)(self._draw_epoch)
    self._lock = threading.Lock()  # loaders read by many threads
    self.load_state_dict({'epoch': 0, 'position': 0})

  def __len__(self) -> int:
    """The draws of an epoch."""
    return self._num_draws

  def __iter__(self) -> Iterator[int]:
    """Iterates over what is left of an epoch, by default all of the next."""
    return itertools.chain.from_iterable(self._pieces())

  def _pieces(self) -> Iterator[Iterator[int]]:
    """Begins an epoch when the first index is asked for."""
    epoch, position = self._next
    self._next = epoch + 1, 0
    draws = self.epoch(epoch)
    for start in range(position, len(draws), _PIECE):
      piece = draws[start : start + _PIECE].tolist()
      self._ahead = iter(piece)
      self._reached = epoch, start + len(piece)
      yield self._ahead

  def __getitem__(self, position: int) -> int:
    """Returns draw `position` >= 0 of all epochs, one after the other."""
    if position < 0:
      raise IndexError(f'position must be non-negative; got {position}.')
    epoch, place = divmod(position, self._num_draws)
    return int(self.epoch(epoch)[place])

  def epoch(self, number: int) -> np.ndarray:
    """Returns the draws of an epoch, i32[num_draws] in [0, N), not writable.

    Args:
      number: of the epoch, in [0, 2^31). The last two asked for are kept.
    """
    with self._lock:
      return self._drawn(number)

  @functools.cached_property
  def weights(self) -> np.ndarray:
    """f32[N], the importance weight pi/p of each example; 0 where p is 0."""
    size, batch_size = self._facts.num_examples, self._facts.batch_size
    select = self._sampler.select

    @jax.jit
    def weigh(key, state):
      def of(indices):
        draw, _, _ = select(key, state, indices, jnp.zeros((batch_size,)))
        w = importance_weights(draw.probabilities, draw.target_probabilities)
        return jnp.where(draw.probabilities > 0, w, 0.0)

      places = jnp.arange(-(-size // batch_size) * batch_size)
      places = jnp.minimum(places, size - 1).reshape(-1, batch_size)
      return lax.map(of, places).reshape(-1)[:size]

    return np.asarray(weigh(self._key, self._state))

  def state_dict(self) -> dict[str, int]:
    """Returns where the latest iteration stands: its epoch and position."""
    epoch, end = self._reached
    position = end - operator.length_hint(self._ahead)
    if position == self._num_draws:
      epoch, position = epoch + 1, 0
    return {'epoch': epoch, 'position': position}

  def load_state_dict(self, state_dict: dict[str, int]) -> None:
    """Makes the next iteration start there; with position 0, a whole epoch.

    Args:
      state_dict: as `state_dict` returns it, of a stream made alike.

    Raises:
      ValueError: where there is no such epoch or position.
    """
    epoch, position = state_dict['epoch'], state_dict['position']
    _validate.non_negative(epoch=epoch, position=position)
    if position > self._num_draws:
      raise ValueError(
        f'position must be at most num_draws, {self._num_draws}; got '
        f'{position}. Make the stream as the one that was saved.'
      )
    self._next = self._reached = epoch, position
    self._ahead = iter(())

  __setstate__ = load_state_dict

  def __reduce__(self):  # a copy, in another process perhaps, is made anew
    made_of = self._sampler, self._seed, self._num_draws
    return IndexStream, made_of, self.state_dict()

  def _draw_epoch(self, number: int) -> np.ndarray:
    state = self._state
    if self._facts.moves:
      state = self._sampler.init(_keys(self._key, number)[0])
    return np.asarray(self._draw(self._key, number, state))


class _Facts(NamedTuple):
  """What a sampler is made for; whether its state moves from draw to draw."""

  num_examples: int
  batch_size: int
  moves: bool


def _inspect(sampler: Sampler, state: PyTree) -> _Facts:
  """Traces a step of the sampler, and refuses one that needs a model."""
  facts = []

  def step(key, state):
    indices, needs_scores = sampler.propose(key, state)
    if needs_scores is not False:
      raise ValueError(
        'sampler must draw without scores; this one (presample, say) asks a '
        'model for them. Train with make_train_step or make_stream_loop.'
      )
    zeros = jnp.zeros(indices.shape)
    draw, after, _ = sampler.select(key, state, indices, zeros)
    if draw.indices is not indices:
      raise ValueError(
        'sampler must train on all that it proposes, in that order: let select '
        'pass the indices on as they are.'
      )
    statistics = dict.fromkeys(_STATISTICS, zeros)
    seen = Observation(zeros, zeros, statistics)
    if not _same(state, sampler.observe(state, draw, seen)):
      raise ValueError(
        'sampler must not learn from training, of which a stream of indices '
        'sees nothing; this one (memory, say) does. Train with make_train_step '
        'or make_stream_loop, or freeze its law: record_weighted(law=...).'
      )
    law, _ = sampler.law(state, zeros)
    facts.append(_Facts(*law.shape, *indices.shape, not _same(state, after)))

  jax.eval_shape(step, jax.random.key(0), state)
  return facts[0]


def _same(before: PyTree, after: PyTree) -> bool:
  """Whether a traced function returned its argument as it came."""
  pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
  return all(a is b for a, b in pairs)


def _keys(key: jax.Array, number: int | jax.Array) -> jax.Array:
  """Returns an epoch's keys, of its first state and of its draws."""
  return jax.random.split(jax.random.fold_in(key, number))


def _drawer(
  sampler: Sampler, facts: _Facts, num_draws: int
) -> Callable[..., jax.Array]:
  """Returns (key, number of the epoch, its first state) -> i32[num_draws]."""

  def step(state, key):
    propose_key, select_key = jax.random.split(key)
    indices, _ = sampler.propose(propose_key, state)
    scores = jnp.zeros((facts.batch_size,))
    _, state, _ = sampler.select(select_key, state, indices, scores)
    return state, indices

  @jax.jit
  def draw(key, number, state):
    num_steps = -(-num_draws // facts.batch_size)
    keys = jax.random.split(_keys(key, number)[1], num_steps)
    if facts.moves:
      _, indices = lax.scan(step, state, keys)
    else:  # small batches together
      together = -(-_PIECE // facts.batch_size)
      indices = lax.map(lambda k: step(state, k)[1], keys, batch_size=together)
    return indices.reshape(-1)[:num_draws]

  return draw
