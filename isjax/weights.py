"""Pure formulas on sampling laws and importance weights.

An average over a target law pi is estimated from draws of a law p by weighting
each draw with w = pi / p: E_p[w f] = E_pi[f] for every p that covers pi. Only
the variance depends on p. The functions here say how much.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from isjax import _validate

# beta of the effective number of examples.
_OVERLAP = 0.9999
_CLASS_WEIGHTS = {
  'inverse_frequency': lambda n: 1 / n,
  'inverse_sqrt': lambda n: 1 / jnp.sqrt(n),
  'effective_number': lambda n: (
    (1 - _OVERLAP) / -jnp.expm1(n * np.log(_OVERLAP))
  ),
}


def importance_weights(
  probabilities: jax.Array, target_probabilities: jax.Array | float
) -> jax.Array:
  """Returns w = pi / p, constant under differentiation.

  The law is not a function of the parameters as far as the estimator goes: a
  gradient that flowed through w would bias it, so none does.

  Args:
    probabilities: f32[b] > 0, the law the examples were drawn from.
    target_probabilities: f32[b] or f32[] >= 0, the law of the objective at the
      same examples: 1/N, or r_i/R under record weights.

  Returns:
    f32[b] >= 0 with mean one under p. inf where p is 0, which no draw has.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, equation 4.
  """
  return lax.stop_gradient(target_probabilities / probabilities)


def target_law(record_weights: jax.Array | None) -> jax.Array | None:
  """Returns pi = r / R f32[N], or None for None: the uniform law needs none.

  Args:
    record_weights: r f32[N] >= 0 with a positive finite sum, or None.
  """
  if record_weights is None:
    return None
  relative = _over_maximum(jnp.asarray(record_weights, jnp.float32))
  return relative / jnp.sum(relative)


def _over_maximum(values: jax.Array) -> jax.Array:
  """Non-negative values over their maximum, ones where all are zero.

  Sums of the result stay finite. The factor keeps the reciprocal of the
  maximum a normal number, which float32 has neither at 1e38 nor at 1e-38.
  """
  factor = jnp.where(jnp.max(values) > 1, 2.0**-32, 2.0**32)
  values = factor * values
  largest = jnp.max(values)
  return jnp.where(largest > 0, values / largest, 1.0)


def target_at(
  target: jax.Array | None, indices: jax.Array, num_examples: int
) -> jax.Array:
  """Returns pi at the given examples, f32[m]: 1/N where `target` is None."""
  if target is None:
    return jnp.full(indices.shape, 1 / num_examples, jnp.float32)
  return target.at[indices].get(mode='promise_in_bounds')


def normalise(scores: jax.Array) -> jax.Array:
  """Returns the law proportional to the scores; total, whatever they hold.

  NaN and negative scores count as 0, infinite ones share all the mass, and
  scores that are all zero give the uniform law: the rules of `alias.build`,
  but for denormal scores, which count as 0 on backends that flush them.

  Args:
    scores: f32[m], non-negative where nothing is wrong.

  Returns:
    f32[m] >= 0 with sum 1 up to rounding.
  """
  infinite = jnp.isposinf(scores)
  scores = jnp.where(scores > 0, scores, 0.0)
  scores = jnp.where(jnp.any(infinite), infinite.astype(scores.dtype), scores)
  scores = _over_maximum(scores)
  return scores / jnp.sum(scores)


def mix_with(
  probabilities: jax.Array,
  target_probabilities: jax.Array | float,
  mix: jax.Array | float,
) -> jax.Array:
  """Returns (1 - mix) p + mix pi, whose importance weights are <= 1 / mix.

  Args:
    probabilities: f32[...], the law p.
    target_probabilities: f32[...] or f32[], the target law pi. Mixing with any
      other law (the uniform one under record weights, say) bounds nothing.
    mix: share of the target law, in [0, 1].

  Raises:
    ValueError: where mix lies outside [0, 1].
  """
  _validate.fractions(mix=mix)
  return (1 - mix) * probabilities + mix * target_probabilities


def variance_reduction(probabilities: jax.Array) -> jax.Array:
  """Returns tau = sqrt(B sum p^2), in [1, sqrt(B)].

  If p is proportional to the gradients' norms, then drawing from p instead of
  uniformly divides the root of the gradient's second moment by tau. It is the
  tau of the paper, (1 - |g - u|^2 / |g|^2)^(-1/2), in closed form.

  Args:
    probabilities: f32[B] >= 0 with sum 1, over a pool.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, equation 26.
  """
  return jnp.sqrt(probabilities.size * jnp.sum(jnp.square(probabilities)))


def score_variance_reduction(
  scores: jax.Array, importance_weights: jax.Array
) -> jax.Array:
  """Estimates tau of a population from weighted draws of its scores.

  tau^2 = E[s^2] / E[s]^2 under the uniform law, each expectation replaced by
  the weighted mean of the draws. With unit weights this is
  `variance_reduction(scores / sum(scores))`.

  Args:
    scores: f32[m] >= 0.
    importance_weights: f32[m] >= 0, of the draws; 0 leaves an entry out.

  Returns:
    f32[] >= 1; exactly 1 where every score (or every weight) is zero, or a
    score is not finite, since nothing can then be gained.
  """
  counted = importance_weights > 0
  scores = jnp.where(counted, scores, 0.0)
  scores = jnp.where(counted, _over_maximum(scores), 0.0)
  total = jnp.sum(importance_weights)
  first = jnp.sum(importance_weights * scores)
  second = jnp.sum(importance_weights * jnp.square(scores))
  ratio = total * second / jnp.square(first)
  return jnp.sqrt(jnp.where(first > 0, jnp.maximum(ratio, 1.0), 1.0))


def break_even(
  pool_size: int, batch_size: int, cost_ratio: float | jax.Array
) -> jax.Array:
  """Returns the tau above which resampling a pool pays for scoring it.

  Uniform sampling reaches the variance of b draws from a pool of B with
  1 / (1/(b tau^2) + (1 - 1/b)/B) examples: the pool's own variance counts. A
  step that costs t times a uniform one therefore pays where
  tau^2 > t / (1 - t (b - 1)/B).

  Args:
    pool_size: B.
    batch_size: b.
    cost_ratio: t >= 1, cost of a scored step over that of a uniform one;
      (B + 3b) / 3b where a backward pass costs two forward ones.

  Returns:
    f32[], inf where no tau can pay (at B <= 1.5 b for the t above).
  """
  _validate.positive_integers(pool_size=pool_size, batch_size=batch_size)
  _validate.positive(cost_ratio=cost_ratio)
  margin = 1 - cost_ratio * (batch_size - 1) / pool_size
  # tau never exceeds sqrt(B), so neither does a threshold that can be met.
  squared = jnp.where(margin > 0, cost_ratio / margin, jnp.inf)
  return jnp.sqrt(jnp.where(squared < pool_size, squared, jnp.inf))


def equivalent_batch_size(
  tau: jax.Array | float, batch_size: int, pool_size: int | None = None
) -> jax.Array:
  """Returns the batch with which uniform sampling is as precise.

  Its gradient has the variance that b draws by importance have, for a gradient
  with zero mean: 1 / (1/(b tau^2) + (1 - 1/b)/B), never above the pool's B; for
  a table over all examples tau^2 b.

  Args:
    tau: f32[] > 0, the ratio of root second moments that the law reaches; that
      of `variance_reduction` where it is proportional to the norms.
    batch_size: b.
    pool_size: B, or None where the draws are from all examples.

  Returns:
    f32[] > 0.
  """
  _validate.positive_integers(batch_size=batch_size)
  own = 1 / (batch_size * jnp.square(tau))
  if pool_size is None:
    return 1 / own
  _validate.positive_integers(pool_size=pool_size)
  return 1 / (own + (1 - 1 / batch_size) / pool_size)


def predicted_cost_ratio(
  tau: jax.Array | float,
  batch_size: int,
  pool_size: int | None = None,
  cost_ratio: float | jax.Array = 1.0,
) -> jax.Array:
  """Returns the cost of sampling by importance over that of not doing so.

  Both at the same variance of the gradient: cost_ratio b divided by the
  `equivalent_batch_size`. Below 1 it pays; with a pool it is 1 at the tau of
  `break_even`.

  Args:
    tau: f32[] > 0, as in `equivalent_batch_size`.
    batch_size: b.
    pool_size: B, or None where the draws are from all examples.
    cost_ratio: cost of a step over that of a uniform one with the same b.

  Returns:
    f32[] > 0.
  """
  _validate.positive(cost_ratio=cost_ratio)
  equivalent = equivalent_batch_size(tau, batch_size, pool_size)
  return cost_ratio * batch_size / equivalent


def effective_sample_size(importance_weights: jax.Array) -> jax.Array:
  """Returns (sum w)^2 / sum w^2, in [1, b]; 0 where every weight is zero.

  Source: Kish (1965), Survey Sampling.
  """
  total = jnp.sum(importance_weights)
  squares = jnp.sum(jnp.square(importance_weights))
  return jnp.where(squares > 0, jnp.square(total) / squares, 0.0)


def class_weights(
  labels: jax.Array, num_classes: int, *, kind: str
) -> jax.Array:
  """Returns the weight of each class, from how often it occurs.

  Args:
    labels: i32[N] in [0, K).
    num_classes: K.
    kind: 'inverse_frequency' 1/n, 'inverse_sqrt' 1/sqrt(n), or
      'effective_number' (1 - beta) / (1 - beta^n) with beta .9999; n examples
      in the class.

  Returns:
    f32[K] > 0, not normalised. Inside jit a class without examples gets inf.

  Raises:
    ValueError: for labels that are not i32[N] (one-hot ones, say); eagerly
      also for a label out of range and a class without examples.

  Source: the effective number: Cui et al. (2019), arXiv:1901.05555.
  """
  _validate.positive_integers(num_classes=num_classes)
  _validate.one_of(_CLASS_WEIGHTS, kind=kind)
  labels = jnp.asarray(labels)
  if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      'labels must be one integer per example, i32[N]; got '
      f'{labels.dtype}{list(labels.shape)}. Turn one-hot labels into integers '
      'with argmax.'
    )
  counts = jnp.bincount(labels, length=num_classes)
  if not isinstance(counts, jax.core.Tracer):
    _expect_classes(np.asarray(labels), np.asarray(counts))
  return _CLASS_WEIGHTS[kind](counts.astype(jnp.float32))


def _expect_classes(labels: np.ndarray, counts: np.ndarray) -> None:
  outside = (labels < 0) | (labels >= len(counts))
  if outside.any():
    first = int(outside.argmax())
    raise ValueError(
      f'labels must lie in [0, {len(counts)}); got labels[{first}] = '
      f'{labels[first]}.'
    )
  if not counts.all():
    raise ValueError(
      f'labels must hold every class; there is no example of class '
      f'{int(counts.argmin())}, whose weight would be infinite. Number the '
      'classes that occur from 0 on.'
    )
