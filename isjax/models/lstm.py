"""A recurrent network for sequences, and for images read pixel by pixel."""

from flax import linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp


class LSTM(nn.Module):
  """One LSTM layer, and a dense layer on its last state.

  num_classes: K >= 1, the number of logits.
  hidden:      width of the state.
  dtype:       of the arithmetic, such as 'bfloat16'; None for float32, in which
               parameters, state and logits are in any case.

  Source: Hochreiter & Schmidhuber (1997), Neural Computation 9(8); pixel by
  pixel: Le et al. (2015), arXiv:1504.00941.
  """

  num_classes: int
  hidden: int = 128
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps sequences to logits; `train` has no effect.

    Args:
      x: f32[m, T, D], or images f32[m, H, W, C], which are read row by row as
        T = H W steps of D = C features.
      train: unused.

    Returns:
      f32[m, K].

    Raises:
      ValueError: for inputs of fewer than three axes.
    """
    del train
    if x.ndim < 3:
      raise ValueError(
        'inputs of an LSTM must be sequences [m, T, D] or images [m, H, W, C]; '
        f'got the shape {x.shape}. A series of numbers has D = 1.'
      )
    x = x.reshape((x.shape[0], -1, x.shape[-1]))
    cell = nn.OptimizedLSTMCell(self.hidden, dtype=self.dtype)
    (_, state), _ = nn.RNN(cell, return_carry=True)(x)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(state)
