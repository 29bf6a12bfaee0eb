"""losses.py: hand-made numbers, second formulas, finite gradients."""

import inspect
import itertools
import math

from flax import linen as nn
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import losses, models, scores
from isjax.models.heads import CosineHead

K = 5
COUNTS = (400, 120, 37, 9, 2)
ELEMENTWISE = ('binary_cross_entropy', 'squared_error', 'huber')
CLASSIFICATION = [name for name in losses.LOSSES if name not in ELEMENTWISE]
LONG_TAIL = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
fixed = hypothesis.settings(derandomize=True, deadline=None, max_examples=50)


def make(name, **options):
  factory = losses.LOSSES[name]
  if 'class_counts' in inspect.signature(factory).parameters:
    return factory(COUNTS, **options)
  return factory(**options)


def target_for(name, label):
  """The label, or its one-hot form where the loss compares elements."""
  return jax.nn.one_hot(label, K) if name in ELEMENTWISE else label


LN3 = math.log(3)  # logits (0, ln 3) are the probabilities (1/4, 3/4)
BY_HAND = {
  'cross_entropy': (losses.cross_entropy(), (0, LN3), 1, -math.log(0.75)),
  'smoothed': (
    losses.cross_entropy(0.2),
    (0, LN3),
    1,
    -0.1 * math.log(0.25) - 0.9 * math.log(0.75),
  ),
  'soft': (
    losses.cross_entropy(),
    (0, LN3),
    (0.5, 0.5),
    -0.5 * math.log(0.25 * 0.75),
  ),
  'focal': (losses.focal(2.0), (0, LN3), 1, -math.log(0.75) / 16),
  # (1 - beta) / (1 - beta^n): 1 for n = 1, 1 / (1 + beta) for n = 2.
  'class_balanced': (
    losses.class_balanced([2, 1]),
    (0, LN3),
    1,
    -math.log(0.75) * 2 / (1 + 1 / 1.9999),
  ),
  'class_balanced_focal': (
    losses.class_balanced_focal([2, 1], 2.0, mean_over='examples'),
    (0, LN3),
    1,
    -math.log(0.75) / 16 * 3 / (1 + 2 / 1.9999),
  ),
  'class_weighted': (
    losses.class_weighted(losses.cross_entropy(), [2.0, 5.0]),
    (0, LN3),
    1,
    -5 * math.log(0.75),
  ),
  # Margins 1/4 and 1/2: the logits are 7.5 and 15.
  'ldam': (losses.ldam([16, 1]), (0.5, 0.5), 0, math.log1p(math.exp(7.5))),
  'balanced_softmax': (
    losses.balanced_softmax([1, 3]),
    (0, 0),
    1,
    -math.log(0.75),
  ),
  'logit_adjustment': (
    losses.logit_adjustment([1, 3], prior_exponent=2.0),
    (0, 0),
    1,
    -math.log(0.9),
  ),
  'binary_cross_entropy': (
    losses.binary_cross_entropy(),
    (0, LN3),
    (1, 0),
    (math.log(2) + math.log(4)) / 2,
  ),
  'squared_error': (losses.squared_error(), (1, 2), (0, 4), 2.5),
  'huber': (losses.huber(2.0), (1, 5), (0, 0), (0.5 + 8) / 2),
  'masked_mean': (
    losses.masked_sequence(losses.squared_error()),
    (1, 2, 9),
    ((0, 0, 0), (1, 1, 0)),
    2.5,
  ),
  'masked_sum': (
    losses.masked_sequence(losses.squared_error(), reduction='sum'),
    (1, 2, 9),
    ((0, 0, 0), (1, 1, 0)),
    5,
  ),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_equals_a_number_made_by_hand(name):
  """One example, worked out on paper."""
  loss_fn, output, target, expected = BY_HAND[name]
  if isinstance(target, int):
    target = jnp.asarray(target)
  else:
    target = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, jnp.float32),
      target,
      is_leaf=lambda node: isinstance(node[0], int | float),
    )
  value = loss_fn(jnp.asarray(output, jnp.float32), target)
  np.testing.assert_allclose(value, expected, rtol=2e-6)


