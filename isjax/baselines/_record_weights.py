"""What the rivals make of record weights: nothing, and they say so."""

import jax


def refuse(name: str, record_weights: jax.Array | None) -> None:
  """Raises ValueError where there are record weights."""
  if record_weights is not None:
    raise ValueError(
      f'{name} takes no record_weights, since its rule treats all examples '
      'alike: train it on data._replace(record_weights=None), or take a '
      'sampler of isjax.samplers.'
    )
