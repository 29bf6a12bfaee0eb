"""resampling.py: laws of drawing b of B."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from isjax import resampling


def test_multinomial_follows_its_law(key):
  """Chi-square of 200,000 draws, zeros included, at the .001 level."""
  p = jnp.array([0.0, 0.3, 0.0, 0.05, 0.6, 0.05, 0.0])
  draws = jax.jit(lambda k: resampling.multinomial(k, p, 200_000))(key)
  counts = np.bincount(draws, minlength=7)
  assert (counts[np.asarray(p) == 0] == 0).all()
  positive = np.asarray(p) > 0
  expected = 200_000 * np.asarray(p, np.float64)[positive]
  expected *= 200_000 / expected.sum()
  assert stats.chisquare(counts[positive], expected).pvalue > 1e-3


def test_multinomial_draws_are_independent(key):
  """Pairs follow the product law."""
  p = jnp.array([0.2, 0.5, 0.3])
  pairs = jax.vmap(lambda k: resampling.multinomial(k, p, 2))(
    jax.random.split(key, 50_000)
  )
  counts = np.bincount(np.asarray(pairs) @ [3, 1], minlength=9)
  p = np.array([0.2, 0.5, 0.3])
  expected = 50_000 * np.outer(p, p).ravel()
  assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_no_uniform_reaches_past_the_last_item(monkeypatch):
  """u so near to 1 that u * total rounds to total: a zero tail stays shut."""
  top = jnp.float32(1 - 2**-24)
  monkeypatch.setattr(
    jax.random, 'uniform', lambda key, shape: jnp.full(shape, top)
  )
  key = jax.random.key(0)
  for total in (1.0, 1 + 2**-23, 1.9999998, 0.5000001, 0.9999999):
    p = jnp.array([0.0, total, 0.0, 0.0], jnp.float32)
    assert (resampling.multinomial(key, p, 3) == 1).all()


def test_unnormalised_probabilities_draw_the_same():
  """Only ratios matter."""
  p = jnp.array([0.25, 0.5, 0.25])
  key = jax.random.key(3)
  np.testing.assert_array_equal(
    resampling.multinomial(key, p, 100), resampling.multinomial(key, 8 * p, 100)
  )


def test_uniform_indices_are_uniform(key):
  """Chi-square over a size that is no power of two; in range beyond 2^24."""
  draws = jax.jit(lambda k: resampling.uniform_indices(k, 12, 120_000))(key)
  assert draws.dtype == jnp.int32
  counts = np.bincount(draws, minlength=12)
  assert len(counts) == 12
  assert stats.chisquare(counts).pvalue > 1e-3
  large = resampling.uniform_indices(key, 2**30, 100_000)
  assert large.min() >= 0
  assert large.max() < 2**30
  parities = np.bincount(np.asarray(large) % 4, minlength=4)
  assert stats.chisquare(parities).pvalue > 1e-3
