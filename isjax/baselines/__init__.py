"""Rivals that a comparison needs, as samplers; nothing else imports them.

Each takes (num_examples, batch_size, **options), gives a `Sampler`, and sets
its target law so that weights with exponent 1 are those of its authors. None
of them averages over the record weights of the data.
"""

from collections.abc import Callable

from isjax.baselines.info_batch import info_batch
from isjax.baselines.random_pruning import random_pruning
from isjax.baselines.selective_backprop import selective_backprop
from isjax.types import Sampler

BASELINES: dict[str, Callable[..., Sampler]] = {
  'selective_backprop': selective_backprop,
  'info_batch': info_batch,
  'random_pruning': random_pruning,
}

__all__ = [
  'BASELINES',
  'info_batch',
  'random_pruning',
  'selective_backprop',
]
