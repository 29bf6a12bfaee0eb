"""Draws from a fixed law over N items in O(1), exactly: the alias table.

Walker's table cuts the unit interval into N buckets of equal width. Bucket i
belongs to item i below a threshold, and to one other item, its alias, above
it: a draw costs one random number and reads two words, however large N is.

The weights are rounded once, to integer masses m_i, in units of 2^-32 of a
bucket, that sum to N 2^32 exactly, with m_i >= 1 wherever w_i > 0. From there
on all are integers and nothing is lost: the table *is* the masses.

  Items with m_i <= 2^32 are light and lack d_i = 2^32 - m_i of a bucket; the
  others are heavy and exceed one by e_k = m_k - 2^32. Lay what is lacking end
  to end, in the order of the items, and what exceeds beside it: two rods of
  one length, marked at the prefix sums D and E. Light bucket i is filled up by
  the heavy item that lies where its piece *starts*, the first with
  E_k > D_i - d_i, even if the piece ends beyond that item. So heavy item k
  gives until the first j with D_j >= E_k, and then has overdrawn
  o_k = D_j - E_k < d_j < 2^32, which the next heavy item makes good in bucket
  k: threshold 2^32 - o_k, alias the next heavy item. If o_k = 0, bucket k is
  full.

  Item k thus owns e_k + o_k - o_(k-1) in light buckets, o_(k-1) in the bucket
  of the heavy item before, and 2^32 - o_k in its own. The overdrafts cancel,
  and e_k + 2^32 = m_k is left: an equality of integers.

This takes two prefix sums of 64 bits. Two kernels then find the same table bit
for bit: a sweep along both rods, and, where one step after the other is slow,
a search of each prefix sum in the other for all buckets at once.

Sources: Walker (1977), doi:10.1145/355744.355749, and Vose (1991),
doi:10.1109/32.92917, whose two stacks the order of the items replaces.
"""

import enum
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from isjax._words import (
  Words,
  add,
  buckets,
  locate,
  prefix_sums,
  random_words,
  running_sum,
  subtract,
  to_float,
  total,
  where,
)

_MAX_ITEMS = 2**30
_MAX_DRAWS = 2**31 - 1
_INFINITY = 0x7F800000  # bits of float32: +inf; NaNs lie above
_MINUS_ZERO = np.uint32(0x80000000)  # negative weights lie above
_ONE = np.uint32(0x3F800000)
_POSITIVE = 16  # beside the flags of `Status`: finite and above 0


class Status(enum.IntFlag):
  """What was wrong with the weights of a table; 0 where nothing was.

  NOT_A_NUMBER: some were NaN; they counted as 0.
  NEGATIVE:     some were below 0, perhaps -inf; they counted as 0.
  INFINITE:     some were +inf; they share all the mass equally.
  ALL_ZERO:     none was above 0; the law is uniform.
  """

  NOT_A_NUMBER = 1
  NEGATIVE = 2
  INFINITE = 4
  ALL_ZERO = 8


class AliasTable(NamedTuple):
  """A discrete law over N items, held on device.

  threshold: u32[N], bucket i yields i where the 32-bit fraction drawn is
             below it.
  alias:     i32[N] in [0, N), the item that bucket i yields otherwise;
             alias[i] == i marks a full bucket.
  mass:      u32[N, 2], the (high, low) words of m_i: p_i = m_i / (N 2^32)
             exactly, and the masses sum to N 2^32 exactly.
  status:    u32[], the flags of `Status`.
  """

  threshold: jax.Array
  alias: jax.Array
  mass: jax.Array
  status: jax.Array


def _at(arrays: Any, index: jax.Array) -> Any:
  """Returns the entries of 1-d arrays at an index known to be in bounds."""
  return jax.tree.map(
    lambda array: array.at[index].get(mode='promise_in_bounds'), arrays
  )


def _float_sum(x: jax.Array) -> jax.Array:
  """Returns the sum of x f32[N] >= 0, to within 2^-19 of itself for N <= 2^30.

  `jnp.sum` adds in another order in another program. Additions written out
  give the same sum, and so the same table, wherever they run; an item takes
  part in log2(N) of them, each off by 2^-24.
  """
  while x.shape[0] > 1:
    x = jnp.pad(x, (0, -x.shape[0] % 8)).reshape(8, -1)
    x = x[:4] + x[4:]
    x = x[:2] + x[2:]
    x = x[0] + x[1]
  return x[0]


