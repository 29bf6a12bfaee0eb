"""Whole runs and sweeps under faults: nothing lost, no silent wrong number.

Each test makes its fault happen and asserts exit status, message and numbers.
`PYTHONPATH=. python tests/test_faults.py` writes the table of them.
"""

import functools
import os
import pathlib
import re
import resource
import shutil
import signal
import sys
import time

import fault_table
from fault_table import fault
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import test_gang

from experiments import artifacts, program, settings, sweep, train
from experiments.interruption import InterruptedRunError, Interruption
from isjax.samplers import SAMPLERS, uniform
from isjax.scores import SCORES

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = f'{ROOT}/configs/digits.py:smoke'
# A run of six calls that is saved after each of them.
SHORT = (
  '--config.sampler.tau_threshold=0.0',
  '--config.steps_per_call=10',
  '--config.budget=7680',
  '--config.checkpoints.minutes=0.0',
)
# One of 25 calls.
LONG = (*SHORT, '--config.budget=32000', '--config.num_evaluations=2')
LONGER = (*LONG, '--config.budget=128000')
ENDLESS = (*LONG, '--config.budget=300000000')
# One that is busy on the device for a minute at a time.
BUSY = (*SHORT, '--config.budget=300000000', '--config.steps_per_call=200000')
GOES_ON = 'stopped; the same command goes on with the unfinished runs.'


class Outcome:
  """What a test's command must end with."""

  def __init__(self, expected, folder):
    self._expected = expected
    self._folder = folder

  def check(self, status, output):
    """Asserts status and message, and that there is no other word."""
    said = output.replace(str(self._folder), 'FOLDER').splitlines()
    said = [line for line in said if not is_progress(line)]
    assert status == self._expected.status, output
    if self._expected.message:
      parts = map(re.escape, self._expected.message.split('...'))
      assert len(said) == 1, output
      assert re.fullmatch('.*'.join(parts), said[0]), output
    else:
      assert not said, output


def is_progress(line):
  return re.match(r'[\d.]+/?\d* runs', line)


@pytest.fixture
def expected(request, tmp_path):
  return Outcome(request.function.fault, tmp_path)


@pytest.fixture(scope='module', autouse=True)
def _programs():
  """Compiles each program once; warnings are lines, as on the command line."""
  made = {}

  def shared(config):
    own = ('checkpoints', 'name', *program.ARGUMENTS)
    same = functools.reduce(
      lambda c, field: settings.with_field(c, field, None), own, config
    )
    key = settings.digest(same)
    if key not in made:
      made[key] = program.Program(config)
    return made[key]

  with pytest.MonkeyPatch.context() as patch:
    for module in (train, sweep):
      patch.setattr(module, 'Program', shared)
    yield


pytestmark = pytest.mark.filterwarnings('always::UserWarning')


@pytest.fixture(scope='module')
def host(tmp_path_factory):
  with processes.Host(tmp_path_factory.mktemp('host')) as host:
    yield host


def command(folder, *changes, config=DIGITS):
  return [config, *changes, f'--folder={folder}']


def make(folder, capsys, *changes, config=DIGITS, main=train.main):
  """The command's status and what it says beside its progress."""
  status = main(command(folder, *changes, config=config))
  said = capsys.readouterr().err.splitlines(keepends=True)
  return status, ''.join(line for line in said if not is_progress(line))


def numbers(folder):
  """All that a run leaves but times and places."""
  result = artifacts.read_result(folder)
  for name in ('seconds', 'device', 'xla_flags', 'config'):
    result.pop(name, None)
  lines = artifacts.read_metrics(folder)
  return result, [{k: v for k, v in x.items() if k != 'seconds'} for x in lines]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """(*changes) -> the numbers of the run that nothing happens to."""

  @functools.cache
  def of(*changes):
    folder = tmp_path_factory.mktemp('undisturbed')
    rarely = '--config.checkpoints.minutes=5.0'
    assert train.main(command(folder, *changes, rarely)) == 0
    return numbers(folder)

  return of


class Stop(Interruption):
  """Is due after so many calls."""

  def __init__(self, calls):
    super().__init__()
    self._left = calls

  def report(self, fraction, metrics):
    self._left -= 1

  @property
  def is_due(self):
    return self._left <= 0


@pytest.fixture
def cut_off(tmp_path):
  """The folder of a run that was cut off, with its last two checkpoints."""
  _, config, _ = settings.load(DIGITS, SHORT)
  del config['sweep']
  stop = Stop(calls=4)
  with pytest.raises(InterruptedRunError):
    train.run(
      config,
      train.Program(config),
      tmp_path,
      report=stop.report,
      interruption=stop,
    )
  assert len(steps_saved(tmp_path)) == 2
  return tmp_path


