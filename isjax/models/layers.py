"""What the residual networks share: convolutions, norms, counts of blocks."""

from collections.abc import Callable
import functools

from flax import linen as nn
from flax.typing import Dtype

from isjax import _validate

_NORMS = ('group', 'layer', 'batch', 'frozen_batch')
_MOMENTUM = 0.9

# Next to a norm a convolution needs no bias.
conv = functools.partial(
  nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal()
)


def norm_layer(
  norm: str, *, num_groups: int, train: bool, dtype: Dtype | None = None
) -> Callable[..., nn.Module]:
  """Returns what makes a norm layer, for images [m, H, W, C].

  Each norm has a learned scale and bias per channel. With 'group' and 'layer'
  an example's outputs never depend on the rest of its batch, and without that
  no importance weight makes the gradient unbiased. With 'batch' they do in
  training: it is there for comparisons. 'frozen_batch' is the norm to fine-tune
  a model with that was trained with 'batch'.

  Args:
    norm: 'group', over the image and a group of channels;
      'layer', over the image and all channels;
      'batch', over the image and the batch, in evaluation by running averages,
      which a training pass moves by a tenth towards the batch's own;
      'frozen_batch', by those running averages, always, and never moves them.
    num_groups: of 'group'; it divides C.
    train: whether the pass is one of training.
    dtype: of the results, None for float32; statistics are float32.

  Returns:
    make(name=None) -> module, called within a module's compact method.

  Raises:
    ValueError: for another name.

  Source: Wu & He (2018), arXiv:1803.08494; Ba et al. (2016),
  arXiv:1607.06450; Ioffe & Szegedy (2015), arXiv:1502.03167.
  """
  _validate.one_of(_NORMS, norm=norm)
  if norm == 'group':
    return functools.partial(nn.GroupNorm, num_groups, dtype=dtype)
  if norm == 'layer':
    return functools.partial(
      nn.LayerNorm, reduction_axes=(-3, -2, -1), dtype=dtype
    )
  return functools.partial(
    nn.BatchNorm,
    use_running_average=not train or norm == 'frozen_batch',
    momentum=_MOMENTUM,
    dtype=dtype,
  )


def blocks_per_stage(depth: int, others: int) -> int:
  """Returns n where depth = 6 n + others: three stages, two layers a block.

  Args:
    depth: layers with weights, as the paper of the network counts them.
    others: layers outside the blocks, as that paper counts them.

  Raises:
    ValueError: where there is no such n >= 1.
  """
  _validate.positive_integers(depth=depth)
  blocks, rest = divmod(depth - others, 6)
  if rest or blocks < 1:
    below = others + 6 * max(blocks, 1)
    raise ValueError(
      f'depth must be 6 n + {others} for some n >= 1, such as {below} or '
      f'{below + 6}; got {depth}.'
    )
  return blocks
