"""The 1,797 handwritten digits that scikit-learn ships: the default data."""

import numpy as np

from isjax.data.metadata import Metadata, assemble
from isjax.data.splits import stratified_test
from isjax.types import Batch

_NUM_TEST = 450
_NUM_CLASSES = 10
_MAX_VALUE = 16


def load(split: str) -> tuple[Batch, Metadata]:
  """Returns 'train' (1347) or 'test' (450) of the 8x8 digits, values 0..16.

  The split is that of `stratified_test`; within it the images keep
  scikit-learn's order.

  Source: Alpaydin & Kaynak (1998), UCI, doi.org/10.24432/C50P49, test part.
  """
  from sklearn import datasets

  bunch = datasets.load_digits()
  is_test = stratified_test(bunch.target, _NUM_TEST)
  chosen = is_test if split == 'test' else ~is_test
  return assemble(
    'digits',
    split,
    bunch.images[chosen, ..., None].astype(np.uint8),
    bunch.target[chosen],
    num_classes=_NUM_CLASSES,
    max_value=_MAX_VALUE,
  )
