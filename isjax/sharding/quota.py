"""The draw by quota: on every device a sampler of its own examples.

With a share P_d of the target law in shard d, the estimate of one device is
unbiased for the mean over its shard, and the mean of D such estimates, each
times D P_d, for the objective: p = p_local / D and pi = P_d pi_local.
"""

from collections.abc import Callable, Mapping
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from isjax import _validate
from isjax.samplers._record_weights import checked_target_law
from isjax.samplers._whole_proposal import keep_state
from isjax.sharding.placement import (
  PAD,
  SPLIT,
  WHOLE,
  Shards,
  own,
  stacked,
  take_own,
)
from isjax.types import Draw, PyTree, Sampler

# Of what samplers report, these are sums over the devices, and others means.
_SUMMED = ('num_scored', 'equivalent_batch_size')


class QuotaState(NamedTuple):
  """What D samplers know, each of its own shard.

  own:   the samplers' states, every array [D, ...], split.
  share: f32[D] >= 0, the target law's mass in each shard, split.
  """

  own: PyTree
  share: jax.Array

  @property
  def target_probabilities(self) -> jax.Array | None:
    """f32[D, N/D], pi within each shard, or None for D/N."""
    return getattr(self.own, 'target_probabilities', None)


def quota(
  make: Callable[..., Sampler],
  num_examples: int,
  batch_size: int,
  shards: Shards,
  *,
  arrays: Mapping[str, jax.Array] = {},
) -> Sampler:
  """Lets one sampler on each device draw b/D of the examples that it holds.

  p = p_local / D, and the batch is unbiased for the same objective as on one
  device, since each shard counts with its part of the target law. Proposals,
  draws, scores, updates and rebuilt tables stay on their device; only scalars
  cross. Arrays with a row per example are split like the data.

  Where the sampler decides by a number of its state (the gate of `presample` by
  tau, `memory` by its share of the target law), all devices have its mean over
  them, so that they decide alike. `class_balanced` balances each shard, and its
  objective is the mean of theirs.

  Args:
    make: (num_examples, batch_size, **arrays) -> Sampler, of a registry, its
      other options bound by functools.partial. It is called with N/D and b/D,
      and options that count examples, such as `pool_size`, count those of one
      device.
    num_examples: N, which D divides.
    batch_size: b, which D divides.
    shards: of the mesh.
    arrays: name -> [N, ...], the options with a row per example:
      `record_weights`, `law`, `scores`; `labels` of a sampler that takes
      num_classes, which is to be bound, since a shard may lack a class.

  Returns:
    A Sampler for data placed by `shard`, which takes rows by `take_own`. Its
    slot laws differ: slots [d m/D, (d + 1) m/D) are drawn from shard d, and
    `law` is the chance averaged over slots, the law that weights go by.

  Raises:
    ValueError: where D does not divide N or b; and what `make` raises of the
      rows of a shard, named.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  size = shards.part(num_examples, 'num_examples', PAD)
  num_draws = shards.part(batch_size, 'batch_size', 'Take the next multiple.')
  sampler = _checked(make, size, num_draws, shards, arrays)
  target = checked_target_law(arrays.get('record_weights'), num_examples)

  def device():
    return lax.axis_index(shards.axis)

  def key_of(key):
    return jax.random.fold_in(key, device())

  def slots_of(own):
    """Proposal slots of one device, m / D."""
    indices = jax.eval_shape(
      lambda own: sampler.propose(jax.random.key(0), own)[0], own
    )
    return indices.shape[0]

  def to_all(draw, state):
    return Draw(
      slots=draw.slots + device() * slots_of(state.own),
      indices=draw.indices + device() * size,
      probabilities=draw.probabilities / shards.count,
      target_probabilities=draw.target_probabilities * state.share,
    )

  def to_own(draw, state):
    has_share = state.share > 0
    pi = draw.target_probabilities / jnp.where(has_share, state.share, 1)
    return Draw(
      slots=draw.slots - device() * slots_of(state.own),
      indices=draw.indices - device() * size,
      probabilities=draw.probabilities * shards.count,
      target_probabilities=jnp.where(has_share, pi, 0),
    )

  def init(key):
    def init_own(key, arrays, target):
      share = 1 / shards.count if target is None else jnp.sum(target)
      own = make(size, num_draws, **arrays).init(key_of(key))
      return stacked(QuotaState(own, jnp.asarray(share, jnp.float32)))

    init_all = shards.map(init_own, (WHOLE, SPLIT, SPLIT), SPLIT)
    return jax.jit(init_all)(key, dict(arrays), target)

  def propose(key, state):
    static = []

    def propose_own(key, state):
      indices, needs_scores = sampler.propose(key_of(key), own(state).own)
      if isinstance(needs_scores, bool):
        static.append(needs_scores)
      return indices + device() * size, jnp.asarray(needs_scores)[None]

    propose_all = shards.map(propose_own, (WHOLE, SPLIT), SPLIT)
    indices, needs_scores = propose_all(key, state)
    return indices, static[0] if static else jnp.any(needs_scores)

  def select(key, state, indices, scores):
    def select_own(key, state, indices, scores):
      state = own(state)
      draw, of_sampler, info = sampler.select(
        key_of(key), state.own, indices - device() * size, scores
      )
      info = {
        name: (lax.psum if name in _SUMMED else lax.pmean)(value, shards.axis)
        for name, value in info.items()
      }
      state = state._replace(own=of_sampler)
      return to_all(draw, state), stacked(state), info

    select_all = shards.map(
      select_own, (WHOLE, SPLIT, SPLIT, SPLIT), (SPLIT, SPLIT, WHOLE)
    )
    return select_all(key, state, indices, scores)

  def observe(state, draw, observation):
    def observe_own(state, draw, observation):
      state = own(state)
      observed = sampler.observe(state.own, to_own(draw, state), observation)
      return stacked(state._replace(own=jax.tree.map(agreed, observed)))

    return shards.map(observe_own, SPLIT, SPLIT)(state, draw, observation)

  def agreed(value):
    is_number = value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
    return lax.pmean(value, shards.axis) if is_number else value

  def law(state, scores, indices=None):
    def law_own(state, scores, indices):
      if indices is not None:
        indices = indices - device() * size
      laws = sampler.law(own(state).own, scores, indices)
      return jax.tree.map(lambda law: law / shards.count, laws)

    return shards.map(law_own, SPLIT, SPLIT)(state, scores, indices)

  if sampler.observe is keep_state:
    observe = keep_state
  take = functools.partial(take_own, shards=shards)
  return Sampler(init, propose, select, observe, law, take)


def _checked(
  make: Callable[..., Sampler],
  size: int,
  num_draws: int,
  shards: Shards,
  arrays: Mapping[str, jax.Array],
) -> Sampler:
  """Returns a sampler of one shard, if each of the shards can have one."""
  for name, array in arrays.items():
    if np.shape(array)[:1] != (size * shards.count,):
      raise ValueError(
        f'{name} must have one row per example, {size * shards.count}; got '
        f'shape {np.shape(array)}.'
      )
  for shard in range(shards.count):
    rows = slice(shard * size, (shard + 1) * size)
    try:
      sampler = make(size, num_draws, **{n: a[rows] for n, a in arrays.items()})
    except ValueError as error:
      raise ValueError(f'shard {shard} of {shards.count}: {error}') from error
    if not arrays:
      break
  return sampler
