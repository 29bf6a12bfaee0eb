"""Losses of one example: loss_fn(output, target) -> f32[].

Each factory here takes a loss's parameters and returns such a function. The
training step maps it over the batch, scores differentiate it and weights
multiply it, so none of them averages over examples.

Classification losses take logits f32[K], K >= 2, and as target a label i32[]
in [0, K); any other makes the loss NaN. Unless it says otherwise a loss takes
a distribution f32[K] as well. Values and gradients are finite as long as the
differences of logits are. With labels a loss near 0 is exact too, since it is
computed from the log odds log((1 - p) / p): it does not vanish before its
gradient does.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isjax import _validate, weights
from isjax.types import PyTree

LossFn: TypeAlias = Callable[[PyTree, PyTree], jax.Array]
ClassCounts: TypeAlias = Sequence[int] | np.ndarray | jax.Array


def cross_entropy(label_smoothing: float = 0.0) -> LossFn:
  """Makes the loss -sum_k q_k log p_k of p = softmax(logits) and target q.

  Args:
    label_smoothing: share of the uniform law that is mixed into q, in [0, 1].

  Raises:
    ValueError: for a share out of range; when called, for logits that are not
      f32[K] or a target that is neither a label nor f32[K].

  Source: the smoothing: Szegedy et al. (2016), arXiv:1512.00567, section 7.
  """
  _validate.fractions(label_smoothing=label_smoothing)

  def loss_fn(logits: jax.Array, target: jax.Array) -> jax.Array:
    _expect_logits(logits)
    if jnp.ndim(target) == 0 and label_smoothing == 0:
      return jax.nn.softplus(_log_odds_against(logits, target))
    num_classes = logits.shape[0]
    q = target_distribution(target, num_classes)
    q = (1 - label_smoothing) * q + label_smoothing / num_classes
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(jnp.where(q == 0, 0.0, q * log_p))

  return loss_fn


def focal(gamma: float = 1.0) -> LossFn:
  """Makes the loss -(1 - p)^gamma log p, p of the label: easy ones cost less.

  The target is a label. The gradient is finite for every gamma, also below 1
  where p is 1.

  Args:
    gamma: >= 0; 0 gives the cross entropy.

  Raises:
    ValueError: for a negative gamma; when called, for logits that are not
      f32[K] or a target that is no label.

  Source: Lin et al. (2017), arXiv:1708.02002, equation 4, with a softmax.
  """
  _validate.non_negative(gamma=gamma)

  def loss_fn(logits: jax.Array, target: jax.Array) -> jax.Array:
    _expect_logits(logits)
    against = _log_odds_against(logits, target)
    factor = jnp.exp(-gamma * jax.nn.softplus(-against))
    return factor * jax.nn.softplus(against)

  return loss_fn


def class_weighted(
  loss_fn: LossFn, class_weights: Sequence[float] | np.ndarray | jax.Array
) -> LossFn:
  """Multiplies a loss by its target's class weight, sum_k q_k weight_k.

  Args:
    loss_fn: (logits, target) -> f32[], the loss of ONE example.
    class_weights: f32[K] >= 0; may be an argument of a compiled program.

  Raises:
    ValueError: when called, as `cross_entropy`.
  """
  class_weights = jnp.asarray(class_weights, jnp.float32)

  def weighted_fn(logits: jax.Array, target: jax.Array) -> jax.Array:
    q = target_distribution(target, class_weights.shape[0])
    return jnp.sum(class_weights * q) * loss_fn(logits, target)

  return weighted_fn


def balanced_class_weights(
  class_counts: ClassCounts, *, mean_over: str = 'examples'
) -> jax.Array:
  """Returns the inverse effective numbers of the classes, scaled.

  Args:
    class_counts: i[K] >= 1, examples of each class in the training set.
    mean_over: of what the mean weight is 1: the 'examples', so that step sizes
      keep their meaning, or the 'classes', as in the paper. On a long tail the
      latter's mean over the examples is small (.17 for 5000 to 50 examples in
      ten classes), a hidden learning rate.

  Returns:
    f32[K] > 0.

  Raises:
    ValueError: for counts that are not i[K] >= 1, or another word.

  Source: Cui et al. (2019), arXiv:1901.05555, section 4, with beta .9999.
  """
  _validate.one_of(('examples', 'classes'), mean_over=mean_over)
  counts = _checked(class_counts)
  by_class = weights.class_weights(
    np.repeat(np.arange(len(counts)), counts),
    len(counts),
    kind='effective_number',
  )
  share = counts if mean_over == 'examples' else np.ones_like(counts)
  share = jnp.asarray(share / share.sum(), jnp.float32)
  return by_class / jnp.sum(share * by_class)


def class_balanced(
  class_counts: ClassCounts,
  loss_fn: LossFn | None = None,
  *,
  mean_over: str = 'classes',
) -> LossFn:
  """Weights a loss by the inverse of its class's effective number.

  Args:
    class_counts: i[K] >= 1, examples of each class in the training set.
    loss_fn: the loss that is weighted; None: the cross entropy.
    mean_over: 'classes', the paper's scale, or 'examples', as in
      `balanced_class_weights`.

  Raises:
    ValueError: on a bad argument; when called, as `cross_entropy`.

  Source: Cui et al. (2019), arXiv:1901.05555, section 4.
  """
  by_class = balanced_class_weights(class_counts, mean_over=mean_over)
  return class_weighted(loss_fn or cross_entropy(), by_class)


def class_balanced_focal(
  class_counts: ClassCounts, gamma: float = 1.0, *, mean_over: str = 'classes'
) -> LossFn:
  """Makes `class_balanced` of `focal(gamma)`.

  Args:
    class_counts: as in `class_balanced`.
    gamma: as in `focal`.
    mean_over: as in `class_balanced`.

  Raises:
    ValueError: as these two.

  Source: Cui et al. (2019), arXiv:1901.05555, section 4, with a softmax.
  """
  return class_balanced(class_counts, focal(gamma), mean_over=mean_over)


def deferred(
  class_weights: Sequence[float] | np.ndarray | jax.Array, start: float = 0.8
) -> Callable[[jax.Array | float], jax.Array]:
  """Deferred re-weighting (DRW): class weights that begin in mid-training.

  A schedule, so that one compiled program covers both phases; it goes into
  `transforms.scale_by_class` through `transforms.by_progress`.

  Args:
    class_weights: f32[K], used from `start` on; before it all are 1. Weights
      whose mean over the examples is 1 leave the step size alone.
    start: in the unit of the schedule's argument; of progress, 0.8 is the
      paper's epoch 160 of 200.

  Returns:
    (progress f32[]) -> f32[K].

  Source: Cao et al. (2019), arXiv:1906.07413, algorithm 1.
  """
  _validate.finite(start=start)
  class_weights = jnp.asarray(class_weights, jnp.float32)

  def schedule(progress: jax.Array | float) -> jax.Array:
    return jnp.where(progress >= start, class_weights, 1.0)

  return schedule


def ldam(
  class_counts: ClassCounts, *, max_margin: float = 0.5, scale: float = 30.0
) -> LossFn:
  """Makes the loss whose margins are wider around rarer classes (LDAM).

  It is the cross entropy of the logits scale (z_k - q_k margin_k), with margins
  proportional to n_k^(-1/4). The outputs z are cosines, as those of
  `models.heads.CosineHead`. With `deferred` class weights it is LDAM-DRW.

  Args:
    class_counts: i[K] >= 1, examples of each class in the training set.
    max_margin: of the rarest class, >= 0.
    scale: of the logits, > 0.

  Raises:
    ValueError: on a bad argument; when called, as `cross_entropy`.

  Source: Cao et al. (2019), arXiv:1906.07413, section 3.2.
  """
  _validate.non_negative(max_margin=max_margin)
  _validate.positive(scale=scale)
  counts = _checked(class_counts)
  margins = jnp.asarray(
    max_margin * (counts.min() / counts) ** 0.25, jnp.float32
  )
  inner_fn = cross_entropy()

  def loss_fn(cosines: jax.Array, target: jax.Array) -> jax.Array:
    _expect_logits(cosines, len(counts))
    q = target_distribution(target, len(counts))
    return inner_fn(scale * (cosines - margins * q), target)

  return loss_fn


def logit_adjustment(
  class_counts: ClassCounts, *, prior_exponent: float = 1.0
) -> LossFn:
  """Makes the cross entropy of logits plus the log prior of their classes.

  The logits then fit p(x | class) rather than p(class | x), so that the plain
  argmax aims at the balanced error.

  Args:
    class_counts: i[K] >= 1, examples of each class in the training set.
    prior_exponent: power of the prior; 1 is consistent for the balanced error,
      0 the cross entropy.

  Raises:
    ValueError: on a bad argument; when called, as `cross_entropy`.

  Source: Menon et al. (2021), arXiv:2007.07314, equation 10.
  """
  _validate.finite(prior_exponent=prior_exponent)
  counts = _checked(class_counts)
  offsets = jnp.asarray(
    prior_exponent * np.log(counts / counts.sum()), jnp.float32
  )
  inner_fn = cross_entropy()

  def loss_fn(logits: jax.Array, target: jax.Array) -> jax.Array:
    _expect_logits(logits, len(counts))
    return inner_fn(logits + offsets, target)

  return loss_fn


def balanced_softmax(class_counts: ClassCounts) -> LossFn:
  """Makes the cross entropy of the softmax n_k exp(z_k) / sum_j n_j exp(z_j).

  It is `logit_adjustment` with exponent 1: two papers meet in one function.

  Args:
    class_counts: i[K] >= 1, examples of each class in the training set.

  Raises:
    ValueError: for bad counts; when called, as `cross_entropy`.

  Source: Ren et al. (2020), arXiv:2007.10740, theorem 1.
  """
  return logit_adjustment(class_counts)


def binary_cross_entropy() -> LossFn:
  """Makes the sigmoid cross entropy, averaged over an output's logits.

  Output f32[...], one logit for each yes-or-no question; target of that shape,
  in [0, 1].

  Raises:
    ValueError: when called, where the shapes differ.
  """
  return _elementwise_mean(optax.sigmoid_binary_cross_entropy)


def squared_error() -> LossFn:
  """Makes the loss (output - target)^2, averaged over an output's elements.

  Output and target f32[...] of one shape.

  Raises:
    ValueError: when called, where the shapes differ.
  """
  return _elementwise_mean(lambda output, target: jnp.square(output - target))


def huber(delta: float = 1.0) -> LossFn:
  """Makes the mean of r^2/2 for |r| <= delta, else of delta (|r| - delta/2).

  r = output - target, both f32[...] of one shape.

  Args:
    delta: > 0, where the residual's cost turns from square to linear.

  Raises:
    ValueError: for a bad delta; when called, where the shapes differ.

  Source: Huber (1964), doi:10.1214/aoms/1177703732.
  """
  _validate.positive(delta=delta)
  return _elementwise_mean(
    lambda output, target: optax.huber_loss(output, target, delta=delta)
  )


def masked_sequence(loss_fn: LossFn, *, reduction: str = 'mean') -> LossFn:
  """Makes the loss of a sequence from the loss of one of its steps.

  Steps behind the mask add nothing, neither to the value nor to the gradient,
  whatever output and target hold there.

  Args:
    loss_fn: (output, target) -> f32[] of one step.
    reduction: 'mean' over the steps that count, so that all sequences count
      the same; or their 'sum', so that all steps do.

  Returns:
    (outputs [T, ...], (targets [T, ...], mask [T])) -> f32[], a pytree of
    outputs and of targets; a step counts where its mask is not zero. 0 where
    none does.

  Raises:
    ValueError: for another reduction.
  """
  _validate.one_of(('mean', 'sum'), reduction=reduction)

  def sequence_fn(outputs: PyTree, target: tuple[PyTree, jax.Array]):
    targets, mask = target
    counts = mask != 0
    losses = jax.vmap(loss_fn)(_blank(outputs, counts), targets)
    total = jnp.sum(losses, where=counts)
    if reduction == 'sum':
      return total
    return total / jnp.maximum(jnp.sum(counts), 1)

  return sequence_fn


def target_distribution(target: jax.Array, num_classes: int) -> jax.Array:
  """Returns a target as a distribution over the classes, f32[K].

  Args:
    target: a label i32[], or a distribution [K], which is only cast.
    num_classes: K.

  Returns:
    f32[K], NaN for a label outside [0, K).

  Raises:
    ValueError: for a target of another shape, or a label that is no integer.
  """
  target = jnp.asarray(target)
  if target.shape == (num_classes,):
    return target.astype(jnp.float32)
  _expect_label(target)
  one_hot = jax.nn.one_hot(target, num_classes)
  return jnp.where((target >= 0) & (target < num_classes), one_hot, jnp.nan)


def _log_odds_against(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns log((1 - p) / p), p the softmax at the label; NaN without one."""
  label = jnp.asarray(label)
  _expect_label(label)
  logits = jnp.asarray(logits, jnp.float32)
  own = jnp.arange(logits.shape[0]) == label
  others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits))
  return others - logits.at[label].get(
    mode='fill', fill_value=jnp.nan, wrap_negative_indices=False
  )


