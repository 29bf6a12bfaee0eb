"""The objective's law, as the samplers take it from their users."""

import jax
import numpy as np

from isjax.alias import validate_weights
from isjax.weights import target_law


def checked_target_law(
  record_weights: jax.Array | None, num_examples: int
) -> jax.Array | None:
  """Returns r / R f32[N], or None where all records count the same."""
  if record_weights is None:
    return None
  if np.shape(record_weights) != (num_examples,):
    raise ValueError(
      f'record_weights must have one weight per example, ({num_examples},); '
      f'got shape {np.shape(record_weights)}.'
    )
  if not isinstance(record_weights, jax.core.Tracer):
    validate_weights(record_weights)
  return target_law(record_weights)
