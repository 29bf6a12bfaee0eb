"""Random pruning: epochs over a uniform part of the examples."""

import jax.numpy as jnp

from isjax import _validate
from isjax.baselines import _record_weights
from isjax.baselines._pruned_epochs import pruned_epochs
from isjax.resampling import permutation
from isjax.types import Sampler


def random_pruning(
  num_examples: int,
  batch_size: int,
  *,
  keep: float = 0.5,
  subset: str = 'epoch',
  rescale: bool = False,
  annealing: float = 0.0,
  num_steps: int | None = None,
  record_weights: None = None,
) -> Sampler:
  """Trains on E examples, chosen uniformly: the control of each pruning rule.

  With `rescale` the weight of all is N / E, which makes the learning rate as
  much larger: with keep the `kept_share` that `info_batch` reports, and its
  annealing, that is its control. Without, the weight is 1. A subset of one
  epoch is a uniform sample of all examples; a subset of the whole run changes
  the objective to the average over it.

  Args:
    num_examples: N.
    batch_size: b.
    keep: share in (0, 1] that is kept; E = round(keep N), at least 1.
    subset: 'epoch', chosen anew for each; or 'run', chosen once.
    rescale: whether the weight is N / E instead of 1.
    annealing: share of the steps, the last ones, on all examples with weight 1.
    num_steps: of the run, for annealing.
    record_weights: must be None.

  Returns:
    A Sampler whose info has `num_scored` 0 and `kept_share` E / N. Given the
    subset, it reports the law 1 / E and the target w / E. The last batch of an
    epoch is filled up with the first examples of its order.

  Raises:
    ValueError: on a bad argument; for record weights, of which the rule knows
      nothing; with annealing but without num_steps.
  """
  _validate.positive_integers(num_examples=num_examples)
  _validate.positive(keep=keep)
  _validate.fractions(keep=keep)
  _validate.one_of(('epoch', 'run'), subset=subset)
  _record_weights.refuse('random_pruning', record_weights)
  num_kept = max(1, round(keep * num_examples))
  weight = num_examples / num_kept if rescale else 1.0

  def new_weights(key):
    order = permutation(key, jnp.arange(num_examples, dtype=jnp.int32))
    weights = jnp.zeros((num_examples,), jnp.float32)
    return weights.at[order[:num_kept]].set(weight)

  def next_weights(key, state):
    return state.weights if subset == 'run' else new_weights(key)

  return pruned_epochs(
    num_examples,
    batch_size,
    new_weights,
    next_weights,
    remember_losses=False,
    annealing=annealing,
    num_steps=num_steps,
  )
