"""Draws in proportion to scores of which a few change at a time: the sum tree.

The leaves are the scores, and a parent is the sum of its children, up to 16 of
them. An update of one score, or a draw, visits one node of each level and its
siblings: O(log N), where an alias table would have to be built anew.

Nothing drifts. A parent is never corrected by a difference; it is summed again
from its children, in additions written out once. After any updates the tree is
bit for bit the one that `build` makes of the same scores.

A draw descends from the root. The children c_j of a node, with a sum in
[2^e, 2^(e+1)), have the integer shares

    q_j = floor(2^(30 - e) c_j), but at least 1 where c_j > 0,

and child j is taken where a random integer below q_1 + ... + q_16 falls into
its part. Each level has an integer of its own, from 64 random bits. Nothing is
handed down from one level to the next, as the remainder of a float would be,
whose rounding sends draws to empty leaves. So the law is a product of ratios of
integers, one a level, and this law is the one that is published. Less than
2^-30 of a row counts as about that much: what has a score can be drawn.

Sources: Wong and Easton (1980), doi:10.1137/0209009, draw from such a tree;
Schaul et al. (2016), arXiv:1511.05952, appendix B.2.1, train with one.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from isjax._words import Words, locate, random_words

_FAN_OUT = 16
_MAX_LEAVES = 2**30
_MAX_WORDS = 2**31 - 1
_SMALLEST = 2.0**-126  # of the normal numbers; XLA on CPU flushes the others
_LARGEST = 2.0**97  # 2^30 of these have a finite sum


class SumTree(NamedTuple):
  """The scores of N leaves and their sums, held on device.

  levels: f32[N], the leaves, each 0 or in [2^-126, 2^97]; then, level by level,
          the sums of rows of 16 siblings, and zeros up to a multiple of 16; at
          last f32[1], the root, which is not a leaf even where N is 1.
  """

  levels: tuple[jax.Array, ...]


def _usable(scores: jax.Array) -> jax.Array:
  """Returns scores that can be summed: 0 for NaN, which is not >= anything."""
  return jnp.where(scores >= _SMALLEST, jnp.minimum(scores, _LARGEST), 0.0)


def _rows(level: jax.Array) -> jax.Array:
  """Returns all siblings, f32[ceil(n / 16), 16]."""
  return jnp.pad(level, (0, -level.shape[0] % _FAN_OUT)).reshape(-1, _FAN_OUT)


def _children(level: jax.Array, nodes: jax.Array) -> jax.Array:
  """Returns the children f32[b, 16] of nodes i32[b], 0 where there are none."""
  if level.shape[0] % _FAN_OUT == 0:
    rows, at = level.reshape(-1, _FAN_OUT), nodes
  else:
    lanes = lax.broadcasted_iota(jnp.int32, (*nodes.shape, _FAN_OUT), 1)
    rows, at = level, nodes[:, None] * _FAN_OUT + lanes
  return rows.at[at].get(mode='fill', fill_value=0.0)


def _sums(rows: jax.Array) -> jax.Array:
  """Returns the sums f32[b] of rows f32[b, 16], the same in every program."""
  while rows.shape[1] > 1:
    half = rows.shape[1] // 2
    rows = rows[:, :half] + rows[:, half:]
  return rows[:, 0]


def _nodes(indices: jax.Array, size: int) -> jax.Array:
  """Returns leaves i32[...], all that are out of bounds as leaf N.

  There is no such leaf. Ancestors of it may be, and to sum one of them again
  changes nothing.
  """
  indices = indices.astype(jnp.int32)
  return jnp.where((indices >= 0) & (indices < size), indices, size)


@jax.jit
def _build(scores: jax.Array) -> SumTree:
  """Returns a tree whatever the scores f32[N] are."""
  levels = [_usable(scores)]
  rows = _rows(levels[0])
  while rows.shape[0] > 1:
    rows = _rows(_sums(rows))
    levels.append(rows.ravel())
  return SumTree((*levels, _sums(rows)))


@jax.jit
def _update(tree: SumTree, indices: jax.Array, scores: jax.Array) -> SumTree:
  """Returns a tree whatever indices i32[b] and scores f32[b] are."""
  leaves, *upper = tree.levels
  nodes = _nodes(indices, leaves.shape[0])
  leaves = leaves.at[nodes].set(0.0, mode='drop')
  levels = [leaves.at[nodes].max(_usable(scores), mode='drop')]
  for level in upper:
    nodes = nodes // _FAN_OUT
    if level.shape[0] <= nodes.shape[0]:  # fewer parents than updates: all
      sums = _sums(_rows(levels[-1]))
      levels.append(jnp.pad(sums, (0, level.shape[0] - sums.shape[0])))
    else:
      sums = _sums(_children(levels[-1], nodes))
      levels.append(level.at[nodes].set(sums, mode='drop'))
  return SumTree(tuple(levels))


def _checked_scores(scores: Any) -> jax.Array | np.ndarray:
  """Returns the scores as f32[n], if of a right rank, dtype and range."""
  if not isinstance(scores, jax.Array):
    scores = np.asarray(scores)
  if scores.ndim != 1:
    raise ValueError(
      'scores must be one axis (jax.vmap takes several trees); got shape '
      f'{scores.shape}.'
    )
  if not jnp.issubdtype(scores.dtype, jnp.floating) and not (
    jnp.issubdtype(scores.dtype, jnp.integer)
  ):
    raise ValueError(
      'scores must be floats, or integers to be read as float32; got dtype '
      f'{scores.dtype}.'
    )
  with np.errstate(over='ignore'):
    values = scores.astype(np.float32)
  if not isinstance(values, jax.core.Tracer):
    known = np.asarray(values)
    bad = ~((known >= 0) & (known < np.inf))
    if bad.any():
      first = int(bad.argmax())
      raise ValueError(
        'scores must be finite and non-negative in float32; got '
        f'scores[{first}] = {scores[first]}. Repair what computes it, or set '
        'it to 0 to leave the item out.'
      )
  return values


def _checked_indices(indices: Any, tree: SumTree) -> jax.Array | np.ndarray:
  """Returns the indices as integers [...], if of a right dtype and range."""
  if not isinstance(indices, jax.Array):
    indices = np.asarray(indices)
  if not jnp.issubdtype(indices.dtype, jnp.integer):
    raise ValueError(f'indices must be integers; got dtype {indices.dtype}.')
  if not isinstance(indices, jax.core.Tracer):
    known, size = np.asarray(indices), tree.levels[0].shape[0]
    bad = (known < 0) | (known >= size)
    if bad.any():
      raise ValueError(
        f'indices must lie in [0, {size}), where the leaves are; got '
        f'{known[bad][0]}.'
      )
  return indices


def build(scores: Any) -> SumTree:
  """Builds the tree of given scores, in O(N) and on device.

  Args:
    scores: f32[N] >= 0, 1 <= N <= 2^30; all may be 0. Other floats, and
      integers, are read as float32.

  Returns:
    The tree. A score below 2^-126 counts as 0, and one above 2^97 as 2^97.
    Inside jit, where nothing can be raised, NaN and negative scores count as 0
    and +inf as 2^97. Several at once: jax.vmap.

  Raises:
    ValueError: for a wrong rank, length or dtype; called eagerly, also for a
      score that is NaN, negative or infinite (so that call waits for them).
  """
  scores = _checked_scores(scores)
  if not 1 <= scores.shape[0] <= _MAX_LEAVES:
    raise ValueError(
      f'scores must be 1 to 2^30 items; got shape {scores.shape}.'
    )
  return _build(scores)


def update(tree: SumTree, indices: Any, scores: Any) -> SumTree:
  """Replaces the scores of some leaves, in O(b log N).

  The result is the tree that `build` makes of the new scores, bit for bit.
  Where an index occurs more than once, the largest of its scores stands, so
  that the order does not matter. A scan, or a jitted function to which the tree
  is donated, works in place; otherwise all of the tree is copied.

  Args:
    tree: from `build` or `update`.
    indices: i32[b] in [0, N). Those out of bounds are dropped inside jit.
    scores: f32[b] >= 0, read as `build` does.

  Raises:
    ValueError: for a wrong rank or dtype, or lengths that differ; called
      eagerly, also for an index out of bounds and a bad score.
  """
  scores, indices = _checked_scores(scores), _checked_indices(indices, tree)
  if indices.shape != scores.shape:
    raise ValueError(
      'indices and scores must have the same shape; got '
      f'{indices.shape} and {scores.shape}.'
    )
  return _update(tree, indices, scores)


def _shares(rows: jax.Array) -> jax.Array:
  """Returns the shares u32[b, 16] of siblings; a row has less than 2^32.

  Takes float32 apart by hand. The exponent of a sum is never below that of a
  child, so the mantissas only shift to the right (by 32 or more: to 0).
  """
  bits = lax.bitcast_convert_type(rows, jnp.uint32)
  sums = lax.bitcast_convert_type(_sums(rows), jnp.uint32)
  mantissa = (bits & 0x7FFFFF | 0x800000) << 7
  places = (sums >> 23)[:, None] - (bits >> 23)
  shares = lax.shift_right_logical(mantissa, places)
  return jnp.where(bits > 0, jnp.maximum(shares, 1), 0)


def _ends(shares: jax.Array) -> jax.Array:
  """Returns where the part of each sibling ends, u32[b, 16]: prefix sums.

  Written as sums over j <= k, which XLA fuses with what is around them: half
  the time of `jnp.cumsum` on CPU.
  """
  counts = np.tri(_FAN_OUT, dtype=bool).T[None]
  return jnp.sum(jnp.where(counts, shares[:, :, None], 0), 1, dtype=jnp.uint32)


def _chances(
  parents: jax.Array, shares: jax.Array, totals: jax.Array
) -> jax.Array:
  """Returns p q / sum q, from the chances p f32 of the parents; 0 if q is 0.

  Divides p by the sum first. XLA replaces a quotient by something broadcast
  with a product by its inverse, which is rounded otherwise.
  """
  shares = shares.astype(jnp.float32) * 2.0**-31
  totals = jnp.maximum(totals, 1).astype(jnp.float32) * 2.0**-31
  return parents / totals * shares


def _descend(random: Words, tree: SumTree) -> tuple[jax.Array, jax.Array]:
  """Returns the leaves that 64 bits per level [L, n] name, and their chances.

  The root's come first. In a tree that is all 0 they name a leaf uniformly.
  """
  *levels, root = tree.levels
  size, count = levels[0].shape[0], random.high.shape[1]
  nodes = jnp.zeros(count, jnp.int32)
  chances = jnp.ones(count, jnp.float32)
  for level, *words in zip(reversed(levels), *random, strict=True):
    shares = _shares(_children(level, nodes))
    ends = _ends(shares)
    totals = ends[:, -1]
    place = locate(Words(*words), totals).high
    lanes = jnp.sum(ends[:, :-1] <= place[:, None], 1, dtype=jnp.int32)
    own = jnp.take_along_axis(shares, lanes[:, None], 1)[:, 0]
    nodes = nodes * _FAN_OUT + lanes
    chances = _chances(chances, own, totals)
  uniform = locate(Words(random.high[0], random.low[0]), size).high
  nodes = jnp.where(root > 0, nodes, uniform.astype(jnp.int32))
  return nodes, jnp.where(root > 0, chances, 1 / size)


@functools.partial(jax.jit, static_argnames='shape')
def _sample(
  key: jax.Array, tree: SumTree, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Returns draws of a shape that was checked, and their chances."""
  depth, count = len(tree.levels) - 1, math.prod(shape)
  random = random_words(key, depth * count)
  random = jax.tree.map(lambda word: word.reshape(depth, count), random)
  return jax.tree.map(lambda x: x.reshape(shape), _descend(random, tree))


