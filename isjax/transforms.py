"""Optax transforms on gradients that are still per example.

`per_example_gradient` returns a `PerExample`: the loss vector and its pullback
ct -> sum_i ct_i grad l_i, a closure rather than b copies of the parameters.
Transforms early in a chain multiply its weights; `average_gradient` pulls
weights / b back, once:

    optax.chain(
      scale_by_importance(num_examples),  # first: w_i = pi_i / p_i
      scale_by_absgd(temperature),        # from losses and weights so far
      clip_weights(10.0),                 # last, if at all
      average_gradient(),                 # one backward pass
      optax.adamw(1e-3),                  # and from here on plain optax
    )

The result is the gradient of the weighted mean loss, while the weights live in
real transforms, whose state is checkpointed with the optimiser's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax import _validate
from isjax.losses import target_distribution
from isjax.types import PyTree
from isjax.weights import importance_weights

_NORMALISERS = {
  'none': jnp.ones_like,
  'max': jnp.max,
  'mean': jnp.mean,
}
# These weight by loss: each makes the objective distributionally robust.
_ROBUST = ('scale_by_absgd', 'scale_by_cvar', 'scale_by_chi_square')


class PerExample:
  """A gradient before its average over the batch.

  losses:   f32[b].
  weights:  f32[b], what each example's gradient is multiplied by; ones at
            first.
  pullback: (cotangents f32[b]) -> sum_i cotangents_i grad l_i, a pytree like
            the parameters.
  applied:  names of the transforms applied so far.

  It lives inside one traced step: flattening it raises, so that it crosses no
  jit, cond or scan and no optax transform mistakes it for a gradient.
  """

  def __init__(
    self,
    losses: jax.Array,
    weights: jax.Array,
    pullback: Callable[[jax.Array], PyTree],
    applied: tuple[str, ...] = (),
  ):
    self.losses = losses
    self.weights = weights
    self.pullback = pullback
    self.applied = applied

  @classmethod
  def from_stacked(cls, losses: jax.Array, gradients: PyTree) -> 'PerExample':
    """Wraps per-example gradients that are already there.

    Args:
      losses: f32[b].
      gradients: pytree of arrays [b, ...], row i the gradient of example i.

    Raises:
      ValueError: where an array's leading axis is not b.
    """
    _expect_loss_vector(losses)
    for leaf in jax.tree.leaves(gradients):
      if leaf.shape[:1] != losses.shape:
        raise ValueError(
          'gradients must have the leading axis b of losses, '
          f'{losses.shape}; got an array of shape {leaf.shape}.'
        )

    def pullback(cotangents: jax.Array) -> PyTree:
      return jax.tree.map(
        lambda rows: jnp.tensordot(cotangents.astype(rows.dtype), rows, 1),
        gradients,
      )

    return cls(losses, jnp.ones_like(losses), pullback)

  def reweighted(self, weights: jax.Array, name: str) -> 'PerExample':
    """Returns a copy with other weights, `name` added to its trail.

    Args:
      weights: f32[b], in place of the present ones.
      name: of the transform that asks.

    Raises:
      ValueError: after `clip_weights`, which has to be the last; for a
        transform that the robust one before it would have to see.
    """
    if 'clip_weights' in self.applied:
      raise ValueError(
        f'{name} comes after clip_weights, whose cap it would undo: put '
        'clip_weights last before average_gradient().'
      )
    robust = [other for other in self.applied if other in _ROBUST]
    if robust and name in ('scale_by_class', *_ROBUST):
      raise ValueError(
        f'{name} must come before {robust[0]}, whose weights depend on all '
        f'earlier ones; and a chain has one of {", ".join(_ROBUST)}.'
      )
    return PerExample(
      self.losses, weights, self.pullback, (*self.applied, name)
    )


def _refuse_to_flatten(per_example: PerExample):
  del per_example
  raise ValueError(
    'a PerExample is not a gradient yet: put average_gradient() before the '
    'transform that met it. Optimisers, clipping and scaling come after it in '
    'the chain; MultiSteps, masked, partition and apply_if_finite go around '
    'the inner optimiser alone. importance_weighted(inner, num_examples) '
    'builds the usual chain. A PerExample crosses no jit, cond or scan either.'
  )


jax.tree_util.register_pytree_node(
  PerExample, _refuse_to_flatten, lambda _, children: PerExample(*children)
)


def _expect_loss_vector(losses: jax.Array) -> None:
  if jnp.ndim(losses) != 1:
    raise ValueError(
      'expected one loss per example, f32[b]; got shape '
      f'{jnp.shape(losses)}. Do not average the losses.'
    )


def _expect_per_example(updates: Any, name: str) -> None:
  if not isinstance(updates, PerExample):
    raise ValueError(
      f'{name} expects a PerExample, as per_example_gradient returns it; got '
      f'{type(updates).__name__}. It must stand before average_gradient() and '
      'before every transform of plain gradients.'
    )


def per_example_gradient(
  losses_fn: Callable[..., Any], has_aux: bool = False
) -> Callable[..., Any]:
  """Differentiates a vector of losses, leaving the average for later.

  Args:
    losses_fn: (params, *args) -> f32[b], or with has_aux (f32[b], aux).
    has_aux: whether losses_fn returns a pair.

  Returns:
    (params, *args) -> PerExample, or (PerExample, aux). The forward pass runs
    here, the backward pass in `average_gradient`.

  Raises:
    ValueError: when called, where losses_fn does not return a vector.
  """

  def differentiate(params: PyTree, *args: Any):
    losses, pullback, *aux = jax.vjp(
      lambda p: losses_fn(p, *args), params, has_aux=has_aux
    )
    _expect_loss_vector(losses)
    per_example = PerExample(
      losses,
      jnp.ones_like(losses),
      lambda cotangents: pullback(cotangents.astype(losses.dtype))[0],
    )
    return (per_example, *aux) if has_aux else per_example

  return differentiate


class ScaleByImportanceState(NamedTuple):
  """count: i32[], updates made, which a schedule of the exponent follows."""

  count: jax.Array


def scale_by_importance(
  num_examples: int,
  *,
  exponent: float | jax.Array | optax.Schedule = 1.0,
  normalise: str = 'none',
) -> optax.GradientTransformationExtraArgs:
  """Weights each example by (pi_i / p_i)^exponent.

  With exponent 1 and normalise 'none' the averaged gradient is an unbiased
  estimate of the objective's gradient, whatever the law. `update` takes
  `probabilities=` f32[b] > 0 and `target_probabilities=` f32[b] (1/N where it
  is not given), both as a `Draw` carries them. It comes first in the chain,
  and once.

  Args:
    num_examples: N, size of the training set.
    exponent: beta; 1 is unbiased, 0 does not correct at all, and in between
      the mean weight is below 1, which acts on the learning rate. May be an
      array, or a schedule of the number of updates.
    normalise: 'none', or the weights' 'max' or 'mean' over the batch to divide
      by. Both bias the estimate.

  Returns:
    A transformation of PerExample, with a count as its state.

  Raises:
    ValueError: on a bad argument; in update, without probabilities or out of
      place.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, equation 4; the
  exponent and its maximum: Schaul et al. (2016), arXiv:1511.05952, section 3.4.
  """
  _validate.positive_integers(num_examples=num_examples)
  _validate.one_of(_NORMALISERS, normalise=normalise)
  if not callable(exponent):
    _validate.finite(exponent=exponent)

  def init_fn(params: PyTree) -> ScaleByImportanceState:
    del params
    return ScaleByImportanceState(jnp.zeros((), jnp.int32))

  def update_fn(
    updates,
    state,
    params=None,
    *,
    probabilities=None,
    target_probabilities=None,
    **extra,
  ):
    del params, extra
    _expect_per_example(updates, 'scale_by_importance')
    _expect_first(updates)
    _expect_probabilities(probabilities)
    if target_probabilities is None:
      target_probabilities = 1 / num_examples
    beta = exponent(state.count) if callable(exponent) else exponent
    weights = importance_weights(probabilities, target_probabilities)
    weights = _power(weights, beta)
    norm = _NORMALISERS[normalise](weights)
    weights = weights / jnp.where(norm > 0, norm, 1.0)
    updates = updates.reweighted(weights, 'scale_by_importance')
    count = optax.safe_increment(state.count)
    return updates, ScaleByImportanceState(count)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _power(weights: jax.Array, exponent: float | jax.Array) -> jax.Array:
  """Returns weights^exponent; exactly the weights at exponent 1."""
  if isinstance(exponent, (int, float)) and exponent == 1:
    return weights
  return weights**exponent


def _expect_first(updates: PerExample) -> None:
  if updates.applied:
    raise ValueError(
      'scale_by_importance must come first in the chain and once; before it '
      f'came {", ".join(updates.applied)}.'
    )


def _expect_probabilities(probabilities: Any) -> None:
  if probabilities is None:
    raise ValueError(
      'scale_by_importance needs the law of the draw: call '
      'tx.update(updates, state, params, probabilities=draw.probabilities). '
      'MultiSteps(...).gradient_transformation() drops such arguments: put it '
      'after average_gradient().'
    )


def _reweighting(
  name: str, weigh: Callable[..., jax.Array]
) -> optax.GradientTransformationExtraArgs:
  """A transform without state: weigh(per_example, **extra) -> f32[b]."""

  def update_fn(updates, state, params=None, **extra):
    del params
    _expect_per_example(updates, name)
    return updates.reweighted(weigh(updates, **extra), name), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )


def scale_by_class(
  class_weights: jax.Array,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies each example's weight by that of its class.

  `update` takes `targets=`, labels i32[b] or distributions f32[b, K]. Deferred
  re-weighting is a schedule of `losses.deferred` in `by_progress`:

      by_progress(lambda progress: scale_by_class(schedule(progress)))

  Args:
    class_weights: f32[K] >= 0, such as `losses.balanced_class_weights`.

  Raises:
    ValueError: in update, without targets or out of place.
  """
  num_classes = jnp.shape(class_weights)[0]

  def of_target(target: jax.Array) -> jax.Array:
    return jnp.sum(class_weights * target_distribution(target, num_classes))

  def weigh(per_example, *, targets=None, **extra):
    del extra
    if targets is None:
      raise ValueError(
        'scale_by_class needs the targets of the batch: call '
        'tx.update(updates, state, params, targets=batch.targets).'
      )
    return per_example.weights * jax.vmap(of_target)(targets)

  return _reweighting('scale_by_class', weigh)


