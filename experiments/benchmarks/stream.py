"""What it costs to read the training set row by row while training on it.

    python -m experiments.benchmarks.stream [--core=N] [--rounds=N]
      [--gigabytes=20] [--folder=FOLDER]

On one core of a CPU, an MLP and a ResNet on images of 32x32x3. First, in one
process and in turns, the loop over a source against the loop over the same
images on the device: with the rows in memory, in a file that the system has in
its cache, and from made-up media that let a reader wait. Then training on a
file of so many gigabytes, in a process of its own whose memory is watched; the
file is made in FOLDER, the system's for temporary files by default, and
removed. Writes stream.md and stream.json to experiments/results/benchmarks.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Contender, Row, Seconds, Target
from experiments.progress import Progress
from experiments.tables import markdown
import isjax
from isjax.data import rescale
from isjax.data.source import Source, array_source, npy_source
from isjax.losses import cross_entropy
from isjax.models import MLP, ResNet, init, make_apply_fn
from isjax.step import TrainStep
from isjax.stream import make_stream_loop

SHAPE = (32, 32, 3)
NUM_CLASSES = 10
NUM_EXAMPLES = 20_000
BATCH_SIZE = 128
STEPS = 50  # of one call of a loop
RESNET_STEPS = 10
SECONDS = 40.0  # for the turns of a loop over the ResNet
LARGE_STEPS = 500
MAX_MEGABYTES = 2000
# Reading is not the limit: nine tenths of the speed without any.
TARGET = Target('<=', 1 / 0.9)
SAMPLERS: dict[str, Callable[[int], isjax.Sampler]] = {
  'uniform': lambda size: isjax.uniform(size, BATCH_SIZE),
  'memory': lambda size: isjax.memory(size, BATCH_SIZE),
  'presample, B = 3b': lambda size: isjax.presample(
    size, BATCH_SIZE, pool_size=3 * BATCH_SIZE, tau_threshold=0.0
  ),
}


def make(
  sampler: isjax.Sampler, size: int, module: nn.Module
) -> tuple[TrainStep, isjax.TrainState]:
  """Returns a training step and its first state."""
  loss_fn = cross_entropy()
  tx = isjax.importance_weighted(optax.sgd(0.01, momentum=0.9), size)
  step = isjax.make_train_step(
    make_apply_fn(module),
    loss_fn,
    sampler,
    tx,
    score=isjax.logit_gradient_norm(loss_fn),
    preprocess=rescale(255),
  )
  params, _ = init(module, jax.random.key(0), jnp.zeros((1, *SHAPE)))
  key = jax.random.key(1)
  return step, isjax.init_train_state(key, params, {}, sampler, tx)


def images(size: int) -> isjax.Batch:
  """Random images and labels, numpy arrays."""
  random = np.random.default_rng(0)
  pixels = random.integers(0, 256, (size, *SHAPE), np.uint8)
  return isjax.Batch(
    pixels, random.integers(NUM_CLASSES, size=size, dtype='i4')
  )


def write_images(folder: pathlib.Path, size: int, advance: Callable) -> None:
  """Writes random images and labels as .npy files, piece by piece.

  Args:
    folder: of the files.
    size: number of images.
    advance: called with the number of images that are written.
  """
  random = np.random.default_rng(0)
  labels = random.integers(NUM_CLASSES, size=size, dtype='i4')
  np.save(folder / 'targets.npy', labels)
  header = {'descr': '|u1', 'fortran_order': False, 'shape': (size, *SHAPE)}
  with (folder / 'inputs.npy').open('wb') as file:
    np.lib.format.write_array_header_2_0(file, header)
    for first in range(0, size, 50_000):
      count = min(50_000, size - first)
      file.write(random.bytes(count * int(np.prod(SHAPE))))
      advance(first + count)


def slow(source: Source, seconds: float) -> Source:
  """A source whose medium lets a reader wait, without any work."""

  def read(indices):
    time.sleep(seconds)
    return source.read(indices)

  return source._replace(read=read)


def elapsed() -> Seconds:
  """Waiting counts here, so that no time is processor time."""
  now = time.perf_counter()
  return Seconds(now, now)


class _Loop:
  """A loop and its state, which every call moves on."""

  def __init__(
    self,
    sampler: isjax.Sampler,
    build: Callable[..., Any],
    module: nn.Module = MLP(NUM_CLASSES),  # noqa: B008
  ):
    step, self._state = make(sampler, NUM_EXAMPLES, module)
    self._loop = build(step)

  def __call__(self) -> None:
    self._state, metrics = self._loop(self._state)
    jax.block_until_ready(metrics)


def compare(rounds: int, folder: pathlib.Path) -> list[Row]:
  """Times loops over sources against the loop over the device's arrays."""
  host = images(NUM_EXAMPLES)
  device = jax.tree.map(jnp.asarray, host)
  np.save(folder / 'inputs.npy', host.inputs)
  np.save(folder / 'targets.npy', host.targets)
  memory, file = array_source(host), npy_source(folder)

  def resident(step):
    loop = isjax.make_loop(step, STEPS, mode='unroll')
    return lambda state: loop(state, device)

  def streamed(source, **options):
    return lambda step: make_stream_loop(step, source, STEPS, **options)

  def in_turns(step):
    """What there is without overlap: a proposal, its rows, its training."""
    propose, train = jax.jit(step.propose), jax.jit(step.train)

    def loop(state):
      for _ in range(STEPS):
        proposal, state = propose(state, state.step)
        rows = short.read(np.asarray(proposal.indices))
        state, metrics = train(state, proposal, rows)
        jax.block_until_ready(metrics)
      return state, metrics

    return loop

  uniform = SAMPLERS['uniform'](NUM_EXAMPLES)
  first = timing.interleave(
    {'device': Contender(_Loop(uniform, resident), STEPS)},
    rounds=5,
    clock=elapsed,
  )
  step_seconds = first['device'].median
  short = slow(memory, 0.8 * step_seconds)
  long = slow(memory, 3 * step_seconds)
  builders = {
    'device': resident,
    'rows in memory': streamed(memory),
    'rows in a file': streamed(file),
    'waits of 0.8 steps': streamed(short),
    'waits of 0.8 steps, no overlap': in_turns,
    'waits of 3 steps, 1 reader': streamed(long, ahead=5),
    'waits of 3 steps, 4 readers': streamed(long, ahead=5, num_readers=4),
  }
  models = {
    'waits of 0.8 steps': '1',
    'waits of 0.8 steps, no overlap': '1.8',
    'waits of 3 steps, 1 reader': '3',
    'waits of 3 steps, 4 readers': '1',
  }
  contenders = {
    name: Contender(_Loop(uniform, build), STEPS)
    for name, build in builders.items()
  }
  for name in ('memory', 'presample, B = 3b'):
    sampler = SAMPLERS[name](NUM_EXAMPLES)
    for where, build in (('device', resident), ('file', streamed(file))):
      loop = _Loop(sampler, build)
      contenders[f'{name}, {where}'] = Contender(loop, STEPS)
  times = timing.interleave(contenders, rounds=rounds, clock=elapsed)
  times |= timing.interleave(
    {
      f'ResNet-8, {name}': Contender(
        _Loop(uniform, build, ResNet(NUM_CLASSES)), RESNET_STEPS
      )
      for name, build in _resnet_builders(file, device).items()
    },
    rounds=rounds,
    seconds=SECONDS,
    clock=elapsed,
  )

  def row(subject, reference):
    waits = models.get(subject, '1')
    target = TARGET if waits == '1' else None
    what = f'{subject} / {reference}'
    return Row(what, times[subject], times[reference], target, waits)

  return [
    *(row(name, 'device') for name in builders if name != 'device'),
    row('memory, file', 'memory, device'),
    row('presample, B = 3b, file', 'presample, B = 3b, device'),
    row('ResNet-8, file', 'ResNet-8, device'),
  ]


