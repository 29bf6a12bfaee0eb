"""Equal records merged into one that carries their number as its weight."""

import jax
import jax.numpy as jnp
import numpy as np

from isjax.types import Batch, num_examples


def merge_duplicates(batch: Batch) -> Batch:
  """Merges the records that are equal, and adds up their record weights.

  The objective sum_i r_i l_i / R stays what it was, for any model: equal
  records have one loss l, and r_1 l + r_2 l = (r_1 + r_2) l. What is left is a
  smaller set of unequal weights, for `record_weighted`.

  Runs eagerly, on the host.

  Args:
    batch: N records. Without record weights each counts as one.

  Returns:
    Batch of the distinct records in the order of their first occurrence, with
    record weights f32: added in float64 and rounded once. Records are equal
    where inputs and targets are so bit for bit: NaN equals itself, -0.0 does
    not equal 0.0.

  Raises:
    ValueError: where the arrays differ in their number of records.
  """
  size = num_examples(batch)
  rows = [
    np.ascontiguousarray(leaf).reshape(size, -1).view(np.uint8)
    for leaf in jax.tree.leaves((batch.inputs, batch.targets))
  ]
  rows = np.concatenate(rows, axis=1)
  records = rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
  _, first, group = np.unique(records, return_index=True, return_inverse=True)
  weights = np.bincount(group, batch.record_weights)
  order = np.argsort(first)
  inputs, targets = jax.tree.map(
    lambda leaf: leaf[first[order]], (batch.inputs, batch.targets)
  )
  return Batch(inputs, targets, jnp.asarray(weights[order], jnp.float32))
