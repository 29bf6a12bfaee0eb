"""Training on sets that are larger than the device, or than the memory.

The step runs in its two halves. Proposals are made some steps ahead; reader
threads fetch their rows, decode them and put them on the device while it
trains on earlier ones.
"""

import collections
from collections.abc import Callable
from concurrent import futures
import functools

import jax
import jax.numpy as jnp
import numpy as np

from isjax import _validate
from isjax.data.source import Source
from isjax.step import TrainStep
from isjax.types import Batch, Metrics, TrainState


def make_stream_loop(
  step: TrainStep,
  source: Source,
  num_steps: int,
  *,
  ahead: int = 2,
  num_readers: int = 1,
) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
  """Runs a step num_steps times on a training set that is read as needed.

  A proposal is made `ahead` steps before its training. For samplers whose law
  does not change by what they observe, and for `presample`, the result is that
  of `make_loop` on the same set. A `memory` draws by scores that are `ahead`
  steps older; its draws carry the probabilities that they were made with, so
  that weights are exact all the same.

  No more than 2 ahead + 1 proposals' rows are held at a time. The pool of a
  gated sampler is read whole, whether the gate is open or not.

  Args:
    step: as `make_train_step` returns it.
    source: of as many examples as the sampler is made for.
    num_steps: per call of the loop. A call ends with nothing on its way, so
      that its state is all there is to save.
    ahead: steps that a proposal is ahead of its training, >= 1.
    num_readers: threads, each of which reads one proposal's rows at a time.

  Returns:
    (state) -> (state, metrics stacked over num_steps). The state passed in is
    donated: use the one returned. What a reader raises is raised here, once
    the readers have stopped; the state is then lost, and training goes on from
    a copy or a checkpoint.

  Raises:
    ValueError: on bad arguments; when called, where the sampler is made for
      another number of examples, or may need scores and proposed otherwise
      than it would now.
  """
  _validate.positive_integers(
    num_steps=num_steps, ahead=ahead, num_readers=num_readers
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def propose_for(own, key, index):
    proposal, state = step.propose(_only(key, own), index)
    return proposal, state.sampler_state

  train = jax.jit(step.train, donate_argnums=0)
  stack = jax.jit(lambda *rows: jax.tree.map(lambda *v: jnp.stack(v), *rows))

  def fetch(indices: jax.Array) -> Batch:
    return jax.device_put(source.read(np.asarray(indices, np.int64)))

  def loop(state: TrainState) -> tuple[TrainState, Metrics]:
    _expect_size(step.num_examples(state), source.num_examples)
    first = int(state.step)
    waiting = collections.deque()
    metrics = []
    readers = futures.ThreadPoolExecutor(num_readers, 'isjax-reader')
    try:
      for number in range(num_steps + ahead):
        if number < num_steps:
          proposal, own = propose_for(
            state.sampler_state, state.key, np.int32(first + number)
          )
          state = state._replace(sampler_state=own)
          waiting.append((proposal, readers.submit(fetch, proposal.indices)))
        if number >= ahead:
          proposal, rows = waiting.popleft()
          state, values = train(state, proposal, rows.result())
          metrics.append(values)
        if number >= 2 * ahead:  # never further before the device than this
          _expect_current(metrics[number - 2 * ahead])
    finally:
      readers.shutdown(cancel_futures=True)
    for values in metrics[-ahead:]:
      _expect_current(values)
    return state, stack(*metrics)

  return loop


def _only(key: jax.Array, sampler_state) -> TrainState:
  """A state with what a proposal needs, and nothing else."""
  fields = dict.fromkeys(TrainState._fields)
  return TrainState(**fields | {'key': key, 'sampler_state': sampler_state})


def _expect_size(sampler_size: int, source_size: int) -> None:
  if sampler_size != source_size:
    raise ValueError(
      f'the sampler is made for {sampler_size} examples, but the source has '
      f'{source_size}: give it their number.'
    )


def _expect_current(metrics: Metrics) -> None:
  """Waits for the step's end, too."""
  if not metrics.pop('current'):
    raise ValueError(
      'the sampler asks for scores and proposes by its state, which has '
      'changed since: let `propose` go by its key alone, or return False for '
      '`needs_scores`.'
    )
