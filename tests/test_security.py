"""What is read is data: nothing that a file or a config says is executed.

Config files are the exception, and the README says so: they are Python.
"""

import ast
import json
import os
import pathlib
import pickle
import re

import numpy as np
import pytest

from experiments import artifacts, settings, sweep, train
from isjax import data

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = f'{ROOT}/configs/digits.py:smoke'
SOURCES = [
  path
  for folder in ('isjax', 'experiments', 'configs')
  for path in sorted((ROOT / folder).rglob('*.py'))
]
FORBIDDEN_MODULES = {
  *('pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'joblib'),
  *('shelve', 'marshal', 'yaml', 'runpy'),
}
FORBIDDEN_CALLS = {'eval', 'exec', 'compile', '__import__', 'system', 'popen'}


class Intruder:
  """Leaves a mark where it is unpickled."""

  def __init__(self, mark):
    self._mark = mark

  def __reduce__(self):
    return pathlib.Path.touch, (self._mark,)


@pytest.fixture
def mark(tmp_path):
  """The file that an intruder would make; it must not be there at the end."""
  path = tmp_path / 'mark'
  yield path
  assert not path.exists()
  pickle.loads(pickle.dumps(Intruder(path)))
  assert path.exists()


@pytest.fixture
def objects(mark):
  """An array that would execute something if it was unpickled."""
  array = np.empty(20, object)
  array[:] = [Intruder(mark)] * 20
  return array


def fails(capsys, *arguments, main=train.main):
  """The one line that a command with wrong input ends in."""
  assert main([DIGITS, *arguments]) == 2
  error = capsys.readouterr().err
  lines = [x for x in error.splitlines() if not re.match(r'\d+ runs in', x)]
  assert len(lines) == 1, error
  assert lines[0].startswith('error: ')
  return lines[0]


# --- the source ---------------------------------------------------------------


def called(node):
  """The last name of what a call calls; '' where it has none."""
  function = node.func
  return getattr(function, 'id', getattr(function, 'attr', ''))


def breaches(text):
  """What a source does that could execute what it reads, line by line."""
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      names = [alias.name for alias in node.names]
      names.append(getattr(node, 'module', '') or '')
      for name in names:
        if name.partition('.')[0] in FORBIDDEN_MODULES:
          yield f'{node.lineno}: import of {name}'
    elif isinstance(node, ast.Call):
      keywords = {k.arg: getattr(k.value, 'value', None) for k in node.keywords}
      # `jax.jit(...).lower(...).compile()` and `re.compile` compile no source.
      is_name = isinstance(node.func, ast.Name)
      if called(node) in FORBIDDEN_CALLS and (
        is_name or called(node) in ('system', 'popen')
      ):
        yield f'{node.lineno}: {called(node)}'
      if keywords.get('allow_pickle') or keywords.get('shell'):
        yield f'{node.lineno}: allow_pickle or shell'
      if ast.unparse(node.func) == 'np.load' and 'allow_pickle' not in keywords:
        yield f'{node.lineno}: np.load without allow_pickle=False'


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: p.name)
def test_no_source_can_execute_what_it_reads(path):
  """No pickle, no YAML, no eval; numpy is told not to unpickle."""
  assert not list(breaches(path.read_text()))


@pytest.mark.parametrize(
  'text',
  [
    'import pickle',
    'from pickle import loads',
    'import yaml.constructor',
    'from yaml import load',
    'eval(x)',
    'exec(x)',
    'os.system(x)',
    'np.load(x)',
    'np.load(x, allow_pickle=True)',
    'subprocess.run(x, shell=True)',
  ],
)
def test_what_is_forbidden_is_found(text):
  """The test above sees each of its words."""
  assert list(breaches(text))


def test_only_config_files_are_executed():
  """In one place, that loads the file which the command line names."""
  places = [p.name for p in SOURCES if 'exec_module' in p.read_text()]
  assert places == ['settings.py']


# --- data sets ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Where data sets are looked for."""
  monkeypatch.setenv('ISJAX_DATA_DIR', str(tmp_path))
  return tmp_path


@pytest.mark.parametrize('key', ['x_train', 'y_train', 'x_test', 'y_test'])
def test_objects_in_an_npz_are_refused(folder, objects, capsys, key):
  """By a line that names the array; they are not unpickled."""
  images = np.zeros((20, 4, 4), np.uint8)
  labels = np.arange(20) % 2
  arrays = {'x_train': images, 'y_train': labels}
  arrays |= {'x_test': images, 'y_test': labels}
  np.savez(folder / 'bad.npz', **arrays | {key: objects})
  line = fails(capsys, '--config.data=bad', f'--folder={folder / "run"}')
  assert f'bad.npz: {key} must be' in line
  assert not (folder / 'run').exists()


@pytest.mark.parametrize('key', ['rows_x', 'rows_y'])
def test_objects_in_a_table_are_refused(folder, objects, capsys, key):
  """The same of features."""
  arrays = {'rows_x': np.zeros((20, 3), np.float32)}
  arrays['rows_y'] = np.arange(20) % 2
  np.savez(folder / 'bad.npz', **arrays | {key: objects})
  line = fails(capsys, '--config.data=bad/rows', f'--folder={folder / "run"}')
  assert 'bad.npz' in line


@pytest.mark.parametrize('name', ['inputs', 'targets'])
def test_objects_in_streamed_rows_are_refused(folder, objects, name):
  """The same of .npy files that are read row by row."""
  for each in ('inputs', 'targets'):
    np.save(folder / f'{each}.npy', np.zeros(20, np.float32))
  np.save(folder / f'{name}.npy', objects, allow_pickle=True)
  with pytest.raises(ValueError, match=rf'{name}\.npy holds no array of num'):
    data.npy_source(folder)


