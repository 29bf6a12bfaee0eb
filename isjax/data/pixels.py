"""What is done to the pixels of every image alike: smaller, or out of order."""

import jax.numpy as jnp
import numpy as np

from isjax import _validate
from isjax.data.changes import Changes, none, random_of
from isjax.data.metadata import Metadata
from isjax.types import Batch


def average_blocks(
  batch: Batch, metadata: Metadata, *, seed: int, size: int
) -> tuple[Batch, Metadata, Changes]:
  """Averages blocks of size x size pixels: smaller images for smaller machines.

  Args:
    batch: N images u8[N, H, W, C], of any split.
    metadata: of the batch.
    seed: not used; nothing is drawn.
    size: pixels, at least 1, that divide H and W.

  Returns:
    The images u8[N, H / size, W / size, C], each mean rounded to the nearest
    integer and halves upwards, their Metadata, and Changes, none.

  Raises:
    ValueError: for inputs that are no such images, or a bad size.
  """
  del seed
  images = _images(batch)
  _validate.positive_integers(size=size)
  num_images, height, width, channels = images.shape
  if height % size or width % size:
    raise ValueError(
      f'size must divide the {height} x {width} pixels of {metadata.name!r}; '
      f'got {size}.'
    )
  shape = num_images, height // size, size, width // size, size, channels
  total = images.reshape(shape).sum((2, 4), dtype=np.int64)
  means = (total + size**2 // 2) // size**2
  return _with_images(batch, metadata, means.astype(np.uint8))


def permute_pixels(
  batch: Batch, metadata: Metadata, *, seed: int
) -> tuple[Batch, Metadata, Changes]:
  """Puts the pixels of all images into one random order.

  An image's shape stays, and so do the channels of a pixel. The order depends
  on the seed and the number of pixels alone, and is the same for every split.

  Args:
    batch: N images u8[N, H, W, C], of any split.
    metadata: of the batch.
    seed: in [0, 2^32).

  Returns:
    The images, their Metadata, and Changes, none.

  Raises:
    ValueError: for inputs that are no such images, or a bad seed.

  Source: Le et al. (2015), arXiv:1504.00941, section 4.2.
  """
  images = _images(batch)
  num_images, height, width, channels = images.shape
  order = random_of(seed, 'permute_pixels').permutation(height * width)
  pixels = images.reshape(num_images, height * width, channels)
  return _with_images(batch, metadata, pixels[:, order].reshape(images.shape))


def _images(batch: Batch) -> np.ndarray:
  """The inputs on the host, if they are images."""
  shape, dtype = np.shape(batch.inputs), batch.inputs.dtype
  if len(shape) != 4 or dtype != jnp.uint8:
    raise ValueError(
      f'inputs must be images u8[N, H, W, C]; got {dtype}{list(shape)}.'
    )
  return np.asarray(batch.inputs)


def _with_images(
  batch: Batch, metadata: Metadata, images: np.ndarray
) -> tuple[Batch, Metadata, Changes]:
  """Puts other images in the place of the inputs."""
  batch = batch._replace(inputs=jnp.asarray(images))
  metadata = metadata._replace(input_shape=images.shape[1:])
  return batch, metadata, none(batch)
