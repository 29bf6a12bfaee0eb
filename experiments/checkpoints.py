"""Checkpoints of a run: all that it needs to go on, and proof that it is whole.

A checkpoint is the folder FOLDER/STEP, in orbax's format: its item `state`
holds the arrays of a state by name, its item `contents` (JSON) the rest, with
a digest of each array and one of itself. Without digests orbax restores
flipped bits as numbers, casts other dtypes without a word and takes an empty
folder for the newest step.

Of several processes the first one writes and reads. Arrays that no process has
all of are copied to every device when they are saved: for that moment each
holds them whole, some words per example of a sampler's state.
"""

import concurrent.futures
import functools
import hashlib
import json
import logging
import operator
import pathlib
import re
import shutil
import sys
from types import ModuleType
from typing import Any, NamedTuple
import warnings

import jax
import numpy as np

from experiments import peers
from experiments.settings import SettingsError, differences
from isjax.sharding.placement import put
from isjax.types import PyTree

# Of the contents; every version keeps the digest over all the rest of them.
VERSION = 1
_KINDS = {'version': int, 'config': dict, 'position': dict, 'leaves': dict}
_UNFINISHED = '*.orbax-checkpoint-tmp*'  # as orbax names what it is writing


class CheckpointError(Exception):
  """Why a checkpoint could not be written, in one line."""


class Restored(NamedTuple):
  """What a checkpoint holds.

  step:     that it was saved as.
  state:    pytree of arrays, bitwise those saved.
  position: as JSON gives it back (tuples as lists).
  """

  step: int
  state: PyTree
  position: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run, written while it goes on.

      with Checkpoints(folder, config) as checkpoints:
        restored = checkpoints.restore(like=state)
        ...
        checkpoints.save(step, state, {'seconds': seconds})

  Leave the block, or call `wait`, before the program ends: what is not wholly
  written by then is no checkpoint.

  Args:
    folder: of this run alone, made when needed.
    config: of the run, JSON: only a run of the same config restores.
    keep: number of checkpoints that stay, >= 1. With one there is none to
      fall back to.
  """

  def __init__(
    self, folder: pathlib.Path, config: dict[str, Any], keep: int = 2
  ):
    if keep < 1:
      raise ValueError(f'keep must be at least 1; got {keep}.')
    self._folder = folder.absolute()
    self._config = _as_json(config)
    self._keep = keep
    self._damaged: set[int] = set()
    self._worker = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future | None = None

  def save(self, step: int, state: PyTree, position: dict[str, Any]) -> None:
    """Copies the state off the device, and writes it while the run goes on.

    The state may be donated as soon as this returns. An earlier save is waited
    for, so that no more than one copy is in memory. Once written, the
    checkpoint replaces what the folder holds of this and later steps, of
    damaged ones, and of those beyond `keep`.

    Args:
      step: >= 0.
      state: pytree of jax arrays, typed PRNG keys included; at least one of
        them has an element.
      position: JSON, whatever else the run needs to go on.

    Raises:
      CheckpointError: where the save before this one failed.
      TypeError: where position is not JSON.
      ValueError: for a negative step.
    """
    self.wait()
    step = operator.index(step)
    if step < 0:
      raise ValueError(f'step must not be negative; got {step}.')
    leaves = _named(state)
    specs = {name: _spec(leaf) for name, leaf in leaves.items()}
    arrays = {name: _off_device(leaf) for name, leaf in leaves.items()}
    if not peers.is_first():
      return
    contents = {'config': self._config, 'position': _as_json(position)}
    self._pending = self._worker.submit(
      self._write, step, specs, arrays, contents
    )

  def restore(self, like: PyTree) -> Restored | None:
    """Returns the newest good checkpoint, or None where there is none.

    Args:
      like: a state of the same tree, shapes, dtypes and devices; its numbers
        are not used.

    Raises:
      CheckpointError: where the last save failed.
      SettingsError: where the checkpoint is whole, but of another config, of
        another kind of state, or of a newer format.

    Warns:
      UserWarning: which checkpoints are damaged, how, and which one is used.
    """
    self.wait()
    restored = None
    if peers.is_first():
      restored, self._damaged = _newest(self._folder, like, self._config)
    return _shared(restored, like)

  def wait(self) -> None:
    """Returns once all is written.

    Raises:
      CheckpointError: where the last save failed; those before it stay.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error, traceback) -> None:
    try:
      self.wait()
    except CheckpointError as failure:
      if error is None:
        raise
      error.add_note(str(failure))

  def _write(self, step: int, specs, arrays, contents) -> None:
    """Writes one checkpoint, then removes those that it replaces."""
    path = self._folder / str(step)
    digests = {name: _digest(array) for name, array in arrays.items()}
    contents |= {
      'version': VERSION,
      'leaves': {name: [specs[name], digests[name]] for name in specs},
    }
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      for rest in (path, *self._folder.glob(_UNFINISHED)):
        _remove(rest)
      args = _orbax().args
      _checkpointer().save(
        path,
        args.Composite(
          # Orbax cannot write arrays without elements; `like` has them.
          state=args.PyTreeSave({k: v for k, v in arrays.items() if v.size}),
          contents=args.JsonSave(contents | {'digest': _json_digest(contents)}),
        ),
      )
      self._damaged.discard(step)
      steps = _steps(self._folder)
      good = [s for s in steps if s <= step and s not in self._damaged]
      for other in set(steps).difference(good[: self._keep]):
        _remove(self._folder / str(other))
    except Exception as error:  # of the disk, or of orbax about the disk
      raise CheckpointError(
        f'{path} was not written ({_one_line(error)}); the checkpoints before '
        'it are as they were.'
      ) from error


