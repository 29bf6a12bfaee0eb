"""Epochs in random order: what most training loops do."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from isjax import _validate
from isjax.samplers._record_weights import checked_target_law
from isjax.samplers._whole_proposal import keep_state, uniform_law
from isjax.types import Draw, Sampler
from isjax.weights import target_at


class ShuffleState(NamedTuple):
  """Where an epoch stands.

  order:                i32[N], a permutation: the order of this epoch.
  next_order:           i32[N], a permutation: the order of the next one.
  position:             i32[] in [0, N), of the next example in `order`.
  target_probabilities: f32[N] r_i/R, or None for 1/N.
  """

  order: jax.Array
  next_order: jax.Array
  position: jax.Array
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
  if batch_size > num_examples:
    raise ValueError(
      f'batch_size must be at most num_examples, {num_examples}, for epochs '
      f'without replacement; got {batch_size}. The uniform sampler takes any.'
    )
  target = checked_target_law(record_weights, num_examples)

  def new_order(key):
    return jax.random.permutation(key, jnp.arange(num_examples))

  def init(key):
    first, second = jax.random.split(key)
    start = jnp.zeros((), jnp.int32)
    return ShuffleState(new_order(first), new_order(second), start, target)

  def propose(key, state):
    del key
    places = state.position + jnp.arange(batch_size)
    beyond = places >= num_examples
    places = jnp.where(beyond, places - num_examples, places)
    indices = jnp.where(beyond, state.next_order[places], state.order[places])
    return indices, False

  def select(key, state, indices, scores):
    del scores
    pi = target_at(state.target_probabilities, indices, num_examples)
    draw = Draw.whole_proposal(indices, 1 / num_examples, pi)
    # Two measures against copies of the orders at every step: a loop of one
    # turn at most carries them in place, which the branches of a cond do not;
    # and it waits for the read of `indices`, by adding what is always 0.
    read = jnp.minimum(indices[0], 0)
    state = lax.while_loop(
      lambda s: s.position >= num_examples,
      lambda s: s._replace(
        order=s.next_order,
        next_order=new_order(jax.random.fold_in(key, s.position)),
        position=s.position - num_examples,
      ),
      state._replace(position=state.position + batch_size + read),
    )
    return draw, state, {'num_scored': jnp.zeros((), jnp.int32)}

  law = uniform_law(num_examples, batch_size)
  return Sampler(init, propose, select, keep_state, law)
