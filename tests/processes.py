"""Command lines in processes of their own, that start within a moment.

A host imports what they need once, and is forked for each of them before any
backend has started. What they compile, they share on disk.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

HOST = """
import importlib, json, os, sys
from experiments import sweep, train
from experiments.checkpoints import _orbax
_orbax()

def become(module, arguments, output):
  file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
  for descriptor in (1, 2):
    os.dup2(file, descriptor)
  status = importlib.import_module(module).main(arguments)
  sys.stdout.flush()
  os._exit(status)

for line in sys.stdin:
  request = json.loads(line)
  if isinstance(request, int):
    answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
  else:
    answer = os.fork()
    if not answer:
      become(*request)
  print(answer, flush=True)
"""


class Process:
  """One of them.

  pid:    of it.
  output: all that it has said, path of a file.
  """

  def __init__(self, host: 'Host', pid: int, output: pathlib.Path):
    self._host = host
    self.pid = pid
    self.output = output

  def send(self, number: int) -> None:
    """Sends it a signal."""
    os.kill(self.pid, number)

  def wait(self) -> tuple[int, str]:
    """Returns its exit status, negative after a signal, and what it said."""
    return self._host.ask(self.pid), self.output.read_text()

  def wait_until(self, condition) -> None:
    """Returns once it is true; fails where the process is stuck or has gone."""
    end = time.monotonic() + 120
    while not condition():
      stat = pathlib.Path(f'/proc/{self.pid}/stat').read_text()
      assert stat.rpartition(')')[2].split()[0] != 'Z', self.output.read_text()
      assert time.monotonic() < end, self.output.read_text()
      time.sleep(0.005)


class Host(contextlib.AbstractContextManager):
  """Starts them; a context manager.

  Args:
    folder: for what they say and compile.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._number = 0
    self._children = set()
    cache = {
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    self._host = subprocess.Popen(
      [sys.executable, '-c', HOST],
      cwd=ROOT,
      env=os.environ | cache | {'JAX_PLATFORMS': 'cpu'},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def ask(self, request) -> int:
    """Returns the host's answer; after a wait the process has ended."""
    self._host.stdin.write(json.dumps(request) + '\n')
    self._host.stdin.flush()
    answer = int(self._host.stdout.readline())
    self._children.discard(request if isinstance(request, int) else None)
    return answer

  def start(self, module: str, *arguments: str) -> Process:
    """Starts `python -m MODULE ARGUMENTS`."""
    self._number += 1
    output = self._folder / f'output_{self._number}'
    pid = self.ask([module, list(arguments), str(output)])
    self._children.add(pid)
    return Process(self, pid, output)

  def __exit__(self, *error) -> None:
    for pid in self._children:  # of a test that has failed
      os.kill(pid, signal.SIGKILL)
    self._host.stdin.close()
    self._host.stdout.close()
    self._host.wait()
