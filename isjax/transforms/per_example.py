"""Gradients that are still per example, their average, and what is between."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from isjax.types import PyTree

# These weight by loss: each makes the objective distributionally robust.
_ROBUST = ('scale_by_absgd', 'scale_by_cvar', 'scale_by_chi_square')


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
      ValueError: after `clip_weights`, which has to be the last; for a
        transform that the robust one before it would have to see.
    """
    if 'clip_weights' in self.applied:
      raise ValueError(
        f'{name} comes after clip_weights, whose cap it would undo: put '
        'clip_weights last before average_gradient().'
      )
    robust = [other for other in self.applied if other in _ROBUST]
    if robust and name in ('scale_by_class', *_ROBUST):
      raise ValueError(
        f'{name} must come before {robust[0]}, whose weights depend on all '
        f'earlier ones; and a chain has one of {", ".join(_ROBUST)}.'
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


def expect_per_example(updates: Any, name: str) -> None:
  """Raises ValueError unless `updates` is what the transform `name` takes."""
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
    expect_per_example(updates, 'average_gradient')
    batch_size = updates.losses.shape[0]
    return updates.pullback(updates.weights / batch_size), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )


def reweighting(
  name: str, weigh: Callable[..., jax.Array]
) -> optax.GradientTransformationExtraArgs:
  """Makes a transform without state from a formula for the weights.

  Args:
    name: of the transform, for the trail of those applied and for errors.
    weigh: (per_example, **extra) -> f32[b], weights in place of
      `per_example.weights`; extra are the arguments of `update`.

  Raises:
    ValueError: in update, out of place.
  """

  def update_fn(updates, state, params=None, **extra):
    del params
    expect_per_example(updates, name)
    return updates.reweighted(weigh(updates, **extra), name), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )
