"""step.py: the whole step, its costs, its loop and its evaluation."""

import functools
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import metrics, scores
from isjax.models import linen
from isjax.samplers import (
  SAMPLERS,
  early_importance,
  importance_ranks,
  presample,
  uniform,
)
from isjax.step import (
  init_train_state,
  is_slow_to_scan,
  make_eval_step,
  make_loop,
  make_train_step,
)
from isjax.transforms import (
  average_gradient,
  importance_weighted,
  scale_by_importance,
  scale_by_progress,
)
from isjax.types import Batch, take

N, K = 24, 3


def loss_fn(logits, label):
  return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def to_float(inputs):
  return inputs.astype(jnp.float32) / 16


class Linear(nn.Module):
  """The smallest model."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    return nn.Dense(K)(x.reshape(x.shape[0], -1))


class Convolutional(nn.Module):
  """The smallest one with a convolution."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    x = nn.Conv(2, (3, 3))(x)
    return nn.Dense(K)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope='module')
def data():
  """N labelled images of 4x4x1, uint8."""
  rng = np.random.default_rng(0)
  return Batch(
    jnp.asarray(rng.integers(0, 17, (N, 4, 4, 1)), jnp.uint8),
    jnp.asarray(rng.integers(0, K, N), jnp.int32),
  )


@functools.cache
def parameters(model):
  """A module's first parameters and state; made once, so never to donate."""
  return linen.init(model, jax.random.key(1), jnp.ones((1, 4, 4, 1)))


def make(data, sampler, model=None, tx=None, seed=0, **options):
  """A step and its first state."""
  del data
  model = Linear() if model is None else model
  params, model_state = parameters(model)
  tx = importance_weighted(optax.sgd(0.1), N) if tx is None else tx
  step = make_train_step(
    linen.make_apply_fn(model),
    loss_fn,
    sampler,
    tx,
    score=scores.logit_gradient_norm(loss_fn),
    preprocess=to_float,
    **options,
  )
  key = jax.random.key(seed)
  return step, init_train_state(key, params, model_state, sampler, tx)


def assert_equal_trees(got, expected):
  def check(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(a, b)

  jax.tree.map(check, got, expected)


def registered(name):
  """A sampler of the registry, by its defaults."""
  options = {
    'class_balanced': {'labels': jnp.arange(N) % 3},
    'early_importance': {'score': 'el2n'},
  }
  return SAMPLERS[name](N, 4, **options.get(name, {}))


def always_on(**options):
  return presample(N, 4, pool_size=8, tau_threshold=0.0, **options)


KINDS = {
  'uniform': lambda: uniform(N, 4),
  'never': lambda: presample(N, 4, pool_size=8, tau_threshold=float('inf')),
  'always': always_on,
}
COSTS = {'uniform': 12, 'never': 12, 'always': 20}
UNLIMITED = 10**9


@functools.cache
def three_steps(kind):
  """Three steps of a sampler in one program, the budget an argument."""

  def run(state, data, budget):
    step, _ = make(data, KINDS[kind](), budget=budget)
    return make_loop(step, 3)(state, data)

  return jax.jit(run)


def first_state(data, kind):
  return make(data, KINDS[kind]())[1]


def test_a_step_is_the_update_written_out(data):
  """Draw, weights, gradient and sgd by hand give the same parameters."""
  sampler = always_on()
  step, state = make(data, sampler)
  after, _ = jax.jit(step)(state, data)

  key = jax.random.fold_in(state.key, 0)
  propose_key, _, select_key, _ = jax.random.split(key, 4)
  indices, _ = sampler.propose(propose_key, state.sampler_state)
  apply_fn = linen.make_apply_fn(Linear())

  def logits(params, at):
    x = to_float(data.inputs[at])
    return apply_fn(params, {}, x, train=False, rngs=None)[0]

  residuals = jax.nn.softmax(logits(state.params, indices)) - jax.nn.one_hot(
    data.targets[indices], K
  )
  draw, _, _ = sampler.select(
    select_key,
    state.sampler_state,
    indices,
    jnp.linalg.norm(residuals, axis=1),
  )
  weights = 1 / (N * draw.probabilities)

  def objective(params):
    y = data.targets[draw.indices]
    return jnp.mean(weights * loss_fn(logits(params, draw.indices), y))

  gradient = jax.jit(jax.grad(objective))(state.params)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradient)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    after.params,
    expected,
  )


