"""Laws of the alias table: exact masses, exact pairing, draws without bias."""

from typing import NamedTuple

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
from jax import lax
from jax.extend.random import threefry_2x32
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import _words, alias
from isjax.alias import Status

SIZES = (1, 2, 3, 5, 7, 64, 1000, 4097, 100_000, 1_000_000)
LAW_SIZES = (1, 7, 64, 1000)
BUCKET = 1 << 32
SIGMAS = 4.0  # of a normal variable: a false alarm in 16,000 for each check
FLOAT32_MAX = float(np.finfo(np.float32).max)

settings = hypothesis.settings(
  deadline=None, derandomize=True, max_examples=40, database=None
)
both_sums = jax.jit(lambda a: (_words.prefix_sums(a), _words.total(a)))
both_kernels = jax.jit(lambda mass: (alias._sweep(mass), alias._search(mass)))


def families(size, rng):
  """Yields (name, weights f32[size]): smooth, sparse, extreme, denormal."""
  exponential = rng.exponential(size=size)
  first, last = np.arange(size) == 0, np.arange(size) == size - 1
  yield 'uniform', np.ones(size)
  yield 'exponential', exponential
  yield 'lognormal', rng.lognormal(0, 3, size)
  yield 'dominated', np.where(np.arange(size) == size // 2, 1e8, 1)
  yield 'half zeros', np.where(last | (rng.random(size) < 0.5), exponential, 0)
  yield 'first only', np.where(first, 3, 0)
  yield 'last only', np.where(last, 3, 0)
  yield 'all denormal', 1e-45 * rng.integers(1, 1000, size)
  yield 'some denormal', np.where(np.arange(size) % 3, exponential, 1e-42)
  yield 'infinite sum', np.minimum(exponential * 1e38, FLOAT32_MAX)
  yield 'pareto', rng.pareto(0.5, size) + 1
  yield 'two values', np.where(np.arange(size) < size // 2, 1, 1 / 3)
  yield 'ramp', np.arange(1, size + 1)
  yield 'dust', np.where(first, 1, 0.9 * 2**-24)  # lost in a running sum


class Case(NamedTuple):
  """Weights and the table built from them, as NumPy arrays."""

  name: str
  weights: np.ndarray
  table: alias.AliasTable


@pytest.fixture(scope='module', params=SIZES)
def cases(request):
  """The families of one size, built eagerly."""
  result = []
  for name, weights in families(request.param, np.random.default_rng(0)):
    weights = weights.astype(np.float32)
    table = jax.tree.map(np.asarray, alias.build(weights))
    result.append(Case(name, weights, table))
  return result


def masses(table):
  """Returns m_i as u64[N]."""
  words = np.asarray(table.mass).astype(np.uint64)
  return (words[:, 0] << np.uint64(32)) | words[:, 1]


def reconstructed(table):
  """Returns what each item owns of all the buckets, as u64[N]."""
  threshold = np.asarray(table.threshold).astype(np.uint64)
  full = np.asarray(table.alias) == np.arange(len(threshold))
  own = np.where(full, np.uint64(BUCKET), threshold)
  owned = own.copy()
  np.add.at(owned, np.asarray(table.alias), np.uint64(BUCKET) - own)
  return owned


def check_exact(table):
  """Asserts the integer laws of a table."""
  assert sum(masses(table).tolist()) == len(table.mass) * BUCKET
  np.testing.assert_array_equal(reconstructed(table), masses(table))


def check_law(table, weights):
  """Asserts that masses follow the weights, in float64."""
  weights = weights.astype(np.float64)
  expected = weights / weights.sum() * len(weights)  # in buckets
  actual = masses(table) / BUCKET
  np.testing.assert_array_equal(actual > 0, weights > 0)
  error = np.abs(actual - expected)
  assert np.all(error <= np.where(expected >= 1e-3, 1e-6 * expected, 1e-9))


def check_kernels_agree(table):
  """Asserts that sweep and search both give this very table."""
  words = _words.Words(table.mass[:, 0], table.mass[:, 1])
  for threshold, other in both_kernels(words):
    np.testing.assert_array_equal(threshold, table.threshold)
    np.testing.assert_array_equal(other, table.alias)


def test_masses_sum_to_all_buckets(cases):
  """The masses sum to N 2^32: nothing is lost, in any family."""
  for case in cases:
    total = sum(masses(case.table).tolist())
    assert total == len(case.weights) * BUCKET, case.name
    assert case.table.status == 0, case.name


def test_table_gives_back_every_mass(cases):
  """Thresholds and aliases together give item i its m_i, as integers."""
  for case in cases:
    assert case.table.alias.min() >= 0
    assert case.table.alias.max() < len(case.weights)
    np.testing.assert_array_equal(
      reconstructed(case.table), masses(case.table), err_msg=case.name
    )


def test_masses_follow_the_weights(cases):
  """Mass where w > 0 and nowhere else, within 1e-6 down to 1e-3 buckets."""
  for case in cases:
    check_law(case.table, case.weights)


def test_sweep_equals_search_bitwise(cases):
  """The kernel of the CPU and that of accelerators give the same table."""
  for case in cases:
    check_kernels_agree(case.table)


def test_probabilities_are_the_rounded_masses(cases):
  """p_i is m_i / (N 2^32) within four roundings, so 0 only for mass 0."""
  for case in cases:
    exact = masses(case.table) / (len(case.weights) * BUCKET)
    actual = np.asarray(alias.probabilities(case.table), np.float64)
    assert np.all(np.abs(actual - exact) <= 4 * 2**-24 * exact), case.name


@pytest.mark.parametrize('size', LAW_SIZES)
def test_laws_hold_for_any_weights(size):
  """Whatever float32 weights come, the exact laws and the accuracy hold."""
  values = st.floats(0, FLOAT32_MAX, width=32, allow_subnormal=True)

  @settings
  @hypothesis.given(hnp.arrays(np.float32, size, elements=values))
  def check(weights):
    hypothesis.assume(weights.any())
    table = jax.tree.map(np.asarray, alias.build(weights))
    check_exact(table)
    check_law(table, weights)
    check_kernels_agree(table)

  check()


def test_uniform_weights_fill_every_bucket():
  """Equal weights of any size give m_i = 2^32: the law is uniform exactly."""
  for weight in (1.0, 1 / 3, 1e-45, FLOAT32_MAX):
    table = alias.build(np.full(1000, weight, np.float32))
    assert set(masses(table).tolist()) == {BUCKET}
    np.testing.assert_array_equal(table.alias, np.arange(1000))


def test_two_items_by_hand():
  """Weights 1 and 3: bucket 0 is half item 0's, bucket 1 full."""
  table = alias.build(np.array([1.0, 3.0], np.float32))
  np.testing.assert_array_equal(table.threshold, [1 << 31, 0])
  np.testing.assert_array_equal(table.alias, [1, 1])
  np.testing.assert_array_equal(table.mass, [[0, 1 << 31], [1, 1 << 31]])


def test_overdrawn_items_by_hand():
  """Item 0 gives a quarter bucket more than it has; item 1 makes it good."""
  table = alias.build(np.array([5.0, 7.0, 4.0, 2.0, 2.0], np.float32))
  quarter = 1 << 30
  np.testing.assert_array_equal(
    table.threshold, np.array([3, 0, 0, 2, 2]) * quarter
  )
  np.testing.assert_array_equal(table.alias, [1, 1, 2, 0, 1])


def test_float_sum_keeps_dust():
  """A million weights that a running float32 sum drops all count."""
  size = 1_000_000
  dust = np.full(size, 0.9 * 2**-24, np.float32)
  dust[0] = 1
  assert np.cumsum(dust)[-1] == 1
  total = float(jax.jit(alias._float_sum)(dust))
  assert abs(total / dust.sum(dtype=np.float64) - 1) < 2**-19


def test_round_to_words_is_to_nearest():
  """2^32 x to the nearest integer, for every x from denormals to 2^31."""
  mantissas = np.random.default_rng(8).uniform(1, 2, (180, 50))
  values = np.ldexp(mantissas, np.arange(-149, 31)[:, None])
  values = np.r_[0, values.astype(np.float32).ravel()].astype(np.float32)
  words = jax.jit(alias._round_to_words)(values)
  for x, high, low in zip(values, *map(np.asarray, words), strict=True):
    rounded = (int(high) << 32) + int(low)
    assert abs(rounded - float(x) * BUCKET) <= 0.5


@settings
@hypothesis.given(hnp.arrays(np.uint64, 700, elements=st.integers(0, 2**54)))
def test_words_add_as_integers(values):
  """Prefix sums and totals of two-word integers are those of Python."""
  words = _words.Words(
    (values >> np.uint64(32)).astype(np.uint32), values.astype(np.uint32)
  )
  sums, total = both_sums(words)
  expected = np.cumsum(values)
  np.testing.assert_array_equal(sums.high, expected >> np.uint64(32))
  np.testing.assert_array_equal(sums.low, expected.astype(np.uint32))
  assert (int(total.high) << 32) + int(total.low) == sum(values.tolist())


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
  ('weights', 'read_as', 'status'),
  [
    ([1, NAN, 3], [1, 0, 3], Status.NOT_A_NUMBER),
    ([1, -2, 3], [1, 0, 3], Status.NEGATIVE),
    ([1, -INF, 3], [1, 0, 3], Status.NEGATIVE),
    ([-1e-45, 1, 1], [0, 1, 1], Status.NEGATIVE),
    ([1, INF, INF], [0, 1, 1], Status.INFINITE),
    ([0, 0, -0.0], [1, 1, 1], Status.ALL_ZERO),
    ([NAN, -1, 0], [1, 1, 1], ~Status.INFINITE),
    ([NAN, -1, INF], [0, 0, 1], ~Status.ALL_ZERO),
    ([1, 2, -0.0], [1, 2, 0], Status(0)),
  ],
)
def test_bad_weights_inside_jit(weights, read_as, status):
  """Inside jit bad weights count as the contract says, and status tells."""
  actual = jax.jit(alias.build)(np.array(weights, np.float32))
  expected = jax.jit(alias.build)(np.array(read_as, np.float32))
  assert Status(int(actual.status)) == status
  for ours, theirs in zip(actual[:3], expected[:3], strict=True):
    np.testing.assert_array_equal(ours, theirs)


@settings
@hypothesis.given(
  hnp.arrays(np.float32, 3, elements=st.floats(width=32, allow_subnormal=True))
)
def test_kernel_is_total(weights):
  """Any three bit patterns give an exact table inside jit."""
  table = jax.jit(alias.build)(weights)
  check_exact(table)
  status = Status(int(table.status))
  assert (Status.NOT_A_NUMBER in status) == np.isnan(weights).any()
  assert (Status.NEGATIVE in status) == (weights < 0).any()
  assert (Status.INFINITE in status) == (weights == np.inf).any()
  assert (Status.ALL_ZERO in status) == (not (weights > 0).any())


@pytest.mark.parametrize('function', [alias.build, alias.validate_weights])
@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    ([1.0, NAN, -1.0], r'weights\[1\] = nan.* set it to 0'),
    ([1.0, 2.0, -0.5], r'weights\[2\] = -0.5.* set it to 0'),
    ([INF, 2.0], r'weights\[0\] = inf.* set it to 0'),
    ([2.0, 1e300], r'weights\[1\] = 1e\+300.* set it to 0'),
    ([2, -3], r'weights\[1\] = -3.* set it to 0'),
    ([0.0, 0.0], r'all be 0.*weights\[0\] = 0.0.* Mix them'),
    ([1e-60], r'all be 0.*weights\[0\] = 1e-60.* Mix them'),
    ([], r'weights must be one axis .*got shape \(0,\)'),
    (1.0, r'weights must be one axis .*got shape \(\)'),
    (np.ones((2, 3)), r'weights must be one axis .*vmap.*got shape \(2, 3\)'),
    ([True], r'weights must be floats.*got dtype bool'),
    ([1j], r'weights must be floats.*got dtype complex128'),
    (['1'], r'weights must be floats.*got dtype <U1'),
  ],
)
def test_bad_weights_raise_eagerly(function, weights, message):
  """The error names the first bad index, its value and a way out."""
  with pytest.raises(ValueError, match=message):
    function(weights)