def probabilities(logits):
  logits = logits - logits.max()
  return np.exp(logits) / np.exp(logits).sum()


def effective(counts, mean_over):
  """The inverse effective numbers by their geometric series."""
  weights = np.array([1 / sum(0.9999**i for i in range(n)) for n in counts])
  if mean_over == 'examples':
    return weights * sum(counts) / np.dot(weights, counts)
  return weights / weights.mean()


def ldam_formula(cosines, label):
  margins = 0.5 * np.array(COUNTS) ** -0.25 / max(n**-0.25 for n in COUNTS)
  logits = 30 * cosines
  logits[label] -= 30 * margins[label]
  return -np.log(probabilities(logits)[label])


def huber_formula(output, label):
  residual = np.abs(output - np.eye(K)[label])
  return np.mean(residual**2 / 2 - np.maximum(residual - 1, 0) ** 2 / 2)


SECOND_FORMULAS = {
  'cross_entropy': lambda z, y: -np.log(probabilities(z)[y]),
  'focal': lambda z, y: (
    -(1 - probabilities(z)[y]) * np.log(probabilities(z)[y])
  ),
  'class_balanced': lambda z, y: (
    -effective(COUNTS, 'classes')[y] * np.log(probabilities(z)[y])
  ),
  'class_balanced_focal': lambda z, y: (
    -effective(COUNTS, 'classes')[y]
    * (1 - probabilities(z)[y])
    * np.log(probabilities(z)[y])
  ),
  'ldam': ldam_formula,
  'balanced_softmax': lambda z, y: (
    -np.log(COUNTS[y] * np.exp(z[y]) / np.dot(COUNTS, np.exp(z)))
  ),
  'logit_adjustment': lambda z, y: np.log(
    sum(COUNTS[k] / COUNTS[y] * np.exp(z[k] - z[y]) for k in range(K))
  ),
  'binary_cross_entropy': lambda z, y: (
    -np.mean(np.log(1 / (1 + np.exp(np.where(np.arange(K) == y, -z, z)))))
  ),
  'squared_error': lambda z, y: np.sum((z - np.eye(K)[y]) ** 2) / K,
  'huber': huber_formula,
}


CASES = {
  **{name: (name, {}) for name in losses.LOSSES},
  **{f'focal_{g}': ('focal', {'gamma': g}) for g in (0.0, 0.3, 5.0)},
  'smoothed': ('cross_entropy', {'label_smoothing': 0.1}),
}


def of_case(case, outputs, labels):
  """Values and gradients of all rows by all labels."""
  name, options = CASES[case]
  targets = np.eye(K, dtype=np.float32)[labels]
  targets = targets if name in ELEMENTWISE else labels
  loss_fn = make(name, **options)
  return jax.vmap(jax.value_and_grad(loss_fn))(outputs, targets)


@jax.jit
def of_all_cases(outputs):
  """As one program, since compiling costs more than running."""
  labels = np.repeat(np.arange(K), len(outputs))
  outputs = jnp.tile(outputs, (K, 1))
  return {case: of_case(case, outputs, labels) for case in CASES}


OUTPUTS = np.tanh(np.random.RandomState(0).normal(size=(3, K)))


@pytest.mark.parametrize('name', losses.LOSSES)
def test_equals_a_second_formula_in_float64(name):
  """Values by numpy; gradients by its central differences."""
  values, gradients = of_all_cases(OUTPUTS.astype(np.float32))[name]
  formula = SECOND_FORMULAS[name]
  for i, (label, row) in enumerate(itertools.product(range(K), OUTPUTS)):
    expected = formula(row.copy(), label)
    np.testing.assert_allclose(values[i], expected, rtol=1e-5, atol=1e-6)
    slopes = [
      formula(row + step, label) - formula(row - step, label)
      for step in 1e-5 * np.eye(K)
    ]
    np.testing.assert_allclose(
      gradients[i], np.array(slopes) / 2e-5, rtol=1e-4, atol=2e-6
    )