@pytest.mark.parametrize('name', SAMPLERS)
def test_eager_jit_and_scan_agree(name, data):
  """A step by the three routes that a user may take."""
  step, state = make(data, registered(name))
  routes = [jax.jit(step)(state, data)]
  if name == 'presample':  # eager takes long, and this one has all branches
    routes.append(step(state, data))
  scanned, stacked = make_loop(step, 1)(state, data)
  for other, _ in routes:
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
      scanned.params,
      other.params,
    )
  assert scanned.step == 1
  assert stacked['loss'].shape == (1,)


def test_training_lowers_the_loss(data):
  """Two hundred importance-sampled steps on data that can be learnt."""
  labels = (data.inputs[:, 0, 0, 0] > 8).astype(jnp.int32)
  data = data._replace(targets=labels)
  step, state = make(data, always_on())
  evaluate = make_eval_step(
    linen.make_apply_fn(Linear()), loss_fn, preprocess=to_float, batch_size=10
  )
  before = evaluate(state.params, state.model_state, data)['loss']
  state, _ = make_loop(step, 200)(state, data)
  after = evaluate(state.params, state.model_state, data)['loss']
  assert after < 0.5 * before


def test_the_same_seed_repeats_and_a_resumed_run_continues(data):
  """Six steps equal three, a save through numpy, and three more: bitwise."""
  run = three_steps('always')
  half, _ = run(first_state(data, 'always'), data, UNLIMITED)
  whole, _ = run(half, data, UNLIMITED)
  saved = jax.tree.map(np.asarray, half._replace(key=None))
  resumed = jax.tree.map(jnp.asarray, saved)
  resumed = resumed._replace(
    key=jax.random.wrap_key_data(np.asarray(jax.random.key_data(half.key)))
  )
  finished, _ = run(resumed, data, UNLIMITED)
  assert_equal_trees(finished, whole)
  assert not np.array_equal(
    half.params['Dense_0']['kernel'], whole.params['Dense_0']['kernel']
  )


@pytest.mark.parametrize('kind', KINDS)
def test_cost_counts_training_and_scoring(kind, data):
  """3 b a step, and B more for each scored pool."""
  state, stacked = three_steps(kind)(first_state(data, kind), data, UNLIMITED)
  assert state.cost == 3 * COSTS[kind]
  assert state.cost.dtype == jnp.uint32
  np.testing.assert_array_equal(
    stacked['cost'], COSTS[kind] * np.arange(1, 4, dtype=np.uint32)
  )


@pytest.mark.parametrize('budget', [1, 39, 40, 41, 100])
def test_the_budget_is_spent_within_one_step(data, budget):
  """Cost ends in [budget, budget + step); past it nothing changes at all."""
  run, state, valid = three_steps('always'), first_state(data, 'always'), []
  for _ in range(3):
    state, stacked = run(state, data, budget)
    valid.extend(stacked['valid'])
  assert budget <= state.cost < budget + 20
  assert state.cost == 20 * state.step
  np.testing.assert_array_equal(valid, np.arange(9) < int(state.step))
  again, stacked = run(state, data, budget)
  assert not stacked['valid'].any()
  assert_equal_trees(again, state)


