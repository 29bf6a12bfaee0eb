"""Importance sampling inside a uniform pool, switched on while it pays."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from isjax import _validate
from isjax.resampling import resampler, uniform_indices
from isjax.samplers._record_weights import checked_target_law
from isjax.types import Draw, Sampler
from isjax.weights import (
  break_even,
  equivalent_batch_size,
  importance_weights,
  mix_with,
  normalise,
  predicted_cost_ratio,
  score_variance_reduction,
  target_at,
)


class PresampleState(NamedTuple):
  """What the gate knows.

  recent_scores:        f32[B] >= 0, the last B of uniformly proposed examples,
                        times N r_i / R under record weights.
  recent_weights:       f32[B] >= 0, their importance weights against the
                        uniform law; 0 where there is no score yet.
  tau_sum:              f32[], exponential moving average of tau from 0.
  tau_share:            f32[] in [0, 1), what that average would be had every
                        tau been 1; tau_sum / tau_share has no start-up bias.
  importance_sampled:   bool[], whether the last draw was made by scores.
  target_probabilities: f32[N] r_i/R, or None for 1/N.
  """

  recent_scores: jax.Array
  recent_weights: jax.Array
  tau_sum: jax.Array
  tau_share: jax.Array
  importance_sampled: jax.Array
  target_probabilities: jax.Array | None

  @property
  def tau(self) -> jax.Array:
    """f32[], the gate's estimate of tau; 0 before the first observation."""
    known = self.tau_share > 0
    return jnp.where(
      known, self.tau_sum / jnp.where(known, self.tau_share, 1.0), 0.0
    )


