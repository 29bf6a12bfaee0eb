"""What becomes of a sum tree when its scores change, and fall.

    python -m experiments.benchmarks.drift [--core=N] [--rounds=N]

The tree of this project sums a parent again from its children; that of flashbax
adds to it the difference that a score makes, as do the trees it was modelled
on. Both take the same 1e5 updates of 128 scores. Then all scores fall, some of
them to 0, as losses do, and both trees are compared with the scores. Last come
the times of an update. Writes drift.md and drift.json to
experiments/results/benchmarks.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import laws, timing
from experiments.benchmarks.timing import Contender, Row
from experiments.tables import markdown
from isjax import alias, sum_tree

NUM_SCORES = 100_003  # no power of a fan-out: levels end with empty nodes
BATCH = 128
EPOCHS = 128  # each updates every score once
FALLS = (1.0, 1e-4, 1e-6)
ZEROS = 0.1  # share of the scores that fall to 0
DRAWS = 2**20
TIMED_SIZES = (10**6, 10**7)
PER_CALL = (1, 20)  # updates in a timed call


class Tree(NamedTuple):
  """A sum tree, as pure functions of its state.

  fan_out: children of a node.
  build:   scores f32[N] -> state.
  update:  (state, indices i32[b], scores f32[b]) -> state.
  draw:    (key, state) -> i32[DRAWS], independent, >= N for padding.
  law:     state -> the law of a draw, f64[>= N].
  levels:  state -> arrays of nodes, leaves first, root last.
  """

  fan_out: int
  build: Callable[[np.ndarray], Any]
  update: Callable[[Any, jax.Array, jax.Array], Any]
  draw: Callable[[jax.Array, Any], jax.Array]
  law: Callable[[Any], np.ndarray]
  levels: Callable[[Any], Sequence[jax.Array]]


ISJAX = Tree(
  fan_out=16,
  build=sum_tree.build,
  update=sum_tree.update,
  draw=lambda key, state: sum_tree.sample(key, state, (DRAWS,))[0],
  law=lambda state: np.asarray(sum_tree.probabilities(state), np.float64),
  levels=lambda state: state.levels,
)


def flashbax() -> Tree:
  """Returns the rival, with the update that its buffers choose on CPU."""
  from flashbax.buffers import sum_tree as rival  # an extra

  pick = jax.jit(jax.vmap(rival.sample, (None, None, 0)))
  return Tree(
    fan_out=2,
    build=lambda scores: rival.set_batch_bincount(
      rival.init(len(scores)), jnp.arange(len(scores)), jnp.asarray(scores)
    ),
    update=rival.set_batch_scan,
    draw=lambda key, state: pick(
      state, None, jax.random.uniform(key, (DRAWS,))
    ),
    law=lambda state: laws.by_enumeration(
      functools.partial(pick, state, None), state.capacity
    ),
    levels=lambda state: [
      state.nodes[2**depth - 1 : 2 ** (depth + 1) - 1]
      for depth in range(state.tree_depth, -1, -1)
    ],
  )


def flashbax_bincount() -> Tree:
  """Returns the rival, with the update that its buffers choose elsewhere."""
  from flashbax.buffers import sum_tree as rival  # an extra

  return flashbax()._replace(update=rival.set_batch_bincount)


class State(NamedTuple):
  """How a tree compares with the scores that were set last.

  difference:      largest |parent - sum of children| over the larger of both.
  root:            of the tree, over the sum of the scores, less 1.
  padding, empty:  shares of the draws on leaves >= N, and on scores of 0.
  total_variation: between the law that is drawn from, and the scores'.
  never_drawable:  how many positive scores have no chance.
  """

  difference: float
  root: float
  padding: float
  empty: float
  total_variation: float
  never_drawable: int


def largest_difference(levels: Sequence[jax.Array], fan_out: int) -> float:
  """Returns the difference of `State`, sums taken in float64."""
  largest = 0.0
  for children, parents in itertools.pairwise(map(np.asarray, levels)):
    rows = np.pad(children, (0, -len(children) % fan_out))
    sums = rows.reshape(-1, fan_out).sum(1, dtype=np.float64)
    parents = parents[: len(sums)]
    scale = np.maximum(np.maximum(np.abs(parents), np.abs(sums)), 1e-300)
    largest = max(largest, float((np.abs(parents - sums) / scale).max()))
  return largest


def compare(tree: Tree, state: Any, scores: np.ndarray) -> State:
  """Compares a tree with the scores f32[N] that were set last."""
  levels = tree.levels(state)
  root, total = float(levels[-1][0]), scores.sum(dtype=np.float64)
  draws = np.asarray(tree.draw(jax.random.key(1), state))
  inside = draws[draws < len(scores)]
  return State(
    largest_difference(levels, tree.fan_out),
    root / total - 1,
    1 - len(inside) / len(draws),
    float((scores[inside] == 0).sum() / len(draws)),
    *laws.exactness(tree.law(state), scores),
  )


def epoch(
  random: np.random.Generator, size: int, fall: float, zeros: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns scores f32[N], and an order of updates i32[ceil(N / b), b].

  No batch has an index twice: what then counts differs between the trees.
  """
  scores = fall * random.lognormal(size=size)
  scores = np.where(random.random(size) < zeros, 0, scores)
  order = np.resize(random.permutation(size), (-(-size // BATCH), BATCH))
  return scores.astype(np.float32), order.astype(np.int32)


def run_updates(
  tree: Tree, state: Any, indices: jax.Array, scores: jax.Array
) -> Any:
  """Returns the state after updates i32[n, b], f32[n, b], one by one."""

  def step(state, batch):
    return tree.update(state, *batch), None

  return lax.scan(step, state, (indices, scores))[0]


def follow(tree: Tree, size: int, epochs: int) -> list[State]:
  """Returns how a tree compares after many updates and one of FALLS each."""
  run = jax.jit(functools.partial(run_updates, tree))
  random = np.random.default_rng(0)
  state = tree.build(np.zeros(size, np.float32))
  for _ in range(epochs):
    scores, order = epoch(random, size, fall=1.0, zeros=0.0)
    state = run(state, order, scores[order])
  states = []
  for fall in FALLS:
    scores, order = epoch(random, size, fall, ZEROS)
    states.append(compare(tree, run(state, order, scores[order]), scores))
  return states


def updates(tree: Tree, size: int, per_call: int) -> Contender:
  """Returns updates in place, so many in a compiled call."""
  random = np.random.default_rng(0)
  run = jax.jit(functools.partial(run_updates, tree), donate_argnums=0)
  state = tree.build(random.lognormal(size=size).astype(np.float32))
  shape = (per_call, BATCH)
  indices = jnp.asarray(random.integers(size, size=shape), jnp.int32)
  scores = jnp.asarray(random.lognormal(size=shape), jnp.float32)

  def call():
    nonlocal state
    state = jax.block_until_ready(run(state, indices, scores))

  return Contender(call, per_call)


def compare_updates(size: int, per_call: int, rounds: int) -> Row:
  """Measures an update of the rival against one of this project."""
  times = timing.interleave(
    {
      'flashbax': updates(flashbax(), size, per_call),
      'isjax': updates(ISJAX, size, per_call),
    },
    rounds=rounds,
  )
  return Row(
    f'N = {size:.0e}, {per_call} in a call: flashbax, scan / isjax',
    times['flashbax'],
    times['isjax'],
    None,
    'b log2(N) / b log16(N), and the call',
  )


def compare_rebuild(size: int, rounds: int) -> Row:
  """Measures what an update saves: building an alias table anew."""
  scores = np.random.default_rng(0).lognormal(size=size).astype(np.float32)
  scores = jnp.asarray(scores)
  times = timing.interleave(
    {
      'build': Contender(lambda: jax.block_until_ready(alias.build(scores))),
      'update': updates(ISJAX, size, per_call=1),
    },
    rounds=rounds,
  )
  what = f'N = {size:.0e}, 1 in a call: alias.build / isjax'
  return Row(what, times['build'], times['update'], None, 'N / b log16(N)')


def document(states: dict[str, list[State]], rows: list[Row]) -> str:
  """Returns the result as Markdown."""
  header = (
    'tree',
    'scores times',
    'parent - children',
    'root / sum - 1',
    'draws on padding',
    'on scores of 0',
    'total variation',
    'never drawable',
  )
  lines = [
    (
      name,
      f'{fall:g}',
      f'{state.difference:.1e}',
      f'{state.root:+.1e}',
      f'{state.padding:.2%}',
      f'{state.empty:.2%}',
      f'{state.total_variation:.1e}',
      f'{state.never_drawable}',
    )
    for name, column in states.items()
    for fall, state in zip(FALLS, column, strict=True)
  ]
  return '\n\n'.join(
    [
      '# Sum trees when scores fall',
      'Run: `python -m experiments.benchmarks.drift`',
      f'N = {NUM_SCORES}. Every score is set {EPOCHS} times to a lognormal '
      f'number, {BATCH} at a time; then once more to one times what the second '
      f'column says, and {ZEROS:.0%} of them to 0. Parent - children: the '
      'largest difference, over the larger of both. Draws: of '
      f'{DRAWS}. Total variation: of the law that is drawn from (published by '
      'isjax, found by trying every uniform for flashbax), from the scores.',
      markdown(header, lines),
      f'An update of {BATCH} scores, in place:',
      timing.table(rows),
    ]
  )


def main(arguments: list[str] | None = None) -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--core', type=int, help='to run on; default: the last')
  parser.add_argument('--rounds', type=int, default=50, help='of each timing')
  options = parser.parse_args(arguments)
  timing.require('flashbax')
  timing.pin(options.core)
  jax.config.update('jax_platforms', 'cpu')
  contenders = {
    'isjax': ISJAX,
    'flashbax, scan': flashbax(),
    'flashbax, bincount': flashbax_bincount(),
  }
  states = {
    name: follow(tree, NUM_SCORES, EPOCHS) for name, tree in contenders.items()
  }
  rows = [
    compare_updates(size, per_call, options.rounds)
    for size, per_call in itertools.product(TIMED_SIZES, PER_CALL)
  ]
  rows.append(compare_rebuild(TIMED_SIZES[0], options.rounds))
  content = {
    'rows': [row.record() for row in rows],
    'states': [
      {'tree': name, 'fall': fall, **state._asdict()}
      for name, column in states.items()
      for fall, state in zip(FALLS, column, strict=True)
    ],
  }
  facts = timing.provenance(rows, ['flashbax'])
  timing.write('drift', document(states, rows), content, facts)


if __name__ == '__main__':
  main()