def test_rate_seed_and_budget_are_arguments_of_one_program(data):
  """One trace for all, and progress reaches the optimiser."""
  traces = []

  @jax.jit
  def final(rate, seed, budget):
    traces.append(None)
    inner = optax.chain(optax.sgd(rate), scale_by_progress(lambda p: 1 - p))
    step, state = make(
      data,
      uniform(N, 4),
      tx=importance_weighted(inner, N),
      seed=seed,
      budget=budget,
    )
    state, _ = make_loop(step, 6)(state, data)
    return state

  results = [
    final(rate, seed, budget)
    for rate, seed, budget in ((0.1, 0, 60), (0.2, 0, 60), (0.1, 1, 36))
  ]
  assert len(traces) == 1
  assert [int(state.step) for state in results] == [5, 5, 3]
  kernels = [np.asarray(jax.tree.leaves(s.params)[1]) for s in results]
  assert not np.allclose(kernels[0], kernels[1])
  assert not np.allclose(kernels[0], kernels[2])


def test_progress_is_cost_over_budget(data):
  """The rates that the schedule saw, from the parameters' movements."""
  seen = []

  def schedule(progress):
    jax.debug.callback(lambda p: seen.append(float(p)), progress, ordered=True)
    return 1.0

  inner = optax.chain(optax.sgd(0.1), scale_by_progress(schedule))
  step, state = make(
    data, uniform(N, 4), tx=importance_weighted(inner, N), budget=48
  )
  state, _ = make_loop(step, 4)(state, data)
  jax.block_until_ready(state)
  jax.effects_barrier()
  np.testing.assert_allclose(seen, [0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize('threshold', [0.0, float('inf')])
def test_forward_passes_are_made_only_while_the_gate_is_on(data, threshold):
  """Counted at run time: one training pass a step, one scoring pass if on."""
  passes = {True: 0, False: 0}
  apply_fn = linen.make_apply_fn(Linear())

  def counted(params, model_state, inputs, *, train, rngs):
    def count(_):
      passes[train] += 1

    jax.debug.callback(count, inputs[0, 0, 0, 0])
    return apply_fn(params, model_state, inputs, train=train, rngs=rngs)

  sampler = presample(N, 4, pool_size=8, tau_threshold=threshold)
  tx = importance_weighted(optax.sgd(0.1), N)
  step = make_train_step(
    counted,
    loss_fn,
    sampler,
    tx,
    score=scores.logit_gradient_norm(loss_fn),
    preprocess=to_float,
  )
  _, state = make(data, sampler)
  state, _ = make_loop(step, 5)(state, data)
  jax.block_until_ready(state)
  jax.effects_barrier()
  assert passes == {True: 5, False: 5 if threshold == 0 else 0}


def test_the_gate_crosses_both_ways_and_only_then_scores_are_paid(data):
  """Driven by the targets' scale: off, on, off; cost follows exactly."""

  def scaled_loss(output, target):
    return target * jnp.sum(output)

  def run(targets):
    return Batch(jnp.ones((N, 4, 4, 1), jnp.uint8), jnp.asarray(targets))

  sampler = presample(
    N, 4, pool_size=8, tau_threshold=1.4, tau_decay=0.5, mix=0.0
  )
  tx = importance_weighted(optax.sgd(0.0), N)
  model = Linear()
  params, _ = parameters(model)
  passes = {True: 0, False: 0}
  apply_fn = linen.make_apply_fn(model)

  def counted(params, model_state, inputs, *, train, rngs):
    def count(_):
      passes[train] += 1

    jax.debug.callback(count, inputs[0, 0, 0, 0])
    return apply_fn(params, model_state, inputs, train=train, rngs=rngs)

  step = make_train_step(
    counted,
    scaled_loss,
    sampler,
    tx,
    score=scores.logit_gradient_norm(scaled_loss),
  )
  state = init_train_state(jax.random.key(0), params, {}, sampler, tx)
  equal = run(np.ones(N, np.float32))
  peaked = run(np.where(np.arange(N) % 4 == 0, 100.0, 1.0).astype(np.float32))
  course, expected_cost = [], 0
  for phase in (equal, peaked, equal):
    loop = jax.jit(step)
    for _ in range(12):
      before = int(state.cost)
      state, values = loop(state, phase)
      on = bool(values['importance_sampled'])
      course.append(on)
      expected_cost += 20 if on else 12
      assert int(state.cost) - before == (20 if on else 12)
  assert not any(course[:12])
  assert course[12:24].count(True) >= 6
  assert not any(course[-4:])
  assert state.cost == expected_cost
  jax.effects_barrier()
  assert passes == {True: 36, False: course.count(True)}


def test_metrics_estimate_the_training_set_without_bias(data):
  """Averaged over every slot law: many keys, within 4 standard errors."""
  sampler = always_on(mix=0.5)
  step, state = make(
    data, sampler, statistics={'error': metrics.error}, tx=None
  )
  exact = make_eval_step(
    linen.make_apply_fn(Linear()),
    loss_fn,
    preprocess=to_float,
    statistics={'error': metrics.error},
    batch_size=N,
  )(state.params, state.model_state, data)
  values = jax.jit(
    jax.vmap(lambda key: step(state._replace(key=key), data)[1])
  )(jax.random.split(jax.random.key(5), 4000))
  for name in ('loss', 'error'):
    spread = np.std(values[name]) / np.sqrt(4000)
    assert abs(np.mean(values[name]) - exact[name]) < 4 * spread


def test_the_training_pass_sees_the_view_that_was_scored(data):
  """Views of the drawn slots are rows of the scored views."""
  seen = {}

  def augment(key, inputs):
    return inputs + jax.random.normal(key, inputs.shape)

  def apply_fn(params, model_state, inputs, *, train, rngs):
    del rngs
    jax.debug.callback(lambda x: seen.update({train: np.array(x)}), inputs)
    outputs = inputs.reshape(inputs.shape[0], -1)[:, :K] + params['bias']
    return outputs, model_state

  sampler = always_on()
  tx = importance_weighted(optax.sgd(0.1), N)
  params = {'bias': jnp.zeros((1, K))}
  step = jax.jit(
    make_train_step(
      apply_fn,
      loss_fn,
      sampler,
      tx,
      score=scores.logit_gradient_norm(loss_fn),
      preprocess=to_float,
      augment=augment,
    )
  )
  state = init_train_state(jax.random.key(0), params, {}, sampler, tx)
  scored = []
  for _ in range(2):
    state, _ = step(state, data)
    jax.block_until_ready(state)
    jax.effects_barrier()
    rows = seen[True].reshape(4, -1)
    pool = seen[False].reshape(8, -1)
    scored.append(pool)
    for row in rows:
      assert (pool == row[None]).all(1).any()
  assert len(np.unique(scored[0], axis=0)) == 8


def recorded_inputs(model_step, state, data):
  """What each pass of a step or of its halves gets: [(train, inputs)]."""
  seen = []

  def record(train, inputs):
    seen.append((train, np.array(inputs)))

  step = model_step(lambda *args: jax.debug.callback(record, *args))

  def in_halves(state, data):
    proposal, state = step.propose(state, state.step)
    return step.train(state, proposal, take(data, proposal.indices))

  for run in (step, jax.jit(step), in_halves):
    jax.block_until_ready(run(state, data)[0].step)
    jax.effects_barrier()
  return seen


def recording(sampler, record, **options):
  """A step of a linear model that records the inputs of each pass."""

  def apply_fn(params, model_state, inputs, *, train, rngs):
    del rngs
    record(train, inputs)
    return inputs.reshape(inputs.shape[0], -1)[:, :K] + params, model_state

  return make_train_step(
    apply_fn,
    loss_fn,
    sampler,
    importance_weighted(optax.sgd(0.1), N),
    score=scores.logit_gradient_norm(loss_fn),
    preprocess=lambda inputs: inputs.astype(jnp.float32),
    **options,
  )


@pytest.mark.parametrize('kind', ['always', 'uniform'])
def test_augment_is_told_of_its_own_example(kind, data):
  """Input i is full of i, less what it is told, its index, plus 1: all ones.

  In the scoring pass and in the training pass, whole and in halves.
  """
  numbers = jnp.arange(N, dtype=jnp.uint8)
  data = data._replace(inputs=jnp.broadcast_to(numbers, (4, 4, 1, N)).T)
  sampler = KINDS[kind]()

  def step(record):
    return recording(
      sampler,
      record,
      augment=lambda key, inputs, told: inputs - told['index'] + 1,
      augment_by=lambda state, indices: {'index': indices},
    )

  tx = importance_weighted(optax.sgd(0.1), N)
  params = jnp.zeros((1, K))
  state = init_train_state(jax.random.key(0), params, {}, sampler, tx)
  seen = recorded_inputs(step, state, data)
  passes = [True, False] if kind == 'always' else [True]
  assert sorted(train for train, _ in seen) == sorted(3 * passes)
  for _, inputs in seen:
    np.testing.assert_array_equal(inputs, 1)


def test_strength_goes_by_the_ranks_before_the_step(data):
  """In the window 1/2; then the ranks, of examples proposed in it as well."""
  sampler = early_importance(N, 4, warmup_epochs=1, score='el2n', ranked=True)
  seen = []

  def record(train, inputs):
    jax.debug.callback(lambda x: seen.append(np.array(x)[:, 0, 0, 0]), inputs)

  step = recording(
    sampler,
    record,
    augment=lambda key, inputs, strength: jnp.full_like(inputs, strength),
    augment_by=importance_ranks,
  )
  tx = importance_weighted(optax.sgd(0.1), N)
  params = jnp.zeros((1, K)).at[0, 1].set(2.0)
  state = init_train_state(jax.random.key(0), params, {}, sampler, tx)
  whole, propose, train = map(jax.jit, (step, step.propose, step.train))
  expected = []
  for number in range(9):
    if number == 5:  # the last step of the window; the next is made ahead
      ahead, state = propose(state, state.step)
      early, state = propose(state, state.step + 1)
      expected.append(np.full(4, 0.5))
      state, _ = train(state, ahead, take(data, ahead.indices))
      expected.append(importance_ranks(state.sampler_state, early.indices))
      state, _ = train(state, early, take(data, early.indices))
      continue
    indices = propose(state, state.step)[0].indices
    expected.append(importance_ranks(state.sampler_state, indices))
    state, _ = whole(state, data)
  jax.block_until_ready(state.step)
  jax.effects_barrier()
  np.testing.assert_array_equal(seen, expected)
  np.testing.assert_array_equal(seen[:6], 0.5)
  assert len(np.unique(seen[6:])) > 2


def test_what_augment_is_told_needs_an_augment(data):
  """Alone it would do nothing."""
  with pytest.raises(ValueError, match='give augment, too'):
    make(data, uniform(N, 4), augment_by=lambda state, indices: indices)


def test_draw_score_replaces_the_score_of_the_proposal_only(data):
  """The pool is drawn by it; the observation keeps the step's score."""

  def by_index(params, model_state, batch):
    del params, model_state
    return (batch.targets == 0).astype(jnp.float32)

  sampler = always_on(mix=0.0)
  step, state = make(data, sampler, draw_score=by_index)
  data = data._replace(targets=jnp.arange(N, dtype=jnp.int32) % K)
  drawn = []

  def recording(label_loss):
    def loss(output, target):
      jax.debug.callback(lambda t: drawn.append(int(t)), target)
      return label_loss(output, target)

    return loss

  step = make_train_step(
    linen.make_apply_fn(Linear()),
    recording(loss_fn),
    sampler,
    importance_weighted(optax.sgd(0.1), N),
    score=scores.logit_gradient_norm(loss_fn),
    draw_score=by_index,
    preprocess=to_float,
  )
  jax.block_until_ready(jax.jit(step)(state, data))
  jax.effects_barrier()
  assert drawn
  assert set(drawn) == {0}


@pytest.mark.parametrize(
  ('tx', 'message'),
  [
    (optax.sgd(0.1), r'put average_gradient\(\) before'),
    (scale_by_importance(N), 'importance_weighted'),
    (optax.identity(), 'importance_weighted'),
    (
      optax.chain(
        average_gradient(), optax.stateless(lambda u, p: jax.tree.leaves(u))
      ),
      'shaped like the parameters',
    ),
  ],
)
def test_a_transform_that_makes_no_gradient_is_refused(data, tx, message):
  """The error names importance_weighted."""
  step, state = make(data, uniform(N, 4), tx=tx)
  with pytest.raises(ValueError, match=message):
    step(state, data)


def test_a_score_that_is_no_vector_is_refused(data):
  """One number for the whole batch names the shapes."""
  step, state = make(
    data, always_on(), draw_score=lambda params, state, batch: jnp.ones(())
  )
  with pytest.raises(ValueError, match=r'one number per example, \(8,\)'):
    step(state, data)
  step, state = make(
    data, always_on(), statistics={'mean': lambda o, t: jnp.mean(o)}
  )
  with pytest.raises(ValueError, match="statistic 'mean' must have one"):
    step(state, data)


def test_data_of_another_length_than_the_samplers_is_refused(data):
  """Nothing reads beyond the data."""
  step, state = make(data, uniform(N + 1, 4))
  with pytest.raises(ValueError, match='for 25 examples, but the data have 24'):
    step(state, data)


def test_record_weights_that_the_sampler_ignores_are_refused(data):
  """The objective would silently be another one."""
  weighted = data._replace(record_weights=jnp.ones(N))
  step, state = make(data, uniform(N, 4))
  with pytest.raises(ValueError, match='record_weights=data.record_weights'):
    step(state, weighted)
  step, state = make(data, uniform(N, 4, record_weights=jnp.ones(N)))
  jax.eval_shape(step, state, weighted)


def test_the_largest_budget_is_taken(data):
  """2^31, which int32 does not hold."""
  step, state = make(data, uniform(N, 4), budget=2**31)
  assert jax.eval_shape(step, state, data)[1]['valid'].shape == ()


@pytest.mark.parametrize('budget', [0, -1, 2**31 + 1, 1.5])
def test_a_budget_out_of_range_is_named(data, budget):
  """It is counted in 32 bits."""
  with pytest.raises(ValueError, match='budget must be an integer from 1 to'):
    make(data, uniform(N, 4), budget=budget)


def test_the_cost_stays_at_its_largest_value(data):
  """It neither wraps nor starts anew."""
  step, state = make(data, uniform(N, 4))
  state = state._replace(cost=jnp.uint32(2**32 - 5))
  after, _ = jax.jit(step)(state, data)
  assert int(after.cost) == 2**32 - 1


def test_scores_of_any_type_are_read_as_float32(data):
  """Boolean and bfloat16 ones among them."""
  for dtype in (jnp.bfloat16, bool):
    step, state = make(
      data,
      KINDS['never'](),
      draw_score=lambda p, s, batch, t=dtype: jnp.ones(len(batch.targets), t),
    )
    jax.eval_shape(step, state, data)


@pytest.mark.parametrize('batch_size', [1, 7, 24, 100])
def test_evaluation_is_exact_for_every_batch_size(data, batch_size):
  """The padded last batch counts nothing."""
  apply_fn = linen.make_apply_fn(Linear())
  params, _ = linen.init(Linear(), jax.random.key(1), to_float(data.inputs[:1]))
  outputs, _ = apply_fn(
    params, {}, to_float(data.inputs), train=False, rngs=None
  )
  evaluate = make_eval_step(
    apply_fn,
    loss_fn,
    preprocess=to_float,
    statistics={'error': metrics.error},
    batch_size=batch_size,
  )
  got = evaluate(params, {}, data)
  losses = np.asarray(loss_fn(outputs, data.targets), np.float64)
  errors = np.asarray(outputs).argmax(1) != np.asarray(data.targets)
  np.testing.assert_allclose(got['loss'], losses.mean(), rtol=1e-5)
  np.testing.assert_allclose(got['error'], errors.mean(), rtol=1e-6)
  r = np.arange(N, dtype=np.float32)
  weighted = evaluate(params, {}, data._replace(record_weights=jnp.asarray(r)))
  np.testing.assert_allclose(
    weighted['loss'], (r * losses).sum() / r.sum(), rtol=1e-5
  )


def test_loops_unroll_for_convolutions_on_cpu_and_scan_otherwise(data):
  """By the jaxpr, and with the same result either way."""
  dense, dense_state = make(data, uniform(N, 4))
  conv, conv_state = make(data, uniform(N, 4), model=Convolutional())
  on_cpu = jax.default_backend() == 'cpu'
  assert not is_slow_to_scan(dense, dense_state, data)
  assert is_slow_to_scan(conv, conv_state, data) == on_cpu
  results = {
    mode: make_loop(conv, 3, mode=mode)(
      jax.tree.map(jnp.copy, conv_state), data
    )
    for mode in ('auto', 'scan')
  }
  for state, stacked in results.values():
    assert stacked['loss'].shape == (3,)
    assert state.step == 3
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      state.params,
      results['scan'][0].params,
    )


@pytest.mark.parametrize('name', SAMPLERS)
def test_every_leaf_of_the_state_has_its_own_buffer(name, data):
  """Else donation would fail."""
  tx = importance_weighted(optax.adamw(0.1), N)
  _, state = make(data, registered(name), tx=tx)
  arrays = jax.tree.leaves(state._replace(key=None))
  pointers = [leaf.unsafe_buffer_pointer() for leaf in arrays]
  assert len(set(pointers)) == len(pointers)


def test_a_loop_donates_its_state(data):
  """The old state is gone afterwards, and the parameters it came from not."""
  step, state = make(data, SAMPLERS['shuffle'](N, 4))
  after, _ = make_loop(step, 2)(state, data)
  assert state.params['Dense_0']['kernel'].is_deleted()
  assert not parameters(Linear())[0]['Dense_0']['kernel'].is_deleted()
  assert after.step == 2


class Normalised(nn.Module):
  """With batch statistics, or with running ones in training too."""

  frozen: bool = False

  @nn.compact
  def __call__(self, x, train=False):
    x = x.reshape(x.shape[0], -1)
    x = nn.BatchNorm(use_running_average=self.frozen or not train)(x)
    return nn.Dense(K)(x)


BIASED = r'BatchNorm.* no importance weight .*36 to 70 %.* GroupNorm'


def test_a_model_with_state_keeps_it_in_training_only(data):
  """Batch statistics move with training passes, not with scoring."""
  step, state = make(data, always_on(), model=Normalised())
  with pytest.warns(UserWarning, match=BIASED):
    after, _ = jax.jit(step)(state, data)
  mean = after.model_state['batch_stats']['BatchNorm_0']['mean']
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)
  sampler = always_on()
  indices, _ = sampler.propose(key[0], state.sampler_state)
  pool_mean = to_float(data.inputs[indices]).reshape(8, -1).mean(0)
  assert np.abs(mean).max() > 0
  assert not np.allclose(mean, 0.01 * pool_mean, rtol=1e-3)