def sample(
  key: jax.Array, tree: SumTree, shape: tuple[int, ...] = ()
) -> tuple[jax.Array, jax.Array]:
  """Draws leaves independently and with replacement, each in O(log N).

  Leaf i has the chance of `probabilities`, within 2^-32 of itself on each
  level; a score of 0 is never drawn. A tree that is all 0 is drawn from
  uniformly. Same key, tree and shape: same draws, jitted or not.

  Args:
    key: one PRNG key, typed or raw.
    tree: from `build` or `update`.
    shape: static; () for one draw. The draws times the levels, log16(N)
      rounded up, must be fewer than 2^31.

  Returns:
    (indices i32[shape] in [0, N), probabilities f32[shape] > 0), the second
    bit for bit `probabilities(tree)[indices]`.

  Raises:
    ValueError: for a shape that is no tuple of integers >= 0, for too many
      draws, and for an array of keys.
  """
  if not isinstance(shape, tuple) or not all(
    isinstance(length, (int, np.integer)) and length >= 0 for length in shape
  ):
    raise ValueError(f'shape must be a tuple of integers >= 0; got {shape!r}.')
  most = _MAX_WORDS // (len(tree.levels) - 1)
  if math.prod(shape) > most:
    raise ValueError(
      f'shape must hold at most {most} draws from this tree; got {shape}.'
    )
  return _sample(key, tree, shape=shape)


