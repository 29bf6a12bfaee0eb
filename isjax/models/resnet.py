"""Small residual networks for small images, with norms before layers."""

from collections.abc import Callable
import functools

from flax import linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from isjax import _validate
from isjax.models import layers

_NUM_STAGES = 3


class _Block(nn.Module):
  """Two convolutions, each after norm and relu, added to their input."""

  width: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    activated = nn.relu(self.norm()(x))
    shortcut = x
    if self.strides > 1 or x.shape[-1] != self.width:
      shortcut = self.conv(self.width, (1, 1), self.strides)(activated)
    y = self.conv(self.width, (3, 3), self.strides)(activated)
    y = nn.relu(self.norm()(y))
    return shortcut + self.conv(self.width, (3, 3))(y)


class ResNet(nn.Module):
  """Pre-activation ResNet of three stages.

  Each stage after the first halves the image and doubles the channels; the
  last is averaged over the image. GroupNorm by default because an example's
  loss must not depend on the examples drawn with it: else no importance weight
  makes the gradient unbiased.

  num_classes:      K >= 1, the number of logits.
  width:            channels of the first stage; num_groups divides it.
  blocks_per_stage: residual blocks; depth is 6 blocks_per_stage + 2.
  num_groups:       groups of channels that 'group' normalises together.
  norm:             'group', 'layer', 'batch' or 'frozen_batch': see
                    `layers.norm_layer`.
  stem_width:       channels before the first block, None for `width`.
  dtype:            of the arithmetic, such as 'bfloat16'; None for float32, in
                    which parameters and logits are in any case.

  Source: He et al. (2016), arXiv:1603.05027; Wu & He (2018),
  arXiv:1803.08494.
  """

  num_classes: int
  width: int = 16
  blocks_per_stage: int = 1
  num_groups: int = 8
  norm: str = 'group'
  stem_width: int | None = None
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
    x = conv(self.stem_width or self.width, (3, 3))(x)
    for stage in range(_NUM_STAGES):
      for block in range(self.blocks_per_stage):
        strides = 2 if stage > 0 and block == 0 else 1
        x = _Block(self.width * 2**stage, strides, conv, norm)(x)
    x = nn.relu(norm()(x)).mean(axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)


def wide_resnet(
  num_classes: int,
  depth: int = 28,
  width_factor: int = 2,
  num_groups: int = 8,
  norm: str = 'group',
  dtype: Dtype | None = None,
) -> ResNet:
  """Returns the ResNet known as WRN-depth-width_factor.

  WRN-28-2 has 1,467,610 parameters with 10 classes and images of 3 channels.

  Args:
    num_classes: K >= 1, the number of logits.
    depth: 6 n + 4, for n blocks a stage; shortcuts at the stages' starts count.
    width_factor: k >= 1; the stages have 16 k, 32 k and 64 k channels.
    num_groups: as in ResNet.
    norm: as in ResNet; 'layer' in Katharopoulos & Fleuret (2018).
    dtype: as in ResNet.

  Raises:
    ValueError: for another depth; for a width_factor that is no such integer.

  Source: Zagoruyko & Komodakis (2016), arXiv:1605.07146, without dropout.
  """
  _validate.positive_integers(width_factor=width_factor)
  return ResNet(
    num_classes,
    width=16 * width_factor,
    blocks_per_stage=layers.blocks_per_stage(depth, others=4),
    num_groups=num_groups,
    norm=norm,
    stem_width=16,
    dtype=dtype,
  )
