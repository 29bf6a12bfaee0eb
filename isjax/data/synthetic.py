"""A made-up task whose gradient is carried by few examples."""

import numpy as np

from isjax.data.metadata import Metadata, assemble
from isjax.types import Batch

# Seeds and sizes: the splits are independent draws from one distribution.
_SPLITS = {'train': (0, 2048), 'test': (1, 512)}
_SIDE = 8
# Where the blob of each class lies, (row, column) in pixels.
_CENTRES = np.array([[2.2, 2.2], [2.2, 4.8], [4.8, 2.2], [4.8, 4.8]])
_BLOB_WIDTH = 1.2
_JITTER = 0.4
_JITTER_FREEDOM = 2.0
_PIXEL_NOISE = 0.05


def load(split: str) -> tuple[Batch, Metadata]:
  """Returns 'train' (2048) or 'test' (512) of four classes of 8x8 blobs.

  Each image is a gaussian blob near the centre of its class. The offset from
  the centre follows Student's t with two degrees of freedom: most examples
  are soon learnt, and a heavy tail lies in another class's place or outside
  the image. So losses and gradient norms are as uneven as importance sampling
  expects them. Classes are balanced; the same arrays in every call.
  """
  seed, num_examples = _SPLITS[split]
  random = np.random.RandomState(seed)
  labels = random.permutation(np.arange(num_examples) % len(_CENTRES))
  offsets = random.standard_t(_JITTER_FREEDOM, (num_examples, 2))
  blobs = _blobs(_CENTRES[labels] + _JITTER * offsets)
  noise = _PIXEL_NOISE * random.normal(size=blobs.shape)
  images = np.round(255 * np.clip(blobs + noise, 0, 1)).astype(np.uint8)
  return assemble(
    'synthetic', split, images[..., None], labels, num_classes=len(_CENTRES)
  )


def _blobs(centres: np.ndarray) -> np.ndarray:
  """Draws one blob of height 1 around each of the centres [N, 2]."""
  pixels = np.arange(_SIDE)
  distances = (pixels - centres[..., None]) ** 2
  rows, columns = np.moveaxis(np.exp(-distances / (2 * _BLOB_WIDTH**2)), 1, 0)
  return rows[:, :, None] * columns[:, None, :]
