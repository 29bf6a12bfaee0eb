"""Importance estimated once, early in training, and sampled by from then on."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isjax import _validate, alias
from isjax._in_place import after, when
from isjax.metrics import class_mass
from isjax.samplers import _epochs
from isjax.samplers._fixed_law import FixedLawState, fixed_law
from isjax.samplers._record_weights import checked_target_law
from isjax.samplers._visits import (
  Forgetting,
  Moments,
  add_to_forgetting,
  add_to_moments,
  no_forgetting,
  no_moments,
)
from isjax.types import Observation, Sampler
from isjax.weights import mix_with, normalise

_PARTIAL_SUMS = 64  # of a class
# The score of each example, from what its visits showed.
_SCORES = {
  'focal': lambda visits: 1 - visits.mean,
  'confusion': lambda visits: visits.mean * (1 - visits.mean),
  'std': lambda visits: jnp.sqrt(visits.squares / visits.visits),
  'el2n': lambda visits: visits.mean,
  'forgetting': lambda visits: visits.events.astype(jnp.float32),
}


class EarlyImportanceState(NamedTuple):
  """What is drawn from, and what the window has shown so far.

  source: what the next draws come from: epochs of the target law in the window,
          and then of the frozen law.
  shown:  the Moments or the Forgetting of all examples in the window.
  step:   i32[], training passes observed.
  seed:   u32[2], of the first epochs of the frozen law.
  labels: i32[N] where the law goes by class, or None.
  ranks:  f32[N] in [0, 1], of each example's importance; or None.
  """

  source: FixedLawState
  shown: Moments | Forgetting
  step: jax.Array
  seed: jax.Array
  labels: jax.Array | None
  ranks: jax.Array | None

  @property
  def target_probabilities(self) -> jax.Array | None:
    """f32[N] r_i/R, or None for 1/N."""
    return self.source.target_probabilities


def early_importance(
  num_examples: int,
  batch_size: int,
  *,
  warmup_epochs: float = 10.0,
  score: str = 'focal',
  power: float = 1.0,
  mix: float = 0.1,
  by: str = 'example',
  labels: jax.Array | None = None,
  draws: str = 'epoch',
  ranked: bool = False,
  record_weights: jax.Array | None = None,
) -> Sampler:
  """Draws by the importance that a short window of ordinary training showed.

  In the window, batches come off shuffled epochs, and the training passes tell
  how well the model predicts each example. At its end the law is made of that,
  p_i = (1 - mix) s_i^power / sum_j s_j^power + mix / N, and frozen: what is
  observed later changes nothing.

  The target law stays that of the objective, so that exponent 1 of the
  importance weights trains without bias. The method of the source does not
  weight: it shows important examples more often, which is exponent 0.

  Args:
    num_examples: N.
    batch_size: b <= N.
    warmup_epochs: W >= 1, the length of the window; it ends with the training
      pass ceil(W N / b). A tenth of the training is usual.
    score: s, from the visits of the window. With m the mean of the label's
      probability, 'focal' 1 - m, 'confusion' m (1 - m), and 'std' its standard
      deviation: the step needs statistics={'label_probability':
      metrics.label_probability}. 'el2n': the mean of the step's own score,
      which is EL2N where that is the logit-gradient norm of a cross entropy.
      'forgetting': how often it went from right to wrong, so 0 for an example
      never right and, like 'std', after one visit; the step needs
      statistics={'error': metrics.error}.
    power: >= 0, of the score; the gamma of the focal score.
    mix: share in [0, 1] of the target law; with 0 an example of score 0 is
      never drawn again, for which no importance weight makes up.
    by: 'example'; or 'class': the frozen law draws a class in proportion to the
      sum of its scores, and its examples by the target law.
    labels: i32[N] in [0, K), for by='class'; not looked at otherwise.
    draws: in the frozen law, 'epoch', N draws in which each example occurs
      floor(N p_i) or ceil(N p_i) times, in random order; or 'independent'.
    ranked: whether the state has the examples' ranks, for `importance_ranks`:
      4 N bytes, and a sort where the window ends.
    record_weights: r f32[N] >= 0, the objective's weights; the window's epochs
      then show each example floor or ceil of N r_i / R times, and the frozen
      law is proportional to r_i s_i^power, mixed with r/R.

  Returns:
    A Sampler whose info has `num_scored` 0 and `importance_sampled`, 0 in the
    window and 1 after it. Values that are not finite do not count; an example
    that showed no others gets the mean score of the rest. Scores that are all 0
    give the target law.

  Raises:
    ValueError: on a bad argument; in observe, where the statistic is missing.

  Source: Quercia et al. (2023), SGD biased towards early important samples for
    efficient training, and (2025), Focal sampling, as far as their abstracts
    tell; EL2N: Paul et al. (2021), arXiv:2107.07075; forgetting events: Toneva
    et al. (2019), arXiv:1812.05159.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  _epochs.check_length(batch_size, num_examples)
  _validate.finite(warmup_epochs=warmup_epochs, power=power)
  if warmup_epochs < 1:
    raise ValueError(
      f'warmup_epochs must be at least 1; got {warmup_epochs}. An example that '
      'the window does not show has no score.'
    )
  _validate.one_of(_SCORES, score=score)
  _validate.non_negative(power=power)
  _validate.fractions(mix=mix)
  _validate.one_of(('example', 'class'), by=by)
  _validate.one_of(('epoch', 'independent'), draws=draws)
  labels = _checked_labels(labels, num_examples) if by == 'class' else None
  num_classes = None if labels is None else int(jnp.max(labels)) + 1
  target = checked_target_law(record_weights, num_examples)
  window = math.ceil(warmup_epochs * num_examples / batch_size)
  forgets = score == 'forgetting'
  nothing_shown = no_forgetting if forgets else no_moments
  add = add_to_forgetting if forgets else add_to_moments

  def epochs_of(law, target):
    return fixed_law(law, target, batch_size, 'epoch')

  uniform = jnp.ones((num_examples,), jnp.float32)
  warmup = epochs_of(uniform if target is None else target, target)

  def init(key):
    source_key, seed_key = jax.random.split(key)
    return EarlyImportanceState(
      source=warmup.init(source_key),
      shown=nothing_shown(num_examples),
      step=jnp.zeros((), jnp.int32),
      seed=jax.random.bits(seed_key, (2,), jnp.uint32),
      labels=labels,
      ranks=jnp.full((num_examples,), 0.5, jnp.float32) if ranked else None,
    )

  def propose(key, state):
    indices, needs_scores = warmup.propose(key, state.source)
    if draws == 'independent':
      drawn = alias.sample(key, state.source.table, (batch_size,))
      indices = jnp.where(state.step >= window, drawn, indices)
    return indices, needs_scores

  def select(key, state, indices, scores):
    frozen = state.step >= window
    draw, source, info = warmup.select(key, state.source, indices, scores)
    info = info | {'importance_sampled': frozen.astype(jnp.float32)}
    return draw, state._replace(source=source), info

  def freeze(state):
    pi = target_law = state.target_probabilities
    if target_law is None:
      pi = jnp.full((num_examples,), 1 / num_examples, jnp.float32)
    known = state.shown.visits > 0
    scores = jnp.maximum(_SCORES[score](state.shown), 0) ** power
    scores = jnp.where(known, scores, 0)
    mean = jnp.sum(scores) / jnp.maximum(jnp.sum(known), 1)
    scores = jnp.where(known, scores, mean)
    if state.labels is not None:
      mass, share = (
        _class_mass(p, state.labels, num_classes) for p in (pi * scores, pi)
      )
      mean = mass / jnp.where(share > 0, share, 1)
      scores = mean[state.labels]
    law = mix_with(normalise(pi * scores), pi, mix)
    key = jax.random.wrap_key_data(state.seed, impl='threefry2x32')
    return state._replace(
      source=epochs_of(law, target_law).init(key),
      ranks=_ranks(scores) if ranked else None,
    )

  def observe(state, draw, observation):
    values = _shown(score, observation)
    counts = (state.step < window) & jnp.isfinite(values)
    indices = jnp.where(counts, draw.indices, num_examples)
    state = state._replace(
      shown=add(state.shown, indices, values),
      step=after((draw.probabilities,), state.step + 1),
    )
    return when(state.step == window, freeze, state)

  def law(state, scores, indices=None):
    return warmup.law(state.source, scores, indices)

  return Sampler(init, propose, select, observe, law)


