"""What a step of importance sampling costs, as a whole.

    python -m experiments.benchmarks.step [--core=N] [--rounds=N]

Measured on one core of a CPU, everything in one process and in turns:
1. scanned steps of `presample`, its gate always on and never on, against those
   of uniform sampling, and how much of them is the pool's forward pass;
2. the logit-gradient norm, against the forward pass that it follows;
3. on the digits, the loop on the device against the same algorithm with its
   choices made on host, and against a loop in torch.
Each loop must train before it is timed. Writes step.md and step.json to
experiments/results/benchmarks.
"""

import argparse
from collections.abc import Sequence
import functools
import math
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import timing
from experiments.benchmarks.host_loop import HostLoop
from experiments.benchmarks.loops import (
  NUM_CLASSES,
  SCORE,
  TRAINED,
  TRAINING_STEPS,
  DeviceLoop,
  Loop,
  Problem,
  Setting,
  made_up_images,
  train,
)
from experiments.benchmarks.timing import Contender, Row, Target, Timing
from experiments.tables import markdown
import isjax
from isjax.data import load

ALWAYS, NEVER = 0.0, math.inf  # thresholds of tau


class Network(NamedTuple):
  """An MLP with two hidden layers, on made-up images.

  side:    of its square images.
  width:   of its hidden layers.
  targets: whether its ratios have any.
  steps:   of a timed call, so short that most calls run undisturbed.
  """

  side: int
  width: int
  targets: bool
  steps: int

  def __str__(self) -> str:
    return f'{self.side}x{self.side}, width {self.width}'


NETWORKS = (
  Network(side=28, width=256, targets=True, steps=5),
  Network(side=8, width=256, targets=True, steps=10),
  Network(side=28, width=64, targets=False, steps=20),
)
NUM_EXAMPLES = 10_000
SETTING = Setting(
  batch_size=128, pool_size=384, mix=0.1, learning_rate=0.01, momentum=0.9
)
DIGITS_HIDDEN = (64, 64, 64)
DIGITS_STEPS = 100  # of a call of the device loop
DIGITS = SETTING._replace(batch_size=16, pool_size=80, learning_rate=0.05)

# Comparisons, and how their loops trained.
Group = tuple[list[Row], list[dict[str, Any]]]


def presample(
  problem: Problem, setting: Setting, tau_threshold: float
) -> isjax.Sampler:
  """The sampler whose cost is asked for."""
  return isjax.presample(
    isjax.num_examples(problem.data),
    setting.batch_size,
    pool_size=setting.pool_size,
    tau_threshold=tau_threshold,
    mix=setting.mix,
  )


def layer_model(network: Network) -> float:
  """A scored step's cost over a uniform one's, by counting multiplications.

  A layer's backward pass costs two of its forward passes, but the first
  layer's only one: nobody asks for the gradient of the images.
  """
  first = network.side**2 * network.width
  rest = network.width**2 + network.width * NUM_CLASSES
  training = SETTING.batch_size * (2 * first + 3 * rest)
  return 1 + SETTING.pool_size * (first + rest) / training


def scanned_loops(network: Network, problem: Problem) -> dict[str, Loop]:
  """The loops of one network that differ in their sampler."""
  uniform = isjax.uniform(NUM_EXAMPLES, SETTING.batch_size)
  samplers = {
    'uniform': uniform,
    'uniform again': uniform,
    'gate on': presample(problem, SETTING, ALWAYS),
    'gate off': presample(problem, SETTING, NEVER),
  }
  return {
    name: DeviceLoop(problem, sampler, SETTING, network.steps)
    for name, sampler in samplers.items()
  }


def forward_passes(problem: Problem) -> dict[str, Contender]:
  """The forward pass of a pool, alone and with the scores after it."""
  inputs = problem.data.inputs[: SETTING.pool_size]
  targets = problem.data.targets[: SETTING.pool_size]
  params = problem.params()
  forward = jax.jit(problem.outputs)
  scores = jax.jit(lambda p, x, y: SCORE(problem.outputs(p, x), y))
  return {
    'forward': Contender(lambda: forward(params, inputs).block_until_ready()),
    'forward and scores': Contender(
      lambda: scores(params, inputs, targets).block_until_ready()
    ),
  }


def contenders(loops: dict[str, Loop], steps: int) -> dict[str, Contender]:
  """The loops, to be timed by so many steps a call."""
  return {
    name: Contender(functools.partial(loop.advance, steps), steps)
    for name, loop in loops.items()
  }


