"""Training sets that stay where they are, and are read row by row.

`isjax.stream` trains on them as `make_loop` does on a Batch.
"""

from collections.abc import Callable, Sequence
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from isjax.types import Batch, num_examples


class Source(NamedTuple):
  """A training set that is read by positions.

  num_examples: N.
  read:         (indices i64[m] in [0, N)) -> Batch of numpy arrays [m, ...],
                with equal types and shapes for equal m. Indices may repeat.
                Called from several threads at a time.
  """

  num_examples: int
  read: Callable[[np.ndarray], Batch]


def array_source(batch: Batch) -> Source:
  """Reads from arrays in the host's memory, or mapped into it.

  Rows of an `np.memmap` that have been read count as the process's memory
  until the system wants it back; `npy_source` holds none.

  Args:
    batch: pytrees of numpy arrays [N, ...].

  Raises:
    ValueError: where the arrays differ in N.
  """
  size = num_examples(batch)

  def read(indices: np.ndarray) -> Batch:
    return jax.tree.map(lambda rows: np.asarray(rows[indices]), batch)

  return Source(size, read)


def npy_source(folder: str | os.PathLike) -> Source:
  """Reads inputs.npy, targets.npy and, if there, record_weights.npy.

  Each is an array with the leading axis N, as `np.save` or, piece by piece,
  `np.lib.format.open_memmap` writes it. Rows are read with one system call
  each, in the order of the file, so that no more of it is held than was asked
  for. Nothing is unpickled.

  Args:
    folder: of the files.

  Raises:
    FileNotFoundError: where there is no inputs.npy or targets.npy.
    ValueError: where a file is no such array, or the arrays differ in N.
  """
  folder = pathlib.Path(folder)
  names = [
    name
    for name in Batch._fields
    if name != 'record_weights' or (folder / f'{name}.npy').exists()
  ]
  files = {name: _NpyFile(folder / f'{name}.npy') for name in names}
  lengths = {name: file.shape[0] for name, file in files.items()}
  if len(set(lengths.values())) != 1:
    raise ValueError(
      f'the arrays in {folder} must have one length; got {lengths}.'
    )

  def read(indices: np.ndarray) -> Batch:
    return Batch(**{name: file.rows(indices) for name, file in files.items()})

  return Source(lengths['inputs'], read)


class _NpyFile:
  """A .npy file of rows."""

  def __init__(self, path: pathlib.Path):
    try:
      mapped = np.lib.format.open_memmap(path, mode='r')
    except ValueError as error:
      raise ValueError(
        f'{path} holds no array of numbers: {error}. Write it with np.save.'
      ) from error
    if mapped.ndim == 0 or not mapped.flags.c_contiguous or not len(mapped):
      raise ValueError(
        f'{path} must hold an array [N, ...], N >= 1, in C order; got shape '
        f'{mapped.shape}. Save np.ascontiguousarray(array).'
      )
    self.shape = mapped.shape
    self._dtype = mapped.dtype
    self._offset = mapped.offset
    self._row_bytes = mapped.nbytes // len(mapped)
    self._path = path

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """Returns the rows at `indices` [m], in memory of their own."""
    found = np.empty((len(indices), self._row_bytes), np.uint8)
    with self._path.open('rb', buffering=0) as file:
      for place in np.argsort(indices, kind='stable'):
        start = self._offset + int(indices[place]) * self._row_bytes
        if os.preadv(file.fileno(), [found[place]], start) != self._row_bytes:
          raise OSError(
            f'{self._path} ends within row {indices[place]}: it has been cut '
            'short. Write it again.'
          )
    return found.view(self._dtype).reshape(len(indices), *self.shape[1:])


def record_source(
  records: Sequence[Any], to_example: Callable[[Any], tuple[Any, Any]]
) -> Source:
  """Reads from a sequence with random access, and decodes what it reads.

  Such are the data sources of tensorflow-datasets and grain, and the map-style
  data sets of torch.

  Args:
    records: with __len__ and __getitem__; `__getitems__`, which reads several
      at once, is used where there is one.
    to_example: (record) -> (inputs, target), pytrees of numpy arrays or numbers
      of equal shapes for all records.
  """
  several = getattr(records, '__getitems__', None)

  def read(indices: np.ndarray) -> Batch:
    places = [int(i) for i in indices]
    found = several(places) if several else [records[i] for i in places]
    examples = [to_example(record) for record in found]
    inputs, targets = jax.tree.map(lambda *rows: np.stack(rows), *examples)
    return Batch(inputs, targets)

  return Source(len(records), read)
