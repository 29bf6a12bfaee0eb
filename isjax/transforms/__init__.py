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

from isjax.transforms.importance import (
  ScaleByImportanceState,
  importance_weighted,
  scale_by_importance,
)
from isjax.transforms.per_example import (
  PerExample,
  average_gradient,
  per_example_gradient,
  reweighting,
)
from isjax.transforms.progress import by_progress, scale_by_progress
from isjax.transforms.robust import (
  ScaleByAbsgdState,
  scale_by_absgd,
  scale_by_chi_square,
  scale_by_cvar,
)
from isjax.transforms.weighting import (
  ClipWeightsState,
  clip_weights,
  scale_by_class,
  self_normalise_weights,
)

__all__ = [
  'ClipWeightsState',
  'PerExample',
  'ScaleByAbsgdState',
  'ScaleByImportanceState',
  'average_gradient',
  'by_progress',
  'clip_weights',
  'importance_weighted',
  'per_example_gradient',
  'reweighting',
  'scale_by_absgd',
  'scale_by_chi_square',
  'scale_by_class',
  'scale_by_cvar',
  'scale_by_importance',
  'scale_by_progress',
  'self_normalise_weights',
]
