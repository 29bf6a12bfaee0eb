"""All runs of a config, then its table and its figures.

Usage: python -m experiments.sweep CONFIG[:SCALE] [--workers=N]
           [--folder=FOLDER] [--minutes=M] [--cell=K/N] [--deterministic]
           [--config.field=value ...]

CONFIG is a file of configs/, SCALE one of its scales (default: cpu). Finished
runs are skipped, so that a sweep that was stopped goes on where it was.
--workers: processes, each of which takes whole cells (default: one per core on
CPU, 1 elsewhere). --folder: where runs and results go (default: runs/NAME).
--minutes: runs stop after so many and save where they are; the table has those
that are finished, and the exit status is 75 while others are left.
--cell: of the cells only the K-th, the (K + N)-th and so on. Several processes,
on hosts that share FOLDER, make a sweep so. A run that another process is at
work on is left to it. The table is written by whoever finds all runs finished;
till then the exit status is 75.
--deterministic: on a GPU, the same numbers bit for bit each time, at some cost
in speed; a CPU gives them anyway.
--config.field=value changes a setting of every run; the sweep then leaves that
field alone. A config that names a study computes it, in one process.
"""

from collections.abc import Callable
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
import queue
import re
import signal
import sys
import threading
import time
from types import ModuleType
from typing import Any

import jax

from experiments import (
  artifacts,
  comparisons,
  determinism,
  figures,
  peers,
  settings,
  studies,
  tables,
  trunk,
)
from experiments.artifacts import BusyError
from experiments.checkpoints import CheckpointError
from experiments.interruption import (
  UNFINISHED,
  InterruptedRunError,
  Interruption,
)
from experiments.program import ARGUMENTS, Program, check
from experiments.progress import Progress
from experiments.settings import SettingsError, UnavailableError
from experiments.train import diverged, run, show_warnings

# Tells the parent of a run's progress: (run, fraction or None at its end,
# metrics).
Tell = Callable[[str, float | None, dict[str, Any]], None]


class WorkerError(Exception):
  """A process that makes runs has died."""


def run_name(config: dict[str, Any]) -> str:
  """Returns the name of a run's folder: readable, and unique by its digest."""
  words = [
    config['cell'],
    f'lr {config["optimizer"]["learning_rate"]:g}',
    f'seed {config["seed"]}',
    settings.digest(config),
  ]
  return '-'.join(re.sub(r'[^a-z0-9.]+', '_', w.lower()) for w in words)


def trunk_folder(
  config: dict[str, Any], folder: pathlib.Path
) -> pathlib.Path | None:
  """Returns the folder of a run's trunk in that of the sweep, if it has one."""
  begins = trunk.config_of(config)
  return None if begins is None else folder / run_name(begins)


