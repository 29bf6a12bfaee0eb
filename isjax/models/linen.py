"""A flax.linen module as the pure functions that the training step takes."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax

from isjax.types import PyTree


def init(
  module: nn.Module, key: jax.Array, sample_inputs: PyTree
) -> tuple[PyTree, PyTree]:
  """Initialises a module's parameters and its other state.

  Args:
    module: called as module(inputs, train=...).
    key: for the random parameters.
    sample_inputs: a batch as the model sees it, preprocessed; its leading axis
      may be 1, its values are not used.

  Returns:
    (params, model_state): params is the collection 'params'; model_state maps
    the names of the other collections, such as 'batch_stats', to their values
    and is {} for a module without any.
  """
  variables = dict(module.init(key, sample_inputs, train=False))
  return variables.pop('params', {}), variables


def make_apply_fn(
  module: nn.Module,
) -> Callable[..., tuple[Any, PyTree]]:
  """Returns a module's forward pass as a pure function.

  Args:
    module: called as module(inputs, train=...).

  Returns:
    apply_fn(params, model_state, inputs, *, train, rngs) -> (outputs,
    model_state). `train` is a Python bool. In training the module updates all
    of model_state; in evaluation it cannot, and model_state comes back as it
    came. `rngs` maps the streams that the module draws from to keys, such as
    {'dropout': key}, or is None.
  """

  def apply_fn(params, model_state, inputs, *, train, rngs):
    variables = {'params': params, **model_state}
    if not train:
      outputs = module.apply(variables, inputs, train=False, rngs=rngs)
      return outputs, model_state
    return module.apply(
      variables, inputs, train=True, rngs=rngs, mutable=list(model_state)
    )

  return apply_fn
