"""Imbalanced subsets of a balanced set, as the benchmarks make them."""

from collections.abc import Sequence

import numpy as np

from isjax import _validate
from isjax.data.changes import Changes, check_seed, keep, labels_of
from isjax.data.metadata import Metadata
from isjax.types import Batch


def long_tail(
  batch: Batch, metadata: Metadata, *, seed: int, factor: float
) -> tuple[Batch, Metadata, Changes]:
  """Keeps int(n_max factor^(i / (K - 1))) examples of class i.

  n_max is the smallest class's size, so that the profile holds exactly. The
  examples are those of the benchmark's usual code under
  `numpy.random.seed(seed)`: of each class in turn, the first ones of a
  shuffle. They stay in that order, class by class.

  Args:
    batch: N examples.
    metadata: of the batch.
    seed: in [0, 2^32). Published accuracies vary with it by points.
    factor: of the rarest class to the most frequent one, in (0, 1].

  Returns:
    The subset, its Metadata, and Changes.

  Raises:
    ValueError: where an argument is out of range, or a class would be left
      without an example.

  Source: Cui et al. (2019), arXiv:1901.05555, section 5.1; the subset that of
  Cao et al. (2019), arXiv:1906.07413.
  """
  num_classes, n_max = metadata.num_classes, min(metadata.class_counts)
  last = max(num_classes - 1, 1)
  _expect_factor(factor)
  sizes = [int(n_max * factor ** (i / last)) for i in range(num_classes)]
  return _first_of_each(batch, metadata, sizes, seed)


def step_imbalance(
  batch: Batch, metadata: Metadata, *, seed: int, factor: float
) -> tuple[Batch, Metadata, Changes]:
  """Keeps n_max examples of the first K // 2 classes, int(n_max factor) of the
  others.

  n_max, the choice and the order of the examples, arguments and errors are
  those of `long_tail`.

  Source: Buda et al. (2018), arXiv:1710.05381; the subset that of Cao et al.
  (2019), arXiv:1906.07413.
  """
  num_classes, n_max = metadata.num_classes, min(metadata.class_counts)
  _expect_factor(factor)
  num_frequent = num_classes // 2
  num_rare = num_classes - num_frequent
  sizes = [n_max] * num_frequent + [int(n_max * factor)] * num_rare
  return _first_of_each(batch, metadata, sizes, seed)


def _expect_factor(factor: float) -> None:
  _validate.positive(factor=factor)
  _validate.fractions(factor=factor)


def _first_of_each(
  batch: Batch, metadata: Metadata, sizes: Sequence[int], seed: int
) -> tuple[Batch, Metadata, Changes]:
  """Shuffles the places of each class and keeps the first ones."""
  if 0 in sizes:
    raise ValueError(
      f'factor leaves class {sizes.index(0)} of {metadata.name!r} without an '
      f'example: the smallest class has {min(metadata.class_counts)}. Raise it.'
    )
  check_seed(seed)
  random = np.random.RandomState(seed)
  labels = labels_of(batch)
  kept = []
  for label, size in enumerate(sizes):
    members = np.flatnonzero(labels == label)
    random.shuffle(members)
    kept.append(members[:size])
  return keep(batch, metadata, np.concatenate(kept))
