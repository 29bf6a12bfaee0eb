"""What every source of data delivers: a Batch of examples and its Metadata."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from isjax.types import Batch

SPLITS = ('train', 'test')


class Metadata(NamedTuple):
  """The facts about one split of a data set that a run is built from.

  name:         the name that it was asked for by.
  split:        'train' or 'test'.
  num_examples: N >= 1.
  num_classes:  K, the same for both splits.
  input_shape:  of one example: (H, W, C) of an image, (F,) of features.
  max_value:    the pixel value that stands for 1.0, see `rescale`; None for
                features, which are floats already.
  class_counts: K numbers >= 0 that sum to N; a class that the split lacks
                counts 0.
  """

  name: str
  split: str
  num_examples: int
  num_classes: int
  input_shape: tuple[int, ...]
  max_value: int | None
  class_counts: tuple[int, ...]


def assemble(
  name: str,
  split: str,
  inputs: np.ndarray,
  labels: np.ndarray,
  *,
  num_classes: int,
  max_value: int | None = 255,
) -> tuple[Batch, Metadata]:
  """Puts the arrays of one split on the default device and describes them.

  Args:
    name: of the data set.
    split: 'train' or 'test'.
    inputs: images u8[N, H, W, C], kept in this type, a quarter of float32's
      memory; or features f32[N, F].
    labels: integers [N], each in [0, K).
    num_classes: K.
    max_value: the pixel value that stands for 1.0; None for features.

  Returns:
    Batch of the inputs and of targets i32[N], and its Metadata.

  Raises:
    ValueError: where a label is no class number, as in splits that are
      published without labels.
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
  )
  return Batch(jnp.asarray(inputs), jnp.asarray(labels)), metadata
