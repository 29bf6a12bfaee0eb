"""What a run leaves on disk, and the facts about where it ran."""

from collections.abc import Iterator
import contextlib
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import tempfile
from typing import IO, Any

import jax

from experiments.settings import SettingsError, some

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
# Of the result of a training run; what else is in it is a number, or null.
_TEXTS = ('status', 'commit', 'device', 'python', 'xla_flags')
_DICTS = ('config', 'versions')
_NUMBERS = ('train_loss', 'test_error', 'steps', 'cost', 'seconds')


class DamagedError(SettingsError):
  """A file is not what was written there; in one line, with the remedy."""


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, mode: str = 'w') -> Iterator[IO]:
  """Opens a file that appears at `path` only once it is whole.

  Args:
    path: of the file; its folder is made.
    mode: 'w' or 'wb'.

  Raises:
    OSError: where it cannot be written; what was at `path` stays as it was.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with errors_named(path):
    descriptor, name = tempfile.mkstemp(
      dir=path.parent, prefix=f'.{path.name}.'
    )
    try:
      with os.fdopen(descriptor, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.chmod(name, 0o644)
      os.replace(name, path)
    except BaseException:
      pathlib.Path(name).unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def errors_named(path: pathlib.Path) -> Iterator[None]:
  """Makes an error of the disk within its block name the file.

  Raises:
    OSError: that does.
  """
  try:
    yield
  except OSError as error:
    if error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


class BusyError(Exception):
  """Another process is at work in a folder."""


@contextlib.contextmanager
def claim(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other processes out of a folder, which is made, within its block.

  The system frees the folder when the process ends, however it ends.

  Raises:
    BusyError: where another one has claimed it.
    SettingsError: where it holds links: writing to them would write elsewhere.
  """
  folder.mkdir(parents=True, exist_ok=True)
  links = sorted(path.name for path in folder.iterdir() if path.is_symlink())
  if links:
    raise SettingsError(
      f'{folder} holds links ({some(links)}), and a run writes to its own '
      'folder alone. Remove them, or give another folder.'
    )
  with (folder / '.claim').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise BusyError(
        f'another process is running in {folder}; wait for it, or give '
        'another folder.'
      ) from error
    yield


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes one JSON document, atomically; NaN and inf become null."""
  with atomic_write(path) as file:
    json.dump(_finite(content), file, indent=2, allow_nan=False)
    file.write('\n')


def json_line(content: Any) -> str:
  """Returns one line of a JSON-lines file; NaN and inf become null."""
  return json.dumps(_finite(content), allow_nan=False) + '\n'


def _finite(content: Any) -> Any:
  """The same content with None in place of numbers that JSON lacks."""
  if isinstance(content, dict):
    return {name: _finite(value) for name, value in content.items()}
  if isinstance(content, (list, tuple)):
    return [_finite(value) for value in content]
  if isinstance(content, float) and not math.isfinite(content):
    return None
  return content


def read_json(path: pathlib.Path) -> Any:
  """Returns what `write_json` has written there.

  Raises:
    DamagedError: where it is no JSON.
  """
  try:
    return json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise _damaged(path, str(error)) from error


def _damaged(path: pathlib.Path, reason: str) -> DamagedError:
  return DamagedError(
    f'{path} is damaged ({reason}). Remove it, and the same command makes what '
    'is missing.'
  )


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns the config that a folder's run was begun with, or None.

  Raises:
    DamagedError: where the file holds none.
  """
  path = folder / 'config.json'
  if not path.exists():
    return None
  content = read_json(path)
  if not _has_config(content):
    raise _damaged(path, 'it holds no config of a run')
  return content['config']


def _has_config(content: Any) -> bool:
  return isinstance(content, dict) and isinstance(content.get('config'), dict)


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns a run's result, or None where it is not finished.

  Raises:
    DamagedError: where the file holds no result.
  """
  path = folder / 'result.json'
  try:
    result = read_json(path)
  except FileNotFoundError:
    return None
  if not _is_result(result):
    raise _damaged(path, 'it holds no result of a run')
  return result


def _is_result(content: Any) -> bool:
  """Whether it has the fields of a result; a study's are its own."""
  if not _has_config(content):
    return False
  if 'study' in content['config']:
    return True
  texts = [content[name] for name in _TEXTS if name in content]
  dicts = [content[name] for name in _DICTS if name in content]
  numbers = {k: v for k, v in content.items() if k not in _TEXTS + _DICTS}
  return (
    'status' in content
    and set(_NUMBERS) <= numbers.keys()
    and all(isinstance(text, str) for text in texts)
    and all(isinstance(one, dict) for one in dicts)
    and all(map(_is_number, numbers.values()))
  )


def _is_number(value: Any) -> bool:
  return value is None or isinstance(value, (int, float))


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's metrics.jsonl.

  Raises:
    DamagedError: where a line is not one of metrics.
  """
  path = folder / 'metrics.jsonl'
  try:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
  except (ValueError, RecursionError) as error:
    raise _damaged(folder, f'{path.name}: {error}') from error
  for number, line in enumerate(lines, 1):
    if not _is_line(line):
      raise _damaged(folder, f'{path.name}: line {number} has no metrics')
  return lines


def _is_line(content: Any) -> bool:
  """Whether it is what a run writes to metrics.jsonl."""
  if not isinstance(content, dict) or not {'step', 'cost'} <= content.keys():
    return False
  values = [value for name, value in content.items() if name != 'status']
  return all(map(_is_number, values))


@functools.cache
def provenance() -> dict[str, Any]:
  """Returns commit, versions, device and, if any, XLA's flags.

  And the number of devices, if there are several.
  """
  device = jax.devices()[0]
  flags = os.environ.get('XLA_FLAGS')
  kind = device.device_kind
  if device.platform == 'cpu':
    cores = len(available_cores())
    kind = f'{_processor()}, {cores} core{"s" * (cores > 1)}'
  return {
    'commit': _commit(),
    'device': kind,
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
  } | (
    ({'xla_flags': flags} if flags else {})
    | ({'devices': jax.device_count()} if jax.device_count() > 1 else {})
  )


def available_cores() -> list[int]:
  """Returns the numbers of the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # on Linux alone
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def _commit() -> str:
  """The commit of the code, marked where files differ from it."""
  root = pathlib.Path(__file__).parent
  try:
    return subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=10'],
      cwd=root,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'


def _processor() -> str:
  """The processor's name, as precisely as the system tells it."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()
