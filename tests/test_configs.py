"""configs/: scales, cells, and that all of it runs."""

import json
import os
import pathlib
import types

import numpy as np
import pytest

from experiments import artifacts, components, settings, sweep, trunk
from experiments.settings import SettingsError
from isjax.data.metadata import assemble

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
DIGITS = f'{ROOT}/configs/digits.py'
# The tests of a study run it, each at its own smallest settings.
SWEEPS = [path for path in CONFIGS if "'study':" not in path.read_text()]


def stem(path):
  return path.stem


@pytest.mark.parametrize('path', CONFIGS, ids=stem)
def test_every_scale_of_a_config_has_runs(path):
  """Its file says how it is run, and its changes are of fields that exist."""
  module, _, _ = settings.load(str(path), [])
  assert f'configs/{path.name}' in module.__doc__
  assert 'smoke' in settings.scales(module)
  for scale in settings.scales(module):
    module, config, changes = settings.load(f'{path}:{scale}', [])
    expected = path.stem if scale == 'cpu' else f'{path.stem}_{scale}'
    assert config['name'] == expected
    if 'study' in config:
      entries = list(settings.entries(module, config))
      assert entries
      assert all(entry.keys() <= config.keys() for entry in entries)
    else:
      runs = settings.runs(module, config, changes)
      assert module.BASELINE in {
        run['cell'].rpartition(': ')[2] for run in runs
      }


@pytest.fixture(scope='module')
def images():
  """A set of a size that every batch and pool fits in."""
  labels = np.arange(2000) % 10
  return assemble(
    'made up',
    'train',
    np.zeros((2000, 8, 8, 1), np.uint8),
    labels,
    num_classes=10,
  )


@pytest.mark.parametrize('path', SWEEPS, ids=stem)
def test_every_cell_at_every_scale_is_made_of_parts_that_exist(path, images):
  """Names and options of sampler, model, loss, transform and views."""
  batch, metadata = images
  made = set()
  module, _, _ = settings.load(str(path), [])
  for scale in settings.scales(module):
    for config in settings.runs(*settings.load(f'{path}:{scale}', [])):
      parts = (
        (components.sampler, config['sampler'], batch, config['budget']),
        (components.model, config['model'], metadata),
        (components.loss_fn, config['loss'], metadata),
        (components.augmentation, config['augmentations']),
      )
      for make, part, *rest in parts:
        key = make.__name__ + json.dumps(part, sort_keys=True)
        if key not in made:
          make(part, *rest)
        made.add(key)
      fields = 'class_weights', 'robust', 'optimizer', 'train_only', 'exponent'
      key = json.dumps([config[field] for field in fields], sort_keys=True)
      if key not in made:
        components.transform(config, 0.1, metadata)
      made.add(key)
      trunk.config_of(config)
  assert len(made) >= 5


@pytest.mark.parametrize('path', SWEEPS, ids=stem)
def test_every_sweep_runs_at_its_smallest_scale(path, tmp_path, monkeypatch):
  """To a table and a figure."""
  monkeypatch.chdir(ROOT)
  status = sweep.main([f'{path}:smoke', f'--folder={tmp_path}', '--workers=1'])
  if status == 2 and 'ISJAX_DATA_DIR' not in os.environ:
    pytest.skip('ISJAX_DATA_DIR is not set')
  assert status == 0
  text = (tmp_path / 'table.md').read_text()
  assert text.startswith(f'# {path.stem}_smoke\n')
  assert list(tmp_path.glob('*.png'))
  results = [artifacts.read_result(p.parent) for p in tmp_path.glob('*/*.json')]
  assert results
  assert all(r.get('status', 'finished') == 'finished' for r in results)


def test_a_scale_changes_what_it_names_and_the_command_line_wins():
  """Sub-dicts are replaced as a whole; the name tells the scale."""
  _, cpu, _ = settings.load(DIGITS, [])
  _, smoke, _ = settings.load(f'{DIGITS}:smoke', ['--config.budget=77'])
  assert smoke['name'] == 'digits_smoke'
  assert smoke['budget'] == 77
  assert tuple(smoke['model']['hidden']) == (8,)
  assert smoke['sampler'] == cpu['sampler']
  assert settings.load(f'{DIGITS}:cpu', [])[1] == cpu


