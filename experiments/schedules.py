"""Schedules of the learning rate: factors by the share of the budget spent."""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]


def constant() -> Schedule:
  """1 throughout."""
  return jnp.ones_like


def linear() -> Schedule:
  """From 1 down to 0."""
  return lambda progress: 1 - progress


def cosine() -> Schedule:
  """From 1 down to 0, along half a period."""
  return lambda progress: 0.5 * (1 + jnp.cos(math.pi * progress))


def steps(at: Sequence[float], factor: float, warmup: float = 0.0) -> Schedule:
  """1, then times `factor` at each share of the budget.

  Args:
    at: those shares.
    factor: of each step.
    warmup: share over which it first rises from 0 in a line.
  """

  def schedule(progress):
    passed = sum(jnp.float32(progress >= share) for share in at)
    rise = jnp.minimum(progress / warmup, 1.0) if warmup else 1.0
    return rise * jnp.float32(factor) ** passed

  return schedule


# name -> factory
SCHEDULES: dict[str, Callable[..., Schedule]] = {
  'constant': constant,
  'linear': linear,
  'cosine': cosine,
  'steps': steps,
}
