"""Batches from a law that stays as it is, through an alias table."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import alias
from isjax.alias import AliasTable
from isjax.samplers._whole_proposal import keep_state
from isjax.types import Draw, Sampler
from isjax.weights import target_at


class FixedLawState(NamedTuple):
  """What is drawn from, and what is averaged over.

  table:                the alias table of the law.
  probabilities:        f32[N], p: what the table really follows.
  target_probabilities: f32[N], pi, or None for 1/N.
  """

  table: AliasTable
  probabilities: jax.Array
  target_probabilities: jax.Array | None


def fixed_law(
  law: jax.Array, target: jax.Array | None, batch_size: int
) -> Sampler:
  """Draws independently from `law` f32[N], for the objective of `target`."""
  num_examples = law.shape[0]

  def init(key):
    del key
    table = alias.build(law)
    return FixedLawState(table, alias.probabilities(table), target)

  def propose(key, state):
    return alias.sample(key, state.table, (batch_size,)), False

  def select(key, state, indices, scores):
    del key, scores
    draw = Draw(
      slots=jnp.arange(batch_size, dtype=jnp.int32),
      indices=indices,
      probabilities=state.probabilities[indices],
      target_probabilities=target_at(
        state.target_probabilities, indices, num_examples
      ),
    )
    return draw, state, {'num_scored': jnp.zeros((), jnp.int32)}

  def chances(state, scores, indices=None):
    del scores, indices
    slots = jnp.full((batch_size,), 1 / batch_size, jnp.float32)
    return state.probabilities, slots

  return Sampler(init, propose, select, keep_state, chances)
