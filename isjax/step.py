"""The training step: where sampler, model and optimiser meet.

One step runs on the device as a whole: propose, gather, score if the sampler
asks for it, select, one training pass on the drawn examples, importance
weights and update. Steps are pure and can be jitted, scanned and unrolled.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple
import warnings

import jax
from jax import lax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import optax

from isjax import _batch_statistics, _validate
from isjax._in_place import when
from isjax.metrics import trace_covariances, weighted_mean
from isjax.samplers._whole_proposal import keep_state
from isjax.scores import LossFn, ScoreFn
from isjax.transforms import PerExample, per_example_gradient
from isjax.types import (
  Batch,
  Draw,
  Metrics,
  Observation,
  PyTree,
  Sampler,
  TrainState,
  num_examples,
  take,
)
from isjax.weights import effective_sample_size, importance_weights

FORWARD_COST = 1
TRAINING_COST = 3  # forward 1, backward 2


def init_train_state(
  key: jax.Array,
  params: PyTree,
  model_state: PyTree,
  sampler: Sampler,
  tx: optax.GradientTransformation,
) -> TrainState:
  """Returns the state before the first step, every leaf its own buffer.

  Args:
    key: PRNG key of the run: of the sampler's first state and of all steps.
    params: pytree of parameters, copied.
    model_state: pytree of the model's own state, copied; {} where there is
      none.
    sampler: whose state it holds.
    tx: whose state it holds.
  """
  sampler_key, run_key = jax.random.split(key)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    cost=jnp.zeros((), jnp.uint32),
    key=run_key,
    params=params,
    model_state=model_state,
    opt_state=tx.init(params),
    sampler_state=sampler.init(sampler_key),
  )
  return jax.tree.map(jnp.copy, state)


class Proposal(NamedTuple):
  """The examples that a step may train on, and what is known of them already.

  step:    i32[], the step that they are for.
  indices: i32[m], positions in the training set.
  draw:    of a sampler that needs no scores, its Draw; else None.
  info:    that goes with the draw; else None.
  """

  step: jax.Array
  indices: jax.Array
  draw: Draw | None
  info: Metrics | None


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
  """A training step, whole or in its two halves.

  step(state, data) -> (state, metrics) has the training set on the device. In
  halves, the rows of a proposal are fetched in between, from wherever they are:

      proposal, state = step.propose(state, state.step)
      state, metrics = step.train(state, proposal, rows)

  A proposal may be made steps ahead of its training. A draw that needs no
  scores is made with it, and its probabilities travel along, so that weights
  stay exact whatever the sampler has observed since. Where scores may be
  needed, the draw is made in training, and `current` among its metrics tells
  whether the sampler would still make the same proposal; weights are exact
  only then.

  propose:      (state, step i32[]) -> (Proposal, state).
  train:        (state, Proposal, rows: Batch of m) -> (state, metrics).
  whole:        (state, data) -> (state, metrics).
  num_examples: (state) -> N, for which the sampler is made.
  """

  propose: Callable[[TrainState, jax.Array], tuple[Proposal, TrainState]]
  train: Callable[[TrainState, Proposal, Batch], tuple[TrainState, Metrics]]
  whole: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
  num_examples: Callable[[TrainState], int]

  def __call__(
    self, state: TrainState, data: Batch
  ) -> tuple[TrainState, Metrics]:
    """Makes one step on a training set that is on the device."""
    return self.whole(state, data)


def make_train_step(
  apply_fn: Callable[..., tuple[PyTree, PyTree]],
  loss_fn: LossFn,
  sampler: Sampler,
  tx: optax.GradientTransformation,
  *,
  score: ScoreFn,
  draw_score: Callable[[PyTree, PyTree, Batch], jax.Array] | None = None,
  preprocess: Callable[[PyTree], PyTree] | None = None,
  augment: Callable[..., PyTree] | None = None,
  augment_by: Callable[[PyTree, jax.Array], PyTree] | None = None,
  statistics: Mapping[str, ScoreFn] = {},
  budget: int | jax.Array | None = None,
) -> TrainStep:
  """Builds the step of importance-sampled training.

  Args:
    apply_fn: (params, model_state, inputs, *, train, rngs) ->
      (outputs [m, ...], model_state). Normalise per sample: under batch
      statistics no importance weight makes the gradient unbiased.
    loss_fn: (output, target) -> f32[], the loss of ONE example.
    sampler: chooses the examples; its N must be the data's.
    tx: takes a PerExample and ends as a gradient transformation; wrap a plain
      optimiser with `importance_weighted`.
    score: (outputs, targets) -> f32[m], of the training pass: what the sampler
      observes (and its gate goes by).
    draw_score: (params, model_state, batch of m) -> f32[m], what a proposal is
      scored with; None: `score` of a forward pass in evaluation mode.
    preprocess: applied to the inputs of each gathered batch (uint8 to float).
    augment: (key, inputs of one example) -> the same, after preprocess; its
      key depends on the step and the proposal slot, so that the training pass
      sees the view that was scored.
    augment_by: (sampler_state, indices i32[m]) -> pytree with a leading axis m;
      augment then gets what it says of the example as a third argument, such
      as a strength by `importance_ranks`, and `lambda state, indices: indices`
      tells it which example it is. The state is that before the step.
    statistics: name -> (outputs, targets) -> f32[b], of the training pass: the
      sampler observes them, and their weighted means are metrics.
    budget: forward-equivalents to spend, an int in [1, 2^31] or u32[]; None:
      no limit. A step past it returns the state unchanged with
      metrics['valid'] False, so that cost ends less than one step above it.

  Returns:
    (state, data) -> (state, metrics), whole; `TrainStep` has it in halves, too.
    Pass `data` as an argument of the jitted function, never by closure.
    Metrics are scalars: loss and statistics as
    unbiased estimates of the training set's; `effective_sample_size` and
    `largest_weight` of the importance weights; `trace_uniform`,
    `trace_sampled` and `trace_optimal`, the second moments of
    `metrics.trace_covariances` with scores for norms; `clipped_mass` where
    weights are clipped; `cost`, `valid`, and the sampler's own info.

  Raises:
    ValueError: for a budget out of range, or augment_by alone; when traced,
      where the sampler is for another number of examples or knows nothing of
      the data's record weights, tx does not return updates shaped like the
      parameters, a score or a loss is not one number per example, apply_fn
      returns no pair, or data is no Batch.

  Warns:
    UserWarning: when traced, where the training pass updates the collection
      'batch_stats' and the sampler goes by scores. A law that was fixed in
      advance is not looked at.
  """
  if augment_by is not None and augment is None:
    raise ValueError('augment_by tells augment something; give augment, too.')
  if budget is not None:
    _validate.budgets(budget=budget)
    budget = jnp.asarray(budget, jnp.uint32)
  tx = optax.with_extra_args_support(tx)

  def forward(*args, **options):
    result = apply_fn(*args, **options)
    _expect_pair(result)
    return result

  def view(key, state, batch, slots, indices):
    inputs = batch.inputs if preprocess is None else preprocess(batch.inputs)
    if augment is not None:
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slots)
      told = ()
      if augment_by is not None:
        told = (augment_by(state.sampler_state, indices),)
      inputs = jax.vmap(augment)(keys, inputs, *told)
    return batch._replace(inputs=inputs)

  def proposal_scores(state: TrainState, batch: Batch) -> jax.Array:
    if draw_score is not None:
      return draw_score(state.params, state.model_state, batch)
    outputs, _ = forward(
      state.params, state.model_state, batch.inputs, train=False, rngs=None
    )
    return score(outputs, batch.targets)

  def scores_if_needed(state, view_key, indices, gather, needs_scores):
    slots = jnp.arange(indices.shape[0], dtype=jnp.int32)

    def scored():
      batch = view(view_key, state, gather(slots, indices), slots, indices)
      scores = proposal_scores(state, batch)
      return _expect_vector('a score', scores, indices.shape)

    def unscored():
      return jnp.zeros(indices.shape, jnp.float32)

    if isinstance(needs_scores, bool):
      return scored() if needs_scores else unscored()
    return lax.cond(needs_scores, scored, unscored)

  def training_pass(key, state, batch):
    def losses_fn(params):
      result = forward(
        params,
        state.model_state,
        batch.inputs,
        train=True,
        rngs={'dropout': key},
      )
      outputs, _ = result
      losses = jax.vmap(loss_fn)(outputs, batch.targets)
      return _expect_vector('loss_fn', losses, (num_examples(batch),)), result

    return per_example_gradient(losses_fn, has_aux=True)(state.params)

  def update(state, per_example, draw, targets):
    progress = {}
    if budget is not None:
      progress['progress'] = jnp.minimum(
        state.cost.astype(jnp.float32) / budget.astype(jnp.float32), 1.0
      )
    updates, opt_state = tx.update(
      per_example,
      state.opt_state,
      state.params,
      probabilities=draw.probabilities,
      target_probabilities=draw.target_probabilities,
      targets=targets,
      **progress,
    )
    _expect_gradient(updates, state.params)
    return optax.apply_updates(state.params, updates), opt_state

  def observe(outputs, targets, losses):
    values = {
      name: _expect_vector(
        f'statistic {name!r}', statistic(outputs, targets), losses.shape
      )
      for name, statistic in statistics.items()
    }
    scores = _expect_vector('a score', score(outputs, targets), losses.shape)
    return Observation(losses, scores, values)

  def propose_from(state, step):
    """The proposal and whether it needs scores, with all keys of the step."""
    key = jax.random.fold_in(state.key, step)
    propose_key, *keys = jax.random.split(key, 4)
    indices, needs_scores = sampler.propose(propose_key, state.sampler_state)
    return indices, needs_scores, keys

  def finish(state, advance, draw, info, gather, keys, by_scores):
    """Trains on a draw; past the budget the state stays as it is.

    advance: (sampler_state) -> the one that comes with the draw.
    """
    view_key, _, train_key = keys
    rows = gather(draw.slots, draw.indices)
    batch = view(view_key, state, rows, draw.slots, draw.indices)
    per_example, (outputs, model_state) = training_pass(train_key, state, batch)
    if by_scores or sampler.observe is not keep_state:
      _warn_of_batch_statistics(state.model_state, model_state)
    params, opt_state = update(state, per_example, draw, batch.targets)
    observation = observe(outputs, batch.targets, per_example.losses)
    valid = True if budget is None else state.cost < budget
    new_state = TrainState(
      step=state.step + 1,
      cost=_add_cost(state.cost, draw, info),
      key=state.key,
      params=params,
      model_state=model_state,
      opt_state=opt_state,
      sampler_state=state.sampler_state,
    )
    new_state = _where(valid, new_state, state)
    new_state = new_state._replace(
      sampler_state=when(
        valid,
        lambda old: sampler.observe(advance(old), draw, observation),
        state.sampler_state,
      )
    )
    metrics = info | _training_metrics(draw, observation, size_for(state))
    metrics |= _clipped_mass(new_state.opt_state)
    return new_state, metrics | {
      'cost': new_state.cost,
      'valid': jnp.asarray(valid),
    }

  def select(state, indices, scores, keys):
    """The draw, its info, and what `finish` advances the sampler's state by."""

    def advance(sampler_state):
      return sampler.select(keys[1], sampler_state, indices, scores)[1]

    draw, _, info = sampler.select(
      keys[1], state.sampler_state, indices, scores
    )
    return draw, info, advance

  def size_for(state: TrainState) -> int:
    indices, _, _ = jax.eval_shape(propose_from, state, state.step)
    scores = jax.ShapeDtypeStruct(indices.shape, jnp.float32)
    law, _ = jax.eval_shape(sampler.law, state.sampler_state, scores, indices)
    return law.shape[0]

  def whole(state: TrainState, data: Batch) -> tuple[TrainState, Metrics]:
    _expect_batch(data)
    _expect_fit(state.sampler_state, size_for(state), data, num_examples(data))

    def gather(slots, indices):
      del slots
      return sampler.take(data, indices)

    indices, needs_scores, keys = propose_from(state, state.step)
    scores = scores_if_needed(state, keys[0], indices, gather, needs_scores)
    draw, info, advance = select(state, indices, scores, keys)
    by_scores = needs_scores is not False
    return finish(state, advance, draw, info, gather, keys, by_scores)

  def propose(
    state: TrainState, step: jax.Array
  ) -> tuple[Proposal, TrainState]:
    indices, needs_scores, keys = propose_from(state, step)
    if needs_scores is not False:
      return Proposal(step, indices, None, None), state
    scores = jnp.zeros(indices.shape, jnp.float32)
    draw, info, advance = select(state, indices, scores, keys)
    state = state._replace(sampler_state=advance(state.sampler_state))
    return Proposal(step, indices, draw, info), state

  def train(
    state: TrainState, proposal: Proposal, rows: Batch
  ) -> tuple[TrainState, Metrics]:
    _expect_batch(rows)
    _expect_fit(state.sampler_state, size_for(state), rows, size_for(state))

    def gather(slots, indices):
      del indices
      return take(rows, slots)

    indices, needs_scores, keys = propose_from(state, proposal.step)
    if proposal.draw is not None:
      current = jnp.ones((), bool)
      draw, info = proposal.draw, proposal.info
      advance = _unchanged  # it was, when the draw was made
    else:
      current = jnp.all(indices == proposal.indices)
      scores = scores_if_needed(state, keys[0], indices, gather, needs_scores)
      draw, info, advance = select(state, indices, scores, keys)
    by_scores = proposal.draw is None
    state, metrics = finish(state, advance, draw, info, gather, keys, by_scores)
    return state, metrics | {'current': current}

  return TrainStep(propose, train, whole, size_for)


