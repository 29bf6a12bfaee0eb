"""Batches from a law that stays as it is, through an alias table."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import _validate, alias
from isjax.alias import AliasTable
from isjax.resampling import weighted_epoch
from isjax.samplers import _epochs
from isjax.samplers._whole_proposal import keep_state
from isjax.types import Draw, Sampler
from isjax.weights import target_at


class FixedLawState(NamedTuple):
  """What is drawn from, and what is averaged over.

  table:                the alias table of the law p.
  epochs:               the orders that batches come off, or None where draws
                        are independent.
  target_probabilities: f32[N], pi, or None for 1/N.
  """

  table: AliasTable
  epochs: _epochs.Epochs | None
  target_probabilities: jax.Array | None


def fixed_law(
  law: jax.Array,
  target: jax.Array | None,
  batch_size: int,
  draws: str = 'independent',
) -> Sampler:
  """Draws from `law` f32[N], for the objective of `target`.

  Draws are independent, or come off an 'epoch' of N, in which each example
  occurs floor(N p_i) or ceil(N p_i) times.
  """
  _validate.one_of(('independent', 'epoch'), draws=draws)
  num_examples = law.shape[0]
  in_epochs = draws == 'epoch'
  if in_epochs:
    _epochs.check_length(batch_size, num_examples)

  def new_order(table):
    return lambda key: weighted_epoch(key, table, num_examples)

  def init(key):
    table = alias.build(law)
    epochs = _epochs.start(key, new_order(table)) if in_epochs else None
    return FixedLawState(table, epochs, target)

  def propose(key, state):
    if in_epochs:
      return _epochs.batch(state.epochs, batch_size), False
    return alias.sample(key, state.table, (batch_size,)), False

  def select(key, state, indices, scores):
    del scores
    draw = Draw(
      slots=jnp.arange(batch_size, dtype=jnp.int32),
      indices=indices,
      probabilities=alias.probabilities_at(state.table, indices),
      target_probabilities=target_at(
        state.target_probabilities, indices, num_examples
      ),
    )
    if in_epochs:
      order = new_order(state.table)
      epochs = _epochs.advance(key, state.epochs, indices, order)
      state = state._replace(epochs=epochs)
    return draw, state, {'num_scored': jnp.zeros((), jnp.int32)}

  def chances(state, scores, indices=None):
    del scores, indices
    slots = jnp.full((batch_size,), 1 / batch_size, jnp.float32)
    return alias.probabilities(state.table), slots

  return Sampler(init, propose, select, keep_state, chances)
