"""Named data sets as Batches of arrays on the default device."""

from isjax.data.duplicates import merge_duplicates
from isjax.data.metadata import Metadata
from isjax.data.named import EMBEDDED, load
from isjax.data.preprocess import rescale, standardise

__all__ = [
  'EMBEDDED',
  'Metadata',
  'load',
  'merge_duplicates',
  'rescale',
  'standardise',
]
