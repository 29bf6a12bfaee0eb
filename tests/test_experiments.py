"""experiments/: settings, runs, sweeps, tables, figures and what is on disk."""

import csv
import io
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import jax
import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from experiments import (
  artifacts,
  comparisons,
  figures,
  settings,
  sweep,
  tables,
  tensorboard,
  train,
)
from experiments.program import ARGUMENTS, Program
from experiments.progress import Progress
from experiments.settings import SettingsError

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = str(ROOT / 'configs/digits.py')
TINY = (
  '--config.budget=1500',
  '--config.steps_per_call=5',
  '--config.num_evaluations=3',
  '--config.model.hidden=(8,)',
  '--config.data=synthetic',
  '--config.sampler.pool_size=32',
)


def load(*arguments):
  return settings.load(DIGITS, arguments)


def tiny_configs(*arguments):
  module, config, changes = load(*TINY, *arguments)
  return settings.runs(module, config, changes)


# --- settings -----------------------------------------------------------------


def test_the_sweep_has_every_cell_rate_and_seed_once():
  """5 cells x 3 rates x 10 seeds, as digests and as folders."""
  configs = settings.runs(*load())
  assert len(configs) == 150
  assert len({settings.digest(config) for config in configs}) == 150
  assert len({sweep.run_name(config) for config in configs}) == 150
  cells = list(settings.iterate_cells(configs, ARGUMENTS))
  assert [len(cell) for cell in cells] == [30] * 5


def test_changes_of_the_command_line_win_over_the_sweep():
  """A swept field that is set collapses; sizes follow what was set."""
  configs = tiny_configs('--config.optimizer.learning_rate=0.5')
  assert len(configs) == 50
  assert {c['optimizer']['learning_rate'] for c in configs} == {0.5}
  assert {c['budget'] for c in configs} == {1500}
  sizes = {c['cell']: c['sampler']['batch_size'] for c in tiny_configs()}
  assert sizes['uniform'] == 16
  assert sizes['uniform, cost-equal b'] == round((32 + 48) / 3)
  pools = {c['cell']: c['sampler'].get('pool_size') for c in configs}
  assert pools['uniform'] is None
  assert pools['logit gradient, gate'] == 32


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config.budgett=3'], "'--config.budgett=3' sets no field .* budget,"),
    (['--config.sampler.pool=3'], 'sets no field .* sampler.pool_size'),
    (['--config.budget=many'], 'budget=many'),
    (["--config.sampler={'name':'uniform'}"], 'sets no field of the config'),
    (['--config.optimizer.learning_rate=(1,2)'], 'learning_rate'),
  ],
)
def test_wrong_fields_and_values_are_named_in_one_line(arguments, message):
  """With the fields that there are."""
  with pytest.raises(SettingsError, match=message) as error:
    load(*arguments)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['configs/digit.py'], "no config file 'configs/digit.py'.*digits.py"),
    ([], 'expected one config file; got none'),
    ([DIGITS, '--wrkers=2'], 'wrkers'),
    ([DIGITS, '--workers=0'], 'workers'),
    ([DIGITS, '--config.data=digit'], "Did you mean 'digits'"),
    ([DIGITS, '--config.score=los'], 'score must be one of .*loss.* got'),
    ([DIGITS, '--config.loss.name=mse'], 'loss.name must be one of balanced'),
    ([DIGITS, '--config.robust.name=x'], 'must be one of absgd, chi_square'),
    ([DIGITS, '--config.robust.name=cvar'], 'robust.share is missing'),
    ([DIGITS, '--config.class_weights.name=x'], 'one of effective_number'),
    ([DIGITS, '--config.model.name=other'], 'model.name must be one of .*mlp'),
    ([DIGITS, '--config.optimizer.name=lion'], 'must be one of adam, rmspr'),
    ([DIGITS, '--config.optimizer.schedule.name=x'], 'one of constant, cosine'),
    ([DIGITS, '--config.sampler.mix=2.0'], r'mix must be in \[0, 1\]'),
    ([DIGITS, '--config.sampler.tau_threshold=off'], "'break_even', 'paper'"),
    (
      [DIGITS, '--config.sampler.name=other'],
      'one of class_balanced, early_importance, info',
    ),
    (
      [DIGITS, '--config.sampler.name=uniform'],
      'mix is no option of uniform; those',
    ),
    ([DIGITS, '--config.optimizer.name=adam'], 'momentum is no option of'),
    ([DIGITS, '--config.budget=0'], r'budget must be from 1 to 2\^31; got 0'),
    ([DIGITS, '--config.budget=5000000000'], 'budget must be from 1 to'),
    ([DIGITS, '--config.steps_per_call=0'], 'steps_per_call must be from 1'),
    ([DIGITS, '--config.num_evaluations=0'], 'num_evaluations must be from'),
    ([DIGITS, '--config.sweep.num_seeds=0'], 'the sweep has no run'),
    ([DIGITS, '--config.exponent=nan'], 'exponent must be a finite number'),
    ([DIGITS, '--config.model.hidden=(-1,)'], "cell 'uniform': "),
  ],
)
def test_the_command_ends_in_one_line_on_bad_settings(
  arguments, message, capsys, tmp_path, monkeypatch
):
  """Status 2, no traceback, and nothing was run."""
  monkeypatch.chdir(ROOT)
  status = sweep.main([*arguments, f'--folder={tmp_path / "runs"}'])
  error = capsys.readouterr().err
  assert status == 2
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert not (tmp_path / 'runs').exists()
  assert re.search(message, error), error