def test_validate_weights_passes_good_ones_and_tracers():
  """Good weights of any dtype pass; a tracer has no values to look at."""
  for dtype in (np.float16, np.float32, np.float64, np.int8, np.uint32):
    alias.validate_weights(np.array([0, 3, 1], dtype))
  alias.validate_weights(jnp.array([0, 3, 1], jnp.bfloat16))
  jax.jit(alias.validate_weights)(jnp.array([NAN, -1.0]))


def test_dtypes_are_read_as_float32():
  """Integers, halves and doubles give the table of their float32 values."""
  expected = alias.build(np.array([0, 3, 1], np.float32))
  for dtype in (np.float16, np.float64, np.int32, jnp.bfloat16):
    for convert in (np.asarray, jnp.asarray):
      actual = alias.build(convert(np.array([0, 3, 1], dtype)))
      jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_length_is_limited_to_two_to_the_thirty():
  """2^30 items trace, with 32-bit shapes throughout; one more is an error."""
  longest = jax.ShapeDtypeStruct((2**30,), jnp.float32)
  table = jax.eval_shape(alias.build, longest)
  assert table.mass.shape == (2**30, 2)
  jax.eval_shape(both_kernels, _words.Words(table.threshold, table.threshold))
  with pytest.raises(ValueError, match=r'2\^30 items'):
    jax.eval_shape(alias.build, jax.ShapeDtypeStruct((2**30 + 1,), jnp.float32))


