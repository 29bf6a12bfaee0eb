"""The 1,797 handwritten digits that scikit-learn ships: the default data."""

import numpy as np

from isjax.data.metadata import Metadata, assemble
from isjax.types import Batch

_NUM_TEST = 450
_NUM_CLASSES = 10
_MAX_VALUE = 16


def load(split: str) -> tuple[Batch, Metadata]:
  """Returns 'train' (1347) or 'test' (450) of the 8x8 digits, values 0..16.

  The split is stratified and the same everywhere and for ever: numpy has
  frozen the stream of `RandomState`. Within a split the images keep
  scikit-learn's order.

  Source: Alpaydin & Kaynak (1998), UCI, doi.org/10.24432/C50P49, test part.
  """
  from sklearn import datasets

  bunch = datasets.load_digits()
  is_test = _is_test(bunch.target)
  chosen = is_test if split == 'test' else ~is_test
  return assemble(
    'digits',
    split,
    bunch.images[chosen, ..., None].astype(np.uint8),
    bunch.target[chosen],
    num_classes=_NUM_CLASSES,
    max_value=_MAX_VALUE,
  )


def _is_test(labels: np.ndarray) -> np.ndarray:
  """Marks the images of the test split, bool[N]."""
  random = np.random.RandomState(0)
  is_test = np.zeros(len(labels), bool)
  for label, quota in enumerate(_quotas(np.bincount(labels))):
    members = random.permutation(np.flatnonzero(labels == label))
    is_test[members[:quota]] = True
  return is_test


def _quotas(counts: np.ndarray) -> np.ndarray:
  """Shares the test images out over the classes by largest remainders."""
  shares = _NUM_TEST * counts / counts.sum()
  quotas = shares.astype(int)
  by_remainder = np.argsort(quotas - shares, kind='stable')
  quotas[by_remainder[: _NUM_TEST - quotas.sum()]] += 1
  return quotas
