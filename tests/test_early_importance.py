"""samplers/early_importance.py: the window, the law made of it, its freeze."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from isjax import importance_weighted, make_train_step, metrics
from isjax.samplers import early_importance, importance_ranks
from isjax.samplers.early_importance import _class_mass
from isjax.step import init_train_state
from isjax.types import Batch, Draw, Observation

N, B, EPOCHS = 7, 4, 2
WINDOW = 4  # passes that two epochs take: ceil(14 / 4)
RECORDS = (1.0, 10.0, 0.0, 3.0, 1.0, 5.0, 2.0)
LABELS = (0, 2, 0, 0, 2, 0, 2)  # none of class 1


@functools.cache
def program(score, **options):
  """A sampler, its first state, and a training pass that shows values."""
  options = {k: np.array(v) if k in _ARRAYS else v for k, v in options.items()}
  sampler = early_importance(N, B, warmup_epochs=EPOCHS, score=score, **options)

  @jax.jit
  def observe(state, indices, values):
    other = jnp.full((B,), jnp.nan)  # what the score does not go by
    statistics = {'label_probability': other, 'error': other}
    scores = other
    if score == 'el2n':
      scores = values
    else:
      name = 'error' if score == 'forgetting' else 'label_probability'
      statistics[name] = values
    draw = Draw(indices, indices, jnp.full((B,), 1 / N), jnp.full((B,), 1 / N))
    return sampler.observe(state, draw, Observation(other, scores, statistics))

  def seen(state, indices, values):
    return observe(state, jnp.asarray(indices), jnp.asarray(values, 'float32'))

  return sampler, sampler.init(jax.random.key(0)), seen


_ARRAYS = ('record_weights', 'labels')


def batches(score='focal', seed=0):
  """A window with duplicates in a batch, in which the last is never seen."""
  rng = np.random.default_rng(seed)
  indices = rng.integers(0, N - 1, (WINDOW, B))
  indices[:2] = [[0, 1, 2, 3], [4, 4, 4, 5]]
  values = rng.random((WINDOW, B)).astype(np.float32)
  if score == 'forgetting':
    values = (values > 0.5).astype(np.float32)
    values[0] = 0
  return indices, values


def law_of(sampler, state):
  return np.asarray(sampler.law(state, None)[0], np.float64)


def shown(indices, values):
  """What each example showed, float64."""
  return [np.asarray(values, np.float64)[indices == i] for i in range(N)]


def test_moments_are_those_of_numpy():
  """Count, mean and squares after each batch, duplicates in it included."""
  _, state, seen = program(score='focal')
  indices, values = batches()
  assert max(np.bincount(row).max() for row in indices) == 3
  for step in range(WINDOW):
    state = seen(state, indices[step], values[step])
    so_far = shown(indices[: step + 1], values[: step + 1])
    np.testing.assert_array_equal(state.shown.visits, [len(x) for x in so_far])
    for i, x in enumerate(so_far):
      mean, squares = (x.mean(), len(x) * x.var()) if len(x) else (0, 0)
      np.testing.assert_allclose(state.shown.mean[i], mean, 1e-5)
      np.testing.assert_allclose(state.shown.squares[i], squares, 1e-4, 1e-6)


def forgotten(indices, errors):
  """Events in plain Python; a batch's draws of an example count as one."""
  events, wrong = np.zeros(N), dict.fromkeys(range(N), True)
  for at, values in zip(indices, errors, strict=True):
    for i in set(at):
      now = values[at == i].max() > 0
      events[i] += now and not wrong[i]
      wrong[i] = now
  return events


SCORES = {
  'focal': lambda x: 1 - x.mean(),
  'confusion': lambda x: x.mean() * (1 - x.mean()),
  'std': np.std,
  'el2n': np.mean,
}


def powers(score, indices, values, power=1.0):
  """s^power, float64; the last example's is the mean of the others."""
  if score == 'forgetting':
    scores = forgotten(indices, values)[:-1] ** power
  else:
    visits = shown(indices, values)[:-1]
    scores = np.array([SCORES[score](x) for x in visits]) ** power
  assert scores.max() > 1.5 * scores.min()
  return np.append(scores, scores.mean())


