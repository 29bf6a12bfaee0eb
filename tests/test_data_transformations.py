"""Transformations of a set: exact counts, golden rows, streams of their own."""

import hashlib
import os

import jax.numpy as jnp
import numpy as np
import pytest

from isjax import Batch, data
from isjax.data import changes, splits
from isjax.data.metadata import assemble

needs_npz = pytest.mark.skipif(
  'ISJAX_DATA_DIR' not in os.environ, reason='ISJAX_DATA_DIR is not set'
)

# One of each, for laws that all obey.
OF_IMAGES = ('average_blocks', 'permute_pixels')  # in test_data_pixels.py
EXAMPLES = {
  'asymmetric_noise': {'share': 0.3},
  'class_subset': {'classes': [2, 0]},
  'hold_out': {'share': 0.2},
  'human_noise': {'file': 'labels.npz', 'column': 'worse_label'},
  'long_tail': {'factor': 0.1},
  'record_weights': {'by': 1},
  'step_imbalance': {'factor': 0.1},
  'symmetric_noise': {'share': 0.3},
}


def made_up(labels, num_classes=None, split='train'):
  """A set whose inputs f32[N, 2] are its row numbers and their doubles."""
  labels = np.asarray(labels)
  rows = np.arange(len(labels), dtype=np.float32)
  return assemble(
    'made up',
    split,
    np.stack([rows, 2 * rows], 1),
    labels,
    num_classes=num_classes or 1 + labels.max(),
    max_value=None,
  )


def mixed(num_classes, per_class):
  """Balanced labels in a fixed order without a pattern."""
  random = np.random.RandomState(7)
  return random.permutation(np.repeat(np.arange(num_classes), per_class))


@pytest.fixture
def balanced(tmp_path, monkeypatch):
  """Four classes of 50, and a file of labels that people gave them."""
  labels = mixed(4, 50)
  np.savez(tmp_path / 'labels.npz', worse_label=(labels + 1) % 4)
  monkeypatch.setenv('ISJAX_DATA_DIR', str(tmp_path))
  return made_up(labels)


def flips(before, after):
  """The matrix of how many labels i became j."""
  size = before[1].num_classes
  matrix = np.zeros((size, size), int)
  np.add.at(matrix, (np.asarray(before[0].targets), after[0].targets), 1)
  return matrix


# ---- what all obey


def test_every_transformation_has_an_example():
  assert sorted(data.TRANSFORMATIONS) == sorted([*EXAMPLES, *OF_IMAGES])


@pytest.mark.parametrize('name', EXAMPLES)
def test_metadata_and_changes_tell_what_was_done(name, balanced):
  """Counts are those of the labels; rows are found by their indices."""
  batch, metadata, made = data.TRANSFORMATIONS[name](
    *balanced, seed=3, **EXAMPLES[name]
  )
  labels = np.asarray(batch.targets)
  counts = np.bincount(labels, minlength=metadata.num_classes)
  assert metadata.class_counts == tuple(counts)
  assert metadata.num_examples == len(labels) == len(made.indices)
  assert batch.inputs.shape == (len(labels), *metadata.input_shape)
  assert batch.targets.dtype == jnp.int32
  np.testing.assert_array_equal(batch.inputs[:, 0], made.indices)
  assert made.flipped.shape == labels.shape
  assert made.flipped.dtype == bool
  if name != 'class_subset':  # which gives new numbers
    was = np.asarray(balanced[0].targets)[made.indices]
    np.testing.assert_array_equal(made.flipped, labels != was)
  assert made.flipped.any() == name.endswith('noise')


