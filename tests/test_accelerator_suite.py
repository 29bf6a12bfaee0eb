"""experiments/accelerator_suite.py: order, limits, what a second call does."""

import importlib.util
import pathlib
import subprocess
import sys
import types

import pytest

from experiments import accelerator_suite, artifacts, settings
from experiments.accelerator_suite import Part

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS_OF_IT = accelerator_suite.PARTS
PARTS = (
  Part('first', 'a sweep', lambda dry: ['first', *['dry'] * dry], 9.0),
  Part('second', 'a benchmark', lambda dry: ['second']),
  Part('third', 'a sweep', lambda dry: ['third'], 2.0),
)


class Machine:
  """Stands for the programs of the parts: their statuses and seconds."""

  def __init__(self, monkeypatch, seconds=1.0):
    self.calls = []
    self.returns = {}
    self.seconds = seconds
    self.now = 100.0
    monkeypatch.setattr(subprocess, 'run', self.run)
    clock = types.SimpleNamespace(monotonic=lambda: self.now)
    monkeypatch.setattr(accelerator_suite, 'time', clock)

  def run(self, command, timeout, check):
    del check
    assert command[:2] == [sys.executable, '-m']
    self.calls.append(command[2:])
    self.now += min(self.seconds, timeout)
    if self.seconds > timeout:
      raise subprocess.TimeoutExpired(command, timeout)
    code = self.returns.get(command[2], 0)
    return subprocess.CompletedProcess(command, code)

  @property
  def names(self):
    return [command[0] for command in self.calls]


def test_parts_run_in_order_and_finished_ones_once(tmp_path, monkeypatch):
  """A part that was left or failed is tried again, the others are not."""
  machine = Machine(monkeypatch)
  machine.returns = {'first': 75, 'second': 2}
  status = accelerator_suite.run(PARTS, tmp_path, dry=True, minutes=25)
  assert status == {'first': 'left', 'second': 'failed', 'third': 'finished'}
  assert machine.names == ['first', 'second', 'third']
  assert machine.calls[0][1] == 'dry'
  assert f'--folder={tmp_path / "first"}' in machine.calls[0]
  facts = artifacts.read_json(tmp_path / 'third' / 'part.json')
  assert facts == {'what': 'a sweep', 'dry': True, 'seconds': 1.0}
  machine.returns = {}
  machine.calls.clear()
  status = accelerator_suite.run(PARTS, tmp_path, dry=True, minutes=25)
  assert set(status.values()) == {'finished'}
  assert machine.names == ['first', 'second']


def test_limits_are_told_to_sweeps_and_imposed_on_the_others(
  tmp_path, monkeypatch
):
  """The part's own, or what is left of all; a minute to write the table."""
  machine = Machine(monkeypatch, seconds=240.0)
  status = accelerator_suite.run(PARTS, tmp_path, dry=False, minutes=10)
  assert '--minutes=9.000' in machine.calls[0]  # of 10, less the grace
  assert not any('--minutes' in word for word in machine.calls[1])
  # 2 of the 10 minutes are left: one for runs.
  assert '--minutes=1.000' in machine.calls[2]
  assert status == {'first': 'finished', 'second': 'finished', 'third': 'left'}


def test_no_part_is_begun_when_the_time_is_over(tmp_path, monkeypatch):
  """The others are left for the next call."""
  machine = Machine(monkeypatch, seconds=9 * 60.0)
  status = accelerator_suite.run(PARTS, tmp_path, dry=False, minutes=9.5)
  assert machine.names == ['first']
  assert [status[name] for name in ('second', 'third')] == ['left', 'left']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--part=nothing'], 'nothing'),
    (['--minutes=-1'], 'minutes'),
    (['here'], "cannot read the argument 'here'"),
  ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
  """In one line, before anything runs."""
  assert accelerator_suite.main(arguments) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


@pytest.mark.parametrize('part', PARTS_OF_IT, ids=lambda part: part.name)
@pytest.mark.parametrize('dry', [False, True])
def test_every_part_is_short_and_has_runs(part, dry):
  """Nine minutes at most, the grace included; sweeps name cells that exist."""
  seconds = 60 * (part.minutes or 0) + accelerator_suite.GRACE
  assert seconds <= 9 * 60
  program, *rest = part.arguments(dry)
  if program != 'experiments.sweep':
    assert importlib.util.find_spec(program) is not None
    return
  command = settings.parse(rest)
  module, config, changes = settings.load(
    str(ROOT / command.path), command.changes
  )
  runs = settings.runs(module, config, changes)
  assert any(run['cell'].endswith(module.BASELINE) for run in runs)


def test_the_sampler_is_measured_dry(tmp_path, capfd):
  """The first part, for real: a table, and the report that it is finished."""
  command = ['--dry', '--part=sampler', f'--folder={tmp_path}']
  assert accelerator_suite.main(command) == 0
  assert '| sampler |' in capfd.readouterr().out
  table = (tmp_path / 'sampler' / 'sampler.md').read_text()
  assert 'N = 1e+03: 4096 draws / choice(p)' in table


@pytest.mark.slow
def test_the_whole_suite_runs_dry(tmp_path):
  """Minutes on a CPU: every part ends with a table."""
  assert accelerator_suite.main(['--dry', f'--folder={tmp_path}']) == 0
  for part in accelerator_suite.PARTS:
    assert list((tmp_path / part.name).glob('*.md'))