def read(folder: pathlib.Path, like: PyTree) -> Restored:
  """Returns the newest good checkpoint of another run, whatever its config.

  Args:
    folder: of that run.
    like: as `Checkpoints.restore` takes it.

  Raises:
    SettingsError: where there is none, or it does not fit.

  Warns:
    UserWarning: which checkpoints are damaged, how, and which one is used.
  """
  restored = None
  if peers.is_first():
    restored, _ = _newest(folder.absolute(), like, config=None)
  restored = _shared(restored, like)
  if restored is None:
    raise SettingsError(f'{folder} holds no good checkpoint to start from.')
  return restored


def _shared(restored: Restored | None, like: PyTree) -> Restored | None:
  """What the first process has read, to all of them, on their devices."""
  found = peers.from_first(restored and [restored.step, restored.position])
  if found is None:
    return None
  leaves, structure = jax.tree.flatten(like)
  if restored is None:
    arrays = [np.zeros(d.shape, d.dtype) for d in map(_numbers, leaves)]
  else:
    arrays = restored.state
  state = [
    _onto_device(peers.array_from_first(array), leaf)
    for array, leaf in zip(arrays, leaves, strict=True)
  ]
  return Restored(found[0], jax.tree.unflatten(structure, state), found[1])


def _newest(
  folder: pathlib.Path, like: PyTree, config: dict[str, Any] | None
) -> tuple[Restored | None, set[int]]:
  """The newest good checkpoint, and the steps of the damaged ones after it.

  Its state is the list of the arrays, not yet on their devices.
  """
  restored, damaged = None, {}
  for step in _steps(folder):
    path = folder / str(step)
    try:
      contents = _contents(path)
      if config is not None:
        _expect_config(path, contents['config'], config)
      state = _state(path, contents['leaves'], like)
      restored = Restored(step, state, contents['position'])
      break
    except SettingsError:
      raise
    except Exception as error:  # whatever orbax meets in a damaged file
      damaged[step] = _one_line(error)
  if damaged:
    reasons = '; '.join(f'{s}: {reason}' for s, reason in damaged.items())
    used = 'starting anew' if restored is None else f'using {restored.step}'
    warnings.warn(
      f'damaged checkpoints in {folder} ({reasons}); {used}.', stacklevel=3
    )
  return restored, set(damaged)


def _contents(path: pathlib.Path) -> dict[str, Any]:
  """The JSON part of a checkpoint, once it is known to be whole."""
  if any(p.is_symlink() for p in (path, *path.rglob('*'))):
    raise ValueError('it holds links')
  if not path.is_dir() or not any(path.iterdir()):
    raise ValueError('it is empty')
  contents = _read_item(path, 'contents', _orbax().args.JsonRestore())
  if contents.pop('digest') != _json_digest(contents):
    raise ValueError('its contents are not those saved')
  if any(not isinstance(contents[k], kind) for k, kind in _KINDS.items()):
    raise ValueError('its contents are of no known format')
  if contents['version'] > VERSION:
    raise SettingsError(
      f'{path} has format {contents["version"]}, and this code reads formats '
      f'up to {VERSION}: update it.'
    )
  return contents


def _expect_config(
  path: pathlib.Path, saved: dict[str, Any], config: dict[str, Any]
) -> None:
  different = differences(saved, config)
  if different:
    raise SettingsError(
      f'{path} is of another config: {different}. Set that back, or give '
      'another folder.'
    )