@pytest.mark.parametrize('name', EXAMPLES)
def test_the_seed_alone_decides(name, balanced):
  """Not the global state of numpy, nor the inputs; the set is left alone."""
  transform, options = data.TRANSFORMATIONS[name], EXAMPLES[name]
  before = [np.array(leaf) for leaf in balanced[0][:2]]
  np.random.seed(1)
  first = transform(*balanced, seed=3, **options)
  state = np.random.get_state()[1]
  np.random.seed(2)
  other = balanced[0]._replace(inputs=-balanced[0].inputs - 1)
  if name == 'record_weights':
    other = balanced[0]
  second = transform(other, balanced[1], seed=3, **options)
  np.random.seed(1)
  np.testing.assert_array_equal(state, np.random.get_state()[1])
  np.testing.assert_array_equal(first[0].targets, second[0].targets)
  for one, two in zip(first[2], second[2], strict=True):
    np.testing.assert_array_equal(one, two)
  for leaf, kept in zip(balanced[0][:2], before, strict=True):
    np.testing.assert_array_equal(leaf, kept)
  third = transform(*balanced, seed=4, **options)
  draws = name not in ('class_subset', 'human_noise', 'record_weights')
  same = np.array_equal(first[2].indices, third[2].indices) and (
    np.array_equal(first[0].targets, third[0].targets)
  )
  assert same != draws


@pytest.mark.parametrize('seed', [-1, 2**32, 0.5, True, None])
@pytest.mark.parametrize('name', ['long_tail', 'symmetric_noise', 'hold_out'])
def test_a_bad_seed_is_named(name, seed, balanced):
  with pytest.raises(
    ValueError, match=r'seed must be an integer in \[0, 2\^32'
  ):
    data.TRANSFORMATIONS[name](*balanced, seed=seed, **EXAMPLES[name])


def test_no_two_draw_from_the_same_stream():
  """The same seed gives each transformation numbers of its own."""
  names = ('hold_out', 'symmetric_noise', 'asymmetric_noise')
  draws = [changes.random_of(0, name).randint(2**31, size=4) for name in names]
  draws.append(np.random.RandomState(0).randint(2**31, size=4))
  assert len({tuple(numbers) for numbers in draws}) == 4
  golden = [254475225, 1627486463, 833263785, 361780121]
  np.testing.assert_array_equal(draws[1], golden)


@pytest.mark.parametrize(
  'targets', [jnp.zeros((4, 2), jnp.int32), jnp.zeros(4)], ids=['2-d', 'float']
)
def test_targets_that_are_no_classes_are_refused(targets, balanced):
  batch = Batch(jnp.zeros((4, 2)), targets)
  with pytest.raises(ValueError, match='targets must be class numbers'):
    data.symmetric_noise(batch, balanced[1], seed=0, share=0.5)


# ---- imbalance

BENCHMARK = [  # (K, n_max, transformation, factor, N)
  (10, 5000, 'long_tail', 0.01, 12_406),
  (10, 5000, 'long_tail', 0.1, 20_431),
  (10, 5000, 'step_imbalance', 0.01, 25_250),
  (10, 5000, 'step_imbalance', 0.1, 27_500),
  (100, 500, 'long_tail', 0.01, 10_847),
  (100, 500, 'long_tail', 0.1, 19_573),
]


@pytest.mark.parametrize(
  ('num_classes', 'n_max', 'name', 'factor', 'num_examples'), BENCHMARK
)
def test_the_benchmark_has_its_published_sizes(
  num_classes, n_max, name, factor, num_examples
):
  """And the rows are those of its own procedure, with numpy's global state."""
  labels = mixed(num_classes, n_max)
  batch, metadata, made = data.TRANSFORMATIONS[name](
    *made_up(labels), seed=0, factor=factor
  )
  assert metadata.num_examples == num_examples
  if (num_classes, name, factor) == (10, 'long_tail', 0.01):
    counts = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    assert metadata.class_counts == counts
  state = np.random.get_state()
  np.random.seed(0)
  expected = []
  for label, count in enumerate(metadata.class_counts):
    places = np.where(labels == label)[0]
    np.random.shuffle(places)
    expected.append(places[:count])
  np.random.set_state(state)
  np.testing.assert_array_equal(made.indices, np.concatenate(expected))
  np.testing.assert_array_equal(
    batch.targets, np.repeat(np.arange(num_classes), metadata.class_counts)
  )


