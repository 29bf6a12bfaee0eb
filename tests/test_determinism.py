"""One seed, one run: bit for bit, and stream by stream."""

import os
import pathlib

import jax
import numpy as np
import processes
import pytest

from experiments import artifacts, determinism, settings, train
from experiments.program import Program
from isjax.baselines import BASELINES
from isjax.samplers import SAMPLERS

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = f'{ROOT}/configs/digits.py:smoke'


def config_of(**changes):
  """A run of some steps of a tiny network."""
  _, config, _ = settings.load(DIGITS, [])
  del config['sweep']
  sampler = {'name': 'uniform', 'batch_size': 16}
  return config | {'data': 'synthetic', 'sampler': sampler} | changes


def without_seconds(folder):
  lines = artifacts.read_metrics(folder)
  return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]


@pytest.mark.parametrize('name', [*SAMPLERS, *BASELINES])
def test_the_same_seed_gives_the_same_metrics(name, tmp_path):
  """Every line of every sampler's, bitwise; another seed gives others."""
  config = config_of(sampler={'name': name, 'batch_size': 16}, budget=600)
  program = Program(config)
  lines = []
  for number, seed in enumerate((0, 0, 1)):
    folder = tmp_path / str(number)
    train.run(config | {'seed': seed}, program, folder)
    lines.append(without_seconds(folder))
  assert lines[0] == lines[1]
  assert lines[0] != lines[2]
  assert len(lines[0]) > 3


def draws(config):
  """The indices of the first steps, as far as no training has a say in them."""
  program = Program(config)
  state = program.init(config['seed'])
  step = program._step(0.1, config['budget'])
  found = []
  for number in range(3):
    proposal, state = step.propose(state, np.int32(number))
    found.append(np.asarray(proposal.indices))
  return np.array(found)


def test_no_other_stream_shifts_the_draws():
  """Views, the model, weights and the optimiser have no say in them."""
  plain = config_of(data='digits')
  before = draws(plain)
  rmsprop = {'name': 'rmsprop', 'learning_rate': 0.1}
  for change in (
    {'augmentations': {'pad_and_crop': {'padding': 1}, 'flip': {}}},
    {'model': {'name': 'mlp', 'hidden': (9, 9)}},
    {'optimizer': rmsprop | {'schedule': {'name': 'constant'}}},
    {'robust': {'name': 'absgd', 'temperature': 1.0, 'start': 0.0}},
    {'score': 'loss'},
  ):
    np.testing.assert_array_equal(draws(plain | change), before)
  assert (draws(plain | {'seed': 1}) != before).any()


def test_no_sampler_shifts_the_first_parameters():
  """A seed begins where it begins, whatever is drawn from then on."""
  first, *others = (
    Program(config_of(sampler={'name': name, 'batch_size': 16})).init(3).params
    for name in ('uniform', 'shuffle', 'presample', 'memory')
  )
  for other in others:
    jax.tree.map(np.testing.assert_array_equal, first, other)


def test_the_option_sets_the_flag_once(monkeypatch):
  """And leaves those that are set, and the other arguments, as they are."""
  monkeypatch.setenv('XLA_FLAGS', '--xla_some=1')
  assert determinism.take(['config.py', '--workers=1']) == [
    'config.py',
    '--workers=1',
  ]
  assert os.environ['XLA_FLAGS'] == '--xla_some=1'
  for _ in range(2):
    assert determinism.take(['--deterministic', 'config.py']) == ['config.py']
    assert os.environ['XLA_FLAGS'] == (
      '--xla_some=1 --xla_gpu_deterministic_ops=true'
    )


def test_a_deterministic_run(tmp_path):
  """XLA knows the flag, and the result says that it was set."""
  arguments = (DIGITS, '--config.data=synthetic', '--config.budget=600')
  folder, plain = tmp_path / 'deterministic', tmp_path / 'plain'
  with processes.Host(tmp_path) as host:
    process = host.start(
      'experiments.train', *arguments, '--deterministic', f'--folder={folder}'
    )
    status, said = process.wait()
  assert status == 0, said
  assert determinism.FLAG in artifacts.read_result(folder)['xla_flags']
  assert train.main([*arguments, f'--folder={plain}']) == 0
  assert without_seconds(folder) == without_seconds(plain)
