"""The loop of `presample`, its gate always on, with the choice made on host.

What one writes in JAX without a sampler on the device: numpy gathers the pool
and resamples it, two jitted functions score and update. It is spared what the
sampler of isjax does besides: no gate, no metrics.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.loops import LOSS, SCORE, Problem, Setting


class HostLoop:
  """A training run that advances.

  Args:
    problem: what to train; its set is copied to the host.
    setting: of the run.
  """

  def __init__(self, problem: Problem, setting: Setting):
    self._inputs = np.array(problem.data.inputs)
    self._targets = np.array(problem.data.targets)
    self._setting = setting
    self._random = np.random.default_rng(0)
    tx = optax.sgd(setting.learning_rate, momentum=setting.momentum)

    def mean_loss(params, inputs, targets, weights):
      losses = jax.vmap(LOSS)(problem.outputs(params, inputs), targets)
      return jnp.mean(weights * losses)

    def update(params, opt_state, *batch):
      gradient = jax.grad(mean_loss)(params, *batch)
      updates, opt_state = tx.update(gradient, opt_state)
      return optax.apply_updates(params, updates), opt_state

    self._score = jax.jit(lambda p, x, y: SCORE(problem.outputs(p, x), y))
    self._update = jax.jit(update, donate_argnums=(0, 1))
    self.params = problem.params()
    self._opt_state = tx.init(self.params)

  def advance(self, num_steps: int) -> None:
    """Makes num_steps updates, and waits for the last."""
    pool_size = self._setting.pool_size
    for _ in range(num_steps):
      pool = self._random.integers(len(self._inputs), size=pool_size)
      law = self._law(pool)
      slots = self._resample(law)
      drawn = pool[slots]
      self.params, self._opt_state = self._update(
        self.params,
        self._opt_state,
        self._inputs[drawn],
        self._targets[drawn],
        1 / (pool_size * law[slots]),
      )
    jax.block_until_ready(self.params)

  def _law(self, pool: np.ndarray) -> np.ndarray:
    scores = np.asarray(
      self._score(self.params, self._inputs[pool], self._targets[pool])
    )
    mix = self._setting.mix
    return scores * ((1 - mix) / scores.sum()) + mix / len(pool)

  def _resample(self, law: np.ndarray) -> np.ndarray:
    cumulative = np.cumsum(law)
    heights = self._random.random(self._setting.batch_size) * cumulative[-1]
    slots = np.searchsorted(cumulative, heights, 'right')
    return np.minimum(slots, len(law) - 1)
