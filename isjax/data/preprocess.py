"""The scaling of stored images, made inside the step."""

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
