"""How the benchmarks measure, and how they write down what they found.

A machine drifts by more than the differences that count. So a benchmark runs
on one core, contenders take turns round by round after a warm-up, each turn
starts with a call that is not timed, and only ratios within one process are
compared. Seconds are of processor time: on one core they are those of the
clock, less the turns of other processes.
"""

from collections.abc import Callable, Sequence
import datetime
import importlib.metadata
import importlib.util
import math
import operator
import os
import pathlib
import statistics
import sys
import time
from typing import Any, NamedTuple

from experiments import artifacts
from experiments.tables import markdown

RESULTS = pathlib.Path(__file__).parents[1] / 'results' / 'benchmarks'
_RELATIONS = {'<=': operator.le, '>=': operator.ge}


def require(package: str) -> None:
  """Ends the program with status 1 where a rival is not installed."""
  if importlib.util.find_spec(package) is None:
    sys.exit(
      f'error: this benchmark compares with {package}, which is not installed: '
      "pip install 'isjax[bench]'. To keep that small, first install the build "
      f'of {package} for CPU alone, as its own instructions say.'
    )


def pin(core: int | None) -> None:
  """Binds this process, and every thread it will start, to one core.

  Libraries size their pools of threads when they load, so that the bound
  process starts the program anew; this function then returns.

  Args:
    core: its number; None: the last of those that this process may use, for
      the first one tends to serve the interrupts.
  """
  if not hasattr(os, 'sched_setaffinity'):
    sys.exit('error: only Linux can bind a process to a core.')
  cores = os.sched_getaffinity(0)
  core = max(cores) if core is None else core
  if cores == {core}:
    return
  try:
    os.sched_setaffinity(0, {core})
  except OSError:
    sys.exit(f'error: core {core} is not one of {sorted(cores)}.')
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Seconds(NamedTuple):
  """processor, elapsed: of one reading, or between two."""

  processor: float
  elapsed: float


def clock() -> Seconds:
  """Reads the processor time of this process, and the time."""
  return Seconds(time.process_time(), time.perf_counter())


class Timing(NamedTuple):
  """samples: the seconds of a step, one sample per round."""

  samples: tuple[Seconds, ...]

  @property
  def minimum(self) -> float:
    """Processor seconds of the fastest round: what disturbs only adds."""
    return min(sample.processor for sample in self.samples)

  @property
  def median(self) -> float:
    """Processor seconds of the middle round."""
    return statistics.median(sample.processor for sample in self.samples)

  @property
  def share(self) -> float:
    """Processor time per elapsed time: 1 on a core that nobody else used."""
    processor, elapsed = map(sum, zip(*self.samples, strict=True))
    return processor / elapsed


class Contender(NamedTuple):
  """What is timed.

  run:   () -> anything, done when it returns: it waits for the device.
  steps: how many steps a call makes, to divide by.
  """

  run: Callable[[], Any]
  steps: int = 1


def interleave(
  contenders: dict[str, Contender],
  *,
  rounds: int,
  warmups: int = 2,
  seconds: float = math.inf,
  clock: Callable[[], Seconds] = clock,
) -> dict[str, Timing]:
  """Times contenders in turns: A B C A B C ..., so that drift hits them alike.

  A turn is two calls, of which the second is timed: the first pays for the
  caches that the contender before has filled with its own data.

  Args:
    contenders: by name.
    rounds: measured calls of each.
    warmups: rounds before them, at least one, which compile and fill the
      caches.
    seconds: that the turns of one contender may take in all, judged by its
      last warm-up. A slower one sits out rounds, at even distances, but takes
      part in three.
    clock: reads the seconds.

  Returns:
    The timing of a step of each contender.
  """
  samples: dict[str, list[Seconds]] = {name: [] for name in contenders}
  turns = {}
  for _ in range(warmups):
    for name, contender in contenders.items():
      start = clock()
      contender.run()
      turn = 2 * (clock().elapsed - start.elapsed)
      turns[name] = _turns(turn, rounds, seconds)
  for i in range(rounds):
    for name, (run, steps) in contenders.items():
      if turns[name] * (i + 1) // rounds == turns[name] * i // rounds:
        continue
      run()
      start = clock()
      run()
      end = clock()
      samples[name].append(
        Seconds(*((e - s) / steps for s, e in zip(start, end, strict=True)))
      )
  return {name: Timing(tuple(values)) for name, values in samples.items()}


def _turns(turn: float, rounds: int, seconds: float) -> int:
  """How many turns of so many seconds fit; at least three if there are."""
  if turn * rounds <= seconds:
    return rounds
  return min(rounds, max(3, int(seconds / turn)))


