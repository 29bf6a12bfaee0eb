"""Laws of the sum tree: sums without drift, draws from integer ratios."""

import itertools

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from isjax import sum_tree
from isjax._words import Words
from isjax.sum_tree import SumTree

NAN, INF = np.nan, np.inf
SMALLEST, LARGEST = 2.0**-126, 2.0**97
SIZES = (1, 16, 17, 1000)
FALSE_ALARM = 6e-5  # four standard deviations

settings = hypothesis.settings(
  deadline=None, derandomize=True, max_examples=60, database=None
)
jitted_update = jax.jit(sum_tree.update)


@jax.jit
def many_updates(tree, indices, scores):
  """Updates step by step: indices i32[steps, b], scores f32[steps, b]."""

  def step(tree, batch):
    return sum_tree.update(tree, *batch), None

  return lax.scan(step, tree, (indices, scores))[0]


def draw_ten(key, tree):
  """Ten draws and their chances."""
  return sum_tree.sample(key, tree, (10,))


def families(size, rng):
  """Yields (name, scores f32[size]): smooth, sparse, extreme."""
  exponential = rng.exponential(size=size)
  first, last = np.arange(size) == 0, np.arange(size) == size - 1
  yield 'uniform', np.full(size, 1 / 3)
  yield 'exponential', exponential
  yield 'lognormal', rng.lognormal(0, 3, size)
  yield 'dominated', np.where(np.arange(size) == size // 2, 1e8, 1)
  yield 'half zeros', np.where(last | (rng.random(size) < 0.5), exponential, 0)
  yield 'first only', np.where(first, 3, 0)
  yield 'last only', np.where(last, 3, 0)
  yield 'smallest', SMALLEST * rng.integers(1, 1000, size)
  yield 'largest', np.minimum(LARGEST * 2 * rng.random(size), LARGEST)
  yield 'all scales', 2.0 ** rng.uniform(-126, 97, size)
  yield 'dust', np.where(first, 1, 0.9 * 2**-24)


def numpy_rows(level):
  """The level in rows of 16, the last one filled up with zeros."""
  return np.pad(level, (0, -len(level) % 16)).reshape(-1, 16)


def numpy_sums(rows):
  """The sums of rows of 16, in the association that is promised."""
  eight = rows[:, :8] + rows[:, 8:]
  four = eight[:, :4] + eight[:, 4:]
  two = four[:, :2] + four[:, 2:]
  return two[:, 0] + two[:, 1]


def numpy_tree(scores):
  """A second implementation of `build`, for scores in range."""
  levels = [scores.astype(np.float32)]
  while True:
    sums = numpy_sums(numpy_rows(levels[-1]))
    if len(sums) == 1:
      return SumTree((*levels, sums))
    levels.append(numpy_rows(sums).ravel())


def numpy_shares(rows):
  """The integer shares u64[b, 16]; in float64 their formula is exact."""
  _, exponent = np.frexp(numpy_sums(rows))  # sum < 2^exponent
  scaled = np.ldexp(rows.astype(np.float64), 31 - exponent[:, None])
  return np.where(rows > 0, np.maximum(scaled, 1), 0).astype(np.uint64)


def numpy_law(tree):
  """The products of shares over their sums, in float64."""
  law = np.ones(1)
  for level in map(np.asarray, tree.levels[-2::-1]):
    shares = numpy_shares(numpy_rows(level))
    ratios = shares / np.maximum(shares.sum(1, keepdims=True), 1)
    law = (law[: len(ratios), None] * ratios).ravel()
  return law[: len(tree.levels[0])]


def assert_same_trees(actual, expected):
  """Asserts that shapes, dtypes and bits of all levels agree."""
  for ours, theirs in zip(actual.levels, expected.levels, strict=True):
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(ours), theirs, strict=True)