def test_a_pickle_for_a_data_set_is_refused(folder, objects, capsys):
  """Whatever its name says."""
  (folder / 'bad.npz').write_bytes(pickle.dumps(objects))
  line = fails(capsys, '--config.data=bad', f'--folder={folder / "run"}')
  assert 'bad.npz is damaged or no .npz file' in line


def test_the_names_in_an_archive_lead_nowhere(folder, capsys):
  """Its members are read, never written out."""
  np.savez(folder / 'bad.npz', **{'../outside': np.zeros(3)})
  fails(capsys, '--config.data=bad', f'--folder={folder / "run"}')
  assert not list(folder.parent.glob('outside*'))


# --- run folders --------------------------------------------------------------

ODD_JSON = [
  '',
  '\0',
  'null',
  '[]',
  '{}',
  '{"config": []}',
  '[' * 10**5,
  '{"a":' * 10**5,
  '9' * 10**4,
  '"\\ud800"',
  '{"config": {}, "status": 3}',
]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a finished sweep of one run, and its command."""
  folder = tmp_path_factory.mktemp('sweep')
  arguments = (
    f'--folder={folder}',
    "--config.sweep.cells=('uniform',)",
    '--config.sweep.num_seeds=1',
    '--workers=1',
  )
  assert sweep.main([DIGITS, *arguments]) == 0
  (run,) = [path.parent for path in folder.glob('*/result.json')]
  return run, arguments


@pytest.mark.parametrize('text', ODD_JSON, ids=range(len(ODD_JSON)))
@pytest.mark.parametrize('name', ['result.json', 'metrics.jsonl'])
def test_odd_json_in_a_finished_run_is_an_error(finished, capsys, text, name):
  """One line that names it and the remedy; no table is made of it."""
  run, arguments = finished
  path = run / name
  content = path.read_text()
  path.write_text(text + '\n')
  try:
    line = fails(capsys, *arguments, main=sweep.main)
  finally:
    path.write_text(content)
  assert 'is damaged (' in line
  assert name in line
  assert 'Remove it' in line


@pytest.mark.parametrize(
  'change',
  [
    {'train_loss': 'low'},
    {'test_error': [0.1]},
    {'steps': None, 'cost': {}},
    {'status': 1},
    {'versions': 'all'},
    {'config': []},
  ],
)
def test_results_of_other_types_are_an_error(finished, capsys, change):
  """Not what a table is made of."""
  run, arguments = finished
  path = run / 'result.json'
  content = path.read_text()
  path.write_text(json.dumps(json.loads(content) | change))
  try:
    line = fails(capsys, *arguments, main=sweep.main)
  finally:
    path.write_text(content)
  assert 'result.json is damaged (it holds no result of a run)' in line


@pytest.mark.parametrize('text', ODD_JSON[:-1], ids=range(len(ODD_JSON) - 1))
def test_odd_json_for_a_config_is_an_error(tmp_path, text):
  """Before anything is written."""
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(settings.SettingsError, match=r'config\.json is damaged'):
    train.run({'seed': 0}, None, tmp_path)
  assert (tmp_path / 'config.json').read_text() == text


@pytest.mark.parametrize(
  'name', ['metrics.jsonl', '.claim', 'config.json', 'checkpoints']
)
def test_links_in_a_run_folder_are_refused(tmp_path, name):
  """They would have the run write elsewhere."""
  outside = tmp_path / 'outside'
  outside.write_text('mine')
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / name).symlink_to(outside)
  with pytest.raises(settings.SettingsError, match=rf'holds links \({name}\)'):
    train.run({'seed': 0}, None, folder)
  assert outside.read_text() == 'mine'
  assert os.listdir(folder) == [name]


# --- names --------------------------------------------------------------------

PATHS = ['../../x', '/tmp/x', '..', '.', '', 'a/b', 'a\\..\\b', '~/x', 'a\0b']


@pytest.mark.parametrize('name', PATHS)
def test_a_name_cannot_lead_out_of_the_work_folder(
  tmp_path, capsys, monkeypatch, name
):
  """Of a config; --folder is the user's own choice."""
  monkeypatch.chdir(tmp_path)
  line = fails(capsys, f'--config.name={name}', main=sweep.main)
  assert 'config.name names the folder in runs' in line
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('cell', PATHS)
def test_a_cell_names_a_folder_in_the_sweeps(cell):
  """Whatever it is called; and no two share one."""
  config = {'cell': cell, 'seed': 0, 'optimizer': {'learning_rate': 0.1}}
  name = sweep.run_name(config)
  assert pathlib.PurePath(name).name == name
  assert not name.startswith('.') or '-' in name
  assert name != sweep.run_name(config | {'cell': f'{cell} '})


def test_what_is_read_is_what_was_written(tmp_path):
  """The checks pass what a run writes."""
  result = {name: 1.0 for name in ('train_loss', 'test_error', 'seconds')}
  result |= {'steps': 1, 'cost': 2, 'status': 'finished', 'config': {}}
  artifacts.write_json(tmp_path / 'result.json', result)
  assert artifacts.read_result(tmp_path) == result
  (tmp_path / 'metrics.jsonl').write_text(
    artifacts.json_line({'step': 1, 'cost': 1})
  )
  assert artifacts.read_metrics(tmp_path) == [{'step': 1, 'cost': 1}]