EXTREMES = np.array(
  [
    [0, 0, 0, 0, 0],
    [1e4, -1e4, 0, 1, -1],
    [-1e4, 1e4, 1e4, 1e4, 1e4],
    [1e4, 1e4, 1e4, 1e4, 1e4],
    [0, -200, -200, -200, -200],  # probability 1 and 0 in float32
    [0, -17, -17, -17, -17],
  ],
  np.float32,
)


@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients_are_finite_float32(case):
  """At logits of +-1e4, at equal ones and at probabilities 1 and 0."""
  values, gradients = of_all_cases(EXTREMES)[case]
  assert values.shape == (K * len(EXTREMES),)
  assert values.dtype == jnp.float32
  assert (values >= 0).all()
  assert np.isfinite(values).all()
  assert np.isfinite(gradients).all()


@pytest.mark.parametrize('case', ['focal', 'huber'])
def test_the_same_without_jit(case):
  """Operation by operation."""
  rows = EXTREMES[:K]
  eager = of_case(case, jnp.asarray(rows), np.arange(K))
  jitted = of_all_cases(EXTREMES)[case]
  diagonal = np.arange(K) * len(EXTREMES) + np.arange(K)
  for one, all_ in zip(eager, jitted, strict=True):
    np.testing.assert_allclose(one, all_[diagonal], rtol=1e-6, atol=1e-7)


def test_large_losses_keep_their_slope():
  """A wrong label at odds of 1e38 has the loss 3e38 and gradient +-1."""
  value, gradient = jax.value_and_grad(losses.cross_entropy())(
    jnp.array([3e38, 0.0]), jnp.asarray(1)
  )
  np.testing.assert_allclose(value, 3e38, rtol=1e-6)
  np.testing.assert_array_equal(gradient, [1, -1])


CROSS_ENTROPY = jax.jit(jax.value_and_grad(losses.cross_entropy()))


@fixed
@hypothesis.given(
  hnp.arrays(np.float32, K, elements=st.floats(-1e4, 1e4, width=32)),
  st.integers(0, K - 1),
)
def test_cross_entropy_by_numpy_for_any_logits(logits, label):
  """logsumexp(z) - z_y in float64, and p - onehot."""
  value, gradient = CROSS_ENTROPY(logits, label)
  z = logits.astype(np.float64)
  expected = z.max() + np.log(np.exp(z - z.max()).sum()) - z[label]
  np.testing.assert_allclose(
    value, expected, rtol=1e-6, atol=1e-7 * abs(z).max()
  )
  np.testing.assert_allclose(
    gradient, probabilities(z) - np.eye(K)[label], rtol=1e-3, atol=1e-6
  )


@pytest.mark.parametrize(
  ('make_loss', 'margin', 'gamma'),
  [
    (losses.cross_entropy, 5.0, 0.0),
    (losses.cross_entropy, 30.0, 0.0),
    (lambda: losses.focal(0.0), 80.0, 0.0),
    (lambda: losses.focal(0.5), 5.0, 0.5),
    (lambda: losses.focal(0.5), 17.0, 0.5),
    (lambda: losses.focal(0.5), 50.0, 0.5),
  ],
)
def test_a_small_loss_is_exact(make_loss, margin, gamma):
  """log1p(e^-m) (e^-m)^gamma, where float32's own 1 - p and log p are 0.

  So a law proportional to the loss leaves out no example that has a gradient.
  """
  loss_fn = jax.value_and_grad(make_loss())
  value, gradient = loss_fn(jnp.array([0.0, -margin]), jnp.asarray(0))
  odds = math.exp(-margin)
  factor = (odds / (1 + odds)) ** gamma
  np.testing.assert_allclose(value, factor * math.log1p(odds), rtol=1e-5)
  slope = factor * (odds / (1 + odds))
  slope += math.log1p(odds) * gamma * factor / (1 + odds)
  np.testing.assert_allclose(gradient, [-slope, slope], rtol=1e-5)


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_one_hot_distributions_equal_labels(name):
  """And focal losses, which know labels only, say so."""
  loss_fn = make(name)
  logits = jnp.linspace(-1, 1, K)
  by_label = loss_fn(logits, jnp.asarray(3))
  if 'focal' in name:
    with pytest.raises(ValueError, match='integer label'):
      loss_fn(logits, jax.nn.one_hot(3, K))
    return
  for dtype in (jnp.float32, jnp.int32):
    by_distribution = loss_fn(logits, jax.nn.one_hot(3, K, dtype=dtype))
    np.testing.assert_allclose(by_distribution, by_label, rtol=1e-6)


