"""Sets of features, several in one .npz file, read without unpickling."""

import pathlib

import numpy as np

from isjax.data.metadata import Metadata, assemble
from isjax.data.npz import check_labels, check_range, errors_named
from isjax.data.splits import stratified_test
from isjax.types import Batch

_EXAMPLES_PER_TEST = 4


def load(path: pathlib.Path, member: str, split: str) -> tuple[Batch, Metadata]:
  """Reads one split of one set of a file that holds NAME_x and NAME_y.

  The file has no split: `stratified_test` makes a quarter of each class the
  test split. A record that the set repeats may be in both.

  Args:
    path: of the file.
    member: NAME. NAME_x: f32[N, F], features, all finite; NAME_y: integers
      [N], classes numbered from 0.
    split: 'train' or 'test'.

  Returns:
    Batch of inputs f32[N, F], as they are stored, and targets i32[N], in the
    file's order, and its Metadata, whose max_value is None.

  Raises:
    ValueError: one that names the file, what came and the remedy, where the
      file is damaged or has no such set, or an array is no such array.
  """
  features, labels = _read(path, member)
  _check(path, member, features, labels)
  is_test = stratified_test(labels, len(labels) // _EXAMPLES_PER_TEST)
  chosen = is_test if split == 'test' else ~is_test
  return assemble(
    f'{path.stem}/{member}',
    split,
    features[chosen],
    labels[chosen],
    num_classes=1 + int(labels.max()),
    max_value=None,
  )


def _read(path: pathlib.Path, member: str) -> tuple[np.ndarray, np.ndarray]:
  with errors_named(path), np.load(path, allow_pickle=False) as arrays:
    names = [
      key[:-2]
      for key in arrays
      if key.endswith('_x') and f'{key[:-2]}_y' in arrays
    ]
    if member in names:
      return arrays[f'{member}_x'], arrays[f'{member}_y']
  raise ValueError(
    f'{path} holds no set {member!r}; it holds {", ".join(names) or "none"}. '
    f'Write it with np.savez(path, {member}_x=..., {member}_y=...).'
  )


def _check(
  path: pathlib.Path, member: str, features: np.ndarray, labels: np.ndarray
) -> None:
  where = f'{path}: {member}'
  if features.dtype != np.float32 or features.ndim != 2:
    raise ValueError(
      f'{where}_x must be features, float32 [N, F]; got {features.dtype} '
      f'{features.shape}. Store x.astype(np.float32).reshape(len(x), -1).'
    )
  check_labels(f'{where}_y', labels)
  if len(features) != len(labels) or not len(labels):
    raise ValueError(
      f'{where}_x and {member}_y must be of one length of at least 1; got '
      f'{len(features)} and {len(labels)}.'
    )
  check_range(path, f'{member}_y', labels)
  if not np.isfinite(features).all():
    raise ValueError(
      f'{where}_x must be finite. Fill in what is missing, and store it again.'
    )
