"""The stratified split of sets that come without one."""

import numpy as np


def stratified_test(labels: np.ndarray, num_test: int) -> np.ndarray:
  """Marks a test split in which every class has its share.

  The split is the same everywhere and for ever: numpy has frozen the stream of
  `RandomState`.

  Args:
    labels: integers [N] in [0, K).
    num_test: examples to mark, in [0, N].

  Returns:
    bool[N]; each class has its share of `num_test`, to within one example.
  """
  random = np.random.RandomState(0)
  is_test = np.zeros(len(labels), bool)
  for label, quota in enumerate(_quotas(np.bincount(labels), num_test)):
    members = random.permutation(np.flatnonzero(labels == label))
    is_test[members[:quota]] = True
  return is_test


def _quotas(counts: np.ndarray, num_test: int) -> np.ndarray:
  """Shares the test examples out over the classes by largest remainders."""
  shares = num_test * counts / counts.sum()
  quotas = shares.astype(int)
  by_remainder = np.argsort(quotas - shares, kind='stable')
  quotas[by_remainder[: num_test - quotas.sum()]] += 1
  return quotas