@pytest.mark.parametrize(
  'options',
  [
    {'score': 'focal'},
    {
      'score': 'confusion',
      'power': 2.0,
      'mix': 0.5,
      'record_weights': RECORDS,
    },
    {'score': 'std', 'by': 'class', 'labels': LABELS},
    {
      'score': 'el2n',
      'power': 0.5,
      'mix': 0.0,
      'by': 'class',
      'labels': LABELS,
      'record_weights': RECORDS,
    },
    {'score': 'forgetting'},
  ],
  ids=lambda options: '-'.join(options) + '-' + options['score'],
)
def test_the_frozen_law_is_the_formula(options):
  """(1 - mix) r s^power / sum + mix r/R, at the window's end, not before.

  By class, s is replaced by its class's mean under r: a class then has its mass
  of r s, and its examples are as likely as r is large.
  """
  sampler, state, seen = program(**options)
  score, mix = options['score'], options.get('mix', 0.1)
  r = np.array(options.get('record_weights', np.ones(N)))
  pi = r / r.sum()
  indices, values = batches(score)
  for row in zip(indices, values, strict=True):
    np.testing.assert_allclose(law_of(sampler, state), pi, rtol=1e-6)
    state = seen(state, *row)
  s = powers(score, indices, values, options.get('power', 1.0))
  law = pi * s
  if 'labels' in options:
    for k in (0, 2):
      inside = np.array(LABELS) == k
      law[inside] = law[inside].sum() * r[inside] / r[inside].sum()
  expected = (1 - mix) * law / law.sum() + mix * pi
  np.testing.assert_allclose(law_of(sampler, state), expected, rtol=2e-5)
  target = state.target_probabilities
  np.testing.assert_allclose(1 / N if target is None else target, pi, 1e-6)


@pytest.mark.parametrize(
  'options',
  [
    {'score': 'focal', 'record_weights': RECORDS, 'mix': 0.5, 'power': 2.0},
    {'score': 'std', 'by': 'class', 'labels': LABELS},
    {'score': 'forgetting'},
  ],
  ids=lambda options: options['score'],
)
def test_ranks_are_the_mean_ranks_of_scipy(options):
  """(rank - 1/2) / N, ties sharing theirs, at the window's end; 1/2 before."""
  _, state, seen = program(ranked=True, **options)
  everyone = jnp.arange(N)
  indices, values = batches(options['score'])
  for row in zip(indices, values, strict=True):
    np.testing.assert_array_equal(importance_ranks(state, everyone), 0.5)
    state = seen(state, *row)
  s = powers(options['score'], indices, values, options.get('power', 1.0))
  if 'labels' in options:
    means = [s[np.array(LABELS) == k].mean() for k in (0, 2)]
    s = np.where(np.array(LABELS) == 2, means[1], means[0])
  expected = (stats.rankdata(s) - 0.5) / N
  assert len(set(expected)) < N or options['score'] == 'focal'
  for ranks in (importance_ranks, jax.jit(importance_ranks)):
    got = ranks(state, everyone[::-1])
    np.testing.assert_allclose(got, expected[::-1], rtol=1e-6)
  for row in zip(*batches(options['score'], seed=1), strict=True):
    state = seen(state, *row)
  np.testing.assert_array_equal(importance_ranks(state, everyone[::-1]), got)


def test_ranks_must_be_asked_for():
  """Of a sampler that keeps none, and of another one; with the remedy."""
  _, state, _ = program(score='focal')
  for other in (state, ()):
    with pytest.raises(ValueError, match=r'early_importance\(..., ranked=True'):
      importance_ranks(other, jnp.arange(2))


def test_a_class_has_its_share_of_partial_sums():
  """To 1e-4 for a million examples, where one running sum is off by .01."""
  rng = np.random.default_rng(0)
  labels = (rng.random(1_000_000) < 0.01).astype(np.int32)
  law = rng.random(labels.size).astype(np.float32) / labels.size
  np.testing.assert_allclose(
    _class_mass(law, jnp.asarray(labels), 3),
    np.bincount(labels, law.astype(np.float64), 3),
    rtol=1e-4,
  )