WORD_MAX = 2**32 - 1
WORD = st.integers(0, WORD_MAX)


@settings
@hypothesis.given(WORD, WORD, st.integers(1, 2**30))
def test_locate_is_the_exact_product(high, low, size):
  """Bucket and fraction are the upper words of u N, as Python multiplies."""
  random = _words.Words(jnp.uint32(high), jnp.uint32(low))
  bucket, fraction = _words.locate(random, size)
  product = ((high << 32) | low) * size
  assert (int(bucket), int(fraction)) == (
    product >> 64,
    product >> 32 & WORD_MAX,
  )


def test_draw_splits_a_bucket_at_its_threshold():
  """The first fraction that is not below the threshold is the alias's."""
  places = np.array([0, 2**62 - 1, 2**62, 2**63, 2**64 - 1], np.uint64)
  random = _words.Words(
    (places >> np.uint64(32)).astype(np.uint32), places.astype(np.uint32)
  )
  for weights, expected in (([1, 3], [0, 0, 1, 1, 1]), ([0, 1], [1] * 5)):
    table = alias.build(np.array(weights, np.float32))
    draws = jax.jit(alias._draw)(random, table.threshold, table.alias)
    np.testing.assert_array_equal(draws, expected)


def test_sample_follows_one_threefry_block_a_draw(key):
  """Draw j of n is what the table has where block (j, n + j) points."""
  size, count = 1000, 257
  weights = np.random.default_rng(1).exponential(size=size)
  table = jax.tree.map(np.asarray, alias.build(weights))
  draws = np.asarray(alias.sample(key, table, (count,)))
  for j, drawn in enumerate(draws):
    block = jnp.array([j, count + j], jnp.uint32)
    high, low = map(int, threefry_2x32(jax.random.key_data(key), block))
    product = ((high << 32) | low) * size
    bucket, fraction = product >> 64, product >> 32 & WORD_MAX
    own = fraction < table.threshold[bucket]
    assert drawn == (bucket if own else table.alias[bucket])


