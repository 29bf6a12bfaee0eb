"""Ways to draw b of B items from given probabilities, once.

For a law that is used for one draw only (a pool with fresh scores), a search
in the prefix sums is far cheaper than building an alias table.

All but the draw without replacement round the law to integer masses m_i < 2^32
and go on in integers: they draw from m_i / M, M the sum, to within 2^-64, and
report that law. An item of probability 0 is never drawn.
"""

from collections.abc import Callable
import functools

import jax
from jax import lax
import jax.numpy as jnp

from isjax import _validate
from isjax._words import (
  Words,
  add,
  divide,
  locate,
  multiply,
  prefix_sums,
  random_words,
  running_sum,
  to_float,
)
from isjax.alias import AliasTable


def multinomial(
  key: jax.Array, probabilities: jax.Array, num_draws: int
) -> tuple[jax.Array, jax.Array]:
  """Draws independently and with replacement.

  Args:
    key: PRNG key.
    probabilities: f32[B] >= 0, on any scale from 1e-37 to 1e37 of their sum;
      the law is uniform if that is left (by a sum of 0, say). What is negative,
      NaN or less than 1e-37 of the sum counts as 0.
    num_draws: b, static.

  Returns:
    slots i32[b] in [0, B), and the probability f32[b] > 0 of each: p over its
    sum up to rounding, by 2^-31 at most, and what is drawn from exactly.
  """
  _validate.positive_integers(num_draws=num_draws)
  mass, sums = _masses(probabilities)
  heights = locate(random_words(key, num_draws), sums[-1]).high
  return _find(mass, sums, heights)


def systematic(
  key: jax.Array, probabilities: jax.Array, num_draws: int
) -> tuple[jax.Array, jax.Array]:
  """Draws at b evenly spaced places with one random offset, in random order.

  Item i is drawn floor(b p_i) or ceil(b p_i) times. Each slot alone follows p,
  so an average over the draws has the expectation of independent ones. Its
  variance is smaller for most orders of the items, and no bound holds for all:
  the pool that this is meant for is in random order.

  Args:
    key: PRNG key.
    probabilities: f32[B] >= 0, as in `multinomial`.
    num_draws: b, static.

  Returns:
    slots i32[b] in [0, B), and the probability f32[b] > 0 of each at a draw.

  Source: Madow (1949), doi:10.1214/aoms/1177729988; as a resampling scheme
    Kitagawa (1996), doi:10.1080/10618600.1996.10474692.
  """
  return _draw_evenly(key, probabilities, num_draws, num_offsets=1)


def stratified(
  key: jax.Array, probabilities: jax.Array, num_draws: int
) -> tuple[jax.Array, jax.Array]:
  """Draws at one random place in each of b equal strata, in random order.

  Each slot alone follows p, and the variance of an average over the draws is
  never above that of independent ones.

  Args:
    key: PRNG key.
    probabilities: f32[B] >= 0, as in `multinomial`.
    num_draws: b, static.

  Returns:
    slots i32[b] in [0, B), and the probability f32[b] > 0 of each at a draw.

  Source: Kitagawa (1996), doi:10.1080/10618600.1996.10474692.
  """
  return _draw_evenly(key, probabilities, num_draws, num_offsets=num_draws)


def _normalised(probabilities: jax.Array) -> jax.Array:
  """Returns f32[B] >= 0 with a sum of about 1, whatever is given."""
  probabilities = jnp.where(probabilities > 0, probabilities, 0.0)
  total = jnp.sum(probabilities)
  has_law = (total > 1e-37) & (total < 1e37)
  return jnp.where(has_law, probabilities / total, 1 / probabilities.shape[0])


