"""Batches off epochs of E draws each, in an order made for each epoch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax._in_place import after, when


class Epochs(NamedTuple):
  """Where an epoch stands.

  order:      i32[E], the draws of this epoch, one after the other.
  next_order: i32[E], those of the next one.
  position:   i32[] in [0, E), of the next draw in `order`.
  """

  order: jax.Array
  next_order: jax.Array
  position: jax.Array


NewOrder = Callable[[jax.Array], jax.Array]  # key -> i32[E]


def check_length(batch_size: int, num_examples: int) -> None:
  """Raises ValueError unless an epoch of N draws has room for a batch."""
  if batch_size > num_examples:
    raise ValueError(
      f'batch_size must be at most num_examples, {num_examples}, where batches '
      f'come off epochs; got {batch_size}. The uniform sampler takes any, and '
      "so do draws='independent'."
    )


def start(key: jax.Array, new_order: NewOrder) -> Epochs:
  """Returns the first epoch, before its first draw."""
  first, second = jax.random.split(key)
  return Epochs(new_order(first), new_order(second), jnp.zeros((), jnp.int32))


def batch(epochs: Epochs, batch_size: int) -> jax.Array:
  """Returns the next b <= E draws, which run on into the next epoch."""
  length = epochs.order.shape[0]
  places = epochs.position + jnp.arange(batch_size)
  beyond = places >= length
  places = jnp.where(beyond, places - length, places)
  return jnp.where(beyond, epochs.next_order[places], epochs.order[places])


def advance(
  key: jax.Array, epochs: Epochs, drawn: jax.Array, new_order: NewOrder
) -> Epochs:
  """Returns the epochs after `drawn` i32[b], their last batch."""
  length = epochs.order.shape[0]
  position = after((drawn,), epochs.position + drawn.shape[0])
  epochs = epochs._replace(position=position)
  return when(
    epochs.position >= length,
    lambda old: Epochs(old.next_order, new_order(key), old.position - length),
    epochs,
  )