def z_score(counts, law):
  """Returns the summed chi-square of rows of counts, in standard deviations.

  Mean and variance are those of the multinomial law, exactly.
  """
  rows, kinds, draws = *counts.shape, counts[0].sum()
  if kinds == 1:
    return 0.0
  statistic = ((counts - draws * law) ** 2 / (draws * law)).sum()
  excess = ((1 / law).sum() - kinds**2 - 2 * kinds + 2) / draws
  variance = 2 * (kinds - 1) + excess
  return (statistic - rows * (kinds - 1)) / np.sqrt(rows * variance)


def merge_rare(counts, law):
  """Adds outcomes that a row expects less than 5 times to the next likely."""
  order = np.argsort(law)
  rare = (law * counts[0].sum() < 5).sum()
  starts = np.r_[0, rare + 1 : len(law)] if rare else np.arange(len(law))
  counts = np.add.reduceat(counts[:, order], starts, axis=1)
  return counts, np.add.reduceat(law[order], starts)


def check_draws(draws, law):
  """Asserts that rows of draws, a key each, are scattered as chance has it."""
  counts = np.stack([np.bincount(row, minlength=len(law)) for row in draws])
  assert not counts[:, law == 0].any()
  counts, law = merge_rare(counts, law)
  assert abs(z_score(counts, law)) < SIGMAS
  assert abs(z_score(counts.sum(0, keepdims=True), law)) < SIGMAS


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg', 'unsafe_rbg', 'raw'])
def test_draws_pass_chi_square(key, impl):
  """Over 64 independent keys of every kind the draws follow the masses."""
  weights = np.array([0, 1, 3, 0, 5, 1e-2, 40], np.float32)
  table = alias.build(weights)
  keys = jax.random.split(key, 64)
  if impl == 'raw':
    keys = jax.random.key_data(keys)
  elif impl != 'threefry2x32':
    seeds = np.asarray(jax.random.key_data(keys)[:, 0])
    keys = [jax.random.key(seed, impl=impl) for seed in seeds]
  draws = np.stack([alias.sample(k, table, (20_000,)) for k in keys])
  check_draws(draws, masses(table) / (len(weights) * BUCKET))