def test_a_threshold_given_as_a_word_or_as_a_number():
  """'1.5' on the command line is the number."""
  config = tiny_configs('--config.sampler.tau_threshold=1.5')[-1]
  assert config['sampler']['tau_threshold'] == '1.5'
  program = Program(config)
  state = program.sampler.init(None)
  assert not program.sampler.propose(jax.random.key(0), state)[1]


# --- runs ---------------------------------------------------------------------


@pytest.fixture(scope='module')
def gated(tmp_path_factory):
  """One run of the gated cell, its config, its program and its folder."""
  configs = tiny_configs()
  config = next(c for c in configs if c['cell'] == 'logit gradient, gate')
  program = Program(config)
  folder = tmp_path_factory.mktemp('run')
  reports = []
  train.run(
    config,
    program,
    folder,
    report=lambda fraction, metrics: reports.append(fraction),
  )
  return config, program, folder, reports


def test_a_run_leaves_config_metrics_and_result(gated):
  """With commit, versions and device, and costs that end at the budget."""
  config, _, folder, reports = gated
  saved = json.loads((folder / 'config.json').read_text())
  assert settings.digest(saved['config']) == settings.digest(config)
  assert {'commit', 'device', 'python', 'versions'} < saved.keys()
  result = artifacts.read_result(folder)
  assert result['status'] == 'finished'
  assert 1500 <= result['cost'] < 1500 + 3 * 16 + 32
  lines = artifacts.read_metrics(folder)
  costs = [line['cost'] for line in lines]
  assert costs == sorted(costs)
  assert lines[0]['step'] == lines[0]['cost'] == 0
  assert lines[-1]['cost'] == result['cost']
  assert lines[-1]['train_loss'] == result['train_loss']
  assert sum('train_loss' in line for line in lines) >= 4
  assert {'tau', 'importance_sampled', 'effective_sample_size'} < lines[
    1
  ].keys()
  assert reports == sorted(reports)
  assert reports[-1] == 1


def test_the_same_seed_gives_the_same_run(gated, tmp_path):
  """Bitwise, in everything but the seconds; another seed differs."""
  config, program, folder, _ = gated
  again = train.run(config, program, tmp_path / 'again')
  other = train.run(config | {'seed': 1}, program, tmp_path / 'other')
  result = artifacts.read_result(folder)
  for name in ('train_loss', 'test_error', 'steps', 'cost', 'mean_tau'):
    assert again[name] == result[name]
  assert other['train_loss'] != result['train_loss']


def test_a_cell_compiles_one_program(monkeypatch, tmp_path):
  """Rates, seeds and budgets are arguments: one trace of the loop."""
  traces = []
  original = Program._advance

  def counted(self, *arguments):
    traces.append(self.config['cell'])
    return original(self, *arguments)

  monkeypatch.setattr(Program, '_advance', counted)
  config = tiny_configs()[0]
  cell = [
    config
    | {
      'seed': seed,
      'budget': budget,
      'optimizer': config['optimizer'] | {'learning_rate': rate},
    }
    for seed, budget, rate in ((0, 600, 0.1), (1, 900, 0.1), (0, 600, 0.3))
  ]
  assert len(list(settings.iterate_cells(cell, ARGUMENTS))) == 1
  told = []
  sweep.run_cell(cell, tmp_path, lambda *message: told.append(message))
  assert traces == [config['cell']]
  results = [artifacts.read_result(tmp_path / sweep.run_name(c)) for c in cell]
  assert len({r['train_loss'] for r in results}) == 3
  assert [r['steps'] for r in results] == [13, 19, 13]
  assert sum(fraction is None for _, fraction, _ in told) == 3


