"""A plain convolutional network for digits."""

from flax import linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp


class CNN(nn.Module):
  """Convolutions, one max-pooling and a hidden layer; no norms.

  On 28 x 28 grey images with 10 classes it has 1,199,882 parameters, and is the
  network of MNIST in the code of Katharopoulos & Fleuret (2018).

  num_classes: K >= 1, the number of logits.
  channels:    of each 3x3 convolution; each takes 2 pixels off the image's
               sides, and half of the rest, rounded down, must be left.
  hidden:      width of the hidden layer.
  dtype:       of the arithmetic, such as 'bfloat16'; None for float32, in which
               parameters and logits are in any case.

  Source: LeCun et al. (1998), doi:10.1109/5.726791, for the idea.
  """

  num_classes: int
  channels: tuple[int, ...] = (32, 64)
  hidden: int = 128
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images f32[m, H, W, C] to logits f32[m, K]; `train` is unused."""
    del train
    for width in self.channels:
      conv = nn.Conv(width, (3, 3), padding='VALID', dtype=self.dtype)
      x = nn.relu(conv(x))
    x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape((x.shape[0], -1))
    x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)