@pytest.mark.parametrize('score', ['focal', 'forgetting'])
def test_after_the_window_nothing_is_learnt(score):
  """What is observed then leaves the source and the visits as they are."""
  _, state, seen = program(score=score)
  for row in zip(*batches(score), strict=True):
    state = seen(state, *row)
  for row in zip(*batches(score, seed=1), strict=True):
    later = seen(state, *row)
    assert later.step == state.step + 1
    for field in ('source', 'shown'):
      jax.tree.map(
        np.testing.assert_array_equal,
        getattr(later, field),
        getattr(state, field),
      )
    state = later


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_counted(bad):
  """Neither in the visits nor in the mean; the others of the batch are."""
  _, state, seen = program(score='focal')
  state = seen(state, [0, 1, 2, 2], [0.5, bad, bad, 0.25])
  np.testing.assert_array_equal(state.shown.visits, [1, 0, 1, 0, 0, 0, 0])
  np.testing.assert_array_equal(state.shown.mean, [0.5, 0, 0.25, 0, 0, 0, 0])
  np.testing.assert_array_equal(state.shown.squares, np.zeros(N))


def test_duplicates_in_a_batch_forget_once():
  """Wrong if any is, whatever the order; the first visit is no forgetting."""
  _, state, seen = program(score='forgetting')
  for at, errors in (
    ([0, 1, 2, 2], [1, 0, 0, 0]),  # 0 is wrong, but was never right
    ([0, 1, 2, 2], [0, 1, 1, 1]),  # 1 and 2 are forgotten, once each
    ([0, 0, 1, 1], [1, 0, 0, 1]),  # 0 is forgotten; 1 stays wrong
    ([0, 1, 1, 2], [1, 0, 0, 1]),  # 0 and 2 stay wrong
  ):
    state = seen(state, at, errors)
  np.testing.assert_array_equal(state.shown.events[:4], [1, 1, 1, 0])
  np.testing.assert_array_equal(state.shown.wrong[:4], [1, 0, 1, 1])
  np.testing.assert_array_equal(state.shown.visits[:4], [5, 6, 5, 0])


@pytest.mark.parametrize('value', [1.0, np.nan])
def test_scores_that_say_nothing_give_the_uniform_law(value):
  """All zero (every label certain), or none at all."""
  sampler, state, seen = program(score='focal')
  for at in batches()[0]:
    state = seen(state, at, np.full(B, value))
  assert state.step == WINDOW
  np.testing.assert_allclose(law_of(sampler, state), 1 / N, rtol=1e-6)


SHOW = (0.0, 0.9, 0.5, 0.99, 0.7, 0.2, 0.95)


@functools.cache
def runner(draws):
  """A sampler and its run, in which each example shows its value of SHOW."""
  sampler = early_importance(N, B, warmup_epochs=EPOCHS, mix=0.2, draws=draws)

  def step(state, key):
    propose_key, select_key = jax.random.split(key)
    indices, needs_scores = sampler.propose(propose_key, state)
    assert needs_scores is False
    draw, state, info = sampler.select(select_key, state, indices, None)
    values = jnp.array(SHOW)[draw.indices]
    observation = Observation(values, values, {'label_probability': values})
    state = sampler.observe(state, draw, observation)
    return state, (draw, info['importance_sampled'])

  scan = jax.jit(lambda state, keys: lax.scan(step, state, keys))
  return sampler, scan


def test_permutations_and_then_epochs_of_the_frozen_law(key):
  """Each example once an epoch; then floor or ceil of N p_i times.

  The window ends two draws into its third epoch, and the frozen law starts with
  an epoch of its own.
  """
  sampler, scan = runner('epoch')
  keys = jax.random.split(key, WINDOW + 28)
  state, (draws, sampled) = scan(sampler.init(key), keys)
  np.testing.assert_array_equal(sampled, [0] * WINDOW + [1] * 28)
  indices = np.asarray(draws.indices)
  window = indices[:WINDOW].ravel()[: EPOCHS * N].reshape(EPOCHS, N)
  np.testing.assert_array_equal(np.sort(window, 1), [np.arange(N)] * EPOCHS)
  law = law_of(sampler, state)
  s = 1 - np.array(SHOW)
  np.testing.assert_allclose(law, 0.8 * s / s.sum() + 0.2 / N, rtol=1e-5)
  epochs = indices[WINDOW:].reshape(16, N)
  assert len({tuple(epoch) for epoch in epochs}) == 16
  high, low = np.asarray(state.source.table.mass).T  # of N p_i 2^32
  for epoch in epochs:
    counts = np.bincount(epoch, minlength=N)
    assert ((counts == high) | (counts == high + (low > 0))).all()
  reported = np.where(
    np.arange(len(keys))[:, None] < WINDOW, 1 / N, law[indices]
  )
  np.testing.assert_allclose(draws.probabilities, reported, rtol=1e-6)
  np.testing.assert_allclose(draws.target_probabilities, 1 / N, rtol=1e-6)


