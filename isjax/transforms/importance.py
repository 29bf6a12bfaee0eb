"""Importance weights: what makes the estimate unbiased."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax import _validate
from isjax.transforms.per_example import (
  PerExample,
  average_gradient,
  expect_per_example,
)
from isjax.types import PyTree
from isjax.weights import importance_weights

_NORMALISERS = {
  'none': jnp.ones_like,
  'max': jnp.max,
  'mean': jnp.mean,
}


class ScaleByImportanceState(NamedTuple):
  """count: i32[], updates made, which a schedule of the exponent follows."""

  count: jax.Array


def scale_by_importance(
  num_examples: int,
  *,
  exponent: float | jax.Array | optax.Schedule = 1.0,
  normalise: str = 'none',
) -> optax.GradientTransformationExtraArgs:
  """Weights each example by (pi_i / p_i)^exponent.

  With exponent 1 and normalise 'none' the averaged gradient is an unbiased
  estimate of the objective's gradient, whatever the law. `update` takes
  `probabilities=` f32[b] > 0 and `target_probabilities=` f32[b] (1/N where it
  is not given), both as a `Draw` carries them. It comes first in the chain,
  and once.

  Args:
    num_examples: N, size of the training set.
    exponent: beta; 1 is unbiased, 0 does not correct at all, and in between
      the mean weight is below 1, which acts on the learning rate. May be an
      array, or a schedule of the number of updates.
    normalise: 'none', or the weights' 'max' or 'mean' over the batch to divide
      by. Both bias the estimate.

  Returns:
    A transformation of PerExample, with a count as its state.

  Raises:
    ValueError: on a bad argument; in update, without probabilities or out of
      place.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, equation 4; the
  exponent and its maximum: Schaul et al. (2016), arXiv:1511.05952, section 3.4.
  """
  _validate.positive_integers(num_examples=num_examples)
  _validate.one_of(_NORMALISERS, normalise=normalise)
  if not callable(exponent):
    _validate.finite(exponent=exponent)

  def init_fn(params: PyTree) -> ScaleByImportanceState:
    del params
    return ScaleByImportanceState(jnp.zeros((), jnp.int32))

  def update_fn(
    updates,
    state,
    params=None,
    *,
    probabilities=None,
    target_probabilities=None,
    **extra,
  ):
    del params, extra
    expect_per_example(updates, 'scale_by_importance')
    _expect_first(updates)
    _expect_probabilities(probabilities)
    if target_probabilities is None:
      target_probabilities = 1 / num_examples
    beta = exponent(state.count) if callable(exponent) else exponent
    weights = importance_weights(probabilities, target_probabilities)
    weights = _power(weights, beta)
    norm = _NORMALISERS[normalise](weights)
    weights = weights / jnp.where(norm > 0, norm, 1.0)
    updates = updates.reweighted(weights, 'scale_by_importance')
    count = optax.safe_increment(state.count)
    return updates, ScaleByImportanceState(count)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _power(weights: jax.Array, exponent: float | jax.Array) -> jax.Array:
  """Returns weights^exponent; exactly the weights at exponent 1."""
  if isinstance(exponent, (int, float)) and exponent == 1:
    return weights
  return weights**exponent


def _expect_first(updates: PerExample) -> None:
  if updates.applied:
    raise ValueError(
      'scale_by_importance must come first in the chain and once; before it '
      f'came {", ".join(updates.applied)}.'
    )


def _expect_probabilities(probabilities: Any) -> None:
  if probabilities is None:
    raise ValueError(
      'scale_by_importance needs the law of the draw: call '
      'tx.update(updates, state, params, probabilities=draw.probabilities). '
      'MultiSteps(...).gradient_transformation() drops such arguments: put it '
      'after average_gradient().'
    )


def importance_weighted(
  inner: optax.GradientTransformation,
  num_examples: int,
  *,
  exponent: float | jax.Array | optax.Schedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
  """Makes an optimiser one of importance-sampled batches.

  chain(scale_by_importance(num_examples, exponent), average_gradient(), inner).

  Args:
    inner: any optax transformation of plain gradients.
    num_examples: N.
    exponent: of the weights, as in `scale_by_importance`.
  """
  return optax.chain(
    scale_by_importance(num_examples, exponent=exponent),
    average_gradient(),
    inner,
  )
