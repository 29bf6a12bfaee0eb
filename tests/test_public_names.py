"""Every public name is documented, annotated and tested."""

import importlib
import inspect
import pathlib

import pytest

import isjax

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = [
  '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix(
    '.__init__'
  )
  for path in sorted((ROOT / 'isjax').rglob('*.py'))
  if path.name == '__init__.py' or not path.name.startswith('_')
]


def public(module):
  """The public functions and classes that a module defines."""
  for name, value in vars(module).items():
    defined = getattr(value, '__module__', None) == module.__name__
    code = inspect.isclass(value) or inspect.isfunction(value)
    if code and defined and not name.startswith('_'):
      yield name, value


@pytest.mark.parametrize('name', NAMES)
def test_public_names_are_documented_and_annotated(name):
  """A docstring each; a function's names its return, its types are given."""
  module = importlib.import_module(name)
  assert module.__doc__, name
  for label, value in public(module):
    assert inspect.getdoc(value), f'{name}.{label} has no docstring'
    if inspect.isfunction(value):
      signature = inspect.signature(value)
      missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is inspect.Parameter.empty
      ]
      assert not missing, f'{name}.{label}: no types for {missing}'
      assert signature.return_annotation is not inspect.Signature.empty, (
        f'{name}.{label}: no return type'
      )


def shown(module):
  """What users see: of a package, what it exports; of a module, all of it."""
  if hasattr(module, '__all__'):
    return module.__all__
  inside = module.__name__.count('.') > 1
  return [] if inside else [name for name, _ in public(module)]


def test_public_names_are_tested():
  """Each one occurs in a test of this folder."""
  text = '\n'.join(
    path.read_text()
    for path in (ROOT / 'tests').glob('test_*.py')
    if path != pathlib.Path(__file__)
  )
  untested = [
    f'{name}.{label}'
    for name in NAMES
    for label in shown(importlib.import_module(name))
    if label not in text and label not in ('PyTree', 'Metrics')  # aliases
  ]
  assert not untested


def test_all_is_sorted_and_complete():
  """`isjax.__all__` names what the package shows, and nothing else."""
  assert list(isjax.__all__) == sorted(isjax.__all__, key=ruff_order)
  assert all(hasattr(isjax, name) for name in isjax.__all__)


def ruff_order(name):
  """Constants, then classes, then the rest."""
  return (not name.isupper(), not name[0].isupper(), name)
