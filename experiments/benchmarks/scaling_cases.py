"""What one process of the scaling study measures, and prints as JSON.

    python -m experiments.benchmarks.scaling_cases FUNCTION ARGUMENTS

experiments/benchmarks/scaling.py starts it, for the memory of one case is told
from that of another, and the number of devices is fixed, by having a process of
its own.
"""

from collections.abc import Callable, Sequence
import functools
import json
import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax

from experiments.benchmarks import timing
from experiments.benchmarks.scaling_plan import crossings
from experiments.benchmarks.timing import Contender
import isjax
from isjax import alias, sharding, sum_tree
from isjax.losses import cross_entropy
from isjax.models import MLP, init, make_apply_fn
from isjax.sharding.placement import Shards, put
from isjax.step import TrainStep
from isjax.types import Batch, PyTree, Sampler

NUM_DRAWS = 4096
BATCH = 128  # draws and updates of a step
WIDTH, HIDDEN, NUM_CLASSES = 32, (64,), 10  # of the MLP
ROWS = 2**16  # that there are; example i has row i modulo so many
SECONDS = 4.0  # for the turns of a contender

Found = dict[str, Any]


def scores(num_items: int) -> np.ndarray:
  """Returns lognormal numbers f32[N], the same at every call."""
  random = np.random.default_rng(0)
  normal = random.standard_normal(num_items, np.float32)
  return np.exp(normal, out=normal)


def rows(num_rows: int) -> Batch:
  """Returns random inputs f32[n, WIDTH] and labels."""
  random = np.random.default_rng(1)
  inputs = random.standard_normal((num_rows, WIDTH), np.float32)
  return Batch(inputs, random.integers(NUM_CLASSES, size=num_rows, dtype='i4'))


def make_step(
  sampler: Sampler, num_items: int
) -> tuple[TrainStep, Callable[[jax.Array], isjax.TrainState]]:
  """Returns the step of a small MLP; and (key) -> its first state."""
  loss_fn, module = cross_entropy(), MLP(NUM_CLASSES, HIDDEN)
  tx = isjax.importance_weighted(optax.sgd(0.01, momentum=0.9), num_items)
  step = isjax.make_train_step(
    make_apply_fn(module),
    loss_fn,
    sampler,
    tx,
    score=isjax.logit_gradient_norm(loss_fn),
  )
  params, _ = init(module, jax.random.key(0), jnp.zeros((1, WIDTH)))
  return step, lambda key: isjax.init_train_state(key, params, {}, sampler, tx)


def gradient_octets() -> int:
  """Returns how many bytes the gradient of the MLP has."""
  params, _ = init(
    MLP(NUM_CLASSES, HIDDEN), jax.random.key(0), jnp.zeros((1, WIDTH))
  )
  return octets(params)


def octets(tree: PyTree) -> int:
  """Returns the bytes of all arrays of a tree; keys count nothing."""
  return sum(
    array.size * array.dtype.itemsize
    for array in jax.tree.leaves(tree)
    if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
  )


def _resident(line: str) -> int:
  """A line of the process's status, in bytes."""
  text = pathlib.Path('/proc/self/status').read_text()
  return 1024 * int(text.partition(f'{line}:')[2].split()[0])


def growth(call: Callable[[], Any]) -> tuple[Any, int]:
  """Returns what a call does, and by how much the process grew at its largest.

  Linux alone tells: it forgets the peak so far where asked to.
  """
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  before = _resident('VmRSS')
  result = jax.block_until_ready(call())
  return result, _resident('VmHWM') - before


def seconds_of(call: Callable[[], Any], rounds: int) -> Found:
  """Times a call, which waits for its result."""
  contender = Contender(lambda: jax.block_until_ready(call()))
  timed = timing.interleave(
    {'': contender}, rounds=rounds, warmups=1, seconds=SECONDS
  )['']
  elapsed = min(sample.elapsed for sample in timed.samples)
  return {
    'minimum': timed.minimum,
    'median': timed.median,
    'elapsed': elapsed,
    'share_of_core': timed.share,
  }


