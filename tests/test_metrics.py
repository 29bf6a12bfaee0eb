"""metrics.py: unbiased training metrics, masked reductions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from isjax import metrics
from isjax.weights import importance_weights


def test_weighted_mean_is_exactly_unbiased():
  """Over all pairs of draws, the expectation is the plain mean."""
  p = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
  v = np.array([1.0, 0.0, 2.0, 7.0], np.float32)
  w = importance_weights(p, 1 / 4)
  expectation = sum(
    p[i] * p[j] * metrics.weighted_mean(v[[i, j]], w[jnp.array([i, j])])
    for i in range(4)
    for j in range(4)
  )
  np.testing.assert_allclose(expectation, v.mean(), rtol=1e-5)


def test_the_balanced_error_is_that_of_scikit_learn():
  """Its mean over a set is 1 less the mean recall of the classes present."""
  random = np.random.default_rng(0)
  labels = random.choice([0, 1, 3], 200, p=[0.9, 0.02, 0.08])
  outputs = random.normal(size=(200, 4)).astype(np.float32)
  balanced = metrics.class_balanced(
    metrics.error, np.bincount(labels, minlength=4)
  )
  for function in (balanced, jax.jit(balanced)):
    actual = jnp.mean(function(outputs, jnp.asarray(labels)))
    with pytest.warns(UserWarning, match='y_pred contains classes not in'):
      expected = 1 - balanced_accuracy_score(labels, outputs.argmax(1))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize('counts', [[0, 0], [3, -1], [[1, 2]], []])
def test_counts_that_are_none_are_refused(counts):
  """By name, with the value."""
  with pytest.raises(ValueError, match='class_counts must be one number'):
    metrics.class_balanced(metrics.error, counts)


def test_error_is_one_where_the_argmax_is_wrong():
  """A hand-made batch of three."""
  logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, -1.0]])
  labels = jnp.array([0, 0, 1])
  np.testing.assert_array_equal(metrics.error(logits, labels), [0, 1, 1])


def test_label_probability_is_the_softmax_at_the_label():
  """softmax(z)[y]."""
  logits = jnp.array([[0.0, np.log(3.0)], [0.0, 0.0]])
  probability = jax.jit(metrics.label_probability)
  np.testing.assert_allclose(
    probability(logits, jnp.array([1, 0])), [0.75, 0.5], rtol=1e-6
  )


@pytest.mark.parametrize('transform', [lambda f: f, jax.jit])
def test_trace_covariances_are_exactly_unbiased(transform):
  """TraceCovariances over all triples of draws: the closed forms, record
  weights and a mean gradient included.
  """
  p = np.array([0.4, 0.3, 0.2, 0.1])
  pi = np.array([0.1, 0.5, 0.0, 0.4])
  norms = np.array([3.0, 1.0, 9.0, 2.0])
  mean = 0.25
  estimate = transform(
    lambda i: jnp.stack(
      metrics.trace_covariances(
        jnp.float32(norms)[i],
        jnp.float32(p)[i],
        jnp.float32(pi)[i],
        4,
        mean_norm_squared=mean,
      )
    )
  )
  expectation = sum(
    p[list(triple)].prod() * np.asarray(estimate(jnp.array(triple)))
    for triple in itertools.product(range(4), repeat=3)
  )
  squares = (pi * norms) ** 2
  exact = [4 * squares.sum(), (squares / p).sum(), (pi @ norms) ** 2]
  np.testing.assert_allclose(expectation, np.array(exact) - mean, rtol=1e-5)


def test_no_law_has_less_than_the_optimal_trace():
  """p proportional to pi n: both traces agree; a single draw cannot tell."""
  pi, norms = np.float32([0.1, 0.5, 0.4]), np.float32([3.0, 1.0, 2.0])
  p = pi * norms / (pi @ norms)
  traces = metrics.trace_covariances(norms, p, pi, 3)
  np.testing.assert_allclose(traces.sampled, traces.optimal, rtol=1e-5)
  assert np.isnan(metrics.trace_covariances(*(norms[:1],) * 3, 3).optimal)


def test_class_mass_adds_up_the_law_of_each_class():
  """A hand-made law; an empty class has none."""
  law = jnp.array([0.1, 0.2, 0.3, 0.4])
  mass = jax.jit(metrics.class_mass, static_argnums=2)(
    law, jnp.array([0, 2, 0, 2]), 4
  )
  np.testing.assert_allclose(mass, [0.4, 0.0, 0.6, 0.0], rtol=1e-6)


def test_summarise_leaves_out_steps_past_the_budget():
  """Means over the valid steps, whatever the others hold."""
  stacked = {
    'loss': jnp.array([1.0, 3.0, jnp.nan]),
    'num_scored': jnp.array([0, 8, 8]),
    'cost': jnp.array([6, 20, 20], jnp.uint32),
    'valid': jnp.array([True, True, False]),
  }
  summary = jax.jit(metrics.summarise)(stacked)
  assert summary['loss'] == 2
  assert summary['num_scored'] == 4
  assert summary['cost'] == 20
  assert summary['num_steps'] == 2


def test_summarise_shows_a_loss_that_is_not_finite():
  """A NaN within the budget is not averaged away."""
  stacked = {
    'loss': jnp.array([1.0, jnp.nan]),
    'cost': jnp.array([6, 20], jnp.uint32),
    'valid': jnp.array([True, True]),
  }
  assert np.isnan(metrics.summarise(stacked)['loss'])