@pytest.mark.parametrize(
  ('seed', 'expected'),
  [(0, [4, 8, 2, 0, 1, 9, 11]), (1, [8, 4, 0, 2, 1, 9, 11])],
)
def test_golden_rows_of_a_long_tail(seed, expected):
  """Twelve rows of three classes, 4, 2 and 1 of which are kept."""
  labels = [0, 1, 0, 2, 0, 1, 2, 2, 0, 1, 1, 2]
  batch, _, made = data.long_tail(*made_up(labels), seed=seed, factor=0.25)
  assert batch.targets.tolist() == [0, 0, 0, 0, 1, 1, 2]
  assert made.indices.tolist() == expected


def test_an_unbalanced_set_keeps_its_profile():
  """The smallest class is n_max, wherever it stands; K may be odd, or 1."""
  labels = np.repeat(np.arange(3), [90, 40, 65])
  for name, expected in (
    ('long_tail', (40, 20, 10)),
    ('step_imbalance', (40, 10, 10)),
  ):
    transform = data.TRANSFORMATIONS[name]
    assert transform(*made_up(labels), seed=0, factor=0.25)[1].class_counts == (
      expected
    )
  one = data.long_tail(*made_up(np.zeros(5, int)), seed=0, factor=0.5)
  assert one[1].class_counts == (5,)


@pytest.mark.parametrize('name', ['long_tail', 'step_imbalance'])
def test_a_factor_of_one_keeps_all(name, balanced):
  _, metadata, made = data.TRANSFORMATIONS[name](*balanced, seed=0, factor=1.0)
  assert metadata == balanced[1]
  assert sorted(made.indices) == list(range(200))


@pytest.mark.parametrize(
  ('factor', 'message'),
  [
    (0.0, 'factor must be positive; got 0.0'),
    (1.5, r'factor must be in \[0, 1\]; got 1.5'),
    (0.01, "factor leaves class 3 of 'made up' without an example"),
  ],
)
def test_a_bad_factor_is_named(factor, message, balanced):
  with pytest.raises(ValueError, match=message):
    data.long_tail(*balanced, seed=0, factor=factor)


@needs_npz
@pytest.mark.parametrize(
  ('factor', 'digest'),
  [(0.01, 'ca97f03cbf4d69c4'), (0.1, 'c06ed1d31500880c')],
)
def test_real_long_tailed_cifar10_has_its_golden_rows(factor, digest):
  """Those of the benchmark with seed 0, as places in the official order."""
  folder = os.environ['ISJAX_DATA_DIR']
  with np.load(f'{folder}/cifar10.npz') as arrays:
    labels = arrays['y_train']
  made = data.long_tail(*made_up(labels), seed=0, factor=factor)[2]
  assert made.indices[:4].tolist() == [4030, 38518, 48266, 45556]
  content = made.indices.astype('<i4').tobytes()
  assert hashlib.sha256(content).hexdigest()[:16] == digest


# ---- noise


@pytest.mark.parametrize('share', [0.0, 0.1, 0.333, 0.4, 1.0])
def test_symmetric_noise_flips_its_share(share):
  """Exactly, of each class to within one; never to the label that it was."""
  before = made_up(np.repeat(np.arange(4), [50, 7, 31, 112]))
  after = data.symmetric_noise(*before, seed=0, share=share)
  made = after[2]
  assert made.flipped.sum() == round(share * 200)
  np.testing.assert_array_equal(made.indices, np.arange(200))
  matrix = flips(before, after)
  wrong = matrix.sum(1) - np.diag(matrix)
  assert (np.abs(wrong - share * matrix.sum(1)) < 1).all()


