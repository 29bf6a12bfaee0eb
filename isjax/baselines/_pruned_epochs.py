"""Epochs over a part of the examples, chosen anew for each epoch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import _validate
from isjax._in_place import after, when
from isjax._words import running_sum
from isjax.resampling import permutation
from isjax.types import Draw, Sampler


class PrunedEpochsState(NamedTuple):
  """Where an epoch stands, and what the next one is made from.

  weights:              f32[N] >= 0, of each example in this epoch; 0: pruned.
  order:                i32[N], the first num_kept of it those that were kept,
                        in random order.
  num_kept:             i32[] in [1, N], E.
  position:             i32[], of the next draw in `order`.
  step:                 i32[], steps made.
  seed:                 u32[2], of the next epoch.
  losses:               f32[N], of each example when last trained on, inf before
                        the first time; None where no rule asks for them.
  target_probabilities: None, since record weights are refused.
  """

  weights: jax.Array
  order: jax.Array
  num_kept: jax.Array
  position: jax.Array
  step: jax.Array
  seed: jax.Array
  losses: jax.Array | None
  target_probabilities: None = None


def pruned_epochs(
  num_examples: int,
  batch_size: int,
  first_weights: Callable[[jax.Array], jax.Array],
  next_weights: Callable[[jax.Array, PrunedEpochsState], jax.Array],
  *,
  remember_losses: bool,
  annealing: float,
  num_steps: int | None,
) -> Sampler:
  """Draws the examples of positive weight, once each, in random order.

  The last batch of an epoch is filled up from the start of its order. Over the
  random order each slot is uniform over the E kept, which is the law that is
  reported, and the target w_i / E makes w_i the weight.

  Args:
    num_examples: N.
    batch_size: b.
    first_weights: key -> f32[N], of the first epoch; some are positive.
    next_weights: (key, state) -> f32[N], of a later one.
    remember_losses: whether next_weights asks for state.losses.
    annealing: share of the steps, the last ones, that train on all examples,
      whatever the weights.
    num_steps: of the run; None where annealing is 0.

  Raises:
    ValueError: on a bad argument.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  full_from = _full_from(annealing, num_steps)

  def epoch(key, state, weights):
    """The state at the start of an epoch with these weights."""
    weights = jnp.where(state.step >= full_from, 1.0, weights)
    weights = weights.astype(jnp.float32)
    kept = weights > 0
    order = permutation(key, jnp.arange(num_examples, dtype=jnp.int32))
    return state._replace(
      weights=weights,
      order=_first(kept[order], order),
      num_kept=jnp.sum(kept, dtype=jnp.int32),
      position=jnp.zeros((), jnp.int32),
    )

  def init(key):
    weights_key, order_key, seed_key = jax.random.split(key, 3)
    losses = None
    if remember_losses:
      losses = jnp.full((num_examples,), jnp.inf, jnp.float32)
    state = PrunedEpochsState(
      weights=None,
      order=None,
      num_kept=None,
      position=None,
      step=jnp.zeros((), jnp.int32),
      seed=_seed(seed_key),
      losses=losses,
    )
    return epoch(order_key, state, first_weights(weights_key))

  def propose(key, state):
    del key
    places = state.position + jnp.arange(batch_size, dtype=jnp.int32)
    return state.order[places % state.num_kept], False

  def select(key, state, indices, scores):
    del scores
    weights = state.weights[indices]
    draw = Draw.whole_proposal(
      indices, 1 / state.num_kept, weights / state.num_kept
    )
    info = {
      'num_scored': jnp.zeros((), jnp.int32),
      'kept_share': state.num_kept / num_examples,
    }
    position = after((indices, weights), state.position + batch_size)
    return draw, state._replace(position=position, seed=_seed(key)), info

  def begin(state):
    key = jax.random.wrap_key_data(state.seed, impl='threefry2x32')
    weights_key, order_key = jax.random.split(key)
    return epoch(order_key, state, next_weights(weights_key, state))

  def observe(state, draw, observation):
    state = state._replace(step=state.step + 1)
    if remember_losses:
      at = state.losses.at[draw.indices]
      # Whatever the order of the writes: the larger one of a repeated example.
      at = at.set(-jnp.inf).at[draw.indices]
      state = state._replace(losses=at.max(observation.losses))
    ended = (state.position >= state.num_kept) | (state.step == full_from)
    return when(ended, begin, state)

  def law(state, scores, indices=None):
    del scores, indices
    slots = jnp.full((batch_size,), 1 / batch_size, jnp.float32)
    return (state.weights > 0) / state.num_kept, slots

  return Sampler(init, propose, select, observe, law)


def _full_from(annealing: float, num_steps: int | None) -> int:
  """The first step that trains on all examples."""
  _validate.fractions(annealing=annealing)
  if num_steps is not None:
    _validate.positive_integers(num_steps=num_steps)
    return num_steps - int(annealing * num_steps)
  if annealing > 0:
    raise ValueError(
      f'annealing, here {annealing}, is a share of the steps of a run: give '
      'num_steps, or annealing=0.0.'
    )
  return jnp.iinfo(jnp.int32).max


def _first(chosen: jax.Array, values: jax.Array) -> jax.Array:
  """The chosen values in their order, then zeros."""
  places = running_sum(chosen.astype(jnp.uint32)).astype(jnp.int32) - 1
  places = jnp.where(chosen, places, values.shape[0])
  return jnp.zeros_like(values).at[places].set(values, mode='drop')


def _seed(key: jax.Array) -> jax.Array:
  """Random bits for a key that is made of them later, u32[2]."""
  return jax.random.bits(key, (2,), jnp.uint32)
