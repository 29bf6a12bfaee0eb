"""The types that the parts of a training step exchange.

Letters in shape comments: N `num_examples`, B `pool_size`, b `batch_size`,
m the length of a proposal (b for a table, B for a pool), K `num_classes`,
D devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

PyTree: TypeAlias = Any
Metrics: TypeAlias = dict[str, jax.Array]


class Batch(NamedTuple):
  """The training set, and every part of it.

  inputs:         pytree of arrays with a leading axis N.
  targets:        pytree of arrays with a leading axis N.
  record_weights: f32[N] >= 0, the objective's weight of each example;
                  None where all count the same.
  """

  inputs: PyTree
  targets: PyTree
  record_weights: jax.Array | None = None


def take(batch: Batch, indices: jax.Array) -> Batch:
  """Returns the examples at `indices` i32[m], each of which must be in [0, N).

  An index outside the range is a bug of its maker and reads garbage: the
  gather makes no bounds check.
  """
  return jax.tree.map(
    lambda rows: rows.at[indices].get(mode='promise_in_bounds'), batch
  )


class Draw(NamedTuple):
  """The examples chosen for one update.

  slots:                i32[b], their positions in the proposal.
  indices:              i32[b], their positions in the training set.
  probabilities:        f32[b] > 0, p: the law that they were drawn from.
  target_probabilities: f32[b] >= 0, pi: the law that the objective averages
                        over, 1/N or r_i/R.
  """

  slots: jax.Array
  indices: jax.Array
  probabilities: jax.Array
  target_probabilities: jax.Array

  @classmethod
  def whole_proposal(
    cls,
    indices: jax.Array,
    probability: float | jax.Array,
    target_probabilities: jax.Array,
  ) -> 'Draw':
    """The proposal itself as the batch, each example drawn with one chance."""
    return cls(
      slots=jnp.arange(indices.shape[0], dtype=jnp.int32),
      indices=indices,
      probabilities=jnp.full(indices.shape, probability, jnp.float32),
      target_probabilities=target_probabilities,
    )


class Observation(NamedTuple):
  """By-products of the training pass, free of charge.

  losses:     f32[b], of the drawn examples, before any weight.
  scores:     f32[b] >= 0, from the outputs of the training pass.
  statistics: name -> f32[b], whatever else the step was asked to compute.
  """

  losses: jax.Array
  scores: jax.Array
  statistics: dict[str, jax.Array]


class Sampler(NamedTuple):
  """A way to choose the examples of each update: six pure functions.

  init:    (key) -> state, a pytree of arrays. It holds all that the next
           draws depend on; arrays of length N live in it, not in closures.
  propose: (key, state) -> (indices i32[m], needs_scores bool[]). The length m
           is static. Needs no model, so rows can be fetched ahead. A sampler
           that never needs scores returns the Python value False, and the
           step then has no scoring branch at all; one that may need them
           proposes by its key alone, so that what was fetched ahead is still
           its proposal.
  select:  (key, state, indices, scores f32[m]) -> (Draw, state, info). Scores
           are zeros where they were not needed. `info` is a dict of scalars
           with the same keys at every step, `num_scored` among them.
  observe: (state, Draw, Observation) -> state, after the training pass.
  law:     (state, scores f32[m], indices i32[m] | None = None) ->
           (f32[N], f32[m]): the chance of each example at a proposal slot, and
           the chance of each slot at a draw, averaged over the b draws. What
           select reports as `Draw.probabilities` makes pi/p unbiased under
           this law. The indices of the proposal matter only where record
           weights enter the second chance.
  take:    (data, indices i32[m]) -> the rows of a proposal or of a draw, from a
           training set on the device. Samplers of `sharding` know where on
           several devices they are.
  """

  init: Callable[..., PyTree]
  propose: Callable[..., tuple[jax.Array, jax.Array | bool]]
  select: Callable[..., tuple[Draw, PyTree, Metrics]]
  observe: Callable[..., PyTree]
  law: Callable[..., tuple[jax.Array, jax.Array]]
  take: Callable[[Batch, jax.Array], Batch] = take


class TrainState(NamedTuple):
  """All that a training run carries from step to step.

  step:          i32[], updates made.
  cost:          u32[], forward-equivalents spent: 1 per example and forward
                 pass, 2 per example and backward pass.
  key:           the run's PRNG key; step t uses fold_in(key, t).
  params:        pytree, what the optimiser changes.
  model_state:   pytree, what the model changes (running statistics); {} for
                 most.
  opt_state:     state of the optax transformation.
  sampler_state: state of the sampler.
  """

  step: jax.Array
  cost: jax.Array
  key: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree
  sampler_state: PyTree


def num_examples(batch: Batch) -> int:
  """Returns N, the common length of the leading axes.

  Raises:
    ValueError: where leaves differ in their leading axis, or one has none.
  """
  lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
  if len(lengths) != 1 or () in lengths:
    shapes = jax.tree.map(jnp.shape, batch)
    raise ValueError(
      f'every array of a Batch needs the same leading axis N; got {shapes}.'
    )
  return lengths.pop()[0]


__all__ = [
  'Batch',
  'Draw',
  'Metrics',
  'Observation',
  'PyTree',
  'Sampler',
  'TrainState',
  'num_examples',
  'take',
]
