"""Errors of the gradient of a set, estimated from a few of its examples.

M examples have the gradients g_i, and G is their mean. The average of b draws
from a law p, each weighted by 1 / (M p_i), estimates G with the mean square
error V(p) / b, where

    V(p) = (1/M^2) sum_i |g_i|^2 / p_i - |G|^2;

that of the uniform law is V(u) = (1/M) sum_i |g_i|^2 - |G|^2.

A pool knows the scores of B examples only, drawn uniformly. It resamples b of
them by their scores s, weighted by 1 / (B s_j / sum_pool s). Given the pool,
the estimate has the pool's mean gradient as its mean, and over all pools that
varies by V(u) / B. About it, one draw has on average the variance

    E[(1/B^2) sum_j |g_j|^2 / s_j sum_l s_l] - |G|^2 - V(u) / B,

in which the terms j = l give (V(u) + |G|^2) / B and the others
(1 - 1/B) (V(p) + |G|^2), p the law of the scores over all M. So the pool has

    (1 - 1/B) V(p) / b + V(u) / B,

whatever the scores and the mean gradient are. An example of score 0 is never
drawn: its gradient is then missing from both, which are biased. (But a pool
whose scores are all 0 is drawn uniformly; that is neglected.) All is float64.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from scipy import sparse

from experiments.studies import variances
import isjax
from isjax.weights import importance_weights, normalise, variance_reduction


def in_their_span(gradients: np.ndarray) -> np.ndarray:
  """Returns M gradients [M, P] in an orthonormal basis, f64[M, min(M, P)].

  Lengths and angles are those of the gradients, each length to within
  rounding of itself: a QR decomposition treats every column alike.
  """
  columns = np.asarray(gradients.T, np.float64)
  return np.ascontiguousarray(np.linalg.qr(columns, mode='r').T)


class Errors(NamedTuple):
  """Exact moments, from which the error of every batch follows.

  variance:         V(p), of one draw, about its own mean ...
  uniform_variance: ... and V(u), both of the examples that p can draw.
  squared_bias:     of the mean, 0 where p can draw every gradient.
  """

  variance: float
  uniform_variance: float
  squared_bias: float

  def of_batch(self, batch_size: int) -> float:
    """The mean square error of b draws from the law."""
    return self.variance / batch_size + self.squared_bias

  def of_pool(self, batch_size: int, pool_size: int) -> float:
    """The mean square error of b draws from pools of B."""
    return (
      (1 - 1 / pool_size) * self.variance / batch_size
      + self.uniform_variance / pool_size
      + self.squared_bias
    )


def exact(law: np.ndarray, gradients: np.ndarray) -> Errors:
  """Returns the moments of a law p f64[M] over gradients f64[M, D]."""
  target = np.full(len(law), 1 / len(law))
  drawn = law > 0
  missed = target[~drawn] @ gradients[~drawn]
  return Errors(
    variance=variances.moments(
      law[drawn], target[drawn], gradients[drawn]
    ).variance,
    uniform_variance=variances.moments(
      target, target, np.where(drawn[:, None], gradients, 0.0)
    ).variance,
    squared_bias=float(missed @ missed),
  )


class Sampled(NamedTuple):
  """A mean over many batches, and its standard error."""

  mean: float
  standard_error: float


def sampled(
  indices: np.ndarray, weights: np.ndarray, gradients: np.ndarray
) -> Sampled:
  """Measures the mean square error of batches that were drawn.

  Args:
    indices: i32[n, b], the examples of n batches.
    weights: f32[n, b], their importance weights.
    gradients: f64[M, D].
  """
  num_batches, batch_size = indices.shape
  starts = np.arange(0, indices.size + 1, batch_size)
  shares = np.asarray(weights, np.float64).ravel() / batch_size
  batches = sparse.csr_array(
    (shares, np.asarray(indices).ravel(), starts), (num_batches, len(gradients))
  )
  errors = batches @ gradients - gradients.mean(0)
  squares = np.square(errors).sum(1)
  deviation = squares.std(ddof=1) / np.sqrt(num_batches)
  return Sampled(float(squares.mean()), float(deviation))


class Pools(NamedTuple):
  """Batches that were resampled from pools.

  indices: i32[n, b].
  weights: f32[n, b], importance weights.
  taus:    f32[n], the variance reduction of each pool.
  """

  indices: jax.Array
  weights: jax.Array
  taus: jax.Array


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def draw_pools(
  key: jax.Array,
  scores: jax.Array,
  batch_size: int,
  pool_size: int,
  num_batches: int,
) -> Pools:
  """Draws batches as the sampler `presample` does while its gate is on.

  Args:
    key: of the draws.
    scores: f32[M] >= 0, of all examples.
    batch_size: b.
    pool_size: B.
    num_batches: n.
  """
  size = len(scores)
  sampler = isjax.presample(
    size, batch_size, pool_size=pool_size, tau_threshold=0.0, mix=0.0
  )
  state = sampler.init(key)

  def one(key):
    propose_key, select_key = jax.random.split(key)
    indices, _ = sampler.propose(propose_key, state)
    in_pool = scores[indices]
    draw, _, _ = sampler.select(select_key, state, indices, in_pool)
    weights = importance_weights(draw.probabilities, 1 / size)
    return Pools(draw.indices, weights, variance_reduction(normalise(in_pool)))

  return jax.vmap(one)(jax.random.split(key, num_batches))


def gain(
  relative_variance: np.ndarray | float,
  batch_size: int,
  pool_size: np.ndarray | float,
  backward_cost: float,
) -> np.ndarray | float:
  """Returns how many times the variance of a pool uniform draws would have.

  Both at equal cost: the pool's B forward passes buy uniform sampling
  B / (1 + c) more examples. Above 1 the pool pays.

  Args:
    relative_variance: V(p) / V(u) of the scores' law.
    batch_size: b, of the pool.
    pool_size: B >= b.
    backward_cost: c > 0, of a backward pass, in forward passes.
  """
  pool = (1 - 1 / pool_size) * relative_variance / batch_size + 1 / pool_size
  return 1 / (pool * (batch_size + pool_size / (1 + backward_cost)))


def best_multiple(
  relative_variance: np.ndarray | float, backward_cost: float
) -> np.ndarray | float:
  """Returns B / b of the largest `gain`, sqrt((1 + c) / rho), b large.

  That gain is 1 / (sqrt(rho) + 1 / sqrt(1 + c))^2.
  """
  return np.sqrt((1 + backward_cost) / relative_variance)
