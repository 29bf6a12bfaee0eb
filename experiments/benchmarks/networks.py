"""Every network on CIFAR-10: does it train, and how long does a step take?

    python -m experiments.benchmarks.networks [--core=N] [--steps=N]

On one core of a CPU, each image network of `isjax.models.MODELS` is trained
for some hundred steps by uniform sampling; then steps of uniform and of
importance sampling take turns. Needs cifar10.npz in the folder that
ISJAX_DATA_DIR names. Writes networks.md and networks.json to
experiments/results/benchmarks.
"""

import argparse
from collections.abc import Sequence
import functools
import sys
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import numpy as np
import optax

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Contender, Row
from experiments.progress import Progress
from experiments.tables import markdown
import isjax
from isjax.data import Metadata, load, rescale
from isjax.losses import cross_entropy
from isjax.models import MODELS, init, make_apply_fn
from isjax.types import Batch, TrainState

BATCH_SIZE = 32
POOL_SIZE = 3 * BATCH_SIZE
LEARNING_RATE = 1e-3
MEASURED = 20  # losses at both ends of the training that are averaged
SECONDS = 40.0  # for the turns of a step
LOSS = cross_entropy()


def networks(num_classes: int) -> dict[str, nn.Module]:
  """Returns the image networks by the names of the tables."""
  return {
    'MLP 512-512': MODELS['mlp'](num_classes, (512, 512)),
    'CNN': MODELS['cnn'](num_classes),
    'ResNet-8': MODELS['cifar_resnet'](num_classes, 8),
    'ResNet-32': MODELS['cifar_resnet'](num_classes, 32),
    'WRN-16-1': MODELS['wide_resnet'](num_classes, 16, 1),
    'WRN-28-2': MODELS['wide_resnet'](num_classes, 28, 2),
    'ResNet-50': MODELS['resnet50'](num_classes),
    'LSTM 128, rows': _ByRows(MODELS['lstm'](num_classes)),
  }


class _ByRows(nn.Module):
  """Gives a sequence model an image row by row; by pixels it takes minutes."""

  model: nn.Module

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    return self.model(x.reshape(*x.shape[:2], -1), train)


class _Run:
  """A training run that advances by one step a call."""

  def __init__(self, module: nn.Module, sampler: isjax.Sampler, data: Batch):
    tx = isjax.importance_weighted(
      optax.adam(LEARNING_RATE), isjax.num_examples(data)
    )
    preprocess = rescale(255)
    step = isjax.make_train_step(
      make_apply_fn(module),
      LOSS,
      sampler,
      tx,
      score=isjax.logit_gradient_norm(LOSS),
      preprocess=preprocess,
    )

    @jax.jit
    def first_state(key: jax.Array) -> TrainState:
      params, state = init(module, key, preprocess(data.inputs[:1]))
      return isjax.init_train_state(key, params, state, sampler, tx)

    self.state = first_state(jax.random.key(0))
    self._step = jax.jit(step, donate_argnums=0)
    self._data = data

  def __call__(self) -> dict[str, Any]:
    self.state, metrics = self._step(self.state, self._data)
    return jax.block_until_ready(metrics)


class Result(NamedTuple):
  """num_parameters; losses: of each step of training; row: of the table."""

  num_parameters: int
  losses: list[float]
  row: Row


def measure(
  name: str, module: nn.Module, data: Batch, num_steps: int, report
) -> Result:
  """Trains a network, then times its steps.

  Raises:
    SystemExit: where its loss does not fall: its speed would mean nothing.
  """
  size = isjax.num_examples(data)
  uniform = _Run(module, isjax.uniform(size, BATCH_SIZE), data)
  losses = []
  for number in range(num_steps):
    losses.append(float(uniform()['loss']))
    report((number + 1) / num_steps, {'loss': losses[-1]})
  first, last = (
    np.mean(part) for part in (losses[:MEASURED], losses[-MEASURED:])
  )
  if not last < first:
    sys.exit(
      f'error: {name}: the loss went from {first:.3g} to {last:.3g} in '
      f'{num_steps} steps; that is no training.'
    )
  pool = isjax.presample(
    size, BATCH_SIZE, pool_size=POOL_SIZE, tau_threshold=0.0
  )
  times = timing.interleave(
    {
      'importance sampling': Contender(_Run(module, pool, data)),
      'uniform': Contender(uniform),
    },
    rounds=30,
    seconds=SECONDS,
  )
  params = jax.tree.leaves(uniform.state.params)
  what = f'{name}: importance sampling / uniform'
  return Result(
    sum(leaf.size for leaf in params),
    losses,
    Row(what, times['importance sampling'], times['uniform'], None, '2.0'),
  )


def document(
  results: dict[str, Result], num_steps: int, metadata: Metadata
) -> str:
  """Returns the results as Markdown."""
  lines = [
    (
      name,
      f'{result.num_parameters:,}',
      f'{np.mean(result.losses[:MEASURED]):.2f}',
      f'{np.mean(result.losses[-MEASURED:]):.2f}',
      f'{1 / result.row.reference.median:.2f}',
      f'{1 / result.row.subject.median:.2f}',
    )
    for name, result in results.items()
  ]
  header = (
    'network',
    'parameters',
    f'loss, first {MEASURED} steps',
    f'last {MEASURED}',
    'steps a second, uniform',
    'importance sampling',
  )
  return '\n\n'.join(
    [
      '# The networks on CIFAR-10',
      'Run: `python -m experiments.benchmarks.networks`',
      f'{num_steps} steps of Adam at {LEARNING_RATE:g} on batches of '
      f'{BATCH_SIZE} of {metadata.num_examples} images, GroupNorm, no '
      f'augmentation. Importance sampling scores pools of {POOL_SIZE} at every '
      'step, for which the count of forward passes says 2 times a uniform '
      'step.',
      markdown(header, lines),
      timing.table([result.row for result in results.values()]),
    ]
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and writes; the module's docstring says what."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.networks',
    description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--core', type=int, help='to run on; the last one')
  parser.add_argument('--steps', type=int, default=200, help='of training')
  options = parser.parse_args(arguments)
  timing.pin(options.core)
  jax.config.update('jax_platforms', 'cpu')
  data, metadata = load('cifar10', 'train')
  results = {}
  modules = networks(metadata.num_classes)
  with Progress(len(modules)) as progress:
    for name, module in modules.items():
      report = functools.partial(progress.update, name)
      results[name] = measure(name, module, data, options.steps, report)
      progress.finish(name)
  rows = [result.row for result in results.values()]
  content = {
    'rows': [row.record() for row in rows],
    'parameters': {n: r.num_parameters for n, r in results.items()},
    'losses': {n: r.losses for n, r in results.items()},
  }
  text = document(results, options.steps, metadata)
  timing.write('networks', text, content, timing.provenance(rows, []))


if __name__ == '__main__':
  main()
