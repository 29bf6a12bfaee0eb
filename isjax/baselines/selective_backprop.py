"""Selective backprop: examples of large loss are trained on more often."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import _validate
from isjax.baselines import _record_weights
from isjax.resampling import systematic, uniform_indices
from isjax.samplers._whole_proposal import keep_state
from isjax.types import Draw, Sampler
from isjax.weights import normalise


class SelectiveBackpropState(NamedTuple):
  """What a loss is compared with.

  recent_losses:        f32[R], the last of the candidates' losses; inf where
                        there is none yet.
  num_recent:           i32[] in [0, R], how many there are.
  target_probabilities: None, since record weights are refused.
  """

  recent_losses: jax.Array
  num_recent: jax.Array
  target_probabilities: None = None


def selective_backprop(
  num_examples: int,
  batch_size: int,
  *,
  power: float = 2.0,
  history: int = 1024,
  pool_size: int | None = None,
  record_weights: None = None,
) -> Sampler:
  """Keeps a candidate with chance CDF(loss)^power, and does not correct for it.

  The CDF is that of the last R candidates' losses, the candidates of this step
  included. The gradient is the plain mean over the batch: **biased** towards
  examples of large loss. The purpose is to change the objective, so the target
  law is the sampling law itself and every importance weight is 1.

  The authors look at candidates until b are kept; with uniform candidates each
  of the b is then a draw of the law proportional to CDF^power. A step here has
  a fixed number B of candidates, by default as many as they look at on average,
  and keeps exactly b of them: candidate j with chance c_j b / sum c, with
  c = CDF^power, by a systematic draw. The factor b / sum c is near 1 at that B,
  and a candidate is repeated only where its chance exceeds 1. Candidates are
  independent and uniform, not those of a shuffled epoch.

  **The scores must be losses**: give make_train_step a draw_score that returns
  them.

  Args:
    num_examples: N.
    batch_size: b.
    power: beta >= 0; a share of about 1 / (1 + beta) is kept. 1 and 2 are the
      authors' for a half and a third [mem].
    history: R, the losses that the CDF is of; 1024 in the authors' code [mem].
    pool_size: B >= b; round((1 + beta) b) where None.
    record_weights: must be None.

  Returns:
    A Sampler whose info has `num_scored` B and `num_kept`, sum c: how many the
    rule of the authors would keep of the B on average.

  Raises:
    ValueError: on a bad argument; for record weights, of which the rule knows
      nothing.

  Source: Jiang et al. (2019), arXiv:1910.00762, algorithm 1.
  """
  _validate.positive_integers(
    num_examples=num_examples, batch_size=batch_size, history=history
  )
  _validate.non_negative(power=power)
  _validate.finite(power=power)
  if pool_size is None:
    pool_size = round((1 + power) * batch_size)
  _validate.positive_integers(pool_size=pool_size)
  if pool_size < batch_size:
    raise ValueError(
      f'pool_size must be at least batch_size, {batch_size}; got {pool_size}.'
    )
  _record_weights.refuse('selective_backprop', record_weights)

  def with_losses(state, losses):
    """The history after these candidates."""
    recent = jnp.concatenate([state.recent_losses, losses])[-history:]
    num_recent = jnp.minimum(state.num_recent + pool_size, history)
    return SelectiveBackpropState(recent, num_recent)

  def chances(state, losses):
    """CDF(loss)^power of each candidate, by a history that holds them."""
    below = state.recent_losses[None, :] <= losses[:, None]
    share = jnp.sum(below, axis=1) / state.num_recent
    return jnp.minimum(share, 1) ** power

  def init(key):
    del key
    return SelectiveBackpropState(
      recent_losses=jnp.full((history,), jnp.inf, jnp.float32),
      num_recent=jnp.zeros((), jnp.int32),
    )

  def propose(key, state):
    del state
    return uniform_indices(key, num_examples, pool_size), True

  def select(key, state, indices, scores):
    state = with_losses(state, scores)
    kept = chances(state, scores)
    slots, g = systematic(key, normalise(kept), batch_size)
    probabilities = pool_size * g / num_examples
    info = {
      'num_scored': jnp.full((), pool_size, jnp.int32),
      'num_kept': jnp.sum(kept),
    }
    draw = Draw(slots, indices[slots], probabilities, probabilities)
    return draw, state, info

  def law(state, scores, indices=None):
    del indices
    kept = chances(with_losses(state, scores), scores)
    uniform = jnp.full((num_examples,), 1 / num_examples, jnp.float32)
    return uniform, normalise(kept)

  return Sampler(init, propose, select, keep_state, law)
