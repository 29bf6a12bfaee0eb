"""The residual networks of He et al. (2015) for CIFAR."""

from collections.abc import Callable
import functools

from flax import linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from isjax import _validate
from isjax.models import layers
from isjax.models.heads import CosineHead

_NUM_STAGES = 3


class _Block(nn.Module):
  """Two convolutions, each before its norm, added to their input."""

  width: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.conv(self.width, (3, 3), self.strides, padding=1)(x)
    y = nn.relu(self.norm()(y))
    y = self.norm()(self.conv(self.width, (3, 3), padding=1)(y))
    return nn.relu(_shortcut(x, self.width, self.strides) + y)


def _shortcut(x: jax.Array, width: int, strides: int) -> jax.Array:
  """Every stride-th pixel, with channels of zeros on both sides: option A."""
  missing = width - x.shape[-1]
  channels = (missing // 2, missing - missing // 2)
  return jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), channels))


class CifarResNet(nn.Module):
  """ResNet-8, -20, -32 and so on, with shortcuts that have no parameters.

  ResNet-32 has 464,154 parameters with 10 classes and images of 3 channels. Of
  the paper's network only the norm differs by default: `norm='batch'` is it.

  num_classes: K >= 1, the number of outputs.
  depth:       6 n + 2, for n blocks a stage.
  width:       channels of the first stage; each further one doubles them.
  num_groups:  groups of channels that 'group' normalises together.
  norm:        'group', 'layer', 'batch' or 'frozen_batch': see
               `layers.norm_layer`.
  head:        'linear', or 'cosine' for the outputs that `losses.ldam` takes.
  dtype:       of the arithmetic, such as 'bfloat16'; None for float32, in which
               parameters and outputs are in any case.

  Source: He et al. (2015), arXiv:1512.03385, section 4.2.
  """

  num_classes: int
  depth: int = 32
  width: int = 16
  num_groups: int = 8
  norm: str = 'group'
  head: str = 'linear'
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images f32[m, H, W, C] to logits, or cosines, f32[m, K].

    Only the norm 'batch' heeds `train`.

    Raises:
      ValueError: for another depth, norm or head.
    """
    _validate.one_of(('linear', 'cosine'), head=self.head)
    blocks_per_stage = layers.blocks_per_stage(self.depth, others=2)
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = layers.norm_layer(
      self.norm, num_groups=self.num_groups, train=train, dtype=self.dtype
    )
    x = nn.relu(norm()(conv(self.width, (3, 3), padding=1)(x)))
    for stage in range(_NUM_STAGES):
      for block in range(blocks_per_stage):
        strides = 2 if stage > 0 and block == 0 else 1
        x = _Block(self.width * 2**stage, strides, conv, norm)(x)
    features = x.mean(axis=(1, 2), dtype=jnp.float32)
    if self.head == 'cosine':
      return CosineHead(self.num_classes)(features)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(features)