class Target(NamedTuple):
  """relation, bound: '<=' or '>=', and what a ratio is held against."""

  relation: str
  bound: float

  def __str__(self) -> str:
    return f'{self.relation} {self.bound:g}'

  def verdict(self, ratios: Sequence[float]) -> str:
    """'yes' or 'no' where all ratios agree, else 'undecided'."""
    met = {_RELATIONS[self.relation](ratio, self.bound) for ratio in ratios}
    return 'undecided' if len(met) > 1 else 'yes' if met.pop() else 'no'


class Row(NamedTuple):
  """One comparison: the time of `subject` over that of `reference`.

  what:   names both.
  target: what was asked of the ratio; None where it is for information.
  model:  what the ratio should be, and by which reckoning.
  """

  what: str
  subject: Timing
  reference: Timing
  target: Target | None
  model: str

  @property
  def ratios(self) -> tuple[float, float]:
    """Of the minima, and of the medians."""
    return (
      self.subject.minimum / self.reference.minimum,
      self.subject.median / self.reference.median,
    )

  @property
  def verdict(self) -> str:
    """Whether the target is met: 'yes', 'no', 'undecided', or '-'."""
    return '-' if self.target is None else self.target.verdict(self.ratios)

  def cells(self) -> list[str]:
    """The row of the Markdown table."""
    pair = self.subject, self.reference
    of_minima, of_medians = self.ratios
    return [
      self.what,
      ' / '.join(f'{1e6 * timing.minimum:.1f}' for timing in pair),
      ' / '.join(f'{1e6 * timing.median:.1f}' for timing in pair),
      f'{of_minima:.3f}',
      f'{of_medians:.3f}',
      '-' if self.target is None else str(self.target),
      self.verdict,
      self.model,
    ]

  def record(self) -> dict[str, Any]:
    """The row of the JSON document; seconds per step."""
    return {
      'what': self.what,
      'subject': _record(self.subject),
      'reference': _record(self.reference),
      'ratio_of_minima': self.ratios[0],
      'ratio_of_medians': self.ratios[1],
      'target': None if self.target is None else str(self.target),
      'met': self.verdict,
      'model': self.model,
    }


def _record(timing: Timing) -> dict[str, Any]:
  return {
    'minimum': timing.minimum,
    'median': timing.median,
    'share_of_core': timing.share,
    'rounds': len(timing.samples),
  }


def table(rows: Sequence[Row]) -> str:
  """Returns the comparisons as a Markdown table."""
  header = (
    'A / B',
    'us a step, min',
    'median',
    'ratio of minima',
    'of medians',
    'target',
    'met',
    'model of the cost',
  )
  return markdown(header, [row.cells() for row in rows])


def provenance(rows: Sequence[Row], peers: Sequence[str]) -> dict[str, Any]:
  """Returns date, commit, device, versions and how undisturbed it was.

  Args:
    rows: all comparisons.
    peers: packages compared with.
  """
  timings = [t for row in rows for t in (row.subject, row.reference)]
  facts = artifacts.provenance()
  versions = {peer: importlib.metadata.version(peer) for peer in peers}
  return {
    'date': datetime.date.today().isoformat(),
    **facts,
    'versions': facts['versions'] | versions,
    'least_share_of_core': min(timing.share for timing in timings),
  }


def write(
  name: str,
  text: str,
  content: dict[str, Any],
  facts: dict[str, Any],
  *,
  clock: str = 'A time is processor time on one core',
  folder: pathlib.Path | None = None,
) -> None:
  """Prints a result and writes it, .md and .json.

  Args:
    name: of both files.
    text: Markdown.
    content: the same for programs.
    facts: of `provenance`, which end both.
    clock: what its seconds are of, the start of a sentence.
    folder: for both files; results/benchmarks if None.
  """
  versions = ', '.join(f'{k} {v}' for k, v in facts['versions'].items())
  folder = RESULTS if folder is None else folder
  share = ''
  if 'least_share_of_core' in facts:
    least = facts['least_share_of_core']
    share = f'The process had at least {least:.0%} of its core. '
  text += (
    f'\n\n{clock}; the two of a cell are A and B. {share}Date: '
    f'{facts["date"]}. Commit: {facts["commit"]}. Device: {facts["device"]}. '
    f'Python {facts["python"]}; {versions}.\n'
  )
  with artifacts.atomic_write(folder / f'{name}.md') as file:
    file.write(text)
  artifacts.write_json(folder / f'{name}.json', content | facts)
  print(text)
