"""Exact variances of gradient estimates, by sums over all records.

One draw i of a law p gives the estimate (pi_i / p_i) g_i of the objective's
gradient G = sum_i pi_i g_i, pi = r / R. The trace of its covariance is

    V(p) = sum_i pi_i^2 |g_i|^2 / p_i - |G|^2,

and that of the mean of b draws V(p) / b. All in float64.
"""

from typing import NamedTuple

import jax
import numpy as np
from scipy import sparse

from isjax.resampling import uniform_indices
from isjax.weights import mix_with

UNIFORM = 'uniform'
BY_RECORD_WEIGHT = 'r'
BY_SCORE = 'r x logit-gradient norm'
OPTIMAL = 'r ‖g‖, the optimum'
SELF_NORMALISED = "uniform, divided by the batch's sum of r (biased)"


def laws(
  record_weights: np.ndarray,
  norms: np.ndarray,
  scores: np.ndarray,
  mixes: tuple[float, ...],
) -> dict[str, np.ndarray]:
  """Returns the sampling laws that the study compares, f64[N] each.

  Args:
    record_weights: r [N] > 0.
    norms: |g_i| [N], exact.
    scores: [N] >= 0, what stands in for the norms at the price of a forward
      pass.
    mixes: shares of another law to mix into the optimum: of the target law
      r / R, as one should, and of the uniform one. The scores' law is mixed
      with the least of them.
  """
  r, norms, scores = (
    np.asarray(a, np.float64) for a in (record_weights, norms, scores)
  )
  target, affordable, optimal = _law(r), _law(r * scores), _law(r * norms)
  least = min(mixes)
  uniform = np.full(len(r), 1 / len(r))
  return {
    UNIFORM: uniform,
    '‖g‖, without r': _law(norms),
    'sqrt r': _law(np.sqrt(r)),
    BY_RECORD_WEIGHT: target,
    BY_SCORE: affordable,
    f'{BY_SCORE}, {least:g} mixed with r': mix_with(affordable, target, least),
    OPTIMAL: optimal,
    **{
      f'optimum, {mix:g} mixed with {name}': mix_with(optimal, other, mix)
      for mix in mixes
      for name, other in (('r', target), (UNIFORM, uniform))
    },
  }


def _law(weights: np.ndarray) -> np.ndarray:
  """Proportional to the weights; uniform where all are 0."""
  total = weights.sum()
  if total == 0:
    return np.full(len(weights), 1 / len(weights))
  return weights / total


class Moments(NamedTuple):
  """Of the weighted draws of a law.

  variance:              V(p), of one draw.
  largest_weight:        the largest importance weight that can be drawn.
  effective_sample_size: 1 / E[w^2], as a share of the draws, in (0, 1].
  """

  variance: float
  largest_weight: float
  effective_sample_size: float


def moments(
  probabilities: np.ndarray,
  target_probabilities: np.ndarray,
  gradients: np.ndarray,
) -> Moments:
  """Returns the moments of the weighted draws of a law.

  Args:
    probabilities: p f64[N]; 0 only where the gradient or the target is.
    target_probabilities: pi f64[N].
    gradients: g [N, P].
  """
  drawn = probabilities > 0
  p, pi = probabilities[drawn], target_probabilities[drawn]
  squares = np.square(gradients[drawn], dtype=np.float64).sum(1)
  mean = target_probabilities @ gradients
  weights = pi / p
  return Moments(
    variance=float(pi * weights @ squares - mean @ mean),
    largest_weight=float(weights.max()),
    effective_sample_size=float(1 / (pi @ weights)),
  )


class MonteCarlo(NamedTuple):
  """Errors of a biased estimate from many batches, with standard errors.

  mean_square:       E |estimate - G|^2 ...
  mean_square_error: ... and its standard error.
  bias:              |E estimate - G| / |G| ...
  bias_error:        ... and its standard error.
  """

  mean_square: float
  mean_square_error: float
  bias: float
  bias_error: float


def self_normalised(
  key: jax.Array,
  target_probabilities: np.ndarray,
  gradients: np.ndarray,
  batch_size: int,
  num_batches: int,
) -> MonteCarlo:
  """Measures sum_k r_k g_k / sum_k r_k over batches drawn uniformly.

  The batch's own sum of weights in the denominator makes this a ratio of two
  estimates, which no sum over records gives and which is biased.

  Args:
    key: of the draws.
    target_probabilities: pi f64[N].
    gradients: g [N, P].
    batch_size: b.
    num_batches: M >= 2, batches to draw.
  """
  size = len(gradients)
  drawn = uniform_indices(key, size, num_batches * batch_size)
  drawn = np.asarray(drawn).reshape(num_batches, batch_size)
  weights = target_probabilities[drawn]
  weights = weights / weights.sum(1, keepdims=True)
  starts = np.arange(0, drawn.size + 1, batch_size)
  batches = sparse.csr_array(
    (weights.ravel(), drawn.ravel(), starts), (num_batches, size)
  )
  mean = target_probabilities @ gradients
  errors = batches @ gradients.astype(np.float64) - mean
  return _summary(errors, float(np.linalg.norm(mean)))


def _summary(errors: np.ndarray, norm: float) -> MonteCarlo:
  """From the errors [M, P] of M batches; `norm` is |G|."""
  squares = np.square(errors).sum(1)
  root = np.sqrt(len(errors))
  bias = errors.mean(0)
  raw = np.linalg.norm(bias)
  # |bias|^2 is too large by the variance of the mean over M batches.
  noise = (squares.mean() - raw**2) / (len(errors) - 1)
  along = errors @ (bias / raw)
  return MonteCarlo(
    mean_square=float(squares.mean()),
    mean_square_error=float(squares.std(ddof=1) / root),
    bias=float(np.sqrt(max(raw**2 - noise, 0.0)) / norm),
    bias_error=float(along.std(ddof=1) / root / norm),
  )
