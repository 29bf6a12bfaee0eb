"""Training on several devices, with data, scores and tables in shards.

The devices are those of a `jax.sharding.Mesh`, of one process or of many
(`jax.distributed`), and a shard is what one of them holds: N/D examples, and
whatever the sampler knows of them. A step is one `jax.jit` over such arrays, so
b, every normaliser and every metric are global, and XLA adds the all-reduce of
the gradient. What XLA would do by gathering a table or the data is written out
here, by `jax.shard_map`.

There are two forms of draw. By quota each device draws b/D of its own examples,
with p = p_local / D, and trains on them: no row leaves its device. Globally the
law is that of a single device, and the b rows drawn go where they are needed.

      global                      by quota
      global_law, two_level       quota             samplers
      take                        take_own          their rows
      build(weights, shards)      build(weights, shards, form='quota')

Globally a step sends the b rows drawn and some words per draw between devices,
by quota nothing but scalars; and either sends the gradient. By quota it also
takes care of all samplers, those that rebuild tables included.
"""

from isjax.sharding.global_law import global_law, two_level
from isjax.sharding.placement import (
  Shards,
  pad,
  place,
  shard,
  take,
  take_own,
)
from isjax.sharding.quota import quota
from isjax.sharding.table import (
  ShardedTable,
  build,
  probabilities,
  probabilities_at,
  sample,
  sample_with_probabilities,
)

__all__ = [
  'ShardedTable',
  'Shards',
  'build',
  'global_law',
  'pad',
  'place',
  'probabilities',
  'probabilities_at',
  'quota',
  'sample',
  'sample_with_probabilities',
  'shard',
  'take',
  'take_own',
  'two_level',
]
