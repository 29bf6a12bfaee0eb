"""Label noise: exactly as many labels are wrong as is said."""

from collections.abc import Mapping
import os
import pathlib

import numpy as np

from isjax import _validate
from isjax.data.changes import Changes, labels_of, random_of, relabel
from isjax.data.metadata import Metadata
from isjax.data.npz import check_labels, data_folder, errors_named
from isjax.data.splits import stratified
from isjax.types import Batch

# Fine class -> superclass, in the order of the fine classes' numbers.
_CIFAR100_SUPERCLASSES = (
  (4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11)
  + (6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5)
  + (5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17)
  + (10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13)
  + (16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13)
)


def _next_in_superclass() -> dict[int, int]:
  members: dict[int, list[int]] = {}
  for fine, coarse in enumerate(_CIFAR100_SUPERCLASSES):
    members.setdefault(coarse, []).append(fine)
  return {
    fine: group[(i + 1) % len(group)]
    for group in members.values()
    for i, fine in enumerate(group)
  }


# The usual maps by name: class -> the class that it is mistaken for.
CLASS_MAPS = {
  # truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog
  'cifar10': {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
  # the next class of the same superclass, around in a circle
  'cifar100': _next_in_superclass(),
}


def symmetric_noise(
  batch: Batch, metadata: Metadata, *, seed: int, share: float
) -> tuple[Batch, Metadata, Changes]:
  """Gives a share of the examples another label, each one equally likely.

  A flipped label is always wrong: of a label that is redrawn among all K
  classes, as some papers do, 1 / K stay right, and `share` is (K - 1) / K of
  theirs.

  Args:
    batch: N examples.
    metadata: of the batch, K >= 2 classes.
    seed: in [0, 2^32).
    share: in [0, 1]; round(share N) labels are flipped, of each class its
      share to within one example.

  Returns:
    The set with noisy labels, its Metadata, and Changes with what was flipped.

  Raises:
    ValueError: where an argument is out of range.
  """
  _validate.fractions(share=share)
  num_classes = metadata.num_classes
  if num_classes < 2:
    raise ValueError(f'num_classes must be at least 2; got {num_classes}.')
  random = random_of(seed, 'symmetric_noise')
  labels = labels_of(batch)
  flipped = stratified(labels, round(share * len(labels)), random)
  steps = random.randint(1, num_classes, len(labels))
  wrong = (labels + steps) % num_classes
  return relabel(batch, metadata, np.where(flipped, wrong, labels))


def asymmetric_noise(
  batch: Batch,
  metadata: Metadata,
  *,
  seed: int,
  share: float,
  class_map: str | Mapping[int, int] = 'next',
) -> tuple[Batch, Metadata, Changes]:
  """Mistakes a share of the examples for a class that is like their own.

  Args:
    batch: N examples.
    metadata: of the batch.
    seed: in [0, 2^32).
    share: in [0, 1], of the examples whose class is mistaken for another:
      round(share n) of these n, of each class its share to within one example.
    class_map: class -> the class that it is mistaken for, where that differs;
      or a name: 'next', the next class, around in a circle, or one of
      CLASS_MAPS.

  Returns:
    The set with noisy labels, its Metadata, and Changes with what was flipped.

  Raises:
    ValueError: where an argument is out of range.

  Source: Patrini et al. (2017), arXiv:1609.03683, section 5, for the maps.
  """
  _validate.fractions(share=share)
  mistaken = _as_array(class_map, metadata.num_classes)
  random = random_of(seed, 'asymmetric_noise')
  labels = labels_of(batch)
  movable = np.flatnonzero(mistaken[labels] != labels)
  num_flipped = round(share * len(movable))
  flipped = movable[stratified(labels[movable], num_flipped, random)]
  noisy = labels.copy()
  noisy[flipped] = mistaken[labels[flipped]]
  return relabel(batch, metadata, noisy)


def human_noise(
  batch: Batch,
  metadata: Metadata,
  *,
  seed: int,
  file: str | os.PathLike,
  column: str,
) -> tuple[Batch, Metadata, Changes]:
  """Takes the labels that people gave, from a file of the user's.

  Args:
    batch: the N examples that were labelled, in the order of the file.
    metadata: of the batch.
    seed: not used; nothing is drawn.
    file: an .npz file, in the folder ISJAX_DATA_DIR unless the path is
      absolute. It has the arrays of CIFAR-10N or CIFAR-100N, integers [N]:
      `column`, and 'clean_label', which must be the labels of the batch; where
      it is missing nothing tells whether the order is the same.
    column: 'aggre_label', 'worse_label', 'random_label1' or another one.

  Returns:
    The set with noisy labels, its Metadata, and Changes with what was flipped.

  Raises:
    FileNotFoundError: where there is no such file.
    ValueError: that names the file, where it is damaged, has no such column,
      or holds the labels of other examples.

  Source: Wei et al. (2022), arXiv:2110.12088.
  """
  del seed
  path = (data_folder() or pathlib.Path()) / pathlib.Path(file).expanduser()
  if not path.is_file():
    raise FileNotFoundError(f'there is no file of labels {path}.')
  labels = labels_of(batch)
  with errors_named(path), np.load(path, allow_pickle=False) as arrays:
    names = ', '.join(arrays)
    noisy = arrays.get(column)
    clean = arrays.get('clean_label', labels)
  if noisy is None:
    raise ValueError(f'{path} has no column {column!r}; it has {names}.')
  check_labels(f'{path}: {column}', noisy)
  if noisy.shape != labels.shape or not np.array_equal(clean, labels):
    raise ValueError(
      f'{path} must label the {len(labels)} examples given, in their order; '
      f'its clean labels are others, or it has {len(noisy)}. Take the labels '
      'of the whole training set, before any subset of it.'
    )
  if noisy.min() < 0 or noisy.max() >= metadata.num_classes:
    raise ValueError(
      f'{path}: {column} must lie in [0, {metadata.num_classes}); got '
      f'{noisy.min()} to {noisy.max()}.'
    )
  return relabel(batch, metadata, noisy)


def _as_array(
  class_map: str | Mapping[int, int], num_classes: int
) -> np.ndarray:
  """The map as integers [K]; a class that it does not name stays."""
  own = np.arange(num_classes)
  if class_map == 'next':
    return (own + 1) % num_classes
  if isinstance(class_map, str):
    _validate.one_of(('next', *CLASS_MAPS), class_map=class_map)
    class_map = CLASS_MAPS[class_map]
  for key, value in class_map.items():
    # The keys of a config that was saved as JSON are strings.
    source, wrong = int(key), int(value)
    if not (0 <= source < num_classes and 0 <= wrong < num_classes):
      raise ValueError(
        f'class_map must map numbers in [0, {num_classes}); got '
        f'{source} -> {wrong}.'
      )
    own[source] = wrong
  return own
