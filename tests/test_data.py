"""What the named data sets hold, and what the errors say where they do not."""

import functools
import hashlib
import io
import os
import socket
import subprocess
import sys

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets
import tensorflow_datasets as tfds

from isjax import Batch, data

SPLITS = ('train', 'test')

needs_npz = pytest.mark.skipif(
  'ISJAX_DATA_DIR' not in os.environ, reason='ISJAX_DATA_DIR is not set'
)
needs_tfds = pytest.mark.skipif(
  'TFDS_DATA_DIR' not in os.environ, reason='TFDS_DATA_DIR is not set'
)


@pytest.fixture
def empty(tmp_path, monkeypatch):
  """A place where nothing is prepared and no .npz file lies."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  monkeypatch.setenv('ISJAX_DATA_DIR', str(tmp_path))
  return tmp_path


@pytest.fixture
def network(monkeypatch):
  """The calls made to the network, each of which fails."""
  calls = []

  def refuse(*args, **kwargs):
    del kwargs
    calls.append(args)
    raise OSError('no network')

  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  monkeypatch.setattr(socket.socket, 'connect', refuse)
  return calls


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


# ---- FILE/NAME in FILE.npz


def _features():
  random = np.random.RandomState(0)
  return {
    'mine_x': random.normal(size=(41, 3)).astype(np.float32),
    'mine_y': np.repeat(np.array([0, 1, 2], np.uint8), [29, 4, 8]),
    'other_x': np.zeros((2, 5), np.float32),
    'other_y': np.array([0, 1]),
    'alone_x': np.zeros((2, 5), np.float32),
  }


def test_features_are_split_by_class_and_kept_as_they_are(empty):
  """A quarter of each class is test; the splits make up the whole in order."""
  arrays = _features()
  np.savez(empty / 'table.npz', **arrays)
  (train, about), (test, about_test) = (
    data.load('table/mine', split) for split in SPLITS
  )
  assert about == data.Metadata(
    'table/mine', 'train', 31, 3, (3,), None, (22, 3, 6)
  )
  assert about_test.class_counts == (7, 1, 2)
  assert (train.inputs.dtype, train.targets.dtype) == (jnp.float32, jnp.int32)
  places = [
    [int(np.flatnonzero((arrays['mine_x'] == row).all(1))[0]) for row in rows]
    for rows in (np.asarray(train.inputs), np.asarray(test.inputs))
  ]
  assert sorted(places[0] + places[1]) == list(range(41))
  for batch, order in ((train, places[0]), (test, places[1])):
    assert order == sorted(order)
    np.testing.assert_array_equal(batch.targets, arrays['mine_y'][order])
  again, _ = data.load('table/mine', 'test')
  np.testing.assert_array_equal(again.inputs, test.inputs)


_BAD_FEATURES = {
  'double': ({'mine_x': np.zeros((41, 3))}, 'mine_x must be .* got float64'),
  'image': (
    {'mine_x': np.zeros((41, 3, 1), np.float32)},
    r'mine_x must be features, float32 \[N, F\]; got float32 \(41, 3, 1\)',
  ),
  'one_hot': (
    {'mine_y': np.eye(41, dtype=int)},
    'mine_y must be class numbers .*argmax',
  ),
  'float_labels': ({'mine_y': np.zeros(41)}, 'mine_y must be integers; got f'),
  'lengths': (
    {'mine_y': np.zeros(40, int)},
    'mine_x and mine_y must be of one length of at least 1; got 41 and 40',
  ),
  'negative': (
    {'mine_y': np.full(41, -1)},
    'mine_y must number the classes from 0; got labels from -1 to -1',
  ),
  'nan': (
    {'mine_x': np.full((41, 3), np.nan, np.float32)},
    'mine_x must be finite. Fill in',
  ),
}


@pytest.mark.parametrize('case', _BAD_FEATURES)
def test_features_of_a_bad_array_are_refused_by_name(case, empty):
  replaced, message = _BAD_FEATURES[case]
  np.savez(empty / 'table.npz', **_features() | replaced)
  with pytest.raises(ValueError, match=f'table.npz: {message}'):
    data.load('table/mine', 'train')


@pytest.mark.parametrize('name', ['alone', 'none', ''])
def test_features_that_are_not_there_list_those_that_are(name, empty):
  np.savez(empty / 'table.npz', **_features())
  with pytest.raises(
    ValueError, match=f"no set '{name}'; it holds mine, other. Write it"
  ):
    data.load(f'table/{name}', 'train')


def test_a_damaged_file_of_features_is_refused(empty):
  (empty / 'table.npz').write_bytes(b'not a zip file')
  with pytest.raises(ValueError, match='table.npz is damaged or no .npz file'):
    data.load('table/mine', 'train')


@needs_npz
def test_real_mammography_repeats_one_record():
  """Of 11,183 rows 7,849 are distinct, and one occurs 3,322 times."""
  splits = [data.load('tabular/mammography', split) for split in SPLITS]
  assert [about.num_examples for _, about in splits] == [8388, 2795]
  whole = jax.tree.map(
    lambda *leaves: jnp.concatenate(leaves), *(batch for batch, _ in splits)
  )
  merged = data.merge_duplicates(whole)
  assert merged.inputs.shape == (7849, 6)
  assert merged.record_weights.max() == 3322
  assert merged.record_weights.sum() == 11_183


# ---- merge_duplicates


def test_merged_records_by_hand():
  """Counted, in the order of their first occurrence; -0.0 is not 0.0."""
  nan = np.nan
  inputs = jnp.array([[1.0, nan], [0, 2], [1, nan], [-0.0, 2], [0, 2], [0, 2]])
  batch = Batch(inputs, jnp.array([3, 1, 3, 1, 1, 0]))
  merged = data.merge_duplicates(batch)
  np.testing.assert_array_equal(merged.inputs, inputs[np.array([0, 1, 3, 5])])
  np.testing.assert_array_equal(merged.targets, [3, 1, 1, 0])
  np.testing.assert_array_equal(merged.record_weights, [2, 2, 1, 1])
  assert merged.record_weights.dtype == jnp.float32


def test_merged_record_weights_are_added_up():
  """In float64: a thousand ones onto 2^24, which float32 would lose."""
  weights = np.array([2.0**24, 5, *[1.0] * 1000], np.float32)
  merged = data.merge_duplicates(
    Batch(
      {'a': jnp.zeros((1002, 0)), 'b': jnp.array([7, 8, *[7] * 1000])},
      jnp.zeros((1002, 2), bool),
      jnp.asarray(weights),
    )
  )
  np.testing.assert_array_equal(merged.record_weights, [2**24 + 1000, 5])
  np.testing.assert_array_equal(merged.inputs['b'], [7, 8])
  assert merged.targets.shape == (2, 2)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
  records=st.lists(
    st.tuples(*[st.integers(0, 2)] * 3, st.integers(0, 100)), min_size=1
  )
)
def test_merging_leaves_the_objective_as_it_was(records):
  """Sums of r l and r grad l, exactly, for integer losses; once is enough."""
  *columns, weights = np.array(records, np.int32).T
  batch = Batch(
    np.stack(columns[:2], 1), columns[2], weights.astype(np.float32)
  )
  merged = data.merge_duplicates(batch)

  def total(batch):
    """Of a loss and a gradient that tell all records apart."""
    x, y, r = (np.asarray(leaf, np.int64) for leaf in batch)
    loss = 9 * x[:, 0] + 3 * x[:, 1] + y + 1
    return r @ loss, r @ np.stack([loss**2, loss**3], 1), r.sum()

  for before, after in zip(total(batch), total(merged), strict=True):
    np.testing.assert_array_equal(before, after)
  rows = [tuple(row[:3]) for row in records]
  x = np.column_stack([merged.inputs, merged.targets])
  assert list(map(tuple, x.tolist())) == list(dict.fromkeys(rows))
  again = data.merge_duplicates(merged)
  jax.tree.map(np.testing.assert_array_equal, again, merged)


def test_records_of_unequal_number_are_refused():
  batch = Batch(jnp.zeros((3, 2)), jnp.zeros(2, jnp.int32))
  with pytest.raises(ValueError, match='same leading axis N'):
    data.merge_duplicates(batch)


# ---- tensorflow-datasets


def _encoded(images, labels, **columns):
  """Yields the examples; an image is handed over as an encoded file."""
  for i, image in enumerate(images):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, 'PNG')
    file.seek(0)
    others = {name: column[i] for name, column in columns.items()}
    yield i, {'image': file, 'label': labels[i], **others}


def _prepare(folder, name, features, **splits):
  """Prepares a set as the library would, without TensorFlow."""

  class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return splits

    def _generate_examples(self):
      raise NotImplementedError

  Pictures.name = name
  Pictures(data_dir=folder, file_format='array_record').download_and_prepare()


@pytest.fixture(scope='module')
def pictures():
  """Images and labels of the prepared sets: u8[30, 5, 4, 3] and i64[30]."""
  random = np.random.RandomState(0)
  images = random.randint(0, 256, (30, 5, 4, 3)).astype(np.uint8)
  return images, random.randint(0, 3, 30)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, pictures):
  """A folder of small prepared sets, some of which no Batch can be made of."""
  folder = tmp_path_factory.mktemp('prepared')
  prepare = functools.partial(_prepare, folder)
  images, labels = pictures
  ids = [f'{i:05d}' for i in range(len(images))]
  features = {
    'image': tfds.features.Image(shape=(5, 4, 3)),
    'label': tfds.features.ClassLabel(num_classes=4),
  }
  prepare(
    'with_ids',
    features | {'id': tfds.features.Text()},
    train=_encoded(images, labels, id=ids),
    test=_encoded(images[:7], labels, id=ids),
  )
  prepare('without_ids', features, train=_encoded(images, labels))
  prepare(
    'grey',
    features | {'image': tfds.features.Image(shape=(5, 4, 1))},
    train=_encoded(images[..., :1], labels),
  )
  prepare('grey_files', features, train=_encoded(images[..., :1], labels))
  prepare(
    'ragged',
    features | {'image': tfds.features.Image()},
    train=_encoded(images, labels),
  )
  prepare(
    'regression',
    features | {'label': tfds.features.Scalar(np.int64)},
    train=_encoded(images, labels),
  )
  prepare('unlabelled', features, train=_encoded(images, np.full(30, -1)))
  return folder


@pytest.fixture
def offline(prepared, network, monkeypatch):
  """The prepared sets, with the network cut."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared))
  monkeypatch.delenv('ISJAX_DATA_DIR', raising=False)
  yield prepared
  assert not network


