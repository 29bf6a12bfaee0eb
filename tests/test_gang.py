"""experiments/gang.py, peers.py, on_mesh.py: one run by several devices."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from fault_table import fault
import jax
import numpy as np
import pytest

from experiments import artifacts, checkpoints, gang, peers, settings, train
from experiments.program import Program
from experiments.settings import SettingsError

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A short run whose sampler keeps some numbers per example, which are split.
CONFIG = """
from configs import digits

def get_config():
  config = digits.get_config()
  config.model.hidden = (8,)
  config.sampler = {'name': 'memory', 'batch_size': 16}
  config.sharding.form = 'global'
  config.optimizer.schedule = {'name': 'constant'}
  config.budget = 2000
  config.steps_per_call = 5
  config.num_evaluations = 2
  config.checkpoints.minutes = 0.0001
  config.checkpoints.final = True
  return config

def cells(config):
  return {'memory': {}}
"""
STRAY = ('SLURM_STEP_NODELIST', peers.COUNT, peers.ADDRESS, peers.SUPERVISED)


@pytest.fixture(scope='module')
def config_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'short.py'
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """What the processes compile, they share on disk."""
  return {
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('cache')),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }


def config_of(path, *changes):
  _, config, _ = settings.load(path, changes)
  return {k: v for k, v in config.items() if k != 'sweep'}


def curve(folder, name):
  lines = artifacts.read_metrics(folder)
  return [line[name] for line in lines if name in line]


def train_on(devices, folder, *arguments):
  """A run in a process that has so many devices."""
  force = f' --xla_force_host_platform_device_count={devices}'
  subprocess.run(
    [sys.executable, '-m', 'experiments.train', *arguments]
    + [f'--folder={folder}'],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': os.environ.get('XLA_FLAGS', '') + force},
    check=True,
    capture_output=True,
  )


@pytest.fixture(scope='module')
def of_one_device(config_path, tmp_path_factory):
  """The folder of the run of one device."""
  config = config_of(config_path)
  folder = tmp_path_factory.mktemp('one')
  train.run(config, Program(config), folder)
  return folder


def expect_curves(folder, of_one_device):
  """Those of one device, up to the order of sums."""
  for name in ('loss', 'train_loss', 'test_error', 'effective_sample_size'):
    curves = [curve(f, name) for f in (folder, of_one_device)]
    assert len(curves[0]) >= 3
    np.testing.assert_allclose(*curves, rtol=2e-3, err_msg=name)


def test_a_run_on_two_devices_is_that_of_one(
  config_path, of_one_device, tmp_path
):
  """Globally, the same loss at every step.

  Averages over the sets, which are padded, are those of the sets themselves.
  """
  train_on(2, tmp_path, config_path)
  expect_curves(tmp_path, of_one_device)
  alone = Program(config_of(config_path, '--config.sharding.form=none'))
  for name, value in alone.evaluate(alone.init(0)).items():
    np.testing.assert_allclose(
      curve(tmp_path, name)[0], value, rtol=1e-5, err_msg=name
    )


def test_by_quota_each_device_trains_on_its_rows(tmp_path):
  """From the same parameters, whose exact loss does not depend on D, to less.

  The set has an odd number of examples, and the pool is of both devices.
  """
  smoke = f'{ROOT}/configs/digits.py:smoke'
  changes = ('--config.sampler.tau_threshold=0.0', '--config.budget=6000')
  config = config_of(smoke, *changes)
  program = Program(config)
  train_on(2, tmp_path, smoke, *changes, '--config.sharding.form=quota')
  losses = curve(tmp_path, 'train_loss')
  exact = program.evaluate(program.init(0))
  np.testing.assert_allclose(losses[0], exact['train_loss'], rtol=1e-5)
  assert losses[-1] < 0.9 * losses[0]
  (scored,) = set(curve(tmp_path, 'num_scored'))
  assert scored == config['sampler']['pool_size']


class Gang:
  """Two processes and their supervisor, started from the command line."""

  def __init__(self, path, folder, cache, *options):
    self.folder = folder
    clean = {k: v for k, v in os.environ.items() if k not in STRAY}
    self.process = subprocess.Popen(
      [sys.executable, '-m', 'experiments.gang', '--processes=2', *options]
      + ['--', 'experiments.train', path, f'--folder={folder}'],
      cwd=ROOT,
      env=clean | cache,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def workers(self):
    """Their process ids, the coordinator's first, once one has saved."""
    end = time.monotonic() + 100
    while not list(self.folder.glob('checkpoints/[0-9]*')):
      assert self.process.poll() is None, self.process.stderr.read()
      assert time.monotonic() < end
      time.sleep(0.01)
    pid = self.process.pid
    children = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text()
    return [int(child) for child in children.split()]

  def end(self):
    """Returns the exit status, standard output and standard error."""
    output, error = self.process.communicate(timeout=200)
    return self.process.returncode, output, error


