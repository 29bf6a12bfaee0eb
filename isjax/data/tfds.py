"""Prepared tensorflow-datasets, read without TensorFlow and without network.

Only sets that lie prepared as array_record are read: this format has random
access, and tensorflow-datasets decodes it with numpy alone.
"""

from collections.abc import Iterator, Sequence
import difflib
import os
import pathlib
import re
from typing import Any

import numpy as np

from isjax.data import columns
from isjax.data.metadata import Metadata, assemble
from isjax.data.source import Source, record_source
from isjax.types import Batch

# NAME[/CONFIG][:VERSION]; names with a namespace would reach for the network.
_NAME = re.compile(r'(\w+)(/[\w\-.]+)?(:\d+\.\d+\.\d+)?')
# Records are compressed in groups: one at a time is 25 times slower.
_ROWS_PER_READ = 4096


def root() -> pathlib.Path:
  """Returns the folder of prepared sets: TFDS_DATA_DIR or the usual one."""
  folder = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(folder).expanduser()


def known_names() -> list[str]:
  """Returns every name that can be asked for, prepared or not, sorted.

  Raises:
    ImportError: where tensorflow-datasets is not installed.
  """
  names = set(_library().list_builders(with_community_datasets=False))
  if root().is_dir():
    names |= {path.name for path in root().iterdir() if path.is_dir()}
  return sorted(names - {'downloads'})


def is_known(name: str) -> bool:
  """Tells whether NAME[/CONFIG][:VERSION] begins with a known name."""
  match = _NAME.fullmatch(name)
  return match is not None and match[1] in known_names()


def load(
  name: str, split: str, *, record_weights: str | None, max_length: int
) -> tuple[Batch, Metadata]:
  """Reads one split of a prepared set of examples with one class label each.

  Inputs are images of one shape; texts, the bytes of their UTF-8; or numbers,
  all those that the set names as its input, sorted by name and side by side,
  where a category of C classes takes C columns of zeros and a one.

  Examples are sorted by the feature 'id' where there is one, which gives
  CIFAR its official order; else they keep the order of preparation, which is
  a shuffle, the same everywhere.

  Args:
    name: NAME[/CONFIG][:VERSION], a known one.
    split: 'train' or 'test'.
    record_weights: the feature that the examples are weighted by, one number
      >= 0 each, FEATURE or FEATURE/MEMBER, which is then no input; None where
      they are not.
    max_length: T, the bytes of a text that are kept.

  Returns:
    Batch of inputs u8[N, H, W, C], u8[N, T] or f32[N, F], of targets i32[N]
    and record weights f32[N], if any, and its Metadata.

  Raises:
    FileNotFoundError: where the set is not prepared; it says how to.
    ValueError: where there is no such configuration, version or split, the
      set is none of those above, or its files are damaged.
    ImportError: where tensorflow-datasets, or a module that the set needs, is
      not installed.
  """
  builder = _prepared_builder(name, split)
  layout = _layout(name, builder, record_weights, max_length)
  arrays = _read(name, builder, split, layout)
  if not np.isfinite(arrays['inputs']).all():
    raise ValueError(
      f'the features of {name!r} must be finite. Fill in what is missing. '
      f'{_npz_remedy(name)}'
    )
  return assemble(
    name,
    split,
    **arrays,
    num_classes=layout.num_classes,
    max_value=layout.inputs.max_value,
    num_tokens=layout.inputs.num_tokens,
  )


def source(name: str, split: str, *, max_length: int = 512) -> Source:
  """Opens a prepared split whose rows are read as they are needed.

  The first read opens the files. Rows are numbered in the order of preparation,
  whatever ids the set has.

  Args:
    name: as in `load`.
    split: 'train' or 'test'.
    max_length: as in `load`.

  Returns:
    Source of inputs u8[m, H, W, C], u8[m, T] or f32[m, F] and targets i32[m],
    as `load` has them.

  Raises:
    FileNotFoundError, ValueError, ImportError: as `load`.
  """
  builder = _prepared_builder(name, split)
  layout = _layout(name, builder, None, max_length)

  def to_example(row):
    return layout.inputs.read(row), np.int32(row[layout.label])

  return record_source(_records(builder, split, layout.images), to_example)


