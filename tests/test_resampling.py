"""resampling.py: laws of drawing b of B."""

import collections
import functools
import itertools
import math

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from isjax import _words, alias, resampling
from isjax._words import Words
from isjax.resampling import RESAMPLING

BUCKET = 1 << 32
SIGMAS = 4.0  # of a normal variable: a false alarm in 16,000 for each check
LAW = np.array([0, 0.3, 0, 0.05, 0.6, 0.05, 0], np.float32)
UNEVEN = np.array([0, 0.3, 1 / 16, 0.5, 0, 1e-3, 0.1365], np.float32)

settings = hypothesis.settings(
  deadline=None, derandomize=True, max_examples=40, database=None
)


def words(integers):
  """Python integers as Words."""
  integers = np.array(integers, np.uint64)
  high, low = integers >> np.uint64(32), integers & np.uint64(BUCKET - 1)
  return Words(*(jnp.asarray(w.astype(np.uint32)) for w in (high, low)))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _mapped(function, keys, argument, num_draws):
  return jax.vmap(lambda key: function(key, argument, num_draws))(keys)


def over_keys(function, argument, num_draws, key, num_keys=20_000):
  """What the function draws with each of many keys, as NumPy arrays.

  Most tests draw 16 of seven items, so that each way compiles once.
  """
  keys = jax.random.split(key, num_keys)
  draws = _mapped(function, keys, argument, num_draws)
  return jax.tree.map(np.asarray, draws)


def check_law(outcomes, law):
  """Chi-square at the .001 level; what has no chance does not occur."""
  law = np.asarray(law, np.float64).ravel()
  counts = np.bincount(np.ravel(outcomes), minlength=len(law))
  assert (counts[law == 0] == 0).all()
  expected = law[law > 0] / law.sum() * counts.sum()
  assert stats.chisquare(counts[law > 0], expected).pvalue > 1e-3


# --- with replacement --------------------------------------------------------


@pytest.mark.parametrize('name', RESAMPLING)
def test_each_slot_alone_follows_the_law(name, key):
  """The first, a middle and the last of the draws, zeros included."""
  slots, _ = over_keys(RESAMPLING[name], LAW, 16, key)
  assert slots.dtype == np.int32
  for k in (0, 7, 15):
    check_law(slots[:, k], LAW)


@pytest.mark.parametrize('name', RESAMPLING)
def test_the_law_reported_is_that_of_the_masses(name, key):
  """m_i / M exactly, which is p_i over the sum to within 2^-31."""
  rng = np.random.default_rng(0)
  p = rng.lognormal(0, 3, 640).astype(np.float32)
  slots, law = jax.jit(RESAMPLING[name], static_argnums=2)(key, p, 128)
  mass = np.asarray(resampling._masses(p)[0]).astype(np.float64)
  np.testing.assert_allclose(law, (mass / mass.sum())[slots], rtol=3e-7)
  exact = p.astype(np.float64)[slots] / p.sum(dtype=np.float64)
  np.testing.assert_allclose(law, exact, rtol=1e-6, atol=2**-30)


@settings
@hypothesis.given(
  hnp.arrays(np.float32, 64, elements=st.floats(0, 2.0**100, width=32))
)
def test_masses_are_positive_where_probabilities_are(p):
  """From 1e-36 of their sum on; that of the masses does not wrap."""
  hypothesis.assume(p.sum() > 1e-30)
  mass, sums = map(np.asarray, resampling._masses(p))
  assert (mass[p == 0] == 0).all()
  assert (mass[p > 1e-36 * p.sum(dtype=np.float64)] > 0).all()
  np.testing.assert_array_equal(np.cumsum(mass, dtype=np.uint64), sums)


def test_masses_do_not_wrap_where_the_float_sum_errs():
  """4096 equal probabilities, and one beside 4095 specks."""
  for p in (np.full(4096, 0.1), np.r_[1, np.full(4095, 1e-12)]):
    mass, sums = map(np.asarray, resampling._masses(p.astype(np.float32)))
    assert sums[-1] == sum(mass.tolist())
    assert mass.min() >= 1