@pytest.mark.parametrize('name', ['cross_entropy', 'balanced_softmax'])
def test_cross_entropies_are_linear_in_a_soft_target(name):
  """A mixture of labels costs the mixture of their losses."""
  loss_fn = make(name)
  logits = jnp.linspace(-3, 2, K)
  q = jnp.array([0.1, 0.2, 0.0, 0.3, 0.4])
  each = jnp.stack([loss_fn(logits, jnp.asarray(k)) for k in range(K)])
  np.testing.assert_allclose(loss_fn(logits, q), jnp.sum(q * each), rtol=1e-6)


@pytest.mark.parametrize('label', [-1, K, 255])
@pytest.mark.parametrize('name', CLASSIFICATION)
def test_a_label_out_of_range_gives_nan(name, label):
  """Neither the last class nor a loss of 0."""
  value = make(name)(jnp.zeros(K), jnp.asarray(label))
  assert np.isnan(value)
  assert np.isnan(losses.target_distribution(label, K)).all()


def test_a_class_ruled_out_by_minus_infinity_costs_nothing():
  """Masked logits: value and gradient are those of the other classes."""
  masked = jnp.array([0.5, 1.0, -jnp.inf])
  for loss_fn in (losses.cross_entropy(), losses.focal(0.5)):
    value, gradient = jax.value_and_grad(loss_fn)(masked, jnp.asarray(0))
    expected = jax.value_and_grad(loss_fn)(masked[:2], jnp.asarray(0))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[:2], expected[1], rtol=1e-6)
    assert gradient[2] == 0
  both = jax.value_and_grad(losses.cross_entropy())
  for target in ((1.0, 0.0, 0.0), (0.25, 0.75, 0.0)):
    value, gradient = both(masked, jnp.array(target))
    expected = both(masked[:2], jnp.array(target[:2]))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[:2], expected[1], rtol=1e-6)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_half_precision_outputs_are_computed_in_float32(name):
  """The loss of rounded outputs, not a rounded loss."""
  loss_fn = make(name)
  output = jnp.linspace(-1, 1, K).astype(jnp.bfloat16)
  target = target_for(name, jnp.asarray(2))
  value = loss_fn(output, target)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(
    value, loss_fn(output.astype(jnp.float32), target), rtol=1e-6
  )


@pytest.mark.parametrize('name', ['focal', 'ldam', 'squared_error'])
def test_scores_differentiate_a_loss(name):
  """Mapped over a batch, as the training step does it."""
  score = jax.jit(scores.logit_gradient_norm(make(name)))
  targets = jnp.stack([target_for(name, jnp.asarray(k)) for k in (0, 3)])
  outputs = 0.1 * jnp.arange(2 * K, dtype=jnp.float32).reshape(2, K)
  gradients = [jax.grad(make(name))(outputs[i], targets[i]) for i in range(2)]
  np.testing.assert_allclose(
    score(outputs, targets), np.linalg.norm(gradients, axis=1), rtol=1e-5
  )


def test_class_weights_by_hand_and_by_the_published_counts():
  """Their two scales, and the hidden learning rate of the paper's."""
  by_classes = losses.balanced_class_weights(LONG_TAIL, mean_over='classes')
  np.testing.assert_allclose(
    by_classes, effective(LONG_TAIL, 'classes'), rtol=1e-4
  )
  np.testing.assert_allclose(jnp.mean(by_classes), 1, rtol=1e-6)
  shares = np.array(LONG_TAIL) / sum(LONG_TAIL)
  np.testing.assert_allclose(np.dot(by_classes, shares), 0.171, rtol=1e-3)
  by_examples = losses.balanced_class_weights(np.array(LONG_TAIL))
  np.testing.assert_allclose(np.dot(by_examples, shares), 1, rtol=1e-6)


