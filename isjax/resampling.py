"""Ways to draw b of B items from given probabilities, once.

For a law that is used for one draw only (a pool with fresh scores), a search
in the cumulative sum is far cheaper than building an alias table.
"""

import jax
import jax.numpy as jnp

from isjax._words import locate, random_words


def multinomial(
  key: jax.Array, probabilities: jax.Array, num_draws: int
) -> jax.Array:
  """Draws independently and with replacement.

  Args:
    key: PRNG key.
    probabilities: f32[B] >= 0 with a sum of about 1. Meant for B up to a few
      thousand: the float32 sum resolves 2^-23 of the total.
    num_draws: b, static.

  Returns:
    i32[b] in [0, B); an item of probability 0 is never drawn.
  """
  cumulative = jnp.cumsum(probabilities)
  total = cumulative[-1]
  uniform = jax.random.uniform(key, (num_draws,))
  # u * total may round up to total, where no item begins.
  heights = jnp.minimum(uniform * total, jnp.nextafter(total, 0.0))
  slots = jnp.searchsorted(cumulative, heights, side='right')
  return slots.astype(jnp.int32)


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
