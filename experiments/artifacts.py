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

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


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
  descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
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


class BusyError(Exception):
  """Another process is at work in a folder."""


@contextlib.contextmanager
def claim(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other processes out of a folder, which is made, within its block.

  The system frees the folder when the process ends, however it ends.

  Raises:
    BusyError: where another one has claimed it.
  """
  folder.mkdir(parents=True, exist_ok=True)
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
  """Returns what `write_json` has written there."""
  return json.loads(path.read_text())


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns a run's result, or None where it is not finished."""
  try:
    return read_json(folder / 'result.json')
  except FileNotFoundError:
    return None


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's metrics.jsonl."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@functools.cache
def provenance() -> dict[str, Any]:
  """Returns commit, versions and device of this process."""
  device = jax.devices()[0]
  kind = device.device_kind
  if device.platform == 'cpu':
    cores = len(available_cores())
    kind = f'{_processor()}, {cores} core{"s" * (cores > 1)}'
  return {
    'commit': _commit(),
    'device': kind,
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
  }


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
