"""Epochs in random order: what most training loops do."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import _validate
from isjax.resampling import permutation
from isjax.samplers import _epochs
from isjax.samplers._record_weights import checked_target_law
from isjax.samplers._whole_proposal import keep_state, uniform_law
from isjax.types import Draw, Sampler
from isjax.weights import target_at


class ShuffleState(NamedTuple):
  """Where an epoch stands, and what is averaged over.

  epochs:               each order a permutation, i32[N].
  target_probabilities: f32[N] r_i/R, or None for 1/N.
  """

  epochs: _epochs.Epochs
  target_probabilities: jax.Array | None


def shuffle(
  num_examples: int,
  batch_size: int,
  *,
  record_weights: jax.Array | None = None,
) -> Sampler:
  """Draws without replacement until every example was seen, then anew.

  A batch that reaches the end of an epoch runs on into the next one, so that
  all batches are full and each example is seen once per epoch. Over the random
  order every slot of a batch is uniform, which is the law it reports.

  Args:
    num_examples: N.
    batch_size: b <= N.
    record_weights: r f32[N] >= 0, the objective's weights; the order stays
      uniform and examples are weighted by N r_i / R.

  Raises:
    ValueError: on a bad argument, b > N included.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  _epochs.check_length(batch_size, num_examples)
  target = checked_target_law(record_weights, num_examples)

  def new_order(key):
    return permutation(key, jnp.arange(num_examples, dtype=jnp.int32))

  def init(key):
    return ShuffleState(_epochs.start(key, new_order), target)

  def propose(key, state):
    del key
    return _epochs.batch(state.epochs, batch_size), False

  def select(key, state, indices, scores):
    del scores
    pi = target_at(state.target_probabilities, indices, num_examples)
    draw = Draw.whole_proposal(indices, 1 / num_examples, pi)
    epochs = _epochs.advance(key, state.epochs, indices, new_order)
    info = {'num_scored': jnp.zeros((), jnp.int32)}
    return draw, state._replace(epochs=epochs), info

  law = uniform_law(num_examples, batch_size)
  return Sampler(init, propose, select, keep_state, law)
