"""Sets of features, FILE/NAME, and the merging of equal records."""

import os

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import Batch, data

SPLITS = ('train', 'test')

needs_npz = pytest.mark.skipif(
  'ISJAX_DATA_DIR' not in os.environ, reason='ISJAX_DATA_DIR is not set'
)


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


def test_features_are_split_by_class_and_kept_as_they_are(tmp_path):
  """A quarter of each class is test; the splits make up the whole in order."""
  arrays = _features()
  np.savez(tmp_path / 'table.npz', **arrays)
  (train, about), (test, about_test) = (
    data.load('table/mine', split, data_dir=tmp_path) for split in SPLITS
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
  again, _ = data.load('table/mine', 'test', data_dir=tmp_path)
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
def test_features_of_a_bad_array_are_refused_by_name(case, tmp_path):
  replaced, message = _BAD_FEATURES[case]
  np.savez(tmp_path / 'table.npz', **_features() | replaced)
  with pytest.raises(ValueError, match=f'table.npz: {message}'):
    data.load('table/mine', 'train', data_dir=tmp_path)


@pytest.mark.parametrize('name', ['alone', 'none', ''])
def test_features_that_are_not_there_list_those_that_are(name, tmp_path):
  np.savez(tmp_path / 'table.npz', **_features())
  with pytest.raises(
    ValueError, match=f"no set '{name}'; it holds mine, other. Write it"
  ):
    data.load(f'table/{name}', 'train', data_dir=tmp_path)


def test_a_damaged_file_of_features_is_refused(tmp_path):
  (tmp_path / 'table.npz').write_bytes(b'not a zip file')
  with pytest.raises(ValueError, match='table.npz is damaged or no .npz file'):
    data.load('table/mine', 'train', data_dir=tmp_path)


def test_the_record_weights_of_features_are_split_with_them(tmp_path):
  """Each row keeps its own weight, a copy of its first feature."""
  arrays = _features()
  weights = np.abs(arrays['mine_x'][:, 0])
  np.savez(tmp_path / 'table.npz', **arrays, mine_w=weights)
  for split in SPLITS:
    batch, _ = data.load(
      'table/mine', split, data_dir=tmp_path, record_weights='w'
    )
    np.testing.assert_array_equal(
      batch.record_weights, np.abs(batch.inputs[:, 0])
    )
  with pytest.raises(ValueError, match='holds no mine_v; it holds mine_x'):
    data.load('table/mine', 'train', data_dir=tmp_path, record_weights='v')


def test_record_weights_of_another_number_are_refused(tmp_path):
  np.savez(tmp_path / 'table.npz', **_features(), mine_w=np.ones(40))
  with pytest.raises(ValueError, match=r'must be 41 numbers; .* \(40,\)'):
    data.load('table/mine', 'train', data_dir=tmp_path, record_weights='w')


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
