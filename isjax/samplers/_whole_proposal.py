"""What samplers share whose uniform proposal is the batch as it stands."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from isjax.types import Draw, Observation, PyTree


def keep_state(state: PyTree, draw: Draw, observation: Observation) -> PyTree:
  """An `observe` that learns nothing."""
  del draw, observation
  return state


def uniform_law(num_examples: int, batch_size: int) -> Callable[..., tuple]:
  """A `law`: each example as likely as any other, and each slot."""

  def law(state, scores, indices=None) -> tuple[jax.Array, jax.Array]:
    del state, scores, indices
    return (
      jnp.full((num_examples,), 1 / num_examples, jnp.float32),
      jnp.full((batch_size,), 1 / batch_size, jnp.float32),
    )

  return law