def carried(
  program: Callable[..., tuple], state: PyTree, *args: Any
) -> Callable[[], Any]:
  """Returns a call that goes on from the first result of the one before."""

  def call():
    nonlocal state
    out = program(state, *args)
    state = out[0]
    return out

  return call


def with_items(num_items: int, rounds: int) -> Found:
  """Measures table, tree and steps on one device; N is `num_items`.

  One after the other, for all together would not fit in memory.
  """
  return {
    'num_items': num_items,
    'table': _table(num_items, rounds),
    'tree': _tree(num_items, rounds),
    'steps': {
      name: _step(name, num_items, rounds)
      for name in ('uniform', 'record_weighted', 'memory')
    },
  }


def _table(num_items: int, rounds: int) -> Found:
  key, weights = jax.random.key(0), jnp.asarray(scores(num_items))
  build = jax.jit(alias.build).lower(weights).compile()
  analysis = build.memory_analysis()
  table, peak = growth(lambda: build(weights))
  draw = jax.jit(functools.partial(alias.sample, shape=(NUM_DRAWS,)))
  found = {
    'octets': octets(table),
    'temporary': analysis.temp_size_in_bytes,
    'peak': peak,
    'draw': seconds_of(functools.partial(draw, key, table), rounds),
  }
  del table
  return found | {'build': seconds_of(lambda: build(weights), rounds)}


def _tree(num_items: int, rounds: int) -> Found:
  key, leaves = jax.random.key(0), jnp.asarray(scores(num_items))
  build = jax.jit(sum_tree.build).lower(leaves).compile()
  analysis = build.memory_analysis()
  tree, peak = growth(lambda: build(leaves))
  draw = jax.jit(functools.partial(sum_tree.sample, shape=(NUM_DRAWS,)))
  random = np.random.default_rng(2)
  at = jnp.asarray(random.integers(num_items, size=BATCH), jnp.int32)
  update = jax.jit(sum_tree.update, donate_argnums=0)
  found = {
    'octets': octets(tree),
    'temporary': analysis.temp_size_in_bytes,
    'peak': peak,
    'draw': seconds_of(functools.partial(draw, key, tree), rounds),
    'build': seconds_of(lambda: build(leaves), rounds),
  }
  call = carried(lambda *args: (update(*args),), tree, at, leaves[:BATCH])
  del tree
  return found | {'update': seconds_of(call, rounds)}


def _step(name: str, num_items: int, rounds: int) -> Found:
  """A step, state and peak of one sampler; rows are as many at every N."""
  weights = scores(num_items) if name == 'record_weighted' else None

  def start():
    options = {} if weights is None else {'record_weights': weights}
    sampler = getattr(isjax, name)(num_items, BATCH, **options)
    step, first = make_step(sampler, num_items)
    return step, first(jax.random.key(0))

  start()  # compiles, which takes memory, too
  (step, state), peak = growth(start)
  found = {'octets': octets(state.sampler_state), 'peak': peak}
  data = jax.tree.map(jnp.asarray, rows(min(ROWS, num_items)))

  @functools.partial(jax.jit, donate_argnums=0)
  def advance(state, data):
    proposal, state = step.propose(state, state.step)
    at = proposal.indices % data.targets.shape[0]
    return step.train(state, proposal, isjax.take(data, at))

  call = carried(advance, state, data)
  del state
  return found | {'step': seconds_of(call, rounds)}


def on_devices(num_items: int, rounds: int, only: Sequence[str] = ()) -> Found:
  """Measures builds, draws and steps on all devices there are.

  Several processes make the same calls in the same order, so many each.

  Args:
    num_items: N, of which 16 D is a divisor.
    rounds: timed calls of each.
    only: names of what is measured; () for all.
  """
  axes = (AxisType.Auto,)
  mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=axes)
  shards = Shards(mesh, 'data')
  found = {}
  for name, make in _PROGRAMS.items():
    if not only or name in only:
      program, call = make(num_items, shards)
      found[name] = _timed(call, rounds) | {
        'crossings': crossings(program.as_text(), shards.count)
      }
  return {
    'num_items': num_items,
    'devices': shards.count,
    'processes': jax.process_count(),
    'programs': found,
  }


