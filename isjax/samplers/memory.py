"""Importance sampling from scores remembered of all examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import _validate, alias, sum_tree
from isjax._in_place import after, when
from isjax.alias import AliasTable
from isjax.metrics import class_mass
from isjax.resampling import uniform_indices
from isjax.samplers._record_weights import checked_target_law
from isjax.sum_tree import SumTree
from isjax.types import Draw, Observation, Sampler
from isjax.weights import (
  equivalent_batch_size,
  importance_weights,
  mix_with,
  predicted_cost_ratio,
  target_at,
)

_MOMENT_DECAY = 0.99  # of the second moments that tell whether sampling pays
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
# The score of an example, from the average m of what its visits showed.
_SCORES = {
  'score': lambda m: m,
  'loss': lambda m: m,
  'p_sgd': lambda m: 1 - m,
  'c_sgd': lambda m: m * (1 - m),
}


class MemoryState(NamedTuple):
  """What is remembered, and what is drawn from.

  remembered:           f32[N], average of what each example showed when it was
                        trained on; 0 before its first visit.
  visits:               i32[N], how often each was trained on.
  last_scored:          i32[N], the step of its last visit; 0 before the first.
  step:                 i32[], steps made.
  source:               what the next draws come from: an AliasTable, or a
                        SumTree, of all scores.
  mix:                  f32[] in (0, 1], the share of the target law in the next
                        draws: 1 in the warm-up and while switched off.
  second_moments:       f32[2] >= 0, moving averages of the score's second
                        moment under the target law and under the memory's.
  target_probabilities: f32[N] r_i/R, or None for 1/N.
  target_table:         AliasTable of r_i/R, or None for 1/N.
  """

  remembered: jax.Array
  visits: jax.Array
  last_scored: jax.Array
  step: jax.Array
  source: AliasTable | SumTree
  mix: jax.Array
  second_moments: jax.Array
  target_probabilities: jax.Array | None
  target_table: AliasTable | None

  @property
  def tau(self) -> jax.Array:
    """f32[], root of the ratio of the second moments; 1 before the first."""
    target, sampled = self.second_moments
    known = sampled > 0
    return jnp.sqrt(jnp.where(known, target / jnp.where(known, sampled, 1), 1))

  @property
  def probabilities(self) -> jax.Array:
    """f32[N], the law of the next draws."""
    tree = isinstance(self.source, SumTree)
    remembered = (sum_tree if tree else alias).probabilities(self.source)
    target = self.target_probabilities
    if target is None:
      target = 1 / remembered.shape[0]
    return mix_with(remembered, target, self.mix)


def memory(
  num_examples: int,
  batch_size: int,
  *,
  remember: str = 'score',
  decay: float | str = 0.0,
  power: float = 1.0,
  pressure: float | None = None,
  mix: float = 0.1,
  rebuild_every: int | None = None,
  warmup_steps: int = 0,
  initial_score: float = 1.0,
  auto_off: bool = False,
  record_weights: jax.Array | None = None,
) -> Sampler:
  """Draws from the scores that the training passes left behind, for nothing.

  Each training pass refreshes what is remembered of its own examples; no
  example is scored for the draw. A score may be old, but the law that is drawn
  from is known, so the weighted estimate is unbiased however stale it is. A
  share `mix` of the draws comes from the target law, so that every example is
  revisited and no importance weight exceeds 1 / mix.

  An example drawn several times in a batch counts as often, with the mean of
  what it showed. What is not finite is not remembered.

  Args:
    num_examples: N.
    batch_size: b.
    remember: what is averaged over an example's visits, and the score s made
      of it: 'score' or 'loss' of the training pass; 'p_sgd' 1 - m or 'c_sgd'
      m (1 - m), where m averages the probability of its label, for which the
      step needs statistics={'label_probability': metrics.label_probability}.
    decay: in [0, 1), of a moving average, 0 for the last visit alone; or 'mean'
      for the mean of all visits.
    power: alpha >= 0; the law is proportional to r s^alpha (Schaul et al.).
    pressure: s_e >= 1; the law goes by rank instead of score, and falls by this
      factor from the largest score to the smallest, as much at each rank
      (Loshchilov & Hutter). That sorts all scores: rebuild_every is needed.
    mix: share in (0, 1] of the target law.
    rebuild_every: R, steps between two alias tables, each made of all scores in
      O(N); None: a sum tree takes over the new scores at every step, in
      O(b log N).
    warmup_steps: steps drawn from the target law before the memory is used.
    initial_score: s >= 0 of an example before its first visit; a large one has
      it visited soon.
    auto_off: whether to draw from the target law while the memory does not pay:
      while the observed score has the larger second moment under its law.
    record_weights: r f32[N] >= 0, the objective's weights.

  Returns:
    A Sampler whose info has `num_scored` 0; `tau`, the root of the ratio of the
    score's second moments under the target law and under the memory's, as the
    training passes see them, staleness included; `equivalent_batch_size` and
    `predicted_cost_ratio` for it; and `importance_sampled`.

  Raises:
    ValueError: on a bad argument; in observe, where the statistic is missing.

  Source: Schaul et al. (2016), arXiv:1511.05952, section 3; Loshchilov & Hutter
    (2016), arXiv:1511.06343, section 4; Chang et al. (2017), arXiv:1704.07433,
    for p_sgd and c_sgd.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  _validate.one_of(_SCORES, remember=remember)
  _validate.non_negative(
    power=power, warmup_steps=warmup_steps, initial_score=initial_score
  )
  _validate.finite(power=power, initial_score=initial_score)
  _validate.positive(mix=mix)
  _validate.fractions(mix=mix)
  _check_averages(decay, pressure, rebuild_every)
  target = checked_target_law(record_weights, num_examples)
  source = sum_tree if rebuild_every is None else alias

  def to_law(remembered, visits, pi):
    """What the memory's law is proportional to."""
    scores = jnp.maximum(_SCORES[remember](remembered), 0)
    scores = jnp.where(visits > 0, scores, initial_score) ** power
    if pressure is not None:
      scores = _by_rank(scores, pressure)
    return num_examples * pi * scores

  def law_of_all(state):
    pi = 1 / num_examples if target is None else state.target_probabilities
    return to_law(state.remembered, state.visits, pi)

  def init(key):
    del key
    state = MemoryState(
      remembered=jnp.zeros((num_examples,), jnp.float32),
      visits=jnp.zeros((num_examples,), jnp.int32),
      last_scored=jnp.zeros((num_examples,), jnp.int32),
      step=jnp.zeros((), jnp.int32),
      source=None,
      mix=jnp.asarray(1 if warmup_steps > 0 else mix, jnp.float32),
      second_moments=jnp.zeros((2,), jnp.float32),
      target_probabilities=target,
      target_table=None if target is None else alias.build(target),
    )
    return state._replace(source=source.build(law_of_all(state)))

  def propose(key, state):
    memory_key, target_key, choice_key = jax.random.split(key, 3)
    shape = (batch_size,)
    sample = (
      alias.sample_with_probabilities if source is alias else sum_tree.sample
    )
    remembered, _ = sample(memory_key, state.source, shape)
    if target is None:
      others = uniform_indices(target_key, num_examples, batch_size)
    else:
      others = alias.sample(target_key, state.target_table, shape)
    from_target = jax.random.uniform(choice_key, shape) < state.mix
    return jnp.where(from_target, others, remembered), False

  def chances(state, indices, share):
    """Law with a share of the target's, and the target law."""
    pi = target_at(state.target_probabilities, indices, num_examples)
    remembered = source.probabilities_at(state.source, indices)
    return mix_with(remembered, pi, share), pi

  def select(key, state, indices, scores):
    del key, scores
    probabilities, pi = chances(state, indices, state.mix)
    slots = jnp.arange(batch_size, dtype=jnp.int32)
    info = {
      'num_scored': jnp.zeros((), jnp.int32),
      'tau': state.tau,
      'equivalent_batch_size': equivalent_batch_size(state.tau, batch_size),
      'predicted_cost_ratio': predicted_cost_ratio(state.tau, batch_size),
      'importance_sampled': (state.mix < 1).astype(jnp.float32),
    }
    return Draw(slots, indices, probabilities, pi), state, info

  def remembered_after(state, indices, values, before, visits):
    """Averages with the new values in, whatever their multiplicity."""
    now = visits[indices]
    rate = 1 / now if decay == 'mean' else (1 - decay) / (now - before)
    rate = jnp.where(before > 0, rate, 1 / now)
    old = state.remembered[indices]
    change = jnp.where(jnp.isfinite(values), rate * (values - old), 0)
    return state.remembered.at[indices].add(change)

  def observe(state, draw, observation):
    values = _observed(remember, observation)
    law, _ = chances(state, draw.indices, mix)
    before = state.visits[draw.indices]
    read = draw.probabilities, law, before
    indices, step = after(read, (draw.indices, state.step + 1))
    visits = state.visits.at[indices].add(1)
    moments = _moving_average(
      state.second_moments, _second_moments(draw, law, observation)
    )
    state = state._replace(
      remembered=remembered_after(state, indices, values, before, visits),
      visits=visits,
      last_scored=state.last_scored.at[indices].set(step),
      step=step,
      second_moments=moments,
    )
    off = step < warmup_steps
    if auto_off:
      off |= state.tau < 1
    state = state._replace(mix=jnp.where(off, 1, mix).astype(jnp.float32))
    return refreshed(state, indices)

  def refreshed(state, indices):
    """The source, with the scores of now."""
    if rebuild_every is None:
      pi = target_at(state.target_probabilities, indices, num_examples)
      law = to_law(state.remembered[indices], state.visits[indices], pi)
      return state._replace(source=sum_tree.update(state.source, indices, law))
    return when(
      state.step % rebuild_every == 0,
      lambda s: s._replace(source=alias.build(law_of_all(s))),
      state,
    )

  def law(state, scores, indices=None):
    del scores, indices
    slots = jnp.full((batch_size,), 1 / batch_size, jnp.float32)
    return state.probabilities, slots

  return Sampler(init, propose, select, observe, law)


