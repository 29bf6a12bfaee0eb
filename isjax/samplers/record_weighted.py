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
  mix: float = 0.0,
) -> Sampler:
  """Draws with p proportional to r, or by another law corrected to it.

  The objective is sum_i r_i l_i / R in any case. Where p = r/R every
  importance weight is 1, and the batch is what duplicating each record r_i
  times would give. Another law, such as r_i s_i with scores s_i near to the
  gradients' norms, is corrected by (r_i / R) / p_i without bias.

  Args:
    num_examples: N.
    batch_size: b.
    record_weights: r f32[N] >= 0; None: all alike.
    law: f32[N] >= 0, what to draw in proportion to; r where it is None. It
      must be positive wherever r is, or mix must be.
    mix: share in [0, 1] of r/R in the law, which bounds the importance weights
      by 1 / mix.

  Raises:
    ValueError: on a bad argument, or a law that leaves out a record of
      positive weight.
  """
  _validate.positive_integers(num_examples=num_examples, batch_size=batch_size)
  _validate.fractions(mix=mix)
  target = checked_target_law(record_weights, num_examples)
  objective = jnp.ones((num_examples,)) if target is None else target
  if law is None:
    return fixed_law(objective, target, batch_size)
  if np.shape(law) != (num_examples,):
    raise ValueError(
      f'law must have one number per example, ({num_examples},); got shape '
      f'{np.shape(law)}.'
    )
  law = jnp.asarray(law, jnp.float32)
  if not isinstance(law, jax.core.Tracer):
    _expect_support(law, objective, mix)
  mixed = mix_with(normalise(law), normalise(objective), mix)
  return fixed_law(mixed, target, batch_size)


def _expect_support(law: jax.Array, objective: jax.Array, mix: float) -> None:
  validate_weights(law)
  lost = (np.asarray(law) == 0) & (np.asarray(objective) > 0)
  if mix == 0 and lost.any():
    raise ValueError(
      f'law[{lost.argmax()}] is 0, but its record counts in the objective and '
      'would never be drawn: give mix a positive value, such as 0.1.'
    )