def _elementwise_mean(
  elementwise: Callable[[jax.Array, jax.Array], jax.Array],
) -> LossFn:
  """The mean of an elementwise loss, in float32, of two arrays of one shape."""

  def loss_fn(output: jax.Array, target: jax.Array) -> jax.Array:
    if jnp.shape(output) != jnp.shape(target):
      raise ValueError(
        'output and target of one example must have one shape; got '
        f'{jnp.shape(output)} and {jnp.shape(target)}.'
      )
    return jnp.mean(
      elementwise(
        jnp.asarray(output, jnp.float32), jnp.asarray(target, jnp.float32)
      )
    )

  return loss_fn


def _blank(tree: PyTree, keep: jax.Array) -> PyTree:
  """Zeros in place of the rows that are not kept."""
  return jax.tree.map(
    lambda rows: jax.vmap(lambda k, row: jnp.where(k, row, 0))(keep, rows), tree
  )


def _expect_label(target: jax.Array) -> None:
  if target.ndim or not jnp.issubdtype(target.dtype, jnp.integer):
    raise ValueError(
      'the target of one example must be an integer label, i32[], or, where '
      'the loss takes one, a distribution f32[K]; got '
      f'{target.dtype}{list(target.shape)}. The training step maps the loss '
      'over a batch; elsewhere use jax.vmap.'
    )


