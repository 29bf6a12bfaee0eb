"""sharding/: laws of tables and placement, on as many devices as there are.

In this process that is one. The last test runs them again in processes whose
CPU stands for 2, 4 and 8 devices, and on 4 the laws of samplers and training
steps, which are in sharding_on_devices.py.
"""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest
from scipy import stats

from isjax import alias, memory, presample, record_weighted, sharding, types
from isjax.alias import Status
from isjax.types import Batch, TrainState

D = jax.device_count()
MESH = jax.make_mesh((D,), ('data',), axis_types=(AxisType.Auto,))
SHARDS = sharding.Shards(MESH, 'data')
N = 1000  # in shards of odd and of even length
HERE = pathlib.Path(__file__).parent


def weights():
  """Of shards that differ a hundredfold in mass, a quarter of them 0."""
  rng = np.random.default_rng(0)
  w = rng.lognormal(0, 1, N) * (rng.random(N) > 0.25)
  return (w * np.repeat(10.0 ** -np.arange(8), N // 8)).astype(np.float32)


@functools.cache
def table(form):
  return sharding.build(weights(), SHARDS, form)


def expected_law(form):
  """In float64, as the definitions say."""
  w = weights().astype(np.float64).reshape(D, -1)
  total = w.sum() if form == 'global' else D * w.sum(1, keepdims=True)
  return (w / total).ravel()


FORMS = pytest.mark.parametrize('form', ['global', 'quota'])


@FORMS
def test_table_has_the_law_of_its_form(form):
  """Total variation <= 1e-6 to w / sum(w), and to p_local / D by quota."""
  p = np.asarray(sharding.probabilities(table(form)), np.float64)
  assert np.abs(p - expected_law(form)).sum() / 2 <= 1e-6
  np.testing.assert_array_equal(p > 0, weights() > 0)
  np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)


def test_global_table_has_the_law_of_one_device():
  """Total variation <= 1e-6 to the table that one device builds."""
  p = np.asarray(sharding.probabilities(table('global')), np.float64)
  one = np.asarray(alias.probabilities(alias.build(weights())), np.float64)
  assert np.abs(p - one).sum() / 2 <= 1e-6


@FORMS
def test_draws_follow_the_published_law_of_the_table(form, key):
  """Chi-square at .001; the chances that come with draws are `probabilities`.

  By quota the draws of each device are its own items, b/D of them.
  """
  count = 80_000
  items, chances = sharding.sample_with_probabilities(
    key, table(form), (count,)
  )
  p = np.asarray(sharding.probabilities(table(form)))
  np.testing.assert_array_equal(chances, p[items])
  np.testing.assert_array_equal(
    sharding.probabilities_at(table(form), items), p[items]
  )
  np.testing.assert_array_equal(
    sharding.sample(key, table(form), (count,)), items
  )
  counts = np.bincount(items, minlength=N)
  assert (counts[p == 0] == 0).all()
  law = p.astype(np.float64) / p.sum(dtype=np.float64)
  likely = law * count >= 5
  pooled = np.append(counts[likely], counts[~likely].sum())
  expected = np.append(law[likely], law[~likely].sum()) * count
  assert stats.chisquare(pooled, expected).pvalue > 1e-3
  owners = np.asarray(items).reshape(D, -1) // (N // D)
  if form == 'quota':
    np.testing.assert_array_equal(owners, np.arange(D)[:, None] + 0 * owners)
    flat = sharding.build(np.ones(N), SHARDS, form)
    items = np.asarray(sharding.sample(key, flat, (count,)))
    assert len(np.unique(items.reshape(D, -1) % (N // D), axis=0)) == D


@FORMS
def test_a_table_is_unbiased_by_enumeration(form):
  """sum_i p_i (pi_i / p_i) f_i is the mean of f by record weight."""
  rng = np.random.default_rng(1)
  records, f = rng.exponential(size=N) * (weights() > 0), rng.normal(size=N)
  pi = records / records.sum()
  p = np.asarray(sharding.probabilities(table(form)), np.float64)
  reported = np.asarray(
    sharding.probabilities_at(table(form), jnp.arange(N, dtype=jnp.int32))
  )
  w = np.divide(pi, reported, out=np.zeros(N), where=reported > 0)
  np.testing.assert_allclose((p * w * f).sum(), (pi * f).sum(), rtol=1e-5)


def test_draws_of_a_global_table_are_independent_of_their_places(key):
  """Two draws next to each other: their shards are independent, by chi-square.

  Under a quota they are anything but.
  """
  flat = sharding.build(np.ones(N, np.float32), SHARDS)
  items = np.asarray(sharding.sample(key, flat, (40_000, 2)))
  cells = items // (N // 8)
  counts = np.bincount(cells[:, 0] * 8 + cells[:, 1], minlength=64)
  assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
  ('bad', 'status', 'law'),
  [
    ([np.nan, 1, 1, 2], Status.NOT_A_NUMBER, [0, 0.25, 0.25, 0.5]),
    ([-1, 1, 1, 2], Status.NEGATIVE, [0, 0.25, 0.25, 0.5]),
    ([np.inf, 1, 1, np.inf], Status.INFINITE, [0.5, 0, 0, 0.5]),
    ([0, 0, 0, 0], Status.ALL_ZERO, [0.25] * 4),
    ([3e38, 3e38, 3e38, 3e38], 0, [0.25] * 4),
    ([1e-37, 0, 1e-37, 1e-37], 0, [1 / 3, 0, 1 / 3, 1 / 3]),
    ([1e-45, 0, 0, 0], Status.ALL_ZERO, [0.25] * 4),
  ],
  ids=str,
)
def test_a_table_inside_jit_is_total(bad, status, law):
  """Each weight repeated over a shard or two; as `alias.build` has it."""
  w = np.repeat(np.float32(bad), N // 4)
  build = jax.jit(sharding.build, static_argnames=('shards', 'form'))
  result = build(w, SHARDS)
  assert result.status == status
  p = np.asarray(sharding.probabilities(result))
  np.testing.assert_allclose(p, np.repeat(law, N // 4) / (N // 4), rtol=1e-6)


def test_bad_weights_of_a_table_are_named():
  """Called eagerly, with the first index and the remedy."""
  w = weights()
  w[777] = -1.0
  with pytest.raises(ValueError, match=r'weights\[777\] = -1.0'):
    sharding.build(w, SHARDS)
  one = np.where(np.arange(N) == N - 1, 1, 0)
  assert sharding.build(one, SHARDS).status == 0
  if D > 1:
    with pytest.raises(ValueError, match="at random, or take form='global'"):
      sharding.build(one, SHARDS, 'quota')
    with pytest.raises(ValueError, match=f'multiple of the {D} devices'):
      sharding.build(np.ones(N + 1), SHARDS)
    with pytest.raises(ValueError, match='draws must be a multiple'):
      sharding.sample(jax.random.key(0), table('quota'), (D + 1,))
  with pytest.raises(ValueError, match="form must be one of 'global', 'quota'"):
    sharding.build(w, SHARDS, 'local')
  with pytest.raises(ValueError, match=r'shape must be \(b,\)'):
    sharding.sample(jax.random.key(0), table('quota'))


@pytest.mark.parametrize('size', [2**31, 2**40])
def test_examples_that_an_index_cannot_number_are_refused(size):
  """Before anything of that length is made; one below 2^31 would do."""
  with pytest.raises(ValueError, match=f'num_examples must be below.*{size}'):
    sharding.quota(presample, size, D, SHARDS)
  assert SHARDS.part(2**31 - D, 'num_examples', '') == 2**31 // D - 1


def test_no_device_holds_more_than_its_shard_of_a_table():
  """N/D rows of each array; the law that is returned is split as well."""
  assert isinstance(table('global'), sharding.ShardedTable)
  for array in jax.tree.leaves(table('global').local):
    assert array.addressable_shards[0].data.shape[0] == 1
    assert array.shape[0] == D
  law = sharding.probabilities(table('global'))
  assert law.addressable_shards[0].data.shape == (N // D,)


def data():
  """Rows of several types."""
  rng = np.random.default_rng(2)
  inputs = {
    'image': rng.integers(0, 256, (N, 3, 2), dtype=np.uint8),
    'x': rng.normal(size=(N, 5)).astype(np.float32),
    'half': jnp.asarray(rng.normal(size=(N,)), jnp.bfloat16),
    'flag': rng.random(N) < 0.5,
  }
  return Batch(inputs, rng.integers(0, 9, N))


def test_rows_arrive_as_they_are(key):
  """`take` and `take_own` are `types.take`, for all types of rows."""
  split = sharding.shard(data(), SHARDS)
  for leaf in jax.tree.leaves(split):
    assert leaf.addressable_shards[0].data.shape[0] == N // D
  anywhere = jax.random.randint(key, (40,), 0, N)
  own = anywhere % (N // D) + jnp.repeat(jnp.arange(D), 40 // D) * (N // D)
  for take, indices in (
    (sharding.take, anywhere),
    (sharding.take_own, own),
  ):
    rows = jax.jit(functools.partial(take, shards=SHARDS))(split, indices)
    expected = types.take(jax.tree.map(jnp.asarray, data()), indices)
    for got, wanted in zip(
      jax.tree.leaves(rows), jax.tree.leaves(expected), strict=True
    ):
      assert got.dtype == wanted.dtype
      assert got.addressable_shards[0].data.shape[0] == 40 // D
      np.testing.assert_array_equal(
        np.asarray(got, np.float32), np.asarray(wanted, np.float32)
      )


def test_padding_changes_no_objective():
  """Record weight 0, so that averages by record weight stay as they are."""
  small = jax.tree.map(lambda rows: rows[:7], data())
  assert sharding.pad(small, 7) is small
  padded = sharding.pad(small, 4)
  assert types.num_examples(padded) == 8
  np.testing.assert_array_equal(padded.record_weights, [1] * 7 + [0])
  heavy = small._replace(record_weights=np.arange(7, dtype=np.float32))
  padded = sharding.pad(heavy, 5)
  np.testing.assert_array_equal(padded.record_weights, [*range(7), 0, 0, 0])
  np.testing.assert_array_equal(padded.targets[7:], [small.targets[6]] * 3)
  x = np.asarray(padded.inputs['x'])
  by_record = padded.record_weights @ x / padded.record_weights.sum()
  expected = np.arange(7) @ small.inputs['x'] / 21
  np.testing.assert_allclose(by_record, expected, rtol=1e-5)


def test_place_splits_what_has_a_row_per_example():
  """And nothing else; what was on the mesh stays where it was."""
  on_mesh = jax.device_put(jnp.zeros(N), SHARDS.whole)
  state = TrainState(
    *[jnp.zeros(()), jnp.zeros(()), jax.random.key(0)],
    *[{'w': jnp.zeros((N, 2))}, {}, ()],
    sampler_state=(jnp.zeros(N), jnp.zeros(3), on_mesh, None),
  )
  placed = sharding.place(state, SHARDS, N)
  assert placed.params['w'].sharding.is_fully_replicated
  long, short, stays, nothing = placed.sampler_state
  assert nothing is None
  assert long.addressable_shards[0].data.shape == (N // D,)
  assert short.sharding.is_fully_replicated
  assert stays is on_mesh


def test_bad_meshes_and_samplers_are_named():
  """Argument, value, remedy."""
  with pytest.raises(ValueError, match="axis must be one of 'data'; got 'x'"):
    sharding.Shards(MESH, 'x')
  with pytest.raises(ValueError, match='mesh must have Auto axes alone'):
    sharding.Shards(jax.make_mesh((1,), ('a',), (AxisType.Explicit,)), 'a')
  small = functools.partial(presample, pool_size=1)
  with pytest.raises(ValueError, match='shard 0 of .* pool_size must be at le'):
    sharding.quota(small, 8, 8 * 2, SHARDS)
  with pytest.raises(ValueError, match='record_weights must have one row per'):
    sharding.quota(
      record_weighted, 8, 8, SHARDS, arrays={'record_weights': np.ones(7)}
    )
  with pytest.raises(ValueError, match='batch_size must be an integer of at'):
    sharding.two_level(np.ones(8), 0, SHARDS)
  epochs = functools.partial(record_weighted, draws='epoch')
  for make in (epochs, functools.partial(memory, rebuild_every=2)):
    with pytest.raises(ValueError, match='State. Draw by quota, independently'):
      sharding.global_law(make, 8, 8, SHARDS)
  with pytest.raises(
    ValueError, match=rf'of {16 * D}, so .* got {24 * D}\. sh'
  ):
    sharding.global_law(memory, 24 * D, 8, SHARDS)
  if D > 1:
    with pytest.raises(ValueError, match=r'num_examples.*sharding\.pad\(data'):
      sharding.global_law(presample, 8 * D + 1, 8, SHARDS)
    with pytest.raises(ValueError, match='batch_size must be a multiple'):
      sharding.quota(presample, 8 * D, 8 * D + 1, SHARDS)
    with pytest.raises(ValueError, match='at random|shard 0'):
      sharding.quota(
        record_weighted, 8, 8, SHARDS, arrays={'record_weights': np.eye(8)[7]}
      )


@pytest.mark.parametrize('count', [2, 4, 8])
def test_it_holds_on_more_devices(count):
  """In a process of its own, whose CPU stands for `count` devices."""
  assert D == 1, 'a process of several devices starts no others'
  files = [__file__] + [str(HERE / 'sharding_on_devices.py')] * (count == 4)
  laws = 'law or draws or unbiased or row or place or epochs or sampler or step'
  flags = os.environ.get('XLA_FLAGS', '')
  flags += f' --xla_force_host_platform_device_count={count}'
  run = subprocess.run(
    [
      sys.executable,
      '-m',
      'pytest',
      '-n0',
      '-k',
      f'({laws}) and not more_devices',
      *files,
    ],
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    cwd=HERE.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stdout + run.stderr