def test_symmetric_noise_makes_every_wrong_label_equally_likely():
  """Chi-square over the 90 kinds of flip, within 4 standard deviations."""
  before = made_up(mixed(10, 1000))
  matrix = flips(before, data.symmetric_noise(*before, seed=0, share=0.9))
  assert (np.diag(matrix) == 100).all()
  wrong = matrix[~np.eye(10, dtype=bool)]
  statistic = ((wrong - 100) ** 2 / 100).sum()
  freedom = 80
  assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


def test_golden_symmetric_noise():
  labels = [0, 1, 0, 2, 0, 1, 2, 2, 0, 1, 1, 2]
  batch, _, made = data.symmetric_noise(*made_up(labels), seed=0, share=0.5)
  assert np.flatnonzero(made.flipped).tolist() == [0, 4, 5, 6, 7, 10]
  assert batch.targets.tolist() == [2, 1, 0, 2, 2, 2, 1, 1, 0, 1, 0, 2]


def test_asymmetric_noise_of_cifar10_follows_the_usual_map():
  """truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog."""
  names = 'airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck'
  names = names.split(',')
  mistaken = {
    'truck': 'automobile',
    'bird': 'airplane',
    'deer': 'horse',
    'cat': 'dog',
    'dog': 'cat',
  }
  expected = np.diag([50] * 10)
  for name, wrong in mistaken.items():
    i, j = names.index(name), names.index(wrong)
    expected[i, i], expected[i, j] = 30, 20
  before = made_up(mixed(10, 50))
  after = data.asymmetric_noise(*before, seed=0, share=0.4, class_map='cifar10')
  np.testing.assert_array_equal(flips(before, after), expected)


# A line each; the classes of CIFAR-100 are numbered in alphabetical order.
SUPERCLASSES = """
beaver dolphin otter seal whale
aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip
bottle bowl can cup plate
apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe
bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf
bridge castle house road skyscraper
cloud forest mountain plain sea
camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk
crab lobster snail spider worm
baby boy girl man woman
crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor
"""


def test_asymmetric_noise_of_cifar100_stays_within_superclasses():
  """Each class becomes the next of its five, the last one the first."""
  numbers = {name: i for i, name in enumerate(sorted(SUPERCLASSES.split()))}
  expected = 4 * np.eye(100, dtype=int)
  for line in SUPERCLASSES.strip().splitlines():
    names = line.split()
    for name, wrong in zip(names, names[1:] + names[:1], strict=True):
      expected[numbers[name], numbers[wrong]] = 1
  before = made_up(mixed(100, 5))
  for class_map in ('cifar100', data.CLASS_MAPS['cifar100']):
    after = data.asymmetric_noise(
      *before, seed=0, share=0.2, class_map=class_map
    )
    np.testing.assert_array_equal(flips(before, after), expected)


def test_asymmetric_noise_takes_the_next_class_or_any_map(balanced):
  """In a circle; of a map, even of one whose keys became strings, no more."""
  after = data.asymmetric_noise(*balanced, seed=0, share=0.5)
  expected = 25 * (np.eye(4, dtype=int) + np.roll(np.eye(4, dtype=int), 1, 1))
  np.testing.assert_array_equal(flips(balanced, after), expected)
  for class_map in ({1: 3}, {'1': 3}):
    after = data.asymmetric_noise(
      *balanced, seed=0, share=1.0, class_map=class_map
    )
    expected = np.diag([50, 0, 50, 50])
    expected[1, 3] = 50
    np.testing.assert_array_equal(flips(balanced, after), expected)
  nothing = data.asymmetric_noise(*balanced, seed=0, share=1.0, class_map={})
  assert not nothing[2].flipped.any()


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('symmetric_noise', {'share': 1.2}, r'share must be in \[0, 1\]; got 1.2'),
    ('asymmetric_noise', {'share': -0.1}, r'share must be in \[0, 1\]'),
    (
      'asymmetric_noise',
      {'share': 0.1, 'class_map': 'cifar'},
      "class_map must be one of 'next', 'cifar10', 'cifar100'; got 'cifar'",
    ),
    (
      'asymmetric_noise',
      {'share': 0.1, 'class_map': 'cifar10'},
      r'class_map must map numbers in \[0, 4\); got 9 -> 1',
    ),
  ],
)
def test_bad_noise_is_named(name, options, message, balanced):
  with pytest.raises(ValueError, match=message):
    data.TRANSFORMATIONS[name](*balanced, seed=0, **options)


