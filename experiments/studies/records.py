"""Sets of records of unequal weight, for the study of their gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.studies.study import UnavailableError
from isjax import Batch
from isjax.data import load, merge_duplicates, rescale


class Records(NamedTuple):
  """A training set with record weights.

  batch:       inputs f32[N, ...], targets i32[N], record weights f32[N].
  num_classes: K.
  origin:      one sentence on where records and weights come from.
  """

  batch: Batch
  num_classes: int
  origin: str


def _synthetic(config: dict[str, Any]) -> Records:
  """A few records of one large weight among light ones."""
  settings = config['synthetic']
  batch, metadata = load('synthetic', 'train')
  size = metadata.num_examples
  num_heavy = round(settings['heavy_share'] * size)
  random = np.random.RandomState(0)
  weights = random.randint(1, settings['max_light_weight'] + 1, size)
  weights[random.permutation(size)[:num_heavy]] = settings['heavy_weight']
  return Records(
    Batch(
      rescale(metadata.max_value)(batch.inputs),
      batch.targets,
      jnp.asarray(weights, jnp.float32),
    ),
    metadata.num_classes,
    f'Made up: {num_heavy} records of weight {settings["heavy_weight"]:g}, the '
    f'others of 1 to {settings["max_light_weight"]}, whatever they show.',
  )


def _digits(config: dict[str, Any]) -> Records:
  """Digits so coarse that many of them look the same."""
  del config
  batch, metadata = load('digits', 'train')
  blocks = np.asarray(batch.inputs).reshape(-1, 4, 2, 4, 2).mean((2, 4))
  on = jnp.asarray(blocks > metadata.max_value / 2, jnp.float32)
  return Records(
    merge_duplicates(Batch(on, batch.targets)),
    metadata.num_classes,
    f'Real: {metadata.num_examples} digits seen by 4x4 pixels that are on or '
    'off, equal ones merged; the weight of a record counts them.',
  )


def _mammography(config: dict[str, Any]) -> Records:
  """Rows of measurements, a third of which are one and the same."""
  del config
  try:
    batch, metadata = load('tabular/mammography', 'train')
  except (ValueError, FileNotFoundError) as error:
    first = str(error).splitlines()[0]
    raise UnavailableError(
      f'{first} It is read from tabular.npz (mammography_x, mammography_y) in '
      'the folder that ISJAX_DATA_DIR names.'
    ) from error
  return Records(
    merge_duplicates(batch),
    metadata.num_classes,
    f'Real: {metadata.num_examples} rows of six measurements, equal ones '
    'merged; the weight of a record counts them.',
  )


# name -> (config) -> Records; UnavailableError where its file is not there.
RECORDS: dict[str, Callable[[dict[str, Any]], Records]] = {
  'synthetic': _synthetic,
  'digits': _digits,
  'mammography': _mammography,
}
