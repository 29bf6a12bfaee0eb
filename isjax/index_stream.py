"""A sampler's draws as plain indices, for the data loaders of other libraries.

The loader reads, decodes and collates as it always does; only the order in
which it asks for examples, and the weight of each, come from here.
"""

from collections.abc import Callable, Iterator
import functools
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


class IndexStream:
  """The indices that a sampler draws, epoch after epoch of num_draws each.

  To torch it is a `sampler`, and `torch.utils.data.BatchSampler(stream, b,
  drop_last)` of it a `batch_sampler`. To a library that reads by position, such
  as grain, it is stream[i]: draw i of the run, in epoch i // num_draws.

      stream = IndexStream(record_weighted(N, 4096, record_weights=r), seed=0)
      loader = torch.utils.data.DataLoader(data, batch_size=32, sampler=stream)

  `weights` is a column of the data set: the mean over a batch of
  weights[index] * loss estimates the objective without bias.

  An epoch is a function of the sampler, the seed and the number of the epoch.
  It starts the sampler anew, so that epochs of N draws are permutations under
  `shuffle`. Each iteration is one epoch, the one after the last begun. One
  iteration is followed at a time: `state_dict` tells where the latest stands.
  A loader with workers asks ahead for what it has not yielded yet;
  StatefulDataLoader of torchdata counts that in.

  Args:
    sampler: with a law that no model changes: `uniform`, `shuffle`,
      `record_weighted`, `class_balanced`. Its batch_size is only how many it
      draws at a time, which is fastest with some thousands.
    seed: integer, of all epochs.
    num_draws: of an epoch, at 4 bytes each; None: N.

  Raises:
    ValueError: on a bad argument; for a sampler that may need scores, learns
      from training, or trains on a part of what it proposes.
  """

  def __init__(
    self, sampler: Sampler, seed: int, num_draws: int | None = None
  ) -> None:
    if num_draws is not None:
      _validate.positive_integers(num_draws=num_draws)
    self._sampler = sampler
    self._key = jax.random.key(seed)
    self._state = sampler.init(self._key)
    self._facts = _inspect(sampler, self._state)
    self._num_draws = num_draws or self._facts.num_examples
    self._draw = _drawer(sampler, self._facts.batch_size, self._num_draws)
    self._drawn = functools.lru_cache(maxsize=2)(self._draw_epoch)
    self._lock = threading.Lock()  # loaders read by many threads
    self.load_state_dict({'epoch': 0, 'position': 0})

  def __len__(self) -> int:
    """The draws of an epoch."""
    return self._num_draws

  def __iter__(self) -> Iterator[int]:
    """Yields what is left of an epoch, by default all of the next one."""
    epoch, position = self._next
    self._next = epoch + 1, 0
    draws = self.epoch(epoch)
    for start in range(position, len(draws), _PIECE):
      piece = draws[start : start + _PIECE].tolist()
      self._ahead = iter(piece)
      self._reached = epoch, start + len(piece)
      yield from self._ahead
    self._reached = self._next

  def __getitem__(self, position: int) -> int:
    """Returns draw `position` >= 0 of all epochs, one after the other."""
    if position < 0:
      raise IndexError(f'position must be non-negative; got {position}.')
    epoch, place = divmod(position, self._num_draws)
    return int(self.epoch(epoch)[place])

  def epoch(self, number: int) -> np.ndarray:
    """Returns the draws of an epoch, i32[num_draws] in [0, N), not writable.

    Args:
      number: of the epoch, in [0, 2^32). The last two asked for are kept.
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

  def _draw_epoch(self, number: int) -> np.ndarray:
    init_key, draw_key = jax.random.split(jax.random.fold_in(self._key, number))
    state = self._state
    if self._facts.moves:
      state = self._sampler.init(init_key)
    return np.asarray(self._draw(draw_key, state))


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
    # The statistic that samplers of this package ask for.
    seen = Observation(zeros, zeros, {'label_probability': zeros})
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


def _drawer(
  sampler: Sampler, batch_size: int, num_draws: int
) -> Callable[[jax.Array, PyTree], jax.Array]:
  """Returns (key, first state) -> i32[num_draws], compiled."""

  def step(state, key):
    propose_key, select_key = jax.random.split(key)
    indices, _ = sampler.propose(propose_key, state)
    scores = jnp.zeros((batch_size,))
    _, state, _ = sampler.select(select_key, state, indices, scores)
    return state, indices

  @jax.jit
  def draw(key, state):
    keys = jax.random.split(key, -(-num_draws // batch_size))
    _, indices = lax.scan(step, state, keys)
    return indices.reshape(-1)[:num_draws]

  return draw
