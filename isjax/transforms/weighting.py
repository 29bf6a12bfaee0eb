"""Weights by class, weights that are normalised, weights that are capped."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax import _validate
from isjax.losses import target_distribution
from isjax.transforms.per_example import expect_per_example, reweighting
from isjax.types import PyTree


def scale_by_class(
  class_weights: jax.Array,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies each example's weight by that of its class.

  `update` takes `targets=`, labels i32[b] or distributions f32[b, K]. Deferred
  re-weighting is a schedule of `losses.deferred` in `by_progress`:

      by_progress(lambda progress: scale_by_class(schedule(progress)))

  Args:
    class_weights: f32[K] >= 0, such as `losses.balanced_class_weights`.

  Raises:
    ValueError: in update, without targets or out of place.
  """
  num_classes = jnp.shape(class_weights)[0]

  def of_target(target: jax.Array) -> jax.Array:
    return jnp.sum(class_weights * target_distribution(target, num_classes))

  def weigh(per_example, *, targets=None, **extra):
    del extra
    if targets is None:
      raise ValueError(
        'scale_by_class needs the targets of the batch: call '
        'tx.update(updates, state, params, targets=batch.targets).'
      )
    return per_example.weights * jax.vmap(of_target)(targets)

  return reweighting('scale_by_class', weigh)


def self_normalise_weights() -> optax.GradientTransformationExtraArgs:
  """Divides the weights by their mean over the batch.

  That fixes the step's size and biases the estimate, by order 1/b. The class
  weighted mean of other libraries is this after `scale_by_class`. A batch whose
  weights are all 0 stays as it is.

  Raises:
    ValueError: in update, out of place.
  """

  def weigh(per_example, **extra):
    del extra
    mean = jnp.mean(per_example.weights)
    return per_example.weights / jnp.where(mean > 0, mean, 1.0)

  return reweighting('self_normalise_weights', weigh)


class ClipWeightsState(NamedTuple):
  """clipped_mass: f32[] in [0, 1), share of the last weights' sum cut off."""

  clipped_mass: jax.Array


def clip_weights(
  max_weight: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
  """Caps each example's weight; the one cap, last before the average.

  It trades bias for variance: the mean weight falls by `clipped_mass`, which
  the state reports.

  Args:
    max_weight: the cap, > 0.

  Raises:
    ValueError: where the cap is not positive; in update, out of place.

  Source: Ionides (2008), Truncated importance sampling.
  """
  _validate.positive(max_weight=max_weight)

  def init_fn(params: PyTree) -> ClipWeightsState:
    del params
    return ClipWeightsState(jnp.zeros((), jnp.float32))

  def update_fn(updates, state, params=None, **extra):
    del state, params, extra
    expect_per_example(updates, 'clip_weights')
    clipped = jnp.minimum(updates.weights, max_weight)
    total = jnp.sum(updates.weights)
    mass = jnp.where(total > 0, 1 - jnp.sum(clipped) / total, 0.0)
    updates = updates.reweighted(clipped, 'clip_weights')
    return updates, ClipWeightsState(mass.astype(jnp.float32))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