def test_symmetric_noise_needs_a_second_class():
  with pytest.raises(ValueError, match='num_classes must be at least 2; got 1'):
    data.symmetric_noise(*made_up([0, 0]), seed=0, share=0.5)


def test_human_noise_is_the_column_of_the_file(balanced, tmp_path):
  """Whose clean labels are those of the batch; absolute paths are kept."""
  clean = np.asarray(balanced[0].targets)
  noisy = np.where(np.arange(200) % 5 == 0, (clean + 2) % 4, clean)
  path = tmp_path / 'people.npz'
  np.savez(path, clean_label=clean, aggre_label=noisy.astype(np.uint8))
  for file in ('people.npz', path):
    batch, _, made = data.human_noise(
      *balanced, seed=0, file=file, column='aggre_label'
    )
    np.testing.assert_array_equal(batch.targets, noisy)
    np.testing.assert_array_equal(np.flatnonzero(made.flipped) % 5, 0)
    assert made.flipped.sum() == 40


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'other': np.zeros(200, int)}, "has no column 'noisy'; it has other"),
    ({'noisy': np.zeros(200)}, 'noisy must be integers; got float64'),
    ({'noisy': np.zeros((200, 1), int)}, r'class numbers \[N\]'),
    ({'noisy': np.zeros(199, int)}, 'the 200 examples given.* it has 199'),
    (
      {'noisy': np.zeros(200, int), 'clean_label': np.zeros(200, int)},
      'in their order; its clean labels are others',
    ),
    ({'noisy': np.full(200, 4)}, r'noisy must lie in \[0, 4\); got 4 to 4'),
    ({'noisy': np.array([None] * 200)}, 'is damaged .* Object arrays'),
  ],
)
def test_a_bad_file_of_labels_is_named(arrays, message, balanced, tmp_path):
  """An array of objects is never unpickled."""
  np.savez(tmp_path / 'bad.npz', **arrays)
  with pytest.raises(ValueError, match=f'bad.npz.*{message}'):
    data.human_noise(*balanced, seed=0, file='bad.npz', column='noisy')


def test_a_missing_file_of_labels_is_named(balanced):
  with pytest.raises(FileNotFoundError, match='no file of labels .*gone.npz'):
    data.human_noise(*balanced, seed=0, file='gone.npz', column='noisy')


# ---- classes


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_class_subset_is_numbered_anew(split):
  """In the order of the classes; rows keep theirs."""
  before = made_up([3, 0, 2, 2, 1, 3, 0, 2], split=split)
  batch, metadata, made = data.class_subset(*before, seed=0, classes=(3, 2))
  assert made.indices.tolist() == [0, 2, 3, 5, 7]
  assert batch.targets.tolist() == [0, 1, 1, 0, 1]
  assert (metadata.num_classes, metadata.class_counts) == (2, (2, 3))
  assert metadata.split == split


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    ([0, 0], r'classes must be distinct numbers in \[0, 5\); got \[0, 0\]'),
    ([5], r'classes must be distinct numbers in \[0, 5\)'),
    ([-1], r'classes must be distinct numbers in \[0, 5\)'),
    ([4], r"none of classes \[4\] has an example in 'made up'"),
    ([], 'none of classes'),
  ],
)
def test_bad_classes_are_named(classes, message):
  with pytest.raises(ValueError, match=message):
    data.class_subset(*made_up([0, 1, 3], 5), seed=0, classes=classes)


