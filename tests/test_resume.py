"""experiments/train.py: runs that are cut off, and go on as if never.

test_faults.py has the processes that are killed, and all else that goes wrong.
"""

import json
import pathlib

import pytest

from experiments import artifacts, settings, train
from experiments.artifacts import BusyError
from experiments.interruption import InterruptedRunError, Interruption
from experiments.program import Program
from experiments.settings import SettingsError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = f'{ROOT}/configs/digits.py:smoke'
RESULTS = ('train_loss', 'test_error', 'steps', 'cost', 'mean_tau')


def config_of(*changes):
  _, config, _ = settings.load(SMOKE, changes)
  return {k: v for k, v in config.items() if k != 'sweep'}


@pytest.fixture(scope='module')
def program():
  return Program(config_of())


@pytest.fixture(scope='module')
def whole(program, tmp_path_factory):
  """The result and the metrics of a run that nothing cut off."""
  folder = tmp_path_factory.mktemp('whole')
  result = train.run(config_of(), program, folder)
  return result, artifacts.read_metrics(folder)


class Stop(Interruption):
  """Is due at the n-th time that it is asked."""

  def __init__(self, after):
    super().__init__()
    self.after = after

  @property
  def is_due(self):
    self.after -= 1
    return self.after < 0


def same_numbers(one, other):
  return [one[name] for name in RESULTS] == [other[name] for name in RESULTS]


def without_seconds(lines):
  return [{k: v for k, v in x.items() if k != 'seconds'} for x in lines]


@pytest.mark.parametrize('after', [1, 3, 5])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
  program, whole, tmp_path, after
):
  """Its numbers and its metrics are those of the whole run, every line once."""
  config = config_of()
  with pytest.raises(InterruptedRunError):
    train.run(config, program, tmp_path, interruption=Stop(after))
  assert artifacts.read_result(tmp_path) is None
  assert list((tmp_path / 'checkpoints').iterdir())
  steps_before = artifacts.read_metrics(tmp_path)[-1]['step']
  assert 0 < steps_before < whole[0]['steps']
  # What a killed run may leave after its last checkpoint is cut off.
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 99999, "torn')
  result = train.run(config, program, tmp_path)
  assert same_numbers(result, whole[0])
  assert without_seconds(artifacts.read_metrics(tmp_path)) == without_seconds(
    whole[1]
  )
  assert not (tmp_path / 'checkpoints').exists()


def test_the_last_state_stays_where_it_is_asked_for(program, tmp_path):
  """For those who want the trained parameters."""
  config = config_of('--config.checkpoints.final=True')
  result = train.run(config, program, tmp_path)
  (path,) = (tmp_path / 'checkpoints').iterdir()
  assert path.name == str(result['steps'])


def test_a_folder_of_another_config_is_refused(program, tmp_path):
  """With the fields that differ; what is there stays."""
  train.run(config_of(), program, tmp_path)
  before = (tmp_path / 'result.json').read_text()
  with pytest.raises(
    SettingsError, match=r'another config: seed was 0, is 1\.'
  ):
    train.run(config_of() | {'seed': 1}, program, tmp_path)
  assert (tmp_path / 'result.json').read_text() == before


def test_two_runs_cannot_share_a_folder(program, tmp_path):
  """The second one is told so, and the first is not disturbed."""
  with (
    artifacts.claim(tmp_path),
    pytest.raises(BusyError, match='another process is running in'),
  ):
    train.run(config_of(), program, tmp_path)
  assert not (tmp_path / 'config.json').exists()
  train.run(config_of(), program, tmp_path)


def test_a_finished_run_is_not_made_again(
  program, tmp_path, capsys, monkeypatch
):
  """The same command prints its result; other settings are an error."""
  command = [SMOKE, f'--folder={tmp_path}']
  monkeypatch.setattr(train, 'Program', lambda config: program)
  assert train.main(command) == 0
  printed = capsys.readouterr().out
  monkeypatch.setattr(train, 'Program', None)
  assert train.main(command) == 0
  assert json.loads(capsys.readouterr().out) == json.loads(printed)
  monkeypatch.undo()
  assert train.main([*command, '--config.seed=3']) == 2
  assert 'seed was 0, is 3' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--cell=1/2', '--minutes=3', '--workers=2'])
def test_options_of_sweeps_are_refused_by_one_run(option, tmp_path, capsys):
  """Else they would change nothing, without a word."""
  assert train.main([SMOKE, option, f'--folder={tmp_path / "run"}']) == 2
  assert 'one run has no --cell, --minutes or --workers' in (
    capsys.readouterr().err
  )
  assert not (tmp_path / 'run').exists()