@jax.jit
def probabilities(tree: SumTree) -> jax.Array:
  """Returns the law that `sample` follows, in O(N).

  It differs from s_i / sum(s) by what shares and sums are rounded: on each of
  the log16(N) levels, by at most 5e-7 + 1e-9 / a of itself, where a is the
  part that the node on the way to leaf i has in the sum of its row.

  Args:
    tree: from `build` or `update`.

  Returns:
    f32[N], each to within three roundings a level, 2e-7 of itself; 0 only for
    a score of 0 (or a chance below 2^-126). 1/N where all scores are 0.
  """
  *levels, root = tree.levels
  size = levels[0].shape[0]
  chances = jnp.ones(1, jnp.float32)
  for level in reversed(levels):
    shares = _shares(_rows(level))
    totals = jnp.sum(shares, 1, dtype=jnp.uint32)[:, None]
    parents = chances[: shares.shape[0], None]
    chances = _chances(parents, shares, totals).ravel()
  return jnp.where(root > 0, chances[:size], 1 / size)


@jax.jit
def _probabilities_at(tree: SumTree, indices: jax.Array) -> jax.Array:
  """Returns chances whatever the indices i32[...] are."""
  *levels, root = tree.levels
  size = levels[0].shape[0]
  leaves = _nodes(indices.ravel(), size)
  chances = jnp.ones(leaves.shape, jnp.float32)
  for height, level in reversed(list(enumerate(levels))):
    nodes = leaves // _FAN_OUT**height
    shares = _shares(_children(level, nodes // _FAN_OUT))
    own = jnp.take_along_axis(shares, nodes[:, None] % _FAN_OUT, 1)[:, 0]
    chances = _chances(chances, own, jnp.sum(shares, 1, dtype=jnp.uint32))
  uniform = jnp.where(leaves < size, 1 / size, 0.0)
  return jnp.where(root > 0, chances, uniform).reshape(indices.shape)


def probabilities_at(tree: SumTree, indices: Any) -> jax.Array:
  """Returns `probabilities(tree)[indices]` in O(log N) each, bit for bit.

  Args:
    tree: from `build` or `update`.
    indices: i32[...] in [0, N). Inside jit, 0 is returned out of bounds.

  Raises:
    ValueError: for indices that are no integers; called eagerly, also for one
      out of bounds.
  """
  return _probabilities_at(tree, _checked_indices(indices, tree))
