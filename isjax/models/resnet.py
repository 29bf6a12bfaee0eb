"""A small residual network for small images, normalised per sample."""

import functools

from flax import linen as nn
import jax

# A convolution needs no bias before a norm.
_conv3x3 = functools.partial(
  nn.Conv,
  kernel_size=(3, 3),
  use_bias=False,
  kernel_init=nn.initializers.he_normal(),
)
_conv1x1 = functools.partial(_conv3x3, kernel_size=(1, 1))
_NUM_STAGES = 3


class _Block(nn.Module):
  """Two convolutions, each after norm and relu, added to their input."""

  width: int
  strides: int
  num_groups: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    activated = nn.relu(nn.GroupNorm(self.num_groups)(x))
    shortcut = x
    if self.strides > 1 or x.shape[-1] != self.width:
      shortcut = _conv1x1(self.width, strides=self.strides)(activated)
    y = _conv3x3(self.width, strides=self.strides)(activated)
    y = nn.relu(nn.GroupNorm(self.num_groups)(y))
    return shortcut + _conv3x3(self.width)(y)


class ResNet(nn.Module):
  """Pre-activation ResNet of three stages with GroupNorm.

  Each stage after the first halves the image and doubles the channels; the
  last is averaged over the image. GroupNorm because an example's loss must
  not depend on the examples drawn with it: else no importance weight makes
  the gradient unbiased.

  num_classes:      K >= 1, the number of logits.
  width:            channels of the first stage; num_groups divides it.
  blocks_per_stage: residual blocks; depth is 6 blocks_per_stage + 2.
  num_groups:       groups of channels that are normalised together.

  Source: He et al. (2016), arXiv:1603.05027; Wu & He (2018),
  arXiv:1803.08494.
  """

  num_classes: int
  width: int = 16
  blocks_per_stage: int = 1
  num_groups: int = 8

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images f32[m, H, W, C] to logits f32[m, K]; `train` is unused."""
    del train
    x = _conv3x3(self.width)(x)
    for stage in range(_NUM_STAGES):
      for block in range(self.blocks_per_stage):
        strides = 2 if stage > 0 and block == 0 else 1
        x = _Block(self.width * 2**stage, strides, self.num_groups)(x)
    x = nn.relu(nn.GroupNorm(self.num_groups)(x)).mean(axis=(1, 2))
    return nn.Dense(self.num_classes)(x)