def self_normalise_weights() -> optax.GradientTransformationExtraArgs:
  """Divides the weights by their mean over the batch.

  That fixes the step's size and biases the estimate, by order 1/b. The class
  weighted mean of other libraries is this after `scale_by_class`. A batch whose
  weights are all 0 stays as it is.

  Raises:
    ValueError: in update, out of place.
  """

  def weigh(per_example, **extra):
    del extra
    mean = jnp.mean(per_example.weights)
    return per_example.weights / jnp.where(mean > 0, mean, 1.0)

  return _reweighting('self_normalise_weights', weigh)


def _over_temperature(
  losses: jax.Array, weights: jax.Array, temperature: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
  """Returns ((losses - top) / temperature, top).

  The top is the loss where losses / temperature is largest, among examples
  with a weight. The difference of two close losses is exact; their ratios to a
  small temperature are not.
  """
  sign = jnp.where(temperature > 0, 1.0, -1.0)
  top = jnp.max(sign * losses, where=weights != 0, initial=-jnp.inf)
  top = jnp.where(jnp.isfinite(top), sign * top, 0.0)
  return (losses - top) / temperature, top


class ScaleByAbsgdState(NamedTuple):
  """The normaliser u = exp(anchor / temperature + log_u) of `scale_by_absgd`.

  count:       i32[], updates made, which a schedule of the temperature
               follows.
  temperature: f32[], of the last update; infinite where there is no u yet.
  anchor:      f32[], a loss close to temperature log u.
  log_u:       f32[], the rest of the logarithm.
  """

  count: jax.Array
  temperature: jax.Array
  anchor: jax.Array
  log_u: jax.Array


def scale_by_absgd(
  temperature: float | jax.Array | optax.Schedule,
  *,
  decay: float | jax.Array = 0.9,
  authors_alpha: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies each example's weight w by exp(loss / temperature) / u.

  u is a moving average of the batches' means of w exp(loss / temperature), so
  that the update descends temperature log mean exp(loss / temperature): the
  mean loss under the worst law, less temperature times the divergence of that
  law from the target. Importance weights enter u as well: in the gradient
  alone they would leave a bias of more than half. The mean weight of a batch
  is at most 1 / (1 - decay).

  The first batch sets u, and so does the first after a temperature that was
  infinite or of the other sign. At any other change of temperature the
  objective's running value, temperature log u, is held. A batch that is not
  finite leaves u alone.

  Args:
    temperature: lambda, never 0. Near 0 the largest loss rules; at inf the
      weights stay as they are; below 0 small losses are favoured, against
      label noise. Small values work after a warm-up at inf only: see
      `by_progress`. May be an array, or a schedule of the number of updates.
    decay: 1 - gamma in [0, 1), share of the old u. 0 gives the softmax over
      the batch, whose bias only a larger batch lowers.
    authors_alpha: for the exact results of the authors' code, their alpha in
      (0, 1]: u then starts at 0, and each batch enters it times alpha, so that
      weights come out 1/alpha times as large, a hidden learning rate. Their
      `abgamma` is 1 - decay.

  Returns:
    A transformation of PerExample.

  Raises:
    ValueError: on a bad argument; in update, out of place.

  Source: Qi et al. (2020), arXiv:2012.06951, algorithm 1. Tilted empirical
  risk, Li et al. (2021), arXiv:2007.01162, in its stochastic form is the same,
  with tilt 1 / temperature.
  """
  if not callable(temperature):
    _validate.positive(**{'|temperature|': abs(temperature)})
  _validate.decays(decay=decay)
  if authors_alpha is not None:
    _validate.positive(authors_alpha=authors_alpha)
    _validate.fractions(authors_alpha=authors_alpha)

  def init_fn(params: PyTree) -> ScaleByAbsgdState:
    del params
    return ScaleByAbsgdState(
      count=jnp.zeros((), jnp.int32),
      temperature=jnp.full((), jnp.inf, jnp.float32),
      anchor=jnp.zeros((), jnp.float32),
      log_u=jnp.zeros((), jnp.float32),
    )

  def moving_average(state, now, anchor, batch):
    has_u = now / state.temperature > 0
    held = state.log_u * state.temperature + (state.anchor - anchor)
    old = jnp.where(has_u, held / now, -jnp.inf)
    kept = jnp.asarray(decay, jnp.float32)
    if authors_alpha is None:
      kept = jnp.where(has_u, kept, 0.0)
    else:
      batch += jnp.log(authors_alpha)
    log_u = jnp.logaddexp(jnp.log(kept) + old, jnp.log1p(-kept) + batch)
    return jnp.where(jnp.isinf(now), 0.0, log_u)

  def update_fn(updates, state, params=None, **extra):
    del params, extra
    _expect_per_example(updates, 'scale_by_absgd')
    now = temperature(state.count) if callable(temperature) else temperature
    now = jnp.asarray(now, jnp.float32)
    losses = updates.losses.astype(jnp.float32)
    excess, anchor = _over_temperature(losses, updates.weights, now)
    tilted = updates.weights * jnp.exp(excess)
    tilted = jnp.where(updates.weights == 0, 0.0, tilted)
    log_u = moving_average(state, now, anchor, jnp.log(jnp.mean(tilted)))
    weights = jnp.where(tilted == 0, 0.0, tilted * jnp.exp(-log_u))
    updates = updates.reweighted(weights, 'scale_by_absgd')
    count = optax.safe_increment(state.count)
    finite = jnp.all(jnp.isfinite(losses)) & jnp.isfinite(log_u)
    state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      ScaleByAbsgdState(count, now, anchor, log_u),
      state,
    )
    return updates, state._replace(count=count)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_cvar(
  share: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
  """Keeps the share of the batch with the largest losses, at 1/share weight.

  The update descends the conditional value at risk, the mean of the largest
  losses: those of the batch, so that it is biased on few examples. The share
  is one of the total weight so far; the mean weight stays, and the example at
  the border counts in part.

  Args:
    share: alpha in (0, 1]; 1 is the plain average.

  Raises:
    ValueError: for a share out of range; in update, out of place.

  Source: Rockafellar & Uryasev (2000), doi:10.21314/JOR.2000.038.
  """
  _validate.positive(share=share)
  _validate.fractions(share=share)

  def weigh(per_example, **extra):
    del extra
    order = jnp.argsort(-per_example.losses)
    weights = per_example.weights[order]
    mass = jnp.cumsum(weights)
    room = share * mass[-1] - (mass - weights)  # when an example's turn comes
    taken = jnp.clip(room, 0.0, weights) / share
    return jnp.zeros_like(weights).at[order].set(taken)

  return _reweighting('scale_by_cvar', weigh)


def scale_by_chi_square(
  temperature: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies each weight by max(loss - level, 0) / temperature.

  The level is such that the mean weight stays. The update descends the mean
  loss under the worst law, less temperature/2 times the chi-square divergence
  of that law from the target: of the batch, so that it is biased on few
  examples. Unlike those of `scale_by_absgd`, weights grow linearly with the
  loss, and the smallest losses get none.

  Args:
    temperature: lambda, never 0, as in `scale_by_absgd`.

  Raises:
    ValueError: for a temperature of 0; in update, out of place.

  Source: Levy et al. (2020), arXiv:2010.05893, section 2.
  """
  _validate.positive(**{'|temperature|': abs(temperature)})

  def weigh(per_example, **extra):
    del extra
    weights = per_example.weights
    excess, _ = _over_temperature(per_example.losses, weights, temperature)
    order = jnp.argsort(-excess)
    mass = jnp.cumsum(weights[order])
    moment = jnp.cumsum((weights * excess)[order])
    # The level, were the first k examples to share the mass: with too few or
    # too many of them it is too low.
    level = jnp.max((moment - mass[-1]) / mass)
    scaled = weights * jnp.maximum(excess - level, 0.0)
    return jnp.where(weights == 0, 0.0, scaled)

  return _reweighting('scale_by_chi_square', weigh)


class ClipWeightsState(NamedTuple):
  """clipped_mass: f32[] in [0, 1), share of the last weights' sum cut off."""

  clipped_mass: jax.Array


def clip_weights(
  max_weight: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
  """Caps each example's weight; the one cap, last before the average.

  It trades bias for variance: the mean weight falls by `clipped_mass`, which
  the state reports.

  Args:
    max_weight: the cap, > 0.

  Raises:
    ValueError: where the cap is not positive; in update, out of place.

  Source: Ionides (2008), Truncated importance sampling.
  """
  _validate.positive(max_weight=max_weight)

  def init_fn(params: PyTree) -> ClipWeightsState:
    del params
    return ClipWeightsState(jnp.zeros((), jnp.float32))

  def update_fn(updates, state, params=None, **extra):
    del state, params, extra
    _expect_per_example(updates, 'clip_weights')
    clipped = jnp.minimum(updates.weights, max_weight)
    total = jnp.sum(updates.weights)
    mass = jnp.where(total > 0, 1 - jnp.sum(clipped) / total, 0.0)
    updates = updates.reweighted(clipped, 'clip_weights')
    return updates, ClipWeightsState(mass.astype(jnp.float32))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def average_gradient() -> optax.GradientTransformationExtraArgs:
  """Turns a PerExample into (1/b) sum_i weights_i grad l_i.

  The one backward pass of the step. What follows in the chain sees a plain
  gradient. Decay the parameters' norm after it, not in the loss, which the
  weights would multiply.

  Raises:
    ValueError: in update, where it meets anything but a PerExample.
  """

  def update_fn(updates, state, params=None, **extra):
    del params, extra
    _expect_per_example(updates, 'average_gradient')
    batch_size = updates.losses.shape[0]
    return updates.pullback(updates.weights / batch_size), state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )


def importance_weighted(
  inner: optax.GradientTransformation,
  num_examples: int,
  *,
  exponent: float | jax.Array | optax.Schedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
  """Makes an optimiser one of importance-sampled batches.

  chain(scale_by_importance(num_examples, exponent), average_gradient(), inner).

  Args:
    inner: any optax transformation of plain gradients.
    num_examples: N.
    exponent: of the weights, as in `scale_by_importance`.
  """
  return optax.chain(
    scale_by_importance(num_examples, exponent=exponent),
    average_gradient(),
    inner,
  )


def by_progress(
  make: Callable[[jax.Array], optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
  """Makes a transform whose parameters follow the run's progress.

  How many steps a gated run takes is known only at its end, so that what
  changes during a run does so by the share of the budget that is spent. One
  compiled program covers all phases:

      by_progress(lambda t: scale_by_absgd(jnp.where(t < 0.8, jnp.inf, 5.0)))

  Args:
    make: (progress f32[] in [0, 1]) -> a transform, made anew in every update;
      its state must not depend on the progress. `update` takes `progress=`,
      which `make_train_step` passes wherever it has a budget.

  Raises:
    ValueError: in update, without progress.
  """

  def init_fn(params: PyTree) -> PyTree:
    return make(jnp.zeros((), jnp.float32)).init(params)

  def update_fn(updates, state, params=None, *, progress=None, **extra):
    _expect_progress(progress, 'by_progress')
    tx = optax.with_extra_args_support(make(progress))
    return tx.update(updates, state, params, progress=progress, **extra)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _expect_progress(progress: Any, name: str) -> None:
  if progress is None:
    raise ValueError(
      f'{name} needs progress=, a number in [0, 1]: give make_train_step a '
      'budget, or use a schedule of steps.'
    )


def scale_by_progress(
  schedule: optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies plain updates by schedule(progress).

  Progress is the share of the run's budget that is spent, in [0, 1]. How many
  steps a gated run takes is known only at its end, so that a learning rate
  decays by cost and not by steps. `update` takes `progress=`, which
  `make_train_step` passes wherever it has a budget.

  Args:
    schedule: (f32[] in [0, 1]) -> factor f32[].

  Raises:
    ValueError: in update, without progress.
  """

  def update_fn(updates, state, params=None, *, progress=None, **extra):
    del params, extra
    _expect_progress(progress, 'scale_by_progress')
    factor = schedule(progress)
    updates = jax.tree.map(lambda u: u * jnp.asarray(factor, u.dtype), updates)
    return updates, state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )
