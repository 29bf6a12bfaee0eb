"""What random views of images cost, against a training step on them.

    python -m experiments.benchmarks.augment [--core=N] [--rounds=N]

Measured on one core of a CPU, everything in one process and in turns: the
augmentations of isjax, one program each as the step maps them over a batch of
images, keys included; a loop over the images in numpy; and the training steps
of the benchmark of norms on the same batch. Writes augment.md and augment.json
to experiments/results/benchmarks.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import norms, timing
from experiments.benchmarks.timing import Contender, Row, Target, Timing
from experiments.tables import markdown
from isjax.data.augment import (
  AugmentFn,
  compose,
  cutout,
  flip,
  pad_and_crop,
  shift,
)

# Both take batches of 128 images of 32 x 32 x 3.
NETWORKS = {
  network.name: network
  for network in norms.NETWORKS
  if network.name in ('WRN-16-1', 'MLP 256-256 on 32x32x3')
}
TARGETS = {'WRN-16-1': Target('<=', 0.03)}
AUGMENTS = {
  'pad and crop': pad_and_crop(),
  'flip': flip(),
  'pad and crop, flip': compose(pad_and_crop(), flip()),
  'shift, flip': compose(shift(), flip()),
  'cutout': cutout(16),
}
PADDING = 4
BATCH_SIZE = 128
SECONDS = 20.0  # for the turns of a contender


def mapped(
  augment: AugmentFn,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns (key, images) -> views, one key for each slot as in the step."""

  def views(key, images):
    slots = jnp.arange(images.shape[0], dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slots)
    return jax.vmap(augment)(keys, images)

  return views


def by_numpy(random: np.random.Generator, images: np.ndarray) -> np.ndarray:
  """Pads, crops and flips image by image."""
  height, width = images.shape[1:3]
  margins = (PADDING, PADDING), (PADDING, PADDING), (0, 0)
  views = np.empty_like(images)
  for view, image in zip(views, images, strict=True):
    row, column = random.integers(2 * PADDING + 1, size=2)
    padded = np.pad(image, margins)
    crop = padded[row : row + height, column : column + width]
    view[:] = crop[:, ::-1] if random.random() < 1 / 2 else crop
  return views


def measure(rounds: int) -> dict[str, Timing]:
  """Times all contenders, by name."""
  problems = {name: norms.problem_of(n) for name, n in NETWORKS.items()}
  images = problems['WRN-16-1'].batch.inputs
  contenders = {
    name: _contender(mapped(augment), jax.random.key(0), images)
    for name, augment in AUGMENTS.items()
  }
  contenders |= {
    name: _contender(norms.programs(NETWORKS[name])['training step'], *problem)
    for name, problem in problems.items()
  }
  contenders['numpy'] = Contender(
    functools.partial(by_numpy, np.random.default_rng(0), np.asarray(images))
  )
  return timing.interleave(contenders, rounds=rounds, seconds=SECONDS)


def _contender(program: Callable[..., Any], *arguments: Any) -> Contender:
  compiled = jax.jit(program).lower(*arguments).compile()
  return Contender(lambda: jax.block_until_ready(compiled(*arguments)))


def compare(times: Mapping[str, Timing]) -> list[Row]:
  """Each augmentation against both training steps, and the loop in numpy."""
  rows = [
    Row(
      f'{network}: {name} / training step',
      times[name],
      times[network],
      TARGETS.get(network),
      '',
    )
    for network in NETWORKS
    for name in AUGMENTS
  ]
  both = 'pad and crop, flip'
  loop = Row(f'{both}: numpy / isjax', times['numpy'], times[both], None, '')
  return [*rows, loop]


def document(times: Mapping[str, Timing], rows: Sequence[Row]) -> str:
  """Returns the results as Markdown."""
  shares = [
    (
      name,
      f'{1e6 * times[name].minimum / BATCH_SIZE:.2f}',
      *(
        f'{times[name].minimum / times[network].minimum:.3%}'
        for network in NETWORKS
      ),
    )
    for name in AUGMENTS
  ]
  return '\n\n'.join(
    [
      '# The cost of augmentation',
      'Run: `python -m experiments.benchmarks.augment`',
      f'Batches of {BATCH_SIZE} images of 32 x 32 x 3. Crops have 4 pixels of '
      'padding, shifts go to 10 %, a cutout is of 16 x 16 pixels. A training '
      'step is forward, backward and SGD with momentum, without augmentation. '
      'A step that scores a pool of B and trains on b makes B + b views. '
      'By minima:',
      markdown(
        ('augmentation', 'us an image', *(f'of {n}' for n in NETWORKS)), shares
      ),
      timing.table(rows),
    ]
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and writes; the module's docstring says what."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.augment',
    description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--core', type=int, help='to run on; the last one')
  parser.add_argument('--rounds', type=int, default=50, help='measured calls')
  options = parser.parse_args(arguments)
  timing.pin(options.core)
  jax.config.update('jax_platforms', 'cpu')
  times = measure(options.rounds)
  rows = compare(times)
  content = {'rows': [row.record() for row in rows]}
  facts = timing.provenance(rows, [])
  timing.write('augment', document(times, rows), content, facts)


if __name__ == '__main__':
  main()