def test_frozen_epochs_go_by_the_runs_key(key):
  """Runs alike but for the key of their first state part at the freeze."""
  sampler, scan = runner('epoch')
  keys = jax.random.split(key, WINDOW + 28)
  firsts = set()
  for seed in range(4):
    _, (draws, _) = scan(sampler.init(jax.random.key(seed)), keys)
    firsts.add(tuple(np.asarray(draws.indices)[WINDOW : WINDOW + 2].ravel()))
  assert len(firsts) == 4


def test_independent_draws_follow_the_frozen_law(key):
  """Chi-square after the window, and counts that no epoch has."""
  sampler, scan = runner('independent')
  keys = jax.random.split(key, WINDOW + 700)
  state, (draws, _) = scan(sampler.init(key), keys)
  first = np.asarray(draws.indices[:WINDOW]).ravel()
  np.testing.assert_array_equal(np.sort(first[:N]), np.arange(N))
  law = law_of(sampler, state)
  indices = np.asarray(draws.indices[WINDOW:])
  counts = np.bincount(indices.ravel(), minlength=N)
  assert stats.chisquare(counts, counts.sum() * law / law.sum()).pvalue > 1e-3
  often = (indices.reshape(-1, N) == 0).sum(1)
  assert often.max() > np.ceil(N * law[0])
  np.testing.assert_allclose(
    draws.probabilities[WINDOW:], law[indices], rtol=1e-6
  )


@pytest.mark.parametrize(
  ('score', 'name'), [('focal', 'label_probability'), ('forgetting', 'error')]
)
def test_a_missing_statistic_is_named(score, name):
  """With what to give the step, which then takes it."""
  sampler, _, _ = program(score=score)
  tx = importance_weighted(optax.sgd(0.1), N, exponent=0.0)
  data = Batch(jnp.ones((N, 2)), jnp.zeros(N, jnp.int32))
  params = jnp.zeros((2, 3))
  state = init_train_state(jax.random.key(0), params, {}, sampler, tx)

  def apply_fn(params, model_state, inputs, *, train, rngs):
    del train, rngs
    return inputs @ params, model_state

  def trace(**options):
    step = make_train_step(
      apply_fn,
      optax.softmax_cross_entropy_with_integer_labels,
      sampler,
      tx,
      score=lambda outputs, _: outputs[:, 0],
      **options,
    )
    return jax.eval_shape(step, state, data)

  with pytest.raises(ValueError, match=rf"{score}.*'{name}': metrics\.{name}"):
    trace()
  _, info = trace(statistics={name: getattr(metrics, name)})
  assert info['importance_sampled'].shape == ()


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    ((4, 5), {}, r'batch_size must be at most num_examples, 4, .* got 5'),
    ((4, 2), {'warmup_epochs': 0.5}, 'warmup_epochs must be .* 1; got 0.5'),
    ((4, 2), {'warmup_epochs': np.inf}, 'warmup_epochs must be a finite'),
    ((4, 2), {'score': 'loss'}, "score must be one of 'focal', 'confusion'"),
    ((4, 2), {'power': -1.0}, 'power must be non-negative; got -1.0'),
    ((4, 2), {'mix': 1.5}, r'mix must be in \[0, 1\]; got 1.5'),
    ((4, 2), {'by': 'label'}, "by must be one of 'example', 'class'"),
    ((4, 2), {'draws': 'alias'}, "draws must be one of 'epoch', 'independent'"),
    ((4, 2), {'by': 'class'}, "labels must be given with by='class'"),
    (
      (4, 2),
      {'by': 'class', 'labels': np.eye(4, dtype=int)},
      r'labels must be one integer per example, \(4,\); got .*argmax',
    ),
    ((4, 2), {'by': 'class', 'labels': np.ones(4)}, r'got float64\[4\]'),
    (
      (4, 2),
      {'by': 'class', 'labels': np.array([0, 1, -1, 0])},
      r'labels must be non-negative; got labels\[2\] = -1',
    ),
  ],
)
def test_bad_options_are_named(arguments, options, message):
  """Argument, value, remedy."""
  with pytest.raises(ValueError, match=message):
    early_importance(*arguments, **options)
