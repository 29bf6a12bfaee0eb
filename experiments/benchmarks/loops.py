"""What the benchmarks train: the task, the loop of isjax, and the proof.

The rivals of `DeviceLoop` are in host_loop.py and torch_loop.py. All of them
start from the same parameters and follow the same algorithm.
"""

from collections.abc import Callable
import sys
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import isjax
from isjax.data import rescale
from isjax.models import MLP, init, make_apply_fn
from isjax.types import PyTree

LOSS = optax.softmax_cross_entropy_with_integer_labels
SCORE = isjax.logit_gradient_norm(LOSS)
NUM_CLASSES = 10
# A loop trains if, in so many steps, the loss falls below this share.
TRAINING_STEPS = 600
TRAINED = 0.1


class Setting(NamedTuple):
  """Of a run, for every loop alike.

  batch_size, pool_size: b and B.
  mix:                   share of the uniform law in the pool's.
  learning_rate:         of SGD.
  momentum:              of SGD.
  """

  batch_size: int
  pool_size: int
  mix: float
  learning_rate: float
  momentum: float


class Problem(NamedTuple):
  """A set and an MLP.

  data:      the set, on the device.
  max_value: the pixel value that stands for 1.
  hidden:    widths of the hidden layers.
  """

  data: isjax.Batch
  max_value: int
  hidden: tuple[int, ...]

  @property
  def apply_fn(self) -> Callable[..., tuple[jax.Array, PyTree]]:
    """The network as a pure function."""
    return make_apply_fn(MLP(NUM_CLASSES, self.hidden))

  @property
  def preprocess(self) -> Callable[[jax.Array], jax.Array]:
    """From inputs as they are stored to those of the network."""
    return rescale(self.max_value)

  def params(self) -> PyTree:
    """The first parameters, the same at every call."""
    sample = self.preprocess(self.data.inputs[:1])
    return init(MLP(NUM_CLASSES, self.hidden), jax.random.key(0), sample)[0]

  def outputs(self, params: PyTree, inputs: jax.Array) -> jax.Array:
    """Logits of inputs as they are stored."""
    inputs = self.preprocess(inputs)
    return self.apply_fn(params, {}, inputs, train=False, rngs=None)[0]


def made_up_images(side: int, num_examples: int) -> isjax.Batch:
  """Returns ten patterns under noise, u8[N, side, side, 1]; labels i32[N]."""
  random = np.random.default_rng(0)
  patterns = random.uniform(0, 80, (NUM_CLASSES, side, side, 1))
  labels = random.integers(NUM_CLASSES, size=num_examples)
  noise = random.normal(90, 50, (num_examples, side, side, 1))
  pixels = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
  return isjax.Batch(jnp.asarray(pixels), jnp.asarray(labels, jnp.int32))


class Loop(Protocol):
  """A training run that advances."""

  @property
  def params(self) -> PyTree:
    """The parameters now, as flax lays them out."""

  def advance(self, num_steps: int) -> None:
    """Makes num_steps updates, and waits for the last."""


class DeviceLoop:
  """Steps of isjax, scanned.

  Args:
    problem: what to train.
    sampler: of the batches.
    setting: of the optimiser.
    steps: of one call of the scanned loop.
    mode: of `make_loop`.
  """

  def __init__(
    self,
    problem: Problem,
    sampler: isjax.Sampler,
    setting: Setting,
    steps: int,
    mode: str = 'scan',
  ):
    tx = isjax.importance_weighted(
      optax.sgd(setting.learning_rate, momentum=setting.momentum),
      isjax.num_examples(problem.data),
    )
    step = isjax.make_train_step(
      problem.apply_fn,
      LOSS,
      sampler,
      tx,
      score=SCORE,
      preprocess=problem.preprocess,
    )
    self._loop = isjax.make_loop(step, steps, mode=mode)
    self._steps = steps
    self._data = problem.data
    self._state = isjax.init_train_state(
      jax.random.key(1), problem.params(), {}, sampler, tx
    )

  @property
  def params(self) -> PyTree:
    """The parameters now."""
    return self._state.params

  def advance(self, num_steps: int) -> None:
    """Makes num_steps updates, a multiple of a call's, and waits."""
    for _ in range(num_steps // self._steps):
      self._state, _ = self._loop(self._state, self._data)
    jax.block_until_ready(self._state)


def train(
  what: str, problem: Problem, loops: dict[str, Loop]
) -> list[dict[str, str | float]]:
  """Trains each loop, and evaluates it on the whole set before and after.

  All are evaluated by the same function.

  Raises:
    SystemExit: where a loop does not train: its speed would mean nothing.
  """
  evaluate = isjax.make_eval_step(
    problem.apply_fn, LOSS, preprocess=problem.preprocess, batch_size=500
  )

  def loss(loop):
    return float(evaluate(loop.params, {}, problem.data)['loss'])

  losses = []
  for name, loop in loops.items():
    before = loss(loop)
    loop.advance(TRAINING_STEPS)
    after = loss(loop)
    if not after < TRAINED * before:
      sys.exit(
        f'error: {what}, {name}: the loss went from {before:.3g} to '
        f'{after:.3g} in {TRAINING_STEPS} steps; that is no training.'
      )
    losses.append({'loop': f'{what}: {name}', 'before': before, 'after': after})
  return losses
