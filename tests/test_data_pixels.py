"""pixels.py: against numpy by loops; the same for every split."""

import jax.numpy as jnp
import numpy as np
import pytest

from isjax import data
from isjax.data.metadata import assemble


def images(key_number, split='train', shape=(5, 4, 6, 3)):
  """Random images of two classes."""
  random = np.random.RandomState(key_number)
  pixels = random.randint(0, 256, shape).astype(np.uint8)
  return assemble(
    'made up', split, pixels, np.arange(shape[0]) % 2, num_classes=2
  )


@pytest.mark.parametrize('split', ['train', 'test'])
def test_blocks_are_averaged_and_rounded(split):
  """Each pixel is the mean of its block, in float64, halves upwards."""
  batch, metadata = images(0, split)
  made, about, changes = data.transform(
    batch, metadata, {'average_blocks': {'size': 2}}, seed=0
  )
  pixels = np.asarray(batch.inputs, np.float64)
  expected = np.empty((5, 2, 3, 3))
  for row in range(2):
    for column in range(3):
      block = pixels[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
      expected[:, row, column] = block.mean((1, 2))
  np.testing.assert_array_equal(made.inputs, np.floor(expected + 0.5))
  assert (expected % 1 == 0.5).any()
  assert made.inputs.dtype == jnp.uint8
  assert about == metadata._replace(input_shape=(2, 3, 3))
  np.testing.assert_array_equal(made.targets, batch.targets)
  np.testing.assert_array_equal(changes.indices, np.arange(5))
  assert not changes.flipped.any()


def test_white_stays_white_and_one_pixel_is_itself():
  """255 in every pixel overflows nothing; blocks of one change nothing."""
  batch, metadata = images(0)
  white = batch._replace(inputs=jnp.full_like(batch.inputs, 255))
  step = {'average_blocks': {'size': 2}}
  assert (data.transform(white, metadata, step, seed=0)[0].inputs == 255).all()
  same = data.transform(
    batch, metadata, {'average_blocks': {'size': 1}}, seed=0
  )
  np.testing.assert_array_equal(same[0].inputs, batch.inputs)
  assert same[1] == metadata


def test_one_order_of_the_pixels_for_all_images_and_splits():
  """Pixel p of every image of both splits comes from one place, as a whole."""
  numbers = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)
  labelled = {
    split: assemble('made up', split, numbers, np.zeros(1, int), num_classes=1)
    for split in ('train', 'test')
  }
  step = {'permute_pixels': {}}
  orders = [
    np.asarray(data.transform(*labelled[s], step, seed=5)[0].inputs)
    for s in labelled
  ]
  np.testing.assert_array_equal(*orders)
  order = orders[0].reshape(24, 3)[:, 0] // 3
  assert sorted(order) == list(range(24))
  assert (order != np.arange(24)).any()
  batch, metadata = images(1, 'test')
  made, about, _ = data.transform(batch, metadata, step, seed=5)
  pixels = np.asarray(batch.inputs).reshape(5, 24, 3)
  np.testing.assert_array_equal(made.inputs.reshape(5, 24, 3), pixels[:, order])
  assert about == metadata
  other = data.transform(
    batch, metadata, {'permute_pixels': {'seed': 6}}, seed=5
  )
  assert (other[0].inputs != made.inputs).any()


def test_the_order_is_golden():
  """Numpy's stream is frozen: the first places of digits' pixels."""
  digits = data.load('digits', 'train')
  numbers = jnp.broadcast_to(
    jnp.arange(64, dtype=jnp.uint8).reshape(1, 8, 8, 1), digits[0].inputs.shape
  )
  batch, *_ = data.permute_pixels(
    digits[0]._replace(inputs=numbers), digits[1], seed=0
  )
  assert batch.inputs[0].ravel()[:8].tolist() == [55, 42, 9, 11, 22, 3, 18, 26]


@pytest.mark.parametrize(
  ('step', 'message'),
  [
    ({'average_blocks': {'size': 4}}, '4 x 6 pixels of .made up.; got 4'),
    ({'average_blocks': {'size': 0}}, 'size'),
    ({'average_blocks': {'size': 1.5}}, 'size'),
    ({'permute_pixels': {'seed': -1}}, 'seed must be an integer'),
  ],
)
def test_bad_options_are_named(step, message):
  """A block that does not divide the image, no size, no seed."""
  with pytest.raises(ValueError, match=message):
    data.transform(*images(0), step, seed=0)


@pytest.mark.parametrize(
  'step', [{'average_blocks': {'size': 1}}, {'permute_pixels': {}}]
)
@pytest.mark.parametrize('inputs', [jnp.zeros((5, 8)), jnp.zeros((5, 4, 6, 3))])
def test_only_images_have_pixels(step, inputs):
  """Features, and floats that are scaled already, are refused."""
  batch, metadata = images(0)
  with pytest.raises(ValueError, match=r'images u8\[N, H, W, C\]; got float32'):
    data.transform(batch._replace(inputs=inputs), metadata, step, seed=0)