def test_a_loss_that_is_not_finite_stops_the_run(gated, tmp_path):
  """Status `diverged`, long before the budget is spent."""
  config, program, _, _ = gated
  wild = config | {
    'budget': 1_000_000,
    'optimizer': config['optimizer'] | {'learning_rate': 1e30},
  }
  result = train.run(wild, program, tmp_path)
  assert result['status'] == 'diverged'
  assert result['cost'] < 10_000
  saved = artifacts.read_result(tmp_path)
  assert saved['status'] == 'diverged'
  assert saved['train_loss'] is None  # JSON has no NaN


def test_a_single_diverged_run_ends_with_a_message_and_its_status(
  tmp_path, capsys
):
  """`python -m experiments.train` exits with 3."""
  arguments = [*TINY, '--config.optimizer.learning_rate=1e30']
  status = train.main([DIGITS, f'--folder={tmp_path}', *arguments])
  assert status == 3
  assert 'diverged' in capsys.readouterr().err
  assert artifacts.read_result(tmp_path)['status'] == 'diverged'


def test_a_convolutional_network_runs_step_by_step_on_cpu():
  """Its program makes one step a call; a dense one as many as it is told."""
  config = tiny_configs()[0]
  network = {'name': 'resnet', 'width': 8, 'blocks_per_stage': 1}
  assert Program(config | {'model': network}).steps_per_call == 1
  assert Program(config).steps_per_call == 5


# --- sweeps -------------------------------------------------------------------


TWO_CELLS = """'''Two cells of the digits.'''
from configs.digits import BASELINE, cells
from configs import digits
def get_config():
  config = digits.get_config()
  config.sweep.cells = (BASELINE, 'logit gradient, always')
  return config
"""


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  """A small sweep of two workers: its folder and the arguments."""
  folder = tmp_path_factory.mktemp('sweep')
  config = folder / 'config.py'
  config.write_text(TWO_CELLS)
  arguments = [
    str(config),
    *TINY,
    '--config.sweep.num_seeds=3',
    '--config.sweep.learning_rates=(0.05, 0.2)',
    f'--folder={folder}',
  ]
  assert sweep.main([*arguments, '--workers=2']) == 0
  return folder, arguments


def test_a_sweep_ends_with_table_and_figures(swept):
  """All runs are there, in the table, the CSV and two readable pictures."""
  folder, _ = swept
  text = (folder / 'table.md').read_text()
  for cell in ('uniform', 'logit gradient, always'):
    assert text.count(f'| {cell} |') == 2
  assert 'mportance sampling' in text
  rows = list(csv.DictReader(io.StringIO((folder / 'runs.csv').read_text())))
  assert len(rows) == 12
  assert all(float(row['train_loss']) > 0 for row in rows)
  for name in ('loss_and_error', 'gate'):
    picture = matplotlib.image.imread(folder / f'{name}.png')
    assert picture.shape[0] > 300
    assert picture.std() > 0.05


def test_finished_runs_are_skipped_and_lost_ones_made_again(swept, monkeypatch):
  """A second call runs what is missing, and the numbers repeat."""
  folder, arguments = swept
  before = (folder / 'runs.csv').read_text()
  lost = next(folder.glob('logit_gradient_always*seed_1*'))
  (lost / 'result.json').unlink()
  made = []
  original = sweep.run

  def recorded(config, program, target, **options):
    made.append(target)
    return original(config, program, target, **options)

  monkeypatch.setattr(sweep, 'run', recorded)
  assert sweep.main([*arguments, '--workers=1']) == 0
  assert made == [lost]

  def without_seconds(text):
    facts = ('seconds', 'device')  # a worker has a core of its own
    rows = csv.DictReader(io.StringIO(text))
    return [{k: v for k, v in r.items() if k not in facts} for r in rows]

  after = (folder / 'runs.csv').read_text()
  assert without_seconds(before) == without_seconds(after)