def compare_samplers(network: Network, rounds: int) -> Group:
  """Measures parts 1 and 2 for one network."""
  images = made_up_images(network.side, NUM_EXAMPLES)
  problem = Problem(images, 255, (network.width, network.width))
  loops = scanned_loops(network, problem)
  losses = train(str(network), problem, loops)
  times = timing.interleave(
    contenders(loops, network.steps) | forward_passes(problem), rounds=rounds
  )

  def row(subject, reference, bound, model):
    target = Target('<=', bound) if bound and network.targets else None
    what = f'{network}: {subject} / {reference}'
    return Row(what, times[subject], times[reference], target, model)

  return [
    row('gate on', 'uniform', 1.9, scored_step_model(network, times)),
    row('gate off', 'uniform', 1.02, '1 + indices of B, scores of b, tau'),
    row('uniform again', 'uniform', None, '1: what the clock can tell apart'),
    row('forward and scores', 'forward', 1.1, '1 + K numbers per example'),
  ], losses


def scored_step_model(network: Network, times: dict[str, Timing]) -> str:
  """What a scored step should cost, uniform ones taken as 1."""
  b, B = SETTING.batch_size, SETTING.pool_size
  measured = 1 + times['forward'].minimum / times['uniform'].minimum
  return (
    f'(B + 3b) / 3b = {(B + 3 * b) / (3 * b):.2f}; by multiplications '
    f'{layer_model(network):.2f}; uniform + forward of B, as measured, '
    f'{measured:.2f}'
  )


def compare_loops(rounds: int) -> Group:
  """Measures part 3."""
  loops, losses = digits_loops()
  times = timing.interleave(contenders(loops, DIGITS_STEPS), rounds=rounds)

  def row(subject, target, model):
    what = f'digits: {subject} / device'
    return Row(what, times[subject], times['device'], target, model)

  return [
    row('host', Target('>=', 2), '1 + two calls and one wait a step'),
    row('torch', Target('>=', 3.5), '1 + a call for each operation'),
    row('device, mode auto', None, '1 if the mode is found once'),
  ], losses


def digits_loops() -> tuple[dict[str, Loop], list[dict[str, Any]]]:
  """The loops of part 3, and how they trained."""
  from experiments.benchmarks.torch_loop import TorchLoop  # an extra

  data, metadata = load('digits', 'train')
  problem = Problem(data, metadata.max_value, DIGITS_HIDDEN)
  sampler = presample(problem, DIGITS, ALWAYS)
  loops: dict[str, Loop] = {
    'device': DeviceLoop(problem, sampler, DIGITS, DIGITS_STEPS),
    'device, mode auto': DeviceLoop(
      problem, sampler, DIGITS, DIGITS_STEPS, mode='auto'
    ),
    'host': HostLoop(problem, DIGITS),
    'torch': TorchLoop(problem, DIGITS),
  }
  return loops, train('digits', problem, loops)


def document(rows: list[Row], losses: list[dict[str, Any]]) -> str:
  """Returns the result as Markdown."""
  lines = [
    (line['loop'], f'{line["before"]:.3g}', f'{line["after"]:.2e}')
    for line in losses
  ]
  return '\n\n'.join(
    [
      '# The cost of a step',
      'Run: `python -m experiments.benchmarks.step`',
      f'MLPs with two hidden layers on made-up images, b {SETTING.batch_size}, '
      f'B {SETTING.pool_size}; on the digits hidden layers {DIGITS_HIDDEN}, b '
      f'{DIGITS.batch_size}, B {DIGITS.pool_size}, the gate always on. SGD '
      'with momentum. Gate on: every pool is scored; gate off: none is.',
      timing.table(rows),
      f'Every loop was first trained for {TRAINING_STEPS} steps, in which its '
      f'loss on the whole set had to fall below {TRAINED:g} of what it was:',
      markdown(('loop', 'loss before', 'loss after'), lines),
    ]
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and writes; the module's docstring says what."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.step',
    description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--core', type=int, help='to run on; the last one')
  parser.add_argument('--rounds', type=int, default=200, help='measured calls')
  options = parser.parse_args(arguments)
  timing.require('torch')
  timing.pin(options.core)
  jax.config.update('jax_platforms', 'cpu')
  groups = [compare_samplers(network, options.rounds) for network in NETWORKS]
  groups.append(compare_loops(options.rounds))
  rows = [row for group, _ in groups for row in group]
  losses = [line for _, lines in groups for line in lines]
  content = {'rows': [row.record() for row in rows], 'losses': losses}
  facts = timing.provenance(rows, ['torch'])
  timing.write('step', document(rows, losses), content, facts)


if __name__ == '__main__':
  main()