def importance_ranks(
  state: EarlyImportanceState, indices: jax.Array
) -> jax.Array:
  """Where the frozen importance of examples stands among all of them.

  It serves `make_train_step` as `augment_by`: with augment.sometimes(augment),
  the more important an example is, the more of its draws are augmented. On
  average over the training set that is half of them, in the window and after
  it. That strength of augmentation goes by importance is an extension of ours;
  the source of `early_importance` does not have it.

  Args:
    state: of a sampler early_importance(..., ranked=True).
    indices: i32[m] in [0, N).

  Returns:
    f32[m] in (0, 1): the share of the training set with a smaller importance,
    and half the share of the equally important, the example among them; 1/2 in
    the window, in which all are. With by='class' the importance is that of the
    class.

  Raises:
    ValueError: for a sampler made without ranked=True.
  """
  if getattr(state, 'ranks', None) is None:
    raise ValueError(
      'importance_ranks needs the state of early_importance(..., ranked=True); '
      f'got a {type(state).__name__} without ranks.'
    )
  return state.ranks[indices]


def _ranks(scores: jax.Array) -> jax.Array:
  """The middle of the ranks that equal scores share, over N; f32[N]."""
  in_order = jnp.sort(scores)
  smaller, up_to = (
    jnp.searchsorted(in_order, scores, side) for side in ('left', 'right')
  )
  return (smaller + up_to).astype(jnp.float32) / (2 * scores.shape[0])