def test_a_proposal_is_scored_on_running_statistics(data):
  """Each score is that of its example alone, and it moves with them."""
  sampler = always_on()

  def select(key, state, indices, scores):
    draw, state, info = sampler.select(key, state, indices, scores)
    return draw, state, info | {'proposed': indices, 'scores': scores}

  model = Normalised()
  step, state = make(data, sampler._replace(select=select), model=model)
  with pytest.warns(UserWarning, match=BIASED):
    step = jax.jit(step).lower(state, data).compile()

  @jax.jit
  def score_alone(model_state, x, y):
    variables = {'params': state.params, **model_state}
    logits = model.apply(variables, to_float(x[None]))
    return scores.logit_gradient_norm(loss_fn)(logits, y[None])[0]

  moved = jax.tree.map(lambda leaf: leaf + 0.3, state.model_state)
  found = []
  for model_state in (state.model_state, moved):
    _, info = step(state._replace(model_state=model_state), data)
    expected = [
      score_alone(model_state, data.inputs[i], data.targets[i])
      for i in info['proposed']
    ]
    np.testing.assert_allclose(info['scores'], expected, rtol=1e-5)
    found.append(info['scores'])
  assert np.abs(found[0] - found[1]).min() > 1e-3


@pytest.mark.parametrize(
  ('name', 'model', 'warns'),
  [
    ('presample', Normalised(), True),
    ('memory', Normalised(), True),
    ('presample', Normalised(frozen=True), False),
    ('memory', Linear(), False),
    ('uniform', Normalised(), False),
    ('shuffle', Normalised(), False),
    ('class_balanced', Normalised(), False),
  ],
)
def test_scores_with_batch_statistics_are_warned_of(data, name, model, warns):
  """Not where draws go by no score, nor where the statistics stay."""
  step, state = make(data, registered(name), model=model)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    jax.eval_shape(step, state, data)
  assert [bool(re.search(BIASED, str(w.message))) for w in caught] == (
    [True] if warns else []
  )