# ---- parts


@pytest.mark.parametrize('share', [0.1, 0.37, 0.9])
def test_the_parts_are_disjoint_exhaustive_and_stratified(share):
  before = made_up(np.repeat(np.arange(4), [50, 7, 31, 112]))
  train, validation = (
    data.hold_out(*before, seed=1, share=share, part=part)
    for part in ('train', 'validation')
  )
  rows = [part[2].indices.tolist() for part in (train, validation)]
  assert sorted(rows[0] + rows[1]) == list(range(200))
  assert rows == [sorted(rows[0]), sorted(rows[1])]
  assert [part[1].split for part in (train, validation)] == [
    'train',
    'validation',
  ]
  assert validation[1].num_examples == round(share * 200)
  counts = np.array([50, 7, 31, 112])
  assert (np.abs(validation[1].class_counts - share * counts) < 1).all()


def test_golden_parts():
  before = made_up([0, 1, 0, 2, 0, 1, 2, 2, 0, 1, 1, 2])
  held_out = data.hold_out(*before, seed=0, share=0.5, part='validation')
  assert held_out[2].indices.tolist() == [0, 1, 3, 6, 8, 9]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'share': 0.0}, 'share must leave both parts an example; got 0.0 of 200'),
    ({'share': 1.0}, 'share must leave both parts an example'),
    ({'share': 2}, r'share must be in \[0, 1\]'),
    (
      {'share': 0.1, 'part': 'test'},
      "part must be one of 'train', 'validation'; got 'test'",
    ),
  ],
)
def test_bad_parts_are_named(options, message, balanced):
  with pytest.raises(ValueError, match=message):
    data.hold_out(*balanced, seed=0, **options)


def test_stratified_marks_nothing_of_nothing():
  marked = splits.stratified(np.zeros(0, int), 0, np.random.RandomState(0))
  assert marked.shape == (0,)


# ---- record weights


def test_record_weights_are_a_column_that_is_no_input_any_more(balanced):
  batch, metadata, _ = data.record_weights(*balanced, seed=0, by=0)
  np.testing.assert_array_equal(batch.record_weights, np.arange(200))
  np.testing.assert_array_equal(batch.inputs[:, 0], 2 * np.arange(200))
  assert batch.record_weights.dtype == jnp.float32
  assert metadata.input_shape == (1,)


def test_record_weights_are_a_function_of_the_example(balanced):
  batch, metadata, _ = data.record_weights(
    *balanced, seed=0, by=lambda inputs, targets: inputs[:, 1] * targets
  )
  expected = 2 * np.arange(200) * np.asarray(balanced[0].targets)
  np.testing.assert_array_equal(batch.record_weights, expected)
  assert metadata == balanced[1]
  np.testing.assert_array_equal(batch.inputs, balanced[0].inputs)


def test_record_weights_follow_their_rows(balanced):
  """Through every subset that is taken afterwards."""
  weighted = data.record_weights(*balanced, seed=0, by=0)[:2]
  for name in ('long_tail', 'hold_out', 'class_subset', 'symmetric_noise'):
    batch, _, made = data.TRANSFORMATIONS[name](
      *weighted, seed=0, **EXAMPLES[name]
    )
    np.testing.assert_array_equal(batch.record_weights, made.indices)


@pytest.mark.parametrize(
  ('by', 'message'),
  [
    (2, r'by must be a column in \[0, 2\) or a function; got 2'),
    (-1, r'by must be a column in \[0, 2\)'),
    (True, r'by must be a column in \[0, 2\)'),
    ('w', "or a function; got 'w'"),
    (lambda inputs, targets: targets - 1, r"'made up': .* got weights\["),
    (lambda inputs, targets: inputs, r'must be 200 numbers; .* \(200, 2\)'),
  ],
)
def test_bad_record_weights_are_named(by, message, balanced):
  with pytest.raises(ValueError, match=message):
    data.record_weights(*balanced, seed=0, by=by)


