"""The law that a sampler really follows, and how far off it is.

Random numbers in a computer are multiples of 2^-k, each as likely as any other.
So the chance of an item is a count: of those numbers that lead to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SINGLE = 23  # k of `jax.random.uniform`, float32
DOUBLE = 53  # k of what numpy and torch draw as float64


class Exactness(NamedTuple):
  """How far a law is from the weights that it should follow.

  total_variation: half the sum of |p_i - w_i / sum(w)|, in [0, 1].
  never_drawable:  how many items have a weight, and no chance.
  """

  total_variation: float
  never_drawable: int


def exactness(law: np.ndarray, weights: np.ndarray) -> Exactness:
  """Compares a law with the weights, in float64.

  Args:
    law: f64[>= N]; entries beyond the last item are chances of drawing none.
    weights: f32[N] >= 0.
  """
  target = weights.astype(np.float64)
  target /= target.sum()
  chances, outside = law[: len(target)], law[len(target) :]
  distance = np.abs(chances - target).sum() + outside.sum()
  never = np.count_nonzero((chances == 0) & (weights > 0))
  return Exactness(float(distance / 2), int(never))


def by_enumeration(
  pick: Callable[[jax.Array], jax.Array], num_items: int, bits: int = SINGLE
) -> np.ndarray:
  """Returns the law of what one float32 uniform picks, by trying them all.

  Args:
    pick: uniforms f32[m] -> items i32[m], each from its own uniform.
    num_items: N.
    bits: k.

  Returns:
    f64[N], or longer where items beyond the last are picked.
  """
  uniforms = jnp.arange(2**bits, dtype=jnp.float32) * 2.0**-bits
  counts = np.bincount(np.asarray(pick(uniforms)), minlength=num_items)
  return counts / 2**bits


def by_search(
  cumulative: np.ndarray, side: str, bits: int = DOUBLE
) -> np.ndarray:
  """Returns the law of `np.searchsorted(cumulative, u, side)`, exactly.

  Args:
    cumulative: f[N], ascending from 0 or more to 1.
    side: 'left' or 'right'.
    bits: k of the uniform u.

  Returns:
    f64[N].
  """
  ends = cumulative.astype(np.float64) * 2.0**bits
  # How many u lie below them, and at them where the search is on the left.
  ends = np.ceil(ends) if side == 'right' else np.floor(ends) + 1
  return np.diff(np.minimum(ends, 2.0**bits), prepend=0) / 2.0**bits


def of_table(threshold: Any, alias: Any) -> np.ndarray:
  """Returns the law of an alias table, from what its draws read.

  Args:
    threshold: u32[N].
    alias: i32[N].

  Returns:
    f64[N], of integer masses in units of 2^-32 of a bucket.
  """
  own = np.asarray(threshold).astype(np.uint64)
  mass = own.copy()
  np.add.at(mass, np.asarray(alias), np.uint64(2**32) - own)
  return mass / (len(mass) * 2.0**32)
