"""Weighted random sampling for imbalanced classes."""

import jax
import jax.numpy as jnp

from isjax import _validate
from isjax.samplers._fixed_law import fixed_law
from isjax.types import Sampler
from isjax.weights import class_weights, normalise


def class_balanced(
  num_examples: int,
  batch_size: int,
  *,
  labels: jax.Array,
  num_classes: int | None = None,
  kind: str = 'inverse_frequency',
  draws: str = 'independent',
) -> Sampler:
  """Draws each example with a chance that falls with the size of its class.

  With 'inverse_frequency' every class is equally likely. The purpose is to
  change the objective, so the target law is the sampling law itself and every
  importance weight is 1.

  Args:
    num_examples: N.
    batch_size: b.
    labels: i32[N] in [0, K).
    num_classes: K; one more than the largest label where None.
    kind: 'inverse_frequency', 'inverse_sqrt' or 'effective_number', as in
      `weights.class_weights`.
    draws: 'independent'; or 'epoch', N draws in which each example occurs
      floor(N p_i) or ceil(N p_i) times, in random order, with b <= N.

  Raises:
    ValueError: on a bad argument: one-hot labels, a label out of range, a
      class without examples.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  if jnp.shape(labels) != (num_examples,):
    raise ValueError(
      f'labels must be one integer per example, ({num_examples},); got shape '
      f'{jnp.shape(labels)}. Turn one-hot labels into integers with '
      'argmax.'
    )
  if num_classes is None:
    num_classes = int(jnp.max(labels)) + 1
  by_class = class_weights(labels, num_classes, kind=kind)
  law = normalise(by_class[jnp.asarray(labels)])
  return fixed_law(law, law, batch_size, draws)
