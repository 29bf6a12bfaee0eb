"""What a draw from a fixed law costs, and which law it follows.

    python -m experiments.benchmarks.sampler [--core=N] [--rounds=N]
        [--largest=N]

Measured on one core of a CPU, everything in one process and in turns, for the
alias table and its rivals (see rivals.py) and N items, from 1e4 up:
1. a call for 4096 draws, and what is built before the first;
2. an epoch of N draws;
3. updates of 128 weights, by those who are made for it;
4. how far the law of the draws is from the weights, and how many items they
   never reach.
Each rival must follow the weights of a few items before it is timed. Writes
sampler.md, sampler.json and sampler.png to experiments/results/benchmarks.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
import sys
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.benchmarks import (
  laws,
  rivals,
  sampler_figure,
  sampler_report,
  timing,
)
from experiments.benchmarks.laws import Exactness
from experiments.benchmarks.rivals import Rival
from experiments.benchmarks.sampler_report import (
  FEW,
  NUM_DRAWS,
  SPREADS,
  Case,
  Times,
)
from experiments.benchmarks.timing import Contender

SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
LARGEST_EPOCH = 10**6
ENOUGH_PEERS = 5
SECONDS = 2.0  # for the turns of a rival, in one comparison
TURN = 5e-3  # seconds of a turn or more, in which calls follow each other


def present_peers() -> list[type[Rival]]:
  """Returns the peers that are installed.

  Raises:
    SystemExit: where they are too few for a comparison.
  """
  present = [kind for kind in rivals.PEERS if rivals.is_present(kind)]
  if len(present) < ENOUGH_PEERS:
    missing = [kind.name for kind in rivals.PEERS if kind not in present]
    sys.exit(
      f'error: this benchmark wants {ENOUGH_PEERS} peers or more; there are '
      f'only {len(present)}, without {", ".join(missing)}: '
      "pip install 'isjax[bench]'. To keep that small, first install the build "
      'of torch for CPU alone, as its own instructions say.'
    )
  return present


def able(num_items: int, count: int) -> list[type[Rival]]:
  """Returns who is installed, and can draw `count` of so many items."""
  return [
    kind
    for kind in rivals.CONTENDERS
    if rivals.is_present(kind) and not kind.refusal(num_items, count)
  ]


def lognormal(num_items: int, spread: float) -> np.ndarray:
  """Returns weights f32[N], the same at every call."""
  random = np.random.default_rng(0)
  return random.lognormal(sigma=spread, size=num_items).astype(np.float32)


def ready(kind: type[Rival], weights: np.ndarray) -> Rival:
  """Returns a rival that can draw."""
  rival = kind(weights)
  if rival.build is not None:
    rival.build()
  return rival


def check(kind: type[Rival]) -> float:
  """Draws few items often, and returns p of a chi-square test.

  Raises:
    SystemExit: where the draws are not by the weights: their speed would mean
      nothing.
  """
  num_items, count = 100, 2**16
  weights = lognormal(num_items, spread=1.0)
  weights[::10] = 0
  drawn = np.asarray(ready(kind, weights).draw(count))
  counts = np.bincount(drawn, minlength=num_items)
  some = weights > 0
  if len(counts) > num_items or counts[~some].any():
    sys.exit(f'error: {kind.name} draws what has no weight.')
  expected = count * weights[some] / weights.sum(dtype=np.float64)
  p = scipy.stats.chisquare(counts[some], expected, sum_check=False).pvalue
  if p < 1e-6:
    sys.exit(f'error: {kind.name} does not draw by the weights (p = {p:.1e}).')
  return float(p)


def measure(num_items: int, rounds: int) -> Case:
  """Times all rivals with one N, and compares their laws with the weights."""
  times = timings(num_items, rounds)  # whose tables are gone when it returns
  laws_found = [exactness(num_items, spread) for spread in SPREADS]
  return Case(num_items=num_items, exactness=laws_found, **times)


def timings(num_items: int, rounds: int) -> dict[str, Times]:
  """Returns the fields of a case that are times."""
  kinds = able(num_items, NUM_DRAWS)
  epochs = able(num_items, num_items) if num_items <= LARGEST_EPOCH else []
  weights = lognormal(num_items, SPREADS[0])
  made = {kind: ready(kind, weights) for kind in {*kinds, *epochs}}
  builders = [kind for kind in kinds if kind.build is not None]
  trees = [kind for kind in kinds if kind in rivals.TREES]

  def times(kinds, call_of):
    return interleave({kind: call_of(made[kind]) for kind in kinds}, rounds)

  def draw(count):
    return lambda rival: functools.partial(rival.draw, count)

  return {
    'draws': times(kinds, draw(NUM_DRAWS)),
    'builds': times(builders, lambda rival: rival.build),
    'epochs': times(epochs, draw(num_items)),
    'few_draws': times(trees, draw(FEW)),
    'updates': times(trees, lambda rival: update_of(rival, num_items)),
  }


def update_of(
  rival: rivals.SumTree | rivals.Flashbax, num_items: int
) -> Callable[[], None]:
  """Returns a function that updates weights of a tree, others at each call."""
  random = np.random.default_rng(1)
  batches = [
    (
      jnp.asarray(random.integers(num_items, size=FEW), jnp.int32),
      jnp.asarray(random.lognormal(size=FEW), jnp.float32),
    )
    for _ in range(64)
  ]
  following = itertools.cycle(batches)
  return lambda: rival.update(*next(following))


def interleave(
  calls: Mapping[type[Rival], Callable[[], Any]], rounds: int
) -> Times:
  """Times calls in turns."""
  contenders = {kind: repeated(call) for kind, call in calls.items()}
  return timing.interleave(
    contenders, rounds=rounds, warmups=1, seconds=SECONDS
  )


def repeated(call: Callable[[], Any]) -> Contender:
  """Makes turns of as many calls as fill `TURN`, and at least one.

  One call for a few draws would not bring a table back into the caches that
  the rivals before have filled.
  """
  call()  # compiles
  start = timing.clock()
  call()
  steps = 1 + int(TURN / (timing.clock().elapsed - start.elapsed))

  def run():
    for _ in range(steps):
      call()

  return Contender(run, steps)


def exactness(num_items: int, spread: float) -> dict[type[Rival], Exactness]:
  """Compares the laws that are known with the weights."""
  weights = lognormal(num_items, spread)
  return {
    kind: laws.exactness(ready(kind, weights).law(), weights)
    for kind in able(num_items, NUM_DRAWS)
    if kind.law is not Rival.law
  }


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and writes; the module's docstring says what."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.sampler',
    description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--core', type=int, help='to run on; the last one')
  parser.add_argument('--rounds', type=int, default=50, help='measured turns')
  parser.add_argument(
    '--largest',
    type=lambda text: int(float(text)),
    choices=SIZES,
    default=10**7,
    help='the largest N; 1e8 takes 20 GB',
  )
  options = parser.parse_args(arguments)
  peers = present_peers()
  timing.pin(options.core)
  jax.config.update('jax_platforms', 'cpu')
  # scipy says so of each table that is large.
  warnings.filterwarnings('ignore', '.*round-off error', RuntimeWarning)
  checks = {kind: check(kind) for kind in able(1, 1)}
  sizes = [size for size in SIZES if size <= options.largest]
  cases = [measure(size, options.rounds) for size in sizes]
  facts = timing.provenance(
    [row for case in cases for row in case.rows()],
    sorted({kind.package for kind in peers}),
  )
  timing.write(
    'sampler',
    sampler_report.document(cases, checks),
    sampler_report.content(cases),
    facts,
  )
  sampler_figure.write(cases, timing.RESULTS / 'sampler.png')


if __name__ == '__main__':
  main()
