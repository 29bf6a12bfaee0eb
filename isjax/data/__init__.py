"""Named data sets as Batches of arrays on the default device."""

from isjax.data import augment
from isjax.data.changes import Changes
from isjax.data.classes import class_subset
from isjax.data.duplicates import merge_duplicates
from isjax.data.imbalance import long_tail, step_imbalance
from isjax.data.metadata import Metadata
from isjax.data.named import EMBEDDED, load
from isjax.data.noise import (
  CLASS_MAPS,
  asymmetric_noise,
  human_noise,
  symmetric_noise,
)
from isjax.data.pixels import average_blocks, permute_pixels
from isjax.data.preprocess import rescale, standardise
from isjax.data.source import (
  Source,
  array_source,
  npy_source,
  record_source,
)
from isjax.data.splits import hold_out
from isjax.data.tfds import source as tfds_source
from isjax.data.transformations import TRANSFORMATIONS, transform
from isjax.data.weights import record_weights

__all__ = [
  'CLASS_MAPS',
  'EMBEDDED',
  'TRANSFORMATIONS',
  'Changes',
  'Metadata',
  'Source',
  'array_source',
  'asymmetric_noise',
  'augment',
  'average_blocks',
  'class_subset',
  'hold_out',
  'human_noise',
  'load',
  'long_tail',
  'merge_duplicates',
  'npy_source',
  'permute_pixels',
  'record_source',
  'record_weights',
  'rescale',
  'standardise',
  'step_imbalance',
  'symmetric_noise',
  'tfds_source',
  'transform',
]