def _unchanged(sampler_state: PyTree) -> PyTree:
  return sampler_state


def _add_cost(cost, draw, info) -> jax.Array:
  """The cost after a step, which stays at 2^32 - 1 once it is there."""
  training = jnp.uint32(TRAINING_COST * draw.indices.shape[0])
  scoring = FORWARD_COST * jnp.asarray(info['num_scored']).astype(jnp.uint32)
  total = cost + training + scoring
  return jnp.where(total < cost, jnp.uint32(2**32 - 1), total)


def _training_metrics(draw, observation: Observation, size: int) -> Metrics:
  weights = importance_weights(draw.probabilities, draw.target_probabilities)
  values = {'loss': observation.losses} | observation.statistics
  traces = trace_covariances(
    observation.scores, draw.probabilities, draw.target_probabilities, size
  )
  return (
    {name: weighted_mean(value, weights) for name, value in values.items()}
    | {f'trace_{name}': trace for name, trace in traces._asdict().items()}
    | {
      'effective_sample_size': effective_sample_size(weights),
      'largest_weight': jnp.max(weights),
    }
  )


def _clipped_mass(opt_state: PyTree) -> Metrics:
  """What `clip_weights` reports, where it is in use."""
  mass = optax.tree.get(opt_state, 'clipped_mass')
  return {} if mass is None else {'clipped_mass': mass}