def last_state(folder):
  """The digest of each array: parameters, optimiser, sampler, all."""
  path = max((folder / 'checkpoints').iterdir(), key=lambda p: int(p.name))
  leaves = checkpoints._contents(path)['leaves']
  assert any('sampler_state' in name for name in leaves)
  return leaves


def without_seconds(folder):
  lines = artifacts.read_metrics(folder)
  return [{k: v for k, v in x.items() if k != 'seconds'} for x in lines]


@pytest.fixture(scope='module')
def undisturbed(config_path, cache, tmp_path_factory):
  """The folder of a run that nothing happened to."""
  folder = tmp_path_factory.mktemp('undisturbed')
  status, output, error = Gang(config_path, folder, cache).end()
  assert status == 0, error
  assert json.loads(output)['status'] == 'finished'  # printed once
  return folder


def expect_same(folder, undisturbed):
  assert last_state(folder) == last_state(undisturbed)
  assert without_seconds(folder) == without_seconds(undisturbed)


def disturb(which, number, config_path, cache, folder, *options):
  """Sends a signal to one of the processes; how the gang ends."""
  gang = Gang(config_path, folder, cache, *options)
  os.kill(gang.workers()[which], number)
  return gang.end()


@pytest.mark.faults
def test_a_run_of_two_processes_is_that_of_one(undisturbed, of_one_device):
  """Globally, the same loss at every step."""
  expect_curves(undisturbed, of_one_device)


@fault(
  'kill -9, or a stop, of the coordinator or of a worker of two processes',
  message='a process ...; all are started again from the last checkpoint.',
)
@pytest.mark.faults
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize('which', [0, 1], ids=['coordinator', 'worker'])
def test_a_run_survives_its_processes(
  which, number, undisturbed, config_path, cache, tmp_path
):
  """It comes to the same end bit for bit: state and every line of metrics.

  A stopped process is killed once the others have given it up.
  """
  status, _, error = disturb(
    which, number, config_path, cache, tmp_path, '--patience=20'
  )
  assert status == 0, error
  assert 'all are started again from the last checkpoint' in error
  expect_same(tmp_path, undisturbed)


