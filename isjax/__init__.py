"""Importance sampling for training deep networks, in JAX."""

from isjax import (
  alias,
  losses,
  metrics,
  resampling,
  samplers,
  scores,
  sum_tree,
  transforms,
  weights,
)
from isjax.alias import AliasTable
from isjax.index_stream import IndexStream
from isjax.samplers import (
  SAMPLERS,
  class_balanced,
  early_importance,
  memory,
  presample,
  record_weighted,
  shuffle,
  uniform,
)
from isjax.scores import SCORES, logit_gradient_norm
from isjax.step import (
  init_train_state,
  make_eval_step,
  make_loop,
  make_train_step,
)
from isjax.stream import make_stream_loop
from isjax.transforms import (
  PerExample,
  average_gradient,
  by_progress,
  clip_weights,
  importance_weighted,
  per_example_gradient,
  scale_by_absgd,
  scale_by_chi_square,
  scale_by_class,
  scale_by_cvar,
  scale_by_importance,
  scale_by_progress,
  self_normalise_weights,
)
from isjax.types import (
  Batch,
  Draw,
  Observation,
  Sampler,
  TrainState,
  num_examples,
  take,
)

__version__ = '0.1.0'

__all__ = [
  'SAMPLERS',
  'SCORES',
  'AliasTable',
  'Batch',
  'Draw',
  'IndexStream',
  'Observation',
  'PerExample',
  'Sampler',
  'TrainState',
  'alias',
  'average_gradient',
  'by_progress',
  'class_balanced',
  'clip_weights',
  'early_importance',
  'importance_weighted',
  'init_train_state',
  'logit_gradient_norm',
  'losses',
  'make_eval_step',
  'make_loop',
  'make_stream_loop',
  'make_train_step',
  'memory',
  'metrics',
  'num_examples',
  'per_example_gradient',
  'presample',
  'record_weighted',
  'resampling',
  'samplers',
  'scale_by_absgd',
  'scale_by_chi_square',
  'scale_by_class',
  'scale_by_cvar',
  'scale_by_importance',
  'scale_by_progress',
  'scores',
  'self_normalise_weights',
  'shuffle',
  'sum_tree',
  'take',
  'transforms',
  'uniform',
  'weights',
]
