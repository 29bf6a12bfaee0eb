"""What a transformation of a set returns besides it, and how rows are taken.

A transformation is a pure function (batch, metadata, *, seed, **options) ->
(Batch, Metadata, Changes). What it draws depends on its seed and the labels
alone. Choices are made on the host; the arrays stay where they are.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from isjax.data.metadata import Metadata
from isjax.types import Batch, num_examples, take


class Changes(NamedTuple):
  """What became of the rows, on the host.

  indices: i64[n], the place of each row in the set that was given.
  flipped: bool[n], whether noise changed its label.
  """

  indices: np.ndarray
  flipped: np.ndarray


def none(batch: Batch) -> Changes:
  """Returns the Changes of a set of which every row was kept as it was."""
  size = num_examples(batch)
  return Changes(np.arange(size), np.zeros(size, bool))


def compose(first: Changes, second: Changes) -> Changes:
  """Returns the Changes of two transformations, one after the other."""
  rows = second.indices
  return Changes(first.indices[rows], first.flipped[rows] | second.flipped)


def keep(
  batch: Batch, metadata: Metadata, indices: np.ndarray
) -> tuple[Batch, Metadata, Changes]:
  """Keeps the rows at `indices` i64[n], each in [0, N), in this order."""
  kept = take(batch, jnp.asarray(indices, jnp.int32))
  metadata = recount(kept, metadata)
  return kept, metadata, Changes(indices, np.zeros(len(indices), bool))


def relabel(
  batch: Batch, metadata: Metadata, labels: np.ndarray
) -> tuple[Batch, Metadata, Changes]:
  """Gives the rows other labels, integers [N] in [0, K)."""
  flipped = labels != labels_of(batch)
  batch = batch._replace(targets=jnp.asarray(labels, jnp.int32))
  changes = none(batch)._replace(flipped=flipped)
  return batch, recount(batch, metadata), changes


def recount(batch: Batch, metadata: Metadata) -> Metadata:
  """Brings the numbers of examples up to date."""
  labels = labels_of(batch)
  counts = np.bincount(labels, minlength=metadata.num_classes)
  return metadata._replace(
    num_examples=len(labels), class_counts=tuple(counts.tolist())
  )


def labels_of(batch: Batch) -> np.ndarray:
  """Returns the targets on the host.

  Raises:
    ValueError: unless they are class numbers, integers [N].
  """
  labels = np.asarray(batch.targets)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      'targets must be class numbers, integers [N]; got '
      f'{labels.dtype}{list(labels.shape)}.'
    )
  return labels


def random_of(seed: int, name: str) -> np.random.RandomState:
  """Returns the stream of one transformation: none shares it with another.

  Raises:
    ValueError: unless the seed is an integer in [0, 2^32).
  """
  check_seed(seed)
  return np.random.RandomState([seed, *name.encode()])


def check_seed(seed: int) -> None:
  """Raises ValueError unless the seed is an integer in [0, 2^32)."""
  is_integer = isinstance(seed, (int, np.integer))
  if not is_integer or isinstance(seed, bool) or not 0 <= seed < 2**32:
    raise ValueError(f'seed must be an integer in [0, 2^32); got {seed!r}.')