def steps_saved(folder):
  places = (folder / 'checkpoints').glob('[0-9]*')
  return sorted(int(p.name) for p in places if p.name.isdigit())


def newest(folder):
  return folder / 'checkpoints' / str(steps_saved(folder)[-1])


def start(host, folder, *changes):
  """A run in a process of its own, once it has made another step."""
  metrics = folder / 'metrics.jsonl'
  before = metrics.stat() if metrics.exists() else None
  process = host.start('experiments.train', *command(folder, *changes))
  process.wait_until(
    lambda: (
      steps_saved(folder)
      and (before is None or metrics.stat().st_mtime > before.st_mtime)
    )
  )
  return process


# --- processes that end -------------------------------------------------------


def kill_again_and_again(host, folder, times, rng):
  """Kills a run so often, each time within a call or the save after it."""
  killed = 0
  while killed < times:
    process = start(host, folder, *LONG)
    time.sleep(rng.uniform(0, 0.05))
    process.send(signal.SIGKILL)
    status, _ = process.wait()
    if status != -signal.SIGKILL:
      break
    killed += 1
  return killed


@fault('kill -9 of a run, during steps and saves')
def test_a_killed_run_goes_on(host, tmp_path, capsys, undisturbed, expected):
  """The same command goes on from the last checkpoint, to the same numbers."""
  rng = np.random.default_rng(0)
  assert kill_again_and_again(host, tmp_path, 3, rng) == 3
  expected.check(*make(tmp_path, capsys, *LONG))
  assert numbers(tmp_path) == undisturbed(*LONG)


@pytest.mark.faults
def test_a_run_goes_on_that_is_killed_twenty_times(
  host, tmp_path, undisturbed, capsys
):
  """At random moments."""
  rng, killed = np.random.default_rng(1), 0
  for attempt in range(20):
    folder = tmp_path / str(attempt)
    killed += kill_again_and_again(host, folder, 20 - killed, rng)
    assert make(folder, capsys, *LONG) == (0, '')
    assert numbers(folder) == undisturbed(*LONG)
    if killed == 20:
      return
  pytest.fail(f'killed only {killed} times')


def stop(host, folder, number, expected, changes):
  """Sends a signal to a run; it is saved, where its metrics end."""
  process = start(host, folder, *changes)
  process.send(number)
  expected.check(*process.wait())
  assert artifacts.read_result(folder) is None
  assert ends_where_it_is_saved(folder)


@fault('SIGTERM to a run', 75, GOES_ON)
def test_a_run_that_is_told_to_stop(
  host, tmp_path, capsys, undisturbed, expected
):
  """It saves after the call that it is in; the same command goes on."""
  stop(host, tmp_path, signal.SIGTERM, expected, LONG)
  assert make(tmp_path, capsys, *LONG) == (0, '')
  assert numbers(tmp_path) == undisturbed(*LONG)


@fault('Ctrl-C in a run', 130, GOES_ON)
def test_ctrl_c(host, tmp_path, expected):
  """As SIGTERM."""
  stop(host, tmp_path, signal.SIGINT, expected, ENDLESS)


@fault('a second signal', 143)
def test_the_second_signal_does_not_wait(host, tmp_path, expected):
  """The run ends at once, even while the device is busy for minutes."""
  process = host.start('experiments.train', *command(tmp_path, *BUSY))
  process.wait_until((tmp_path / 'metrics.jsonl').exists)
  process.send(signal.SIGINT)
  time.sleep(0.3)
  process.send(signal.SIGTERM)
  expected.check(*process.wait())


def start_sweep(host, folder, *changes, num_saved=2):
  """A sweep of two workers, once so many have saved something."""
  process = host.start(
    'experiments.sweep',
    *command(folder, *changes, '--workers=2'),
    '--config.sweep.num_seeds=1',
  )
  process.wait_until(lambda: len(runs_saved(folder)) >= num_saved)
  return process


def runs_saved(folder):
  return [place for place in folder.iterdir() if steps_saved(place)]


