"""configs/absgd_*.py: budgets in epochs, and first stages that are shared."""

import pathlib

import pytest

from experiments import program, settings, sweep

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'
CLASSES = {'cifar10': [5000] * 10, 'cifar100': [500] * 100}
CLASSES['fashion_mnist'] = [6000] * 10


def runs_of(name):
  return settings.runs(*settings.load(f'{CONFIGS}/{name}', []))


def size(config):
  """The examples of a run's training set, by the benchmark's formulas."""
  counts = CLASSES[config['data']]
  last = len(counts) - 1
  for name, options in config['transformations'].items():
    if name == 'long_tail':
      factor = options['factor']
      counts = [int(n * factor ** (i / last)) for i, n in enumerate(counts)]
    elif name == 'step_imbalance':
      rare = [int(n * options['factor']) for n in counts[len(counts) // 2 :]]
      counts = counts[: len(counts) // 2] + rare
    elif name == 'hold_out':
      counts = [round(n * (1 - options['share'])) for n in counts]
  return sum(counts)


@pytest.mark.parametrize(
  'name',
  [
    'absgd_long_tail.py',
    'absgd_long_tail.py:smoke',
    'absgd_long_tail.py:paper',
    'absgd_fine_tuning.py',
    'absgd_fine_tuning.py:paper',
    'absgd_noise.py',
    'absgd_noise.py:paper',
  ],
)
def test_a_budget_is_a_whole_number_of_epochs(name):
  """The config's epochs, of the set that the transformations leave."""
  _, config, _ = settings.load(f'{CONFIGS}/{name}', [])
  for run in {run['cell']: run for run in runs_of(name)}.values():
    if run['data'] == 'digits':
      num_examples = program.load_set(run, 'train')[1].num_examples
    else:
      num_examples = size(run)
    budget = 3 * num_examples * config['sweep']['num_epochs']
    whole = 'a quarter' not in run['cell']
    assert run['budget'] == (budget if whole else budget // 4), run['cell']


@pytest.mark.parametrize('name', ['absgd_long_tail.py', 'absgd_fine_tuning.py'])
@pytest.mark.parametrize('scale', ['cpu', 'paper'])
def test_two_stage_runs_share_one_first_stage(name, scale):
  """One for each training set and seed: the cross entropy of plain epochs."""
  runs = runs_of(f'{name}:{scale}')
  begins = sweep.trunks(runs)
  sets = {run['cell'].rpartition(': ')[0] for run in runs}
  seeds = {run['seed'] for run in runs}
  assert len(begins) == len(sets) * len(seeds)
  branches = [run for run in runs if run['trunk']]
  assert len(branches) >= 10 * len(begins)
  for run in begins:
    assert run['cell'].endswith(': first stage')
    assert run['loss'] == {'name': 'cross_entropy'}
    assert run['robust']['name'] == run['class_weights']['name'] == 'none'
    assert run['sampler']['name'] == 'shuffle'
    assert not run['train_only']
