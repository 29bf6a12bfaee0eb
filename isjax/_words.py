"""64-bit integers as two words of 32 bits, for float32-only programs.

JAX has no 64-bit type unless a process switches x64 on for everything. What an
exact law needs of one is little: sums, products and random bits.
"""

from functools import partial
from typing import NamedTuple

import jax
from jax import lax
from jax.extend.random import threefry_2x32
import jax.numpy as jnp


class Words(NamedTuple):
  """Integers modulo 2^64, as two arrays u32 of one shape."""

  high: jax.Array
  low: jax.Array


def buckets(count: int) -> Words:
  """Returns count * 2^32, the mass of so many buckets."""
  return Words(jnp.uint32(count), jnp.uint32(0))


def add(a: Words, b: Words) -> Words:
  """Returns a + b."""
  low = a.low + b.low
  return Words(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: Words, b: Words) -> Words:
  """Returns a - b."""
  borrow = (a.low < b.low).astype(jnp.uint32)
  return Words(a.high - b.high - borrow, a.low - b.low)


def multiply(a: jax.Array, b: jax.Array | int) -> Words:
  """Returns the product of u32[...] and b in [0, 2^32), by half words."""
  a0, a1, b0, b1 = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
  middle = a1 * b0 + (a0 * b0 >> 16)
  upper = a0 * b1 + (middle & 0xFFFF)
  return Words(a1 * b1 + (middle >> 16) + (upper >> 16), a * jnp.uint32(b))


def divide(a: Words, b: int) -> jax.Array:
  """Returns floor(a / b) as u32[...], for 1 <= b < 2^31 and a < b 2^32.

  Multiplies by the reciprocal of b, which is known when traced. Source: Möller
  and Granlund (2011), doi:10.1109/TC.2010.143, algorithm 4.
  """
  shift = 32 - b.bit_length()
  divisor = b << shift
  reciprocal = (2**64 - 1) // divisor - 2**32
  high, low = a.high << shift | a.low >> 32 - shift, a.low << shift
  guess = add(multiply(high, reciprocal), Words(high + 1, low))
  rest = low - guess.high * jnp.uint32(divisor)
  over = rest > guess.low
  rest = jnp.where(over, rest + jnp.uint32(divisor), rest)
  under = rest >= jnp.uint32(divisor)
  return guess.high - over.astype(jnp.uint32) + under.astype(jnp.uint32)


def where(condition: jax.Array, a: Words, b: Words) -> Words:
  """Returns a where the condition holds, else b."""
  return jax.tree.map(partial(jnp.where, condition), a, b)


def running_sum(a: jax.Array) -> jax.Array:
  """Returns the inclusive prefix sums of u32[N], modulo 2^32.

  On CPU by a loop, which takes a third of the time of `jnp.cumsum`.
  """

  def loop(a):
    def step(i, carry):
      total, sums = carry
      total += a.at[i].get(mode='promise_in_bounds')
      return total, lax.dynamic_update_index_in_dim(sums, total, i, 0)

    start = jnp.uint32(0), jnp.zeros_like(a)
    return lax.fori_loop(0, a.shape[0], step, start)[1]

  return lax.platform_dependent(
    a, cpu=loop, default=partial(jnp.cumsum, dtype=jnp.uint32)
  )


def prefix_sums(a: Words) -> Words:
  """Returns the inclusive prefix sums: a low word that wraps is a carry."""
  low = running_sum(a.low)
  carry = (low < a.low).astype(jnp.uint32)
  return Words(running_sum(a.high + carry), low)


def total(a: Words) -> Words:
  """Returns the sum of all."""
  return lax.reduce(a, buckets(0), add, (0,))


def to_float(a: Words) -> jax.Array:
  """Returns a / 2^32 in f32, to within two roundings."""
  return a.high.astype(jnp.float32) + a.low.astype(jnp.float32) * 2.0**-32


def random_words(key: jax.Array, count: int) -> Words:
  """Returns 64 random bits for each draw, from one threefry block each."""
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  if key.shape:
    raise ValueError(
      f'key must be one key (jax.vmap takes several); got shape {key.shape}.'
    )
  if jax.random.key_impl(key) != 'threefry2x32':
    return Words(*jax.random.bits(key, (2, count), jnp.uint32))
  counters = lax.iota(jnp.uint32, 2 * count)  # block j enciphers (j, count + j)
  bits = threefry_2x32(jax.random.key_data(key), counters)
  return Words(bits[:count], bits[count:])


def locate(random: Words, size: jax.Array | int) -> Words:
  """Returns (bucket, fraction of it): the upper words of the product u N."""
  carry = Words(jnp.uint32(0), multiply(random.low, size).high)
  return add(multiply(random.high, size), carry)