def _resnet_builders(
  file: Source, device: isjax.Batch
) -> dict[str, Callable[..., Any]]:
  """Steps that take so long that what the reading costs does not show."""

  def resident(step):
    loop = isjax.make_loop(step, RESNET_STEPS)
    return lambda state: loop(state, device)

  return {
    'device': resident,
    'file': lambda step: make_stream_loop(step, file, RESNET_STEPS),
  }


def train_on(folder: pathlib.Path) -> None:
  """Trains on the files in a folder, and prints steps a second and memory."""
  source = npy_source(folder)
  found = []
  for name, sampler in SAMPLERS.items():
    size = source.num_examples
    step, state = make(sampler(size), size, MLP(NUM_CLASSES))
    warm_up = make_stream_loop(step, source, 5, ahead=4, num_readers=2)
    loop = make_stream_loop(step, source, LARGE_STEPS, ahead=4, num_readers=2)
    state, _ = warm_up(state)
    state, metrics = loop(state)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    state, metrics = loop(state)
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    found.append(
      {
        'sampler': name,
        'steps_per_second': LARGE_STEPS / seconds,
        'peak_megabytes': peak,
        'finite': bool(jnp.isfinite(metrics['loss']).all()),
      }
    )
  print(json.dumps(found))


def train_on_large(
  gigabytes: float, folder: pathlib.Path
) -> tuple[int, list[dict[str, Any]]]:
  """Makes the files, and trains on them in a process of its own."""
  size = int(gigabytes * 1e9 / np.prod(SHAPE))
  with Progress(1) as progress:
    write_images(
      folder,
      size,
      lambda done: progress.update('images', done / size, {}),
    )
  process = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.benchmarks.stream',
      f'--train={folder}',
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  return size, json.loads(process.stdout.splitlines()[-1])


