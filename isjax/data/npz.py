"""Data sets that the user keeps as NAME.npz, read without unpickling."""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from isjax.data.metadata import SPLITS, Metadata, assemble
from isjax.types import Batch

KEYS = ('x_train', 'y_train', 'x_test', 'y_test')

# Labels beyond are no class numbers, and counting them would fill the memory.
_MAX_CLASSES = 2**20
_DAMAGED = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)
_HEADER_READERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class _Header(NamedTuple):
  """Shape and type of a stored array, known before its data is read."""

  shape: tuple[int, ...]
  dtype: np.dtype


def data_folder(
  data_dir: str | os.PathLike | None = None,
) -> pathlib.Path | None:
  """Returns the folder of .npz files: data_dir, else ISJAX_DATA_DIR, or None.

  Raises:
    FileNotFoundError: where there is no such folder.
  """
  given = data_dir or os.environ.get('ISJAX_DATA_DIR')
  if not given:
    return None
  folder = pathlib.Path(given).expanduser()
  if not folder.is_dir():
    source = 'data_dir' if data_dir else 'ISJAX_DATA_DIR'
    raise FileNotFoundError(
      f'{source} must name a folder of .npz files; got {str(folder)!r}.'
    )
  return folder


def load(
  path: pathlib.Path, split: str, record_weights: str | None = None
) -> tuple[Batch, Metadata]:
  """Reads one split of a file with x_train, y_train, x_test and y_test.

  Args:
    path: of NAME.npz. x_*: u8[N, H, W, C], or u8[N, H, W], which gets a
      channel axis; y_*: integers [N], classes numbered from 0. K is one more
      than the largest label of both splits.
    split: 'train' or 'test'.
    record_weights: W where W_train and W_test are the numbers [N] >= 0 that
      the examples are weighted by; None where they are not.

  Returns:
    Batch of inputs u8[N, H, W, C], targets i32[N] and record weights f32[N],
    if any, in the file's order, and its Metadata.

  Raises:
    ValueError: one that names the file, what came and the remedy, where the
      file is damaged or misses a key, or an array is no such array.
  """
  keys = ['y_train', 'y_test', f'x_{split}']
  if record_weights is not None:
    keys.append(f'{record_weights}_{split}')
  _check_headers(path, _read_headers(path, keys))
  y_train, y_test, images, *weights = _read(path, keys)
  labels = {'train': y_train, 'test': y_test}
  for name in SPLITS:
    check_range(path, f'y_{name}', labels[name])
  return assemble(
    path.stem,
    split,
    images if images.ndim == 4 else images[..., None],
    labels[split],
    num_classes=1 + int(max(y_train.max(), y_test.max())),
    record_weights=weights[0] if weights else None,
  )


def _read_headers(
  path: pathlib.Path, keys: Sequence[str]
) -> dict[str, _Header]:
  """Reads shape and type of the arrays, and none of their data."""
  needed = dict.fromkeys([*KEYS, *keys])
  with errors_named(path), zipfile.ZipFile(path) as archive:
    members = map(pathlib.PurePath, archive.namelist())
    names = [member.stem for member in members if member.suffix == '.npy']
    found = [key for key in needed if key in names]
    headers = {key: _read_header(archive, key) for key in found}
  missing = [key for key in needed if key not in found]
  if missing:
    raise ValueError(
      f'{path} lacks {", ".join(missing)}; it holds {", ".join(names)}. Write '
      'it with np.savez(path, x_train=..., y_train=..., x_test=..., '
      'y_test=...).'
    )
  return headers


def _read_header(archive: zipfile.ZipFile, key: str) -> _Header:
  with archive.open(f'{key}.npy') as file:
    version = np.lib.format.read_magic(file)
    if version not in _HEADER_READERS:
      raise ValueError(f'{key} is stored in the unknown format {version}')
    shape, _, dtype = _HEADER_READERS[version](file)
  return _Header(shape, dtype)


def _check_headers(path: pathlib.Path, headers: dict[str, _Header]) -> None:
  for split in SPLITS:
    images, labels = headers[f'x_{split}'], headers[f'y_{split}']
    _check_images(f'{path}: x_{split}', images)
    check_labels(f'{path}: y_{split}', labels)
    if images.shape[0] != labels.shape[0] or not labels.shape[0]:
      raise ValueError(
        f'{path}: x_{split} and y_{split} must be of one length of at least '
        f'1; got {images.shape[0]} and {labels.shape[0]}.'
      )
  shapes = [headers[f'x_{split}'].shape[1:] for split in SPLITS]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'{path}: the images of x_train and x_test must be of one shape; got '
      f'{shapes[0]} and {shapes[1]}.'
    )


def _check_images(where: str, header: _Header) -> None:
  if header.dtype != np.uint8:
    raise ValueError(
      f'{where} must be uint8; got {header.dtype}. Quantise it: '
      'np.round(255 * x).astype(np.uint8) for x in [0, 1].'
    )
  if len(header.shape) not in (3, 4):
    raise ValueError(
      f'{where} must be images [N, H, W] or [N, H, W, C]; got the shape '
      f'{header.shape}. Reshape it.'
    )


def check_labels(where: str, header: _Header | np.ndarray) -> None:
  """Raises a ValueError that begins with `where` unless integers [N] came."""
  if not np.issubdtype(header.dtype, np.integer):
    raise ValueError(
      f'{where} must be integers; got {header.dtype}. Number the classes: '
      'np.unique(y, return_inverse=True)[1].'
    )
  if len(header.shape) != 1:
    raise ValueError(
      f'{where} must be class numbers [N]; got the shape {header.shape}. '
      'Where it is one-hot, store y.argmax(-1).'
    )


def check_range(path: pathlib.Path, key: str, labels: np.ndarray) -> None:
  """Raises ValueError unless the labels [N], N >= 1, are class numbers."""
  low, high = int(labels.min()), int(labels.max())
  if low < 0 or high >= _MAX_CLASSES:
    raise ValueError(
      f'{path}: {key} must number the classes from 0; got labels from {low} '
      f'to {high}. Number them: np.unique(y, return_inverse=True)[1].'
    )


def _read(path: pathlib.Path, keys: Sequence[str]) -> list[np.ndarray]:
  with errors_named(path), np.load(path, allow_pickle=False) as arrays:
    return [arrays[key] for key in keys]


@contextlib.contextmanager
def errors_named(path: pathlib.Path) -> Iterator[None]:
  """Turns whatever a damaged file raises into a ValueError with its name."""
  try:
    yield
  except _DAMAGED as error:
    raise ValueError(
      f'{path} is damaged or no .npz file: {error}. Write it again with '
      'np.savez.'
    ) from error