def start_endless_sweep(folder):
  """A sweep of two workers that takes minutes, past its first result."""
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'experiments.sweep', DIGITS, *TINY),
      *('--workers=2', f'--folder={folder}', '--config.sweep.num_seeds=300'),
    ],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  while not list(folder.glob('*/result.json')):
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.05)
  return process


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_and_its_workers_at_once(tmp_path):
  """Status 130, one line, no traceback, nobody left."""
  process = start_endless_sweep(tmp_path)
  os.killpg(process.pid, signal.SIGINT)
  _, error = process.communicate(timeout=30)
  assert process.returncode == 130
  assert error.splitlines()[-1].startswith('stopped; the same command goes on')
  assert 'Traceback' not in error
  for _ in range(100):  # the last of them may take a moment
    try:
      os.killpg(process.pid, 0)
    except ProcessLookupError:
      break
    time.sleep(0.1)
  else:
    pytest.fail('some process of the sweep is still there')


@pytest.mark.slow
def test_a_killed_worker_ends_the_sweep_with_a_message(tmp_path):
  """Status 1; what was finished is kept."""
  process = start_endless_sweep(tmp_path)
  children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
  for child in map(int, children.read_text().split()):
    command = pathlib.Path(f'/proc/{child}/cmdline').read_text()
    if 'spawn_main' in command:
      os.kill(child, signal.SIGKILL)
      break
  _, error = process.communicate(timeout=30)
  assert process.returncode == 1
  assert 'error: a worker ended with status -9; finished runs are' in error
  assert list(tmp_path.glob('*/result.json'))


# --- tables -------------------------------------------------------------------


def record(cell, seed, loss, error, rate=0.1, sampler='presample', **result):
  config = {
    'name': 'made up',
    'cell': cell,
    'seed': seed,
    'budget': 100,
    'optimizer': {'learning_rate': rate},
    'sampler': {'name': sampler, 'batch_size': 4},
  }
  result = {
    'status': 'finished',
    'train_loss': loss,
    'test_error': error,
    'steps': 10,
    'cost': 100,
    'seconds': 1.0,
    'device': 'none',
    'commit': 'none',
    'python': '3',
    'versions': {},
    **result,
  }
  return comparisons.Record(config, result, [])


def test_geometric_mean_has_the_t_interval_of_the_logarithms():
  """By hand: exp(mean +- t s / sqrt n)."""
  values = np.array([1e-3, 1e-2, 1e-4, 3e-3])
  logs = np.log(values)
  half = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
  interval = comparisons.geometric_mean(values)
  np.testing.assert_allclose(
    interval, np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
  )
  assert comparisons.geometric_mean(np.zeros(3)).estimate > 0


def test_rates_are_chosen_by_training_loss_and_not_by_test_error():
  """And a rate at which a run diverged is passed over."""
  records = [
    *(record('a', s, 0.1, 0.5, rate=0.1) for s in range(2)),
    *(record('a', s, 0.2, 0.1, rate=0.2) for s in range(2)),
    record('a', 0, 0.01, 0.1, rate=0.4),
    record('a', 1, math.nan, 0.9, rate=0.4, status='diverged'),
  ]
  table = comparisons.rows(records)
  assert comparisons.best(table)['a'].rate == 0.1
  assert comparisons.shared_rate(table) == 0.1
  assert [(row.rate, len(row.records), row.diverged) for row in table] == [
    (0.1, 2, 0),
    (0.2, 2, 0),
    (0.4, 1, 1),
  ]


def test_two_runs_of_one_place_in_the_table_are_refused():
  """Else one of them would be lost in it."""
  module, config, changes = load()
  twice = types.ModuleType('twice')
  twice.sweep = lambda config: [
    {'cell': 'a', 'sampler.pool_size': size} for size in (32, 64)
  ]
  with pytest.raises(SettingsError, match='cells of different names'):
    settings.runs(twice, config, changes)


def test_the_verdict_compares_cells_of_one_budget():
  """A uniform cell that may spend more is no control."""
  richer = record('more', 0, 0.01, 0.1, sampler='uniform')
  richer.config['budget'] = 1000
  records = [record('i', 0, 0.5, 0.1), richer]
  table = comparisons.rows(records)
  assert tables.verdict(table).startswith('No verdict: it takes a uniform')
  records.append(record('equal', 0, 1.0, 0.1, sampler='uniform'))
  assert 'that of "equal"' in tables.verdict(comparisons.rows(records))