@pytest.mark.parametrize('size', [7, 1000])
def test_draws_of_every_family_pass_chi_square(key, size):
  """Whatever the shape of the law, the draws follow the masses."""
  for name, weights in families(size, np.random.default_rng(2)):
    table = alias.build(weights.astype(np.float32))
    key, subkey = jax.random.split(key)
    keys = jax.random.split(subkey, 32)
    draws = np.stack([alias.sample(k, table, (20_000,)) for k in keys])
    law = masses(table) / (size * BUCKET)
    assert np.all(law[np.unique(draws)] > 0), name
    check_draws(draws, law)


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg', 'unsafe_rbg'])
def test_a_draw_takes_64_random_bits(impl):
  """No word of a draw repeats in it or in another draw."""
  words = _words.random_words(jax.random.key(9, impl=impl), 1000)
  assert len(np.unique(np.concatenate(words))) == 2000


def test_draws_of_one_key_are_independent(key):
  """Neighbouring draws of a key follow the product law."""
  weights = np.array([1, 2, 0, 5, 0], np.float32)
  draws = alias.sample(key, alias.build(weights), (20, 10_000, 2))
  pairs = np.asarray(draws) @ np.array([5, 1])
  law = weights / weights.sum(dtype=np.float64)
  check_draws(pairs, np.outer(law, law).ravel())


def test_single_draws_of_many_keys_follow_the_law(key):
  """The draw of shape () over 40,000 keys, vmapped, passes chi-square."""
  weights = np.array([1, 2, 0, 5, 0], np.float32)
  table = alias.build(weights)
  keys = jax.random.split(key, (20, 2000))
  draw = jax.vmap(jax.vmap(lambda k: alias.sample(k, table)))
  check_draws(np.asarray(draw(keys)), weights / weights.sum(dtype=np.float64))