def check_draws(draws, law):
  """Asserts that no draw is impossible, and that all scatter as chance has it.

  Outcomes expected less than 5 times are counted as one.
  """
  counts = np.bincount(np.ravel(draws), minlength=len(law))
  assert len(counts) == len(law)
  assert not counts[law == 0].any()
  law = np.asarray(law, np.float64) / np.sum(law, dtype=np.float64)
  rare = law * counts.sum() < 5
  counts = np.append(counts[~rare], counts[rare].sum())
  law = np.append(law[~rare], law[rare].sum())
  counts, law = counts[law > 0], law[law > 0]
  assert len(law) == 1 or (
    stats.chisquare(counts, law * counts.sum()).pvalue > FALSE_ALARM
  )


@pytest.mark.parametrize('size', [*SIZES, 255, 256, 257, 4097])
def test_build_sums_in_one_association(size):
  """Levels and every sum are those of another implementation, bit for bit."""
  for _, scores in families(size, np.random.default_rng(0)):
    tree = sum_tree.build(scores.astype(np.float32))
    assert_same_trees(tree, numpy_tree(scores))


@pytest.mark.parametrize('size', [17, 1000, 100_003])
def test_updates_never_drift(size):
  """After 1e5 updates at all scales every sum is that of its children."""
  rng = np.random.default_rng(1)
  steps, batch = 100_000, 8
  scores = 2.0 ** rng.uniform(-60, 60, (steps, batch))
  scores = np.where(rng.random(scores.shape) < 0.2, 0, scores)
  scores = scores.astype(np.float32)
  indices = rng.integers(0, size, (steps, batch), np.int32)
  leaves = rng.exponential(size=size).astype(np.float32)
  tree = many_updates(sum_tree.build(leaves), indices, scores)
  # The last step that has an index decides; in a step, the largest score.
  step = np.repeat(np.arange(steps), batch)
  order = np.lexsort((scores.ravel(), step))
  leaves[indices.ravel()[order]] = scores.ravel()[order]
  assert_same_trees(tree, numpy_tree(leaves))
  assert_same_trees(tree, sum_tree.build(leaves))


@pytest.mark.parametrize('size', [7, 300])
def test_the_largest_of_equal_indices_stands(size):
  """In any order; indices out of bounds are dropped inside jit."""
  before = np.random.default_rng(2).exponential(size=size).astype(np.float32)
  index = st.one_of(
    st.integers(0, 6),
    st.integers(-20, size + 300),
    st.sampled_from([size, -size, 2**31 - 1, -(2**31)]),
  )
  score = st.sampled_from([0, 1, 2, 1 / 3, 1e-6, 1e20])
  batches = st.lists(st.tuples(index, score), min_size=12, max_size=12)

  @settings
  @hypothesis.given(batches, st.randoms(use_true_random=False))
  def check(batch, random):
    expected = before.copy()
    inside = [(i, s) for i, s in batch if 0 <= i < size]
    for i, pairs in itertools.groupby(sorted(inside), lambda pair: pair[0]):
      expected[i] = max(s for _, s in pairs)
    for _ in range(2):
      indices, scores = zip(*batch, strict=True)
      tree = jitted_update(
        sum_tree.build(before),
        np.array(indices, np.int32),
        np.array(scores, np.float32),
      )
      assert_same_trees(tree, numpy_tree(expected))
      random.shuffle(batch)

  check()


def test_scores_made_in_the_same_program_keep_the_law():
  """Fused with what computes the scores, sums are still those of the leaves."""
  x = np.random.default_rng(3).normal(size=1000).astype(np.float32)
  tree = jax.jit(lambda x: sum_tree.build(jnp.exp(x) + x * x))(x)
  assert_same_trees(tree, numpy_tree(np.asarray(tree.levels[0])))


ROWS = hnp.arrays(
  np.float32,
  (1, 16),
  elements=st.one_of(
    st.just(0.0), st.floats(SMALLEST, 2.0**123, width=32), st.floats(1, 2)
  ),
)
jitted_shares = jax.jit(sum_tree._shares)


@settings
@hypothesis.given(ROWS)
def test_shares_are_the_rounded_scores(rows):
  """In units of the sum's exponent; 0 only for 0; the total fits 32 bits."""
  shares = np.asarray(jitted_shares(rows)).astype(np.uint64)
  np.testing.assert_array_equal(shares, numpy_shares(rows))
  np.testing.assert_array_equal(shares > 0, rows > 0)
  if rows.any():
    assert 2**30 - 300 < shares.sum() < 2**31 + 600


