"""Updates of arrays of length N in place, at a cost that N does not enter.

XLA writes into the buffer of an array that nobody reads any more, and into a
copy of it where it cannot prove that.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


def when(
  condition: bool | jax.Array, update: Callable[[Any], Any], state: Any
) -> Any:
  """Returns update(state) where the condition holds, else the state.

  A loop of one turn at most carries arrays in place. The branches of a
  `lax.cond` copy them, whichever is taken, and `jnp.where` reads and writes
  them whole: 300 us against 19 us for two arrays of 1e6 on CPU.

  Args:
    condition: bool[]; a Python value decides at once, without a loop.
    update: pytree -> pytree of the same shapes and types.
    state: pytree of arrays.
  """
  if isinstance(condition, bool):
    return update(state) if condition else state

  def turn(carry):
    return jnp.zeros((), bool), update(carry[1])

  return lax.while_loop(lambda carry: carry[0], turn, (condition, state))[1]


def after(reads: tuple[jax.Array, ...], values: Any) -> Any:
  """Returns the values, which XLA cannot know before it has made the reads.

  Indices that went through here write in place what the reads come from. A
  `lax.optimization_barrier` does not help: XLA drops it before it decides
  where to copy.

  Args:
    reads: arrays >= 0.
    values: pytree of integers.
  """
  zero = sum(jnp.min(jnp.minimum(read, 0)).astype(jnp.int32) for read in reads)
  return jax.tree.map(lambda value: value + zero, values)