def _where(condition, if_true: TrainState, if_false: TrainState) -> TrainState:
  """The one state or the other; the key is the same in both."""
  if condition is True:
    return if_true
  chosen = jax.tree.map(
    lambda t, f: t if t is f else jnp.where(condition, t, f),
    if_true._replace(key=None),
    if_false._replace(key=None),
  )
  return chosen._replace(key=if_true.key)


def _expect_pair(result: Any) -> None:
  if not (isinstance(result, tuple) and len(result) == 2):
    raise ValueError(
      'apply_fn must return (outputs, model_state), with {} for the state of a '
      f'model that has none; got {type(result).__name__}.'
    )


def _expect_batch(data: Any) -> None:
  if not isinstance(data, Batch):
    raise ValueError(
      'data must be a Batch(inputs, targets), with record_weights where there '
      f'are any; got {type(data).__name__}.'
    )


def _expect_fit(state: PyTree, size: int, data: Batch, data_size: int) -> None:
  """Refuses data other than those that the sampler, for `size`, is made for."""
  if size != data_size:
    raise ValueError(
      f'the sampler is made for {size} examples, but the data have '
      f'{data_size}: give it their number.'
    )
  ignores = getattr(state, 'target_probabilities', ()) is None
  if data.record_weights is not None and ignores:
    raise ValueError(
      'the data carry record weights, of which the sampler knows nothing: '
      'make it with record_weights=data.record_weights, or train on '
      'data._replace(record_weights=None).'
    )


