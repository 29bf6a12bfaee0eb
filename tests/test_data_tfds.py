"""Prepared tensorflow-datasets: what they become, and what is refused."""

import functools
import io
import os
import shutil
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from isjax import data

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


def _encoded(images, labels, **columns):
  """Yields the examples; an image is handed over as an encoded file."""
  for i, image in enumerate(images):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, 'PNG')
    file.seek(0)
    others = {name: column[i] for name, column in columns.items()}
    yield i, {'image': file, 'label': labels[i], **others}


def _prepare(folder, name, features, supervised_keys=None, **splits):
  """Prepares a set as the library would, without TensorFlow."""

  class Examples(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=supervised_keys,
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return splits

    def _generate_examples(self):
      raise NotImplementedError

  Examples.name = name
  Examples(data_dir=folder, file_format='array_record').download_and_prepare()


TEXTS = ['', 'a', 'hé', 'the quick brown fox', 'x' * 600]
TEXT_FEATURES = {
  'text': tfds.features.Text(),
  'other': tfds.features.Sequence(tfds.features.Text()),
  'label': tfds.features.ClassLabel(num_classes=5),
}
SENTENCE_FEATURES = {
  'premise': tfds.features.Text(),
  'label': tfds.features.ClassLabel(num_classes=2),
}
CAR_FEATURES = {
  'car': {
    'wheels': tfds.features.Scalar(np.int32),
    'colour': tfds.features.ClassLabel(names=['red', 'blue', 'green']),
    'size': tfds.features.Tensor(shape=(2,), dtype=np.float32),
    'new': tfds.features.Scalar(np.bool_),
    'copies': tfds.features.Scalar(np.float32),
  },
  'seller': tfds.features.Text(),
  'sold': tfds.features.ClassLabel(names=['no', 'yes']),
}
PART_FEATURES = {
  'b': tfds.features.Tensor(shape=(1,), dtype=np.float64),
  'a': tfds.features.Scalar(np.uint8),
  'y': tfds.features.ClassLabel(num_classes=3),
}


def _texts():
  for i, text in enumerate(TEXTS):
    yield i, {'text': text, 'other': ['b'] * i, 'label': i}


def _sentences():
  yield 0, {'premise': 'it rains', 'label': 1}


def _cars(size=20):
  for i in range(size):
    car = {
      'wheels': i,
      'colour': i % 3,
      'size': np.array([i / 2, -i], np.float32),
      'new': i % 2 == 0,
      'copies': i + 1,
    }
    yield i, {'car': car, 'seller': 'me', 'sold': i % 2}


def _parts(missing=0.5):
  for i in range(4):
    yield i, {'b': np.array([missing]), 'a': i, 'y': i % 3}


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
  prepare('texts', TEXT_FEATURES, ('text', 'label'), train=_texts())
  prepare('sentences', SENTENCE_FEATURES, train=_sentences())
  prepare('cars', CAR_FEATURES, ('car', 'sold'), train=_cars(), test=_cars(7))
  prepare('parts', PART_FEATURES, ({'a': 'a', 'b': 'b'}, 'y'), train=_parts())
  prepare('gaps', PART_FEATURES, ('b', 'y'), train=_parts(np.nan))
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


@pytest.mark.usefixtures('offline')
@pytest.mark.parametrize('max_length', [1, 3, 20, 1000])
def test_prepared_texts_are_their_bytes(max_length):
  """Cut to T bytes or filled up with zeros, and nowhere else is a zero."""
  batch, metadata = data.load('texts', 'train', max_length=max_length)
  assert batch.inputs.dtype == jnp.uint8
  assert metadata.input_shape == batch.inputs.shape[1:] == (max_length,)
  assert (metadata.num_tokens, metadata.max_value) == (256, None)
  for row, label in zip(np.asarray(batch.inputs), batch.targets, strict=True):
    text = TEXTS[int(label)].encode()[:max_length]
    assert row.tobytes().rstrip(b'\0') == text
    assert (row > 0).sum() == len(text)


@pytest.mark.usefixtures('offline')
def test_prepared_numbers_are_columns():
  """By name, side by side: a category one-hot, a flag 0 or 1."""
  batch, metadata = data.load('cars', 'train')
  assert metadata == data.Metadata(
    'cars', 'train', 20, 2, (8,), None, (10, 10), None
  )
  assert batch.inputs.dtype == jnp.float32
  rows = np.asarray(batch.inputs)
  for colours, copies, new, size, wheels in zip(
    rows[:, :3], rows[:, 3], rows[:, 4], rows[:, 5:7], rows[:, 7], strict=True
  ):
    i = int(wheels)
    np.testing.assert_array_equal(colours, np.eye(3)[i % 3])
    assert (copies, new) == (i + 1, i % 2 == 0)
    np.testing.assert_array_equal(size, [i / 2, -i])
  np.testing.assert_array_equal(batch.targets, rows[:, 7] % 2)
  assert data.load('cars', 'test')[1].num_examples == 7


@pytest.mark.usefixtures('offline')
def test_prepared_numbers_of_several_features_are_columns():
  """Those that the supervised keys name, whatever they are called."""
  batch, metadata = data.load('parts', 'train')
  assert (metadata.input_shape, metadata.num_classes) == ((2,), 3)
  rows = sorted(np.asarray(batch.inputs).tolist())
  assert rows == [[i, 0.5] for i in range(4)]


@pytest.mark.usefixtures('offline')
def test_a_prepared_column_gives_the_record_weights():
  """It is no input then; images can have one too."""
  batch, metadata = data.load('cars', 'train', record_weights='car/copies')
  assert metadata.input_shape == (7,)
  np.testing.assert_array_equal(batch.record_weights, batch.inputs[:, 6] + 1)
  batch, metadata = data.load('with_ids', 'train', record_weights='label')
  assert metadata.input_shape == (5, 4, 3)
  np.testing.assert_array_equal(batch.record_weights, batch.targets)


@pytest.mark.usefixtures('offline')
@pytest.mark.parametrize(
  ('column', 'message'),
  [
    ('price', "feature 'price' must be .* numbers .* got no such feature"),
    ('car/price', 'got no such feature'),
    ('seller', 'got Text'),
    ('car/size', r"'car/size' must be one number each; got Tensor \(2,\)"),
  ],
)
def test_a_column_that_gives_no_weights_is_refused(column, message):
  with pytest.raises(ValueError, match=f"'cars' cannot be loaded: .*{message}"):
    data.load('cars', 'train', record_weights=column)


def test_a_prepared_set_needs_no_module_of_its_makers(empty, network):
  """Its own code is used for what is not prepared only."""

  class NeedsPandas(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    _split_generators = _generate_examples = None

    def _info(self):
      raise ModuleNotFoundError("No module named 'pandas'", name='pandas')

  name = NeedsPandas.name
  with pytest.raises(ImportError, match="the module 'pandas': pip install pan"):
    data.load(name, 'train')
  _prepare(empty, name, CAR_FEATURES, ('car', 'sold'), train=_cars())
  assert data.load(name, 'train')[1].num_examples == 20
  assert not network


@pytest.mark.parametrize('harm', ['flipped', 'short', 'gone'])
def test_a_damaged_file_of_a_prepared_set_is_named(
  harm, prepared, empty, network
):
  """One line that says which folder to remove and how to prepare it again."""
  shutil.copytree(prepared / 'texts', empty / 'texts')
  (file,) = empty.glob('texts/1.0.0/*array_record*')
  content = bytearray(file.read_bytes())
  if harm == 'flipped':
    content[content.find(b'brown')] ^= 1
  file.write_bytes(content[:100] if harm == 'short' else content)
  if harm == 'gone':
    file.unlink()
  with pytest.raises(
    ValueError, match='are damaged: .* Remove this folder and'
  ):
    data.load('texts', 'train')
  assert not network


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
    ('ragged', 'train', "'image' must be of one fixed .* as ragged.npz"),
    ('regression', 'train', "target 'label' must be a class label; got Scal"),
    ('sentences', 'train', "'image' must be .* numbers .* no such feature"),
    ('gaps', 'train', "features of 'gaps' must be finite"),
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
  assert '\n' not in message
  assert str(empty) in message
  assert f'Run `python -m isjax.data.prepare {name}` (pip install' in message
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
  np.savez(empty / 'mine.npz')
  (empty / 'downloads').mkdir()
  with pytest.raises(ValueError, match='no data set is called') as raised:
    data.load(name, 'train')
  message = str(raised.value)
  assert '\n' not in message
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


@needs_npz
@needs_tfds
def test_real_prepared_mnist_is_the_npz():
  from_npz, facts = data.load('mnist', 'test')
  from_tfds, prepared_facts = data.load('mnist:3.0.1', 'test')
  assert prepared_facts == facts._replace(name='mnist:3.0.1')
  assert _rows(from_tfds) == _rows(from_npz)


@needs_tfds
def test_real_prepared_mnist_has_the_published_facts():
  batch, metadata = data.load('mnist:3.0.1', 'test')
  assert metadata.class_counts[:3] == (980, 1135, 1032)
  assert batch.inputs.shape == (10_000, 28, 28, 1)