@pytest.mark.usefixtures('offline')
def test_prepared_set_is_sorted_by_id(pictures):
  batch, metadata = data.load('with_ids', 'train')
  np.testing.assert_array_equal(batch.inputs, pictures[0])
  np.testing.assert_array_equal(batch.targets, pictures[1])
  assert (batch.inputs.dtype, batch.targets.dtype) == (jnp.uint8, jnp.int32)
  counts = np.bincount(pictures[1], minlength=4)
  assert metadata == data.Metadata(
    'with_ids', 'train', 30, 4, (5, 4, 3), 255, tuple(counts.tolist())
  )
  assert data.load('with_ids:1.0.0', 'test')[1].num_examples == 7


@pytest.mark.usefixtures('offline')
def test_prepared_set_without_ids_holds_the_same_examples():
  with_ids, without_ids = (
    data.load(name, 'train')[0] for name in ('with_ids', 'without_ids')
  )
  assert _rows(without_ids) == _rows(with_ids)
  assert (without_ids.inputs != with_ids.inputs).any()


@pytest.mark.usefixtures('offline')
def test_prepared_set_longer_than_one_read_is_whole(monkeypatch, pictures):
  monkeypatch.setattr(data.tfds, '_ROWS_PER_READ', 7)
  batch, _ = data.load('with_ids', 'train')
  np.testing.assert_array_equal(batch.inputs, pictures[0])