def _warn_of_batch_statistics(before: PyTree, after: PyTree) -> None:
  if _batch_statistics.in_use(before, after):
    warnings.warn(
      'the model trains on batch statistics (BatchNorm) and the sampler goes '
      "by scores. An example's loss then depends on the examples drawn with "
      'it, and no importance weight makes the gradient unbiased: in '
      'training it was off by 36 to 70 % of its length, in small batches and '
      'in large ones (measured by configs/normalisation.py). Use GroupNorm or '
      'LayerNorm, or train on running statistics, which leave no bias.',
      stacklevel=2,
    )


def _expect_vector(name: str, values: Any, shape: tuple[int, ...]):
  if jnp.shape(values) != shape:
    raise ValueError(
      f'{name} must have one number per example, {shape}; got shape '
      f'{jnp.shape(values)}.'
    )
  return jnp.asarray(values).astype(jnp.float32)


def _expect_gradient(updates: PyTree, params: PyTree) -> None:
  if isinstance(updates, PerExample):
    got = 'a PerExample, without average_gradient() in the chain'
  else:
    got = jax.tree.map(jnp.shape, updates)
  if got != jax.tree.map(jnp.shape, params):
    raise ValueError(
      'tx must turn a PerExample into updates shaped like the parameters; got '
      f'{got}. Wrap a plain optimiser: importance_weighted(inner, '
      'num_examples).'
    )


