"""What the exact norm of every example's gradient costs.

    python -m experiments.benchmarks.norms [--core=N] [--rounds=N]

Measured on one core of a CPU, everything in one process and in turns, for MLPs
and ResNets on made-up images: `gradient_norm` by its rules ('ghost') and by
vmap(grad), against a forward pass, a training step, torch.func and Opacus. All
must find the same norms before they are timed. Then the memory that the
programs of isjax ask for. Writes norms.md and norms.json to
experiments/results/benchmarks.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import sys
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Contender, Row, Target
from experiments.tables import markdown
from isjax import scores
from isjax.models import MLP, ResNet, init, make_apply_fn
from isjax.types import Batch, PyTree

NUM_CLASSES = 10
LOSS = optax.softmax_cross_entropy_with_integer_labels
TX = optax.sgd(0.1, momentum=0.9)
MICROBATCH_SIZE = 16
TOLERANCE = 1e-4  # of the norms, relative: two libraries, in float32
SECONDS = 30.0  # for the turns of a contender on one network


class Network(NamedTuple):
  """A model, and the images that it is measured on.

  name:       as in the tables.
  module:     of isjax.models.
  shape:      of an image.
  batch_size: images.
  targets:    what is asked of a ratio to 'ghost', by the other's name.
  """

  name: str
  module: MLP | ResNet
  shape: tuple[int, int, int]
  batch_size: int
  targets: Mapping[str, Target] = {}


NETWORKS = (
  Network(
    'MLP 256-256 on 32x32x3',
    MLP(NUM_CLASSES, (256, 256)),
    (32, 32, 3),
    128,
    {'forward': Target('<=', 1.2)},
  ),
  Network('MLP 256-256 on 28x28', MLP(NUM_CLASSES), (28, 28, 1), 128),
  Network(
    'WRN-16-1',
    ResNet(NUM_CLASSES, blocks_per_stage=2),
    (32, 32, 3),
    128,
    {'training step': Target('<=', 1.6)},
  ),
  Network('ResNet-8, width 64', ResNet(NUM_CLASSES, 64), (32, 32, 3), 32),
)


class Problem(NamedTuple):
  """A network's parameters and its batch, on the device."""

  params: PyTree
  batch: Batch


def problem_of(network: Network) -> Problem:
  """Returns parameters, all of them random, and random images and labels."""
  random = np.random.default_rng(0)
  shape = network.batch_size, *network.shape
  inputs = jnp.asarray(random.normal(size=shape), jnp.float32)
  labels = random.integers(NUM_CLASSES, size=network.batch_size)
  shapes, _ = jax.eval_shape(
    functools.partial(init, network.module), jax.random.key(0), inputs[:1]
  )
  params = jax.tree.map(
    lambda leaf: jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype),
    shapes,
  )
  return Problem(params, Batch(inputs, jnp.asarray(labels, jnp.int32)))


def programs(network: Network) -> dict[str, Callable[[PyTree, Batch], Any]]:
  """Functions of (params, batch): passes, and the norms of all gradients."""
  apply_fn = make_apply_fn(network.module)

  def forward(params, batch):
    return apply_fn(params, {}, batch.inputs, train=False, rngs=None)[0]

  def training_step(params, batch):
    def loss(params):
      return jnp.mean(LOSS(forward(params, batch), batch.targets))

    gradient = jax.grad(loss)(params)
    momentum = TX.init(params)
    updates, momentum = TX.update(gradient, momentum)
    return optax.apply_updates(params, updates), momentum

  def norm(factory, **options):
    draw_score = factory(apply_fn, LOSS, **options)
    return lambda params, batch: draw_score(params, {}, batch)

  ghost = functools.partial(norm, scores.gradient_norm)
  return {
    'forward': forward,
    'training step': training_step,
    'last layer': norm(scores.last_layer_gradient_norm),
    'ghost': ghost(),
    f'ghost, {MICROBATCH_SIZE} at a time': ghost(
      microbatch_size=MICROBATCH_SIZE
    ),
    'vmap(grad)': ghost(method='vmap'),
  }


def check(name: str, norms: Mapping[str, np.ndarray]) -> float:
  """Compares the norms that all contenders found with those of 'vmap(grad)'.

  Returns:
    The largest relative difference.

  Raises:
    SystemExit: where one found others: its speed would mean nothing.
  """
  expected = norms['vmap(grad)']
  worst = 0.0
  for contender, found in norms.items():
    difference = float(np.max(np.abs(found / expected - 1)))
    if not difference <= TOLERANCE:
      sys.exit(
        f'error: {name}, {contender}: norms differ by {difference:.1e} '
        'relative from those of vmap(grad).'
      )
    worst = max(worst, difference)
  return worst