def presample(
  num_examples: int,
  batch_size: int,
  *,
  pool_size: int | None = None,
  tau_threshold: float | str = 'break_even',
  tau_decay: float = 0.9,
  tau_from: str = 'pool',
  cost_ratio: float | None = None,
  mix: float = 0.1,
  resampling: str = 'multinomial',
  record_weights: jax.Array | None = None,
) -> Sampler:
  """Scores a uniform pool and resamples the batch from it, if that pays.

  With the gate on, B examples are proposed uniformly and scored, and b of them
  are drawn with chances g_i proportional to r_i times the score, so that
  p_i = B g_i / N. With the gate off, the first b proposed are the batch and
  nothing is scored; the rest of the proposal is index 0. The gate is on while
  the moving average of tau has reached its threshold. Tau comes from the pool's
  scores while the gate is on and from the last B scores of the training passes,
  which are free, while it is off; so this step's scores decide about the next
  step only, and the estimate stays unbiased.

  Args:
    num_examples: N.
    batch_size: b.
    pool_size: B >= b; 5 b where None, the paper's CIFAR setting.
    tau_threshold: 'break_even' (tau must outweigh the cost of scoring and the
      pool's own variance), 'paper' ((B + 3b) / 3b), or a number: 0 is always
      on, inf never.
    tau_decay: a_tau in [0, 1), of the moving average.
    tau_from: where tau comes from while the gate is on: 'pool', the scores
      that the batch is drawn by, or 'batch', the importance-weighted scores of
      the training passes. Choose 'batch' where the draw's score is no estimate
      of the gradient's norm (the loss) and the training pass's is.
    cost_ratio: cost of a scored step over that of a uniform one, for
      'break_even'; (B + 3b) / 3b where None. Give a measured one if known.
    mix: share in [0, 1] of the target law in the pool's law, which bounds the
      importance weights by about 1 / mix and keeps examples of score 0 alive.
    resampling: 'multinomial', independent draws; or, as unbiased and with less
      variance, 'stratified' or 'systematic', which draws slot i floor(b g_i) or
      ceil(b g_i) times.
    record_weights: r f32[N] >= 0, the objective's weights.

  Returns:
    A Sampler whose info has `num_scored`, `tau`, `importance_sampled`, and what
    resampling gains at that tau: `equivalent_batch_size` and
    `predicted_cost_ratio`, whether it is on or not.

  Raises:
    ValueError: on a bad argument.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, Algorithm 1.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  pool_size = 5 * batch_size if pool_size is None else pool_size
  _validate.positive_integers(pool_size=pool_size)
  if pool_size < batch_size:
    raise ValueError(
      f'pool_size must be at least batch_size, {batch_size}; got {pool_size}.'
    )
  _validate.fractions(mix=mix)
  _validate.decays(tau_decay=tau_decay)
  _validate.one_of(('pool', 'batch'), tau_from=tau_from)
  draw_slots = resampler(resampling)
  if cost_ratio is None:
    cost_ratio = (pool_size + 3 * batch_size) / (3 * batch_size)
  threshold = _threshold(tau_threshold, pool_size, batch_size, cost_ratio)
  target = checked_target_law(record_weights, num_examples)

  def relative_target(state, indices):
    """N pi_i: 1 without record weights."""
    pi = target_at(state.target_probabilities, indices, num_examples)
    return num_examples * pi

  def is_on(state):
    return state.tau >= threshold

  def pool_law(state, indices, scores):
    relative = relative_target(state, indices)
    return mix_with(normalise(relative * scores), normalise(relative), mix)

  def init(key):
    del key
    return PresampleState(
      recent_scores=jnp.zeros((pool_size,), jnp.float32),
      recent_weights=jnp.zeros((pool_size,), jnp.float32),
      tau_sum=jnp.zeros((), jnp.float32),
      tau_share=jnp.zeros((), jnp.float32),
      importance_sampled=jnp.zeros((), bool),
      target_probabilities=target,
    )

  def propose(key, state):
    return uniform_indices(key, num_examples, pool_size), is_on(state)

  def resample(key, state, indices, scores):
    g = pool_law(state, indices, scores)
    slots, g_drawn = draw_slots(key, g, batch_size)
    recent = state.recent_scores, state.recent_weights
    if tau_from == 'pool':
      recent = relative_target(state, indices) * scores, jnp.ones_like(scores)
    return slots, pool_size * g_drawn / num_examples, *recent

  def take_first(key, state, indices, scores):
    del key, indices, scores
    slots = jnp.arange(batch_size, dtype=jnp.int32)
    probabilities = jnp.full((batch_size,), 1 / num_examples, jnp.float32)
    return slots, probabilities, state.recent_scores, state.recent_weights

  def select(key, state, indices, scores):
    on = is_on(state)
    pool = jnp.maximum(state.tau, 1), batch_size, pool_size
    info = {
      'num_scored': jnp.where(on, pool_size, 0),
      'tau': state.tau,
      'equivalent_batch_size': equivalent_batch_size(*pool),
      'predicted_cost_ratio': predicted_cost_ratio(*pool, cost_ratio),
      'importance_sampled': on.astype(jnp.float32),
    }
    slots, probabilities, recent_scores, recent_weights = lax.cond(
      on, resample, take_first, key, state, indices, scores
    )
    drawn = indices[slots]
    pi = target_at(state.target_probabilities, drawn, num_examples)
    state = state._replace(
      recent_scores=recent_scores,
      recent_weights=recent_weights,
      importance_sampled=on,
    )
    return Draw(slots, drawn, probabilities, pi), state, info

  def observe(state, draw, observation):
    scores = relative_target(state, draw.indices) * observation.scores
    weights = importance_weights(draw.probabilities, 1 / num_examples)
    recent_scores = _append(state.recent_scores, scores)
    recent_weights = _append(state.recent_weights, weights)
    if tau_from == 'pool':
      keep = state.importance_sampled
      recent_scores = jnp.where(keep, state.recent_scores, recent_scores)
      recent_weights = jnp.where(keep, state.recent_weights, recent_weights)
    tau = score_variance_reduction(recent_scores, recent_weights)
    return state._replace(
      recent_scores=recent_scores,
      recent_weights=recent_weights,
      tau_sum=tau_decay * state.tau_sum + (1 - tau_decay) * tau,
      tau_share=tau_decay * state.tau_share + (1 - tau_decay),
    )

  def law(state, scores, indices=None):
    if indices is None and target is not None:
      raise ValueError(
        'under record weights the law of a pool depends on who is in it: pass '
        'indices, the proposal i32[B].'
      )
    if indices is None:
      indices = jnp.zeros((pool_size,), jnp.int32)
    first = jnp.arange(pool_size) < batch_size
    return (
      jnp.full((num_examples,), 1 / num_examples, jnp.float32),
      jnp.where(
        is_on(state), pool_law(state, indices, scores), first / batch_size
      ),
    )

  return Sampler(init, propose, select, observe, law)


def _threshold(
  tau_threshold: float | str,
  pool_size: int,
  batch_size: int,
  cost_ratio: float,
) -> float | jax.Array:
  """The number that `tau_threshold` stands for."""
  if not isinstance(tau_threshold, str):
    _validate.non_negative(tau_threshold=tau_threshold)
    return tau_threshold
  _validate.one_of(('break_even', 'paper'), tau_threshold=tau_threshold)
  if tau_threshold == 'paper':
    return (pool_size + 3 * batch_size) / (3 * batch_size)
  return break_even(pool_size, batch_size, cost_ratio)


def _append(recent: jax.Array, values: jax.Array) -> jax.Array:
  """The last B of the recent values and the new ones."""
  return jnp.concatenate([recent, values])[values.shape[0] :]