@jax.jit
def _masses(probabilities: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns integers u32[B] in proportion, and their prefix sums.

  They sum to some 2^31, so that neither the error of the float sum nor items
  raised to 1 can carry them past 2^32.
  """
  probabilities = _normalised(probabilities)
  mass = (probabilities * 2.0**31).astype(jnp.uint32)
  mass = jnp.maximum(mass, (probabilities > 0).astype(jnp.uint32))
  return mass, running_sum(mass)


def _find(
  mass: jax.Array, sums: jax.Array, heights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the items at heights u32[b] below the last sum, and their law."""
  slots = jnp.searchsorted(sums, heights, side='right').astype(jnp.int32)
  drawn = mass.at[slots].get(mode='promise_in_bounds')
  return slots, drawn.astype(jnp.float32) / sums[-1].astype(jnp.float32)


def _draw_evenly(
  key: jax.Array, probabilities: jax.Array, num_draws: int, num_offsets: int
) -> tuple[jax.Array, jax.Array]:
  """Draws at heights (k M + w_k) / b, w_k uniform below M, in random order."""
  _validate.positive_integers(num_draws=num_draws)
  offset_key, order_key = jax.random.split(key)
  mass, sums = _masses(probabilities)
  offsets = locate(random_words(offset_key, num_offsets), sums[-1]).high
  starts = multiply(lax.iota(jnp.uint32, num_draws), sums[-1])
  heights = divide(add(starts, Words(jnp.uint32(0), offsets)), num_draws)
  return _find(mass, sums, permutation(order_key, heights))


RESAMPLING: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
  'multinomial': multinomial,
  'systematic': systematic,
  'stratified': stratified,
}


