"""Last layers that a loss asks for."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

# A vector shorter than the root of this is not stretched to length one.
_TINY = 1e-12


class CosineHead(nn.Module):
  """Cosines between the features and one learned direction per class.

  The outputs that `losses.ldam` takes. It follows any module that returns
  features: nn.Sequential([MLP(64), CosineHead(num_classes)]).

  num_classes: K >= 1.

  Source: Cao et al. (2019), arXiv:1906.07413, section 3.2.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps features f32[m, D] to cosines f32[m, K]; `train` has no effect."""
    del train
    shape = (x.shape[-1], self.num_classes)
    directions = self.param('kernel', nn.initializers.lecun_normal(), shape)
    return _unit(x, -1) @ _unit(directions, 0)


def _unit(x: jax.Array, axis: int) -> jax.Array:
  """x over its length along an axis, with a finite gradient also at 0."""
  squared = jnp.sum(jnp.square(x), axis, keepdims=True)
  return x * lax.rsqrt(jnp.maximum(squared, _TINY))
