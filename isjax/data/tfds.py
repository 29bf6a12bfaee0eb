"""Prepared tensorflow-datasets, read without TensorFlow and without network.

Only sets that lie prepared as array_record are read: this format has random
access, and tensorflow-datasets decodes it with numpy alone.
"""

import io
import os
import pathlib
import re
from typing import Any

import numpy as np

from isjax.data.metadata import Metadata, assemble
from isjax.types import Batch

# NAME[/CONFIG][:VERSION]; names with a namespace would reach for the network.
_NAME = re.compile(r'(\w+)(/[\w\-.]+)?(:\d+\.\d+\.\d+)?')
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
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


def load(name: str, split: str) -> tuple[Batch, Metadata]:
  """Reads one split of a prepared set of images with one label each.

  Examples are sorted by the feature 'id' where there is one, which gives
  CIFAR its official order; else they keep the order of preparation, which is
  a shuffle, the same everywhere.

  Args:
    name: NAME[/CONFIG][:VERSION], a known one.
    split: 'train' or 'test'.

  Returns:
    Batch of inputs u8[N, H, W, C] and targets i32[N], and its Metadata.

  Raises:
    FileNotFoundError: where the set is not prepared; it says how to.
    ValueError: where there is no such configuration, version or split, or the
      set is not one of equally large images with a class label.
    ImportError: where tensorflow-datasets is not installed.
  """
  builder = _prepared_builder(name)
  shape, num_classes = _image_shape_and_classes(name, builder.info.features)
  if split not in builder.info.splits:
    raise ValueError(
      f'{name!r} has no split {split!r}; it has '
      f'{", ".join(builder.info.splits)}. {_npz_remedy(name)}'
    )
  skip = _library().decode.SkipDecoding()
  source = builder.as_data_source(split=split, decoders={'image': skip})
  images, labels = _read(source, shape)
  return assemble(name, split, images, labels, num_classes=num_classes)


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


def _prepared_builder(name: str) -> Any:
  try:
    builder = _library().builder(
      name, data_dir=str(root()), file_format='array_record'
    )
  except (ValueError, AssertionError) as error:
    raise ValueError(
      f'tensorflow-datasets cannot read {name!r} in {root()} as array_record: '
      f'{str(error).splitlines()[0]}\n'
      'Mend the configuration or version, or, where the data was prepared in '
      'another format, let TFDS_DATA_DIR name a new folder and prepare it '
      f'there. {_npz_remedy(name)}'
    ) from error
  # Without a folder is_prepared would log a warning besides the error.
  if not (builder.data_path.exists() and builder.is_prepared()):
    raise FileNotFoundError(
      f'{name!r} is a name of tensorflow-datasets, but not prepared: there is '
      f'no {builder.data_path}. {_prepare_remedy(name)}'
    )
  return builder


def _prepare_remedy(name: str) -> str:
  return (
    'Prepare it once on a machine with network access:\n'
    "  pip install 'isjax[prepare]'\n"
    '  python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{root()}', "
    "file_format='array_record').download_and_prepare()\"\n"
    f'{_npz_remedy(name)}'
  )


def _npz_remedy(name: str) -> str:
  stem = re.split('[/:]', name)[0]
  return (
    f'Or save it as {stem}.npz with x_train, y_train, x_test and y_test in '
    'the folder that ISJAX_DATA_DIR names.'
  )


def _image_shape_and_classes(
  name: str, features: Any
) -> tuple[tuple[int, int, int], int]:
  kinds = _library().features
  by_name = dict(features.items())
  image, label = by_name.get('image'), by_name.get('label')
  if (
    not isinstance(image, kinds.Image)
    or None in image.shape
    or image.np_dtype != np.uint8
    or not isinstance(label, kinds.ClassLabel)
  ):
    raise ValueError(
      f"{name!r} must have a feature 'image' of one fixed uint8 shape and a "
      f"class label 'label'; got {features}. {_npz_remedy(name)}"
    )
  return image.shape, label.num_classes


def _read(
  source: Any, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Reads the whole source as images u8[N, H, W, C] and labels i64[N]."""
  images = np.empty((len(source), *shape), np.uint8)
  labels = np.empty(len(source), np.int64)
  ids = []
  for start in range(0, len(source), _ROWS_PER_READ):
    stop = min(start + _ROWS_PER_READ, len(source))
    for i, row in enumerate(source.__getitems__(range(start, stop)), start):
      images[i] = _decode(row['image'], shape)
      labels[i] = row['label']
      if 'id' in row:
        ids.append(row['id'])
  if not ids:
    return images, labels
  order = np.argsort(np.array(ids), kind='stable')
  return images[order], labels[order]


def _decode(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
  """Decodes a PNG or JPEG file to u8[H, W, C]."""
  from PIL import Image

  mode = _MODES[shape[-1]]
  with Image.open(io.BytesIO(encoded)) as image:
    pixels = image if image.mode == mode else image.convert(mode)
    return np.asarray(pixels).reshape(shape)
