"""Per-example importance, from the outputs of a forward pass or from a model.

A score is a function of (outputs [m, ...], targets [m, ...]) that returns
f32[m] >= 0. The optimal law is proportional to the norm of each example's
gradient, so the best scores stand close to that norm and cost no backward
pass. The norm itself takes the model: a draw score is a function of (params,
model_state, batch of m) that returns f32[m] >= 0.
"""

from collections.abc import Callable
import functools
from typing import TypeAlias

import jax
from jax import lax
import jax.numpy as jnp

from isjax import _batch_statistics, _validate, ghost
from isjax.losses import LossFn
from isjax.types import Batch, PyTree, num_examples

ScoreFn: TypeAlias = Callable[[PyTree, PyTree], jax.Array]
DrawScoreFn: TypeAlias = Callable[[PyTree, PyTree, Batch], jax.Array]
ApplyFn: TypeAlias = Callable[..., tuple[PyTree, PyTree]]

_MAX_EXPONENT = 40.0  # of `tilted`


def _norm(tree: PyTree) -> jax.Array:
  """The 2-norm over all leaves, free of overflow and of underflow."""
  flat = jnp.concatenate(
    [leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree)]
  )
  largest = jnp.max(jnp.abs(flat))
  scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
  return scale * jnp.sqrt(jnp.sum(jnp.square(flat / scale)))


def logit_gradient_norm(loss_fn: LossFn) -> ScoreFn:
  """Scores each example by || d loss_i / d outputs_i ||_2.

  Up to a factor that all examples share, this bounds the norm of the gradient
  in every parameter, so that sampling by it lowers the variance of the update
  at the price of a forward pass. `outputs` must be the last pre-activations:
  for a network that ends in an activation, the activation belongs to loss_fn.

  Args:
    loss_fn: (output, target) -> f32[], the loss of ONE example, whatever the
      shape of its output: classes, soft targets, a masked sequence, a pytree.

  Returns:
    (outputs [m, ...], targets [m, ...]) -> f32[m] >= 0. For cross entropy in
    [0, sqrt(2)], and 0 only where the loss is flat.

  Raises:
    ValueError: when called, where loss_fn does not return one number.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, section 3.2.
  """

  def one_number(output: PyTree, target: PyTree) -> jax.Array:
    value = loss_fn(output, target)
    if jnp.shape(value) != ():
      raise ValueError(
        'loss_fn must return the loss of ONE example, one number; got shape '
        f'{jnp.shape(value)}. The library maps it over a batch.'
      )
    return value

  gradient = jax.grad(one_number)

  def score(outputs: PyTree, targets: PyTree) -> jax.Array:
    return jax.vmap(lambda o, t: _norm(gradient(o, t)))(outputs, targets)

  return score


def loss(loss_fn: LossFn) -> ScoreFn:
  """Scores each example by its loss, which must be non-negative.

  A float32 loss reaches exactly 0 where the gradient does not; mix the law
  with its target (`mix` of the sampler), or such an example is never drawn.

  Args:
    loss_fn: (output, target) -> f32[] >= 0, the loss of ONE example.

  Returns:
    (outputs [m, ...], targets [m, ...]) -> f32[m].
  """

  def score(outputs: PyTree, targets: PyTree) -> jax.Array:
    return jax.vmap(loss_fn)(outputs, targets).astype(jnp.float32)

  return score


def tilted(
  score_fn: ScoreFn, loss_fn: LossFn, temperature: float | jax.Array
) -> ScoreFn:
  """Scores each example by score exp(loss / temperature).

  Multiplied so, a score that stands for the gradient's norm becomes one for
  `scale_by_absgd`, whose update weights each gradient by exp(loss /
  temperature): its variance is least under the law exp(loss / temperature)
  ||grad loss||. Mix that law with its target, half and half say: where the
  normaliser of the weights is estimated, too, examples of small loss count.

  Args:
    score_fn: (outputs, targets) -> f32[m] >= 0, such as `logit_gradient_norm`.
    loss_fn: (output, target) -> f32[], the loss of ONE example.
    temperature: lambda of `scale_by_absgd`, never 0; inf gives the plain
      score, and below 0 small losses are favoured.

  Returns:
    (outputs [m, ...], targets [m, ...]) -> f32[m] >= 0. The exponent is held
    within [-40, 40], so that squares of scores are still finite in float32;
    examples beyond differ by their plain score alone. It is not taken relative
    to the batch's largest: a memory compares scores across batches.

  Raises:
    ValueError: for a temperature of 0.

  Source: of the weights, Qi et al. (2020), arXiv:2012.06951, equation 3.
  """
  _validate.positive(**{'|temperature|': abs(temperature)})
  losses = loss(loss_fn)

  def score(outputs: PyTree, targets: PyTree) -> jax.Array:
    exponent = losses(outputs, targets) / temperature
    bounded = jnp.clip(exponent, -_MAX_EXPONENT, _MAX_EXPONENT)
    return score_fn(outputs, targets) * jnp.exp(bounded)

  return score


