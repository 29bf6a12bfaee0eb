"""What a run reports of itself, estimated without bias.

A training metric is an average over importance-sampled examples, so it is
weighted with pi/p, exponent 1 and no cap, whatever the update uses. Report an
error rather than an accuracy: where most examples are right, the weighted
error has by far the smaller variance.
"""

import jax
import jax.numpy as jnp

from isjax.scores import label_log_probability
from isjax.types import Metrics


def error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns f32[m]: 1 where the largest logit is not the label's, else 0.

  Args:
    outputs: f32[m, K], logits.
    targets: i32[m], labels.
  """
  return (jnp.argmax(outputs, axis=-1) != targets).astype(jnp.float32)


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
