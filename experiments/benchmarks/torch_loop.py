"""The loop of `presample`, its gate always on, written in torch.

A rival for the benchmark alone. It is spared what the sampler of isjax does
besides: no gate, no metrics. Tensors are loaded before, as float32; one
thread; no number goes back to Python; layers are plain functions and the
optimiser is the fused one, which both were the fastest of what torch has.
"""

import jax
import numpy as np
import torch
from torch.nn import functional

from experiments.benchmarks.loops import Problem, Setting
from isjax.types import PyTree


class TorchLoop:
  """A training run that advances.

  Args:
    problem: what to train; set and first parameters are copied.
    setting: of the run.
  """

  def __init__(self, problem: Problem, setting: Setting):
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as XLA does
    torch.manual_seed(0)
    inputs = np.array(problem.preprocess(problem.data.inputs))
    params = jax.tree.map(np.array, problem.params())
    self._setting = setting
    self._inputs = torch.from_numpy(inputs).flatten(1)
    self._targets = torch.from_numpy(np.array(problem.data.targets, np.int64))
    self._rows = torch.arange(setting.pool_size)
    self._layers = {  # torch keeps the transpose
      name: [
        torch.from_numpy(layer['kernel'].T.copy()).requires_grad_(),
        torch.from_numpy(layer['bias']).requires_grad_(),
      ]
      for name, layer in params.items()
    }
    self._optimizer = torch.optim.SGD(
      [tensor for layer in self._layers.values() for tensor in layer],
      setting.learning_rate,
      momentum=setting.momentum,
      fused=True,
    )

  @property
  def params(self) -> PyTree:
    """The parameters now, as flax lays them out."""
    return {
      name: {
        'kernel': kernel.detach().numpy().T.copy(),
        'bias': bias.detach().numpy().copy(),
      }
      for name, (kernel, bias) in self._layers.items()
    }

  def advance(self, num_steps: int) -> None:
    """Makes num_steps updates."""
    batch_size, pool_size = self._setting.batch_size, self._setting.pool_size
    for _ in range(num_steps):
      pool = torch.randint(len(self._inputs), (pool_size,))
      law = self._law(pool)
      slots = torch.multinomial(law, batch_size, replacement=True)
      self._update(pool[slots], 1 / (pool_size * law[slots]))

  def _outputs(self, x: torch.Tensor) -> torch.Tensor:
    *hidden, last = self._layers.values()
    for kernel, bias in hidden:
      x = functional.relu(functional.linear(x, kernel, bias))
    return functional.linear(x, *last)

  @torch.no_grad()
  def _law(self, pool: torch.Tensor) -> torch.Tensor:
    gradients = torch.softmax(self._outputs(self._inputs[pool]), 1)
    gradients[self._rows, self._targets[pool]] -= 1
    scores = torch.linalg.vector_norm(gradients, dim=1)
    mix = self._setting.mix
    return scores * ((1 - mix) / scores.sum()) + mix / len(pool)

  def _update(self, drawn: torch.Tensor, weights: torch.Tensor) -> None:
    outputs, targets = self._outputs(self._inputs[drawn]), self._targets[drawn]
    losses = functional.cross_entropy(outputs, targets, reduction='none')
    self._optimizer.zero_grad()
    (weights * losses).mean().backward()
    self._optimizer.step()