def one_minus_label_probability(
  outputs: jax.Array, targets: jax.Array
) -> jax.Array:
  """Scores each example by 1 - softmax(outputs)[label], exact near 0.

  Args:
    outputs: f32[m, K], logits.
    targets: i32[m], labels in [0, K).

  Returns:
    f32[m] in [0, 1].

  Raises:
    ValueError: where the shapes are others (one-hot targets, say).
  """
  return -jnp.expm1(label_log_probability(outputs, targets))


def label_log_probability(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns log softmax(outputs)[label], f32[m] <= 0.

  Args:
    outputs: f32[m, K], logits.
    targets: i32[m], labels in [0, K).

  Raises:
    ValueError: where the shapes are others (one-hot targets, say).
  """
  if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
    raise ValueError(
      'expected outputs f32[m, K] and one integer label per example, targets '
      f'i32[m]; got {outputs.shape} and {targets.shape}. Turn one-hot targets '
      'into labels with argmax.'
    )
  log_probabilities = jax.nn.log_softmax(outputs.astype(jnp.float32))
  return jnp.take_along_axis(log_probabilities, targets[:, None], 1)[:, 0]


def gradient_norm(
  apply_fn: ApplyFn,
  loss_fn: LossFn,
  *,
  method: str = 'ghost',
  fallback: str = 'raise',
  microbatch_size: int | None = None,
) -> DrawScoreFn:
  """Scores each example by || d loss_i / d params ||_2, exactly.

  Sampling in proportion to it gives the gradient the least variance of all
  laws. By 'ghost' (see ghost.py) it costs from one forward pass, where most of
  the work is in a first dense layer, to two in other dense layers, and about a
  training step in convolutions and sequences.

  Memory, for each example of a microbatch: the activations, as in training.
  Besides, for 'vmap', a gradient in all parameters. For 'ghost', at one layer
  at a time and where it has T > 1 places, along time or in an image, the
  lesser, in multiplications, of its gradient and of two matrices f32[T, T]; in
  a convolution also its windows, a copy of the inputs for each place of the
  kernel (on CPU, of one example only).

  Args:
    apply_fn: of flax.linen modules, not jitted; run with train=False.
    loss_fn: (output, target) -> f32[], the loss of ONE example.
    method: 'ghost', or 'vmap', which forms every gradient and has no limits.
    fallback: of 'ghost', for parameters that no rule covers: 'raise' names
      them, 'vmap' forms their gradients.
    microbatch_size: examples that are scored at a time, in a loop; None: all
      at once. On CPU convolutions are slow in a loop, as they are behind a
      sampler's gate (github.com/jax-ml/jax/issues/12868).

  Returns:
    (params, model_state, batch of m) -> f32[m] >= 0, in float32 whatever the
    model computes in; 0 where the loss is flat. Record weights play no part.

  Raises:
    ValueError: for bad options; when called, where `ghost.vjp` does, and for a
      model that trains on the statistics of its batch: none of its examples
      has a gradient of its own.

  Source: Goodfellow (2015), arXiv:1510.01799; ghost.py has the rest.
  """
  _validate.one_of(('ghost', 'vmap'), method=method)
  _validate.one_of(('raise', 'vmap'), fallback=fallback)
  vjp = functools.partial(ghost.vjp, fallback=fallback)
  return _draw_score(
    {'ghost': vjp, 'vmap': _vjp}[method], apply_fn, loss_fn, microbatch_size
  )


def last_layer_gradient_norm(
  apply_fn: ApplyFn, loss_fn: LossFn, *, microbatch_size: int | None = None
) -> DrawScoreFn:
  """Scores each example by the gradient's norm in the last layer alone.

  For a dense layer with bias on features h that is the logit-gradient norm
  times sqrt(||h||^2 + 1): a lower bound of the norm over all parameters, for
  the price of a forward pass.

  Args:
    apply_fn: of flax.linen modules, not jitted; run with train=False. All
      parameters must act on the outputs through one last layer.
    loss_fn: (output, target) -> f32[], the loss of ONE example.
    microbatch_size: examples that are scored at a time; None: all.

  Returns:
    (params, model_state, batch of m) -> f32[m] >= 0.

  Raises:
    ValueError: for bad options; when called, where there is no such layer, and
      for a model that trains on the statistics of its batch.

  Source: Ash et al. (2020), arXiv:1906.03671.
  """
  vjp = functools.partial(ghost.vjp, last_layer_only=True)
  return _draw_score(vjp, apply_fn, loss_fn, microbatch_size)


def _draw_score(vjp, apply_fn, loss_fn, microbatch_size) -> DrawScoreFn:
  """The norm of what `vjp` pulls the gradient in the outputs back to.

  That gradient is brought to length 1 first, and its length multiplied in
  afterwards: the squares between stay within float32.
  """
  if microbatch_size is not None:
    _validate.positive_integers(microbatch_size=microbatch_size)

  def norm(params, model_state, inputs, target):
    def forward(params):
      batch_of_one = jax.tree.map(lambda x: x[None], inputs)
      outputs, _ = apply_fn(
        params, model_state, batch_of_one, train=False, rngs=None
      )
      return jax.tree.map(lambda z: z[0], outputs)

    output, squared_norm = vjp(forward, params)
    gradient = jax.grad(loss_fn)(output, target)
    length = _norm(gradient)
    divisor = jnp.where(length > 0, length, 1.0)
    unit = jax.tree.map(lambda g: (g / divisor).astype(g.dtype), gradient)
    return length * jnp.sqrt(squared_norm(unit))

  def draw_score(params: PyTree, model_state: PyTree, batch: Batch):
    _refuse_batch_statistics(apply_fn, params, model_state, batch.inputs)
    examples = batch.inputs, batch.targets
    score = functools.partial(norm, params, model_state)
    if microbatch_size is None or microbatch_size >= num_examples(batch):
      return jax.vmap(score)(*examples)
    return lax.map(lambda e: score(*e), examples, batch_size=microbatch_size)

  return draw_score


def _refuse_batch_statistics(apply_fn, params, model_state, inputs) -> None:
  if 'batch_stats' not in model_state:
    return
  updated = []

  def training_pass(params, model_state, inputs, key):
    _, after = apply_fn(
      params, model_state, inputs, train=True, rngs={'params': key}
    )
    updated.append(_batch_statistics.in_use(model_state, after))

  jax.eval_shape(training_pass, params, model_state, inputs, jax.random.key(0))
  if updated[0]:
    raise ValueError(
      'the model trains on statistics of its batch (BatchNorm), under which '
      'no example has a gradient of its own. Put GroupNorm or LayerNorm in its '
      'place, train on running statistics, or score by the outputs: '
      'logit_gradient_norm.'
    )


def _vjp(forward, params):
  """Like `ghost.vjp`, by way of the gradient."""
  outputs, pullback = jax.vjp(forward, params)

  def squared_norm(gradient):
    return sum(map(ghost.squares, jax.tree.leaves(pullback(gradient))))

  return outputs, squared_norm


# name -> factory: (apply_fn, loss_fn) -> draw score.
DRAW_SCORES: dict[str, Callable[[ApplyFn, LossFn], DrawScoreFn]] = {
  'gradient_norm': gradient_norm,
  'last_layer_gradient_norm': last_layer_gradient_norm,
}

# name -> factory: (loss_fn) -> score.
SCORES: dict[str, Callable[[LossFn], ScoreFn]] = {
  'logit_gradient_norm': logit_gradient_norm,
  'loss': loss,
  'one_minus_label_probability': lambda loss_fn: one_minus_label_probability,
}