def diagnostics(
  state: MemoryState,
  *,
  labels: jax.Array | None = None,
  num_classes: int | None = None,
) -> dict[str, jax.Array]:
  """Returns what the scalars of a step do not show.

  Args:
    state: of `memory`.
    labels: i32[N] in [0, K), for `class_mass`.
    num_classes: K, with labels.

  Returns:
    visits:             i32[N], how often each example was trained on.
    steps_since_scored: f32[5], age of the stored scores in steps: least,
                        quartiles, largest; since the start where there is none.
    class_mass:         f32[K], the chance of each class in the next draws; only
                        with labels.
  """
  ages = (state.step - state.last_scored).astype(jnp.float32)
  vectors = {
    'visits': state.visits,
    'steps_since_scored': jnp.quantile(ages, jnp.array(_QUANTILES)),
  }
  if labels is not None:
    mass = class_mass(state.probabilities, labels, num_classes)
    vectors['class_mass'] = mass
  return vectors


def _check_averages(
  decay: float | str, pressure: float | None, rebuild_every: int | None
) -> None:
  if isinstance(decay, str):
    _validate.one_of(('mean',), decay=decay)
  else:
    _validate.decays(decay=decay)
  if rebuild_every is not None:
    _validate.positive_integers(rebuild_every=rebuild_every)
  if pressure is None:
    return
  _validate.finite(pressure=pressure)
  if pressure < 1:
    raise ValueError(f'pressure must be at least 1; got {pressure}.')
  if rebuild_every is None:
    raise ValueError(
      f'pressure, here {pressure}, needs the ranks of all scores, which a sum '
      'tree does not know: give rebuild_every, such as 100.'
    )


