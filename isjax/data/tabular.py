"""Sets of features, several in one .npz file, read without unpickling."""

import pathlib

import numpy as np

from isjax.data.metadata import Metadata, assemble
from isjax.data.npz import check_labels, check_range, errors_named
from isjax.data.splits import stratified_test
from isjax.types import Batch

_EXAMPLES_PER_TEST = 4


def load(
  path: pathlib.Path,
  member: str,
  split: str,
  record_weights: str | None = None,
) -> tuple[Batch, Metadata]:
  """Reads one split of one set of a file that holds NAME_x and NAME_y.

  The file has no split: `stratified_test` makes a quarter of each class the
  test split. A record that the set repeats may be in both.

  Args:
    path: of the file.
    member: NAME. NAME_x: f32[N, F], features, all finite; NAME_y: integers
      [N], classes numbered from 0.
    split: 'train' or 'test'.
    record_weights: W where NAME_W are the numbers [N] >= 0 that the examples
      are weighted by; None where they are not.

  Returns:
    Batch of inputs f32[N, F], as they are stored, targets i32[N] and record
    weights f32[N], if any, in the file's order, and its Metadata, whose
    max_value is None.

  Raises:
    ValueError: one that names the file, what came and the remedy, where the
      file is damaged or has no such set, or an array is no such array.
  """
  features, labels, *weights = _read(path, member, record_weights)
  _check(path, member, features, labels, weights)
  is_test = stratified_test(labels, len(labels) // _EXAMPLES_PER_TEST)
  chosen = is_test if split == 'test' else ~is_test
  return assemble(
    f'{path.stem}/{member}',
    split,
    features[chosen],
    labels[chosen],
    num_classes=1 + int(labels.max()),
    max_value=None,
    record_weights=weights[0][chosen] if weights else None,
  )


def _read(
  path: pathlib.Path, member: str, record_weights: str | None
) -> list[np.ndarray]:
  """Reads features, labels and, where they are asked for, record weights."""
  keys = [f'{member}_x', f'{member}_y']
  if record_weights is not None:
    keys.append(f'{member}_{record_weights}')
  with errors_named(path), np.load(path, allow_pickle=False) as arrays:
    names = list(arrays)
    if set(keys) <= set(names):
      return [arrays[key] for key in keys]
  members = [
    n[:-2] for n in names if n.endswith('_x') and f'{n[:-2]}_y' in names
  ]
  if member in members:
    raise ValueError(f'{path} holds no {keys[2]}; it holds {", ".join(names)}.')
  raise ValueError(
    f'{path} holds no set {member!r}; it holds {", ".join(members) or "none"}. '
    f'Write it with np.savez(path, {member}_x=..., {member}_y=...).'
  )


def _check(
  path: pathlib.Path,
  member: str,
  features: np.ndarray,
  labels: np.ndarray,
  weights: list[np.ndarray],
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
  if weights and weights[0].shape != labels.shape:
    raise ValueError(
      f'{where}: the record weights must be {len(labels)} numbers; got the '
      f'shape {weights[0].shape}.'
    )