def make_eval_step(
  apply_fn: Callable[..., tuple[PyTree, PyTree]],
  loss_fn: LossFn,
  *,
  preprocess: Callable[[PyTree], PyTree] | None = None,
  statistics: Mapping[str, ScoreFn] = {},
  batch_size: int,
) -> Callable[[PyTree, PyTree, Batch], Metrics]:
  """Builds the exact evaluation of a model over a whole set.

  Args:
    apply_fn: as in `make_train_step`; run with train=False.
    loss_fn: (output, target) -> f32[], the loss of ONE example.
    preprocess: as in training.
    statistics: name -> (outputs, targets) -> f32[m].
    batch_size: examples per forward pass; the last batch is padded and masked,
      so that any N gives the exact averages.

  Returns:
    (params, model_state, data) -> metrics, jitted: `loss` and the statistics
    averaged over the set, by record weight where the data have them.
  """
  _validate.positive_integers(batch_size=batch_size)

  def sums(params, model_state, batch, weights):
    inputs = batch.inputs if preprocess is None else preprocess(batch.inputs)
    outputs, _ = apply_fn(params, model_state, inputs, train=False, rngs=None)
    values = {'loss': jax.vmap(loss_fn)(outputs, batch.targets)} | {
      name: f(outputs, batch.targets) for name, f in statistics.items()
    }
    return {
      name: jnp.sum(jnp.where(weights > 0, weights * value, 0.0))
      for name, value in values.items()
    }

  @jax.jit
  def evaluate(params: PyTree, model_state: PyTree, data: Batch) -> Metrics:
    total = num_examples(data)
    num_batches = -(-total // batch_size)
    places = jnp.arange(num_batches * batch_size).reshape(-1, batch_size)
    record_weights = data.record_weights
    if record_weights is None:
      record_weights = jnp.ones((total,), jnp.float32)
    normaliser = jnp.sum(record_weights)

    def evaluate_batch(places):
      indices = jnp.minimum(places, total - 1)
      weights = jnp.where(places < total, record_weights[indices], 0.0)
      return sums(params, model_state, take(data, indices), weights)

    batches = lax.map(evaluate_batch, places)
    return {
      name: jnp.sum(value) / normaliser for name, value in batches.items()
    }

  return evaluate


def make_loop(
  step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
  num_steps: int,
  *,
  mode: str = 'auto',
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Runs a step num_steps times.

  Args:
    step: (state, data) -> (state, metrics).
    num_steps: static.
    mode: 'scan' compiles one step and loops on the device; 'unroll' compiles
      one step and dispatches it num_steps times (inside an outer jit it writes
      out num_steps copies of it); 'auto' scans, except for networks with
      convolutions on CPU, whose backward pass XLA runs some 40 times slower
      inside a scan (github.com/jax-ml/jax/issues/12868).

  Returns:
    (state, data) -> (state, metrics stacked over num_steps), jitted. The state
    passed in is donated: use the one returned.
  """
  _validate.positive_integers(num_steps=num_steps)
  _validate.one_of(('auto', 'scan', 'unroll'), mode=mode)
  unroll = _unrolled(step, num_steps)
  scan = jax.jit(
    lambda state, data: lax.scan(
      lambda carry, _: step(carry, data), state, length=num_steps
    ),
    donate_argnums=0,
  )
  chosen = {'scan': scan, 'unroll': unroll}

  def loop(state: TrainState, data: Batch) -> tuple[TrainState, Metrics]:
    if mode not in chosen:  # decided once, since it takes a trace
      slow = is_slow_to_scan(step, state, data)
      chosen['auto'] = unroll if slow else scan
    return chosen[mode](state, data)

  return loop


def _unrolled(step: Callable[..., Any], num_steps: int) -> Callable[..., Any]:
  """A loop that dispatches the compiled step num_steps times."""
  jitted = jax.jit(step, donate_argnums=0)
  stack = jax.jit(lambda *rows: jax.tree.map(lambda *v: jnp.stack(v), *rows))

  def loop(state, data):
    metrics = []
    for _ in range(num_steps):
      state, values = jitted(state, data)
      metrics.append(values)
    return state, stack(*metrics)

  return loop


def is_slow_to_scan(step: Callable[..., Any], *args: Any) -> bool:
  """Tells whether step(*args) has a convolution and would run on CPU.

  A training step that has one has its backward pass too. Traces at most, and
  compiles nothing.
  """
  if jax.default_backend() != 'cpu':
    return False
  return _has_convolution(jax.jit(step).trace(*args).jaxpr.jaxpr)


def _has_convolution(jaxpr) -> bool:
  return any(
    equation.primitive.name == 'conv_general_dilated'
    or any(map(_has_convolution, jaxprs_in_params(equation.params)))
    for equation in jaxpr.eqns
  )
