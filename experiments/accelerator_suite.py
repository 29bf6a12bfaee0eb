"""What an accelerator is wanted for, in the order of its value.

Usage: python -m experiments.accelerator_suite [--folder=FOLDER] [--dry]
           [--minutes=M] [--part=NAME ...]

Each part is a program of its own with its own limit of time, at most nine
minutes; together they stay within --minutes (25). Finished parts are skipped
and runs within a part too, so that the same command goes on where it was.
Tables and figures lie in FOLDER/PART (default: runs/accelerator). --dry runs
every part at its smallest settings, on whatever there is. --part: only these.

Exits with 75 while parts are left, with 1 where one failed.
"""

from collections.abc import Callable, Sequence
import pathlib
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import flags

from experiments import artifacts
from experiments.settings import SettingsError
from experiments.sweep import UNFINISHED
from experiments.tables import markdown, show

GRACE = 60.0  # seconds to end the run that was begun last, and write the table


class Part(NamedTuple):
  """One of the programs.

  name:      of its folder.
  what:      it is for, in a few words.
  arguments: (dry) -> of `python -m`, without --folder.
  minutes:   after which it begins nothing more; None for what cannot tell.
  """

  name: str
  what: str
  arguments: Callable[[bool], list[str]]
  minutes: float | None = None


def sweep(path: str, *changes: str) -> Callable[[bool], list[str]]:
  """Returns the arguments of a config at full scale, or at its smallest."""

  def arguments(dry):
    command = ['experiments.sweep', f'{path}:smoke', '--workers=1']
    if dry:
      return command
    return ['experiments.sweep', f'{path}:paper', *changes]

  return arguments


def sampler(dry: bool) -> list[str]:
  """Returns the arguments of the benchmark of the sampler."""
  command = ['experiments.benchmarks.accelerator']
  return [*command, '--sizes=1e3', '--rounds=3'] if dry else command


def in_group(group: str, *cells: str) -> str:
  """Returns the change that restricts a sweep to these cells of a group."""
  names = ', '.join(f"'{group}: {cell}'" for cell in cells)
  return f'--config.sweep.cells=({names},)'


def long_tail(group: str) -> Callable[[bool], list[str]]:
  """Returns the arguments of ABSGD and its rivals on one long tail."""
  cells = ('CE', 'CB-DRW', 'LDAM-DRW', 'ABSGD 5', 'ABSGD 3', 'ABSGD 1')
  return sweep('configs/absgd_long_tail.py', in_group(group, *cells))


PARTS = (
  Part('sampler', 'draws and builds of the alias table', sampler),
  Part(
    'images',
    'WRN-28-2 on CIFAR-10 at equal cost, a fifth of the budget of the paper',
    sweep(
      'configs/kf_images.py',
      in_group(
        'CIFAR-10',
        'uniform',
        'uniform, cost-equal b',
        'bound, their gate',
        'loss, their gate',
      ),
      f'--config.budget={3 * 128 * 10_000}',
      '--config.sweep.num_seeds=2',
    ),
    minutes=8,
  ),
  Part(
    'long_tail_100',
    'ResNet-32 on the long tail of factor 100, stages of 160 and 40 epochs',
    long_tail('C10-LT 100'),
    minutes=8,
  ),
  Part(
    'long_tail_10',
    'the same of factor 10',
    long_tail('C10-LT 10'),
    minutes=8,
  ),
)


def run(
  parts: Sequence[Part], folder: pathlib.Path, *, dry: bool, minutes: float
) -> dict[str, str]:
  """Runs the parts that are not finished, one after the other.

  Args:
    parts: in the order of their value.
    folder: of all of them.
    dry: whether at their smallest settings.
    minutes: after which no part is begun; the last one has what is left.

  Returns:
    Of each part 'finished', 'left', or 'failed'.
  """
  end = time.monotonic() + 60 * minutes
  status = {}
  for part in parts:
    place = folder / part.name
    done = place / 'part.json'
    if done.exists():
      status[part.name] = 'finished'
      continue
    left = end - time.monotonic()
    if left <= GRACE:
      status[part.name] = 'left'
      continue
    start = time.monotonic()
    status[part.name] = _run_part(part, place, dry=dry, seconds=left)
    if status[part.name] == 'finished':
      facts = {
        'what': part.what,
        'dry': dry,
        'seconds': round(time.monotonic() - start, 1),
      }
      artifacts.write_json(done, facts)
  return status


def _run_part(
  part: Part, place: pathlib.Path, *, dry: bool, seconds: float
) -> str:
  """Runs one part for at most so many seconds."""
  command = [sys.executable, '-m', *part.arguments(dry), f'--folder={place}']
  if part.minutes is not None:
    seconds = min(60 * part.minutes, seconds - GRACE)
    command.append(f'--minutes={seconds / 60:.3f}')
  print(f'{part.name}: {part.what}', file=sys.stderr, flush=True)
  try:
    result = subprocess.run(command, timeout=seconds + GRACE, check=False)
  except subprocess.TimeoutExpired:
    return 'left'
  return {0: 'finished', UNFINISHED: 'left'}.get(result.returncode, 'failed')


def _parse(arguments: Sequence[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string('folder', None, '', flag_values=values)
  flags.DEFINE_bool('dry', False, '', flag_values=values)
  flags.DEFINE_float('minutes', 25.0, '', 0.0, flag_values=values)
  flags.DEFINE_multi_enum(
    'part', [], [part.name for part in PARTS], '', flag_values=values
  )
  try:
    rest = values(['isjax', *arguments])[1:]
  except flags.Error as error:
    raise SettingsError(' '.join(str(error).split())) from error
  if rest:
    raise SettingsError(f'cannot read the argument {rest[0]!r}.')
  return values


def _report(parts: Sequence[Part], folder: pathlib.Path, status) -> None:
  """Prints a line per part: what became of it, and where its table lies."""

  def facts(part: Part) -> dict[str, Any]:
    path = folder / part.name / 'part.json'
    return artifacts.read_json(path) if path.exists() else {}

  lines = [
    [
      part.name,
      part.what,
      status[part.name],
      str(facts(part).get('seconds', '-')),
      str(folder / part.name),
    ]
    for part in parts
  ]
  show(markdown(('part', 'what', 'status', 'seconds', 'folder'), lines))


def main(arguments: Sequence[str]) -> int:
  """Runs the suite from the command line; returns the exit status."""
  if set(arguments) & {'--help', '-h'}:
    print(__doc__)
    return 0
  try:
    options = _parse(arguments)
  except SettingsError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  name = 'runs/accelerator_dry' if options.dry else 'runs/accelerator'
  folder = pathlib.Path(options.folder or name)
  parts = [p for p in PARTS if not options.part or p.name in options.part]
  status = run(parts, folder, dry=options.dry, minutes=options.minutes)
  _report(parts, folder, status)
  if 'failed' in status.values():
    return 1
  return UNFINISHED if 'left' in status.values() else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
