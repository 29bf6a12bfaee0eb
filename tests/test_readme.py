"""The README's examples run, and what it names is there."""

import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import claims, settings
import isjax

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / 'README.md').read_text()
EXAMPLES = re.findall(r'```python\n(.*?)```', TEXT, re.S)


def example(word):
  """The one example whose code contains the word."""
  (found,) = [code for code in EXAMPLES if word in code]
  return found


def execute(code):
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  return names


def test_the_training_run_learns(capsys):
  """The first example, of at most 15 lines, lowers the loss."""
  code = example("load('digits', 'train')\npreprocess")
  assert len([line for line in code.splitlines() if line.strip()]) <= 15
  metrics = execute(code)['metrics']
  assert metrics['loss'][:20].mean() > 1
  assert metrics['loss'][-20:].mean() < 0.1
  assert capsys.readouterr().out


def test_the_table_alone_is_unbiased():
  """The second example's weights average to one over many batches."""
  names = execute(example('alias.build)(weights)'))
  assert names['indices'].shape == (32,)
  law = np.array([1000, 1, 10, 3]) / 1014
  drawn, w = jax.vmap(names['batch'])(jax.random.split(jax.random.key(1), 2000))
  np.testing.assert_allclose(w, (1 / (4 * law))[drawn], rtol=2e-6)


def test_the_new_sampler_is_unbiased():
  """The third example obeys the contract of samplers."""
  code = example('def weighted')
  assert len(code.splitlines()) <= 16
  weighted = execute(code)['weighted']
  sampler = weighted(4, 2, law=jnp.array([1.0, 2.0, 3.0, 4.0]))
  state = sampler.init(jax.random.key(0))
  indices, needs_scores = sampler.propose(jax.random.key(1), state)
  assert needs_scores is False
  draw, _, _ = sampler.select(jax.random.key(2), state, indices, jnp.zeros(2))
  law, slots = sampler.law(state, jnp.zeros(2))
  np.testing.assert_allclose(draw.probabilities, law[draw.indices])
  np.testing.assert_allclose(law, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
  np.testing.assert_allclose(slots, [0.5, 0.5])


def test_the_new_score_is_the_entropy():
  """The fourth example: log K for equal logits, 0 for certain ones."""
  entropy = execute(example('def entropy'))['entropy']
  scores = entropy(jnp.array([[0.0, 0, 0, 0], [200.0, 0, 0, 0]]), None)
  np.testing.assert_allclose(scores, [np.log(4), 0], atol=1e-6)


def test_the_new_config_sweeps(monkeypatch):
  """The fifth example has three pools times rates and seeds, and one claim."""
  monkeypatch.syspath_prepend(str(ROOT))
  code = example("config.name = 'wider'")
  assert len([line for line in code.splitlines() if line.strip()]) <= 15
  module = types.ModuleType('wider')
  vars(module).update(execute(code))
  config = module.get_config().to_dict()
  runs = settings.runs(module, config, {})
  assert len(runs) == 3 * len(config['sweep']['learning_rates']) * 10
  assert {run['sampler']['pool_size'] for run in runs} == {32, 80, 320}
  (claim,) = claims.of(module)
  assert {claim.cell, claim.other} < {run['cell'] for run in runs}


def test_a_set_is_transformed(capsys):
  """The data example: a long tail, with noise on top."""
  counts = execute(example('data.transform('))['about'].class_counts
  assert counts[0] > 3 * counts[-1] > 0
  assert capsys.readouterr().out


def test_a_set_is_read_from_files(tmp_path):
  """The example of sets that are larger than the device."""
  train_from_files = execute(example('def train_from_files'))[
    'train_from_files'
  ]
  state, step = linear_problem(tmp_path)
  state, metrics = train_from_files(step, state, tmp_path)
  assert state.step == 1000
  assert metrics['loss'][-50:].mean() < 0.5 * metrics['loss'][:50].mean()


def linear_problem(folder):
  """Points on two sides of a line, in files, and a step that finds it."""
  x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
  np.save(folder / 'inputs.npy', x)
  np.save(folder / 'targets.npy', (x[:, 0] > x[:, 1]).astype(np.int32))
  loss_fn = isjax.losses.cross_entropy()
  sampler = isjax.uniform(64, 8)
  tx = isjax.importance_weighted(optax.sgd(0.5), 64)

  def apply_fn(params, model_state, inputs, *, train, rngs):
    del train, rngs
    return inputs @ params, model_state

  score = isjax.logit_gradient_norm(loss_fn)
  step = isjax.make_train_step(apply_fn, loss_fn, sampler, tx, score=score)
  params = jnp.zeros((2, 2))
  state = isjax.init_train_state(jax.random.key(0), params, {}, sampler, tx)
  return state, step


def test_ones_own_loss_inputs_and_model_train():
  """Towards the ninth decile of 0..63 from below: the loss falls."""
  metrics = execute(example('def loss_fn'))['metrics']
  assert metrics['loss'][-10:].mean() < 0.5 * metrics['loss'][0]


def test_the_adapter_of_nnx_is_the_tested_one():
  """tests/test_own_models.py trains with the same lines."""
  (body,) = re.findall(
    r'def from_nnx.*', example('def from_nnx').rstrip(), re.S
  )
  tested = (ROOT / 'tests/test_own_models.py').read_text()
  assert code_of(body) in code_of(tested)


def code_of(text):
  """Without comments, docstrings of a line and layout."""
  lines = (line.partition('#')[0].strip() for line in text.splitlines())
  lines = (line for line in lines if not line.startswith('"""'))
  return ''.join(''.join(lines).split())


def test_the_loader_of_torch_is_fed():
  """An epoch of 1000 weighted draws leaves a gradient."""
  pytest.importorskip('torch', reason='torch is not installed')
  assert execute(example('IndexStream'))['model'].weight.grad is not None


def test_every_path_named_exists():
  """Links and files of the layout are there."""
  for path in re.findall(r'\]\(([^)]+)\)', TEXT):
    assert (ROOT / path).exists(), path
  for path in re.findall(r'`((?:isjax|experiments|configs)/[\w./]*)`', TEXT):
    if path != 'configs/wider.py':
      assert (ROOT / path).exists(), path
