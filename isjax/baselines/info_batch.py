"""InfoBatch: epochs without half of the examples of small loss."""

import jax
import jax.numpy as jnp

from isjax import _validate
from isjax.baselines import _record_weights
from isjax.baselines._pruned_epochs import pruned_epochs
from isjax.types import Sampler


def info_batch(
  num_examples: int,
  batch_size: int,
  *,
  prune: float = 0.5,
  annealing: float = 0.125,
  num_steps: int | None = None,
  record_weights: None = None,
) -> Sampler:
  """Prunes examples of small loss at random, and weights those it keeps.

  Before each epoch but the first, an example whose last loss is below the mean
  of all last losses is pruned with chance r; if it is kept, its weight in that
  epoch is 1 / (1 - r). All others are kept with weight 1. The last steps train
  on all examples.

  Over the pruning, the weighted gradients of an epoch have the same expected
  sum as those of all N examples. Its E < N draws make fewer steps, so each step
  is N / E times the unbiased one: **part of what pruning does is a larger
  learning rate**, which `random_pruning(..., rescale=True)` has, too. Over
  draws of an epoch the expected weight is about N / E, not 1, and metrics that
  are weighted with it are as much too large.

  Otherwise than in the authors' code, each example is pruned independently, as
  the paper has it; the code prunes a fixed number of those of small loss [mem].
  The last batch of an epoch is not a smaller one: it is filled up with the
  first examples of the epoch's order. Annealing goes by steps and starts
  within an epoch.

  Args:
    num_examples: N.
    batch_size: b.
    prune: r in [0, 1).
    annealing: share of the steps, the last ones, on all examples: 1 - delta of
      the paper.
    num_steps: of the run, for annealing.
    record_weights: must be None.

  Returns:
    A Sampler whose info has `num_scored` 0 and `kept_share` E / N. Given what
    an epoch keeps, it reports the law 1 / E and the target w_i / E.

  Raises:
    ValueError: on a bad argument; for record weights, of which the rule knows
      nothing; with annealing but without num_steps.

  Source: Qin et al. (2023), arXiv:2303.04947, section 3.
  """
  _validate.decays(prune=prune)
  _record_weights.refuse('info_batch', record_weights)

  def first_weights(key):
    del key
    return jnp.ones((num_examples,), jnp.float32)

  def next_weights(key, state):
    pruned = jax.random.uniform(key, (num_examples,)) < prune
    if_small = jnp.where(pruned, 0.0, 1 / (1 - prune))
    return jnp.where(_is_small(state.losses), if_small, 1.0)

  return pruned_epochs(
    num_examples,
    batch_size,
    first_weights,
    next_weights,
    remember_losses=True,
    annealing=annealing,
    num_steps=num_steps,
  )


def _is_small(losses: jax.Array) -> jax.Array:
  """Tells which are below the mean of the finite ones.

  The largest is not, even where the mean is rounded up beyond it.
  """
  finite = jnp.isfinite(losses)
  mean = jnp.mean(losses, where=finite)
  largest = jnp.max(losses, where=finite, initial=-jnp.inf)
  return finite & (losses < jnp.minimum(mean, largest))
