"""Alias tables in shards: a draw reads two words on one device.

Each device builds the table of its own items. Of all others it knows only the D
sums of weights, of which a small table is made that every device has: the
chance of a shard is P_d, that of its item p_local, and p = P_d p_local. The
weights, the tables and their masses stay where they are.

Both factors are integers over powers of two, so p is the law of the draws
without rounding, as it is for one table.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from isjax import _validate, alias
from isjax.alias import AliasTable, Status
from isjax.sharding.placement import SPLIT, WHOLE, Shards, own, put, stacked
from isjax.weights import normalise

_SMALLEST = 2.0**-126  # of the normal numbers; XLA on CPU flushes the others
_FORMS = ('global', 'quota')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedTable:
  """A discrete law over N items, N/D of them on each device.

  local:  AliasTable of N/D items per shard, its arrays [D, ...], split.
  owners: AliasTable over the D shards, on every device; None where each of them
          has its quota of the draws.
  status: u32[], the flags of `alias.Status` for the weights of all; by quota
          ALL_ZERO where those of any shard are.
  shards: static.
  """

  local: AliasTable
  owners: AliasTable | None
  status: jax.Array
  shards: Shards = dataclasses.field(metadata={'static': True})


def build(weights: Any, shards: Shards, form: str = 'global') -> ShardedTable:
  """Builds the table of weights that are split over the devices.

  Every device builds at the same time, in O(N/D); D words cross, and as many
  scalars as it takes to normalise.

  Args:
    weights: f32[N] >= 0, D a divisor of N: pad with zeros, which are never
      drawn. Below 2^-126 one counts as 0.
    shards: of the mesh.
    form: 'global': p_i = w_i / sum(w), to within 1e-6 of itself like a table
      on one device; or 'quota': p_i = (w_i / the sum in its shard) / D.

  Returns:
    The table. Inside jit bad weights are treated as `alias.build` treats them,
    and `status` tells. By quota, a shard without weight draws uniformly.

  Raises:
    ValueError: where D does not divide N, and for another form; called eagerly,
      also for all that `alias.validate_weights` refuses, and for a shard
      without weight where it has a quota.
  """
  _validate.one_of(_FORMS, form=form)
  shards.part(len(weights), 'the number of weights', 'Pad them with zeros.')
  split = put(jnp.asarray(weights, jnp.float32), shards.split)
  table = _build(split, shards, form)
  if not isinstance(table.status, jax.core.Tracer) and table.status:
    alias.validate_weights(weights)
    raise ValueError(
      'weights must not all be 0 in a shard that has a quota of the draws: '
      "order the examples at random, or take form='global'."
    )
  return table


@functools.partial(jax.jit, static_argnames=('shards', 'form'))
def _build(weights: jax.Array, shards: Shards, form: str) -> ShardedTable:
  """Returns a table whatever the weights f32[N] are."""
  weights = jnp.where(jnp.abs(weights) < _SMALLEST, 0.0, weights)

  def build_own(weights, law):
    table = alias.build(weights)
    known_to_all = (_sum(law), table.status)
    return stacked(table), lax.all_gather(known_to_all, shards.axis)

  local, (shares, flags) = shards.map(build_own, SPLIT, (SPLIT, WHOLE))(
    weights, normalise(weights)
  )
  is_zero = flags & Status.ALL_ZERO > 0
  lacks = jnp.any(is_zero) if form == 'quota' else jnp.all(is_zero)
  others = jnp.bitwise_or.reduce(flags & ~jnp.uint32(Status.ALL_ZERO))
  status = others | jnp.where(lacks, jnp.uint32(Status.ALL_ZERO), 0)
  owners = alias.build(shares) if form == 'global' else None
  return ShardedTable(local, owners, status, shards)


def _sum(x: jax.Array) -> jax.Array:
  """Returns the sum of f32[n] by halves, to within log2(n) roundings."""
  while x.shape[0] > 1:
    x = jnp.pad(x, (0, x.shape[0] % 2)).reshape(2, -1)
    x = x[0] + x[1]
  return x[0]


def _shares(table: ShardedTable) -> jax.Array:
  """Returns P, the chance of each shard, f32[D]."""
  count = table.shards.count
  if table.owners is None:
    return jnp.full((count,), 1 / count, jnp.float32)
  return alias.probabilities(table.owners)


def sample(
  key: jax.Array, table: ShardedTable, shape: tuple[int, ...] = ()
) -> jax.Array:
  """Draws items with replacement, each in O(1).

  Globally, draws are independent. Every device makes them all, for it does not
  know before which are its own, and the b items cross. By quota, draws
  [d b/D, (d + 1) b/D) are of device d's items, independent but for that, and
  nothing crosses. Same key, table and D: same draws, jitted or not.

  Args:
    key: one PRNG key, typed or raw.
    table: from `build`.
    shape: static; by quota of a multiple of D draws along one axis.

  Returns:
    i32[shape] in [0, N); by quota split like the items.

  Raises:
    ValueError: as in `alias.sample`; by quota where D does not divide b.
  """
  return sample_with_probabilities(key, table, shape)[0]


def sample_with_probabilities(
  key: jax.Array, table: ShardedTable, shape: tuple[int, ...] = ()
) -> tuple[jax.Array, jax.Array]:
  """Draws as `sample` does and tells the chance of each item drawn.

  Args:
    key: as in `sample`; the same key gives the same items.
    table: from `build`.
    shape: as in `sample`.

  Returns:
    i32[shape] in [0, N), and their p f32[shape] > 0, as `probabilities` has
    them. By quota that is the chance at a slot, averaged over all.

  Raises:
    ValueError: as in `sample`.
  """
  if table.owners is None:
    if len(shape) != 1:
      raise ValueError(
        f'shape must be (b,) where draws are split by quota; got {shape}.'
      )
    table.shards.part(shape[0], 'the number of draws', 'Draw more, or fewer.')
  return _sample(key, table, shape=shape)


@functools.partial(jax.jit, static_argnames='shape')
def _sample(
  key: jax.Array, table: ShardedTable, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Returns draws of a shape that was checked, and their chances."""
  shards, shares = table.shards, _shares(table)
  owner_key, item_key = jax.random.split(key)

  def draw_own(key, local, shares, count):
    device, local = lax.axis_index(shards.axis), own(local)
    key = jax.random.fold_in(key, device)
    items, p = alias.sample_with_probabilities(key, local, count)
    return items + device * local.alias.shape[0], shares[device] * p

  def draw_quota(key, local, shares):
    return draw_own(key, local, shares, (shape[0] // shards.count,))

  def draw_all(key, local, shares, owners):
    here = owners == lax.axis_index(shards.axis)
    drawn = draw_own(key, local, shares, shape)
    drawn = jax.tree.map(lambda x: jnp.where(here, x, 0), drawn)
    return lax.psum(drawn, shards.axis)

  if table.owners is None:
    return shards.map(draw_quota, (WHOLE, SPLIT, WHOLE), SPLIT)(
      item_key, table.local, shares
    )
  owners = alias.sample(owner_key, table.owners, shape)
  return shards.map(draw_all, (WHOLE, SPLIT, WHOLE, WHOLE), WHOLE)(
    item_key, table.local, shares, owners
  )


@jax.jit
def probabilities(table: ShardedTable) -> jax.Array:
  """Returns the law that `sample` follows, P_d p_local, split like the items.

  Args:
    table: from `build`.

  Returns:
    f32[N], each to within five roundings; 0 only for a weight of 0, or a
    chance below 2^-126.
  """
  shards = table.shards

  def of_own(local, shares):
    return shares[lax.axis_index(shards.axis)] * alias.probabilities(own(local))

  return shards.map(of_own, (SPLIT, WHOLE), SPLIT)(table.local, _shares(table))


@jax.jit
def probabilities_at(table: ShardedTable, items: jax.Array) -> jax.Array:
  """Returns the probabilities of some items; as many numbers cross.

  Args:
    table: from `build`.
    items: i32[...] in [0, N); for one that is not, 0.

  Returns:
    f32[...], bitwise those of `probabilities`, on every device.
  """
  shards = table.shards

  def of_own(local, shares, items):
    local, device = own(local), lax.axis_index(shards.axis)
    items = items - device * local.alias.shape[0]
    here = (items >= 0) & (items < local.alias.shape[0])
    p = alias.probabilities_at(local, jnp.where(here, items, 0))
    return lax.psum(jnp.where(here, shares[device] * p, 0.0), shards.axis)

  return shards.map(of_own, (SPLIT, WHOLE, WHOLE), WHOLE)(
    table.local, _shares(table), items
  )
