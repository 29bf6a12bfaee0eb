"""Where arrays lie on a mesh, and how the drawn rows get to their devices."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from isjax import _validate, types
from isjax.types import Batch, PyTree, TrainState, num_examples


@dataclasses.dataclass(frozen=True)
class Shards:
  """The D shards of every array that has one row per example.

  Device d of the axis holds rows [d N/D, (d + 1) N/D). Along other axes of the
  mesh the shards are repeated. Hashable, and static wherever it goes.

  mesh: whose axes are all Auto, so that XLA places what nobody has placed:
        jax.make_mesh((D,), ('data',), axis_types=(AxisType.Auto,)).
  axis: the name of one axis of it, along which examples are split.

  Raises:
    ValueError: where the mesh has no such axis, or one that is not Auto.
  """

  mesh: Mesh
  axis: str

  def __post_init__(self):
    """Checks the mesh."""
    _validate.one_of(self.mesh.axis_names, axis=self.axis)
    if any(kind != AxisType.Auto for kind in self.mesh.axis_types):
      raise ValueError(
        'mesh must have Auto axes alone: jax.make_mesh(..., axis_types='
        '(AxisType.Auto,) * number of axes); got '
        f'{self.mesh.axis_types}.'
      )

  @property
  def count(self) -> int:
    """D."""
    return self.mesh.shape[self.axis]

  @property
  def split(self) -> NamedSharding:
    """The sharding of an array with one row per example."""
    return NamedSharding(self.mesh, PartitionSpec(self.axis))

  @property
  def whole(self) -> NamedSharding:
    """The sharding of an array that every device has a copy of."""
    return NamedSharding(self.mesh, PartitionSpec())

  def part(self, rows: int, name: str, remedy: str) -> int:
    """Returns rows / D, of rows that D divides and an i32 can number.

    Raises:
      ValueError: for others.
    """
    if rows >= 2**31:
      raise ValueError(
        f'{name} must be below 2^31, for indices are i32; got {rows}. Give '
        'each group of hosts a part of the examples.'
      )
    if rows % self.count:
      raise ValueError(
        f'{name} must be a multiple of the {self.count} devices along '
        f'{self.axis!r}; got {rows}. {remedy}'
      )
    return rows // self.count

  def map(
    self, function: Callable[..., Any], in_specs: Any, out_specs: Any
  ) -> Callable[..., Any]:
    """Returns the function made to run on each device, on its own shards.

    Specs are prefixes of the trees of arguments and results, of the entries
    `SPLIT` and `WHOLE`.
    """
    in_specs, out_specs = jax.tree.map(
      lambda split: PartitionSpec(self.axis) if split else PartitionSpec(),
      (in_specs, out_specs),
    )
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )


SPLIT, WHOLE = True, False  # entries of the specs of `Shards.map`
PAD = 'sharding.pad(data, D) adds examples of record weight 0.'
FAN_OUT = 16  # of a sum tree


def stacked(tree: PyTree) -> PyTree:
  """Returns what one device has, to be one row of what all have."""
  return jax.tree.map(lambda x: x[None], tree)


def own(tree: PyTree) -> PyTree:
  """Returns the one row that is here of what all devices have."""
  return jax.tree.map(lambda x: x[0], tree)


def pad(batch: Batch, multiple: int) -> Batch:
  """Makes N a multiple by examples whose record weight is 0.

  They are copies of the last one, so that whatever is computed of them is
  finite. The objective is the same, and so are averages by record weight.
  Samplers that draw by record weight never draw them; others do, at weight 0.

  Args:
    batch: of N examples.
    multiple: D, or any multiple of it.

  Returns:
    The batch itself where N is a multiple; else one that has record weights,
    1 where there were none. Give them to the sampler.
  """
  _validate.positive_integers(multiple=multiple)
  size = num_examples(batch)
  if size % multiple == 0:
    return batch
  rows = np.minimum(np.arange(size + -size % multiple), size - 1)
  records = batch.record_weights
  if records is None:
    records = np.ones((size,), np.float32)
  padded = jax.tree.map(
    lambda array: array[rows], batch._replace(record_weights=records)
  )
  is_example = np.arange(len(rows)) < size
  return padded._replace(record_weights=padded.record_weights * is_example)


def shard(batch: Batch, shards: Shards) -> Batch:
  """Puts a training set on the mesh, N/D examples on each device.

  A process reads no other rows of an array on the host than those that its own
  devices hold, so that the array may be a memory map of a large file.

  Args:
    batch: of N examples, D a divisor of N. For draws by quota their order
      should be random: the quota of a shard does not depend on what is in it.
    shards: of the mesh.

  Raises:
    ValueError: where D does not divide N.
  """
  shards.part(num_examples(batch), 'the number of examples', PAD)

  return jax.tree.map(lambda rows: put(rows, shards.split), batch)


def put(array: Any, sharding: NamedSharding) -> jax.Array:
  """Puts an array on the mesh, of which each process holds the same one.

  A process reads only what its own devices are to have of it.
  """
  if isinstance(array, jax.core.Tracer) or (
    isinstance(array, jax.Array) and sharding.is_fully_addressable
  ):
    return jax.device_put(array, sharding)
  if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
    data = put(jax.random.key_data(array), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
  array = np.asarray(array)
  dtype = jax.dtypes.canonicalize_dtype(array.dtype)
  return jax.make_array_from_callback(
    array.shape, sharding, lambda at: array[at].astype(dtype)
  )


def layout(state: PyTree, shards: Shards, num_examples: int) -> PyTree:
  """Returns where the arrays of a sampler's state belong, as shardings.

  Arrays of N rows are split; and those of about N/16, the lowest nodes of a sum
  tree, if no siblings are parted. Every device has a copy of all else.
  """

  def of(array):
    length = max(array.shape[:1], default=0)
    own = shards.count if length == num_examples else FAN_OUT * shards.count
    long = FAN_OUT * length >= num_examples and length % own == 0
    return shards.split if long else shards.whole

  return jax.tree.map(of, state)


def place(state: TrainState, shards: Shards, num_examples: int) -> TrainState:
  """Puts a training state on the mesh.

  The sampler's arrays with a row per example are split; all else, parameters
  and optimiser included, is copied to every device. What is on the mesh already
  stays as it is.

  Args:
    state: of `init_train_state`.
    shards: of the mesh.
    num_examples: N.

  Returns:
    The state. It may share buffers with the one passed in, which a step that
    donates its state then uses up: forget that one.
  """
  _validate.positive_integers(num_examples=num_examples)

  def put_unless_there(array, sharding):
    at = getattr(array, 'sharding', None)
    is_there = isinstance(at, NamedSharding) and at.mesh == shards.mesh
    return array if is_there else put(array, sharding)

  shardings = jax.tree.map(lambda _: shards.whole, state)._replace(
    sampler_state=layout(state.sampler_state, shards, num_examples)
  )
  return jax.tree.map(put_unless_there, state, shardings)


def take(batch: Batch, indices: jax.Array, shards: Shards) -> Batch:
  """Returns the examples at given indices, m/D of them on each device.

  Each device reads those that it holds, and every device gets its part of the
  sum: m rows cross, whatever N is. XLA, left alone with `types.take`, sends all
  of them to all devices.

  Args:
    batch: of N examples, split by `shard`.
    indices: i32[m] in [0, N), D a divisor of m.
    shards: of the mesh.

  Returns:
    Batch of m, split: slots [d m/D, (d + 1) m/D) are on device d.

  Raises:
    ValueError: where D does not divide N or m.
  """
  _check_lengths(batch, indices, shards)

  def exchange(batch, indices):
    at = indices - _first_row(batch, shards)
    here = (at >= 0) & (at < num_examples(batch))
    at = jnp.where(here, at, 0)

    def send(rows):
      found = rows.at[at].get(mode='promise_in_bounds')
      found = jnp.where(here.reshape(-1, *[1] * (rows.ndim - 1)), found, 0)
      as_sum = found.astype(jnp.uint8) if rows.dtype == bool else found
      mine = lax.psum_scatter(as_sum, shards.axis, tiled=True)
      return mine.astype(rows.dtype)

    return jax.tree.map(send, batch)

  return shards.map(exchange, (SPLIT, WHOLE), SPLIT)(batch, indices)


def take_own(batch: Batch, indices: jax.Array, shards: Shards) -> Batch:
  """Returns the examples drawn by quota: every row stays on its device.

  Args:
    batch: of N examples, split by `shard`.
    indices: i32[m], D a divisor of m; those at slots [d m/D, (d + 1) m/D) must
      be of examples that device d holds, as a sampler of `quota` draws them.
      Any other index reads garbage.
    shards: of the mesh.

  Returns:
    Batch of m, split like the slots.

  Raises:
    ValueError: where D does not divide N or m.
  """
  _check_lengths(batch, indices, shards)

  def read(batch, indices):
    return types.take(batch, indices - _first_row(batch, shards))

  return shards.map(read, (SPLIT, SPLIT), SPLIT)(batch, indices)


def _check_lengths(batch: Batch, indices: jax.Array, shards: Shards) -> None:
  shards.part(num_examples(batch), 'the number of examples', PAD)
  shards.part(indices.shape[0], 'the number of indices', 'Draw more, or fewer.')


def _first_row(batch: Batch, shards: Shards) -> jax.Array:
  """Returns the global index of the first example here."""
  return lax.axis_index(shards.axis) * num_examples(batch)