@pytest.mark.faults
@fault('SIGTERM to a sweep of two workers', 75, GOES_ON)
def test_a_sweep_that_is_told_to_stop(
  host, tmp_path, capsys, undisturbed, expected
):
  """Both save their runs and end; the same command goes on."""
  process = start_sweep(host, tmp_path, *LONGER, num_saved=1)
  process.send(signal.SIGTERM)
  expected.check(*process.wait())
  assert len(list(tmp_path.glob('*/result.json'))) < 2
  arguments = (*LONGER, '--config.sweep.num_seeds=1', '--workers=1')
  status, said = make(tmp_path, capsys, *arguments, main=sweep.main)
  assert (status, said) == (0, '')
  assert '| logit gradient, gate |' in (tmp_path / 'table.md').read_text()
  (folder,) = tmp_path.glob('logit_gradient_gate*')
  cell = '--config.cell=logit gradient, gate'
  assert numbers(folder) == undisturbed(*LONGER, cell)


def workers_of(process):
  """The processes that a sweep makes its runs in."""
  children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
  found = []
  for child in children.read_text().split():
    line = pathlib.Path(f'/proc/{child}/cmdline').read_text()
    if 'spawn_main' in line:
      found.append(int(child))
  return found


@pytest.mark.faults
@fault(
  'kill -9 of a worker of a sweep',
  1,
  'error: a worker ended with status -9; finished runs are kept, and the same '
  'command goes on with the others.',
)
def test_a_sweep_whose_worker_is_killed(host, tmp_path, expected):
  """The other one saves its run and ends; what is saved stays."""
  process = start_sweep(host, tmp_path, *ENDLESS)
  os.kill(workers_of(process)[0], signal.SIGKILL)
  expected.check(*process.wait())
  assert any(map(ends_where_it_is_saved, runs_saved(tmp_path)))


@pytest.mark.faults
@fault('kill -9 of a sweep, but not of its workers', -9)
def test_a_sweep_that_is_killed(host, tmp_path, expected):
  """They save their runs and end; the same command goes on."""
  process = start_sweep(host, tmp_path, *ENDLESS)
  workers = workers_of(process)
  assert len(workers) == 2
  process.send(signal.SIGKILL)
  expected.check(*process.wait())
  while any(map(is_alive, workers)):
    time.sleep(0.05)
  assert all(map(ends_where_it_is_saved, runs_saved(tmp_path)))


def ends_where_it_is_saved(folder):
  return artifacts.read_metrics(folder)[-1]['step'] == steps_saved(folder)[-1]


def is_alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'


# --- damaged files ------------------------------------------------------------


