"""The dependency rule: a module imports only from modules listed above it."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# In the order of the README's layout; later issues' modules have their place.
ORDER = (
  '_in_place',
  '_validate',
  '_words',
  'types',
  '_batch_statistics',
  'alias',
  'resampling',
  'sum_tree',
  'weights',
  'losses',
  'ghost',
  'scores',
  'metrics',
  'models',
  'transforms',
  'samplers',
  'sharding',
  'baselines',
  'data',
  'step',
  'stream',
  'index_stream',
)
ALLOWED = {'jax', 'optax', 'numpy', 'flax', 'isjax'} | sys.stdlib_module_names
IMPURE_CALLS = {'print', 'open', 'input', 'exec', 'eval'}
IMPURE_MODULES = {'os', 'sys', 'pathlib', 'time', 'random', 'logging', 'absl'}
MODULES = sorted((ROOT / 'isjax').rglob('*.py'))


def place(path):
  """The module's position in ORDER; the package's own init is above all."""
  name = path.relative_to(ROOT / 'isjax').parts[0].removesuffix('.py')
  return len(ORDER) if name == '__init__' else ORDER.index(name)


def imports(path):
  """Yields (dotted module, whether at module top) of every import."""
  tree = ast.parse(path.read_text())
  top = set(map(id, tree.body))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, id(node) in top
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', id(node) in top


@pytest.mark.parametrize(
  'path', MODULES, ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_point_upwards_only(path):
  """And reach nothing outside the core's few packages at module top."""
  here = place(path)
  for name, at_top in imports(path):
    head, _, rest = name.partition('.')
    if head == 'isjax':
      assert rest, f'{path} imports the whole of isjax'
      below = ORDER.index(rest.split('.')[0]) if here < len(ORDER) else -1
      assert below <= here, f'{path} imports {name}, which stands below it'
    else:
      assert not at_top or head in ALLOWED, f'{path} imports {name}'
    assert head not in ('experiments', 'configs'), f'{path} imports {name}'
    assert 'nnx' not in name, f'{path} imports {name}'


@pytest.mark.parametrize(
  'path',
  [p for p in MODULES if 'data' not in p.parts],
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_all_but_data_is_pure(path):
  """No file, clock, print or global seed."""
  for name, _ in imports(path):
    assert name.split('.')[0] not in IMPURE_MODULES, f'{path} imports {name}'
    assert not name.startswith('numpy.random'), f'{path} imports {name}'
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      assert node.func.id not in IMPURE_CALLS, f'{path}: {node.func.id}()'
    if isinstance(node, ast.Attribute):
      source = ast.unparse(node)
      assert not source.startswith('np.random'), f'{path}: {source}'


def test_configs_are_data():
  """They import ml_collections, the standard library and each other."""
  known = {'ml_collections', 'configs'} | sys.stdlib_module_names
  for path in (ROOT / 'configs').glob('*.py'):
    for name, _ in imports(path):
      assert name.split('.')[0] in known, f'{path} imports {name}'


def test_the_core_imports_without_the_rest():
  """No data library, no nnx, no x64 and no device comes with `import isjax`."""
  code = (
    'import sys, isjax, isjax.models, isjax.data\n'
    "heavy = {'tensorflow', 'tensorflow_datasets', 'sklearn', 'matplotlib',"
    " 'ml_collections', 'flax.nnx'}\n"
    'print(sorted(heavy & set(sys.modules)))\n'
    'import jax; print(jax.config.jax_enable_x64)\n'
  )
  output = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  ).stdout
  assert output.split('\n')[:2] == ['[]', 'False']
