"""Records of unequal weight, drawn in proportion to it or by any other law."""

import jax
import jax.numpy as jnp
import numpy as np

from isjax import _validate
from isjax.alias import validate_weights
from isjax.samplers._fixed_law import fixed_law
from isjax.samplers._record_weights import checked_target_law
from isjax.types import Sampler
from isjax.weights import mix_with, normalise


def record_weighted(
  num_examples: int,
  batch_size: int,
  *,
  record_weights: jax.Array | None = None,
  law: jax.Array | None = None,
  scores: jax.Array | None = None,
  mix: float = 0.0,
  draws: str = 'independent',
) -> Sampler:
  """Draws with p proportional to r, or by another law corrected to it.

  The objective is sum_i r_i l_i / R in any case. Where p = r/R every
  importance weight is 1, and the batch is what duplicating each record r_i
  times would give. Another law is corrected by (r_i / R) / p_i without bias;
  the best one is proportional to r_i s_i, with scores s_i near to the
  gradients' norms.

  Args:
    num_examples: N.
    batch_size: b.
    record_weights: r f32[N] >= 0; None: all alike.
    law: f32[N] >= 0, what to draw in proportion to. It must be positive
      wherever r is, or mix must be.
    scores: s f32[N] >= 0, instead of a law: stand for the law r_i s_i. Where
      both are None the law is r.
    mix: share in [0, 1] of r/R in the law, which bounds the importance weights
      by 1 / mix.
    draws: 'independent'; or 'epoch', N draws in which each example occurs
      floor(N p_i) or ceil(N p_i) times, in random order, with b <= N.

  Raises:
    ValueError: on a bad argument, both a law and scores, or one that leaves out
      a record of positive weight.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  _validate.fractions(mix=mix)
  if law is not None and scores is not None:
    raise ValueError(
      'law and scores must not both be given: scores stand for the law '
      'record_weights * scores.'
    )
  target = checked_target_law(record_weights, num_examples)
  objective = jnp.ones((num_examples,)) if target is None else target
  if law is not None:
    law = _checked('law', law, objective, mix)
  elif scores is not None:
    law = objective * _checked('scores', scores, objective, mix)
  else:
    return fixed_law(objective, target, batch_size, draws)
  mixed = mix_with(normalise(law), normalise(objective), mix)
  return fixed_law(mixed, target, batch_size, draws)


def _checked(
  name: str, values: jax.Array, objective: jax.Array, mix: float
) -> jax.Array:
  """Returns the argument of that name in f32[N], if it is one to draw by."""
  if np.shape(values) != objective.shape:
    raise ValueError(
      f'{name} must have one number per example, {objective.shape}; got shape '
      f'{np.shape(values)}.'
    )
  values = jnp.asarray(values, jnp.float32)
  if isinstance(values, jax.core.Tracer):
    return values
  validate_weights(values)
  lost = (np.asarray(values) == 0) & (np.asarray(objective) > 0)
  if mix == 0 and lost.any():
    raise ValueError(
      f'{name}[{lost.argmax()}] is 0, but its record counts in the objective '
      'and would never be drawn: give mix a positive value, such as 0.1.'
    )
  return values
