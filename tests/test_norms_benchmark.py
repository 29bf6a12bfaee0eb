"""The benchmark of gradient norms: its rivals, and what ends in an error."""

import functools

import jax
import numpy as np
import pytest

from experiments.benchmarks import norms, timing
from isjax.models import MLP, ResNet

# Programs run once: what counts is how long they compile.
quick_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
SMALL = (
  norms.Network('mlp', MLP(10, (5,)), (4, 4, 2), 6),
  norms.Network('resnet', ResNet(10, 4, num_groups=2), (8, 8, 2), 3),
)


def test_the_targets_are_those_of_the_issue():
  """1.2 forward passes for dense layers, 1.6 training steps for WRN-16-1."""
  targets = {n.name: n.targets for n in norms.NETWORKS if n.targets}
  assert targets == {
    'MLP 256-256 on 32x32x3': {'forward': timing.Target('<=', 1.2)},
    'WRN-16-1': {'training step': timing.Target('<=', 1.6)},
  }


def test_wrn_16_1_has_its_sixteen_layers():
  """Twelve convolutions in blocks, three shortcuts and ends: 175 k weights."""
  [wrn] = [n for n in norms.NETWORKS if n.name == 'WRN-16-1']
  params = jax.eval_shape(
    wrn.module.init, jax.random.key(0), np.zeros((1, *wrn.shape))
  )
  kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
  # The first shortcut of WRN needs no convolution at 16 channels.
  assert len(kernels) == 12 + 2 + 2
  assert 170_000 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 180_000


@pytest.mark.parametrize('network', SMALL, ids=lambda n: n.name)
def test_rivals_find_the_same_norms_on_the_same_network(network):
  """Logits and norms of torch.func equal those of isjax."""
  try:
    import torch
  except ImportError:
    pytest.skip('torch is not installed')
  from experiments.benchmarks import torch_norms

  problem = norms.problem_of(network)
  programs = norms.programs(network)
  loaded = torch_norms.load(network.module, problem.params, *problem.batch[:2])
  model, x, _ = loaded
  with torch.no_grad():
    logits = model(x).numpy()
  by_name = {
    name: np.asarray(quick_jit(programs[name])(*problem))
    for name in ('forward', 'vmap(grad)')
  }
  np.testing.assert_allclose(logits, by_name.pop('forward'), rtol=1e-4)
  by_name['torch.func'] = torch_norms.by_func(*loaded)().numpy()
  assert norms.check(network.name, by_name) < norms.TOLERANCE


def test_other_norms_are_an_error():
  """A contender may be as fast as it likes; NaN is no norm either."""
  expected = np.array([1.0, 2.0])
  assert norms.check('net', {'vmap(grad)': expected}) == 0
  for wrong in (expected * 1.001, expected * np.nan):
    with pytest.raises(SystemExit, match='net, fast: norms differ by'):
      norms.check('net', {'vmap(grad)': expected, 'fast': wrong})


def test_the_model_counts_multiplications():
  """Of the backward pass from layer to layer, all but the first layer's."""
  [mlp, resnet] = SMALL
  assert norms.model_of(mlp) == 'by multiplications 1.24'  # 1 + 50 / 210
  assert norms.model_of(resnet) == ''


@pytest.mark.parametrize('peer', ['torch', 'opacus'])
def test_without_its_peers_the_benchmark_fails_before_it_measures(
  peer, monkeypatch
):
  """A peer that is not there is an error, not an empty pass."""

  def must_not_run(*args):
    raise AssertionError(f'it went on without {peer}')

  monkeypatch.setattr(
    timing.importlib.util, 'find_spec', lambda name: None if name == peer else 1
  )
  monkeypatch.setattr(timing, 'pin', must_not_run)
  with pytest.raises(SystemExit, match=f'error: .* compares with {peer}'):
    norms.main([])
