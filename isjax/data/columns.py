"""Which arrays the features of a prepared tensorflow-datasets set become.

What is the input and what the target is the set's own word, its supervised
keys. Where it has none, the target is its feature 'label' and the input the
first one that it has of 'image', 'text' and 'features'.
"""

from collections.abc import Callable, Iterator, Mapping
import io
from typing import Any, NamedTuple

import numpy as np

# The bytes of UTF-8.
NUM_TOKENS = 256
_INPUTS = ('image', 'text', 'features')
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}

Row = Mapping[str, Any]


class Inputs(NamedTuple):
  """How the inputs of an example are read.

  read:       (row) -> an array of the shape and type below.
  shape:      of one example's inputs.
  dtype:      of the inputs.
  max_value:  as in Metadata.
  num_tokens: as in Metadata.
  """

  read: Callable[[Row], np.ndarray]
  shape: tuple[int, ...]
  dtype: type
  max_value: int | None = None
  num_tokens: int | None = None


class Layout(NamedTuple):
  """How a row of the set becomes an example.

  inputs:        of the example.
  label:         the feature that is the target.
  num_classes:   K.
  record_weight: (row) -> number; None where all examples count the same.
  images:        the features that are images, which come encoded.
  """

  inputs: Inputs
  label: str
  num_classes: int
  record_weight: Callable[[Row], float] | None
  images: tuple[str, ...]


def layout(info: Any, *, record_weights: str | None, max_length: int) -> Layout:
  """Returns how the rows of a set become examples.

  Args:
    info: the library's DatasetInfo of the set.
    record_weights: the feature that the examples are weighted by, one number
      each, FEATURE or FEATURE/MEMBER; it is no input. None where there is none.
    max_length: T, of a text.

  Raises:
    ValueError: where the set is none of images, texts or numbers with a class
      label each; it says what came.
  """
  from tensorflow_datasets import features as kinds

  features = dict(info.features.items())
  key, label = _input_and_target(info.supervised_keys, features)
  target = features.get(label) if isinstance(label, str) else None
  if not isinstance(target, kinds.ClassLabel):
    raise ValueError(
      f'its target {label!r} must be a class label; got {_kind(target)}'
    )
  weight = None
  if record_weights is not None:
    weight = _record_weight(features, record_weights)
  return Layout(
    inputs=_inputs(key, features, record_weights, max_length),
    label=label,
    num_classes=target.num_classes,
    record_weight=weight,
    images=tuple(
      name for name, f in features.items() if isinstance(f, kinds.Image)
    ),
  )


def _input_and_target(supervised_keys: Any, features: Row) -> tuple[Any, Any]:
  if supervised_keys:
    return supervised_keys[0], supervised_keys[1]
  found = [name for name in _INPUTS if name in features]
  return (found or _INPUTS)[0], 'label'


def _inputs(
  key: Any, features: Row, left_out: str | None, max_length: int
) -> Inputs:
  from tensorflow_datasets import features as kinds

  feature = features.get(key) if isinstance(key, str) else None
  if isinstance(feature, kinds.Image):
    return _image(key, feature)
  if isinstance(feature, kinds.Text) and feature.shape == ():
    return _text(key, max_length)
  return _table(dict(_leaves(key, features)), left_out)


def _kind(feature: Any) -> str:
  if feature is None:
    return 'no such feature'
  shape = getattr(feature, 'shape', '')
  return f'{type(feature).__name__} {shape}'.strip()


def _image(key: str, feature: Any) -> Inputs:
  shape = feature.shape
  if None in shape or feature.np_dtype != np.uint8 or shape[-1] not in _MODES:
    raise ValueError(
      f'its images {key!r} must be of one fixed uint8 shape; got '
      f'{_kind(feature)} of {np.dtype(feature.np_dtype)}'
    )
  return Inputs(
    lambda row: _decode(row[key], shape), shape, np.uint8, max_value=255
  )


def _decode(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
  """Decodes a PNG or JPEG file to u8[H, W, C]."""
  from PIL import Image

  mode = _MODES[shape[-1]]
  with Image.open(io.BytesIO(encoded)) as image:
    pixels = image if image.mode == mode else image.convert(mode)
    return np.asarray(pixels).reshape(shape)


def _text(key: str, max_length: int) -> Inputs:
  """The first bytes of a text; zeros, which no text has, fill up the rest."""

  def read(row):
    filled = row[key][:max_length].ljust(max_length, b'\0')
    return np.frombuffer(filled, np.uint8)

  return Inputs(read, (max_length,), np.uint8, num_tokens=NUM_TOKENS)


def _table(leaves: dict[str, Any], left_out: str | None) -> Inputs:
  """Numbers side by side, a category as one column per class."""
  leaves.pop(left_out, None)
  encoders = [_encoder(path, leaf) for path, leaf in sorted(leaves.items())]
  width = sum(_width(leaf) for leaf in leaves.values())

  def read(row):
    return np.concatenate([encode(row) for encode in encoders])

  return Inputs(read, (width,), np.float32)


def _leaves(key: Any, features: Row) -> Iterator[tuple[str, Any]]:
  """The features that a key stands for, by path, FEATURE or FEATURE/MEMBER."""
  from tensorflow_datasets import features as kinds

  if not isinstance(key, str):
    names = key.values() if isinstance(key, Mapping) else key
    for name in names:
      yield from _leaves(name, features)
  elif isinstance(features.get(key), kinds.FeaturesDict):
    for name, feature in features[key].items():
      yield f'{key}/{name}', feature
  else:
    yield key, features.get(key)


def _encoder(path: str, feature: Any) -> Callable[[Row], np.ndarray]:
  from tensorflow_datasets import features as kinds

  value = _reader(path)
  if isinstance(feature, kinds.ClassLabel):
    classes = np.arange(feature.num_classes)
    return lambda row: classes == value(row)
  _expect_numbers(path, feature)
  return lambda row: np.ravel(value(row))


def _width(feature: Any) -> int:
  return getattr(feature, 'num_classes', None) or int(np.prod(feature.shape))


def _expect_numbers(path: str, feature: Any) -> None:
  from tensorflow_datasets import features as kinds

  is_tensor = isinstance(feature, kinds.Tensor) and None not in feature.shape
  if not is_tensor or not _is_number(feature.np_dtype):
    raise ValueError(
      f'its feature {path!r} must be an image, a text, or numbers of a fixed '
      f'shape; got {_kind(feature)}'
    )


def _is_number(dtype: Any) -> bool:
  return np.issubdtype(dtype, np.number) or np.issubdtype(dtype, np.bool_)


def _reader(path: str) -> Callable[[Row], Any]:
  key, _, member = path.partition('/')
  return lambda row: row[key][member] if member else row[key]


def _record_weight(features: Row, path: str) -> Callable[[Row], float]:
  key = path.partition('/')[0]
  feature = dict(_leaves(key, features)).get(path)
  _expect_numbers(path, feature)
  if feature.shape:
    raise ValueError(
      f'its record weights {path!r} must be one number each; got '
      f'{_kind(feature)}'
    )
  return _reader(path)