def trunks(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the configs of the trunks of the runs, each one once."""
  begin = [trunk.config_of(config) for config in configs]
  return list({run_name(c): c for c in begin if c is not None}.values())


def unfinished(
  configs: list[dict[str, Any]], folder: pathlib.Path
) -> list[dict[str, Any]]:
  """Returns the configs whose runs have left no result."""
  return [
    config
    for config in configs
    if artifacts.read_result(folder / run_name(config)) is None
  ]


def run_cell(
  configs: list[dict[str, Any]],
  folder: pathlib.Path,
  tell: Tell,
  interruption: Interruption | None = None,
  leave_claimed: bool = False,
) -> None:
  """Makes the runs of one cell, with one compiled program.

  Args:
    configs: alike but for the fields in `program.ARGUMENTS`.
    folder: of the sweep.
    tell: called with the progress of every run.
    interruption: tells the runs to stop.
    leave_claimed: whether runs that another process is at work on, and those
      whose trunk is not finished, are left out.

  Raises:
    BusyError: where another process is at work on one, unless that is left.
    InterruptedRunError: once one of them has.
  """
  program = Program(configs[0])
  for config in configs:
    name = run_name(config)
    begins = trunk_folder(config, folder)
    if leave_claimed and begins and artifacts.read_result(begins) is None:
      continue
    try:
      result = run(
        config,
        program,
        folder / name,
        report=functools.partial(tell, name),
        trunk_folder=begins,
        interruption=interruption,
      )
    except BusyError:
      if not leave_claimed:
        raise
      continue
    tell(name, None, result)


def run_all(
  cells: list[list[dict[str, Any]]],
  folder: pathlib.Path,
  workers: int,
  deadline: float = math.inf,
  leave_claimed: bool = False,
) -> None:
  """Makes the runs of all cells and shows their progress.

  Args:
    cells: configs, grouped by program.
    folder: of the sweep.
    workers: processes; 1 runs everything in this one.
    deadline: of time.monotonic(), when the runs are to stop.
    leave_claimed: as in `run_cell`.

  Raises:
    InterruptedRunError: once they have, for this or for a signal.
    WorkerError: where a process has died.
  """
  with Progress(sum(map(len, cells))) as progress:

    def tell(name: str, fraction: float | None, metrics: dict[str, Any]):
      if fraction is not None:
        progress.update(name, fraction, metrics)
        return
      progress.finish(name)
      if metrics['status'] == 'diverged':
        progress.say(f'{name}: {diverged(metrics)}')

    with Interruption(deadline) as interruption:
      if workers == 1:
        for cell in cells:
          run_cell(cell, folder, tell, interruption, leave_claimed)
      else:
        _run_in_processes(
          cells, folder, workers, tell, interruption, deadline, leave_claimed
        )


def _run_in_processes(
  cells,
  folder,
  workers,
  tell,
  interruption: Interruption,
  deadline: float,
  leave_claimed: bool,
) -> None:
  """Hands the cells to processes, each on a core of its own."""
  context = multiprocessing.get_context('spawn')  # JAX does not survive a fork
  taken, messages = context.Value('i', 0), context.Queue()
  cores = itertools.cycle(artifacts.available_cores())
  shared = cells, taken, messages, folder, deadline, leave_claimed
  processes = [
    context.Process(target=_work, args=(next(cores), *shared))
    for _ in range(workers)
  ]
  told = False
  try:
    for process in processes:
      process.start()
    while any(process.is_alive() for process in processes):
      _relay(messages, tell)
      if interruption.is_signalled and not told:
        told = True
        _terminate(processes)  # they save where they are
      if not told:
        _expect_success(processes)
    while not _relay(messages, tell):
      pass
    if told or any(process.exitcode == UNFINISHED for process in processes):
      interruption.check()
    _expect_success(processes)
  finally:
    if not told:
      _terminate(processes)
    for process in processes:
      process.join()


def _terminate(processes) -> None:
  for process in processes:
    process.terminate()


def _work(
  core: int,
  cells,
  taken,
  messages,
  folder: pathlib.Path,
  deadline: float,
  leave_claimed: bool,
) -> None:
  """What a process does: cells until there are none left."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {core})  # before the backend starts its threads
  show_warnings()
  try:
    with Interruption(deadline) as interruption:
      signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
      threading.Thread(
        target=_stop_without_parent, args=(messages,), daemon=True
      ).start()
      for cell in _left(cells, taken):
        run_cell(
          cell,
          folder,
          lambda *message: messages.put(message),
          interruption,
          leave_claimed,
        )
  except InterruptedRunError as stopped:
    sys.exit(stopped.status)
  except (SettingsError, BusyError, CheckpointError, OSError) as error:
    messages.put(error)
    sys.exit(1)


def _left(cells, taken):
  """Yields the cells that no process has taken, until there are none."""
  while True:
    with taken.get_lock():
      index = taken.value
      taken.value += 1
    if index >= len(cells):
      return
    yield cells[index]


def _stop_without_parent(messages) -> None:
  """Tells this process to stop, once its parent has died."""
  multiprocessing.parent_process().join()
  messages.cancel_join_thread()  # nobody reads them
  os.kill(os.getpid(), signal.SIGTERM)


def _expect_success(processes) -> None:
  for process in processes:
    if process.exitcode not in (None, 0, UNFINISHED):
      raise WorkerError(
        f'a worker ended with status {process.exitcode}; finished runs are '
        'kept, and the same command goes on with the others.'
      )


def _relay(messages, tell: Tell) -> bool:
  """Passes on what the processes say for a tenth of a second.

  No longer: runs of short calls never fall silent, and the parent has signals
  to look for.

  Returns:
    Whether there was a time without a word.

  Raises:
    Exception: that one of them has ended with.
  """
  end = time.monotonic() + 0.1
  while (left := end - time.monotonic()) > 0:
    try:
      message = messages.get(timeout=left)
    except queue.Empty:
      return True
    if isinstance(message, Exception):
      raise message
    tell(*message)
  return False


def main(arguments: list[str]) -> int:
  """Runs a sweep from the command line; returns the exit status."""
  if set(arguments) & {'--help', '-h'}:
    print(__doc__)
    return 0
  show_warnings()
  try:
    command = settings.parse(determinism.take(arguments))
    if command.part is None:
      peers.join()
    module, config, changes = settings.load(command.path, command.changes)
    folder = pathlib.Path(command.folder or default_folder(config))
    if 'study' in config:
      if command.part is not None or peers.are_several():
        raise SettingsError('a study is made by one process, without --cell.')
      study = settings.choose(studies.STUDIES, config['study'], 'study')
      studies.run(study, module, config, changes, folder)
      return 0
    configs = settings.runs(module, config, changes)
    deadline = math.inf
    if command.minutes is not None:
      deadline = time.monotonic() + 60 * command.minutes
    part = command.part
    left_out = make_runs(configs, folder, command.workers, deadline, part)
    if not peers.is_first():
      return 0
    return _report(configs, module, folder, left_out, part is not None)
  except InterruptedRunError as stopped:
    print(stopped, file=sys.stderr)
    return stopped.status
  except SettingsError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except (WorkerError, BusyError, CheckpointError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(InterruptedRunError(130), file=sys.stderr)
    return 130


def default_folder(config: dict[str, Any]) -> str:
  """Returns where the runs of a config go: the folder of its name, in runs.

  Raises:
    SettingsError: for a name that would lead out of it.
  """
  name = config['name']
  if not re.fullmatch(r'\w[\w.-]*', name):
    raise SettingsError(
      'config.name names the folder in runs, and is made of letters, digits, '
      f"'.', '_' and '-'; got {name!r}. Or give --folder=FOLDER."
    )
  return f'runs/{name}'


def make_runs(
  configs: list[dict[str, Any]],
  folder: pathlib.Path,
  workers: int | None,
  deadline: float = math.inf,
  part: tuple[int, int] | None = None,
) -> dict[str, str]:
  """Makes the runs that are not finished, their trunks first.

  Args:
    configs: of all runs of the sweep.
    folder: of the sweep.
    workers: processes; None for one per core on CPU and 1 elsewhere. One of
      several that share each run takes no others.
    deadline: of time.monotonic(), when the runs are to stop.
    part: (k, n), to make only the cells k, k + n, ... of them, counted from 1,
      and leave what another process is at work on; None for all.

  Returns:
    The cells that cannot be run here, with the reason.

  Raises:
    InterruptedRunError: where a signal told them to stop.
    SettingsError: where something is wrong, or no cell can be run, before the
      first run.
  """
  todo = _todo(configs, folder)
  first, every = part or (1, 1)
  cells = list(settings.iterate_cells(configs, ARGUMENTS))
  own = [config for cell in cells[first - 1 :: every] for config in cell]
  begin = trunks([config for config in todo if config in own])
  stages, left_out = [], {}
  for stage in (_todo(begin, folder), todo):
    stages.append([])
    for cell in settings.iterate_cells(stage, ARGUMENTS):
      try:
        check(cell)
        if stage is not todo or cell[0] in own:
          stages[-1].append(cell)
      except UnavailableError as reason:
        left_out[cell[0]['cell']] = str(reason)
  if len(left_out) and all(c['cell'] in left_out for c in configs):
    raise SettingsError(' '.join(dict.fromkeys(left_out.values())))
  _announce(configs, todo, folder)
  for name, reason in left_out.items():
    print(f'{name}: left out. {reason}', file=sys.stderr)
  try:
    for cells in stages:
      if cells:
        count = workers or _default_workers(len(cells))
        if peers.are_several():
          count = 1
        run_all(cells, folder, count, deadline, part is not None)
  except InterruptedRunError:
    if time.monotonic() < deadline:
      raise
  return left_out


def _todo(
  configs: list[dict[str, Any]], folder: pathlib.Path
) -> list[dict[str, Any]]:
  """The unfinished ones, the same for all processes that share the runs."""
  names = [run_name(config) for config in unfinished(configs, folder)]
  names = peers.from_first(names)
  return [config for config in configs if run_name(config) in names]


def _report(
  configs: list[dict[str, Any]],
  module: ModuleType,
  folder: pathlib.Path,
  left_out: dict[str, str],
  only_whole: bool,
) -> int:
  """Writes table and figures of the finished runs; returns the exit status.

  If only_whole, once all runs are finished.
  """
  left = unfinished(configs, folder)
  todo = [c for c in left if c['cell'] not in left_out]
  records = [
    comparisons.read(folder / run_name(config))
    for config in configs
    if config not in left
  ]
  done = {record.config['cell'] for record in records}
  left_out |= {
    config['cell']: 'the time was over.'
    for config in todo
    if config['cell'] not in done
  }
  if records and not (todo and only_whole):
    tables.write(records, module, folder, left_out)
    figures.write(records, module, folder)
  if todo:
    then = 'the same command goes on with them.'
    if only_whole:
      then = 'the table is written once they are finished.'
    print(f'{len(todo)} runs are left; {then}', file=sys.stderr)
  return UNFINISHED if todo else 0


def _announce(configs, todo, folder: pathlib.Path) -> None:
  print(
    f'{len(configs)} runs in {folder}, {len(configs) - len(todo)} of them '
    f'finished before; device: {artifacts.provenance()["device"]}.',
    file=sys.stderr,
    flush=True,
  )


def _default_workers(num_cells: int) -> int:
  if jax.default_backend() != 'cpu':
    return 1
  return max(1, min(num_cells, len(artifacts.available_cores())))


if __name__ == '__main__':
  peers.leave(main(sys.argv[1:]))