def test_an_item_is_found_from_its_first_height_to_its_last():
  """At both edges of each item, so also where an item has no height."""
  mass = np.array([0, 7, 0, 0, 1, 2**31, 0], np.uint32)
  sums = np.cumsum(mass, dtype=np.uint32)
  items = np.flatnonzero(mass)
  for heights in ((sums - mass)[items], sums[items] - 1):
    slots, law = resampling._find(*map(jnp.asarray, (mass, sums, heights)))
    np.testing.assert_array_equal(slots, items)
    np.testing.assert_array_equal(law, (mass / np.float32(sums[-1]))[items])


def test_multinomial_draws_are_independent(key):
  """Pairs follow the product law."""
  slots, _ = over_keys(resampling.multinomial, LAW, 16, key)
  check_law(slots[:, ::2] * 7 + slots[:, 1::2], np.outer(LAW, LAW))


def test_systematic_draws_the_floor_or_the_ceiling(key):
  """Of b p_i, as integers; exactly b p_i where that is one."""
  b = 16
  mass, sums = (np.asarray(x).tolist() for x in resampling._masses(UNEVEN))
  slots, _ = over_keys(resampling.systematic, UNEVEN, b, key)
  counts = np.stack([(slots == item).sum(1) for item in range(7)], 1)
  assert (counts >= [b * m // sums[-1] for m in mass]).all()
  assert (counts <= [-(-b * m // sums[-1]) for m in mass]).all()
  whole = np.array([0, 8, 0, 4, 2, 2, 0])
  slots, _ = over_keys(resampling.systematic, whole / np.float32(b), b, key)
  expected = np.repeat(np.arange(7), whole)
  np.testing.assert_array_equal(np.sort(slots), [expected] * len(slots))


def test_stratified_draws_once_in_each_stratum(key):
  """The k-th of the draws in order lies in [k, k + 1) M / b."""
  b = 16
  mass, sums = (
    np.asarray(x).astype(np.int64) for x in resampling._masses(UNEVEN)
  )
  slots, _ = over_keys(resampling.stratified, UNEVEN, b, key)
  slots, k = np.sort(slots), np.arange(b)
  assert (b * sums[slots] > k * sums[-1]).all()
  assert (b * (sums - mass)[slots] < (k + 1) * sums[-1]).all()


def test_variances_of_the_mean_in_closed_form(key):
  """Independent, by stratum, and over the one offset, which nothing bounds."""
  b, per_stratum = 16, 100_000
  values = np.array([9.0, 1.0, -2.0, 0.5, 9.0, 1.5, 3.0])
  grid = (np.arange(b * per_stratum) + 0.5) / (b * per_stratum)
  cumulative = np.cumsum(UNEVEN, dtype=np.float64)
  of_height = values[np.searchsorted(cumulative / cumulative[-1], grid)]
  by_stratum = of_height.reshape(b, -1)
  expected = {
    'multinomial': of_height.var() / b,
    'stratified': by_stratum.var(1).sum() / b**2,
    'systematic': by_stratum.mean(0).var(),
  }
  assert expected['stratified'] < expected['multinomial']
  for name, variance in expected.items():
    key, subkey = jax.random.split(key)
    slots, _ = over_keys(RESAMPLING[name], UNEVEN, b, subkey)
    squares = (values[slots].mean(1) - of_height.mean()) ** 2
    error = squares.std() / math.sqrt(len(squares))
    assert abs(squares.mean() - variance) < SIGMAS * error


draw_once = jax.jit(
  lambda name, key, p: getattr(resampling, name)(key, p, 16), static_argnums=0
)
WAYS = (*RESAMPLING, 'without_replacement')


@pytest.mark.parametrize('name', WAYS)
def test_scale_and_jit_do_not_matter(name, key):
  """Only ratios count, up to 1e37; jitted or not, a key gives its draws."""
  expected = draw_once(name, key, UNEVEN)
  eager = getattr(resampling, name)
  for actual in (
    eager(key, UNEVEN, 16),
    eager(jax.random.key_data(key), UNEVEN, 16),
    draw_once(name, key, UNEVEN * np.float32(2.0**120)),
    draw_once(name, key, UNEVEN * np.float32(2.0**-110)),
  ):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('name', WAYS)
def test_broken_probabilities_still_give_a_law(name, key):
  """NaN and negative count as 0; sums of 0 and inf give the uniform law."""
  nan, inf = np.nan, np.inf
  for given, read_as in (
    ([nan, 1, -2, 3, 0, 5, -inf], [0, 1, 0, 3, 0, 5, 0]),
    ([0, 0, 0, 0, 0, 0, 0], [1] * 7),
    ([nan, -1, 0, -inf, 0, 0, 0], [1] * 7),
    ([1, inf, 2, 0, 0, 0, 0], [1] * 7),
    ([3e38, 3e38, 0, 0, 0, 0, 0], [1] * 7),
  ):
    actual, expected = (
      draw_once(name, key, np.array(p, np.float32)) for p in (given, read_as)
    )
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('name', WAYS)
def test_a_number_of_draws_is_positive(name, key):
  """Named with its value."""
  with pytest.raises(ValueError, match='num_draws .* at least 1; got 0'):
    getattr(resampling, name)(key, jnp.ones(3), 0)


def test_the_registry_refuses_ways_without_the_law_of_a_slot():
  """With the reason and the ways out; other names list the choices."""
  assert resampling.resampler('systematic') is resampling.systematic
  for name in ('top_k', 'without_replacement'):
    with pytest.raises(ValueError, match=f"{name}'.*biased.*'systematic'.*rep"):
      resampling.resampler(name)
  with pytest.raises(ValueError, match="'multinomial', 'systematic', 'strat"):
    resampling.resampler('residual')


# --- without replacement -----------------------------------------------------


def sets_and_chances(weights, size):
  """Yields each set of items and its chance under successive draws, exactly.

  Items are drawn one after the other, each time in proportion to the weights
  that are left: what the largest keys of a race come to.
  """
  chances = collections.Counter()
  for order in itertools.permutations(np.flatnonzero(weights), size):
    left, chance = sum(weights), 1.0
    for item in order:
      chance *= weights[item] / left
      left -= weights[item]
    chances[frozenset(order)] += chance
  return chances.items()


RACES = [((1, 2, 3, 4), 2), ((1, 1, 6), 1), ((3, 0, 1, 5, 2), 3)]


@pytest.mark.parametrize(('weights', 'b'), RACES)
def test_sets_follow_the_law_of_successive_draws(weights, b, key):
  """All different, and each set as often as drawing one by one gives it."""
  p = np.array(weights, np.float32)
  slots, _ = over_keys(resampling.without_replacement, p, b, key)
  sets, law = zip(*sets_and_chances(weights, b), strict=True)
  number = {drawn: place for place, drawn in enumerate(sets)}
  check_law([number[frozenset(row)] for row in slots.tolist()], law)
  # the first is a draw from the law itself
  check_law(slots[:, 0], weights)


@pytest.mark.parametrize(('weights', 'b'), RACES)
def test_without_replacement_is_exactly_unbiased(weights, b):
  """By integration over the item at the threshold and where that lies.

  Item i ends its race at the time t_i = e_i / p_i. If item j is the next after
  the set S, then with u = exp(-t_j / sum of weights) the integrand is a
  polynomial in u, up to the law that the code reports: Gauss-Legendre nodes
  integrate it exactly, in float64.
  """
  weights = np.array(weights)
  values = np.array([1.0, -2.0, 0.5, 4.0, 3.0])[: len(weights)]
  nodes, measure = np.polynomial.legendre.leggauss(12)
  nodes, measure = (nodes + 1) / 2, measure / 2
  times = -np.log(nodes) * weights.sum()
  race = jax.jit(
    jax.vmap(lambda e: resampling._race(jnp.array(weights * 1.0), e, b))
  )
  total = expectation = 0.0
  racers = set(np.flatnonzero(weights))
  for threshold in racers:
    for drawn in itertools.combinations(racers - {threshold}, b):
      rest = list(racers - {threshold, *drawn})
      share = np.full(len(weights), 1.0)
      share[list(drawn)], share[rest] = 0.5, 2.0
      ends = times[:, None] * share * weights / weights.sum()
      slots, law = map(np.asarray, race(jnp.asarray(ends + (weights == 0))))
      assert {frozenset(row) for row in slots.tolist()} == {frozenset(drawn)}
      density = weights[threshold] * nodes ** (weights[threshold] - 1)
      for item in drawn:
        density = density * (1 - nodes ** weights[item])
      density = density * nodes ** weights[rest].sum() * measure
      total += density.sum()
      expectation += density @ (values[slots] / law).mean(1)
  np.testing.assert_allclose(total, 1, rtol=1e-12)
  np.testing.assert_allclose(expectation, values[weights > 0].sum(), rtol=1e-5)


def test_plain_top_k_is_biased_and_ours_is_not(key):
  """Weighted by 1 / (b p) the same sets give 27 % too much, by enumeration.

  Ours meets the sum within four standard errors over 20,000 keys; the plain
  estimate is more than 30 off.
  """
  weights, b = np.array([1, 2, 3, 4, 10]), 3
  p = weights / weights.sum()
  values = np.array([2.0, 1.0, 3.0, 2.0, 2.0])
  plain = sum(
    chance * (values / p)[list(drawn)].mean()
    for drawn, chance in sets_and_chances(weights, b)
  )
  np.testing.assert_allclose(plain / values.sum(), 1.266132, atol=1e-6)
  slots, law = over_keys(
    resampling.without_replacement, p.astype(np.float32), b, key
  )
  estimates = (values[slots] / law).mean(1)
  error = estimates.std() / math.sqrt(len(estimates))
  assert abs(estimates.mean() - values.sum()) < SIGMAS * error
  assert abs(plain - values.sum()) > 30 * error


@pytest.mark.parametrize('b', [3, 4, 5, 9])
def test_slots_left_over_weigh_nothing(b, key):
  """Three items of five: each once, so that the sum has no error at all."""
  p = jnp.array([0.0, 0.1, 0.0, 0.7, 0.2])
  values = np.array([100.0, 1.0, 100.0, 2.0, 4.0])
  draw = jax.jit(resampling.without_replacement, static_argnums=2)
  slots, law = draw(key, p, b)
  assert set(np.asarray(slots[:3]).tolist()) == {1, 3, 4}
  np.testing.assert_allclose(law[:3], 1 / b, rtol=1e-6)
  np.testing.assert_array_equal(slots[3:], slots[0])
  np.testing.assert_array_equal(law[3:], np.inf)
  np.testing.assert_allclose((values[slots] / law).mean(), 7, rtol=1e-6)


def test_the_law_is_accurate_for_tiny_chances():
  """-expm1(-p / kappa) to 1e-6 of itself, p down to 1e-30 and up to 1."""
  p = np.array([1.0, 1e-4, 1e-10, 1e-20, 1e-30, 1e-3])
  kappa = 0.01
  exponential = p / (2 * kappa)  # all but the last run at half the time
  exponential[-1] = p[-1] / kappa
  slots, law = resampling._race(
    *(jnp.asarray(x, jnp.float32) for x in (p, exponential)), 5
  )
  assert set(np.asarray(slots).tolist()) == set(range(5))
  p /= p.sum()
  kappa = p[-1] / exponential[-1]
  exact = -np.expm1(-p / kappa) / 5
  np.testing.assert_allclose(law, exact[slots], rtol=1e-6)


# --- orders and epochs -------------------------------------------------------


def test_permutation_is_uniform(key):
  """All 120 orders of five values, by chi-square."""
  keys = jax.random.split(key, 60_000)
  orders = jax.jit(jax.vmap(lambda k: resampling.permutation(k, jnp.arange(5))))
  orders = np.asarray(orders(keys))
  number = {o: i for i, o in enumerate(itertools.permutations(range(5)))}
  check_law([number[tuple(order)] for order in orders.tolist()], np.ones(120))


def test_permutation_of_many_values(key):
  """Each once, of any dtype, and every tenth of them lands in each tenth."""
  size = 100_000
  order = np.asarray(resampling.permutation(key, jnp.arange(size)))
  np.testing.assert_array_equal(np.sort(order), np.arange(size))
  tenths = order * 10 // size * 10 + np.arange(size) * 10 // size
  counts = np.bincount(tenths, minlength=100)
  statistic = ((counts - 1000) ** 2 / 1000).sum() * 10 / 9
  assert stats.chi2.sf(statistic, 81) > 1e-3
  halves = jnp.array([0.5, 1.5, 1.5, -2.0])
  shuffled = resampling.permutation(key, halves)
  assert shuffled.dtype == halves.dtype
  np.testing.assert_array_equal(jnp.sort(shuffled), jnp.sort(halves))


def test_a_key_gives_one_permutation(key):
  """Jitted or not, in a loop or alone, the order is the same."""
  values = jnp.arange(100)
  expected = resampling.permutation(key, values)
  jitted = jax.jit(resampling.permutation)
  mapped = jax.vmap(resampling.permutation, (0, None))(key[None], values)[0]
  for actual in (jitted(key, values), mapped):
    np.testing.assert_array_equal(actual, expected)


def test_the_shuffle_is_made_in_place():
  """No copy of the values in the compiled loop: it would cost O(n) a turn."""
  arguments = jax.random.key(0), jnp.arange(12_345)
  program = jax.jit(resampling._fisher_yates).lower(*arguments).compile()
  assert 's32[12345]{0} copy(' not in program.as_text()


# 2^16 + 1 and 2^30 + 1 are among the few that need both corrections.
DIVISORS = (1, 2, 3, 128, 641, 2**16, 2**16 + 1, 2**30 + 1, 2**31 - 1)


@pytest.mark.parametrize('divisor', DIVISORS)
def test_divide_is_the_quotient_of_integers(divisor):
  """As Python divides, at and beside multiples and over the whole range."""
  rng = np.random.default_rng(divisor)
  quotients = np.r_[0, 1, 2, 2**31, BUCKET - 2, BUCKET - 1]
  quotients = np.r_[quotients, rng.integers(0, BUCKET, 500)].tolist()
  values = [q * divisor + r for q in quotients for r in (0, divisor - 1)]
  values += rng.integers(0, divisor * BUCKET, 500).tolist()
  expected = [value // divisor for value in values]
  actual = jax.jit(_words.divide, static_argnums=1)(words(values), divisor)
  np.testing.assert_array_equal(actual, expected)


def table_of(mass):
  """As much of an alias table as an epoch needs."""
  high, low = words(mass)
  return alias.AliasTable(None, None, jnp.stack([high, low], 1), None)


def random_masses(size, rng):
  """Integers that sum to N 2^32, some 0 and some whole buckets."""
  cuts = np.sort(rng.integers(0, size * BUCKET + 1, size - 1))
  cuts[::3] = cuts[::3] // BUCKET * BUCKET
  cuts[1::5] = cuts[0:-1:5][: len(cuts[1::5])]
  cuts = np.sort(cuts)
  return np.diff(np.r_[0, cuts, size * BUCKET]).tolist()


@pytest.mark.parametrize('size', [1, 3, 64, 1000])
@pytest.mark.parametrize('num_draws', [1, 1000, 2**31 - 1])
def test_ends_are_those_of_long_integers(size, num_draws):
  """floor((C_i n + w) / (N 2^32)) as Python computes it, up to n = 2^31 - 1."""
  rng = np.random.default_rng(size)
  ends = jax.jit(resampling._ends, static_argnums=2)
  whole = size * BUCKET
  for offset in (0, 1, BUCKET - 1, whole - 1, *rng.integers(0, whole, 4)):
    mass = random_masses(size, rng)
    sums = itertools.accumulate(mass)
    expected = [(c * num_draws + int(offset)) // whole for c in sums]
    actual = ends(words(mass), words([offset]), num_draws)
    np.testing.assert_array_equal(actual, expected)
    assert actual[-1] == num_draws


def lengths_and_counts(mass, num_draws):
  """How many offsets w give each possible row of counts: all of the law.

  Counts change where C_i n + w reaches a multiple of N 2^32, so one w of each
  piece in between tells all.
  """
  whole = len(mass) * BUCKET
  sums = list(itertools.accumulate(mass))
  starts = sorted({0, *(-c * num_draws % whole for c in sums)})
  lengths = np.diff([*starts, whole])
  ends = jax.jit(
    jax.vmap(
      lambda w: resampling._ends(
        words(mass), jax.tree.map(lambda x: x[None], w), num_draws
      )
    )
  )(words(starts))
  return lengths.tolist(), np.diff(np.asarray(ends).astype(int), prepend=0)


@pytest.mark.parametrize('num_draws', [1, 5, 12, 1000])
def test_counts_of_an_epoch_have_their_expectation_exactly(num_draws):
  """Over all offsets: n m_i as integers, floor or ceil, variance below iid."""
  mass = random_masses(5, np.random.default_rng(num_draws))
  whole = 5 * BUCKET
  lengths, counts = lengths_and_counts(mass, num_draws)
  for item, column in zip(mass, counts.T.tolist(), strict=True):
    terms = list(zip(lengths, column, strict=True))
    assert sum(length * count for length, count in terms) == num_draws * item
    assert set(column) <= {
      num_draws * item // whole,
      -(-num_draws * item // whole),
    }
    part = num_draws * item / whole % 1
    variance = part * (1 - part)
    mean = num_draws * item / whole
    squares = sum(length * (count - mean) ** 2 for length, count in terms)
    np.testing.assert_allclose(squares / whole, variance, atol=1e-9)
    assert variance <= mean * (1 - item / whole) + 1e-12


def test_places_of_an_epoch_follow_the_law_alone_and_in_pairs(key):
  """As uniform order of the counts gives it; zero weights never occur.

  An order that keeps repetitions apart fails: neighbours would differ too
  often.
  """
  n, mass = 5, [BUCKET // 2, 0, 2 * BUCKET - 5, 3 * BUCKET // 2 + 5]
  draws = over_keys(resampling.weighted_epoch, table_of(mass), n, key, 40_000)
  assert draws.dtype == np.int32
  for place in range(n):
    check_law(draws[:, place], mass)
  lengths, counts = lengths_and_counts(mass, n)
  pairs = sum(
    length / sum(lengths) * (np.outer(row, row) - np.diag(row)) / (n * (n - 1))
    for length, row in zip(lengths, counts, strict=True)
  )
  for other in (1, 4):
    check_law(draws[:, 0] * 4 + draws[:, other], pairs)


def test_an_epoch_of_whole_counts_has_no_choice(key):
  """Equal weights, three rounds: each item three times, whatever the key."""
  for size in (1, 7):
    table = table_of([BUCKET] * size)
    epoch = resampling.weighted_epoch(key, table, 3 * size)
    np.testing.assert_array_equal(np.bincount(epoch), [3] * size)


def test_a_large_epoch_has_the_counts_of_its_masses(key):
  """Floor or ceil of N p_i for each of 100,000 items; jitted, the same."""
  size = 100_000
  mass = random_masses(size, np.random.default_rng(1))
  epoch = resampling.weighted_epoch(key, table_of(mass), size)
  jitted = jax.jit(resampling.weighted_epoch, static_argnums=2)
  np.testing.assert_array_equal(jitted(key, table_of(mass), size), epoch)
  counts = np.bincount(epoch, minlength=size)
  high, low = map(np.asarray, words(mass))
  assert ((counts == high) | (counts == high + (low > 0))).all()


def test_an_epoch_of_no_draws_raises(key):
  """Named with its value."""
  with pytest.raises(ValueError, match='num_draws .* at least 1; got 0'):
    resampling.weighted_epoch(key, table_of([BUCKET] * 3), 0)


def test_uniform_indices_are_uniform(key):
  """Chi-square over a size that is no power of two; in range beyond 2^24."""
  draws = jax.jit(lambda k: resampling.uniform_indices(k, 12, 120_000))(key)
  assert draws.dtype == jnp.int32
  check_law(draws, np.ones(12))
  large = jax.jit(lambda k: resampling.uniform_indices(k, 2**30, 100_000))(key)
  assert large.min() >= 0
  assert large.max() < 2**30
  check_law(large % 4, np.ones(4))
