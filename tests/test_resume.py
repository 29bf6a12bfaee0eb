"""experiments/train.py: runs that are cut off, and go on as if never."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import artifacts, settings, sweep, train
from experiments.artifacts import BusyError
from experiments.interruption import InterruptedRunError, Interruption
from experiments.program import Program
from experiments.settings import SettingsError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = f'{ROOT}/configs/digits.py:smoke'
RESULTS = ('train_loss', 'test_error', 'steps', 'cost', 'mean_tau')
# A run of some seconds, with a checkpoint every 60 ms.
LONG = (
  '--config.budget=30000',
  '--config.num_evaluations=2',
  '--config.checkpoints.minutes=0.001',
  '--config.sampler.tau_threshold=0.0',
)


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


def test_a_finished_run_is_not_made_again(tmp_path, capsys, monkeypatch):
  """The same command prints its result; other settings are an error."""
  command = [SMOKE, f'--folder={tmp_path}']
  assert train.main(command) == 0
  printed = capsys.readouterr().out
  monkeypatch.setattr(train, 'Program', None)
  assert train.main(command) == 0
  assert json.loads(capsys.readouterr().out) == json.loads(printed)
  monkeypatch.undo()
  assert train.main([*command, '--config.seed=3']) == 2
  assert 'seed was 0, is 3' in capsys.readouterr().err


def start(folder, *changes):
  """A run in a process of its own, once it is under way."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'experiments.train', SMOKE, *LONG, *changes]
    + [f'--folder={folder}'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  while not list(folder.glob('checkpoints/[0-9]*')):
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.02)
  return process


@pytest.fixture(scope='module')
def whole_long(tmp_path_factory):
  folder = tmp_path_factory.mktemp('long')
  config = config_of(*LONG)
  return train.run(config, Program(config), folder)


def go_on(folder, whole_long):
  """Ends the run in this process; its numbers are those of the whole one."""
  config = config_of(*LONG)
  result = train.run(config, Program(config), folder)
  assert same_numbers(result, whole_long)


@pytest.mark.parametrize(
  ('number', 'status'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_saves_the_run_and_ends_it(
  tmp_path, whole_long, number, status
):
  """With one line and its status; the next call goes on from there."""
  process = start(tmp_path)
  process.send_signal(number)
  _, error = process.communicate(timeout=60)
  assert process.returncode == status, error
  assert error.splitlines()[-1].startswith('stopped; the same command goes on')
  assert 'Traceback' not in error
  assert artifacts.read_result(tmp_path) is None
  saved = max(int(p.name) for p in (tmp_path / 'checkpoints').glob('[0-9]*'))
  assert artifacts.read_metrics(tmp_path)[-1]['step'] == saved
  go_on(tmp_path, whole_long)


def kill_at_random(folder, whole_long, times, seed):
  """Kills the run so often, then lets it end."""
  delays = [0.01 * 2 ** (k % 7) for k in range(seed, seed + times)]
  for delay in delays:
    process = start(folder)
    time.sleep(delay)
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    if artifacts.read_result(folder) is not None:
      break
  go_on(folder, whole_long)


def test_a_killed_run_goes_on(tmp_path, whole_long):
  """By SIGKILL, at three moments, a checkpoint being written in each."""
  kill_at_random(tmp_path, whole_long, times=3, seed=2)


@pytest.mark.faults
@pytest.mark.parametrize('seed', range(4))
def test_a_run_that_is_killed_again_and_again_goes_on(
  tmp_path, whole_long, seed
):
  """Five times each."""
  kill_at_random(tmp_path, whole_long, times=5, seed=seed)


def test_the_second_signal_does_not_wait():
  """The handlers are the system's again after the first."""
  with Interruption() as interruption:
    os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.is_signalled
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    with pytest.raises(InterruptedRunError) as error:
      interruption.check()
  assert error.value.status == 75
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_sweep_that_is_told_to_stop_saves_its_runs(tmp_path):
  """Both workers of it; the same command ends with the whole runs' numbers."""
  command = [SMOKE, *LONG, f'--folder={tmp_path}', '--workers=2']
  command += ['--config.sweep.num_seeds=1']
  process = subprocess.Popen(
    [sys.executable, '-m', 'experiments.sweep', *command],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  while len(list(tmp_path.glob('*/checkpoints/[0-9]*'))) < 1:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  _, error = process.communicate(timeout=60)
  assert process.returncode == 75, error
  assert 'Traceback' not in error
  assert len(list(tmp_path.glob('*/result.json'))) < 2
  assert sweep.main(command) == 0
  assert 'logit gradient, gate' in (tmp_path / 'table.md').read_text()