def _timed(call: Callable[[], Any], rounds: int) -> Found:
  """Seconds and bytes on the loopback of so many calls, after two others."""
  for _ in range(2):
    jax.block_until_ready(call())
  samples, sent = [], []
  for _ in range(rounds):
    first, start = _loopback(), timing.clock()
    jax.block_until_ready(call())
    end = timing.clock()
    sent.append(_loopback() - first)
    samples.append([e - s for s, e in zip(start, end, strict=True)])
  processor, elapsed = np.transpose(samples)
  return {
    'minimum': processor.min(),
    'median': np.median(processor),
    'elapsed': elapsed.min(),
    'loopback': int(np.median(sent)),
  }


def _loopback() -> int:
  """Bytes that this machine has sent to itself."""
  text = pathlib.Path('/proc/net/dev').read_text()
  return int(text.partition('lo:')[2].split()[8])


def _build_of(form: str) -> Callable:
  def make(num_items, shards):
    weights = put(scores(num_items), shards.split)
    build = functools.partial(sharding.build, shards=shards, form=form)
    program = jax.jit(build).lower(weights).compile()
    return program, lambda: program(weights)

  return make


def _draw_of(form: str) -> Callable:
  def make(num_items, shards):
    table = sharding.build(scores(num_items), shards, form)
    key = put(jax.random.key(0), shards.whole)
    draw = functools.partial(
      sharding.sample_with_probabilities, shape=(NUM_DRAWS,)
    )
    program = jax.jit(draw).lower(key, table).compile()
    return program, lambda: program(key, table)

  return make


def _step_of(make_sampler: Callable[[int, Shards], Sampler]) -> Callable:
  def make(num_items, shards):
    step, first = make_step(make_sampler(num_items, shards), num_items)
    state = sharding.place(first(jax.random.key(0)), shards, num_items)
    data = sharding.shard(rows(num_items), shards)
    program = jax.jit(step, donate_argnums=0).lower(state, data).compile()
    return program, carried(program, state, data)

  return make


def _fixed_globally(num_items: int, shards: Shards) -> Sampler:
  r = scores(num_items)
  return sharding.two_level(r, BATCH, shards, record_weights=r)


def _fixed_by_quota(num_items: int, shards: Shards) -> Sampler:
  arrays = {'record_weights': scores(num_items)}
  make = isjax.record_weighted
  return sharding.quota(make, num_items, BATCH, shards, arrays=arrays)


def _memory_globally(num_items: int, shards: Shards) -> Sampler:
  return sharding.global_law(isjax.memory, num_items, BATCH, shards)


def _memory_by_quota(num_items: int, shards: Shards) -> Sampler:
  return sharding.quota(isjax.memory, num_items, BATCH, shards)


# (N, shards) -> the compiled program, and a call of it.
_PROGRAMS = {
  'build, global': _build_of('global'),
  'build, quota': _build_of('quota'),
  'draw, global': _draw_of('global'),
  'draw, quota': _draw_of('quota'),
  'step, fixed law, global': _step_of(_fixed_globally),
  'step, fixed law, quota': _step_of(_fixed_by_quota),
  'step, memory, global': _step_of(_memory_globally),
  'step, memory, quota': _step_of(_memory_by_quota),
}
_FUNCTIONS = {'with_items': with_items, 'on_devices': on_devices}


def main(arguments: Sequence[str] | None = None) -> None:
  """Calls a function by name, with arguments in JSON; prints what it found."""
  name, text = sys.argv[1:] if arguments is None else arguments
  jax.config.update('jax_platforms', 'cpu')
  if 'JAX_PROCESS_ID' in os.environ:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(
      os.environ['JAX_COORDINATOR_ADDRESS'],
      int(os.environ['JAX_NUM_PROCESSES']),
      int(os.environ['JAX_PROCESS_ID']),
    )
  print(json.dumps(_FUNCTIONS[name](**json.loads(text))))


if __name__ == '__main__':
  main()
