"""The transformations of a set by name, and a sequence of them."""

from collections.abc import Mapping
import inspect
from typing import Any

from isjax import _validate
from isjax.data import changes
from isjax.data.changes import Changes
from isjax.data.classes import class_subset
from isjax.data.imbalance import long_tail, step_imbalance
from isjax.data.metadata import Metadata
from isjax.data.noise import asymmetric_noise, human_noise, symmetric_noise
from isjax.data.pixels import average_blocks, permute_pixels
from isjax.data.splits import hold_out
from isjax.data.weights import record_weights
from isjax.types import Batch

# name -> (batch, metadata, *, seed, **options) -> (Batch, Metadata, Changes).
TRANSFORMATIONS = {
  'asymmetric_noise': asymmetric_noise,
  'average_blocks': average_blocks,
  'class_subset': class_subset,
  'hold_out': hold_out,
  'human_noise': human_noise,
  'long_tail': long_tail,
  'permute_pixels': permute_pixels,
  'record_weights': record_weights,
  'step_imbalance': step_imbalance,
  'symmetric_noise': symmetric_noise,
}
# Those that change the task; the others change the training set alone.
_OF_EVERY_SPLIT = (
  'average_blocks',
  'class_subset',
  'permute_pixels',
  'record_weights',
)


def transform(
  batch: Batch,
  metadata: Metadata,
  transformations: Mapping[str, Mapping[str, Any]],
  *,
  seed: int,
) -> tuple[Batch, Metadata, Changes]:
  """Makes the transformations one after the other, in the order given.

  The same transformations describe every split of a set. Where the split is
  not, or is no longer, 'train', only those that change the task are made:
  'average_blocks', 'class_subset', 'permute_pixels' and 'record_weights'. Noise
  and imbalance belong to training.

  Args:
    batch: N examples.
    metadata: of the batch.
    transformations: name -> options, such as {'long_tail': {'factor': 0.01},
      'symmetric_noise': {'share': 0.4}}.
    seed: of each one that has no option 'seed', in [0, 2^32). No two of them
      draw from the same stream.

  Returns:
    The transformed set, its Metadata, and the Changes of all.

  Raises:
    ValueError: for a name that there is not, or a bad option.
  """
  total = changes.none(batch)
  for name, options in transformations.items():
    _validate.one_of(TRANSFORMATIONS, transformation=name)
    if metadata.split != 'train' and name not in _OF_EVERY_SPLIT:
      continue
    options = {'seed': seed, **options}
    try:
      inspect.signature(TRANSFORMATIONS[name]).bind(batch, metadata, **options)
    except TypeError as error:
      raise ValueError(f'{name}: {error}.') from error
    batch, metadata, made = TRANSFORMATIONS[name](batch, metadata, **options)
    total = changes.compose(total, made)
  return batch, metadata, total