@fault(
  'SIGTERM or Ctrl-C to the supervisor of two processes',
  '75 or 130',
  'stopped; the same command goes on with the unfinished runs.',
)
@pytest.mark.faults
@pytest.mark.parametrize(
  ('number', 'wanted'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_gang_that_is_told_to_stop_saves(
  number, wanted, undisturbed, config_path, cache, tmp_path
):
  """By one signal to the supervisor; the same command goes on from there."""
  gang = Gang(config_path, tmp_path, cache)
  gang.workers()
  gang.process.send_signal(number)
  status, _, error = gang.end()
  assert status == wanted, error
  assert error.splitlines()[-1].startswith('stopped; the same command goes on')
  saved = max(int(p.name) for p in (tmp_path / 'checkpoints').glob('[0-9]*'))
  assert artifacts.read_metrics(tmp_path)[-1]['step'] == saved
  assert Gang(config_path, tmp_path, cache).end()[0] == 0
  expect_same(tmp_path, undisturbed)


@fault('kill -9 of the supervisor, but not of its processes', -9)
@pytest.mark.faults
def test_without_its_supervisor_a_run_is_saved_and_ends(
  config_path, cache, tmp_path
):
  """As after SIGTERM, so that nothing holds the folder."""
  gang = Gang(config_path, tmp_path, cache)
  workers = gang.workers()
  gang.process.kill()
  gang.end()
  while any(pathlib.Path(f'/proc/{pid}').exists() for pid in workers):
    time.sleep(0.05)
  with artifacts.claim(tmp_path):
    saved = [int(p.name) for p in (tmp_path / 'checkpoints').glob('[0-9]*')]
  assert artifacts.read_metrics(tmp_path)[-1]['step'] == max(saved)


# Of each of three processes: it waits until all have started, and counts.
TOGETHER = """
import os, sys, time
index = int(os.environ['JAX_PROCESS_ID'])
def starts(i):
  path = f'started_{i}'
  return len(open(path).read()) if os.path.exists(path) else 0
open(f'started_{index}', 'a').write('.')
attempt = starts(index)
while min(map(starts, range(3))) < attempt:
  time.sleep(0.01)
"""


@pytest.fixture
def supervised(tmp_path, monkeypatch, capsys):
  """Runs a script as a gang of three: status, what was said, attempts."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{ROOT}')

  def run(script, *options):
    (tmp_path / 'script.py').write_text(TOGETHER + script)
    status = gang.main(['--processes=3', *options, '--', 'script', 'a', '-b'])
    attempts = len((tmp_path / 'started_0').read_text())
    return status, capsys.readouterr().err, attempts

  return run


@fault(
  'a process that dies again and again',
  1,
  'a process ended with -9; all are ended, after 2 retries.',
)
def test_processes_that_die_are_started_again_so_often(supervised):
  """Then the supervisor gives up, with 1."""
  status, error, attempts = supervised(
    'if index == 1: os.kill(os.getpid(), 9)\ntime.sleep(60)', '--retries=2'
  )
  assert (status, attempts) == (1, 3)
  again = 'a process ended with -9; all are started again from the last '
  assert error.splitlines() == [again + 'checkpoint.'] * 2 + [
    'a process ended with -9; all are ended, after 2 retries.'
  ]


@pytest.mark.parametrize('status', [0, 1, 2, 3, 75])
def test_what_the_program_comes_to_is_not_tried_again(supervised, status):
  """The first process's status, with the arguments of the command line."""
  script = 'assert sys.argv[1:] == ["a", "-b"]\n'
  script += f'sys.exit(0 if index else {status})'
  assert supervised(script) == (status, '', 1)


def test_one_that_is_left_behind_is_stuck(supervised, monkeypatch):
  """The others leave with 75, and all are started again."""
  monkeypatch.setattr(gang, '_ENDING', 1.0)
  script = 'if index == 2 and attempt == 1: time.sleep(60)\n'
  script += 'sys.exit(75 if attempt == 1 else 0)'
  status, error, attempts = supervised(script)
  assert (status, attempts) == (0, 2)
  assert error.startswith('a process is stuck; all are started again')


@fault(
  'a process that is alive, but does not come to a collective',
  message='a process ...; all are started again from the last checkpoint.',
)
@pytest.mark.faults
def test_one_that_is_alive_but_waits_for_nobody_is_stuck(supervised):
  """The collective of the others ends in an error, and all start again."""
  script = 'from experiments import peers\npeers.join()\npeers.any_of(True)\n'
  script += 'if index == 2 and attempt == 1: time.sleep(600)\n'
  script += 'peers.any_of(True)\n'
  status, error, attempts = supervised(script, '--patience=5')
  assert (status, attempts) == (0, 2)
  assert 'all are started again from the last checkpoint' in error


@pytest.fixture
def joined(monkeypatch):
  """What `join` calls jax.distributed.initialize with, and its environment."""
  calls = []
  for name in (*STRAY, 'SLURM_NTASKS'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *a, **k: calls.append((a, k))
  )
  monkeypatch.setattr(peers, '_keep_quiet', lambda: None)
  monkeypatch.setattr(sys, 'excepthook', sys.excepthook)

  def join(**environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    peers.join()
    return calls

  return join


def test_a_process_alone_joins_no_other(joined):
  """Nor does a batch script of SLURM, which is no task of a step."""
  assert joined() == []
  assert joined(SLURM_JOB_ID='7', SLURM_NTASKS='4', SLURM_PROCID='0') == []


def test_tasks_of_slurm_find_each_other_by_its_variables(joined):
  """Jax reads them; one task alone stays alone."""
  assert joined(SLURM_STEP_NODELIST='node[1-2]', SLURM_NTASKS='1') == []
  (call,) = joined(SLURM_NTASKS='2')
  assert call == ((), {'heartbeat_timeout_seconds': 10})


def test_variables_of_any_other_cluster(joined):
  """Address, count and index."""
  (call,) = joined(
    JAX_COORDINATOR_ADDRESS='host:1', JAX_NUM_PROCESSES='2', JAX_PROCESS_ID='1'
  )
  assert call[0] == ('host:1', 2, 1)


MEET = """
import numpy as np
from experiments import peers
peers.join()
import jax
first = peers.is_first()
print('only the first is heard')
assert peers.any_of(first, False, not first) == (True, False, True)
sent = np.array([-0.0, np.nan, 1e-45, 3], np.float32)
got = peers.array_from_first(sent if first else np.zeros(4, np.float32))
assert got.tobytes() == sent.tobytes()
assert peers.from_first({'a': [1, None]} if first else None) == {'a': [1, None]}
assert peers.from_first(None if first else 1) is None
"""


def test_two_tasks_meet_under_the_variables_of_slurm():
  """And exchange signed zeros, NaN, denormal numbers and JSON bit for bit."""
  of_job = {
    'JAX_PLATFORMS': 'cpu',
    'SLURM_JOB_ID': str(random.randrange(10**6)),  # which the port goes by
    'SLURM_STEP_NODELIST': '127.0.0.1',
    'SLURM_NTASKS': '2',
    'SLURM_STEP_NUM_NODES': '1',
  }
  tasks = [
    subprocess.Popen(
      [sys.executable, '-c', MEET],
      cwd=ROOT,
      env=os.environ
      | of_job
      | {'SLURM_PROCID': str(index), 'SLURM_LOCALID': str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in (0, 1)
  ]
  ends = [task.communicate(timeout=100) for task in tasks]
  assert [task.returncode for task in tasks] == [0, 0], ends
  assert [output for output, _ in ends] == ['only the first is heard\n', '']


def test_several_processes_want_a_form(config_path, monkeypatch):
  """Each of them would make the same run."""
  monkeypatch.setattr(peers, 'are_several', lambda: True)
  with pytest.raises(SettingsError, match=r'--config\.sharding\.form=quota'):
    Program(config_of(config_path) | {'sharding': {'form': 'none'}})
