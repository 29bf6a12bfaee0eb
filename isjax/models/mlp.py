"""A multilayer perceptron."""

from flax import linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp


class MLP(nn.Module):
  """Dense layers with relu between them, on flattened inputs.

  num_classes: K >= 1, the number of logits.
  hidden:      widths of the hidden layers; () gives a linear model.
  dtype:       of the arithmetic, such as 'bfloat16'; None for float32, in which
               parameters and logits are in any case.
  """

  num_classes: int
  hidden: tuple[int, ...] = (256, 256)
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps inputs f32[m, ...] to logits f32[m, K]; `train` has no effect."""
    del train
    x = x.reshape((x.shape[0], -1))
    for width in self.hidden:
      x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)