def _round_to_words(x: jax.Array) -> Words:
  """Returns 2^32 x, f32 in [0, 2^31), rounded to nearest; exact from 2^-9 up.

  Shifts the mantissa by the exponent. Arithmetic would do less: where
  x - floor(x) is fused with the product that made x, it may be negative.
  """
  bits = lax.bitcast_convert_type(x, jnp.uint32)
  mantissa = (bits & 0x7FFFFF | 0x800000) << 8
  places = (bits >> 23) - 126  # modulo 2^32; shifts by 32 or more give 0
  right = lax.shift_right_logical(mantissa, 0 - places)
  half = lax.shift_right_logical(mantissa, -1 - places) & 1
  return Words(
    lax.shift_right_logical(mantissa, 32 - places),
    jnp.where(places < 32, lax.shift_left(mantissa, places), right + half),
  )


def _usable(bits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns bits of finite weights >= 0, not all 0; and the status."""
  positive, infinite = (bits > 0) & (bits < _INFINITY), bits == _INFINITY
  kind = jnp.where(positive, _POSITIVE, 0)
  kind = jnp.where(infinite, Status.INFINITE, kind)
  kind = jnp.where(bits > _MINUS_ZERO, Status.NEGATIVE, kind)
  kind = jnp.where(bits & 0x7FFFFFFF > _INFINITY, Status.NOT_A_NUMBER, kind)
  seen = jnp.bitwise_or.reduce(kind)
  all_zero = seen & (Status.INFINITE | _POSITIVE) == 0
  bits = jnp.where(positive & (seen & Status.INFINITE == 0), bits, 0)
  bits = jnp.where(infinite | all_zero, _ONE, bits)
  status = seen & ~_POSITIVE | jnp.where(all_zero, Status.ALL_ZERO, 0)
  return bits, status.astype(jnp.uint32)


def _scale(bits: jax.Array) -> jax.Array:
  """Returns weights in f32 that sum to N, less some 2^-16 of it.

  Takes float32 apart by hand, since XLA on CPU flushes denormals to 0, and
  moves the largest exponent to 0 first, so that no sum overflows.
  """
  exponent = jnp.maximum(bits >> 23, 1).astype(jnp.int32)
  implicit = jnp.where(bits >> 23 > 0, jnp.uint32(1 << 23), jnp.uint32(0))
  mantissa = (bits & 0x7FFFFF | implicit).astype(jnp.int32)
  power = exponent - jnp.max(exponent) - 23  # of 2; 127 is the bias
  power = jnp.maximum(power + 127, 0) << 23
  power = lax.bitcast_convert_type(power, jnp.float32)
  weights = mantissa.astype(jnp.float32) * power
  return weights * ((1 - 2**-16) * bits.shape[0] / _float_sum(weights))


def _masses(weights: jax.Array) -> tuple[Words, jax.Array]:
  """Returns masses that sum to N 2^32 exactly, and the status.

  The first rounding is 2^-16 low on purpose, which is more than the float sum
  errs: what is missing is then positive, known as an integer, and given to all
  in proportion. That leaves less than a unit an item (w > 0 raised to one unit
  included), for `_settle` to put in the half buckets, of which there are N or
  more wherever so much is left.
  """
  size = weights.shape[0]
  bits, status = _usable(lax.bitcast_convert_type(weights, jnp.uint32))
  scaled = _scale(bits)
  mass = _round_to_words(scaled)
  missing = to_float(subtract(buckets(size), total(mass)))
  mass = add(mass, _round_to_words(scaled * (missing / (size - missing))))
  vanished = (bits > 0) & (mass.high | mass.low == 0)
  mass = mass._replace(low=jnp.where(vanished, 1, mass.low))
  return _settle(mass), status


def _settle(mass: Words) -> Words:
  """Makes the sum N 2^32, by at most a unit per half bucket of mass.

  The half buckets are counted column by column of eight rows, for then only
  one row in eight needs a running sum.
  """
  size = mass.high.shape[0]
  missing = subtract(buckets(size), total(mass))
  surplus = missing.high >> 31 > 0
  units = jnp.where(surplus, 0 - missing.low, missing.low)
  slots = mass.high << 1 | mass.low >> 31
  rows = jnp.pad(slots, (0, -size % 8)).reshape(8, -1)
  counts = list(itertools.accumulate(rows))
  before = running_sum(counts[-1]) - counts[-1]
  last = jnp.concatenate([before + count for count in counts])[:size]
  share = jnp.minimum(last, units) - jnp.minimum(last - slots, units)
  share = Words(jnp.zeros_like(share), share)
  return where(surplus, subtract(mass, share), add(mass, share))


def _is_heavy(mass: Words) -> jax.Array:
  """Returns whether an item has more than one bucket."""
  return (mass.high > 1) | ((mass.high == 1) & (mass.low > 0))


def _next(chosen: jax.Array) -> jax.Array:
  """Returns the first chosen item >= i for i = 0, ..., N + 1; N for none."""
  size = chosen.shape[0]
  items = jnp.where(chosen, lax.iota(jnp.int32, size), size)
  following = lax.cummin(items, reverse=True)
  return jnp.pad(following, (0, 2), constant_values=size)


def _sweep(mass: Words) -> tuple[jax.Array, jax.Array]:
  """Returns threshold and alias, settling one bucket in each step.

  `left` is what heavy item k has still to give, less one unit: its sign tells
  whether there is any. Both loops read constants and write carried arrays,
  which XLA does in place.
  """
  size = mass.high.shape[0]
  next_light, next_heavy = _next_of_both(_is_heavy(mass))
  padded = jax.tree.map(lambda word: jnp.pad(word, (0, 1)), mass)

  def settle(_, carry):
    light, k, left, threshold, alias = carry
    fills = (left.high >> 31 == 0) | (k == size)
    item, following = jnp.where(fills, light, k), _at(next_heavy, k + 1)
    entering = _at(padded, jnp.where(fills, light, following))
    own = jnp.where(fills, entering.low, left.low + 1)
    full = jnp.where(fills, entering.high == 1, own == 0)
    other = jnp.where(full, item, jnp.where(fills, k, following))
    return (
      jnp.where(fills, _at(next_light, light + 1), light),
      jnp.where(fills, k, following),
      add(left, subtract(entering, buckets(1))),
      lax.dynamic_update_index_in_dim(threshold, own, item, 0),
      lax.dynamic_update_index_in_dim(alias, other, item, 0),
    )

  k = next_heavy[0]
  left = subtract(_at(padded, k), Words(jnp.uint32(1), jnp.uint32(1)))
  empty = jnp.zeros_like(mass.low), jnp.zeros_like(next_light[:size])
  return lax.fori_loop(0, size, settle, (next_light[0], k, left, *empty))[3:]


def _next_of_both(heavy: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns `_next` of the light items and of the heavy ones, in one loop.

  On CPU a loop takes a quarter of the time of two `lax.cummin`.
  """
  size = heavy.shape[0]
  put = functools.partial(lax.dynamic_update_index_in_dim, axis=0)

  def step(count, carry):
    item = size - 1 - count
    light, k, lights, heavies = carry
    light = jnp.where(heavy[item], light, item)
    k = jnp.where(heavy[item], item, k)
    return light, k, put(lights, light, item), put(heavies, k, item)

  none = jnp.int32(size)
  nothing = jnp.full((size + 2,), size, jnp.int32)
  return lax.fori_loop(0, size, step, (none, none, nothing, nothing))[2:]


def _search(mass: Words) -> tuple[jax.Array, jax.Array]:
  """Returns threshold and alias as `_sweep` does, all buckets at once."""
  size = mass.high.shape[0]
  heavy, nothing = _is_heavy(mass), buckets(0)
  lack = where(heavy, nothing, subtract(buckets(1), mass))
  excess = where(heavy, subtract(mass, buckets(1)), nothing)
  lacking, exceeding = prefix_sums(lack), prefix_sums(excess)
  before = subtract(exceeding, Words(jnp.uint32(0), jnp.uint32(1)))
  found = _first_above(
    jax.tree.map(lambda *rows: jnp.stack(rows), exceeding, lacking),
    heavy.astype(jnp.int32),
    where(heavy, before, subtract(lacking, lack)),
  )
  own = jnp.where(heavy, exceeding.low - _at(lacking.low, found), mass.low)
  full = jnp.where(heavy, own == 0, mass.high == 1)
  other = jnp.where(heavy, _next(heavy)[1 : size + 1], found)
  return own, jnp.where(full, lax.iota(jnp.int32, size), other)


def _first_above(sums: Words, row: jax.Array, target: Words) -> jax.Array:
  """Returns the first column (or N - 1) where sums[row] exceed the target.

  A guide table [2, N + 1] has the first column whose high word is at least t;
  that leaves a bisection among equal high words.
  """
  size = sums.high.shape[1]
  columns = lax.broadcasted_iota(jnp.int32, (2, size), 1)
  starts = jnp.diff(sums.high, axis=1, prepend=~sums.high[:, :1]) != 0
  entry = jnp.where(starts, sums.high, size + 1).astype(jnp.int32)
  guide = jnp.full((2, size + 1), size, jnp.int32)
  guide = guide.at[jnp.array([[0], [1]]), entry].set(columns, mode='drop')
  guide = lax.cummin(guide, axis=1, reverse=True)

  def at(table, column):
    return table.at[row, column].get(mode='promise_in_bounds')

  def halve(bounds):
    left, right = bounds
    middle = left + (right - left >> 1)
    above = at(sums.low, jnp.minimum(middle, size - 1)) > target.low
    is_open = left < right
    left = jnp.where(is_open & ~above, middle + 1, left)
    return left, jnp.where(is_open & above, middle, right)

  high = target.high.astype(jnp.int32)
  left, _ = lax.while_loop(
    lambda bounds: jnp.any(bounds[0] < bounds[1]),
    halve,
    (at(guide, high), at(guide, high + 1)),
  )
  return jnp.minimum(left, size - 1)


@jax.jit
def _build(weights: jax.Array) -> AliasTable:
  """Returns a table whatever the weights f32[N] are."""
  mass, status = _masses(weights)
  threshold, alias = lax.platform_dependent(mass, cpu=_sweep, default=_search)
  return AliasTable(threshold, alias, jnp.stack(mass, 1), status)


def _checked(weights: Any) -> jax.Array | np.ndarray:
  """Returns the weights as an array, if of a right shape and dtype."""
  if not isinstance(weights, jax.Array):
    weights = np.asarray(weights)
  if weights.ndim != 1 or not 1 <= weights.shape[0] <= _MAX_ITEMS:
    raise ValueError(
      'weights must be one axis of 1 to 2^30 items (jax.vmap builds several '
      f'tables); got shape {weights.shape}.'
    )
  if not jnp.issubdtype(weights.dtype, jnp.floating) and not (
    jnp.issubdtype(weights.dtype, jnp.integer)
  ):
    raise ValueError(
      'weights must be floats, or integers to be read as float32; got dtype '
      f'{weights.dtype}.'
    )
  return weights


def _as_float32(weights: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
  """Returns the weights as f32; what is too large becomes inf."""
  with np.errstate(over='ignore'):
    return weights.astype(np.float32)


def validate_weights(weights: Any) -> None:
  """Checks that `build` can follow the weights as they are.

  Args:
    weights: f32[N], 1 <= N <= 2^30, on host or device. A tracer has no values
      to look at and passes; `AliasTable.status` then tells.

  Raises:
    ValueError: for a wrong rank, length or dtype; for a weight that is NaN,
      negative or infinite in float32, naming the first; or if all are 0.
  """
  weights = _checked(weights)
  if isinstance(weights, jax.core.Tracer):
    return
  given = np.asarray(weights)
  values = _as_float32(given)
  bad = ~((values >= 0) & (values < np.inf))
  if bad.any():
    first = int(bad.argmax())
    raise ValueError(
      'weights must be finite and non-negative in float32; got '
      f'weights[{first}] = {given[first]}. Repair what computes it, or set '
      'it to 0 to leave the item out.'
    )
  if not values.any():
    raise ValueError(
      f'weights must not all be 0 in float32; got weights[0] = {given[0]} and '
      f'no other above 0 of {given.size}. Mix them with the uniform law.'
    )


def build(weights: Any) -> AliasTable:
  """Builds the table of p_i = w_i / sum(w), in O(N) and on device.

  Its masses are rounded: |p_i sum(w) / w_i - 1| <= 1e-6 wherever p_i is at
  least 1e-3 / N, and smaller p_i are off by less than 1e-9 / N. But w_i == 0
  is never drawn and w_i > 0 always can be, for any weights that float32 holds,
  denormals and those with an infinite sum included.

  Each N compiles anew, in about a second. Where N keeps changing, pad the
  weights with zeros to one of a few lengths: the padding is never drawn.

  Args:
    weights: f32[N] >= 0, 1 <= N <= 2^30, on any scale. Other floats, and
      integers, are read as float32.

  Returns:
    The table. Inside jit, where nothing can be raised, NaN and negative weights
    count as 0, +inf weights share all the mass equally, and weights that are
    all 0 give the uniform law: `status` tells. Several at once: jax.vmap.

  Raises:
    ValueError: for a wrong rank, length or dtype; called eagerly, also for all
      that `validate_weights` refuses (so that call waits for the result).
  """
  weights = _checked(weights)
  table = _build(_as_float32(weights))
  if not isinstance(table.status, jax.core.Tracer) and table.status:
    validate_weights(weights)
  return table


def probabilities(table: AliasTable) -> jax.Array:
  """Returns p_i = m_i / (N 2^32), the law that `sample` follows.

  Args:
    table: from `build`.

  Returns:
    f32[N], each to within 2.4e-7 of itself (four roundings); 0 only for a
    mass of 0.
  """
  mass = Words(table.mass[:, 0], table.mass[:, 1])
  return to_float(mass) / table.mass.shape[0]


def probabilities_at(table: AliasTable, items: jax.Array) -> jax.Array:
  """Returns the probabilities of some items, without those of all others.

  Args:
    table: from `build`.
    items: i32[...] in [0, N); one that is not reads garbage.

  Returns:
    f32[...], bitwise those of `probabilities`.
  """
  mass = Words(*(_at(word, items) for word in table.mass.T))
  return to_float(mass) / table.mass.shape[0]


def _draw(random: Words, threshold: jax.Array, alias: jax.Array) -> jax.Array:
  """Returns the item at each place of [0, 1) that 64 random bits name."""
  bucket, fraction = locate(random, threshold.shape[0])
  bucket = bucket.astype(jnp.int32)
  own, other = _at((threshold, alias), bucket)
  return jnp.where(fraction < own, bucket, other)


@functools.partial(jax.jit, static_argnames='shape')
def _sample(
  key: jax.Array,
  threshold: jax.Array,
  alias: jax.Array,
  shape: tuple[int, ...],
) -> jax.Array:
  """Returns draws of a shape that was checked."""
  random = random_words(key, math.prod(shape))
  return _draw(random, threshold, alias).reshape(shape)


@functools.partial(jax.jit, static_argnames='shape')
def _sample_with_probabilities(
  key: jax.Array, table: AliasTable, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  items = _sample(key, table.threshold, table.alias, shape=shape)
  return items, probabilities_at(table, items)


def _check_shape(shape: tuple[int, ...]) -> None:
  if not isinstance(shape, tuple) or not all(
    isinstance(length, (int, np.integer)) and length >= 0 for length in shape
  ):
    raise ValueError(f'shape must be a tuple of integers >= 0; got {shape!r}.')
  if math.prod(shape) > _MAX_DRAWS:
    raise ValueError(f'shape must hold fewer than 2^31 draws; got {shape}.')


def sample(
  key: jax.Array, table: AliasTable, shape: tuple[int, ...] = ()
) -> jax.Array:
  """Draws items independently and with replacement, each in O(1).

  64 random bits u give the bucket floor(u N / 2^64) and, in the next 32 bits of
  that product, the fraction of it. No float takes part, so the chance of each
  part of a bucket is right to within 2^-64 for all N; float32 uniforms miss
  most items beyond 2^24. Same key, table and shape: same draws, jitted or not.

  Args:
    key: one PRNG key, typed or raw. threefry2x32 spends one block on a draw;
      other implementations go through `jax.random.bits`.
    table: from `build`.
    shape: static, of fewer than 2^31 draws; () for one, and a 0 for none.

  Returns:
    i32[shape] in [0, N).

  Raises:
    ValueError: for a shape that is no tuple of integers >= 0, for too many
      draws, and for an array of keys.
  """
  _check_shape(shape)
  return _sample(key, table.threshold, table.alias, shape=shape)


def sample_with_probabilities(
  key: jax.Array, table: AliasTable, shape: tuple[int, ...] = ()
) -> tuple[jax.Array, jax.Array]:
  """Draws as `sample` does and reads the chance of each item drawn.

  One pass over the draws: no probabilities of all N items are computed or
  kept. It reads two words more a draw.

  Args:
    key: as in `sample`; the same key gives the same items.
    table: from `build`.
    shape: as in `sample`.

  Returns:
    i32[shape] in [0, N), and their p f32[shape] > 0, as `probabilities` has
    them.

  Raises:
    ValueError: as in `sample`.
  """
  _check_shape(shape)
  return _sample_with_probabilities(key, table, shape=shape)
