"""The alias table on the default device, against `jax.random.choice`.

    python -m experiments.benchmarks.accelerator --folder=FOLDER
        [--rounds=N] [--sizes=N,N,...]

Times of the clock, each call waited for: a build, a call for 4096 draws, and a
draw of 128 inside a program that makes a hundred of them, as a training loop
does. On a CPU, `experiments.benchmarks.sampler` tells more. Writes sampler.md
and sampler.json to the folder.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Contender, Row, Seconds, Target
from isjax import alias

SIZES = (10**5, 10**6, 10**7)
NUM_DRAWS = 4096
BATCH = 128
PER_PROGRAM = 100
SECONDS = 5.0  # for the turns of a contender


def clock() -> Seconds:
  """Reads the time; a device does not use that of the processor."""
  now = time.perf_counter()
  return Seconds(now, now)


def waiting(function: Callable, *args) -> Callable[[], None]:
  """Returns a call of the function that ends when its result is there."""

  def run():
    jax.block_until_ready(function(*args))

  return run


def choice(key: jax.Array, law: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws as most programs in JAX do."""
  return jax.random.choice(key, law.shape[0], shape, p=law)


def in_program(draw: Callable) -> Callable:
  """Returns (key, table) -> a number made of PER_PROGRAM draws of BATCH."""

  def program(key, table):
    def body(i, total):
      drawn = draw(jax.random.fold_in(key, i), table, (BATCH,))
      return total + jnp.sum(drawn, dtype=jnp.uint32)

    return jax.lax.fori_loop(0, PER_PROGRAM, body, jnp.uint32(0))

  return jax.jit(program)


def measure(num_items: int, rounds: int) -> list[Row]:
  """Times both with one N."""
  random = np.random.default_rng(0)
  weights = jnp.asarray(random.lognormal(size=num_items), jnp.float32)
  law = weights / jnp.sum(weights)
  build = jax.jit(alias.build)
  table = jax.block_until_ready(build(weights))
  key = jax.random.key(0)

  def call(draw):
    return jax.jit(functools.partial(draw, shape=(NUM_DRAWS,)))

  contenders = {
    'build': Contender(waiting(build, weights)),
    'draws': Contender(waiting(call(alias.sample), key, table)),
    'choice': Contender(waiting(call(choice), key, law)),
    'draws in a program': Contender(
      waiting(in_program(alias.sample), key, table), PER_PROGRAM
    ),
    'choice in a program': Contender(
      waiting(in_program(choice), key, law), PER_PROGRAM
    ),
  }
  times = timing.interleave(
    contenders, rounds=rounds, seconds=SECONDS, clock=clock
  )

  def row(what, subject, reference, target=None):
    name = f'N = {num_items:.0e}: {what}'
    return Row(name, times[subject], times[reference], target, '-')

  faster = Target('<=', 1)
  return [
    row(f'{NUM_DRAWS} draws / choice(p)', 'draws', 'choice', faster),
    row(
      f'{BATCH} draws in a program / choice(p)',
      'draws in a program',
      'choice in a program',
      faster,
    ),
    row(f'build / {NUM_DRAWS} draws of choice(p)', 'build', 'choice'),
  ]


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and writes; the module's docstring says what."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.accelerator',
    description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--rounds', type=int, default=50, help='measured turns')
  parser.add_argument(
    '--sizes',
    type=lambda text: [int(float(size)) for size in text.split(',')],
    default=list(SIZES),
    help='the numbers of items',
  )
  options = parser.parse_args(arguments)
  rows = [r for size in options.sizes for r in measure(size, options.rounds)]
  facts = timing.provenance(rows, [])
  del facts['least_share_of_core']  # of the processor's time
  timing.write(
    'sampler',
    f'# The alias table on the device\n\n{timing.table(rows)}',
    {'rows': [row.record() for row in rows]},
    facts,
    clock='A time is that of the clock',
    folder=options.folder,
  )


if __name__ == '__main__':
  main()
