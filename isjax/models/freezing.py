"""Training a part of a model's parameters only."""

from collections.abc import Sequence

import jax
import optax

from isjax.types import PyTree


def train_only(
  inner: optax.GradientTransformation, prefixes: Sequence[str]
) -> optax.GradientTransformationExtraArgs:
  """Lets `inner` update some of the parameters, and freezes all others.

  What is frozen has no state in the optimiser, is not decayed, and its gradient
  is not computed by a compiled step. It stands after the average:
  importance_weighted(train_only(tx, ('stage4', 'head')), num_examples). Running
  statistics are no parameters: the norm 'frozen_batch' keeps those. Scores of
  the whole model's gradient count frozen parameters too.

  Args:
    inner: of the parameters that are trained.
    prefixes: the beginnings of their paths, such as 'head' of 'head/kernel';
      'Dense_1' is one of 'Dense_10/bias', 'Dense_1/' is not.

  Returns:
    An optax transformation; frozen parameters get updates of 0.

  Raises:
    ValueError: in init and update, for a prefix that begins no path.
  """

  def labels(params):
    return _labels(params, tuple(prefixes))

  return optax.partition(
    {'trained': inner, 'frozen': optax.set_to_zero()}, labels
  )


def _labels(params: PyTree, prefixes: tuple[str, ...]) -> PyTree:
  """'trained' or 'frozen' in place of each parameter."""
  paths = jax.tree.map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'),
    params,
  )
  for prefix in prefixes:
    if not any(path.startswith(prefix) for path in jax.tree.leaves(paths)):
      heads = dict.fromkeys(p.split('/')[0] for p in jax.tree.leaves(paths))
      raise ValueError(
        f'prefixes must each begin the path of a parameter; got {prefix!r}, '
        f'and the paths begin with {", ".join(heads)}.'
      )
  return jax.tree.map(
    lambda path: 'trained' if path.startswith(prefixes) else 'frozen', paths
  )
