"""Stratified splits: a share of the examples in which every class has its own.

numpy has frozen the stream of `RandomState`: a split is the same everywhere
and for ever.
"""

import numpy as np

from isjax import _validate
from isjax.data.changes import Changes, keep, labels_of, random_of
from isjax.data.metadata import Metadata
from isjax.types import Batch


def stratified(
  labels: np.ndarray, num_marked: int, random: np.random.RandomState
) -> np.ndarray:
  """Marks examples, so many of each class as is its share.

  Args:
    labels: integers [N] in [0, K).
    num_marked: examples to mark, in [0, N].
    random: where the examples within a class are drawn from.

  Returns:
    bool[N]; each class has its share of `num_marked`, to within one example.
  """
  marked = np.zeros(len(labels), bool)
  for label, quota in enumerate(_quotas(np.bincount(labels), num_marked)):
    members = random.permutation(np.flatnonzero(labels == label))
    marked[members[:quota]] = True
  return marked


def stratified_test(labels: np.ndarray, num_test: int) -> np.ndarray:
  """Marks the test split of a set that comes without one.

  Args:
    labels: integers [N] in [0, K).
    num_test: examples to mark, in [0, N].

  Returns:
    bool[N]; each class has its share of `num_test`, to within one example.
  """
  return stratified(labels, num_test, np.random.RandomState(0))


def hold_out(
  batch: Batch,
  metadata: Metadata,
  *,
  seed: int,
  share: float,
  part: str = 'train',
) -> tuple[Batch, Metadata, Changes]:
  """Keeps one of the two parts that a training set is split into.

  The parts of one seed and share are disjoint and make up the whole; in both,
  the examples keep their order.

  Args:
    batch: N examples.
    metadata: of the batch.
    seed: in [0, 2^32).
    share: of the examples that are held out, in (0, 1): round(share N) of
      them, of each class its share to within one example.
    part: 'train', what is left, or 'validation', what is held out.

  Returns:
    The part, its Metadata, whose split is called `part`, and Changes.

  Raises:
    ValueError: where an argument is out of range, or a part would be empty.
  """
  _validate.one_of(('train', 'validation'), part=part)
  _validate.fractions(share=share)
  labels = labels_of(batch)
  num_held_out = round(share * len(labels))
  if not 0 < num_held_out < len(labels):
    raise ValueError(
      f'share must leave both parts an example; got {share} of {len(labels)}.'
    )
  random = random_of(seed, 'hold_out')
  held_out = stratified(labels, num_held_out, random)
  chosen = held_out if part == 'validation' else ~held_out
  part_metadata = metadata._replace(split=part)
  return keep(batch, part_metadata, np.flatnonzero(chosen))


def _quotas(counts: np.ndarray, num_marked: int) -> np.ndarray:
  """Shares the marks out over the classes by largest remainders."""
  shares = num_marked * counts / max(counts.sum(), 1)
  quotas = shares.astype(int)
  by_remainder = np.argsort(quotas - shares, kind='stable')
  quotas[by_remainder[: num_marked - quotas.sum()]] += 1
  return quotas