def largest(path):
  files = [p for p in path.rglob('*') if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def flip(path):
  path = largest(path)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def halve(path):
  path = largest(path)
  os.truncate(path, path.stat().st_size // 2)


def empty(path):
  shutil.rmtree(path)
  path.mkdir()


@pytest.mark.parametrize(
  'damage', [flip, halve, empty, lambda path: largest(path).unlink()]
)
@fault(
  'in the newest checkpoint a flipped bit, half a file, a missing file, or '
  'nothing at all',
  0,
  'warning: damaged checkpoints in FOLDER/checkpoints (40: ...); using 30.',
)
def test_a_damaged_checkpoint_is_passed_over(
  cut_off, damage, capsys, undisturbed, expected
):
  """The run goes on from the one before it, to the same numbers."""
  damage(newest(cut_off))
  expected.check(*make(cut_off, capsys, *SHORT))
  assert numbers(cut_off) == undisturbed(*SHORT)


@fault(
  'all checkpoints damaged',
  0,
  'warning: damaged checkpoints in FOLDER/checkpoints (40: ...; 30: ...); '
  'starting anew.',
)
def test_without_a_good_checkpoint(cut_off, capsys, undisturbed, expected):
  """The run starts anew, to the same numbers."""
  for step in steps_saved(cut_off):
    flip(cut_off / 'checkpoints' / str(step))
  expected.check(*make(cut_off, capsys, *SHORT))
  assert numbers(cut_off) == undisturbed(*SHORT)


@pytest.mark.parametrize('damage', ['missing', 'cut', 'flipped'])
@fault(
  'metrics.jsonl of an unfinished run lost, cut short or changed',
  2,
  'error: FOLDER/metrics.jsonl is not what it was at the checkpoint. Remove '
  'FOLDER, and the same command makes the run anew.',
)
def test_lines_that_are_lost_are_not_made_up(cut_off, damage, capsys, expected):
  """Nothing is written over what is left."""
  path = cut_off / 'metrics.jsonl'
  content = path.read_bytes()
  path.unlink()
  if damage != 'missing':
    path.write_bytes(
      content[:-9] if damage == 'cut' else content.replace(b'1', b'2', 1)
    )
  expected.check(*make(cut_off, capsys, *SHORT))
  shutil.rmtree(cut_off)
  assert make(cut_off, capsys, *SHORT) == (0, '')


@fault(
  'result.json of a finished run damaged',
  2,
  'error: FOLDER/result.json is damaged (...). Remove it, and the same command '
  'makes what is missing.',
)
def test_a_damaged_result(tmp_path, capsys, undisturbed, expected):
  """It is not believed, and not overwritten."""
  assert make(tmp_path, capsys, *SHORT) == (0, '')
  os.truncate(tmp_path / 'result.json', 99)
  expected.check(*make(tmp_path, capsys, *SHORT))
  (tmp_path / 'result.json').unlink()
  assert make(tmp_path, capsys, *SHORT) == (0, '')
  assert numbers(tmp_path) == undisturbed(*SHORT)


# --- a full disk --------------------------------------------------------------


@pytest.fixture
def limit():
  """(size) -> no file can grow beyond it, as if the disk was full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@fault(
  'disk full during a save',
  1,
  'error: FOLDER/checkpoints/50 was not written (...); the checkpoints before '
  'it are as they were.',
)
def test_a_full_disk_during_a_save(
  cut_off, limit, capsys, undisturbed, expected
):
  """The run ends; with room, the same command goes on from the last save."""
  before = steps_saved(cut_off)
  limit((newest(cut_off) / 'contents/metadata').stat().st_size - 100)
  expected.check(*make(cut_off, capsys, *SHORT))
  limit(resource.RLIM_INFINITY)
  assert steps_saved(cut_off) == before
  assert make(cut_off, capsys, *SHORT) == (0, '')
  assert numbers(cut_off) == undisturbed(*SHORT)


@fault(
  'disk full while the result is written',
  1,
  "error: [Errno 27] File too large: 'FOLDER/result.json'",
)
def test_a_full_disk_at_the_end(
  tmp_path, limit, capsys, undisturbed, expected, monkeypatch
):
  """The last checkpoint stays; with room, the same command ends the run."""
  write = artifacts.write_json

  def write_on_a_full_disk(path, content):
    if path.name == 'result.json':
      limit(100)
    write(path, content)

  with monkeypatch.context() as patch:
    patch.setattr(artifacts, 'write_json', write_on_a_full_disk)
    status, said = make(tmp_path, capsys, *SHORT)
  limit(resource.RLIM_INFINITY)
  expected.check(status, said)
  assert sorted(os.listdir(tmp_path)) == [
    '.claim',
    'checkpoints',
    'config.json',
    'metrics.jsonl',
  ]
  monkeypatch.setattr(program.Program, 'advance', None)  # no step is left
  assert make(tmp_path, capsys, *SHORT) == (0, '')
  assert numbers(tmp_path) == undisturbed(*SHORT)


@fault(
  'disk full while a line of metrics is written',
  1,
  "error: [Errno 27] File too large: 'FOLDER/metrics.jsonl'",
)
def test_a_full_disk_during_a_line(
  cut_off, limit, capsys, undisturbed, expected
):
  """The torn line is cut off when the same command goes on."""
  limit((cut_off / 'metrics.jsonl').stat().st_size + 9)
  # What is in the way of the line is not in the way of the config.
  assert (cut_off / 'config.json').stat().st_size < 10**4
  expected.check(*make(cut_off, capsys, *SHORT))
  limit(resource.RLIM_INFINITY)
  assert make(cut_off, capsys, *SHORT) == (0, '')
  assert numbers(cut_off) == undisturbed(*SHORT)


# --- numbers that are none ----------------------------------------------------


@fault(
  'NaN in a data set',
  2,
  'error: data: FOLDER/bad.npz: rows_x must be finite. Fill in what is '
  'missing, and store it again.',
)
def test_nan_in_the_data(tmp_path, capsys, expected, monkeypatch):
  """Nothing is trained."""
  monkeypatch.setenv('ISJAX_DATA_DIR', str(tmp_path))
  x = np.ones((20, 3), np.float32)
  x[7, 1] = np.nan
  np.savez(tmp_path / 'bad.npz', rows_x=x, rows_y=np.arange(20) % 2)
  folder = tmp_path / 'run'
  for main in (train.main, sweep.main):
    expected.check(
      *make(folder, capsys, '--config.data=bad/rows', *SHORT, main=main)
    )
  assert not folder.exists()


@fault(
  'a loss that is not finite',
  3,
  'run: diverged, its loss stopped being finite after ... steps; lower '
  'optimizer.learning_rate.',
)
def test_a_loss_that_is_not_finite(tmp_path, capsys, expected):
  """The run ends there; its status is `diverged` and tables leave it out."""
  rate = '--config.optimizer.learning_rate=1e30'
  for _ in range(2):  # and is not made again
    expected.check(*make(tmp_path / 'run', capsys, *SHORT, rate))
  assert artifacts.read_result(tmp_path / 'run')['status'] == 'diverged'


@fault(
  'scores that are NaN',
  0,
  'warning: run: a score or a weight is not finite at step ..., as ... show; '
  'samplers pass over such scores.',
)
def test_scores_that_are_nan(tmp_path, capsys, expected, monkeypatch):
  """The law is that of the other examples' scores; no NaN spreads."""

  def score(outputs, targets):
    return jnp.where(targets == 3, jnp.nan, 1.0)

  monkeypatch.setitem(SCORES, 'nan', lambda loss_fn: score)
  changes = ('--config.score=nan', '--config.draw_score=nan')
  expected.check(*make(tmp_path / 'run', capsys, *SHORT, *changes))
  result = artifacts.read_result(tmp_path / 'run')
  assert result['status'] == 'finished'
  assert result['train_loss'] < 3


@fault('scores that are all 0')
def test_scores_that_are_all_zero(tmp_path, capsys, expected, monkeypatch):
  """The law is uniform: every weight is 1."""
  monkeypatch.setitem(
    SCORES, 'zero', lambda loss_fn: lambda o, t: jnp.zeros(t.shape)
  )
  zero = ('--config.score=zero', '--config.draw_score=zero')
  expected.check(*make(tmp_path, capsys, *SHORT, *zero))
  for line in artifacts.read_metrics(tmp_path)[1:]:
    assert line['largest_weight'] == pytest.approx(1, rel=1e-5)
    assert line['effective_sample_size'] == pytest.approx(16, rel=1e-5)


@fault(
  'an importance weight that is NaN',
  3,
  'run: diverged, its loss stopped being finite after ... steps; lower '
  'optimizer.learning_rate.',
)
def test_a_weight_that_is_nan(tmp_path, capsys, expected, monkeypatch):
  """The estimate of the loss is NaN with it, and the run ends."""

  def broken(num_examples, batch_size):
    sampler = uniform(num_examples, batch_size)

    def select(key, state, indices, scores):
      draw, state, info = sampler.select(key, state, indices, scores)
      p = draw.probabilities.at[3].set(jnp.nan)
      return draw._replace(probabilities=p), state, info

    return sampler._replace(select=select)

  monkeypatch.setitem(SAMPLERS, 'broken', broken)
  config = tmp_path / 'config.py'
  config.write_text(
    'from configs import digits\n'
    'from configs.digits import cells\n'
    'def get_config():\n'
    '  config = digits.get_config()\n'
    "  config.sampler = {'name': 'broken', 'batch_size': 16}\n"
    '  return config\n'
  )
  expected.check(
    *make(tmp_path / 'run', capsys, *SHORT[1:], config=str(config))
  )


# --- folders ------------------------------------------------------------------


@fault(
  'a config that has changed between runs of one folder',
  2,
  'error: FOLDER is of a run of another config: seed was 0, is 1. Set that '
  'back, or give another folder.',
)
def test_another_config(cut_off, capsys, undisturbed, expected):
  """What is there stays, and goes on with its own config."""
  expected.check(*make(cut_off, capsys, *SHORT, '--config.seed=1'))
  assert make(cut_off, capsys, *SHORT) == (0, '')
  assert numbers(cut_off) == undisturbed(*SHORT)


@fault(
  'two runs started on one folder',
  1,
  'error: another process is running in FOLDER; wait for it, or give another '
  'folder.',
)
def test_two_runs_on_one_folder(host, tmp_path, capsys, expected):
  """The second one ends; the first is not disturbed."""
  process = start(host, tmp_path, *ENDLESS)
  expected.check(*make(tmp_path, capsys, *ENDLESS))
  process.send(signal.SIGTERM)
  assert process.wait()[0] == 75


# --- the table ----------------------------------------------------------------


def table():
  return fault_table.table(sys.modules[__name__], test_gang)


def test_the_table_is_that_of_the_tests():
  """As committed; `PYTHONPATH=. python tests/test_faults.py` writes it."""
  assert fault_table.PATH.read_text() == table()


if __name__ == '__main__':
  with artifacts.atomic_write(fault_table.PATH) as file:
    file.write(table())
  sys.exit()
