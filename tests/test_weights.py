"""weights.py: each formula against enumeration or its closed form."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import weights

LAWS = hnp.arrays(
  np.float32, 12, elements=st.floats(0.0078125, 1, width=32)
).map(lambda w: w / w.sum())
fixed = settings(derandomize=True, deadline=None, max_examples=50)


@fixed
@given(LAWS, LAWS)
def test_importance_weights_turn_one_law_into_the_other(p, pi):
  """E_p[w f] = E_pi[f] for every f, by enumeration."""
  f = np.linspace(-1, 3, 12)
  w = np.asarray(weights.importance_weights(p, pi), np.float64)
  np.testing.assert_allclose((p * w * f).sum(), (pi * f).sum(), rtol=1e-5)


def test_importance_weights_of_the_uniform_target_are_one_over_n_p():
  """w = 1 / (N p)."""
  p = jnp.array([0.5, 0.25, 0.25])
  np.testing.assert_allclose(
    weights.importance_weights(p, 1 / 3), [2 / 3, 4 / 3, 4 / 3], rtol=1e-6
  )


def test_no_gradient_flows_through_importance_weights():
  """A law that depends on the parameters enters as a constant."""
  values = jnp.array([1.0, 2.0, 4.0])

  def weighted(theta):
    p = jax.nn.softmax(theta * values)
    return jnp.sum(weights.importance_weights(p, 1 / 3) * theta * values)

  p = jax.nn.softmax(0.7 * values)
  expected = jnp.sum(values / (3 * p))
  np.testing.assert_allclose(jax.grad(weighted)(0.7), expected, rtol=1e-6)


def test_target_law_is_the_share_of_each_record():
  """r / R, also where the sum of r overflows float32; None stays None."""
  np.testing.assert_allclose(
    weights.target_law(jnp.array([1.0, 3.0, 0.0])), [0.25, 0.75, 0]
  )
  np.testing.assert_allclose(
    weights.target_law(jnp.full(4, 3e38)), np.full(4, 0.25)
  )
  assert weights.target_law(None) is None


def test_target_at_reads_the_law_or_the_uniform_one():
  """pi_i at the indices, 1/N without record weights."""
  at = jnp.array([2, 0, 2])
  law = jnp.array([0.2, 0.3, 0.5])
  np.testing.assert_allclose(weights.target_at(law, at, 3), [0.5, 0.2, 0.5])
  np.testing.assert_allclose(weights.target_at(None, at, 4), np.full(3, 0.25))


@pytest.mark.parametrize(
  ('scores', 'law'),
  [
    ([1, 3, 0], [0.25, 0.75, 0]),
    ([0, 0, 0], [1 / 3, 1 / 3, 1 / 3]),
    ([np.nan, 2, -5], [0, 1, 0]),
    ([np.inf, 2, np.inf], [0.5, 0, 0.5]),
    ([3e38, 3e38, 0], [0.5, 0.5, 0]),
    ([2e-38, 6e-38, 0], [0.25, 0.75, 0]),
    ([np.nan, -1, np.nan], [1 / 3, 1 / 3, 1 / 3]),
  ],
)
def test_normalise_is_total(scores, law):
  """NaN and negative count as 0, inf shares all, all zero is uniform."""
  scores = jnp.array(scores, jnp.float32)
  for function in (weights.normalise, jax.jit(weights.normalise)):
    np.testing.assert_allclose(function(scores), law, rtol=1e-6)


@fixed
@given(LAWS, LAWS, st.floats(0.015625, 1, width=32))
def test_mixing_with_the_target_bounds_the_weights(p, pi, mix):
  """pi / ((1 - m) p + m pi) <= 1 / m, and the mixture is a law."""
  mixed = weights.mix_with(p, pi, mix)
  np.testing.assert_allclose(mixed.sum(), 1, rtol=1e-5)
  w = weights.importance_weights(mixed, pi)
  assert w.max() <= (1 / mix) * (1 + 1e-5)


def test_mixing_with_another_law_than_the_target_bounds_nothing():
  """Mixing record weights with the uniform law leaves weights above 1/m."""
  record = np.ones(1000, np.float32)
  record[0] = 1000.0
  pi = record / record.sum()
  law = np.full(1000, 1 / 1000, np.float32)
  assert (pi / weights.mix_with(law, 1 / 1000, 0.1)).max() > 100
  assert (pi / weights.mix_with(law, pi, 0.1)).max() <= 10.001


@fixed
@given(LAWS)
def test_variance_reduction_equals_the_papers_formula(g):
  """sqrt(B sum g^2) = (1 - |g - u|^2 / |g|^2)^(-1/2), in [1, sqrt B]."""
  g64 = g.astype(np.float64) / g.astype(np.float64).sum()
  distance = np.square(g64 - 1 / 12).sum() / np.square(g64).sum()
  tau = float(weights.variance_reduction(g))
  np.testing.assert_allclose(tau, (1 - distance) ** -0.5, rtol=1e-5)
  assert 1 - 1e-5 <= tau <= np.sqrt(12) * (1 + 1e-6)


@fixed
@given(LAWS)
def test_tau_is_the_ratio_of_root_second_moments(g):
  """With norms proportional to g, by enumeration over both laws."""
  norms = g.astype(np.float64)
  uniform = np.mean(norms**2)
  sampled = np.sum(g * (norms / (12 * g)) ** 2)
  np.testing.assert_allclose(
    weights.variance_reduction(g), np.sqrt(uniform / sampled), rtol=1e-4
  )


@fixed
@given(LAWS, st.floats(2.0**-100, 2.0**100))
def test_tau_of_scores_is_scale_free_and_equals_tau_of_their_law(g, scale):
  """Unit weights give variance_reduction; weight 0 leaves an entry out."""
  expected = weights.variance_reduction(g)
  scores = jnp.asarray(g * np.float32(scale))
  tau = weights.score_variance_reduction(scores, jnp.ones(12))
  np.testing.assert_allclose(tau, expected, rtol=1e-5)
  padded = jnp.concatenate([scores, jnp.array([1e30, 7.0])])
  mask = jnp.concatenate([jnp.ones(12), jnp.zeros(2)])
  tau = weights.score_variance_reduction(padded, mask)
  np.testing.assert_allclose(tau, expected, rtol=1e-5)


def test_weighted_tau_converges_to_the_populations():
  """Every draw counted by p times N: the weighted moments are the plain."""
  scores = jnp.array([1.0, 2.0, 5.0, 0.5])
  p = scores / scores.sum()
  # 17 draws in exact proportion to p
  counts = np.array([2, 4, 10, 1])
  drawn = jnp.asarray(np.repeat(np.arange(4), counts))
  w = weights.importance_weights(p, 1 / 4)[drawn]
  tau = weights.score_variance_reduction(scores[drawn], w)
  np.testing.assert_allclose(tau, weights.variance_reduction(p), rtol=1e-5)


def test_tau_of_nothing_is_one():
  """All-zero scores and all-zero weights gain nothing and give no NaN."""
  zeros, ones = jnp.zeros(3), jnp.ones(3)
  assert weights.score_variance_reduction(zeros, ones) == 1
  assert weights.score_variance_reduction(ones, zeros) == 1


def test_break_even_golden_numbers():
  """2.31 at B = 5b = 80; inf at B <= 1.5 b; above t for every pool."""
  t = (80 + 48) / 48
  np.testing.assert_allclose(weights.break_even(80, 16, t), 2.3094, rtol=1e-4)
  for batch_size in (2, 16, 128):
    pool_size = 3 * batch_size // 2
    t = (pool_size + 3 * batch_size) / (3 * batch_size)
    assert weights.break_even(pool_size, batch_size, t) == np.inf


@fixed
@given(st.integers(2, 64), st.integers(2, 10))
def test_break_even_is_where_equivalent_batch_equals_cost(b, factor):
  """At tau the equal-variance uniform batch costs as much as the step."""
  B = factor * b
  t = (B + 3 * b) / (3 * b)
  tau = float(weights.break_even(B, b, t))
  if np.isfinite(tau):
    equivalent = 1 / (1 / (b * tau**2) + (1 - 1 / b) / B)
    np.testing.assert_allclose(equivalent, t * b, rtol=1e-4)


@fixed
@given(LAWS, st.integers(1, 5))
def test_equivalent_batch_has_the_variance_of_the_pools_draws(g, b):
  """In closed form, norms proportional to g: a pool drawn uniformly and b
  draws from it are as precise as so many uniform ones.
  """
  norms = 12 * g.astype(np.float64) / g.sum()
  second_moment = np.mean(norms**2)  # of one uniform draw
  # The mean of b draws given a pool of B has E[m^2] = (mean of the pool)^2
  # (1 - 1/b) + (mean norm)^2 / b; over pools, with means that cancel:
  pool_size = 7
  variance = (1 - 1 / b) * second_moment / pool_size + 1 / b
  tau = weights.variance_reduction(g)
  np.testing.assert_allclose(
    weights.equivalent_batch_size(tau, b, pool_size),
    second_moment / variance,
    rtol=1e-4,
  )
  np.testing.assert_allclose(
    weights.equivalent_batch_size(tau, b), b * second_moment, rtol=1e-4
  )


def test_equivalent_batch_of_a_pool_is_at_most_the_pool():
  """However large tau; one example from a pool has no such limit."""
  assert weights.equivalent_batch_size(1e9, 16, 80) <= 80 * 16 / 15
  np.testing.assert_allclose(
    weights.equivalent_batch_size(3.0, 1, 80), 9, rtol=1e-6
  )


def test_predicted_cost_is_one_at_break_even():
  """And the cost ratio over tau^2 for a table."""
  t = (80 + 48) / 48
  tau = weights.break_even(80, 16, t)
  np.testing.assert_allclose(
    weights.predicted_cost_ratio(tau, 16, 80, t), 1, rtol=1e-5
  )
  np.testing.assert_allclose(
    weights.predicted_cost_ratio(2.0, 16, cost_ratio=1.2), 0.3, rtol=1e-6
  )


def test_effective_sample_size():
  """b for equal weights, 1 for a single one, 0 for none."""
  size = weights.effective_sample_size
  np.testing.assert_allclose(size(jnp.full(8, 0.3)), 8, rtol=1e-6)
  np.testing.assert_allclose(size(jnp.array([5.0, 0, 0])), 1)
  np.testing.assert_allclose(size(jnp.array([1.0, 2.0])), 9 / 5, rtol=1e-6)
  assert size(jnp.zeros(3)) == 0


@pytest.mark.parametrize('mix', [-0.1, 1.1, float('nan'), 'half', True])
def test_a_bad_mix_is_named(mix):
  """The error names argument and value."""
  with pytest.raises(ValueError, match='mix must be in'):
    weights.mix_with(jnp.ones(2) / 2, 0.5, mix)


def test_bad_sizes_are_named():
  """break_even refuses a pool of nobody."""
  with pytest.raises(ValueError, match='pool_size must be an integer'):
    weights.break_even(0, 4, 2.0)
  with pytest.raises(ValueError, match='cost_ratio must be positive; got 0'):
    weights.break_even(8, 4, 0)


def test_class_weights_are_counted_by_class_and_not_by_rank():
  """The label of the 227 images gets 1/227, whatever the others' sizes."""
  labels = jnp.repeat(jnp.arange(4), jnp.array([2555, 227, 621, 2552]))
  for wrap in (lambda f: f, jax.jit):
    by_class = wrap(
      lambda y: weights.class_weights(y, 4, kind='inverse_frequency')
    )(labels)
    np.testing.assert_allclose(
      by_class, [1 / 2555, 1 / 227, 1 / 621, 1 / 2552], rtol=1e-6
    )


@pytest.mark.parametrize(
  ('kind', 'formula'),
  [
    ('inverse_frequency', lambda n: 1 / n),
    ('inverse_sqrt', lambda n: n**-0.5),
    ('effective_number', lambda n: 1e-4 / (1 - 0.9999**n)),
  ],
)
def test_class_weights_follow_their_formulas(kind, formula):
  """In float64, for classes of 1 to 100,000 examples."""
  counts = np.array([1, 30, 1000, 100_000])
  labels = jnp.asarray(np.repeat(np.arange(4), counts))
  np.testing.assert_allclose(
    weights.class_weights(labels, 4, kind=kind), formula(counts), rtol=1e-5
  )
