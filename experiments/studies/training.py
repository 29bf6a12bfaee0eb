"""The ordinary training of a network that a study stops to look at."""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import optax

import isjax
from isjax.models import init, make_apply_fn

loss_fn = optax.softmax_cross_entropy_with_integer_labels
score = isjax.logit_gradient_norm(loss_fn)


class Training(NamedTuple):
  """A network in training.

  apply_fn: its forward pass.
  state:    the first one.
  loop:     (state, data) -> (state, metrics), as many steps as divide all of
            those that the study stops at.
  """

  apply_fn: Callable[..., Any]
  state: isjax.TrainState
  loop: Callable[..., Any]


def start(
  module: nn.Module,
  sampler: isjax.Sampler,
  inner: optax.GradientTransformation,
  data: isjax.Batch,
  *,
  steps: Sequence[int],
  seed: int,
  preprocess: Callable[[jax.Array], jax.Array] | None = None,
) -> Training:
  """Makes the first state and the loop of a classifier's training.

  Args:
    module: from inputs to logits.
    sampler: of the batches.
    inner: the optimiser of importance-weighted gradients.
    data: the training set.
    steps: at which the study stops.
    seed: of the parameters and of the run.
    preprocess: of the inputs, as in `make_train_step`.
  """
  apply_fn = make_apply_fn(module)
  tx = isjax.importance_weighted(inner, isjax.num_examples(data))
  step = isjax.make_train_step(
    apply_fn, loss_fn, sampler, tx, score=score, preprocess=preprocess
  )

  @jax.jit
  def first_state(key):
    model_key, run_key = jax.random.split(key)
    sample = data.inputs[:1]
    sample = sample if preprocess is None else preprocess(sample)
    variables = init(module, model_key, sample)
    return isjax.init_train_state(run_key, *variables, sampler, tx)

  loop = isjax.make_loop(step, max(1, math.gcd(*steps)))
  return Training(apply_fn, first_state(jax.random.key(seed)), loop)