def test_images_have_no_column_of_weights():
  images = np.zeros((3, 8, 8, 1), np.uint8)
  batch = assemble('made up', 'train', images, np.arange(3), num_classes=3)
  with pytest.raises(ValueError, match=r'inputs are uint8\[3, 8, 8, 1\]'):
    data.record_weights(*batch, seed=0, by=0)


# ---- one after the other


def test_transform_is_one_after_the_other(balanced):
  """Changes lead back to the set given; flips travel with their rows."""
  steps = {
    'symmetric_noise': {'share': 0.3},
    'hold_out': {'share': 0.2},
    'long_tail': {'factor': 0.2},
    'asymmetric_noise': {'share': 0.5, 'seed': 9},
  }
  batch, metadata, total = data.transform(*balanced, steps, seed=3)
  at = balanced
  indices, flipped = np.arange(200), np.zeros(200, bool)
  for name, options in steps.items():
    *at, made = data.TRANSFORMATIONS[name](*at, **{'seed': 3} | options)
    indices = indices[made.indices]
    flipped = flipped[made.indices] | made.flipped
  np.testing.assert_array_equal(batch.targets, at[0].targets)
  assert metadata == at[1]
  np.testing.assert_array_equal(total.indices, indices)
  np.testing.assert_array_equal(total.flipped, flipped)
  np.testing.assert_array_equal(batch.inputs[:, 0], total.indices)
  was = np.asarray(balanced[0].targets)[total.indices]
  assert (total.flipped | (batch.targets == was)).all()


def test_transform_of_nothing_changes_nothing(balanced):
  batch, metadata, made = data.transform(*balanced, {}, seed=0)
  assert (batch, metadata) == balanced
  np.testing.assert_array_equal(made.indices, np.arange(200))
  assert not made.flipped.any()


def test_only_the_task_changes_beside_the_training_set():
  """A test set keeps its counts and labels, in the new task's classes."""
  steps = {
    'class_subset': {'classes': [0, 1]},
    'record_weights': {'by': 1},
    'symmetric_noise': {'share': 0.5},
    'long_tail': {'factor': 0.1},
    'hold_out': {'share': 0.5},
  }
  test = made_up(mixed(4, 30), split='test')
  batch, metadata, made = data.transform(*test, steps, seed=0)
  assert metadata.class_counts == (30, 30)
  assert not made.flipped.any()
  np.testing.assert_array_equal(batch.record_weights, 2 * batch.inputs[:, 0])
  train = test[0], test[1]._replace(split='train')
  changed = data.transform(*train, steps, seed=0)
  assert changed[1].num_classes == metadata.num_classes
  assert changed[1].num_examples < metadata.num_examples
  assert changed[2].flipped.any()


def test_noise_that_follows_leaves_the_held_out_part_alone(balanced):
  """So the settings of a run describe its validation set too."""
  steps = {'hold_out': {'share': 0.3, 'part': 'validation'}}
  clean = data.transform(*balanced, steps, seed=0)
  steps['symmetric_noise'] = {'share': 0.5}
  again = data.transform(*balanced, steps, seed=0)
  np.testing.assert_array_equal(clean[0].targets, again[0].targets)
  assert again[1].split == 'validation'


@pytest.mark.parametrize(
  ('steps', 'message'),
  [
    ({'noise': {}}, "transformation must be one of .* got 'noise'"),
    ({'long_tail': {}}, "long_tail: missing .* 'factor'"),
    ({'long_tail': {'mu': 0.1}}, 'long_tail: '),
    ({'hold_out': {'share': 2.0}}, r'share must be in \[0, 1\]'),
  ],
)
def test_transform_names_what_there_is_not(steps, message, balanced):
  """A transformation, an option, a value."""
  with pytest.raises(ValueError, match=message):
    data.transform(*balanced, steps, seed=0)
