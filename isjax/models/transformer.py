"""A small transformer for sequences of tokens."""

from flax import linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from isjax import _validate


class _Block(nn.Module):
  """Attention, then two dense layers, each after a norm, added to its input."""

  num_heads: int
  dtype: Dtype | None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    y = nn.LayerNorm(dtype=self.dtype)(x)
    x = x + nn.MultiHeadDotProductAttention(
      num_heads=self.num_heads, use_bias=False, dtype=self.dtype
    )(y)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(y))
    return x + nn.Dense(width, dtype=self.dtype)(y)


class Transformer(nn.Module):
  """Pre-norm transformer encoder with learned positions.

  Each token attends to all others, and all count in the mean: none is padding.
  Every layer has a rule in `ghost`.

  num_classes: K >= 1, the number of logits.
  num_tokens:  size of the vocabulary, by default that of bytes.
  max_length:  of a sequence.
  width:       channels; num_heads divides it.
  num_blocks:  of attention and dense layers.
  num_heads:   of attention.
  outputs:     'sequence', logits from the mean over the tokens; or 'token',
               logits of each token.
  dtype:       of the arithmetic, such as 'bfloat16'; None for float32, in which
               parameters and logits are in any case.

  Source: Vaswani et al. (2017), arXiv:1706.03762; Xiong et al. (2020),
  arXiv:2002.04745, for the norms' places.
  """

  num_classes: int
  num_tokens: int = 256
  max_length: int = 512
  width: int = 64
  num_blocks: int = 2
  num_heads: int = 4
  outputs: str = 'sequence'
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps tokens to logits.

    Args:
      x: i32[m, T] in [0, num_tokens), T <= max_length.
      train: unused.

    Returns:
      f32[m, K], or f32[m, T, K] where `outputs` is 'token'.

    Raises:
      ValueError: for inputs that are no such array; for another `outputs`.
    """
    del train
    _validate.one_of(('sequence', 'token'), outputs=self.outputs)
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 2:
      raise ValueError(
        'inputs of a Transformer must be tokens, integers [m, T]; got '
        f'{x.dtype}{list(x.shape)}.'
      )
    length = x.shape[1]
    if length > self.max_length:
      raise ValueError(
        f'inputs must have at most max_length={self.max_length} tokens; got '
        f'{length}.'
      )
    positions = nn.Embed(self.max_length, self.width, dtype=self.dtype)
    tokens = nn.Embed(self.num_tokens, self.width, dtype=self.dtype)
    x = tokens(x) + positions(jnp.arange(length)[None])
    for _ in range(self.num_blocks):
      x = _Block(self.num_heads, self.dtype)(x)
    x = nn.LayerNorm(dtype=jnp.float32)(x)
    if self.outputs == 'sequence':
      x = x.mean(axis=1)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)
