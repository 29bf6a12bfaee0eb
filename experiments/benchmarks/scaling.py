"""What draws, builds, steps and memory come to as N and the devices grow.

    python -m experiments.benchmarks.scaling [--core=N] [--rounds=N]
        [--largest=N]

Measured on one core of a CPU, each case in a process of its own
(scaling_cases.py):
1. N from 1e4 up on one device: builds, draws and updates of tables and trees, a
   training step, and what memory they take;
2. 1 to 8 devices that share the core, in one process or in two: the work of all
   of them, and the bytes that cross.
From that follows, by arithmetic (scaling_plan.py), what 1e9 to 1e11 examples
would take, and how old scores are then
(scaling_staleness.py). Writes scaling.md, scaling.json and
scaling.png to experiments/results/benchmarks.
"""

import argparse
from collections.abc import Sequence
import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import jax

from experiments import artifacts
from experiments.benchmarks import (
  scaling_figure,
  scaling_report,
  scaling_staleness,
  timing,
)
from experiments.benchmarks.scaling_cases import Found

SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
NEEDED = 75  # bytes per item, of all that a case holds at a time
PARTS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 4))  # processes, devices
SHARED_ITEMS = 2**20  # N where the devices grow
_MODULE = 'experiments.benchmarks.scaling_cases'


def shortage(num_items: int) -> str | None:
  """Returns why a case would not fit in memory, or None."""
  text = pathlib.Path('/proc/meminfo').read_text()
  free = 1024 * int(text.partition('MemAvailable:')[2].split()[0])
  if free >= NEEDED * num_items:
    return None
  needed = NEEDED * num_items / 1e9
  return f'it takes {needed:.1f} GB, and {free / 1e9:.1f} GB were free'


def measure(
  function: str, processes: int = 1, devices: int = 1, **arguments: Any
) -> Found:
  """Calls a function of scaling_cases.py in processes of its own.

  Args:
    function: its name.
    processes: how many, that make the call together.
    devices: of each.
    arguments: of the function.

  Returns:
    What it found; a list of what each found in `processes`, where it is asked
    of several.

  Raises:
    SystemExit: where one of them fails; with the last of what it said.
  """
  flag = f'--xla_force_host_platform_device_count={devices}'
  environment = os.environ | {'XLA_FLAGS': flag}
  if processes > 1:
    environment |= {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{_free_port()}',
      'JAX_NUM_PROCESSES': str(processes),
    }
  command = [sys.executable, '-m', _MODULE, function, json.dumps(arguments)]
  started = [
    subprocess.Popen(
      command,
      env=environment | ({'JAX_PROCESS_ID': str(i)} if processes > 1 else {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]
  said = [process.communicate() for process in started]
  for process, (_, errors) in zip(started, said, strict=True):
    if process.returncode:
      sys.exit(f'error: {function} of {arguments} failed:\n{errors[-2000:]}')
  found = [json.loads(out.splitlines()[-1]) for out, _ in said]
  return found[0] if processes == 1 else _together(found)


def _free_port() -> int:
  """A port that nobody listens to."""
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    return listener.getsockname()[1]


def _together(found: Sequence[Found]) -> Found:
  """What processes found that made the same calls: their work is added."""
  programs = {
    name: first
    | {
      key: sum(one['programs'][name][key] for one in found)
      for key in ('minimum', 'median')
    }
    for name, first in found[0]['programs'].items()
  }
  return found[0] | {'programs': programs}


def _least_share(sizes: Sequence[Found]) -> float:
  """Of a core, that a process with one device had."""
  return min(
    timed['share_of_core']
    for found in sizes
    for part in (found['table'], found['tree'], *found['steps'].values())
    for timed in part.values()
    if isinstance(timed, dict)
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and writes; the module's docstring says what."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.scaling',
    description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--core', type=int, help='to run on; the last one')
  parser.add_argument('--rounds', type=int, default=12, help='measured calls')
  parser.add_argument(
    '--largest',
    type=lambda text: int(float(text)),
    choices=SIZES,
    default=10**8,
    help='the largest N; 1e8 takes 7.5 GB',
  )
  options = parser.parse_args(arguments)
  timing.pin(options.core)
  jax.config.update('jax_platforms', 'cpu')
  content: dict[str, Any] = {'sizes': [], 'left_out': {}, 'parts': []}
  for size in SIZES:
    why = 'not asked for' if size > options.largest else shortage(size)
    if why:
      content['left_out'][f'{size:.0e}'] = why
      continue
    found = measure('with_items', num_items=size, rounds=options.rounds)
    content['sizes'].append(found)
  shared = min(SHARED_ITEMS, options.largest // 128 * 128)
  for processes, devices in PARTS:
    found = measure(
      'on_devices',
      processes,
      devices,
      num_items=shared,
      rounds=options.rounds,
    )
    content['parts'].append(found)
  content['simulated'] = scaling_staleness.simulated()
  content['plan'] = scaling_report.plans(content)
  facts = artifacts.provenance() | {
    'date': datetime.date.today().isoformat(),
    'least_share_of_core': _least_share(content['sizes']),
  }
  timing.write(
    'scaling',
    scaling_report.document(content),
    content,
    facts,
    clock='A time is processor time on one core, the least of all rounds (A) '
    'and their median (B) where a cell has two',
  )
  scaling_figure.write(content, timing.RESULTS / 'scaling.png')


if __name__ == '__main__':
  main()
