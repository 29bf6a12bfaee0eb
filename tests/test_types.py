"""types.py: batches as pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.types import (
  Batch,
  Draw,
  Observation,
  Sampler,
  TrainState,
  num_examples,
  take,
)


def test_take_gathers_every_leaf():
  """Dict inputs, targets and record weights; None stays None."""
  batch = Batch(
    {'a': jnp.arange(6).reshape(3, 2), 'b': jnp.arange(3)},
    jnp.array([5, 6, 7]),
    jnp.array([1.0, 2.0, 3.0]),
  )
  taken = jax.jit(take)(batch, jnp.array([2, 0, 2]))
  np.testing.assert_array_equal(taken.inputs['a'], [[4, 5], [0, 1], [4, 5]])
  np.testing.assert_array_equal(taken.targets, [7, 5, 7])
  np.testing.assert_array_equal(taken.record_weights, [3, 1, 3])
  assert take(batch._replace(record_weights=None), jnp.array([0]))[2] is None


def test_num_examples_is_the_common_leading_axis():
  """And an error with the shapes where there is none."""
  assert num_examples(Batch(jnp.ones((4, 2)), jnp.ones(4))) == 4
  with pytest.raises(ValueError, match=r'same leading axis N; got .*\(3,\)'):
    num_examples(Batch(jnp.ones((4, 2)), jnp.ones(3)))
  with pytest.raises(ValueError, match='same leading axis'):
    num_examples(Batch(jnp.ones(()), jnp.ones(3)))


def test_a_whole_proposal_is_its_own_batch():
  """Slots in order, one probability for all."""
  draw = Draw.whole_proposal(jnp.array([4, 1]), 0.125, jnp.full(2, 0.5))
  np.testing.assert_array_equal(draw.slots, [0, 1])
  np.testing.assert_array_equal(draw.probabilities, [0.125, 0.125])
  np.testing.assert_array_equal(draw.target_probabilities, [0.5, 0.5])


@pytest.mark.parametrize(
  ('type_', 'fields'),
  [
    (Batch, 'inputs targets record_weights'),
    (Draw, 'slots indices probabilities target_probabilities'),
    (Observation, 'losses scores statistics'),
    (Sampler, 'init propose select observe law take'),
    (
      TrainState,
      'step cost key params model_state opt_state sampler_state',
    ),
  ],
)
def test_the_fields_others_build_on_are_these(type_, fields):
  """Names and order."""
  assert type_._fields == tuple(fields.split())
