"""Whatever changes during a run, by the share of its budget that is spent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from isjax.types import PyTree


def by_progress(
  make: Callable[[jax.Array], optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
  """Makes a transform whose parameters follow the run's progress.

  How many steps a gated run takes is known only at its end, so that what
  changes during a run does so by the share of the budget that is spent. One
  compiled program covers all phases:

      by_progress(lambda t: scale_by_absgd(jnp.where(t < 0.8, jnp.inf, 5.0)))

  Args:
    make: (progress f32[] in [0, 1]) -> a transform, made anew in every update;
      its state must not depend on the progress. `update` takes `progress=`,
      which `make_train_step` passes wherever it has a budget.

  Raises:
    ValueError: in update, without progress.
  """

  def init_fn(params: PyTree) -> PyTree:
    return make(jnp.zeros((), jnp.float32)).init(params)

  def update_fn(updates, state, params=None, *, progress=None, **extra):
    _expect_progress(progress, 'by_progress')
    tx = optax.with_extra_args_support(make(progress))
    return tx.update(updates, state, params, progress=progress, **extra)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _expect_progress(progress: Any, name: str) -> None:
  if progress is None:
    raise ValueError(
      f'{name} needs progress=, a number in [0, 1]: give make_train_step a '
      'budget, or use a schedule of steps.'
    )


def scale_by_progress(
  schedule: optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies plain updates by schedule(progress).

  Progress is the share of the run's budget that is spent, in [0, 1]. How many
  steps a gated run takes is known only at its end, so that a learning rate
  decays by cost and not by steps. `update` takes `progress=`, which
  `make_train_step` passes wherever it has a budget.

  Args:
    schedule: (f32[] in [0, 1]) -> factor f32[].

  Raises:
    ValueError: in update, without progress.
  """

  def update_fn(updates, state, params=None, *, progress=None, **extra):
    del params, extra
    _expect_progress(progress, 'scale_by_progress')
    factor = schedule(progress)
    updates = jax.tree.map(lambda u: u * jnp.asarray(factor, u.dtype), updates)
    return updates, state

  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state, update_fn
  )