def document(
  rows: Sequence[Row], size: int, found: list[dict[str, Any]]
) -> str:
  """Returns the results as Markdown."""
  large = [
    (
      line['sampler'],
      f'{line["steps_per_second"]:.0f}',
      f'{line["peak_megabytes"]:.0f}',
      'yes' if line['peak_megabytes'] < MAX_MEGABYTES else 'no',
    )
    for line in found
  ]
  gigabytes = size * np.prod(SHAPE) / 1e9
  return '\n\n'.join(
    [
      '# Training on rows that are read',
      'Run: `python -m experiments.benchmarks.stream`',
      f'An MLP 256-256 where no ResNet is named, batches of {BATCH_SIZE} of '
      f'{NUM_EXAMPLES} images of 32x32x3, uniform sampling where no other. '
      '"Device" is a loop over arrays on the device, dispatched step by step, '
      'which has the core for itself; the others read '
      'rows two steps ahead with one reader, or as they say. A wait is made '
      'up, by a reader that sleeps: its length is in steps of "device".',
      timing.table(rows),
      f'{gigabytes:.1f} GB of images, {size} of them, read from a file four '
      'steps ahead by two readers; the memory of the process at its largest, '
      f'up to the end of that row. Asked for: less than {MAX_MEGABYTES} MB.',
      markdown(('sampler', 'steps a second', 'peak MB', 'met'), large),
    ]
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and writes; the module's docstring says what."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.stream',
    description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--core', type=int, help='to run on; the last one')
  parser.add_argument('--rounds', type=int, default=20, help='measured calls')
  parser.add_argument('--gigabytes', type=float, default=20.0)
  parser.add_argument('--folder', help='for the large file')
  parser.add_argument('--train', type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  jax.config.update('jax_platforms', 'cpu')
  if options.train:
    train_on(options.train)
    return
  timing.pin(options.core)
  work = functools.partial(tempfile.TemporaryDirectory, dir=options.folder)
  with work() as name:
    rows = compare(options.rounds, pathlib.Path(name))
  with work() as name:
    free = shutil.disk_usage(name).free / 1e9
    if free < 1.1 * options.gigabytes:
      sys.exit(
        f'error: {name} has {free:.0f} GB free; choose another --folder, or '
        'fewer --gigabytes.'
      )
    size, found = train_on_large(options.gigabytes, pathlib.Path(name))
  timing.write(
    'stream',
    document(rows, size, found),
    {'rows': [row.record() for row in rows], 'large': found},
    timing.provenance(rows, []),
    clock='A time is that of the clock, on one core',
  )


if __name__ == '__main__':
  main()