def test_class_weights_may_be_an_argument_of_the_program():
  """One trace serves both phases of a deferred re-weighting."""
  schedule = losses.deferred(jnp.array([3.0, 0.5]), start=0.8)
  traces = []

  @jax.jit
  def loss(progress):
    traces.append(None)
    loss_fn = losses.class_weighted(losses.cross_entropy(), schedule(progress))
    return loss_fn(jnp.zeros(2), jnp.asarray(0))

  got = [float(loss(t)) / math.log(2) for t in (0.0, 0.79, 0.8, 1.0)]
  np.testing.assert_allclose(got, [1, 1, 3, 3], rtol=1e-6)
  assert len(traces) == 1


def test_logit_adjustment_aims_at_the_balanced_error():
  """The expected loss is stationary at z_k(x) = log p(x | k)."""
  counts = np.array([70, 20, 10])
  prior = counts / counts.sum()
  conditional = np.array(
    [[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.1, 0.4]]
  )
  loss_fn = losses.logit_adjustment(counts)

  def expected_loss(logits):  # f32[4, 3], of each x
    each = jax.vmap(
      lambda z: jax.vmap(loss_fn, (None, 0))(z, jnp.arange(3)), 0
    )(logits)
    return jnp.sum(each * (prior[:, None] * conditional).T)

  stationary = jnp.log(jnp.asarray(conditional.T, jnp.float32))
  np.testing.assert_allclose(jax.grad(expected_loss)(stationary), 0, atol=1e-7)
  assert np.abs(jax.grad(expected_loss)(jnp.zeros((4, 3)))).max() > 0.01


def test_balanced_softmax_does_not_depend_on_the_total():
  """Only the classes' shares count."""
  logits = jnp.linspace(-1, 1, K)
  tenfold = losses.balanced_softmax([10 * n for n in COUNTS])
  np.testing.assert_allclose(
    tenfold(logits, jnp.asarray(1)),
    make('balanced_softmax')(logits, jnp.asarray(1)),
    rtol=1e-6,
  )


