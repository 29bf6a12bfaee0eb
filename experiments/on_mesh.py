"""A run on all devices, of one process or of several: config['sharding'].

form: 'none' for a single device; 'quota' or 'global' for all of them, data and
sampler split as `isjax.sharding` has it. By quota `sampler.pool_size` counts
the examples of all devices, of which each has its part.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType

from experiments import peers
from experiments.settings import SettingsError, choose
from isjax import sharding
from isjax.sharding import Shards
from isjax.sharding.placement import FAN_OUT, SPLIT, WHOLE, layout
from isjax.types import Batch, Metrics, PyTree, Sampler, TrainState
from isjax.types import num_examples as size_of

_FORMS = {'quota': sharding.quota, 'global': sharding.global_law}
# Makes N, and with it what is drawn globally, the same on 1 to 8 devices.
_ROWS = 128


def shards(form: str) -> Shards | None:
  """Returns the mesh of all devices, or None for the form 'none'.

  Raises:
    SettingsError: for a form that there is not, and for 'none' where several
      processes would make the same run.
  """
  choose({'none': None} | _FORMS, form, 'sharding.form')
  if form != 'none':
    axes = (AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=axes)
    return Shards(mesh, 'data')
  if peers.are_several():
    raise SettingsError(
      'several processes share a run only with --config.sharding.form=quota or '
      '=global.'
    )
  return None


def padded(batch: Batch, form: str, shards: Shards) -> Batch:
  """Returns a set that can be split, with record weights 0 where it was padded.

  For global draws N becomes a multiple of 128, and of 16 D.
  """
  multiple = shards.count
  if form == 'global':
    multiple = math.lcm(_ROWS, FAN_OUT * shards.count)
  return sharding.pad(batch, multiple)


def sampler(
  make: Callable[..., Sampler],
  fields: dict[str, Any],
  num_examples: int,
  form: str,
  shards: Shards,
) -> Sampler:
  """Returns the sampler that draws for all devices, or one on each of them.

  Args:
    make: (num_examples, **fields) -> Sampler.
    fields: its options, those with a row per example among them.
    num_examples: N.
    form: 'quota' or 'global'.
    shards: of the mesh.

  Raises:
    ValueError: for sizes that cannot be split, and for samplers that cannot.
  """
  fields = dict(fields)
  arrays = {
    name: fields.pop(name)
    for name in ('record_weights', 'labels')
    if name in fields
  }
  if form == 'quota' and 'pool_size' in fields:
    size = fields['pool_size']
    fields['pool_size'] = shards.part(size, 'pool_size', 'Take the next.')
  batch_size = fields.pop('batch_size')

  def of_size(num_examples, batch_size, **arrays):
    return make(num_examples, **fields, batch_size=batch_size, **arrays)

  return _FORMS[form](of_size, num_examples, batch_size, shards, arrays=arrays)


def state_layout(state: TrainState, form: str, shards: Shards, size: int):
  """Returns where the arrays of a training state belong, as shardings.

  Args:
    state: or its shapes.
    form: 'quota' or 'global'.
    shards: of the mesh.
    size: N.
  """
  if form == 'quota':
    of_sampler = jax.tree.map(lambda _: shards.split, state.sampler_state)
  else:
    of_sampler = layout(state.sampler_state, shards, size)
  everywhere = jax.tree.map(lambda _: shards.whole, state)
  return everywhere._replace(sampler_state=of_sampler)


def evaluation(
  evaluate: Callable[[PyTree, PyTree, Batch], Metrics], shards: Shards
) -> Callable[[PyTree, PyTree, Batch], Metrics]:
  """Returns the evaluation of a split set, each device that of its own rows."""

  def of_shard(params, model_state, data):
    weights = data.record_weights
    share = size_of(data) if weights is None else jnp.sum(weights)
    share = jnp.asarray(share, jnp.float32)
    total = lax.psum(share, shards.axis)
    return {
      name: lax.psum(jnp.where(share > 0, share * mean, 0.0), shards.axis)
      / total
      for name, mean in evaluate(params, model_state, data).items()
    }

  return jax.jit(shards.map(of_shard, (WHOLE, WHOLE, SPLIT), WHOLE))