@pytest.mark.parametrize('scale', ['paper', 'Smoke', 'x:y'])
def test_a_scale_that_there_is_not_is_named(scale):
  """With those that there are."""
  with pytest.raises(SettingsError, match=f"scales cpu, smoke.*'{scale}'"):
    settings.load(f'{DIGITS}:{scale}', [])


def test_a_scale_of_an_unknown_field_is_an_error(tmp_path):
  """Else a typo would change nothing."""
  path = tmp_path / 'config.py'
  path.write_text(
    'from configs.digits import *\n'
    "SCALES = {'smoke': {'sampler.pol_size': 3}}\n"
  )
  with pytest.raises(SettingsError, match="'smoke' sets 'sampler.pol_size'"):
    settings.load(f'{path}:smoke', [])


def module_of(cells):
  module = types.ModuleType('config')
  module.cells = lambda config: cells
  return module


def test_cells_run_with_every_rate_and_seed():
  """In that order, restricted to the cells that are wanted."""
  _, config, _ = settings.load(DIGITS, [])
  module = module_of({'a': {}, 'b': {'exponent': 0.5}})
  config['sweep'] = {'learning_rates': (0.1, 0.2), 'num_seeds': 2, 'cells': ()}
  entries = list(settings.entries(module, config))
  assert len(entries) == 8
  assert entries[-1] == {
    'cell': 'b',
    'optimizer.learning_rate': 0.2,
    'seed': 1,
    'exponent': 0.5,
  }
  config['sweep'] = {'num_seeds': 1, 'cells': ('b',)}
  (entry,) = settings.entries(module, config)
  assert entry['cell'] == 'b'
  assert (
    entry['optimizer.learning_rate'] == config['optimizer']['learning_rate']
  )
  config['sweep'] = {'num_seeds': 1, 'cells': ('c',)}
  with pytest.raises(SettingsError, match='sweep.cells must be one of a, b'):
    list(settings.entries(module, config))


def test_a_cell_without_its_data_is_left_out(tmp_path, capsys, monkeypatch):
  """The others run; where none can, the command fails before it starts."""
  path = tmp_path / 'config.py'
  path.write_text(
    'from configs.digits import *\n'
    'def cells(config):\n'
    "  lost = {'data': 'no_such_set'}\n"
    "  return {BASELINE: {'sampler.mix': 0.2}, 'lost': lost}\n"
  )
  monkeypatch.chdir(ROOT)
  monkeypatch.delenv('ISJAX_DATA_DIR', raising=False)
  folder = tmp_path / 'runs'
  command = [f'{path}:smoke', f'--folder={folder}', '--workers=1']
  assert sweep.main([*command, '--config.sweep.cells=()']) == 0
  assert 'lost: left out. data:' in capsys.readouterr().err
  text = (folder / 'table.md').read_text()
  assert '| lost | - |' in text
  assert '- lost: left out. data:' in text
  assert sweep.main([*command, "--config.sweep.cells=('lost',)"]) == 2
  assert 'no_such_set' in capsys.readouterr().err


def test_a_sweep_whose_time_is_over_goes_on_with_the_next_call(
  tmp_path, capsys, monkeypatch
):
  """Status 75 and a dash for what was not run; then the rest, and 0."""
  monkeypatch.chdir(ROOT)
  command = [f'{DIGITS}:smoke', f'--folder={tmp_path}', '--workers=1']
  assert sweep.main([*command, '--minutes=0']) == 75
  assert not list(tmp_path.glob('*/result.json'))
  assert '4 runs are left' in capsys.readouterr().err
  cells = "--config.sweep.cells=('uniform',)"
  assert sweep.main([*command, cells]) == 0
  assert sweep.main([*command, '--minutes=0']) == 75
  text = (tmp_path / 'table.md').read_text()
  assert '| logit gradient, gate | - |' in text
  assert '- logit gradient, gate: left out. the time was over.' in text
  assert sweep.main(command) == 0
  assert 'left out' not in (tmp_path / 'table.md').read_text()
