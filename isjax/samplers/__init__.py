"""Ways to choose the examples of each update, one file each.

A sampler is a `Sampler` of pure functions (see `isjax.types`). To add one,
write its file, add a line to SAMPLERS, and the contract tests run over it: its
factory takes (num_examples, batch_size, **options) and works without options.
"""

from collections.abc import Callable

from isjax.samplers.presample import presample
from isjax.samplers.shuffle import shuffle
from isjax.samplers.uniform import uniform
from isjax.types import Sampler

SAMPLERS: dict[str, Callable[..., Sampler]] = {
  'uniform': uniform,
  'shuffle': shuffle,
  'presample': presample,
}

__all__ = ['SAMPLERS', 'presample', 'shuffle', 'uniform']
