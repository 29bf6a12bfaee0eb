"""Residual networks of bottleneck blocks, for large images and fine-tuning."""

from collections.abc import Callable
import functools

from flax import linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from isjax.models import layers

_EXPANSION = 4


class _Bottleneck(nn.Module):
  """A convolution between two of single pixels, added to their input."""

  width: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm()(self.conv(self.width, (1, 1))(x)))
    y = self.conv(self.width, (3, 3), self.strides, padding=1)(y)
    y = nn.relu(self.norm()(y))
    y = self.norm()(self.conv(_EXPANSION * self.width, (1, 1))(y))
    if x.shape != y.shape:
      x = self.conv(_EXPANSION * self.width, (1, 1), self.strides)(x)
      x = self.norm()(x)
    return nn.relu(x + y)


class BottleneckResNet(nn.Module):
  """ResNet-50 by default, with 25,557,032 parameters at 1000 classes.

  The stride of a stage is that of its first 3x3 convolution, and all padding is
  symmetric, so that weights of the common trained models fit. These come with
  `norm='frozen_batch'`, and with their running averages as model_state. The
  names of the parameters, for `train_only`, begin with stem, stage1_block1 and
  so on, and head.

  num_classes: K >= 1, the number of logits.
  num_blocks:  residual blocks of each stage; (3, 4, 23, 3) is ResNet-101.
  width:       channels of the stem; stage i has 4 * 2^(i - 1) times as many.
  num_groups:  groups of channels that 'group' normalises together; it divides
               `width`.
  norm:        'group', 'layer', 'batch' or 'frozen_batch': see
               `layers.norm_layer`.
  dtype:       of the arithmetic, such as 'bfloat16'; None for float32, in which
               parameters and logits are in any case.

  Source: He et al. (2015), arXiv:1512.03385, table 1.
  """

  num_classes: int
  num_blocks: tuple[int, ...] = (3, 4, 6, 3)
  width: int = 64
  num_groups: int = 32
  norm: str = 'group'
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images f32[m, H, W, C] to logits f32[m, K].

    Only the norm 'batch' heeds `train`.
    """
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = layers.norm_layer(
      self.norm, num_groups=self.num_groups, train=train, dtype=self.dtype
    )
    x = conv(self.width, (7, 7), strides=2, padding=3, name='stem')(x)
    x = nn.relu(norm(name='stem_norm')(x))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for stage, blocks in enumerate(self.num_blocks):
      width = self.width * 2**stage
      for block in range(blocks):
        strides = 2 if stage > 0 and block == 0 else 1
        name = f'stage{stage + 1}_block{block + 1}'
        x = _Bottleneck(width, strides, conv, norm, name=name)(x)
    x = x.mean(axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name='head')(x)
