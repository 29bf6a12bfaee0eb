"""The processes of one run, which shares its work among all their devices.

Each of them makes the same calls in the same order. Only the first one touches
the run's folder, prints, and reads checkpoints; what it has read it sends to
the others. What they decide by a clock or a signal they decide together.
"""

import functools
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from experiments.interruption import UNFINISHED

# Of the environment. The supervisor of `gang` sets all of them.
ADDRESS = 'JAX_COORDINATOR_ADDRESS'  # host:port of the first process
COUNT = 'JAX_NUM_PROCESSES'
INDEX = 'JAX_PROCESS_ID'
SUPERVISED = 'ISJAX_SUPERVISED'  # standard input ends with the supervisor
_HEARTBEAT = 10  # seconds without a sign of life, until a process is dead


def join() -> None:
  """Meets the other processes, if the environment says that there are any.

  It does so by ADDRESS, COUNT and INDEX, or as one task of a SLURM job step.
  Call it before the first use of a device. From then on only the first process
  prints, and one that meets an error ends at once, without waiting for the
  others: with 75 where it has lost one of them, else with 1.
  """
  is_counted = int(os.environ.get(COUNT, 1)) > 1
  if not is_counted and not _is_slurm_task():
    return
  sys.excepthook = _leave_at_error
  meet = functools.partial(
    jax.distributed.initialize, heartbeat_timeout_seconds=_HEARTBEAT
  )
  if is_counted:
    count, index = int(os.environ[COUNT]), int(os.environ[INDEX])
    meet(os.environ[ADDRESS], count, index)
  else:
    meet()  # by the variables of SLURM
  _keep_quiet()
  if SUPERVISED in os.environ:
    threading.Thread(target=_stop_without_supervisor, daemon=True).start()


def _keep_quiet() -> None:
  """Leaves standard output to what the first process prints."""
  if is_first():
    sys.stdout = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # of libraries
  else:
    sys.stdout = sys.stderr = open(os.devnull, 'w')  # noqa: SIM115
    os.dup2(sys.stdout.fileno(), 1)


def _is_slurm_task() -> bool:
  """Whether srun has started this process as one of several."""
  is_step = 'SLURM_STEP_NODELIST' in os.environ  # a batch script is none
  return is_step and int(os.environ.get('SLURM_NTASKS', 1)) > 1


def _leave_at_error(kind, error, trace) -> None:
  """Ends the process: the others may wait for it, and it must not for them."""
  # JAX raises some of them as ValueError.
  if issubclass(kind, jax.errors.JaxRuntimeError) or 'Gloo' in str(error):
    line = ' '.join(str(error).split())[:200]
    print(f'lost another process of the run: {line}', file=sys.stderr)
    _leave_now(UNFINISHED)
  traceback.print_exception(kind, error, trace, file=sys.__stderr__)
  _leave_now(1)


def _leave_now(status: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def leave(status: int) -> None:
  """Ends the process: after an error at once, else when the others end too."""
  if status in (1, 2) and are_several():
    _leave_now(status)
  sys.exit(status)


def _stop_without_supervisor() -> None:
  """Tells this process to stop, once its supervisor has died."""
  while os.read(0, 1):
    pass
  os.kill(os.getpid(), signal.SIGTERM)


def are_several() -> bool:
  """Whether there are others; starts no backend where there are none."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this is the process that writes."""
  return not are_several() or jax.process_index() == 0


def any_of(*facts: bool) -> tuple[bool, ...]:
  """Returns of each fact whether it holds for any of the processes."""
  if not are_several():
    return facts
  of_all = multihost_utils.process_allgather(np.array(facts))
  return tuple(of_all.any(0).tolist())


def array_from_first(array: np.ndarray) -> np.ndarray:
  """Returns the first process's array, bit for bit.

  Args:
    array: of the same shape and dtype everywhere; only its numbers matter.
  """
  if not are_several() or not array.size:
    return array
  octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  # As a sum of integers, which is exact, signed zeros and NaN included.
  octets = multihost_utils.broadcast_one_to_all(octets).astype(np.uint8)
  return octets.view(array.dtype).reshape(array.shape)


def from_first(content: Any) -> Any:
  """Returns the first process's content: JSON, with tuples as lists."""
  if not are_several():
    return content
  text = json.dumps(content).encode() if is_first() else b''
  size = int(array_from_first(np.array([len(text)], np.int32))[0])
  octets = np.frombuffer(text or bytes(size), np.uint8)
  return json.loads(array_from_first(octets).tobytes())


def whole(array: jax.Array) -> jax.Array:
  """Returns an array of which every process has all: itself, or a copy."""
  if not are_several() or array.is_fully_replicated:
    return array
  everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
  return jax.jit(lambda x: x, out_shardings=everywhere)(array)