def _expect_logits(logits: jax.Array, num_classes: int | None = None) -> None:
  shape = jnp.shape(logits)
  if len(shape) != 1 or shape[0] < 2 or num_classes not in (None, shape[0]):
    raise ValueError(
      f'the logits of one example must be f32[{num_classes or "K"}], K >= 2; '
      f'got shape {shape}. The training step maps the loss over a batch; '
      'elsewhere use jax.vmap. One logit is a case for binary_cross_entropy.'
    )


def _checked(class_counts: ClassCounts) -> np.ndarray:
  """The counts of the classes, i[K] >= 1, as an array."""
  counts = np.asarray(class_counts)
  if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer):
    raise ValueError(
      'class_counts must be the number of examples of each class, i[K]; got '
      f'{counts.dtype}{list(counts.shape)}. Count labels with '
      'bincount(labels, length=num_classes).'
    )
  if (counts < 1).any():
    raise ValueError(
      f'class_counts must be at least 1; class {int((counts < 1).argmax())} '
      f'has {counts.min()}.'
    )
  return counts


# name -> factory. One with `class_counts` needs those of the training set; the
# rest of its parameters have defaults.
LOSSES: dict[str, Callable[..., LossFn]] = {
  'balanced_softmax': balanced_softmax,
  'binary_cross_entropy': binary_cross_entropy,
  'class_balanced': class_balanced,
  'class_balanced_focal': class_balanced_focal,
  'cross_entropy': cross_entropy,
  'focal': focal,
  'huber': huber,
  'ldam': ldam,
  'logit_adjustment': logit_adjustment,
  'squared_error': squared_error,
}
