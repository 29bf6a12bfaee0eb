"""Per-example importance, from the outputs of a forward pass.

A score is a function of (outputs [m, ...], targets [m, ...]) that returns
f32[m] >= 0. The optimal law is proportional to the norm of each example's
gradient, so the best scores stand close to that norm and cost no backward
pass.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from isjax.types import PyTree

LossFn: TypeAlias = Callable[[PyTree, PyTree], jax.Array]
ScoreFn: TypeAlias = Callable[[PyTree, PyTree], jax.Array]


def _norm(tree: PyTree) -> jax.Array:
  """The 2-norm over all leaves, free of overflow and of underflow."""
  flat = jnp.concatenate(
    [leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree)]
  )
  largest = jnp.max(jnp.abs(flat))
  scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
  return scale * jnp.sqrt(jnp.sum(jnp.square(flat / scale)))


def logit_gradient_norm(loss_fn: LossFn) -> ScoreFn:
  """Scores each example by || d loss_i / d outputs_i ||_2.

  Up to a factor that all examples share, this bounds the norm of the gradient
  in every parameter, so that sampling by it lowers the variance of the update
  at the price of a forward pass. `outputs` must be the last pre-activations:
  for a network that ends in an activation, the activation belongs to loss_fn.

  Args:
    loss_fn: (output, target) -> f32[], the loss of ONE example, whatever the
      shape of its output: classes, soft targets, a masked sequence, a pytree.

  Returns:
    (outputs [m, ...], targets [m, ...]) -> f32[m] >= 0. For cross entropy in
    [0, sqrt(2)], and 0 only where the loss is flat.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, section 3.2.
  """
  gradient = jax.grad(loss_fn)

  def score(outputs: PyTree, targets: PyTree) -> jax.Array:
    return jax.vmap(lambda o, t: _norm(gradient(o, t)))(outputs, targets)

  return score


def loss(loss_fn: LossFn) -> ScoreFn:
  """Scores each example by its loss, which must be non-negative.

  A float32 loss reaches exactly 0 where the gradient does not; mix the law
  with its target (`mix` of the sampler), or such an example is never drawn.

  Args:
    loss_fn: (output, target) -> f32[] >= 0, the loss of ONE example.

  Returns:
    (outputs [m, ...], targets [m, ...]) -> f32[m].
  """

  def score(outputs: PyTree, targets: PyTree) -> jax.Array:
    return jax.vmap(loss_fn)(outputs, targets).astype(jnp.float32)

  return score


def one_minus_label_probability(
  outputs: jax.Array, targets: jax.Array
) -> jax.Array:
  """Scores each example by 1 - softmax(outputs)[label], exact near 0.

  Args:
    outputs: f32[m, K], logits.
    targets: i32[m], labels in [0, K).

  Returns:
    f32[m] in [0, 1].

  Raises:
    ValueError: where the shapes are others (one-hot targets, say).
  """
  return -jnp.expm1(label_log_probability(outputs, targets))


def label_log_probability(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns log softmax(outputs)[label], f32[m] <= 0.

  Args:
    outputs: f32[m, K], logits.
    targets: i32[m], labels in [0, K).

  Raises:
    ValueError: where the shapes are others (one-hot targets, say).
  """
  if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
    raise ValueError(
      'expected outputs f32[m, K] and one integer label per example, targets '
      f'i32[m]; got {outputs.shape} and {targets.shape}. Turn one-hot targets '
      'into labels with argmax.'
    )
  log_probabilities = jax.nn.log_softmax(outputs.astype(jnp.float32))
  return jnp.take_along_axis(log_probabilities, targets[:, None], 1)[:, 0]


# name -> factory: (loss_fn) -> score.
SCORES: dict[str, Callable[[LossFn], ScoreFn]] = {
  'logit_gradient_norm': logit_gradient_norm,
  'loss': loss,
  'one_minus_label_probability': lambda loss_fn: one_minus_label_probability,
}