def test_residues_are_fair_beyond_two_to_the_24(key):
  """Indices favour no residue, where the textbook's float32 draw does."""
  size = 2**24 + 2**23 + 5
  full = np.zeros(size, np.uint32), np.arange(size, dtype=np.int32)
  table = alias.AliasTable(*full, mass=None, status=None)  # the uniform law
  table = jax.tree.map(jnp.asarray, table)
  *keys, last = jax.random.split(key, 17)
  draws = np.stack([alias.sample(k, table, (65_536,)) for k in keys])
  for modulus in (2, 3, 8):
    residues = np.arange(modulus)
    check_draws(draws % modulus, -((residues - size) // modulus) / size)
  uniforms = np.asarray(jax.random.uniform(last, draws.shape))
  textbook = (uniforms * np.float32(size)).astype(np.int32)
  odd = (textbook % 2).mean()
  assert abs(odd - 0.5) > 10 * SIGMAS * 0.5 / np.sqrt(textbook.size)


@pytest.mark.parametrize('shape', [(), (0,), (3, 0), (7,), (2, 3, 5)])
def test_sample_has_any_shape(key, shape):
  """Any shape, odd or even in size, holds the draws of its flat form."""
  table = alias.build(np.array([1, 2, 0, 5, 0], np.float32))
  draws = alias.sample(key, table, shape)
  assert draws.shape == shape
  assert draws.dtype == jnp.int32
  flat = alias.sample(key, table, (int(np.prod(shape)),))
  np.testing.assert_array_equal(draws.ravel(), flat)


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    (3, 'tuple of integers >= 0; got 3'),
    ((2, -1), r'tuple of integers >= 0; got \(2, -1\)'),
    ((2.0,), r'tuple of integers >= 0; got \(2.0,\)'),
    ((2**16, 2**15), r'fewer than 2\^31 draws; got \(65536, 32768\)'),
  ],
)
def test_bad_shapes_raise(key, shape, message):
  """A shape that no draws can have is an error that shows it."""
  with pytest.raises(ValueError, match=message):
    alias.sample(key, alias.build(np.ones(3, np.float32)), shape)


@pytest.mark.parametrize('shape', [(), (0,), (2, 3, 50)])
def test_a_draw_comes_with_its_probability(key, shape):
  """The items of `sample`, and of each what `probabilities` has: bitwise."""
  table = alias.build(np.array([1, 2, 0, 5, 1e-30, 7], np.float32))

  def both(key):
    return alias.sample_with_probabilities(key, table, shape)

  for function in (both, jax.jit(both)):
    items, p = function(key)
    np.testing.assert_array_equal(items, alias.sample(key, table, shape))
    np.testing.assert_array_equal(p, alias.probabilities(table)[items])
    np.testing.assert_array_equal(p, alias.probabilities_at(table, items))
    assert p.shape == shape
  with pytest.raises(ValueError, match='shape must be a tuple'):
    alias.sample_with_probabilities(key, table, 3)


@pytest.mark.parametrize('size', LAW_SIZES)
def test_items_of_weight_zero_change_nothing(key, size):
  """Padded to another size, the law is the same and no padding is drawn."""
  for name, weights in families(size, np.random.default_rng(1)):
    weights = weights.astype(np.float32)
    padded = alias.build(np.pad(weights, (0, 1000)))
    check_law(jax.tree.map(np.asarray, padded), np.pad(weights, (0, 1000)))
    draws = alias.sample(jax.random.fold_in(key, len(name)), padded, (500,))
    assert draws.max() < size, name


def test_an_array_of_keys_raises(key):
  """Two keys for one draw are a mistake: vmap is for several."""
  table = alias.build(np.ones(3, np.float32))
  for keys in (jax.random.split(key), jax.random.PRNGKey(0)[None]):
    with pytest.raises(ValueError, match=r'must be one key .* got shape'):
      alias.sample(keys, table)


def test_same_key_same_draws(key, tmp_path):
  """Jitted or not, typed key or raw, after saving: the draws are the same."""
  weights = np.random.default_rng(3).exponential(size=64).astype(np.float32)
  table = alias.build(weights)

  def draw(key, table):
    return alias.sample(key, table, (30,))

  expected = np.asarray(draw(key, table))
  np.savez(tmp_path / 'table.npz', **table._asdict())
  with np.load(tmp_path / 'table.npz') as arrays:
    restored = alias.AliasTable(**arrays)
  for actual in (
    jax.jit(draw)(key, table),
    draw(jax.random.key_data(key), table),
    draw(key, restored),
  ):
    np.testing.assert_array_equal(actual, expected)
  other = draw(jax.random.fold_in(key, 1), table)
  assert not np.array_equal(other, expected)


def test_same_weights_same_table():
  """Jitted, called eagerly and under 64-bit types, the table is the same."""
  weights = np.random.default_rng(4).lognormal(size=3).astype(np.float32)
  expected = alias.build(weights)
  tables = [jax.jit(alias.build)(weights), alias.build(jnp.asarray(weights))]
  with jax.enable_x64(True):
    tables.append(alias.build(weights.astype(np.float64)))
    assert alias.sample(jax.random.key(0), expected).dtype == jnp.int32
    assert alias.probabilities(expected).dtype == jnp.float32
  for table in tables:
    for ours, theirs in zip(table, expected, strict=True):
      assert ours.dtype == theirs.dtype
      np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_promoted_implicitly(key):
  """Build, sample and law trace under strict dtype promotion."""
  weights = jax.ShapeDtypeStruct((1000,), jnp.float32)
  with jax.numpy_dtype_promotion('strict'):
    table = jax.eval_shape(alias.build, weights)
    jax.eval_shape(lambda table: alias.sample(key, table, (5,)), table)
    jax.eval_shape(alias.probabilities, table)
    for kernel in (alias._sweep, alias._search):
      jax.eval_shape(kernel, _words.Words(table.threshold, table.threshold))


def test_vmap_gives_the_single_results(key):
  """Five tables at once and draws from each are those of five calls."""
  rows = np.random.default_rng(5).exponential(size=(5, 7)).astype(np.float32)
  keys = jax.random.split(key, 5)

  def draw(key, table):
    return alias.sample(key, table, (8,))

  tables = jax.vmap(alias.build)(rows)
  draws = jax.vmap(draw)(keys, tables)
  words = _words.Words(tables.mass[..., 0], tables.mass[..., 1])
  threshold, other = jax.jit(jax.vmap(alias._search))(words)
  tables, draws = jax.tree.map(np.asarray, (tables, draws))
  for row, weights in enumerate(rows):
    table = alias.build(weights)
    own = jax.tree.map(lambda leaves, row=row: leaves[row], tables)
    jax.tree.map(np.testing.assert_array_equal, own, table)
    np.testing.assert_array_equal(draws[row], draw(keys[row], table))
    np.testing.assert_array_equal(threshold[row], table.threshold)
    np.testing.assert_array_equal(other[row], table.alias)


def test_cond_and_scan_give_the_single_results(key):
  """A table rebuilt in some steps of a scan, and drawn from in all."""
  rows = np.random.default_rng(6).exponential(size=(6, 64)).astype(np.float32)
  refresh = np.array([True, False, True, True, False, False])

  def step(table, inputs):
    key, weights, rebuild = inputs
    table = lax.cond(rebuild, alias.build, lambda _: table, weights)
    return table, alias.sample(key, table, (8,))

  keys = jax.random.split(key, 6)
  table, draws = lax.scan(step, alias.build(rows[5]), (keys, rows, refresh))
  for row, last in enumerate([0, 0, 2, 3, 3, 3]):
    expected = alias.sample(keys[row], alias.build(rows[last]), (8,))
    np.testing.assert_array_equal(draws[row], expected)
  jax.tree.map(np.testing.assert_array_equal, table, alias.build(rows[3]))


def test_a_table_can_be_donated(key):
  """Every leaf has its own buffer, so an update may reuse all of them."""

  def update(table):
    drawn = alias.sample(key, table, (30,))
    weights = alias.probabilities(table).at[drawn].multiply(2.0)
    return alias.build(weights)._replace(status=table.status)

  weights = np.random.default_rng(7).exponential(size=7).astype(np.float32)
  table = alias.build(weights)
  doubled = np.array(alias.probabilities(table))
  np.multiply.at(doubled, np.array(alias.sample(key, table, (30,))), 2)
  pointers = [leaf.unsafe_buffer_pointer() for leaf in table]
  assert len(set(pointers)) == len(table)
  actual = jax.jit(update, donate_argnums=0)(table)
  assert table.mass.is_deleted()
  jax.tree.map(np.testing.assert_array_equal, actual, alias.build(doubled))


def test_new_values_do_not_retrace(key):
  """Weights, good or bad, tables and keys are data: one trace under jit."""
  traces = []

  @jax.jit
  def build_and_draw(key, weights):
    traces.append(weights)
    return alias.sample(key, alias.build(weights), (8,))

  for fill in (1.0, 0.0, NAN, INF):
    key, subkey = jax.random.split(key)
    build_and_draw(subkey, jnp.full(5, fill))
  assert len(traces) == 1
