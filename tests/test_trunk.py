"""experiments/trunk.py: runs that begin alike and go on from one checkpoint."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from experiments import artifacts, settings, sweep, train, trunk
from experiments.program import Program
from experiments.settings import SettingsError

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRUNK = {'cell': 'plain', 'until': 0.5, 'robust': {'name': 'none'}}
RESULTS = (
  'train_loss',
  'test_error',
  'steps',
  'cost',
  'mean_effective_sample_size',
)


def configs_of(*cells):
  """Runs of a tiny network with momentum, one per cell and seed."""
  _, config, _ = settings.load(f'{ROOT}/configs/digits.py:smoke', [])
  config.pop('sweep')
  sampler = {'name': 'shuffle', 'batch_size': 16}
  config |= {'data': 'synthetic', 'sampler': sampler, 'budget': 48 * 40}
  return [config | {'seed': s} | cell for cell in cells for s in (0, 1)]


def results_of(configs, folder):
  assert sweep.make_runs(configs, folder, workers=1) == {}
  return [artifacts.read_result(folder / sweep.run_name(c)) for c in configs]


@pytest.fixture(scope='module')
def branched(tmp_path_factory):
  """Whole runs, branches that change nothing, and branches that do."""
  folder = tmp_path_factory.mktemp('trunk')
  robust = {'name': 'absgd', 'temperature': 0.5, 'decay': 0.5, 'start': 0.5}
  configs = configs_of(
    {'cell': 'whole'},
    {'cell': 'branch', 'trunk': TRUNK},
    {'cell': 'whole, robust', 'robust': robust},
    {'cell': 'robust', 'robust': robust, 'trunk': TRUNK},
  )
  return folder, configs, results_of(configs, folder)


def test_a_branch_ends_where_the_whole_run_does(branched):
  """Bitwise, seed by seed, with all that is averaged over the steps."""
  _, _, results = branched
  for whole, branch in zip(results[:2], results[2:4], strict=True):
    assert [whole.get(n) for n in RESULTS] == [branch.get(n) for n in RESULTS]
    assert whole['mean_effective_sample_size'] == pytest.approx(16)
  assert results[0]['train_loss'] != results[1]['train_loss']


def test_a_branch_does_what_its_own_config_says(branched):
  """From the branch on: as the whole run whose weights begin there."""
  _, _, results = branched
  for whole, branch in zip(results[4:6], results[6:], strict=True):
    assert branch['train_loss'] == pytest.approx(whole['train_loss'], rel=1e-4)
    assert branch['steps'] == whole['steps'] == 40
  assert results[6]['train_loss'] != results[2]['train_loss']


def test_the_trunk_is_trained_once_and_ends_in_time(branched):
  """One run per seed for both cells, not a step past its share."""
  folder, configs, results = branched
  trunks = sweep.trunks(configs)
  names = [(c['cell'], c['seed']) for c in trunks]
  assert names == [('plain', 0), ('plain', 1)]
  assert len(list(folder.glob('plain-*'))) == 2
  for config in trunks:
    result = artifacts.read_result(folder / sweep.run_name(config))
    assert result['cost'] == 0.5 * config['budget']
    assert result['seconds'] < results[2]['seconds'] + results[3]['seconds']


def test_a_trunk_that_was_cut_off_at_its_end_goes_no_further(
  branched, tmp_path
):
  """Its last state is saved, its result is not: the same steps, once."""
  folder, configs, _ = branched
  config, _ = sweep.trunks(configs)
  whole = artifacts.read_result(folder / sweep.run_name(config))
  place = shutil.copytree(folder / sweep.run_name(config), tmp_path / 'trunk')
  (place / 'result.json').unlink()
  result = train.run(config, Program(config), place)
  assert [result[n] for n in RESULTS] == [whole[n] for n in RESULTS]


def test_the_metrics_of_a_branch_begin_with_its_trunks(branched):
  """The curve is whole: costs from 0 to the budget, every step once."""
  folder, configs, _ = branched
  whole, branch = (
    artifacts.read_metrics(folder / sweep.run_name(configs[i])) for i in (0, 2)
  )
  assert [m['cost'] for m in branch] == [m['cost'] for m in whole]
  assert [m.get('train_loss') for m in branch] == [
    m.get('train_loss') for m in whole
  ]


def test_the_state_of_a_branch_is_that_of_its_trunk(branched):
  """Momentum, order of the epoch, key and clock; the normaliser is new."""
  folder, configs, _ = branched
  config = configs[6]
  place = sweep.trunk_folder(config, folder)
  state, position = trunk.branch(Program(config), config, place)
  assert int(state.step) == position['steps'] == 20
  assert int(state.cost) == 20 * 48
  fresh = Program(config).init(config['seed'])
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), state.opt_state, fresh.opt_state
  )
  assert any(jax.tree.leaves(moved[-1]))
  assert not any(jax.tree.leaves(moved[:-1]))
  order = state.sampler_state, fresh.sampler_state
  assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), *order)))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'cell': 'a'}, 'trunk must name a cell and until; got cell'),
    ({'cell': 'a', 'until': 0.5, 'robst': 1}, "'robst' is to be set"),
  ],
)
def test_a_bad_trunk_is_named(changes, message):
  """Its fields are those of a config."""
  (config, _) = configs_of({'cell': 'x', 'trunk': changes})
  with pytest.raises(SettingsError, match=message):
    trunk.config_of(config)


def test_a_trunk_of_another_optimiser_is_refused(branched):
  """Its state would mean nothing."""
  folder, configs, _ = branched
  place = sweep.trunk_folder(configs[2], folder)
  adam = {**configs[2]['optimizer'], 'name': 'adam'}
  adam.pop('momentum')
  config = configs[2] | {'optimizer': adam}
  config['trunk'] = TRUNK | {'optimizer': configs[2]['optimizer']}
  with pytest.raises(SettingsError, match='must have the same optimizer'):
    trunk.branch(Program(config), config, place)


def test_a_branch_that_trains_other_parameters_starts_its_optimiser(branched):
  """Frozen ones stay those of the trunk, bitwise; the momentum begins at 0."""
  folder, configs, _ = branched
  place = sweep.trunk_folder(configs[2], folder)
  config = configs[2] | {'train_only': ('Dense_1',)}
  config['trunk'] = TRUNK | {'train_only': ()}
  program = Program(config)
  state, _ = trunk.branch(program, config, place)
  trained, _ = trunk.branch(Program(configs[2]), configs[2], place)
  jax.tree.map(np.testing.assert_array_equal, state.params, trained.params)
  assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))
  frozen = np.asarray(state.params['Dense_0']['kernel'])
  head = np.asarray(state.params['Dense_1']['kernel'])
  state, _ = program.advance(state, 0.1, config['budget'])
  np.testing.assert_array_equal(state.params['Dense_0']['kernel'], frozen)
  assert (np.asarray(state.params['Dense_1']['kernel']) != head).any()
