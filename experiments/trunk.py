"""Runs that begin alike: the trunk is trained once, and each branches off it.

config['trunk'], dotted field -> value, are the changes of a run's config that
make it its trunk's; among them are `until`, the share of the budget at which
the trunk ends, and `cell`, its name. Runs whose trunks are the same share it.
"""

import functools
import json
import pathlib
from typing import Any

import jax

from experiments import checkpoints, settings
from experiments.program import Program
from experiments.settings import SettingsError
from isjax.types import TrainState

CHECKPOINTS = 'checkpoints'  # in the folder of a run


def config_of(config: dict[str, Any]) -> dict[str, Any] | None:
  """Returns the config of a run's trunk, or None where it has none.

  Raises:
    SettingsError: where the trunk names no `cell` or `until`, or a field that
      there is not.
  """
  changes = config['trunk']
  if not changes:
    return None
  if not {'cell', 'until'} <= changes.keys():
    raise SettingsError(
      f'trunk must name a cell and until; got {", ".join(changes)}.'
    )
  for field, value in {**changes, 'trunk': {}}.items():
    config = settings.with_field(config, field, value)
  return config


def branch(
  program: Program, config: dict[str, Any], folder: pathlib.Path
) -> tuple[TrainState, dict[str, Any]]:
  """Returns the state of a run at the end of its trunk, and the position there.

  The parameters, the clock and the key are the trunk's, and so are the
  optimiser's state where both train the same parameters, and the sampler's
  where both have the same kind; what the trunk does not have, such as a
  normaliser of ABSGD, is new.

  Args:
    program: of the run.
    config: of the run.
    folder: of the finished run of its trunk.

  Raises:
    SettingsError: where the folder holds no such state, or the optimisers
      differ.
  """
  ours = program.init(config['seed'])
  _, theirs, position = checkpoints.read(folder / CHECKPOINTS, _like(config))
  *rest, optimizer = ours.opt_state
  trained = config_of(config)['train_only']
  if set(config['train_only']) == set(trained):
    if _kind(optimizer) != _kind(theirs.opt_state[-1]):
      raise SettingsError(
        f'cell {config["cell"]!r} and its trunk must have the same optimizer.'
      )
    optimizer = theirs.opt_state[-1]
  sampler_state = ours.sampler_state
  if _kind(sampler_state) == _kind(theirs.sampler_state):
    sampler_state = theirs.sampler_state
  state = theirs._replace(
    opt_state=(*rest, optimizer), sampler_state=sampler_state
  )
  return state, position


def _like(config: dict[str, Any]) -> TrainState:
  """A state of the kind of the trunk's."""
  same = settings.with_field(config_of(config), 'seed', 0)
  return _first_state(json.dumps(same))


@functools.cache
def _first_state(config: str) -> TrainState:
  return Program(json.loads(config)).init(0)


def _kind(tree) -> tuple:
  """What two pytrees of arrays must agree on to stand for each other."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
