"""Settings that every test runs under, and the guard on skips."""

import importlib.metadata
import os
import pathlib
import sys

# Most programs of the tests run once, and take longer to compile than to run.
# `XLA_FLAGS= ./launch.sh test` compiles them as users do. XLA does not start
# with a flag that it does not know, so that newer versions go without.
if importlib.metadata.version('jaxlib').startswith(('0.10.', '0.11.')):
  os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false',
  )

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


def _keep_to_one_core(worker: str) -> None:
  """Gives a worker of pytest-xdist a core, before its threads start."""
  cores = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, {cores[int(worker.removeprefix('gw')) % len(cores)]})


if 'PYTEST_XDIST_WORKER' in os.environ and hasattr(os, 'sched_setaffinity'):
  _keep_to_one_core(os.environ['PYTEST_XDIST_WORKER'])

_ALLOWED = pathlib.Path(__file__).parent / 'allowed_skips.txt'


def _allowed_reasons() -> list[str]:
  lines = _ALLOWED.read_text().splitlines()
  return [line for line in lines if line and not line.startswith('#')]


def _reason(report) -> str:
  text = report.longrepr[2] if report.longrepr else ''
  return text.removeprefix('Skipped: ')


def pytest_sessionfinish(session, exitstatus):
  """Fails a run in which a test was skipped for a reason not on the list."""
  reporter = session.config.pluginmanager.get_plugin('terminalreporter')
  if reporter is None or os.environ.get('PYTEST_XDIST_WORKER'):
    return
  allowed = _allowed_reasons()
  surprises = [
    report
    for report in reporter.stats.get('skipped', [])
    if not any(_reason(report).startswith(reason) for reason in allowed)
  ]
  session.config.stash[_SURPRISES] = surprises
  if surprises and exitstatus in (pytest.ExitCode.OK, 5):
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


_SURPRISES = pytest.StashKey()


def pytest_terminal_summary(terminalreporter, config):
  """Lists every skip with its reason."""
  skipped = terminalreporter.stats.get('skipped', [])
  if not skipped:
    return
  surprises = config.stash.get(_SURPRISES, [])
  terminalreporter.section('skipped')
  for report in skipped:
    mark = ' <- not in tests/allowed_skips.txt' if report in surprises else ''
    terminalreporter.write_line(f'{report.nodeid}: {_reason(report)}{mark}')


@pytest.fixture(autouse=True)
def _keep_small_numbers():
  """Takes back what rivals in torch set for the whole process."""
  yield
  if 'torch' in sys.modules:
    sys.modules['torch'].set_flush_denormal(False)


@pytest.fixture
def key(request):
  """A fresh key per test, derived from its name."""
  seed = sum(ord(c) * 31**i for i, c in enumerate(request.node.nodeid)) % 2**31
  return jax.random.key(seed)
