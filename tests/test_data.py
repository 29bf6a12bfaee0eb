"""What embedded sets and NAME.npz hold, and what is said where they do not."""

import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from isjax import data

SPLITS = ('train', 'test')

needs_npz = pytest.mark.skipif(
  'ISJAX_DATA_DIR' not in os.environ, reason='ISJAX_DATA_DIR is not set'
)


@pytest.fixture
def empty(tmp_path, monkeypatch):
  """A place where nothing is prepared and no .npz file lies."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  monkeypatch.setenv('ISJAX_DATA_DIR', str(tmp_path))
  return tmp_path


def _rows(batch):
  """The examples as byte strings, image and label, sorted: a multiset."""
  images = np.asarray(batch.inputs).reshape(len(batch.inputs), -1)
  labels = np.asarray(batch.targets).astype(np.uint8)
  return sorted(map(bytes, np.concatenate([images, labels[:, None]], 1)))


# ---- embedded


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('name', data.EMBEDDED)
def test_embedded_sets_match_their_metadata(name, split):
  batch, metadata = data.load(name, split)
  counts = np.bincount(batch.targets, minlength=metadata.num_classes)
  assert (metadata.name, metadata.split) == (name, split)
  assert metadata.class_counts == tuple(counts)
  assert sum(counts) == metadata.num_examples
  assert batch.inputs.shape == (metadata.num_examples, *metadata.input_shape)
  assert batch.inputs.max() == metadata.max_value
  assert isinstance(batch.inputs, jax.Array)
  assert (batch.inputs.dtype, batch.targets.dtype) == (jnp.uint8, jnp.int32)
  assert batch.record_weights is None


@pytest.mark.parametrize(
  ('split', 'num_examples', 'digest'),
  [('train', 1347, '9862f272edb60334'), ('test', 450, 'cc7d6117433a9382')],
)
def test_digits_are_the_same_everywhere(split, num_examples, digest):
  batch, metadata = data.load('digits', split)
  content = np.asarray(batch.inputs).tobytes()
  content += np.asarray(batch.targets).astype('<i4').tobytes()
  assert metadata.num_examples == num_examples
  assert (metadata.num_classes, metadata.input_shape) == (10, (8, 8, 1))
  assert metadata.max_value == 16
  assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_digits_are_a_stratified_partition_of_the_bundled_images():
  bunch = datasets.load_digits()
  whole = np.concatenate([bunch.data, bunch.target[:, None]], 1)
  train, test = (data.load('digits', split) for split in SPLITS)
  rows = _rows(train[0]) + _rows(test[0])
  assert sorted(rows) == sorted(map(bytes, whole.astype(np.uint8)))
  shares = 450 / 1797 * np.bincount(bunch.target)
  assert np.abs(np.subtract(test[1].class_counts, shares)).max() < 1


@pytest.mark.parametrize('split', SPLITS)
def test_synthetic_is_the_same_in_every_call(split):
  first, second = (data.load('synthetic', split)[0] for _ in range(2))
  np.testing.assert_array_equal(first.inputs, second.inputs)
  np.testing.assert_array_equal(first.targets, second.targets)


def test_synthetic_splits_are_balanced_and_differ():
  train, test = (data.load('synthetic', split) for split in SPLITS)
  assert train[1].class_counts == (512,) * 4
  assert test[1].class_counts == (128,) * 4
  assert not set(_rows(train[0])) & set(_rows(test[0]))


def test_synthetic_is_learnable_with_a_heavy_tail():
  """Most examples lie near the mean image of their class, some far off it."""
  batch, _ = data.load('synthetic', 'train')
  images = np.asarray(batch.inputs, np.float64).reshape(2048, 64) / 255
  labels = np.asarray(batch.targets)
  means = np.stack([images[labels == label].mean(0) for label in range(4)])
  distances = ((images[:, None] - means) ** 2).sum(-1)
  accuracy = (distances.argmin(1) == labels).mean()
  assert 0.85 < accuracy < 0.97
  logits = -2 * distances
  losses = np.log(np.exp(logits - logits[range(2048), labels][:, None]).sum(1))
  hardest = np.sort(losses)[-205:]
  assert hardest.sum() > 0.5 * losses.sum()


# ---- rescale


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('max_value', [16, 255])
def test_rescale_maps_the_range_onto_the_unit_interval(max_value, jit):
  preprocess = data.rescale(max_value)
  pixels = jnp.arange(max_value + 1, dtype=jnp.uint8)
  scaled = (jax.jit(preprocess) if jit else preprocess)(pixels)
  assert scaled.dtype == jnp.float32
  assert (scaled[0], scaled[-1]) == (0, 1)
  expected = np.arange(max_value + 1) / max_value
  np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_rescale_refuses_to_scale_twice():
  preprocess = data.rescale(255)
  with pytest.raises(ValueError, match='not scaled yet; got float32'):
    preprocess(preprocess(jnp.zeros((2, 3), jnp.uint8)))


def test_rescale_needs_a_positive_maximum():
  with pytest.raises(ValueError, match='max_value must be positive; got 0'):
    data.rescale(0)


# ---- NAME.npz


def _arrays():
  random = np.random.RandomState(0)
  return {
    'x_train': random.randint(0, 256, (6, 5, 4, 3)).astype(np.uint8),
    'y_train': np.array([0, 2, 2, 0, 1, 0]),
    'x_test': random.randint(0, 256, (2, 5, 4, 3)).astype(np.uint8),
    'y_test': np.array([4, 0], np.uint64),
  }


def test_npz_comes_back_as_it_was_saved(empty):
  arrays = _arrays()
  np.savez(empty / 'mine.npz', **arrays)
  for split in SPLITS:
    batch, metadata = data.load('mine', split)
    np.testing.assert_array_equal(batch.inputs, arrays[f'x_{split}'])
    np.testing.assert_array_equal(batch.targets, arrays[f'y_{split}'])
    assert (batch.inputs.dtype, batch.targets.dtype) == (jnp.uint8, jnp.int32)
    assert (metadata.num_classes, metadata.max_value) == (5, 255)
  assert metadata.class_counts == (1, 0, 0, 0, 1)


def test_npz_in_grey_gets_a_channel_axis(empty):
  arrays = _arrays() | {
    'x_train': np.ones((6, 5, 4), np.uint8),
    'x_test': np.ones((2, 5, 4), np.uint8),
  }
  np.savez_compressed(empty / 'mine.npz', **arrays)
  batch, metadata = data.load('mine', 'train')
  assert batch.inputs.shape == (6, 5, 4, 1)
  assert metadata.input_shape == (5, 4, 1)


def test_npz_folder_given_as_argument_comes_before_the_variable(empty):
  arrays = _arrays()
  np.savez(empty / 'mine.npz', **arrays)
  inner = empty / 'inner'
  inner.mkdir()
  np.savez(inner / 'mine.npz', **arrays | {'y_test': np.array([7, 7])})
  assert data.load('mine', 'test')[1].num_classes == 5
  assert data.load('mine', 'test', data_dir=inner)[1].num_classes == 8
  assert data.load('mine', 'test', data_dir=str(inner))[1].num_classes == 8


def test_npz_comes_before_tensorflow_datasets(empty):
  np.savez(empty / 'mnist.npz', **_arrays())
  assert data.load('mnist', 'train')[1].num_examples == 6


_BAD_ARRAYS = {
  'object_labels': (
    {'y_train': np.array([None] * 6)},
    'y_train must be integers; got object. Number the classes',
  ),
  'object_images': (
    {'x_test': np.array([None] * 2)},
    'x_test must be uint8; got object. Quantise it',
  ),
  'float_images': (
    {'x_train': np.ones((6, 5, 4, 3), np.float32)},
    r'x_train must be uint8; got float32. Quantise it: np.round\(255 \* x\)',
  ),
  'float_labels': (
    {'y_test': np.array([0.0, 1.0])},
    'y_test must be integers; got float64. Number the classes',
  ),
  'one_hot': (
    {'y_train': np.eye(6, dtype=np.int64)},
    r'y_train must be class numbers \[N\]; got the shape \(6, 6\).*argmax',
  ),
  'flat_images': (
    {'x_train': np.ones((6, 60), np.uint8)},
    r'x_train must be images .*; got the shape \(6, 60\). Reshape it',
  ),
  'lengths': (
    {'y_train': np.zeros(5, int)},
    'x_train and y_train must be of one length .*; got 6 and 5',
  ),
  'no_example': (
    {'x_test': np.ones((0, 5, 4, 3), np.uint8), 'y_test': np.zeros(0, int)},
    'x_test and y_test must be of one length of at least 1; got 0 and 0',
  ),
  'shapes': (
    {'x_test': np.ones((2, 5, 5, 3), np.uint8)},
    r'must be of one shape; got \(5, 4, 3\) and \(5, 5, 3\)',
  ),
  'negative_label': (
    {'y_test': np.array([-1, 0])},
    'y_test must number the classes from 0; got labels from -1 to 0',
  ),
  'huge_label': (
    {'y_train': np.array([0, 1, 2, 3, 4, 2**40])},
    'y_train must number the classes from 0; got labels from 0 to 10995116',
  ),
}


@pytest.mark.parametrize('case', _BAD_ARRAYS)
@pytest.mark.parametrize('split', SPLITS)
def test_npz_with_a_bad_array_is_refused_by_name(case, split, empty):
  """Whichever split is asked for, the whole file is checked."""
  replaced, message = _BAD_ARRAYS[case]
  np.savez(empty / 'mine.npz', **_arrays() | replaced)
  with pytest.raises(ValueError, match=f'mine.npz: .*{message}'):
    data.load('mine', split)


def test_npz_without_a_key_is_refused(empty):
  arrays = _arrays()
  del arrays['y_test']
  np.savez(empty / 'mine.npz', other=np.zeros(2), **arrays)
  with pytest.raises(
    ValueError, match='mine.npz lacks y_test; it holds other, x_train'
  ):
    data.load('mine', 'train')


def test_npz_that_is_no_archive_is_refused(empty):
  (empty / 'mine.npz').write_bytes(b'not a zip file')
  with pytest.raises(ValueError, match='mine.npz is damaged or no .npz file'):
    data.load('mine', 'train')


def test_npz_with_a_flipped_bit_is_refused(empty):
  arrays = _arrays()
  np.savez(empty / 'mine.npz', **arrays)
  content = bytearray((empty / 'mine.npz').read_bytes())
  position = content.find(arrays['x_train'].tobytes()) + 100
  content[position] ^= 1
  (empty / 'mine.npz').write_bytes(content)
  with pytest.raises(ValueError, match='mine.npz is damaged.* CRC'):
    data.load('mine', 'train')


def test_npz_record_weights_come_from_their_column(empty):
  """W_train for the training set; without being asked for, none."""
  weights = np.array([1, 0, 2, 5, 1, 1000])
  np.savez(empty / 'mine.npz', **_arrays(), w_train=weights)
  batch, _ = data.load('mine', 'train', record_weights='w')
  np.testing.assert_array_equal(batch.record_weights, weights)
  assert batch.record_weights.dtype == jnp.float32
  assert data.load('mine', 'train')[0].record_weights is None
  with pytest.raises(ValueError, match='mine.npz lacks w_test; it holds'):
    data.load('mine', 'test', record_weights='w')


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    (np.ones(5), r'must be 6 numbers; got float64 of the shape \(5,\)'),
    (np.array(list('abcdef')), 'must be 6 numbers; got <U1'),
    (np.array([1, 1, -1, 1, 1, 1]), r"'mine': .* got weights\[2\] = -1"),
    (np.full(6, np.nan), r'got weights\[0\] = nan'),
    (np.zeros(6), "'mine': weights must not all be 0"),
  ],
)
def test_npz_record_weights_must_be_weights(weights, message, empty):
  np.savez(empty / 'mine.npz', **_arrays(), w_train=weights)
  with pytest.raises(ValueError, match=message):
    data.load('mine', 'train', record_weights='w')


def test_embedded_sets_have_no_column_of_weights():
  with pytest.raises(ValueError, match="'digits' has no column of record we"):
    data.load('digits', 'train', record_weights='w')


@pytest.mark.parametrize('keep', [0, 100, 0.5, -1])
def test_npz_cut_short_is_refused(keep, empty):
  """Whether nothing is left of it, a header, half the data or nearly all."""
  np.savez(empty / 'mine.npz', **_arrays())
  content = (empty / 'mine.npz').read_bytes()
  end = int(keep * len(content)) if isinstance(keep, float) else keep
  (empty / 'mine.npz').write_bytes(content[:end])
  with pytest.raises(ValueError, match='mine.npz is damaged or no .npz file'):
    data.load('mine', 'train')


@needs_npz
@pytest.mark.parametrize(
  ('name', 'shape', 'means'),
  [
    ('mnist', (28, 28, 1), [0.13066]),
    ('cifar10', (32, 32, 3), [0.49140, 0.48216, 0.44653]),
  ],
)
def test_real_npz_has_the_published_means(name, shape, means):
  batch, metadata = data.load(name, 'train')
  assert batch.inputs.dtype == jnp.uint8
  assert (metadata.input_shape, metadata.num_classes) == (shape, 10)
  sums = np.asarray(jnp.sum(batch.inputs, axis=0, dtype=jnp.uint32))
  mean = sums.mean((0, 1)) / metadata.num_examples / metadata.max_value
  np.testing.assert_allclose(mean, means, atol=1e-5)
  assert data.load(name, 'test')[1].num_examples == 10_000


@pytest.mark.parametrize('argument', [True, False])
def test_missing_folder_is_named(argument, tmp_path, monkeypatch):
  folder = tmp_path / 'nowhere'
  monkeypatch.setenv('ISJAX_DATA_DIR', str(folder))
  data_dir = folder if argument else None
  source = 'data_dir' if argument else 'ISJAX_DATA_DIR'
  with pytest.raises(FileNotFoundError, match=f'{source} must .*nowhere'):
    data.load('mnist', 'train', data_dir=data_dir)


@pytest.mark.parametrize('name', ['digits', 'mnist'])
def test_split_is_train_or_test(name):
  with pytest.raises(ValueError, match="split must be one of 'train', 'test'"):
    data.load(name, 'validation')


@pytest.mark.parametrize('max_length', [0, 1.5])
def test_max_length_is_a_length(max_length):
  with pytest.raises(ValueError, match='max_length must be an integer of at'):
    data.load('digits', 'train', max_length=max_length)