def test_a_tail_by_hand():
  """1 : 3 with two units in 2^30 for what is too small, none for 0."""
  tree = sum_tree.build(np.array([1, 2.0**-40, 0, 3, SMALLEST], np.float32))
  quarter = 2**28
  shares = np.array([quarter, 1, 0, 3 * quarter, 1])
  expected = shares / (2**30 + 2)
  np.testing.assert_allclose(sum_tree.probabilities(tree), expected, rtol=1e-7)


def words(places):
  """Integers in [0, 2^64), of any shape, in two words each."""
  places = np.array(places, np.uint64)
  high, low = places >> np.uint64(32), places & np.uint64(2**32 - 1)
  return Words(high.astype(np.uint32), low.astype(np.uint32))


def parts(row):
  """Yields (lane, first and last of the 2^64 random integers that take it)."""
  shares = [int(share) for share in numpy_shares(row[None])[0]]
  total, end = sum(shares), 0
  for lane, share in enumerate(shares):
    if share > 0:
      first = -(-end * 2**64 // total)
      end += share
      yield lane, first, -(-end * 2**64 // total) - 1


@pytest.mark.parametrize('name', ['lognormal', 'half zeros', 'all scales'])
def test_draws_split_at_the_integer_thresholds(name):
  """The first and last random integer of each part lead to its child.

  Between them the descent is monotone, so the chance of a leaf is the product
  of its parts' lengths over 2^64: the ratios q / sum q to within 2^-64.
  """
  scores = dict(families(40, np.random.default_rng(4)))[name]
  tree = numpy_tree(scores)
  leaves, sums, _ = map(numpy_rows, tree.levels)
  expected, places = [], []
  for row, *upper in parts(sums[0]):
    for lane, *lower in parts(leaves[row]):
      for pair in itertools.product(upper, lower):
        expected.append(16 * row + lane)
        places.append(pair)
  places = list(zip(*places, strict=True))  # [levels, draws]
  assert set(expected) == set(np.flatnonzero(tree.levels[0]))
  nodes, chances = jax.jit(sum_tree._descend)(words(places), tree)
  np.testing.assert_array_equal(nodes, expected)
  np.testing.assert_allclose(chances, numpy_law(tree)[expected], rtol=4e-7)


@pytest.mark.parametrize('size', SIZES)
def test_the_published_law_is_that_of_the_integers(size):
  """To three roundings a level; 0 only for a score of 0."""
  for name, scores in families(size, np.random.default_rng(5)):
    tree = sum_tree.build(scores.astype(np.float32))
    law, exact = np.asarray(sum_tree.probabilities(tree)), numpy_law(tree)
    tolerance = 3.1 * 2**-24 * (len(tree.levels) - 1)
    assert np.all(np.abs(law - exact) <= tolerance * exact), name
    np.testing.assert_array_equal(law > 0, scores > 0, name)


@pytest.mark.parametrize('size', SIZES)
def test_the_law_is_published_alike_everywhere(size, key):
  """Of all, at some indices and with the draws: the same bits."""
  indices = np.random.default_rng(6).integers(0, size, (7, 3))
  for name, scores in families(size, np.random.default_rng(7)):
    tree = sum_tree.build(scores.astype(np.float32))
    key, subkey = jax.random.split(key)
    law = np.asarray(sum_tree.probabilities(tree))
    drawn, chances = sum_tree.sample(subkey, tree, (300,))
    np.testing.assert_array_equal(chances, law[drawn], name)
    some = sum_tree.probabilities_at(tree, indices)
    np.testing.assert_array_equal(some, law[indices], name)


def test_probabilities_at_is_zero_out_of_bounds():
  """Inside jit, where nothing can be raised, also if all scores are 0."""
  at = jax.jit(sum_tree.probabilities_at)
  for size, scores in itertools.product((7, 16, 40), (np.ones, np.zeros)):
    indices = np.array([-(2**31), -1, 0, size - 1, size, size + 9, 2**31 - 1])
    actual = at(sum_tree.build(scores(size)), indices)
    expected = [0, 0, 1 / size, 1 / size, 0, 0, 0]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize('size', SIZES)
def test_the_law_follows_the_scores(size):
  """Within 5e-7 + 1e-9 / a on each level, a the node's part of its row."""
  for name, scores in families(size, np.random.default_rng(8)):
    tree = sum_tree.build(scores.astype(np.float32))
    scores = np.asarray(tree.levels[0], np.float64)
    sums, lower, upper = scores, np.ones(size), np.ones(size)
    leaves = np.arange(size)
    for height in range(len(tree.levels) - 1):
      parents = numpy_rows(sums).sum(1)
      own, whole = (
        nodes[leaves // 16**power]
        for nodes, power in ((sums, height), (parents, height + 1))
      )
      with np.errstate(divide='ignore', invalid='ignore'):
        error = np.where(own > 0, 5e-7 + 1e-9 / (own / whole), 0)
      lower, upper = lower * np.maximum(1 - error, 0), upper * (1 + error)
      sums = parents
    true, law = scores / scores.sum(), np.asarray(sum_tree.probabilities(tree))
    assert np.all((lower * true <= law) & (law <= upper * true)), name


@pytest.mark.parametrize('size', [17, 1000])
def test_draws_of_every_family_pass_chi_square(size, key):
  """Draws of many keys follow the scores; a score of 0 is never drawn."""
  draw = jax.jit(
    jax.vmap(
      lambda key, tree: sum_tree.sample(key, tree, (5000,))[0], (0, None)
    )
  )
  for _, scores in families(size, np.random.default_rng(9)):
    tree = sum_tree.build(scores.astype(np.float32))
    key, subkey = jax.random.split(key)
    draws = draw(jax.random.split(subkey, 40), tree)
    check_draws(draws, numpy_law(tree))


@pytest.mark.parametrize('factor', [1e-4, 1e-6, 1e-12])
def test_no_draw_is_lost_after_scores_fall(factor, key):
  """All scores fall and most of them to 0: no empty leaf, no padding."""
  size, rng = 1000, np.random.default_rng(10)
  tree = sum_tree.build(rng.lognormal(0, 1, size))
  scores = rng.lognormal(0, 1, size) * factor
  scores = np.where(rng.random(size) < 0.8, 0, scores).astype(np.float32)
  order = rng.permutation(size).reshape(-1, 100)
  tree = many_updates(tree, order.astype(np.int32), scores[order])
  draws, chances = sum_tree.sample(key, tree, (200_000,))
  law = scores / scores.sum(dtype=np.float64)
  check_draws(draws, law)
  np.testing.assert_allclose(chances, law[draws], rtol=2e-6)


def test_draws_are_independent_within_a_key(key):
  """Neighbouring draws follow the product law, over two levels."""
  scores = np.zeros(20)
  scores[[1, 7, 16, 19]] = 1, 2, 3, 0.5
  draws, _ = sum_tree.sample(key, sum_tree.build(scores), (100_000, 2))
  pairs = np.asarray(draws) @ np.array([20, 1])
  check_draws(pairs, np.outer(scores, scores).ravel())


def test_draws_are_fair_beyond_two_to_the_24(key):
  """Where float32 uniforms miss most leaves, every residue is drawn alike."""
  size = 2**24 + 2**23 + 5
  tree = jax.jit(lambda: sum_tree.build(jnp.ones(size)))()
  draws, chances = sum_tree.sample(key, tree, (200_000,))
  np.testing.assert_allclose(chances, 1 / size, rtol=1e-6)
  for modulus in (2, 16, 17):
    residues = np.arange(modulus)
    check_draws(draws % modulus, -((residues - size) // modulus))


@pytest.mark.parametrize('size', [1, 7, 1000])
def test_a_tree_of_zeros_is_uniform(size, key):
  """Each leaf has the chance 1/N, until a score comes, and after the last."""
  tree = sum_tree.build(np.zeros(size))
  everywhere = np.full(size, np.float32(1 / size))
  for _ in range(2):
    np.testing.assert_array_equal(sum_tree.probabilities(tree), everywhere)
    key, subkey = jax.random.split(key)
    draws, chances = sum_tree.sample(subkey, tree, (100_000,))
    check_draws(draws, everywhere)
    np.testing.assert_array_equal(chances, everywhere[draws])
    tree = sum_tree.update(tree, [size - 1], [2.0])
    draws, chances = sum_tree.sample(subkey, tree, (100_000,))
    assert np.all((draws == size - 1) & (chances == 1))
    tree = sum_tree.update(tree, [size - 1], [0])


@pytest.mark.parametrize(
  ('scores', 'read_as'),
  [
    ([1, NAN, 3], [1, 0, 3]),
    ([1, -2, 3], [1, 0, 3]),
    ([1, -INF, 3], [1, 0, 3]),
    ([1, -1e-45, -0.0], [1, 0, 0]),
    ([1e-45, 1.1e-38, SMALLEST], [0, 0, SMALLEST]),
    ([INF, 1, 0], [LARGEST, 1, 0]),
    ([3e38, LARGEST, 1e29], [LARGEST, LARGEST, 1e29]),
    ([NAN, -INF, 0], [0, 0, 0]),
  ],
)
def test_bad_scores_inside_jit(scores, read_as):
  """Inside jit bad scores count as the contract says."""
  scores = np.array(scores, np.float32)
  expected = numpy_tree(np.array(read_as))
  assert_same_trees(jax.jit(sum_tree.build)(scores), expected)
  ones, all_three = sum_tree.build(np.ones(3)), np.arange(3)
  assert_same_trees(jitted_update(ones, all_three, scores), expected)


def test_sums_stay_finite():
  """2^30 of the largest scores sum to 2^127."""
  scores = np.full(1 << 15, INF, np.float32)
  root = jax.jit(sum_tree.build)(scores).levels[-1]
  assert root == LARGEST * 2**15
  assert np.isfinite(np.float32(LARGEST) * np.float32(2**30))


@settings
@hypothesis.given(
  hnp.arrays(np.float32, 3, elements=st.floats(width=32, allow_subnormal=True))
)
def test_kernels_are_total(scores):
  """Any three bit patterns give a law: numbers >= 0 that sum to one."""
  tree = jax.jit(sum_tree.build)(scores)
  law = np.asarray(sum_tree.probabilities(tree), np.float64)
  assert np.all(law >= 0)
  assert abs(law.sum() - 1) < 1e-6
  draws, chances = sum_tree.sample(jax.random.key(0), tree, (4,))
  assert np.all(chances == law[draws])
  assert np.all(chances > 0)


@pytest.mark.parametrize(
  'call',
  [
    sum_tree.build,
    lambda s: sum_tree.update(sum_tree.build(np.ones(5)), np.arange(3), s),
  ],
)
@pytest.mark.parametrize(
  ('scores', 'message'),
  [
    ([1.0, NAN, -1.0], r'scores\[1\] = nan.* set it to 0'),
    ([1.0, 2.0, -0.5], r'scores\[2\] = -0.5.* set it to 0'),
    ([INF, 2.0, 1.0], r'scores\[0\] = inf.* set it to 0'),
    ([2.0, 1e300, 1.0], r'scores\[1\] = 1e\+300.* set it to 0'),
    ([2, -3, 1], r'scores\[1\] = -3.* set it to 0'),
    (1.0, r'scores must be one axis .*got shape \(\)'),
    (np.ones((2, 3)), r'scores must be one axis .*vmap.*got shape \(2, 3\)'),
    ([True] * 3, r'scores must be floats.*got dtype bool'),
    (['1'] * 3, r'scores must be floats.*got dtype <U1'),
  ],
)
def test_bad_scores_raise_eagerly(call, scores, message):
  """The error names the first bad score and a way out."""
  with pytest.raises(ValueError, match=message):
    call(scores)


@pytest.mark.parametrize(
  ('indices', 'message'),
  [
    ([0, 5], r'must lie in \[0, 5\).*got 5'),
    ([-1, 2], r'must lie in \[0, 5\).*got -1'),
    ([0.0, 1.0], 'must be integers; got dtype float64'),
    ([True, False], 'must be integers; got dtype bool'),
  ],
)
def test_bad_indices_raise_eagerly(indices, message):
  """An index out of bounds is an error where it can be seen."""
  tree = sum_tree.build(np.ones(5))
  with pytest.raises(ValueError, match=message):
    sum_tree.update(tree, indices, np.ones(2))
  with pytest.raises(ValueError, match=message):
    sum_tree.probabilities_at(tree, indices)


@pytest.mark.parametrize('shape', [(), (3,), (2, 1)])
def test_indices_and_scores_that_differ_in_shape_raise(shape):
  """Jitted or not, nothing is broadcast."""
  for update in (sum_tree.update, jitted_update):
    with pytest.raises(ValueError, match='indices and scores must have'):
      update(sum_tree.build(np.ones(5)), np.zeros(shape, int), np.ones(2))


def test_lengths_are_limited():
  """2^30 leaves trace; none, one leaf more and too many draws are errors."""
  longest = jax.ShapeDtypeStruct((2**30,), jnp.float32)
  tree = jax.eval_shape(sum_tree.build, longest)
  assert [level.shape[0] for level in tree.levels] == [
    2 ** (30 - 4 * height) for height in range(7)
  ] + [16, 1]
  indices, _ = jax.eval_shape(draw_ten, jax.random.key(0), tree)
  assert indices.dtype == jnp.int32
  jax.eval_shape(sum_tree.update, tree, indices, jnp.ones(10))
  for length in (0, 2**30 + 1):
    with pytest.raises(ValueError, match=r'1 to 2\^30 items'):
      jax.eval_shape(
        sum_tree.build, jax.ShapeDtypeStruct((length,), jnp.float32)
      )
  with pytest.raises(ValueError, match='at most 268435455 draws'):
    sum_tree.sample(jax.random.key(0), tree, (2**14, 2**14))


@pytest.mark.parametrize('shape', [3, (2, -1), (2.0,)])
def test_bad_shapes_raise(shape):
  """A shape that no draws can have is an error that shows it."""
  with pytest.raises(ValueError, match='tuple of integers >= 0'):
    sum_tree.sample(jax.random.key(0), sum_tree.build(np.ones(3)), shape)


@pytest.mark.parametrize('shape', [(), (3, 0), (10,), (2, 5)])
def test_sample_has_any_shape(shape, key):
  """Any shape holds the draws of its flat form."""
  tree = sum_tree.build(np.arange(40.0))
  flat = sum_tree.sample(key, tree, (int(np.prod(shape)),))
  for drawn, expected in zip(
    sum_tree.sample(key, tree, shape), flat, strict=True
  ):
    assert drawn.shape == shape
    assert drawn.dtype == expected.dtype
    np.testing.assert_array_equal(drawn.ravel(), expected)


def test_dtypes_are_read_as_float32():
  """Integers, halves and doubles give the tree of their float32 values."""
  expected = numpy_tree(np.array([0, 3, 1]))
  for dtype in (np.float16, np.float64, np.int32, jnp.bfloat16):
    for convert in (np.asarray, jnp.asarray):
      scores = convert(np.array([0, 3, 1], dtype))
      assert_same_trees(sum_tree.build(scores), expected)
      for indices in (np.arange(3, dtype=np.uint8), np.arange(3)):
        tree = sum_tree.update(sum_tree.build(np.ones(3)), indices, scores)
        assert_same_trees(tree, expected)


def test_same_key_same_draws(key, tmp_path):
  """Jitted or not, typed key or raw, after saving: the draws are the same."""
  tree = sum_tree.build(np.random.default_rng(11).exponential(size=40))
  expected, _ = draw_ten(key, tree)
  np.savez(tmp_path / 'tree.npz', *tree.levels)
  with np.load(tmp_path / 'tree.npz') as arrays:
    restored = SumTree(tuple(arrays[name] for name in arrays.files))
  for actual, _ in (
    jax.jit(draw_ten)(key, tree),
    draw_ten(jax.random.key_data(key), tree),
    draw_ten(key, restored),
  ):
    np.testing.assert_array_equal(actual, expected)
  other, _ = draw_ten(jax.random.fold_in(key, 1), tree)
  assert not np.array_equal(other, expected)


def test_golden_draws():
  """What a seed draws today it draws in every later version."""
  tree = sum_tree.build(np.arange(40.0) ** 2)
  draws, chances = draw_ten(jax.random.key(0), tree)
  golden = [35, 7, 36, 39, 35, 39, 24, 34, 34, 27]
  np.testing.assert_array_equal(draws, golden)
  np.testing.assert_allclose(chances, np.square(draws) / 20_540, rtol=1e-6)


def test_vmap_gives_the_single_results(key):
  """Five trees at once, updated and drawn from, are those of five calls."""
  rows = np.random.default_rng(12).exponential(size=(5, 40))
  rows = rows.astype(np.float32)
  keys, indices = jax.random.split(key, 5), np.arange(10).reshape(5, 2)
  trees = jax.vmap(sum_tree.build)(rows)
  trees = jax.vmap(sum_tree.update)(trees, indices, rows[:, :2])
  draws = jax.vmap(draw_ten)(keys, trees)
  for row, scores in enumerate(rows):
    own, drawn = jax.tree.map(lambda x, row=row: x[row], (trees, draws))
    tree = sum_tree.update(sum_tree.build(scores), indices[row], scores[:2])
    assert_same_trees(own, jax.tree.map(np.asarray, tree))
    single = draw_ten(keys[row], tree)
    jax.tree.map(np.testing.assert_array_equal, drawn, single)


def test_a_scan_works_in_place(key):
  """Draws and updates take memory for b numbers, not for N, and no copy."""
  size, batch = 40_003, 16

  def step(tree, key):
    indices, chances = sum_tree.sample(key, tree, (batch,))
    return sum_tree.update(tree, indices, chances), None

  tree = sum_tree.build(np.ones(size))
  buffers = [level.unsafe_buffer_pointer() for level in tree.levels]
  assert len(set(buffers)) == len(buffers)
  scan = jax.jit(lambda *args: lax.scan(step, *args)[0], donate_argnums=0)
  keys = jax.random.split(key, 5)
  compiled = scan.lower(tree, keys).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < size
  tree = compiled(tree, keys)
  assert [level.unsafe_buffer_pointer() for level in tree.levels] == buffers


def test_nothing_is_promoted_implicitly(key):
  """All functions trace under strict dtype promotion."""
  scores = jax.ShapeDtypeStruct((1000,), jnp.float32)
  indices = jax.ShapeDtypeStruct((1000,), jnp.int32)
  with jax.numpy_dtype_promotion('strict'):
    tree = jax.eval_shape(sum_tree.build, scores)
    jax.eval_shape(sum_tree.update, tree, indices, scores)
    jax.eval_shape(lambda tree: draw_ten(key, tree), tree)
    jax.eval_shape(sum_tree.probabilities, tree)
    jax.eval_shape(sum_tree.probabilities_at, tree, indices)


def test_types_stay_32_bit_under_x64(key):
  """With 64-bit types switched on, trees, draws and laws are the same."""
  scores = np.random.default_rng(13).exponential(size=40)
  tree = sum_tree.build(scores)
  expected = draw_ten(key, tree), sum_tree.probabilities(tree)
  with jax.enable_x64(True):
    wide = sum_tree.build(scores)
    wide = sum_tree.update(wide, np.arange(3), scores[:3])
    actual = draw_ten(key, wide), sum_tree.probabilities(wide)
    at = sum_tree.probabilities_at(wide, np.arange(40))
  assert_same_trees(wide, jax.tree.map(np.asarray, tree))
  np.testing.assert_array_equal(at, expected[1], strict=True)
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_array_equal(
      np.asarray(ours), np.asarray(theirs), strict=True
    ),
    actual,
    expected,
  )


def test_new_values_do_not_retrace(key):
  """Scores, indices and keys are data: one trace under jit."""
  traces = []

  @jax.jit
  def run(key, scores):
    traces.append(scores)
    tree = sum_tree.build(scores)
    indices, _ = draw_ten(key, tree)
    return sum_tree.update(tree, indices, jnp.ones(10))

  for fill in (1.0, 0.0, NAN, INF):
    key, subkey = jax.random.split(key)
    run(subkey, jnp.full(40, fill))
  assert len(traces) == 1
