"""freezing.py: what is frozen stays, what is trained moves as if alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import isjax
from isjax import models
from isjax.samplers import SAMPLERS

N = 6
# Programs run once: what counts is how long they compile.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_use_fusion_emitters': False,
}
loss_fn = optax.softmax_cross_entropy_with_integer_labels
PARAMS = {
  'Dense_1': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
  'Dense_10': {'kernel': jnp.ones((3, 4)), 'bias': jnp.ones(4)},
  'head': {'kernel': jnp.ones((4, 5))},
}
GRADIENT = jax.tree.map(
  lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), PARAMS
)


@pytest.mark.parametrize(
  ('prefixes', 'trained'),
  [
    (('head',), ['head/kernel']),
    (['Dense_1/'], ['Dense_1/bias', 'Dense_1/kernel']),
    (('Dense_1/bias', 'head'), ['Dense_1/bias', 'head/kernel']),
    (
      ('Dense_1',),
      ['Dense_1/bias', 'Dense_1/kernel', 'Dense_10/bias', 'Dense_10/kernel'],
    ),
    ((), []),
  ],
)
def test_trains_by_prefix_as_if_nothing_else_were_there(prefixes, trained):
  """In updates and in the size of the state; others get updates of 0."""
  inner = optax.adamw(0.1, weight_decay=0.5)
  tx = models.train_only(inner, prefixes)

  def flat(tree):
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree.leaves_with_path(tree)
    }

  params, gradient = flat(PARAMS), flat(GRADIENT)
  state = tx.init(PARAMS)
  updates, _ = tx.update(GRADIENT, state, PARAMS)
  updates = flat(updates)
  alone = {path: params[path] for path in trained}
  inner_state = inner.init(alone)
  expected, _ = inner.update(
    {path: gradient[path] for path in trained}, inner_state, alone
  )
  for path in params:
    if path in trained:
      np.testing.assert_allclose(updates[path], expected[path], rtol=1e-6)
      assert (updates[path] != 0).all()
    else:
      np.testing.assert_array_equal(updates[path], 0)
  sizes = (
    jax.tree.leaves(jax.tree.map(jnp.size, s)) for s in (state, inner_state)
  )
  assert sorted(next(sizes)) == sorted(next(sizes))


def test_a_prefix_of_no_parameter_is_refused():
  tx = models.train_only(optax.sgd(0.1), ('head', 'stage4'))
  match = "got 'stage4', and the paths begin with Dense_1, Dense_10, head"
  with pytest.raises(ValueError, match=match):
    tx.init(PARAMS)


def _step(module, tx, data):
  sampler = SAMPLERS['uniform'](N, N)
  shapes = jax.eval_shape(
    lambda: models.init(module, jax.random.key(0), data.inputs)
  )
  waves = jax.tree.map(
    lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), shapes
  )
  params, variances = waves[0], jax.tree.map(lambda x: 1 + x**2, waves[1])
  state = isjax.init_train_state(
    jax.random.key(1), params, variances, sampler, tx
  )
  step = isjax.make_train_step(
    models.make_apply_fn(module),
    loss_fn,
    sampler,
    tx,
    score=isjax.logit_gradient_norm(loss_fn),
    budget=100,
  )
  return jax.jit(step).lower(state, data), state


def test_fine_tuning_leaves_stages_and_statistics_as_they_are(key):
  """After the average, with schedules by progress, in a step of training."""
  module = models.BottleneckResNet(3, (1, 1), width=4, norm='frozen_batch')
  data = isjax.Batch(jax.random.normal(key, (N, 8, 8, 3)), jnp.arange(N) % 3)
  inner = optax.chain(
    optax.sgd(0.1, momentum=0.9), isjax.scale_by_progress(lambda t: 1 - t)
  )
  tx = isjax.importance_weighted(
    models.train_only(inner, ('stage2', 'head')), N
  )
  step, old = _step(module, tx, data)
  new, _ = step.compile(QUICK)(old, data)
  jax.tree.map(np.testing.assert_array_equal, old.model_state, new.model_state)
  for name in old.params:
    moved = jax.tree.map(
      lambda a, b: bool((a != b).any()), old.params[name], new.params[name]
    )
    trained = name in ('stage2_block1', 'head')
    assert set(jax.tree.leaves(moved)) == {trained}, name


def test_a_compiled_step_computes_no_gradient_of_what_is_frozen():
  """The head's gradient aside, a backward pass of D x D layers is saved."""
  width, depth = 32, 3
  module = models.MLP(3, (width,) * depth)
  data = isjax.Batch(jnp.zeros((N, width)), jnp.zeros(N, jnp.int32))

  def operations(tx):
    step, _ = _step(module, isjax.importance_weighted(tx, N), data)
    return step.compile(QUICK).cost_analysis()['flops']

  saved = operations(optax.sgd(0.1)) - operations(
    models.train_only(optax.sgd(0.1), (f'Dense_{depth}',))
  )
  # Two products for each layer, one for the first, and more than these.
  assert saved > (2 * depth - 1) * 2 * N * width**2