def test_record_weights_change_the_objective(data):
  """The expected first update is that of sum r l / R, over many keys."""
  r = jnp.asarray(np.arange(1, N + 1), jnp.float32)
  step, state = make(data, always_on(record_weights=r, mix=0.5))
  params = jax.jit(
    jax.vmap(lambda key: step(state._replace(key=key), data)[0].params)
  )(jax.random.split(jax.random.key(8), 4000))
  apply_fn = linen.make_apply_fn(Linear())

  def objective(params):
    outputs, _ = apply_fn(
      params, {}, to_float(data.inputs), train=False, rngs=None
    )
    return jnp.sum(r * loss_fn(outputs, data.targets)) / jnp.sum(r)

  gradient = jax.grad(objective)(state.params)

  def check(samples, before, g):
    moved = (np.asarray(before) - np.asarray(samples)) / 0.1
    error = moved.std(0) / np.sqrt(4000)
    assert (np.abs(moved.mean(0) - g) <= 4.5 * error + 1e-6).all()

  jax.tree.map(check, params, state.params, gradient)


@pytest.mark.parametrize('pooled', [False, True])
def test_what_does_not_fit_the_step_is_named(data, pooled):
  """With what is expected in its place, whichever pass meets it first."""
  sampler = always_on() if pooled else uniform(N, 4)
  tx = importance_weighted(optax.sgd(0.1), N)
  params, model_state = parameters(Linear())
  apply_fn = linen.make_apply_fn(Linear())

  def trace(apply_fn, loss_fn, data):
    step = make_train_step(
      apply_fn,
      loss_fn,
      sampler,
      tx,
      score=scores.logit_gradient_norm(loss_fn),
      preprocess=to_float,
    )
    state = init_train_state(
      jax.random.key(0), params, model_state, sampler, tx
    )
    jax.eval_shape(step, state, data)

  def outputs_alone(*args, **options):
    return apply_fn(*args, **options)[0]

  with pytest.raises(
    ValueError, match=r'must be a Batch\(inputs, .* got tuple'
  ):
    trace(apply_fn, loss_fn, (data.inputs, data.targets))
  with pytest.raises(ValueError, match='ONE example|one number per example'):
    trace(apply_fn, lambda output, target: output - target, data)
  with pytest.raises(ValueError, match=r'must return \(outputs, model_state\)'):
    trace(outputs_alone, loss_fn, data)
