"""experiments/sweep.py: --cell k/n, processes that make one sweep together."""

import pathlib

import pytest

from experiments import artifacts, settings, sweep, train
from experiments.interruption import Interruption
from experiments.program import ARGUMENTS
from experiments.settings import SettingsError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = f'{ROOT}/configs/digits.py:smoke'


def configs_of(*changes):
  module, config, changes = settings.load(SMOKE, changes)
  return settings.runs(module, config, changes)


@pytest.mark.parametrize('text', ['0/2', '3/2', '1', '1/0', 'a/2', '-1/2', ''])
def test_a_part_that_there_is_not_is_one_line(text, capsys):
  """Parts count from 1 to n."""
  assert sweep.main([SMOKE, f'--cell={text}']) == 2
  line = '--cell must be k/n, 1 <= k <= n: part k of n; got '
  assert line in capsys.readouterr().err


@pytest.mark.parametrize('n', [1, 2, 3, 7])
def test_parts_have_every_cell_once_whatever_is_finished(
  n, tmp_path, monkeypatch
):
  """Of them all; part k has cells k, k + n, ... in the config's order."""
  changes = ('--config.sweep.cells=()', '--config.sweep.num_seeds=2')
  configs = configs_of(*changes)
  cells = list(settings.iterate_cells(configs, ARGUMENTS))
  assert len(cells) == 5
  made = []
  monkeypatch.setattr(sweep, 'check', lambda cell: None)
  monkeypatch.setattr(sweep, 'run_all', lambda cells, *args: made.extend(cells))
  (tmp_path / sweep.run_name(cells[0][0])).mkdir()
  whole = {'config': cells[0][0], 'status': 'finished'}
  whole |= dict.fromkeys(artifacts._NUMBERS, 0)
  path = tmp_path / sweep.run_name(cells[0][0]) / 'result.json'
  artifacts.write_json(path, whole)
  for k in range(1, n + 1):
    made.clear()
    sweep.make_runs(configs, tmp_path, 1, part=(k, n))
    expected = [list(cell) for cell in cells[k - 1 :: n]]
    if k == 1:
      expected[0] = cells[0][1:]
    assert made == expected


def test_the_table_is_written_by_the_last_one(tmp_path, capsys):
  """Until then the status is 75, and a line says what is left."""
  command = [SMOKE, f'--folder={tmp_path}', '--workers=1']
  assert sweep.main([*command, '--cell=1/2']) == 75
  assert 'the table is written once they are finished' in (
    capsys.readouterr().err
  )
  uniform, gated = settings.iterate_cells(configs_of(), ARGUMENTS)
  assert not sweep.unfinished(uniform, tmp_path)
  assert sweep.unfinished(gated, tmp_path) == gated
  assert not (tmp_path / 'table.md').exists()
  assert sweep.main([*command, '--cell=2/2']) == 0
  assert 'logit gradient, gate' in (tmp_path / 'table.md').read_text()


def test_a_run_of_another_process_is_left_to_it(tmp_path, capsys):
  """The others are made; without --cell it is an error, as ever."""
  command = [SMOKE, f'--folder={tmp_path}', '--workers=1']
  command += ['--config.sweep.cells=("uniform",)']
  first, second = configs_of('--config.sweep.cells=("uniform",)')
  with artifacts.claim(tmp_path / sweep.run_name(first)):
    assert sweep.main([*command, '--cell=1/1']) == 75
    assert '1 runs are left' in capsys.readouterr().err
    assert sweep.unfinished([first, second], tmp_path) == [first]
    assert sweep.main(command) == 1
  assert sweep.main([*command, '--cell=1/1']) == 0


def test_a_run_that_was_finished_meanwhile_is_not_made_again(tmp_path):
  """Found out under the claim: no other process can finish it then."""
  config = configs_of()[0]
  told = []
  results = []
  for _ in range(2):
    sweep.run_cell(
      [config], tmp_path, lambda *message: told.append(message), Interruption()
    )
    results.append((tmp_path / sweep.run_name(config) / 'result.json').stat())
  assert results[0].st_mtime_ns == results[1].st_mtime_ns
  assert [message[1] for message in told].count(None) == 2


def test_runs_wait_for_a_trunk_of_another_process(tmp_path):
  """They go on from its end, and not from a checkpoint on the way."""
  config = configs_of()[0]
  trunk = {'cell': 'trunk', 'until': 0.5}
  branch = config | {'trunk': trunk}
  told = []
  sweep.run_cell([branch], tmp_path, told.append, leave_claimed=True)
  assert not told
  assert sweep.unfinished([branch], tmp_path) == [branch]


def test_a_study_has_no_parts(capsys):
  """It is made by one process."""
  study = next(
    path
    for path in sorted((ROOT / 'configs').glob('*.py'))
    if "'study':" in path.read_text()
  )
  assert sweep.main([str(study), '--cell=1/2']) == 2
  assert 'a study is made by one process' in capsys.readouterr().err


def test_one_run_has_no_cells(tmp_path):
  """Of `train` it is no option."""
  with pytest.raises(SettingsError, match='--cell'):
    settings.parse(['configs/digits.py', '--cell=2/1'])
  assert train.main([SMOKE, f'--folder={tmp_path}', '--cell=1/2']) == 2
