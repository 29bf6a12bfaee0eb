"""Subsets of a set's classes."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from isjax.data.changes import Changes, keep, labels_of, recount
from isjax.data.metadata import Metadata
from isjax.types import Batch


def class_subset(
  batch: Batch, metadata: Metadata, *, seed: int, classes: Sequence[int]
) -> tuple[Batch, Metadata, Changes]:
  """Keeps the examples of some classes, which are numbered anew.

  Args:
    batch: N examples, of any split.
    metadata: of the batch.
    seed: not used; nothing is drawn.
    classes: distinct class numbers; the i-th one becomes class i.

  Returns:
    Their examples in the order of the batch, the Metadata, whose num_classes
    is the length of `classes`, and Changes.

  Raises:
    ValueError: where a class does not exist or is named twice, or none has an
      example.
  """
  del seed
  numbers = [int(label) for label in classes]
  known = range(metadata.num_classes)
  if len(set(numbers)) < len(numbers) or not set(numbers) <= set(known):
    raise ValueError(
      f'classes must be distinct numbers in [0, {len(known)}); got {classes}.'
    )
  new_number = np.full(len(known), -1, np.int32)
  new_number[numbers] = np.arange(len(numbers))
  labels = new_number[labels_of(batch)]
  indices = np.flatnonzero(labels >= 0)
  if not len(indices):
    raise ValueError(
      f'none of classes {classes} has an example in {metadata.name!r}.'
    )
  kept, metadata, changes = keep(batch, metadata, indices)
  kept = kept._replace(targets=jnp.asarray(labels[indices]))
  metadata = recount(kept, metadata._replace(num_classes=len(numbers)))
  return kept, metadata, changes