def test_a_masked_sequence_ignores_what_the_mask_hides(key):
  """NaN, inf and padding labels behind it change no bit; pytrees work."""
  logits = jax.random.normal(key, (6, K))
  labels = jnp.array([0, 1, 2, 3, 4, 0])
  mask = jnp.array([True, True, False, True, False, False])
  spoilt = logits.at[jnp.array([2, 4])].set(jnp.nan).at[5].set(jnp.inf)
  padded = jnp.where(mask, labels, -100)

  def step_fn(output, label):
    return losses.cross_entropy()(output['logits'], label)

  for reduction in ('mean', 'sum'):
    loss_fn = losses.masked_sequence(step_fn, reduction=reduction)
    both = jax.jit(jax.value_and_grad(loss_fn))
    value, gradient = both({'logits': logits}, (labels, mask))
    spoilt_value, spoilt_gradient = both({'logits': spoilt}, (padded, mask))
    gradient, spoilt_gradient = gradient['logits'], spoilt_gradient['logits']
    np.testing.assert_array_equal(value, spoilt_value)
    np.testing.assert_array_equal(gradient, spoilt_gradient)
    np.testing.assert_array_equal(gradient[~mask], 0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    divisor = 3 if reduction == 'mean' else 1
    np.testing.assert_allclose(value, jnp.sum(each * mask) / divisor, rtol=1e-6)


def test_an_empty_sequence_costs_nothing():
  """Its value and gradient are 0, not 0/0."""
  loss_fn = losses.masked_sequence(losses.squared_error())
  value, gradient = jax.value_and_grad(loss_fn)(
    jnp.ones((3, 2)), (jnp.zeros((3, 2)), jnp.zeros(3))
  )
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_the_cosine_head_returns_cosines(key):
  """By numpy; invariant to the features' length; finite at 0."""
  head = CosineHead(num_classes=4)
  x = jax.random.normal(key, (7, 3))
  params, model_state = jax.jit(lambda key: models.init(head, key, x))(key)
  apply_fn = models.make_apply_fn(head)

  def cosines(x):
    return apply_fn(params, model_state, x, train=False, rngs=None)[0]

  kernel = np.asarray(params['kernel'], np.float64)
  expected = np.asarray(x, np.float64) @ kernel
  expected /= np.linalg.norm(x, axis=1)[:, None]
  expected /= np.linalg.norm(kernel, axis=0)[None, :]
  np.testing.assert_allclose(cosines(x), expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(cosines(1e4 * x), expected, rtol=1e-5, atol=1e-6)
  value, gradient = jax.value_and_grad(lambda x: jnp.sum(cosines(x)))(
    jnp.zeros((2, 3))
  )
  assert value == 0
  assert np.isfinite(gradient).all()


def test_the_cosine_head_follows_any_model(key):
  """Features of an MLP, then the head; LDAM has a gradient everywhere."""
  module = nn.Sequential([models.MLP(6, hidden=(8,)), CosineHead(K)])
  x = jax.random.normal(key, (5, 3))
  params, model_state = jax.jit(lambda key: models.init(module, key, x))(key)
  apply_fn = models.make_apply_fn(module)

  def loss(params):
    outputs, _ = apply_fn(params, model_state, x, train=True, rngs=None)
    return jnp.mean(jax.vmap(make('ldam'))(outputs, jnp.arange(K)))

  gradient = jax.jit(jax.grad(loss))(params)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: losses.cross_entropy(1.5), 'label_smoothing must be in'),
    (lambda: losses.focal(-1.0), 'gamma must be non-negative; got -1.0'),
    (lambda: losses.huber(0.0), 'delta must be positive; got 0.0'),
    (lambda: losses.ldam([1, 2], scale=0.0), 'scale must be positive'),
    (lambda: losses.ldam([1, 2], max_margin=-1.0), 'max_margin must be'),
    (lambda: losses.ldam([3, 0, 2]), 'class 1 has 0'),
    (lambda: losses.balanced_softmax([[3, 2]]), r'int64\[1, 2\]'),
    (lambda: losses.balanced_softmax([0.5, 0.5]), 'bincount'),
    (lambda: losses.class_balanced([1, 2], mean_over='all'), "got 'all'"),
    (
      lambda: losses.logit_adjustment([1, 2], prior_exponent=float('nan')),
      'prior_exponent must be a finite number',
    ),
    (lambda: losses.deferred([1.0], float('inf')), 'start must be a finite'),
    (
      lambda: losses.masked_sequence(losses.huber(), reduction='max'),
      "reduction must be one of 'mean', 'sum'; got 'max'",
    ),
    (
      lambda: losses.cross_entropy()(jnp.ones((2, K)), jnp.zeros(2, int)),
      'jax.vmap',
    ),
    (lambda: losses.cross_entropy()(jnp.ones(1), 0), 'binary_cross_entropy'),
    (lambda: losses.cross_entropy()(jnp.ones(K), 1.0), 'integer label'),
    (lambda: losses.cross_entropy()(jnp.ones(K), jnp.ones(3)), r'\[3\]'),
    (lambda: make('ldam')(jnp.ones(4), 0), r'f32\[5\].* got shape \(4,\)'),
    (
      lambda: losses.squared_error()(jnp.ones(1), jnp.ones(())),
      r'one shape; got \(1,\) and \(\)',
    ),
    (
      lambda: losses.target_distribution(jnp.ones((2, 3)), 3),
      'target of one example',
    ),
  ],
)
def test_bad_arguments_are_named(call, message):
  """With what was expected and what came."""
  with pytest.raises(ValueError, match=message):
    call()