@pytest.mark.usefixtures('offline')
def test_prepared_grey_images_keep_one_channel(pictures):
  batch, metadata = data.load('grey', 'train')
  assert metadata.input_shape == (5, 4, 1)
  expected = {image.tobytes() for image in pictures[0][..., :1]}
  assert {np.asarray(x).tobytes() for x in batch.inputs} == expected


@pytest.mark.usefixtures('offline')
def test_prepared_grey_files_of_a_colour_set_get_three_equal_channels(pictures):
  batch, _ = data.load('grey_files', 'train')
  expected = {image.repeat(3, -1).tobytes() for image in pictures[0][..., :1]}
  assert {np.asarray(x).tobytes() for x in batch.inputs} == expected


def test_prepared_set_is_read_without_tensorflow(prepared):
  """In a fresh process, without a warning of the library's either."""
  program = """if True:
    import sys
    from isjax import data
    lazy = {'tensorflow_datasets', 'sklearn', 'PIL'} & set(sys.modules)
    _, metadata = data.load('with_ids', 'train')
    print(metadata.num_examples, lazy, 'tensorflow' in sys.modules)
  """
  environment = os.environ | {
    'TFDS_DATA_DIR': str(prepared),
    'ISJAX_DATA_DIR': '',
  }
  result = subprocess.run(
    [sys.executable, '-W', 'error', '-c', program],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout == '30 set() False\n', result.stderr
  assert 'OpenCV' not in result.stderr


@pytest.mark.usefixtures('offline')
@pytest.mark.parametrize(
  ('name', 'split', 'message'),
  [
    ('grey', 'test', "no split 'test'; it has train. Or save it as grey.npz"),
    ('ragged', 'train', "'image' of one fixed .* save it as ragged.npz"),
    ('regression', 'train', "class label 'label'; got"),
    ('unlabelled', 'train', r'must lie in \[0, 4\); got -1'),
    ('mnist:1.2.3', 'train', "cannot read 'mnist:1.2.3' .* only: 3.0.1"),
    ('cifar10_corrupted/mist', 'test', 'BuilderConfig mist not found'),
  ],
)
def test_prepared_set_that_gives_no_batch_is_refused(name, split, message):
  with pytest.raises(ValueError, match=f'(?s){message}'):
    data.load(name, split)


def test_set_prepared_in_another_format_is_refused(prepared, empty, network):
  (empty / 'with_ids/1.0.0').mkdir(parents=True)
  for file in (prepared / 'with_ids/1.0.0').glob('*.json'):
    text = file.read_text().replace('array_record', 'tfrecord')
    (empty / 'with_ids/1.0.0' / file.name).write_text(text)
  with pytest.raises(ValueError, match='(?s)array_record.* a new folder'):
    data.load('with_ids', 'train')
  assert not network


@pytest.mark.parametrize('name', ['cifar10', 'svhn_cropped', 'mnist:3.0.1'])
def test_known_set_that_is_not_prepared_says_what_to_run(name, empty, network):
  with pytest.raises(FileNotFoundError, match='not prepared') as raised:
    data.load(name, 'train')
  message = str(raised.value)
  assert "pip install 'isjax[prepare]'" in message
  assert f"tfds.builder('{name}', data_dir='{empty}', " in message
  assert "file_format='array_record').download_and_prepare()" in message
  assert f'save it as {name.split(":")[0]}.npz' in message
  assert not network


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('minst', "Did you mean 'mnist'?"),
    ('digit', "Did you mean 'digits'?"),
    ('mime', "Did you mean 'mine'?"),
    ('kaggle:mnist', 'There are:'),
    ('huggingface:mnist', 'There are:'),
    ('downloads', 'There are:'),
    ('no such thing', 'There are:'),
    ('', 'There are:'),
  ],
)
def test_unknown_name_lists_the_ways_out(name, hint, empty, network):
  np.savez(empty / 'mine.npz', **_arrays())
  (empty / 'downloads').mkdir()
  with pytest.raises(ValueError, match='no data set is called') as raised:
    data.load(name, 'train')
  message = str(raised.value)
  assert hint in message
  assert 'embedded: digits, synthetic' in message
  assert f'NAME.npz in {empty}: mine' in message
  assert f'prepared in {empty}' in message
  assert not network


def test_unknown_name_without_a_folder_names_the_variable(empty, monkeypatch):
  monkeypatch.delenv('ISJAX_DATA_DIR')
  with pytest.raises(ValueError, match=r'ISJAX_DATA_DIR \(not set\): none'):
    data.load('nothing', 'train')


def test_missing_library_says_what_to_install(empty, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ImportError, match='pip install tensorflow-datasets'):
    data.load('mnist', 'train')
  assert data.load('digits', 'test')[1].num_examples == 450


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


@needs_npz
@needs_tfds
@pytest.mark.parametrize('split', SPLITS)
def test_real_prepared_mnist_is_the_npz(split):
  from_npz, facts = data.load('mnist', split)
  from_tfds, prepared_facts = data.load('mnist:3.0.1', split)
  assert prepared_facts == facts._replace(name='mnist:3.0.1')
  assert _rows(from_tfds) == _rows(from_npz)


@needs_tfds
def test_real_prepared_mnist_has_the_published_facts():
  batch, metadata = data.load('mnist:3.0.1', 'test')
  assert metadata.class_counts[:3] == (980, 1135, 1032)
  assert batch.inputs.shape == (10_000, 28, 28, 1)