def model_of(network: Network) -> str:
  """What ghost / forward should be, by counting multiplications."""
  if not isinstance(network.module, MLP):
    return ''
  widths = (
    int(np.prod(network.shape)),
    *network.module.hidden,
    network.module.num_classes,
  )
  layers = [a * b for a, b in zip(widths[:-1], widths[1:], strict=True)]
  return f'by multiplications {1 + sum(layers[1:]) / sum(layers):.2f}'


class Result(NamedTuple):
  """rows: comparisons; memory: bytes by program; difference: of the norms."""

  network: Network
  rows: list[Row]
  memory: dict[str, int]
  difference: float


def measure(network: Network, rounds: int) -> Result:
  """Measures one network."""
  from experiments.benchmarks import torch_norms  # an extra

  problem = problem_of(network)
  compiled = {
    name: jax.jit(program).lower(*problem).compile()
    for name, program in programs(network).items()
  }
  runs = {
    name: functools.partial(_wait_for, program, problem)
    for name, program in compiled.items()
  }
  loaded = torch_norms.load(
    network.module, problem.params, problem.batch.inputs, problem.batch.targets
  )
  rivals = {name: rival(*loaded) for name, rival in torch_norms.RIVALS.items()}
  ours = {name: runs[name] for name in runs if name.startswith(('gh', 'vmap'))}
  difference = check(
    network.name,
    {name: np.asarray(run()) for name, run in (ours | rivals).items()},
  )
  model, x, _ = loaded
  contenders = runs | rivals | {'forward in torch': lambda: model(x)}
  times = timing.interleave(
    {name: Contender(run) for name, run in contenders.items()},
    rounds=rounds,
    seconds=SECONDS,
  )

  def row(subject, reference, model=''):
    target = network.targets.get(reference) if subject == 'ghost' else None
    what = f'{network.name}: {subject} / {reference}'
    return Row(what, times[subject], times[reference], target, model)

  rows = [
    row('ghost', 'forward', model_of(network)),
    row('ghost', 'training step'),
    row('last layer', 'forward', '1'),
    *(row(name, 'ghost') for name in times if name in (*ours, *rivals)),
    row('forward in torch', 'forward'),
  ]
  rows = [row for row in rows if row.subject is not row.reference]
  memory = {
    name: program.memory_analysis().temp_size_in_bytes
    for name, program in compiled.items()
  }
  return Result(network, rows, memory, difference)


def _wait_for(program: Callable[..., Any], problem: Problem) -> Any:
  return jax.block_until_ready(program(*problem))


def document(results: Sequence[Result]) -> str:
  """Returns the results as Markdown."""
  memory = [
    (result.network.name, *(f'{b / 1e6:.1f}' for b in result.memory.values()))
    for result in results
  ]
  differences = ', '.join(
    f'{result.network.name} {result.difference:.0e}' for result in results
  )
  batches = ', '.join(
    f'{result.network.name} {result.network.batch_size}' for result in results
  )
  return '\n\n'.join(
    [
      '# The cost of exact gradient norms',
      'Run: `python -m experiments.benchmarks.norms`',
      f'Images in a batch: {batches}. Ghost and vmap(grad) are the methods of '
      '`gradient_norm`, without word to the contrary on the whole batch at '
      'once. A training step is forward, backward and SGD with momentum on '
      'the same batch.',
      timing.table([row for result in results for row in result.rows]),
      'Norms by all contenders agree; largest relative difference from '
      f'vmap(grad): {differences}.',
      'Memory for intermediate results, MB:',
      markdown(('network', *results[0].memory), memory),
    ]
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and writes; the module's docstring says what."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.norms',
    description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--core', type=int, help='to run on; the last one')
  parser.add_argument('--rounds', type=int, default=50, help='measured calls')
  options = parser.parse_args(arguments)
  for package in ('torch', 'opacus'):
    timing.require(package)
  timing.pin(options.core)
  jax.config.update('jax_platforms', 'cpu')
  # Opacus says so of each first layer.
  warnings.filterwarnings('ignore', 'Full backward hook', UserWarning)
  results = [measure(network, options.rounds) for network in NETWORKS]
  rows = [row for result in results for row in result.rows]
  content = {
    'rows': [row.record() for row in rows],
    'memory': {result.network.name: result.memory for result in results},
  }
  facts = timing.provenance(rows, ['torch', 'opacus'])
  timing.write('norms', document(results), content, facts)


if __name__ == '__main__':
  main()
