"""The scaling of stored inputs, made inside the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from isjax import _validate


def rescale(max_value: int) -> Callable[[jax.Array], jax.Array]:
  """Maps stored pixels [0, max_value] to float32 in [0, 1].

  The images stay integers on device and are scaled where they are used: in
  training, in scoring and in evaluation alike, by the same function.

  Args:
    max_value: the pixel value that stands for 1.0, > 0; `Metadata.max_value`.

  Returns:
    preprocess(inputs, integers of any shape) -> f32 of the same shape. It
    raises ValueError for inputs that are floats already, for they would be
    scaled twice.

  Raises:
    ValueError: unless max_value > 0.
  """
  _validate.positive(max_value=max_value)

  def preprocess(inputs):
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
      raise ValueError(
        f'inputs must be integers that are not scaled yet; got {inputs.dtype}.'
      )
    return inputs.astype(jnp.float32) / max_value

  return preprocess


def standardise(train_inputs: jax.Array) -> Callable[[jax.Array], jax.Array]:
  """Maps features to mean 0 and standard deviation 1 over the training set.

  Args:
    train_inputs: f32[N, ...], the training set's, whatever split is mapped. A
      feature that is constant there is only centred.

  Returns:
    preprocess(inputs f32[m, ...]) -> f32 of the same shape.
  """
  mean = jnp.mean(train_inputs, axis=0)
  deviation = jnp.std(train_inputs, axis=0)
  deviation = jnp.where(deviation > 0, deviation, 1.0)
  return lambda inputs: (inputs - mean[None]) / deviation[None]