def resampler(
  resampling: str,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns the way to draw of that name, one that keeps to the law p.

  Args:
    resampling: 'multinomial', 'systematic' or 'stratified'.

  Raises:
    ValueError: for another name, with the reason where there is such a way.
  """
  if resampling in ('top_k', 'without_replacement'):
    raise ValueError(
      f'resampling={resampling!r} does not draw each slot from the law p: '
      "weighted by 1 / (N p), its average is biased. Take 'systematic', which "
      'repeats an item only where b p_i > 1, or call '
      'resampling.without_replacement, which reports the law that its draws '
      'are to be weighted by.'
    )
  _validate.one_of(RESAMPLING, resampling=resampling)
  return RESAMPLING[resampling]


def without_replacement(
  key: jax.Array, probabilities: jax.Array, num_draws: int
) -> tuple[jax.Array, jax.Array]:
  """Draws b different items, an item of larger probability more likely.

  Item i gets the key p_i / e_i, e_i exponential of mean 1, and the b items of
  the largest keys are drawn: the Gumbel top-k draw, whose keys are the
  logarithms of these. Let kappa be the next key. Given the keys of all other
  items, item i is drawn if e_i < p_i / kappa_i, where kappa_i is the b-th of
  theirs and is kappa if so: that has the chance pi_i = 1 - exp(-p_i / kappa).
  So the sum of f_i / pi_i over the draws estimates the sum over all f without
  bias, although no pi_i is the chance of being drawn.

  Args:
    key: PRNG key.
    probabilities: f32[B] >= 0, as in `multinomial`.
    num_draws: b, static.

  Returns:
    slots i32[b] in [0, B), in falling order of their keys, and pi_i / b f32[b],
    the law that makes the average of f_i / law_i over the draws unbiased for
    the sum of all f. It changes from draw to draw. Where fewer than b items
    have positive probability, each is drawn, with pi_i = 1; the slots left over
    repeat the first one with the probability inf, so that they weigh nothing.

  Source: Cohen and Kaplan (2008), arXiv:0802.3448, the rank-conditioning
    estimator; Kool et al. (2019), arXiv:1903.06059, for Gumbel top-k.
  """
  _validate.positive_integers(num_draws=num_draws)
  size = probabilities.shape[0]
  uniform = to_float(random_words(key, size)) * 2.0**-32
  exponential = -jnp.log1p(-jnp.clip(uniform, 2.0**-64, 1 - 2.0**-24))
  return _race(probabilities, exponential, num_draws)


def _race(
  probabilities: jax.Array, exponential: jax.Array, num_draws: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the draws that exponential variables f32[B] > 0 decide."""
  probabilities = _normalised(probabilities)
  short = max(num_draws + 1 - probabilities.shape[0], 0)
  keys = jnp.pad(probabilities / exponential, (0, short))
  # Sliced further, the results hide from XLA on CPU that they are a top k: it
  # then sorts all, which takes four times as long.
  keys, slots = lax.optimization_barrier(lax.top_k(keys, num_draws + 1))
  drawn, kappa = keys[:-1] > 0, keys[-1]
  slots = jnp.where(drawn, slots[:-1], slots[0])
  chances = -jnp.expm1(-probabilities[slots] / kappa)
  return slots, jnp.where(drawn, chances / num_draws, jnp.inf)


def uniform_indices(
  key: jax.Array, num_examples: int, num_draws: int
) -> jax.Array:
  """Draws independently and uniformly from all examples.

  The upper word of the product of 64 random bits and N: half the time of
  `jax.random.randint`, which divides.

  Args:
    key: PRNG key.
    num_examples: N up to 2^30.
    num_draws: b, static.

  Returns:
    i32[b] in [0, N), each of chance 1/N to within 2^-64.
  """
  return locate(random_words(key, num_draws), num_examples).high.astype(
    jnp.int32
  )


def permutation(key: jax.Array, values: jax.Array) -> jax.Array:
  """Returns the values in uniform random order.

  On CPU by the shuffle of Fisher and Yates, some 60 times faster than the sort
  of `jax.random.permutation`, which serves accelerators. So one key gives one
  order on all CPUs, jitted or not, and another one on accelerators.

  Args:
    key: PRNG key.
    values: [n], n < 2^31.

  Returns:
    The same values [n]. On CPU each place is chosen to within 2^-64.
  """
  return _permutation(key, values)


@jax.jit
def _permutation(key: jax.Array, values: jax.Array) -> jax.Array:
  return lax.platform_dependent(
    key, values, cpu=_fisher_yates, default=jax.random.permutation
  )


def _fisher_yates(key: jax.Array, values: jax.Array) -> jax.Array:
  """Puts each value in a random place, and who was there at the end.

  The value read decides the first of the two writes, so XLA cannot part them
  and needs no copy: the swap of two values takes one, of the whole array, in
  each turn.
  """
  size = values.shape[0]
  choices = lax.iota(jnp.uint32, size) + 1
  places = locate(random_words(key, size), choices).high.astype(jnp.int32)

  def insert(k, shuffled):
    place, value = (
      array.at[k].get(mode='promise_in_bounds') for array in (places, values)
    )
    moved = shuffled.at[place].get(mode='promise_in_bounds')
    shuffled = lax.dynamic_update_index_in_dim(shuffled, moved, k, 0)
    return lax.dynamic_update_index_in_dim(shuffled, value, place, 0)

  return lax.fori_loop(0, size, insert, jnp.zeros_like(values))


def weighted_epoch(
  key: jax.Array, table: AliasTable, num_draws: int
) -> jax.Array:
  """Draws an epoch: each item floor or ceil of n p_i times, in random order.

  Item i is drawn c_i - c_(i-1) times with c_i = floor((C_i n + w) / (N 2^32)),
  where C_i are the prefix sums of the integer masses and w < N 2^32 is uniform:
  floor or ceil of n p_i, n p_i on average to within 2^-64, and just n p_i times
  where that is an integer. In uniform random order each place of the epoch
  follows p; an order that keeps repetitions apart does not.

  Args:
    key: PRNG key.
    table: from `alias.build`.
    num_draws: n < 2^31, static; N for an epoch.

  Returns:
    i32[n] in [0, N).

  Source: systematic sampling, Madow (1949), doi:10.1214/aoms/1177729988.
  """
  _validate.positive_integers(num_draws=num_draws)
  return _weighted_epoch(key, table.mass, num_draws=num_draws)


@functools.partial(jax.jit, static_argnames='num_draws')
def _weighted_epoch(
  key: jax.Array, mass: jax.Array, num_draws: int
) -> jax.Array:
  """Returns the draws that masses u32[N, 2] give."""
  offset_key, order_key = jax.random.split(key)
  offset = locate(random_words(offset_key, 1), mass.shape[0])
  ends = _ends(Words(mass[:, 0], mass[:, 1]), offset, num_draws)
  marks = jnp.zeros((num_draws,), jnp.uint32)
  marks = marks.at[ends.astype(jnp.int32)].add(1, mode='drop')
  return permutation(order_key, running_sum(marks).astype(jnp.int32))


def _ends(mass: Words, offset: Words, num_draws: int) -> jax.Array:
  """Returns c_i u32[N], how many draws fall to item i and those before it.

  Of the 96 bits of C_i n + w the low 32 give no more than a carry.
  """
  sums = prefix_sums(mass)
  low = sums.low * jnp.uint32(num_draws)
  carry = (low + offset.low < low).astype(jnp.uint32)
  buckets = add(
    locate(sums, num_draws), Words(jnp.uint32(0), offset.high + carry)
  )
  return divide(buckets, mass.high.shape[0])