def _checked_labels(labels: jax.Array | None, num_examples: int) -> jax.Array:
  """Returns the labels, if they are one class per example."""
  if labels is None:
    raise ValueError(
      "labels must be given with by='class', one integer per example; got None."
    )
  labels = np.asarray(labels)
  if labels.shape != (num_examples,) or labels.dtype.kind not in 'iu':
    raise ValueError(
      f'labels must be one integer per example, ({num_examples},); got '
      f'{labels.dtype}{list(labels.shape)}. Turn one-hot labels into integers '
      'with argmax.'
    )
  if labels.min() < 0:
    first = int((labels < 0).argmax())
    raise ValueError(
      f'labels must be non-negative; got labels[{first}] = {labels[first]}.'
    )
  return jnp.asarray(labels, jnp.int32)


def _class_mass(
  law: jax.Array, labels: jax.Array, num_classes: int
) -> jax.Array:
  """As `metrics.class_mass`, f32[K], but by partial sums.

  A sum of a million terms in f32, one after the other, is off by a percent.
  """
  column = jnp.arange(labels.shape[0], dtype=jnp.int32) % _PARTIAL_SUMS
  parts = num_classes * _PARTIAL_SUMS
  sums = class_mass(law, labels * _PARTIAL_SUMS + column, parts)
  return jnp.sum(sums.reshape(num_classes, _PARTIAL_SUMS), 1)


def _shown(score: str, observation: Observation) -> jax.Array:
  """What a training pass showed of its examples, f32[b]."""
  if score == 'el2n':
    return observation.scores
  name = 'error' if score == 'forgetting' else 'label_probability'
  if name not in observation.statistics:
    raise ValueError(
      f'score={score!r} needs a statistic: give make_train_step '
      f'statistics={{{name!r}: metrics.{name}}}.'
    )
  return observation.statistics[name]
