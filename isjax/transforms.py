"""Optax transforms on gradients that are still per example.

`per_example_gradient` returns a `PerExample`: the loss vector and its pullback
ct -> sum_i ct_i grad l_i, a closure rather than b copies of the parameters.
Transforms early in a chain multiply its weights; `average_gradient` pulls
weights / b back, once:

    optax.chain(
      scale_by_importance(num_examples),  # first: w_i = pi_i / p_i
      clip_weights(10.0),                 # last, if at all
      average_gradient(),                 # one backward pass
      optax.adamw(1e-3),                  # and from here on plain optax
    )

The result is the gradient of the weighted mean loss, while the weights live in
real transforms, whose state is checkpointed with the optimiser's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax import _validate
from isjax.types import PyTree
from isjax.weights import importance_weights

_NORMALISERS = {
  'none': jnp.ones_like,
  'max': jnp.max,
  'mean': jnp.mean,
}


class PerExample:
  """A gradient before its average over the batch.

  losses:   f32[b].
  weights:  f32[b], what each example's gradient is multiplied by; ones at
            first.
  pullback: (cotangents f32[b]) -> sum_i cotangents_i grad l_i, a pytree like
            the parameters.
  applied:  names of the transforms applied so far.

  It lives inside one traced step: flattening it raises, so that it crosses no
  jit, cond or scan and no optax transform mistakes it for a gradient.
  """

  def __init__(
    self,
    losses: jax.Array,
    weights: jax.Array,
    pullback: Callable[[jax.Array], PyTree],
    applied: tuple[str, ...] = (),
  ):
    self.losses = losses
    self.weights = weights
    self.pullback = pullback
    self.applied = applied

  @classmethod
  def from_stacked(cls, losses: jax.Array, gradients: PyTree) -> 'PerExample':
    """Wraps per-example gradients that are already there.

    Args:
      losses: f32[b].
      gradients: pytree of arrays [b, ...], row i the gradient of example i.

    Raises:
      ValueError: where an array's leading axis is not b.
    """
    _expect_loss_vector(losses)
    for leaf in jax.tree.leaves(gradients):
      if leaf.shape[:1] != losses.shape:
        raise ValueError(
          'gradients must have the leading axis b of losses, '
          f'{losses.shape}; got an array of shape {leaf.shape}.'
        )

    def pullback(cotangents: jax.Array) -> PyTree:
      return jax.tree.map(
        lambda rows: jnp.tensordot(cotangents.astype(rows.dtype), rows, 1),
        gradients,
      )

    return cls(losses, jnp.ones_like(losses), pullback)

  def reweighted(self, weights: jax.Array, name: str) -> 'PerExample':
    """Returns a copy with other weights, `name` added to its trail.

    Args:
      weights: f32[b], in place of the present ones.
      name: of the transform that asks.

    Raises:
      ValueError: after `clip_weights`, which has to be the last.
    """
    if 'clip_weights' in self.applied:
      raise ValueError(
        f'{name} comes after clip_weights, whose cap it would undo: put '
        'clip_weights last before average_gradient().'
      )
    return PerExample(
      self.losses, weights, self.pullback, (*self.applied, name)
    )


def _refuse_to_flatten(per_example: PerExample):
  del per_example
  raise ValueError(
    'a PerExample is not a gradient yet: put average_gradient() before the '
    'transform that met it. Optimisers, clipping and scaling come after it in '
    'the chain; MultiSteps, masked, partition and apply_if_finite go around '
    'the inner optimiser alone. importance_weighted(inner, num_examples) '
    'builds the usual chain. A PerExample crosses no jit, cond or scan either.'
  )


jax.tree_util.register_pytree_node(
  PerExample, _refuse_to_flatten, lambda _, children: PerExample(*children)
)


def _expect_loss_vector(losses: jax.Array) -> None:
  if jnp.ndim(losses) != 1:
    raise ValueError(
      'expected one loss per example, f32[b]; got shape '
      f'{jnp.shape(losses)}. Do not average the losses.'
    )


def _expect_per_example(updates: Any, name: str) -> None:
  if not isinstance(updates, PerExample):
    raise ValueError(
      f'{name} expects a PerExample, as per_example_gradient returns it; got '
      f'{type(updates).__name__}. It must stand before average_gradient() and '
      'before every transform of plain gradients.'
    )


def per_example_gradient(
  losses_fn: Callable[..., Any], has_aux: bool = False
) -> Callable[..., Any]:
  """Differentiates a vector of losses, leaving the average for later.

  Args:
    losses_fn: (params, *args) -> f32[b], or with has_aux (f32[b], aux).
    has_aux: whether losses_fn returns a pair.

  Returns:
    (params, *args) -> PerExample, or (PerExample, aux). The forward pass runs
    here, the backward pass in `average_gradient`.

  Raises:
    ValueError: when called, where losses_fn does not return a vector.
  """

  def differentiate(params: PyTree, *args: Any):
    losses, pullback, *aux = jax.vjp(
      lambda p: losses_fn(p, *args), params, has_aux=has_aux
    )
    _expect_loss_vector(losses)
    per_example = PerExample(
      losses,
      jnp.ones_like(losses),
      lambda cotangents: pullback(cotangents.astype(losses.dtype))[0],
    )
    return (per_example, *aux) if has_aux else per_example

  return differentiate


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
    _expect_per_example(updates, 'scale_by_importance')
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
    _expect_per_example(updates, 'clip_weights')
    clipped = jnp.minimum(updates.weights, max_weight)
    total = jnp.sum(updates.weights)
    mass = jnp.where(total > 0, 1 - jnp.sum(clipped) / total, 0.0)
    updates = updates.reweighted(clipped, 'clip_weights')
    return updates, ClipWeightsState(mass.astype(jnp.float32))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def average_gradient() -> optax.GradientTransformationExtraArgs:
  """Turns a PerExample into (1/b) sum_i weights_i grad l_i.

  The one backward pass of the step. What follows in the chain sees a plain
  gradient. Decay the parameters' norm after it, not in the loss, which the
  weights would multiply.

  Raises:
    ValueError: in update, where it meets anything but a PerExample.
  """

  def update_fn(updates, state, params=None, **extra):
    del params, extra
    _expect_per_example(updates, 'average_gradient')
    batch_size = updates.losses.shape[0]
    return updates.pullback(updates.weights / batch_size), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
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


def scale_by_progress(
  schedule: optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies plain updates by schedule(progress).

  Progress is the share of the run's budget that is spent, in [0, 1]. How many
  steps a gated run takes is known only at its end, so that a learning rate
  decays by cost and not by steps. `update` takes `progress=`, which
  `make_train_step` passes wherever it has a budget.

  Args:
    schedule: (f32[] in [0, 1]) -> factor f32[].

  Raises:
    ValueError: in update, without progress.
  """

  def update_fn(updates, state, params=None, *, progress=None, **extra):
    del params, extra
    if progress is None:
      raise ValueError(
        'scale_by_progress needs progress=, a number in [0, 1]: give '
        'make_train_step a budget, or use a schedule of steps.'
      )
    factor = schedule(progress)
    updates = jax.tree.map(lambda u: u * jnp.asarray(factor, u.dtype), updates)
    return updates, state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )
