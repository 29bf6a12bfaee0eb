"""One-line checks of arguments, made before anything is traced.

A check looks only at concrete values: a tracer passes, so that factories work
inside jit (a learning rate or an exponent may be an argument of the program).
"""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np


def _is_number(value: Any) -> bool:
  if isinstance(value, (bool, np.bool_)):
    return False
  return isinstance(value, (int, float, np.number)) or (
    isinstance(value, (jax.Array, np.ndarray)) and value.ndim == 0
  )


def _check(requirement: str, holds, values: dict[str, Any]) -> None:
  for name, value in values.items():
    if isinstance(value, jax.core.Tracer):
      continue
    if not _is_number(value) or not holds(value):
      raise ValueError(f'{name} must be {requirement}; got {value!r}.')


def positive_integers(**values: Any) -> None:
  """Raises ValueError unless each value is an integer >= 1."""
  _check(
    'an integer of at least 1',
    lambda value: (
      np.issubdtype(np.result_type(value), np.integer) and value >= 1
    ),
    values,
  )


def finite(**values: Any) -> None:
  """Raises ValueError unless each value is a finite number."""
  _check('a finite number', np.isfinite, values)


def positive(**values: Any) -> None:
  """Raises ValueError unless each value is a number > 0 (inf included)."""
  _check('positive', lambda value: value > 0, values)


def non_negative(**values: Any) -> None:
  """Raises ValueError unless each value is a number >= 0 (inf included)."""
  _check('non-negative', lambda value: value >= 0, values)


def budgets(**values: Any) -> None:
  """Raises ValueError unless each value is an integer in [1, 2^31]."""
  _check(
    'an integer from 1 to 2^31',
    lambda value: (
      np.issubdtype(np.result_type(value), np.integer) and 1 <= value <= 2**31
    ),
    values,
  )


def fractions(**values: Any) -> None:
  """Raises ValueError unless each value is a number in [0, 1]."""
  _check('in [0, 1]', lambda value: 0 <= value <= 1, values)


def decays(**values: Any) -> None:
  """Raises ValueError unless each value is a number in [0, 1)."""
  _check('in [0, 1)', lambda value: 0 <= value < 1, values)


def one_of(choices: Collection[str], **values: Any) -> None:
  """Raises ValueError unless each value is one of the named choices."""
  for name, value in values.items():
    if not isinstance(value, str) or value not in choices:
      names = ', '.join(repr(choice) for choice in choices)
      raise ValueError(f'{name} must be one of {names}; got {value!r}.')
