"""What every source of data delivers: a Batch of examples and its Metadata."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from isjax.alias import validate_weights
from isjax.types import Batch

SPLITS = ('train', 'test')


class Metadata(NamedTuple):
  """The facts about one split of a data set that a run is built from.

  name:         the name that it was asked for by.
  split:        'train' or 'test'; 'validation' for what `hold_out` held out.
  num_examples: N >= 1.
  num_classes:  K, the same for all splits.
  input_shape:  of one example: (H, W, C) of an image, (F,) of features, (T,)
                of a text.
  max_value:    the pixel value that stands for 1.0, see `rescale`; None for
                features, which are floats already, and texts.
  class_counts: K numbers >= 0 that sum to N; a class that the split lacks
                counts 0.
  num_tokens:   of a text, whose tokens are in [0, num_tokens); else None.
  """

  name: str
  split: str
  num_examples: int
  num_classes: int
  input_shape: tuple[int, ...]
  max_value: int | None
  class_counts: tuple[int, ...]
  num_tokens: int | None = None


def assemble(
  name: str,
  split: str,
  inputs: np.ndarray,
  labels: np.ndarray,
  *,
  num_classes: int,
  max_value: int | None = 255,
  num_tokens: int | None = None,
  record_weights: np.ndarray | None = None,
) -> tuple[Batch, Metadata]:
  """Puts the arrays of one split on the default device and describes them.

  Args:
    name: of the data set.
    split: 'train' or 'test'.
    inputs: images u8[N, H, W, C], kept in this type, a quarter of float32's
      memory; features f32[N, F]; or texts u8[N, T].
    labels: integers [N], each in [0, K).
    num_classes: K.
    max_value: the pixel value that stands for 1.0; None for others.
    num_tokens: of texts; None for others.
    record_weights: numbers [N]; None where all examples count the same.

  Returns:
    Batch of the inputs, of targets i32[N] and of record weights f32[N] where
    there are any, and its Metadata.

  Raises:
    ValueError: where a label is no class number, as in splits that are
      published without labels; for what `checked_record_weights` refuses.
  """
  low, high = int(labels.min()), int(labels.max())
  if low < 0 or high >= num_classes:
    raise ValueError(
      f'the {split} labels of {name!r} must lie in [0, {num_classes}); got '
      f'{low if low < 0 else high}.'
    )
  labels = labels.astype(np.int32)
  counts = np.bincount(labels, minlength=num_classes)
  metadata = Metadata(
    name=name,
    split=split,
    num_examples=len(labels),
    num_classes=num_classes,
    input_shape=inputs.shape[1:],
    max_value=max_value,
    class_counts=tuple(counts.tolist()),
    num_tokens=num_tokens,
  )
  if record_weights is not None:
    record_weights = jnp.asarray(
      checked_record_weights(name, split, record_weights, len(labels))
    )
  return (
    Batch(jnp.asarray(inputs), jnp.asarray(labels), record_weights),
    metadata,
  )


def checked_record_weights(
  name: str, split: str, weights: np.ndarray, num_examples: int
) -> np.ndarray:
  """Returns the record weights as f32[N].

  Raises:
    ValueError: that names the set, unless they are numbers [N], finite, >= 0
      and not all 0.
  """
  where = f'the record weights of the {split} split of {name!r}'
  is_number = np.issubdtype(weights.dtype, np.number)
  if weights.shape != (num_examples,) or not is_number:
    raise ValueError(
      f'{where} must be {num_examples} numbers; got {weights.dtype} of the '
      f'shape {weights.shape}.'
    )
  weights = weights.astype(np.float32)
  try:
    validate_weights(weights)
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  return weights