def _by_rank(scores: jax.Array, pressure: float) -> jax.Array:
  """s_e^(-rank/N), rank 0 for the largest score; ties by position."""
  size = scores.shape[0]
  order = jnp.argsort(-scores)
  law = pressure ** -(jnp.arange(size, dtype=jnp.float32) / size)
  return jnp.zeros_like(scores).at[order].set(law)


def _observed(remember: str, observation: Observation) -> jax.Array:
  """What a training pass showed of its examples, f32[b]."""
  if remember in ('score', 'loss'):
    losses, scores = observation.losses, observation.scores
    return scores if remember == 'score' else losses
  if 'label_probability' not in observation.statistics:
    raise ValueError(
      f'remember={remember!r} needs the probability of the label: give '
      "make_train_step statistics={'label_probability': "
      'metrics.label_probability}.'
    )
  return observation.statistics['label_probability']


def _second_moments(
  draw: Draw, law: jax.Array, observation: Observation
) -> jax.Array:
  """The score's second moment under the target law and under another one.

  f32[2], each estimated without bias from the draw, whatever its law.
  """
  pi = draw.target_probabilities
  squares = importance_weights(draw.probabilities, pi) * jnp.square(
    observation.scores
  )
  return jnp.stack([jnp.mean(squares), jnp.mean(squares * (pi / law))])


def _moving_average(average: jax.Array, values: jax.Array) -> jax.Array:
  """Without correction for its start, which cancels in the ratio."""
  new = _MOMENT_DECAY * average + (1 - _MOMENT_DECAY) * values
  return jnp.where(jnp.all(jnp.isfinite(values)), new, average)
