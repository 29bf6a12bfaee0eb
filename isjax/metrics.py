"""What a run reports of itself, estimated without bias.

A training metric is an average over importance-sampled examples, so it is
weighted with pi/p, exponent 1 and no cap, whatever the update uses. Report an
error rather than an accuracy: where most examples are right, the weighted
error has by far the smaller variance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isjax.scores import ScoreFn, label_log_probability
from isjax.types import Metrics
from isjax.weights import importance_weights


def error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns f32[m]: 1 where the largest logit is not the label's, else 0.

  Args:
    outputs: f32[m, K], logits.
    targets: i32[m], labels.
  """
  return (jnp.argmax(outputs, axis=-1) != targets).astype(jnp.float32)


def class_balanced(
  statistic: ScoreFn, class_counts: Sequence[int] | np.ndarray
) -> ScoreFn:
  """Returns the statistic, weighted so that its mean is the mean over classes.

  An example of class y counts N / (K n_y). Of `error` over a whole set, that
  makes the balanced error: 1 less the mean of the recalls of all classes.

  Args:
    statistic: (outputs, targets) -> f32[m].
    class_counts: K numbers n >= 0 of the set's examples, whose sum is N; a
      class that it lacks is none of the K.

  Raises:
    ValueError: where the counts are negative or all 0.
  """
  counts = np.asarray(class_counts, np.float64)
  if counts.ndim != 1 or not (counts >= 0).all() or not counts.any():
    raise ValueError(
      'class_counts must be one number >= 0 per class, not all 0; got '
      f'{class_counts}.'
    )
  present = counts > 0
  weights = np.zeros_like(counts)
  weights[present] = counts.sum() / (present.sum() * counts[present])
  weights = weights.astype(np.float32)

  def balanced(outputs, targets):
    return jnp.asarray(weights)[targets] * statistic(outputs, targets)

  return balanced


def label_probability(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns softmax(outputs)[label], f32[m] in [0, 1].

  Args:
    outputs: f32[m, K], logits.
    targets: i32[m], labels.
  """
  return jnp.exp(label_log_probability(outputs, targets))


def weighted_mean(
  values: jax.Array, importance_weights: jax.Array
) -> jax.Array:
  """Returns (1/b) sum_i w_i v_i, unbiased for the objective's average of v.

  Divides by b and not by the weights' sum, which would bias it.

  Args:
    values: f32[b].
    importance_weights: f32[b], pi/p of the draw.
  """
  return jnp.mean(importance_weights * values)


class TraceCovariances(NamedTuple):
  """Traces of the covariance of one draw's weighted gradient, f32[] each.

  uniform: had the draw been uniform.
  sampled: under the law that it was drawn by.
  optimal: under the law proportional to pi times the norm: no law has less.
  """

  uniform: jax.Array
  sampled: jax.Array
  optimal: jax.Array


def trace_covariances(
  norms: jax.Array,
  probabilities: jax.Array,
  target_probabilities: jax.Array,
  num_examples: int,
  *,
  mean_norm_squared: float | jax.Array = 0.0,
) -> TraceCovariances:
  """Estimates three variances of the gradient from one batch of any law.

  A draw of law q has the trace sum_i pi_i^2 |g_i|^2 / q_i - |G|^2, with G the
  full gradient. Each sum is an expectation under the batch's own law and is
  estimated without bias; the optimal one, (sum_i pi_i |g_i|)^2, from pairs of
  distinct draws, so that it takes b >= 2 and draws that are independent. Divide
  averages over many batches, not the estimates of one.

  Args:
    norms: f32[b] >= 0, |g_i|. With scores in their place the ratios hold as
      far as these are proportional to the norms; the traces have no meaning.
    probabilities: f32[b] > 0, the law p of the draws.
    target_probabilities: f32[b] >= 0, pi.
    num_examples: N.
    mean_norm_squared: |G|^2; 0, a zero mean, gives the second moments.

  Returns:
    The three traces; `optimal` is nan for b = 1.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, section 3.1.
  """
  weighted = norms * importance_weights(probabilities, target_probabilities)
  squares = jnp.square(weighted)
  pairs = norms.shape[0] * (norms.shape[0] - 1)
  moments = TraceCovariances(
    uniform=num_examples * jnp.mean(squares * probabilities),
    sampled=jnp.mean(squares),
    optimal=(jnp.square(jnp.sum(weighted)) - jnp.sum(squares)) / pairs
    if pairs
    else jnp.float32(jnp.nan),
  )
  return TraceCovariances(*(m - mean_norm_squared for m in moments))


def class_mass(
  probabilities: jax.Array, labels: jax.Array, num_classes: int
) -> jax.Array:
  """Returns the chance of each class under a sampling law.

  Args:
    probabilities: f32[N], the law.
    labels: i32[N] in [0, K).
    num_classes: K.

  Returns:
    f32[K] with sum 1.
  """
  return jax.ops.segment_sum(probabilities, labels, num_classes)


def summarise(metrics: Metrics) -> Metrics:
  """Averages stacked step metrics over the steps that were within the budget.

  Args:
    metrics: name -> [num_steps], with the key `valid` bool[num_steps].

  Returns:
    name -> f32[], means over the valid steps (NaN where there is none), except
    `cost`, which is its largest value. `valid` becomes `num_steps` i32[].
  """
  valid = metrics['valid']
  count = jnp.sum(valid)
  means = {
    name: jnp.sum(jnp.where(valid, values, 0)) / count
    for name, values in metrics.items()
    if name not in ('valid', 'cost')
  }
  return means | {'cost': jnp.max(metrics['cost']), 'num_steps': count}
