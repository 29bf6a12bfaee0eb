"""Record weights from a column of features, or from a function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from isjax.data.changes import Changes, none
from isjax.data.metadata import Metadata, checked_record_weights
from isjax.types import Batch, PyTree


def record_weights(
  batch: Batch,
  metadata: Metadata,
  *,
  seed: int,
  by: int | Callable[[PyTree, PyTree], jax.Array],
) -> tuple[Batch, Metadata, Changes]:
  """Gives each example its weight r_i in the objective sum_i r_i l_i / R.

  Args:
    batch: N examples, of any split. Record weights that it has are replaced.
    metadata: of the batch.
    seed: not used; nothing is drawn.
    by: a column of the inputs f32[N, F], a number in [0, F), which is no
      feature any more; or (inputs, targets) -> [N]. Weights must be finite
      and >= 0, some of them > 0.

  Returns:
    The weighted set, its Metadata, and Changes, none.

  Raises:
    ValueError: where there is no such column, or a weight is no weight.
  """
  del seed
  if callable(by):
    weights = by(batch.inputs, batch.targets)
  else:
    _expect_column(batch, by)
    weights = batch.inputs[:, by]
    inputs = jnp.delete(batch.inputs, by, axis=1)
    batch = batch._replace(inputs=inputs)
    metadata = metadata._replace(input_shape=inputs.shape[1:])
  weights = checked_record_weights(
    metadata.name, metadata.split, np.asarray(weights), metadata.num_examples
  )
  batch = batch._replace(record_weights=jnp.asarray(weights))
  return batch, metadata, none(batch)


def _expect_column(batch: Batch, by: int) -> None:
  shape, dtype = batch.inputs.shape, batch.inputs.dtype
  if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      'by names a column of features f32[N, F], or is a function; the inputs '
      f'are {dtype}{list(shape)}.'
    )
  if isinstance(by, bool) or not isinstance(by, int) or not 0 <= by < shape[1]:
    raise ValueError(
      f'by must be a column in [0, {shape[1]}) or a function; got {by!r}.'
    )
