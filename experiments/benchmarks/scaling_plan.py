"""What a training set over many hosts would take: arithmetic, no measurement.

Bytes on the wire are those that a compiled program names, counted as a ring of
devices sends them. Hosts follow from bytes per example.
"""

from collections.abc import Sequence
import math
import re
from typing import NamedTuple

MAX_LEAVES = 2**30  # items of a table or tree, that is, of a shard
MAX_INDEX = 2**31 - 1  # examples that an i32 tells apart
_WIDTHS = {'pred': 1, 's8': 1, 'u8': 1, 'f16': 2, 'bf16': 2, 's16': 2}
_WIDTHS |= {'u16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8}
_KINDS = (
  'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|'
  'collective-broadcast'
)


def crossings(program: str, devices: int) -> list[tuple[str, int]]:
  """Returns the kind and the bytes of all that crosses between devices.

  Args:
    program: text of a compiled program in which all devices take part in each
      collective, once per execution.
    devices: D.

  Returns:
    A pair per array: of the array as a whole, before it is scattered or after
    it is gathered.

  Raises:
    ValueError: for a collective that starts and ends in two places, which
      programs for a CPU do not have, and for an unknown dtype.
  """
  found = []
  pattern = rf'= (\S.*?) ({_KINDS})(-start)?\('
  for shapes, kind, starts in re.findall(pattern, program):
    if starts:
      raise ValueError(f'program must be for a CPU; got {kind}-start.')
    for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', shapes):
      if dtype not in _WIDTHS:
        raise ValueError(f'program has an array of unknown dtype {dtype}.')
      size = math.prod(int(n) for n in shape.split(',') if n)
      scattered = devices if kind == 'reduce-scatter' else 1
      found.append((kind, size * scattered * _WIDTHS[dtype]))
  return found


def around(pairs: Sequence[tuple[str, int]]) -> int:
  """Returns the bytes that each device of a large ring sends.

  An all-reduce of S bytes is a reduce-scatter and an all-gather, of S each. Of
  D devices each sends (D - 1) / D of it.
  """
  return sum(size * (1 + (kind == 'all-reduce')) for kind, size in pairs)


class Traffic(NamedTuple):
  """Bytes `around` that a step takes; of the gradient, and per draw.

  gradient: of its all-reduce, and no more.
  row:      for a row of the data, per draw.
  words:    for all else that is sent of a draw, per draw.
  """

  gradient: int
  row: float
  words: float


def traffic(
  pairs: Sequence[tuple[str, int]], gradient: int, batch_size: int
) -> Traffic:
  """Splits what crosses in a step by what it is for.

  Args:
    pairs: of `crossings`.
    gradient: its bytes; it is all-reduced.
    batch_size: b; rows alone are scattered to devices.
  """
  rows = around([pair for pair in pairs if pair[0] == 'reduce-scatter'])
  rest = around(pairs) - rows - 2 * gradient
  return Traffic(2 * gradient, rows / batch_size, rest / batch_size)


class Run(NamedTuple):
  """A training run over hosts, each of which is one device.

  host:       bytes of a host that are the sampler's.
  batch_size: b of all hosts.
  row:        bytes of an example.
  gradient:   bytes of the gradient.
  """

  host: float = 32e9
  batch_size: int = 4096
  row: int = 3076
  gradient: int = 40_000_000


class Kind(NamedTuple):
  """What one way to draw takes.

  held:    bytes per example while training.
  peak:    bytes per example at its largest, while a table or tree is made.
  seconds: per example, to make them.
  words:   `Traffic.words` of the global form; NaN where there is none.
  scalars: bytes that a step by quota sends besides the gradient.
  """

  held: float
  peak: float
  seconds: float
  words: float
  scalars: float


def plan(num_items: int, kind: Kind, run: Run) -> dict[str, float]:
  """Returns what a run over N examples takes, by arithmetic alone.

  Returns:
    hosts:    as many as hold the peak, with 2^30 examples or less on each.
    held, peak: bytes per host.
    seconds:  per host, to make the table or tree.
    sent_globally, sent_by_quota: bytes per host and step, for the draw: words
      and rows; by quota scalars.
    sent_gradient: the same, for the gradient.
    epoch:    steps in N draws, the mean age of a score that is drawn by.
  """
  hosts = max(
    math.ceil(num_items * kind.peak / run.host),
    math.ceil(num_items / MAX_LEAVES),
  )
  own, share = num_items / hosts, (hosts - 1) / hosts
  return {
    'hosts': hosts,
    'held': own * kind.held,
    'peak': own * kind.peak,
    'seconds': own * kind.seconds,
    'sent_globally': share * run.batch_size * (kind.words + run.row),
    'sent_by_quota': share * kind.scalars,
    'sent_gradient': share * 2 * run.gradient,
    'epoch': num_items / run.batch_size,
  }
