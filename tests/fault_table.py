"""The table of the faults that tests make happen: a row is a decorated test."""

import pathlib
from typing import NamedTuple

from experiments.tables import markdown

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATH = ROOT / 'experiments/results/faults/table.md'
COMMAND = 'PYTHONPATH=. python tests/test_faults.py'


class Fault(NamedTuple):
  """A row of the table.

  name:    what happens.
  status:  that the command exits with; negative after a signal.
  message: all that it says, a line; '...' stands for anything.
  test:    the function, whose docstring says the outcome.
  """

  name: str
  status: int | str
  message: str
  test: object


def fault(name, status=0, message=''):
  """Makes a test a row of the table, which it keeps as its `fault`."""

  def mark(test):
    test.fault = Fault(name, status, message, test)
    return test

  return mark


def table(*modules):
  """The table of the faults in these modules, in their order, as Markdown."""
  faults = [
    value.fault
    for module in modules
    for value in vars(module).values()
    if hasattr(value, 'fault') and callable(value)
  ]

  def cell(text):
    return ' '.join(text.split()).replace('|', r'\|')

  rows = [
    [
      cell(one.name),
      str(one.status),
      cell(one.message),
      cell(one.test.__doc__),
      f'`{one.test.__name__}`',
    ]
    for one in faults
  ]
  titles = ['fault', 'exit status', 'message', 'outcome', 'test']
  return (
    '# Faults\n\n'
    'What a run or a sweep does when something goes wrong: each test makes it '
    'happen, and asserts exit status, message and numbers. After all of them '
    'the numbers are those of a run that nothing happened to, bit for bit, or '
    'there are none.\n\n'
    f'{markdown(titles, rows)}\n\n'
    f'Written by `{COMMAND}` from tests/test_faults.py and tests/test_gang.py, '
    'whose tests of two processes run behind the marker `faults`.\n'
  )