def unknown(name: str) -> str:
  """Returns the line that says that a name is not known, and a close one."""
  close = difflib.get_close_matches(name, known_names(), n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  return f'no set of tensorflow-datasets is called {name!r}.{hint}'


def open_builder(name: str) -> Any:
  """Returns the library's builder of a known name, prepared or not.

  Raises:
    ValueError: where there is no such configuration or version, or the data
      is prepared in another format.
    ImportError: where a module that the set needs is not installed.
  """
  try:
    return _library().builder(
      name, data_dir=str(root()), file_format='array_record'
    )
  except (ValueError, AssertionError) as error:
    raise ValueError(
      f'tensorflow-datasets cannot read {name!r} in {root()} as array_record: '
      f'{str(error).splitlines()[0]} Mend the configuration or version, or, '
      'where the data was prepared in another format, let TFDS_DATA_DIR name a '
      f'new folder and prepare it there. {_npz_remedy(name)}'
    ) from error
  except ImportError as error:
    # What is prepared is read without the code that prepared it.
    builder = _builder_from_files(name)
    if builder is None:
      raise needs_module(name, error) from error
    return builder


def _builder_from_files(name: str) -> Any | None:
  """Returns the builder of a set that lies prepared, else None."""
  from tensorflow_datasets.core import read_only_builder

  dataset, config, _ = _NAME.fullmatch(name).groups()
  try:
    return read_only_builder.builder_from_files(
      dataset,
      config=config and config[1:],
      data_dir=str(root()),
      file_format='array_record',
    )
  except _library().core.DatasetNotFoundError:
    return None


def needs_module(name: str, error: ImportError) -> ImportError:
  """Returns the error, in one line, that says what a set needs installed."""
  found = re.search(r"No module named '(\w+)", str(error))
  module = found[1] if found else error.name or 'tensorflow'
  package = "'isjax[prepare]'" if module == 'tensorflow' else module
  return ImportError(
    f'{name!r} needs the module {module!r}: pip install {package}.'
  )


def is_prepared(builder: Any) -> bool:
  """Tells whether a set lies prepared as a whole."""
  # Without a folder the library would log a warning.
  return builder.data_path.exists() and builder.is_prepared()


def _prepared_builder(name: str, split: str) -> Any:
  builder = open_builder(name)
  if not is_prepared(builder):
    raise FileNotFoundError(
      f'{name!r} is a name of tensorflow-datasets, but not prepared: there is '
      f'no {builder.data_path}. Run `python -m isjax.data.prepare {name}` '
      f"(pip install 'isjax[prepare]'), once, with network access. "
      f'{_npz_remedy(name)}'
    )
  if split not in builder.info.splits:
    raise ValueError(
      f'{name!r} has no split {split!r}; it has '
      f'{", ".join(builder.info.splits)}. {_npz_remedy(name)}'
    )
  return builder


def _library() -> Any:
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ImportError(
      'every name that is neither embedded nor a .npz file is looked up in '
      'tensorflow-datasets, which cannot be imported: '
      f'pip install tensorflow-datasets ({error}).'
    ) from error
  return tensorflow_datasets


def _npz_remedy(name: str) -> str:
  stem = re.split('[/:]', name)[0]
  return (
    f'Or save it as {stem}.npz in the folder that ISJAX_DATA_DIR names: images '
    'as x_train, y_train, x_test and y_test, features as NAME_x and NAME_y.'
  )


def _layout(
  name: str, builder: Any, record_weights: str | None, max_length: int
) -> columns.Layout:
  try:
    return columns.layout(
      builder.info, record_weights=record_weights, max_length=max_length
    )
  except ValueError as error:
    raise ValueError(
      f'{name!r} cannot be loaded: {error}. {_npz_remedy(name)}'
    ) from error


def _read(
  name: str, builder: Any, split: str, layout: columns.Layout
) -> dict[str, np.ndarray | None]:
  """Reads the whole split as inputs, labels and record weights."""
  size = builder.info.splits[split].num_examples
  inputs = np.empty((size, *layout.inputs.shape), layout.inputs.dtype)
  labels = np.empty(size, np.int64)
  weights = None if layout.record_weight is None else np.empty(size)
  ids = []
  for i, row in enumerate(_rows(name, builder, split, layout.images)):
    inputs[i] = layout.inputs.read(row)
    labels[i] = row[layout.label]
    if weights is not None:
      weights[i] = layout.record_weight(row)
    if 'id' in row:
      ids.append(row['id'])
  order = np.argsort(np.array(ids), kind='stable') if ids else slice(None)
  return {
    'inputs': inputs[order],
    'labels': labels[order],
    'record_weights': None if weights is None else weights[order],
  }


def _rows(
  name: str, builder: Any, split: str, images: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
  """Reads the rows in their order, images as files."""
  try:
    records = _records(builder, split, images)
    for start in range(0, len(records), _ROWS_PER_READ):
      stop = min(start + _ROWS_PER_READ, len(records))
      yield from records.__getitems__(range(start, stop))
  except (RuntimeError, OSError) as error:
    raise ValueError(
      f'the files of {name!r} in {builder.data_path} are damaged: {error}. '
      f'Remove this folder and run `python -m isjax.data.prepare {name}`.'
    ) from error


def _records(
  builder: Any, split: str, images: tuple[str, ...]
) -> Sequence[Any]:
  """The rows of a split, with random access, images as files."""
  skip = _library().decode.SkipDecoding()
  return builder.as_data_source(
    split=split, decoders=dict.fromkeys(images, skip)
  )
