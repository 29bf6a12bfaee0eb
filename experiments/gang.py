"""Several processes on this machine that make one run, and start again.

Usage: python -m experiments.gang --processes=N [--retries=R] [--patience=S]
           -- MODULE [ARGUMENT ...]

Starts N times `python -m MODULE ARGUMENT ...` on the CPU, each process on its
part of the cores. Where one dies or is stuck the others are ended, and all
start again from the last checkpoint, R times at most (5). A process is stuck
that has the others wait for S seconds (120), which is more than the longest
save or compilation may take. SIGTERM and Ctrl-C are handed on once.
Exits with what MODULE does, 75 where it is to be called again, 130 after
Ctrl-C, 1 where processes died too often.
"""

import argparse
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time

from experiments import artifacts, peers
from experiments.interruption import (
  UNFINISHED,
  InterruptedRunError,
  Interruption,
)

_SAVING = 100.0  # seconds to save and end, once told
_ENDING = 5.0  # seconds to follow one that has ended
_VERDICTS = (1, 2, 3)  # of the program, which would come to them again
_SIGNALS = {UNFINISHED: signal.SIGTERM, 130: signal.SIGINT}


def supervise(
  command: list[str], count: int, retries: int, patience: int
) -> int:
  """Runs processes until all have ended well; returns the exit status.

  Args:
    command: module and arguments.
    count: of processes, >= 2.
    retries: >= 0, how often they start again.
    patience: seconds > 0 that a process may have the others wait.
  """
  with Interruption() as interruption:
    for attempt in range(retries + 1):
      statuses = _attempt(command, count, patience, interruption)
      status = _verdict(statuses, interruption)
      if status is not None:
        return status
      bad = [s for s in statuses if s not in (None, 0, UNFINISHED)]
      cause = f'ended with {bad[0]}' if bad else 'is stuck'
      then = 'started again from the last checkpoint'
      if attempt == retries:
        then = f'ended, after {retries} retries'
      print(f'a process {cause}; all are {then}.', file=sys.stderr, flush=True)
  return 1


def _attempt(
  command, count: int, patience: int, interruption: Interruption
) -> list[int | None]:
  """Starts the processes once; their statuses, None for those stuck."""
  address = f'127.0.0.1:{_free_port()}'
  processes = []
  told, end = False, float('inf')
  try:
    for index in range(count):
      processes.append(_start(command, count, index, address, patience))
    while True:
      statuses = [process.poll() for process in processes]
      ended = [status for status in statuses if status is not None]
      is_dead = any(status < 0 for status in ended) and not told
      if len(ended) == count or is_dead or time.monotonic() > end:
        return statuses
      stopped = _status_of(interruption)
      if stopped is not None and not told:
        told, end = True, time.monotonic() + _SAVING
        for process in processes:
          process.send_signal(_SIGNALS[stopped])
      if any(ended) and end == float('inf'):
        end = time.monotonic() + _ENDING
      time.sleep(0.02)
  finally:
    for process in processes:
      process.kill()
    for process in processes:
      process.wait()
      process.stdin.close()


def _start(
  command, count: int, index: int, address: str, patience: int
) -> subprocess.Popen:
  """One process, in a session of its own: a Ctrl-C is the supervisor's."""
  environment = {
    'JAX_PLATFORMS': 'cpu',
    peers.ADDRESS: address,
    peers.COUNT: str(count),
    peers.INDEX: str(index),
    peers.SUPERVISED: '1',
    'XLA_FLAGS': _flags(patience),
  }
  process = subprocess.Popen(
    [sys.executable, '-m', *command],
    env=os.environ | environment,
    stdin=subprocess.PIPE,
    start_new_session=True,
  )
  if hasattr(os, 'sched_setaffinity'):  # before its threads start
    cores = artifacts.available_cores()
    os.sched_setaffinity(process.pid, cores[index::count] or cores)
  return process


def _flags(patience: int) -> str:
  """XLA's flags, by which waiting for a stuck process ends with an error."""
  flags = os.environ.get('XLA_FLAGS', '')
  # XLA does not start with a flag that it does not know.
  if importlib.metadata.version('jaxlib').startswith(('0.10.', '0.11.')):
    flags += f' --xla_cpu_collective_timeout_seconds={patience}'
    flags += f' --xla_cpu_collective_call_terminate_timeout_seconds={patience}'
  return flags


def _verdict(
  statuses: list[int | None], interruption: Interruption
) -> int | None:
  """The status to end with, or None to start again."""
  stopped = _status_of(interruption)
  if stopped is not None and (any(statuses) or None in statuses):
    return stopped
  for status in statuses:
    if status in _VERDICTS:
      return status
  if set(statuses) <= {0, UNFINISHED}:  # all have ended, and by no accident
    return max(statuses)
  return None


def _status_of(interruption: Interruption) -> int | None:
  """What to end with after a signal, or None where there was none."""
  try:
    interruption.check()
  except InterruptedRunError as stopped:
    return stopped.status
  return None


def _free_port() -> int:
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


def main(arguments: list[str]) -> int:
  """Supervises from the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.gang', description=__doc__, allow_abbrev=False
  )
  parser.add_argument('--processes', type=int, required=True)
  parser.add_argument('--retries', type=int, default=5)
  parser.add_argument('--patience', type=int, default=120)
  parser.add_argument('command', nargs='+')
  options = parser.parse_args(arguments)
  if options.processes < 2 or options.retries < 0 or options.patience < 1:
    parser.error('expected --processes >= 2, --retries >= 0, --patience >= 1.')
  return supervise(
    options.command, options.processes, options.retries, options.patience
  )


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
