"""The global draw: the law of a single device, whatever D is."""

from collections.abc import Callable, Mapping
import functools

import jax
from jax import lax
import jax.numpy as jnp

from isjax import _validate
from isjax.samplers._fixed_law import FixedLawState
from isjax.samplers._record_weights import checked_target_law
from isjax.samplers._whole_proposal import keep_state
from isjax.sharding import table as tables
from isjax.sharding.placement import FAN_OUT, PAD, Shards, layout, put, take
from isjax.sum_tree import SumTree
from isjax.types import Draw, PyTree, Sampler
from isjax.weights import target_at


def global_law(
  make: Callable[..., Sampler],
  num_examples: int,
  batch_size: int,
  shards: Shards,
  *,
  arrays: Mapping[str, jax.Array] = {},
) -> Sampler:
  """Lets the sampler of a single device draw for all, its state split.

  Same key, same draws as on one device, up to what rounding does to observed
  scores. All devices make them; where they read or write what one of them
  holds, a few words per draw cross, 16 of them on each level of a sum tree. XLA
  finds out which: it needs help only for what runs over a whole table. So this
  is for samplers that do no such thing after `init`: `uniform`, `presample`,
  `memory` by its sum tree, and independent draws from fixed laws. The pool of
  `presample` is B rows from anywhere, which cross while the gate is open; by
  `quota` none does.

  Args:
    make: (num_examples, batch_size, **arrays) -> Sampler, of a registry, its
      other options bound by functools.partial.
    num_examples: N, which D divides; for a sum tree, 16 D.
    batch_size: b, which D divides, as it has to divide a pool's size.
    shards: of the mesh.
    arrays: name -> [N, ...], the options with a row per example.

  Returns:
    A Sampler for data placed by `shard` and a state placed by `place`, which
    takes rows by `take`.

  Raises:
    ValueError: for an N or b that cannot be split; for a sampler that makes a
      table or an order of all examples anew; and what `make` raises.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  shards.part(num_examples, 'num_examples', PAD)
  shards.part(batch_size, 'batch_size', 'Take the next multiple.')
  sampler = make(num_examples, batch_size, **arrays)
  state = jax.eval_shape(sampler.init, jax.random.key(0))
  _expect_local(state, num_examples, shards)

  def whole(tree):
    return lax.with_sharding_constraint(tree, shards.whole)

  def split(state):
    sharding = layout(state, shards, num_examples)
    return lax.with_sharding_constraint(state, sharding)

  def propose(key, state):
    indices, needs_scores = sampler.propose(key, state)
    return whole(indices), needs_scores

  def select(key, state, indices, scores):
    draw, state, info = sampler.select(key, state, indices, whole(scores))
    return whole(draw), split(state), info

  def observe(state, draw, observation):
    state = sampler.observe(state, whole(draw), whole(observation))
    return split(state)

  if sampler.observe is keep_state:
    observe = keep_state
  return sampler._replace(
    propose=propose,
    select=select,
    observe=observe,
    take=functools.partial(take, shards=shards),
  )


def _expect_local(state: PyTree, num_examples: int, shards: Shards) -> None:
  """Refuses the state of a sampler that needs all examples in one place."""
  source = getattr(state, 'source', None)
  rows = FAN_OUT * shards.count
  if isinstance(source, SumTree) and num_examples % rows:
    raise ValueError(
      f'num_examples must be a multiple of {rows}, so that no siblings of a '
      f'sum tree are parted; got {num_examples}. sharding.pad(data, {rows}) '
      'adds examples of record weight 0.'
    )
  rebuilds = source is not None and not isinstance(source, SumTree)
  if rebuilds or getattr(state, 'epochs', None) is not None:
    raise ValueError(
      'make must give a sampler that makes no table or order of all examples '
      'anew, for which they would have to be on one device; got one whose '
      f'state is a {type(state).__name__}. Draw by quota, independently, or '
      'from the sum tree of a memory without rebuild_every.'
    )


def two_level(
  law: jax.Array,
  batch_size: int,
  shards: Shards,
  *,
  record_weights: jax.Array | None = None,
) -> Sampler:
  """Draws from a fixed law, through a table that no device has all of.

  The sampler `record_weighted` with a law, for sets whose table one device
  would not hold, or not build in time.

  Args:
    law: f32[N] >= 0, what to draw in proportion to; D divides N.
    batch_size: b.
    shards: of the mesh.
    record_weights: r f32[N] >= 0, the objective's weights, None: all alike. The
      law must be positive wherever r is.

  Returns:
    A Sampler for data placed by `shard`, which takes rows by `take`.

  Raises:
    ValueError: on a bad argument; in init, as `sharding.build` does.
  """
  _validate.positive_integers(batch_size=batch_size)
  num_examples = len(law)
  target = checked_target_law(record_weights, num_examples)

  def init(key):
    del key
    pi = None if target is None else put(target, shards.split)
    return FixedLawState(tables.build(law, shards), None, pi)

  def propose(key, state):
    return tables.sample(key, state.table, (batch_size,)), False

  def select(key, state, indices, scores):
    del key, scores
    draw = Draw(
      slots=jnp.arange(batch_size, dtype=jnp.int32),
      indices=indices,
      probabilities=tables.probabilities_at(state.table, indices),
      target_probabilities=target_at(
        state.target_probabilities, indices, num_examples
      ),
    )
    return draw, state, {'num_scored': jnp.zeros((), jnp.int32)}

  def chances(state, scores, indices=None):
    del scores, indices
    slots = jnp.full((batch_size,), 1 / batch_size, jnp.float32)
    return tables.probabilities(state.table), slots

  rows = functools.partial(take, shards=shards)
  return Sampler(init, propose, select, keep_state, chances, rows)