@pytest.mark.parametrize(
  ('factor', 'answer'),
  [
    (0.1, 'Importance sampling paid'),
    (10.0, 'Importance sampling did not pay'),
    (1.0, 'Undecided'),
  ],
)
def test_the_verdict_follows_the_paired_interval(factor, answer):
  """Three outcomes of made-up runs, with the ratio in the text."""
  noise = [0.9, 1.0, 1.1, 1.2]
  records = [
    *(record('u', s, f, 0.1, sampler='uniform') for s, f in enumerate(noise)),
    *(record('i', s, factor / f, 0.1) for s, f in enumerate(noise)),
  ]
  line = tables.verdict(comparisons.rows(records))
  assert line.startswith(answer)
  assert '\n' not in line
  assert '(n = 4)' in line


def test_the_table_pairs_by_seed_and_prints_dashes():
  """Differences of the common seeds; a cell without runs is a dash."""
  records = [
    *(
      record('u', s, 1.0, e, sampler='uniform')
      for s, e in enumerate([0.1, 0.3])
    ),
    *(record('i', s, 1.0, e) for s, e in ((0, 0.2), (1, 0.41), (2, 0.9))),
    record('d', 0, math.nan, 0.9, status='diverged'),
  ]
  module = types.ModuleType('config', 'Made up.')
  module.BASELINE = 'u'
  text = tables.document(records, module)
  assert '| u | 4 | 0.1 | 1 | - | 20.00 (14.14) | - |' in text
  assert '| i | 4 | 0.1 | 1 | x 1 | 50.33 (35.92) | +10.50 [' in text
  assert '| d | - | 0.1 | - | - |' in text


def test_curves_are_averaged_on_a_common_grid():
  """Two lines of costs 0..10 and 0..8 average where both are known."""
  runs = {
    seed: comparisons.Record(
      {'seed': seed},
      {},
      [{'cost': c, 'loss': slope * c} for c in range(0, last + 1, 2)],
    )
    for seed, slope, last in ((0, 1.0, 10), (1, 3.0, 8))
  }
  row = comparisons.Row('a', 0.1, runs, 0)
  x, centre, low, high = figures.averaged(
    row, 'cost', 'loss', logarithmic=False
  )
  assert x[0] == 0
  assert x[-1] == 8
  np.testing.assert_allclose(centre, 2 * x)
  np.testing.assert_allclose(high - low, 2 * x)


# --- files and progress -------------------------------------------------------


def test_tensorboard_gets_every_number_of_every_run(gated):
  """The event file holds the losses at their steps."""
  _, _, folder, _ = gated
  assert tensorboard.main([str(folder)]) == 0
  (events,) = folder.glob('events.out.tfevents.*')
  content = events.read_bytes()
  for name in (b'train_loss', b'tau', b'importance_sampled'):
    assert name in content


def test_tensorboard_names_what_is_missing(tmp_path, capsys, monkeypatch):
  """The extra, or a folder with runs."""
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  assert tensorboard.main([str(tmp_path)]) == 2
  assert "pip install 'isjax[tensorboard]'" in capsys.readouterr().err
  monkeypatch.setitem(sys.modules, 'tensorboardX', types.ModuleType('none'))
  assert tensorboard.main([str(tmp_path)]) == 2
  assert 'no metrics.jsonl below' in capsys.readouterr().err


def test_a_file_is_whole_or_not_there(tmp_path):
  """A write that fails leaves the former content and no litter."""
  path = tmp_path / 'folder' / 'result.json'
  artifacts.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    artifacts.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}
  assert [p.name for p in path.parent.iterdir()] == ['result.json']


def test_progress_prints_a_line_per_interval_without_a_terminal(monkeypatch):
  """Loss, tau, share of steps importance-sampled, sample size, time left."""
  clock = [0.0]
  monkeypatch.setattr('time.monotonic', lambda: clock[0])
  stream = io.StringIO()
  metrics = {
    'loss': 0.25,
    'tau': 2.5,
    'importance_sampled': 0.5,
    'effective_sample_size': 12.0,
  }
  with Progress(2, stream) as progress:
    progress.update('a', 0.1, metrics)
    clock[0] = 20.0
    progress.update('a', 0.5, metrics)
    progress.update('a', 0.6, metrics)
    progress.finish('a')
  (line,) = stream.getvalue().splitlines()
  assert line == (
    '0.5/2 runs, 60 s left; a: loss 0.25  tau 2.50  on 50%  ess 12.0'
  )


def test_progress_draws_a_bar_on_a_terminal():
  """The same facts, by rich."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  with Progress(2, stream) as progress:
    progress.update('a', 1.0, {'loss': 0.25})
    progress.finish('a')
    progress.say('a word')
  assert 'a word' in stream.getvalue()
  assert 'runs' in stream.getvalue()
