"""Whether a model was run on the statistics of its batch."""

from collections.abc import Mapping

import jax

from isjax.types import PyTree


def in_use(before: PyTree, after: PyTree) -> bool:
  """Tells whether a training pass has updated the collection 'batch_stats'.

  One that normalises by running statistics hands them on as they are, the very
  same arrays.

  Args:
    before: model_state as it went into the pass.
    after: model_state as it came out.
  """
  old, new = (
    jax.tree.leaves(
      state.get('batch_stats') if isinstance(state, Mapping) else ()
    )
    for state in (before, after)
  )
  return any(a is not b for a, b in zip(old, new, strict=False))
