"""Ways to choose the examples of each update, one file each.

A sampler is a `Sampler` of pure functions (see `isjax.types`). To add one,
write its file, add a line to SAMPLERS, and the contract tests run over it: its
factory takes (num_examples, batch_size, **options).
"""

from collections.abc import Callable

from isjax.samplers.class_balanced import class_balanced
from isjax.samplers.early_importance import early_importance, importance_ranks
from isjax.samplers.memory import diagnostics, memory
from isjax.samplers.presample import presample
from isjax.samplers.record_weighted import record_weighted
from isjax.samplers.shuffle import shuffle
from isjax.samplers.uniform import uniform
from isjax.types import Sampler

SAMPLERS: dict[str, Callable[..., Sampler]] = {
  'uniform': uniform,
  'shuffle': shuffle,
  'presample': presample,
  'memory': memory,
  'record_weighted': record_weighted,
  'class_balanced': class_balanced,
  'early_importance': early_importance,
}

__all__ = [
  'SAMPLERS',
  'class_balanced',
  'diagnostics',
  'early_importance',
  'importance_ranks',
  'memory',
  'presample',
  'record_weighted',
  'shuffle',
  'uniform',
]
