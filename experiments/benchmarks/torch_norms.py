"""Norms of per-example gradients in torch, as rivals for the benchmark alone.

torch.func and Opacus, each as its own documentation would have it, on the
networks of isjax with the same parameters. One thread; data are loaded before.
"""

from collections.abc import Callable, Iterable
import copy
from typing import TypeAlias

import jax
import numpy as np
import torch
from torch import func, nn
from torch.nn import functional

from isjax.models import MLP, ResNet
from isjax.types import PyTree

Norms: TypeAlias = Callable[[], torch.Tensor]
_EPSILON = 1e-6  # of a norm in flax


def network(module: MLP | ResNet, params: PyTree) -> nn.Module:
  """Returns a network of isjax in torch, layer by layer, with its parameters.

  It maps images as isjax has them, channels last, to logits.
  """
  if isinstance(module, MLP):
    layers = [_dense(params[f'Dense_{i}']) for i in range(len(params))]
    hidden = [part for layer in layers[:-1] for part in (layer, nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, layers[-1])
  blocks = [params[f'_Block_{i}'] for i in range(3 * module.blocks_per_stage)]
  return nn.Sequential(
    _ChannelsFirst(),
    _conv(params['Conv_0'], 1),
    *(
      _Block(block, 2 if i and i % module.blocks_per_stage == 0 else 1, module)
      for i, block in enumerate(blocks)
    ),
    _norm(params['GroupNorm_0'], module.num_groups),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    _dense(params['Dense_0']),
  )


class _ChannelsFirst(nn.Module):
  def forward(self, x):
    # Opacus finds wrong gradients where memory is in another order.
    return x.permute(0, 3, 1, 2).contiguous()


class _Block(nn.Module):
  def __init__(self, params: PyTree, strides: int, module: ResNet):
    super().__init__()
    *shortcut, first, second = (
      params[name] for name in sorted(params) if name.startswith('Conv')
    )
    self.before = nn.Sequential(
      _norm(params['GroupNorm_0'], module.num_groups), nn.ReLU()
    )
    self.shortcut = _conv(shortcut[0], strides) if shortcut else None
    self.branch = nn.Sequential(
      _conv(first, strides),
      _norm(params['GroupNorm_1'], module.num_groups),
      nn.ReLU(),
      _conv(second, 1),
    )

  def forward(self, x):
    activated = self.before(x)
    shortcut = x if self.shortcut is None else self.shortcut(activated)
    return shortcut + self.branch(activated)


def _dense(params: PyTree) -> nn.Linear:
  layer = nn.Linear(*params['kernel'].shape)
  layer.weight.data = _tensor(params['kernel']).T.contiguous()
  layer.bias.data = _tensor(params['bias'])
  return layer


def _conv(params: PyTree, strides: int) -> nn.Module:
  """A convolution whose stride divides the image, padded as flax pads it."""
  size, _, inputs, outputs = params['kernel'].shape
  layer = nn.Conv2d(inputs, outputs, size, stride=strides, bias=False)
  layer.weight.data = _tensor(params['kernel']).permute(3, 2, 0, 1).contiguous()
  padding = max(size - strides, 0)
  low, high = padding // 2, padding - padding // 2
  if low == high:
    layer.padding = (low, low)
    return layer
  return nn.Sequential(nn.ZeroPad2d((low, high, low, high)), layer)


def _norm(params: PyTree, num_groups: int) -> nn.GroupNorm:
  layer = nn.GroupNorm(num_groups, len(params['scale']), eps=_EPSILON)
  layer.weight.data = _tensor(params['scale'])
  layer.bias.data = _tensor(params['bias'])
  return layer


def _tensor(array: jax.Array) -> torch.Tensor:
  return torch.from_numpy(np.array(array))


def by_func(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Norms:
  """vmap(grad) of torch.func."""
  params = {name: p.detach() for name, p in model.named_parameters()}

  def loss(params, x, y):
    logits = func.functional_call(model, params, (x[None],))
    return functional.cross_entropy(logits, y[None])

  gradients = func.vmap(func.grad(loss), in_dims=(None, 0, 0))
  return lambda: _norms(gradients(params, x, y).values())


def by_opacus(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Norms:
  """Per-example gradients, formed by hooks on the layers."""
  from opacus import GradSampleModule  # an extra

  wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction='sum')

  def norms():
    wrapped.zero_grad()
    functional.cross_entropy(wrapped(x), y, reduction='sum').backward()
    return _norms(p.grad_sample for p in wrapped.parameters())

  return norms


def by_opacus_ghost(
  model: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> Norms:
  """Its norms without gradients, for the layers that it has them for."""
  from opacus.grad_sample import (  # an extra
    GradSampleModuleFastGradientClipping,
  )

  wrapped = GradSampleModuleFastGradientClipping(
    copy.deepcopy(model), loss_reduction='sum', use_ghost_clipping=True
  )

  def norms():
    wrapped.zero_grad()
    functional.cross_entropy(wrapped(x), y, reduction='sum').backward()
    return wrapped.get_norm_sample()

  return norms


def _norms(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
  return sum(g.flatten(1).square().sum(1) for g in gradients).sqrt()


# name -> (model, inputs, targets) -> () -> norms f32[b].
RIVALS: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], Norms]] = {
  'torch.func': by_func,
  'Opacus': by_opacus,
  'Opacus, ghost': by_opacus_ghost,
}


def load(
  module: MLP | ResNet, params: PyTree, inputs: jax.Array, targets: jax.Array
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
  """Returns network, inputs and targets in torch, for one thread."""
  torch.set_num_threads(1)
  torch.set_flush_denormal(True)  # as XLA does
  return network(module, params), _tensor(inputs), _tensor(targets).long()