def _state(
  path: pathlib.Path, saved: dict[str, Any], like: PyTree
) -> list[np.ndarray]:
  """The arrays of a checkpoint, once they are known to be those saved."""
  leaves = _named(like)
  different = differences(
    {name: spec for name, (spec, _) in saved.items()},
    {name: _spec(leaf) for name, leaf in leaves.items()},
  )
  if different:
    raise SettingsError(
      f'{path} is of another kind of state: {different}. Restore it with '
      'the code that saved it, or give another folder.'
    )
  arrays = _read_arrays(path, [k for k, leaf in leaves.items() if leaf.size])
  restored = []
  for name, leaf in leaves.items():
    array = arrays[name] if leaf.size else _off_device(leaf)
    if _digest(array) != saved[name][1]:
      raise ValueError(f'the numbers of {name} are not those saved')
    restored.append(array)
  return restored


def _read_arrays(path: pathlib.Path, names: list[str]) -> dict[str, np.ndarray]:
  """Reads arrays, whatever they hold."""
  orbax = _orbax()
  args = orbax.args.PyTreeRestore(
    item=dict.fromkeys(names, 0),
    restore_args=dict.fromkeys(
      names, orbax.RestoreArgs(restore_type=np.ndarray)
    ),
  )
  return _read_item(path, 'state', args)


def _off_device(leaf: jax.Array) -> np.ndarray:
  """A copy, never a view: on CPU that would show a buffer that is donated."""
  return np.array(peers.whole(_numbers(leaf)), order='C')


def _numbers(leaf: jax.Array) -> jax.Array:
  """The array itself, or what a PRNG key is made of."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.key_data(leaf)
  return leaf


def _onto_device(array: np.ndarray, like: jax.Array) -> jax.Array:
  """The array as a leaf of the kind of `like`, on its devices."""
  if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
    array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
  if peers.are_several():
    return put(array, like.sharding)
  return jax.device_put(array, like.sharding if like.committed else None)


def _named(state: PyTree) -> dict[str, jax.Array]:
  """The leaves by their places in the tree, in the tree's order."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _spec(leaf: jax.Array) -> str:
  return f'{leaf.dtype}{list(leaf.shape)}'


def _digest(array: np.ndarray) -> str:
  digest = hashlib.sha256(_spec(array).encode())
  digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def _json_digest(content: Any) -> str:
  return hashlib.sha256(
    json.dumps(content, sort_keys=True).encode()
  ).hexdigest()


def _as_json(content: Any) -> Any:
  """What will be read when it has been written."""
  return json.loads(json.dumps(content))


def _steps(folder: pathlib.Path) -> list[int]:
  """The steps that a folder has something of, newest first."""
  names = (p.name for p in folder.iterdir()) if folder.is_dir() else ()
  steps = (int(n) for n in names if re.fullmatch('0|[1-9][0-9]*', n))
  return sorted(steps, reverse=True)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _one_line(error: Exception) -> str:
  """Its text, of a long one start and end: there tensorstore has the cause."""
  line = ' '.join(str(error).split()) or type(error).__name__
  line = line.partition(' [tensorstore_spec')[0]
  return line if len(line) <= 160 else f'{line[:60]} ... {line[-90:]}'


@functools.cache
def _orbax() -> ModuleType:
  """Imports orbax, which takes long, at its first use, and keeps it quiet.

  Besides its log that is a traceback for each array on its way when another one
  failed, which is told by then.
  """
  import orbax.checkpoint

  logging.getLogger('absl').addFilter(
    lambda record: 'orbax' not in record.pathname
  )
  hook = sys.unraisablehook

  def quiet(unraisable) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      hook(unraisable)

  sys.unraisablehook = quiet
  return orbax.checkpoint


def _checkpointer():
  """Orbax's writer and reader of one folder, by named handlers alone."""
  orbax = _orbax()
  # It waits for no other process: none of them calls it.
  alone = {
    'multiprocessing_options': orbax.options.MultiprocessingOptions(
      active_processes={0}
    )
  }
  return orbax.Checkpointer(
    orbax.CompositeCheckpointHandler(
      state=orbax.PyTreeCheckpointHandler(**alone),
      contents=orbax.JsonCheckpointHandler(**alone),
      composite_options=orbax.CompositeOptions(**alone),
    ),
    **alone,
  )


def _read_item(path: pathlib.Path, name: str, args: Any) -> Any:
  """Reads one item of a checkpoint."""
  items = _orbax().args.Composite(**{name: args})
  return _checkpointer().restore(path, items)[name]
