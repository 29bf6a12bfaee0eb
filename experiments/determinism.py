"""--deterministic: the same command twice comes to the same numbers on a GPU.

On CPU it does so anyway. A GPU adds in whatever order its threads arrive, and
XLA chooses kernels by how fast they prove; XLA's own flag forbids both.
"""

from collections.abc import Sequence
import os

OPTION = '--deterministic'
# It has XLA neither measure kernels nor use any that add in no fixed order.
FLAG = '--xla_gpu_deterministic_ops=true'


def take(arguments: Sequence[str]) -> list[str]:
  """Sets XLA's flag where the option is given; returns the other arguments.

  XLA reads its flags when the backend starts: call this before, in the process
  whose workers are to inherit them.
  """
  flags = os.environ.get('XLA_FLAGS', '').split()
  if OPTION in arguments and FLAG not in flags:
    os.environ['XLA_FLAGS'] = ' '.join([*flags, FLAG])
  return [argument for argument in arguments if argument != OPTION]
