"""experiments/schedules.py: factors of the learning rate by progress."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.schedules import SCHEDULES, steps

PROGRESS = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('constant', [1, 1, 1, 1, 1]),
    ('linear', [1, 0.75, 0.5, 0.25, 0]),
    ('cosine', (1 + np.cos(np.pi * PROGRESS)) / 2),
  ],
)
def test_the_formula_holds_at_every_share(name, expected):
  """Eager and jit."""
  schedule = SCHEDULES[name]()
  for function in (jax.vmap(schedule), jax.jit(jax.vmap(schedule))):
    np.testing.assert_allclose(function(PROGRESS), expected, atol=1e-6)


def test_steps_multiply_from_their_share_on_after_the_warm_up():
  """By hand: a rise over the first tenth, then 1, .1 and .01."""
  schedule = jax.jit(jax.vmap(steps(at=(0.5, 0.75), factor=0.1, warmup=0.1)))
  shares = jnp.array([0.0, 0.05, 0.1, 0.4999, 0.5, 0.7499, 0.75, 1.0])
  expected = [0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01]
  np.testing.assert_allclose(schedule(shares), expected, rtol=1e-5)
  np.testing.assert_allclose(steps(at=(), factor=0.1)(jnp.float32(0.0)), 1)
