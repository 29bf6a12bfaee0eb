"""Independent uniform batches: the baseline of every comparison."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import _validate
from isjax.resampling import uniform_indices
from isjax.samplers._record_weights import checked_target_law
from isjax.samplers._whole_proposal import keep_state, uniform_law
from isjax.types import Draw, Sampler
from isjax.weights import target_at


class UniformState(NamedTuple):
  """target_probabilities: f32[N] r_i/R, or None for 1/N."""

  target_probabilities: jax.Array | None


def uniform(
  num_examples: int,
  batch_size: int,
  *,
  record_weights: jax.Array | None = None,
) -> Sampler:
  """Draws every batch independently and uniformly, with replacement.

  Args:
    num_examples: N.
    batch_size: b.
    record_weights: r f32[N] >= 0, the objective's weights; the draws stay
      uniform and are weighted by N r_i / R.

  Raises:
    ValueError: on a bad argument.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  target = checked_target_law(record_weights, num_examples)

  def init(key):
    del key
    return UniformState(target)

  def propose(key, state):
    del state
    return uniform_indices(key, num_examples, batch_size), False

  def select(key, state, indices, scores):
    del key, scores
    pi = target_at(state.target_probabilities, indices, num_examples)
    draw = Draw.whole_proposal(indices, 1 / num_examples, pi)
    return draw, state, {'num_scored': jnp.zeros((), jnp.int32)}

  law = uniform_law(num_examples, batch_size)
  return Sampler(init, propose, select, keep_state, law)
