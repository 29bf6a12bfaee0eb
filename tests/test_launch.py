"""launch.sh: what it installs, when, and how it ends on bad arguments."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'

# Stands for every interpreter: it notes how it was called, and makes .venv.
STUB = f"""#!/bin/bash
if [[ "$1" == - ]]; then exec {sys.executable} "$@"; fi
if [[ "$1" == --version ]]; then echo "Python $(cat version)"; exit; fi
echo "$(basename "$0") $*" >>calls
if [[ "$2" == venv ]]; then
  mkdir -p .venv/bin && cp "$0" .venv/bin/python
fi
"""


def launch(tree, *arguments, **environment):
  """Runs a tree's launch.sh without the variables that a user may have set."""
  clean = {
    name: value
    for name, value in os.environ.items()
    if name not in ('PYTHON', 'ISJAX_VENV')
  }
  return subprocess.run(
    ['bash', str(tree / 'launch.sh'), *arguments],
    env=clean | environment,
    capture_output=True,
    text=True,
  )


@pytest.fixture
def tree(tmp_path):
  """A copy of what launch.sh reads, and a PATH with the stub for python3."""
  for name in ('launch.sh', 'setup.py'):
    shutil.copy(ROOT / name, tmp_path)
  shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
  bin_folder = tmp_path / 'bin'
  bin_folder.mkdir()
  (tmp_path / 'version').write_text('3.11.7')
  stub = bin_folder / 'python3'
  stub.write_text(STUB)
  stub.chmod(0o755)
  for tool in (
    'bash',
    'cat',
    'cksum',
    'basename',
    'dirname',
    'mkdir',
    'cp',
    'rm',
  ):
    (bin_folder / tool).symlink_to(shutil.which(tool))
  return tmp_path


def calls(tree):
  """What the stub was called with since the last look."""
  path = tree / 'calls'
  lines = path.read_text().splitlines() if path.exists() else []
  path.unlink(missing_ok=True)
  return lines


def test_it_installs_once_and_again_only_when_the_needs_change(tree):
  """With the constraints of this Python; then the main job, then the tests."""
  path = str(tree / 'bin')
  assert launch(tree, PATH=path).returncode == 0
  made, installed, ran = calls(tree)
  assert made == 'python3 -m venv .venv'
  minor = min(sys.version_info.minor, 12)
  assert f'--constraint requirements/constraints-3.{minor}.txt' in installed
  assert installed.endswith('--editable .[test]')
  assert ran == 'python -m experiments.sweep configs/digits.py'

  launch(tree, 'test', '-k', 'alias', PATH=path)
  assert calls(tree) == ['python -m pytest -k alias']
  launch(tree, 'configs/x.py', '--config.seed=3', PATH=path)
  assert calls(tree) == [
    'python -m experiments.sweep configs/x.py --config.seed=3'
  ]

  launch(tree, '--processes', '2', 'configs/x.py:smoke', '--cell=1', PATH=path)
  assert calls(tree) == [
    'python -m experiments.gang --processes=2 -- experiments.sweep '
    'configs/x.py:smoke --cell=1'
  ]
  assert launch(tree, '--processes', 'configs/x.py', PATH=path).returncode == 2

  with (tree / 'setup.py').open('a') as file:
    file.write('# changed\n')
  launch(tree, 'setup', PATH=path)
  (again,) = calls(tree)
  assert 'install' in again

  (tree / 'version').write_text('3.12.1')
  launch(tree, 'setup', PATH=path)
  made, installed = calls(tree)
  assert made == 'python3 -m venv .venv'


def test_the_system_interpreter_is_used_without_installing(tree):
  """ISJAX_VENV=system."""
  outcome = launch(tree, 'test', PATH=str(tree / 'bin'), ISJAX_VENV='system')
  assert outcome.returncode == 0
  assert calls(tree) == ['python3 -m pytest']
  assert not (tree / '.venv').exists()


def test_help_names_the_ways_to_call_it(tree):
  """And installs nothing."""
  outcome = launch(tree, '--help', PATH=str(tree / 'bin'))
  assert outcome.returncode == 0
  assert 'usage: ./launch.sh' in outcome.stdout
  assert calls(tree) == []


def test_a_missing_interpreter_is_one_line(tree):
  """With the variable to set."""
  outcome = launch(tree, PATH=str(tree / 'bin'), PYTHON='python9')
  assert outcome.returncode == 2
  assert outcome.stderr == 'error: there is no python9; set PYTHON.\n'


def test_a_wrong_config_is_one_line():
  """From the user's command to the message, no traceback."""
  outcome = launch(
    ROOT, 'configs/nothing.py', ISJAX_VENV='system', PYTHON=sys.executable
  )
  assert outcome.returncode == 2
  there = ', '.join(f'configs/{c.name}' for c in sorted(CONFIGS.glob('*.py')))
  assert outcome.stderr == (
    f"error: there is no config file 'configs/nothing.py'; there are {there}.\n"
  )
