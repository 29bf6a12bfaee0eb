"""Weights by loss: objectives that are distributionally robust."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax import _validate
from isjax.transforms.per_example import expect_per_example, reweighting
from isjax.types import PyTree


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
    expect_per_example(updates, 'scale_by_absgd')
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

  return reweighting('scale_by_cvar', weigh)


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

  return reweighting('scale_by_chi_square', weigh)
