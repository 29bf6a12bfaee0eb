"""How old remembered scores are, and how many there are not.

Both have closed forms, which a simulation of the sampler is held against, and
which no training enters: the scores are made up, and drift.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import isjax
from isjax.types import Observation


def epochs_until(unseen: float, ratio: float, mix: float) -> float:
  """Returns after how many epochs a share of the examples has no score yet.

  Of u N examples without a score, each counts as s_0, the others on average
  as ratio s_0. In an epoch of N draws one of the former is drawn

      h(u) = (1 - mix) / (u + (1 - u) ratio) + mix

  times, so that du / dE = -u h(u); this is its solution for E, from u = 1. It
  is exact in the limit of many examples.

  Args:
    unseen: u in (0, 1].
    ratio: mean of the scores over `initial_score`, > 0.
    mix: in [0, 1], the share of uniform draws.
  """
  slope = mix * (1 - ratio)  # of the denominator of 1 / h, 1 at u = 1
  floor = 1 - slope
  epochs = -ratio / floor * math.log(unseen)
  rest = (1 - mix) * (1 - ratio) / floor
  if slope == 0:
    return epochs + rest * (1 - unseen)
  return epochs - rest / slope * math.log(floor + slope * unseen)


def unseen_after(epochs: float, ratio: float, mix: float) -> float:
  """Returns the share of examples without a score; inverts `epochs_until`."""
  low, high = -800.0, 0.0  # of the logarithm, which epochs fall with
  for _ in range(100):
    middle = (low + high) / 2
    late = epochs_until(math.exp(middle), ratio, mix) > epochs
    low, high = (middle, high) if late else (low, middle)
  return math.exp(high)


def mean_age(law: np.ndarray, batch_size: int) -> tuple[float, float]:
  """Returns the mean age in steps of a score, over draws and over examples.

  In the long run, for a law that stays: example i is in a batch with the chance
  q_i = 1 - (1 - p_i)^b, and its score is 1 / q_i - 1 steps old on average. That
  is close to 1 / (b p_i), whose mean over draws is N / b for any law, and over
  examples at most N / (b mix).

  Args:
    law: p f64[N] > 0.
    batch_size: b.
  """
  age = 1 / -np.expm1(batch_size * np.log1p(-law)) - 1
  return float(law @ age), float(age.mean())


class Drift(NamedTuple):
  """Scores that change: log s is a stationary Gaussian walk for each example.

  num_items:  N.
  batch_size: b.
  spread:     standard deviation of log s.
  epochs:     in which its correlation falls to 1/e; inf: it does not change.
  """

  num_items: int
  batch_size: int
  spread: float
  epochs: float


SIMULATED = Drift(num_items=4096, batch_size=64, spread=1.0, epochs=1.0)
FORGETTING = (math.inf, 10.0, 1.0, 0.1)  # epochs
SIMULATED_EPOCHS = (1, 3, 10)


class Seen(NamedTuple):
  """What a simulated memory is like after a step.

  unseen:    share of the examples without a score.
  age:       f32[2], mean age in steps over draws and over examples; since the
             start where there is no score.
  variance:  second moment of the estimate, over the least there is.
  uniform:   that of uniform draws.
  """

  unseen: jax.Array
  age: jax.Array
  variance: jax.Array
  uniform: jax.Array


@functools.partial(jax.jit, static_argnames=('drift', 'steps', 'options'))
def simulate(
  key: jax.Array,
  drift: Drift,
  steps: int,
  options: tuple[tuple[str, Any], ...] = (),
) -> Seen:
  """Runs `isjax.memory` on scores that drift, without a model.

  Args:
    key: of the draws and the drift.
    drift: of the scores.
    steps: how many.
    options: of the sampler.

  Returns:
    What is seen after each step, every field with a leading axis.
  """
  sampler = isjax.memory(drift.num_items, drift.batch_size, **dict(options))
  keep = math.exp(-drift.batch_size / (drift.num_items * drift.epochs))
  noise = math.sqrt(1 - keep**2)

  def step(carry, key):
    state, logs = carry
    keys = jax.random.split(key, 3)
    indices, _ = sampler.propose(keys[0], state)
    draw, state, _ = sampler.select(keys[1], state, indices, None)
    seen = jnp.exp(drift.spread * logs)[draw.indices]
    state = sampler.observe(state, draw, Observation(seen, seen, {}))
    logs = keep * logs + noise * jax.random.normal(keys[2], logs.shape)
    return (state, logs), look(state, jnp.exp(drift.spread * logs))

  def look(state, scores):
    law = state.probabilities
    ages = (state.step - state.last_scored).astype(jnp.float32)
    least = jnp.square(jnp.mean(scores))
    squares = jnp.square(scores)
    return Seen(
      unseen=jnp.mean(state.visits == 0, dtype=jnp.float32),
      age=jnp.stack([law @ ages / jnp.sum(law), jnp.mean(ages)]),
      variance=jnp.mean(squares / (drift.num_items * law)) / least,
      uniform=jnp.mean(squares) / least,
    )

  first_key, run_key = jax.random.split(key)
  logs = jax.random.normal(first_key, (drift.num_items,))
  first = sampler.init(first_key), logs
  return lax.scan(step, first, jax.random.split(run_key, steps))[1]


def simulated() -> list[dict[str, float]]:
  """Runs the memory on drifting scores; the mean over the last tenth epoch."""
  lines = []
  epoch = SIMULATED.num_items // SIMULATED.batch_size
  for epochs in FORGETTING:
    drift = SIMULATED._replace(epochs=epochs)
    seen = simulate(jax.random.key(0), drift, max(SIMULATED_EPOCHS) * epoch)
    for end in SIMULATED_EPOCHS:
      last = slice(end * epoch - epoch // 10, end * epoch)
      ages = seen.age[last].mean(0) / epoch
      lines.append(
        {
          'forgetting_epochs': epochs,
          'epochs': end,
          'unseen': float(seen.unseen[last].mean()),
          'age_over_draws': float(ages[0]),
          'age_over_examples': float(ages[1]),
          'variance': float(seen.variance[last].mean()),
          'uniform': float(seen.uniform[last].mean()),
        }
      )
  return lines
