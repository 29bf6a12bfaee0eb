"""The metrics of runs as TensorBoard's event files.

Usage: python -m experiments.tensorboard FOLDER

Writes one event file beside every metrics.jsonl below FOLDER. Needs the extra
`tensorboard`.
"""

import pathlib
import sys

from experiments import artifacts


def convert(folder: pathlib.Path) -> None:
  """Writes the event file of one run, a scalar for each number of a line."""
  import tensorboardX

  for former in folder.glob('events.out.tfevents.*'):
    former.unlink()
  with tensorboardX.SummaryWriter(str(folder)) as writer:
    for line in artifacts.read_metrics(folder):
      for name, value in line.items():
        if name != 'step' and isinstance(value, (int, float)):
          writer.add_scalar(name, value, line['step'])


def main(arguments: list[str]) -> int:
  """Converts all runs below a folder; returns the exit status."""
  if len(arguments) != 1:
    print(__doc__, file=sys.stderr)
    return 2
  try:
    import tensorboardX  # noqa: F401
  except ImportError:
    print(
      "error: this needs tensorboardX: pip install 'isjax[tensorboard]'.",
      file=sys.stderr,
    )
    return 2
  found = sorted(pathlib.Path(arguments[0]).rglob('metrics.jsonl'))
  if not found:
    print(f'error: no metrics.jsonl below {arguments[0]}.', file=sys.stderr)
    return 2
  for path in found:
    convert(path.parent)
  print(f'{len(found)} runs, for TensorBoard with --logdir {arguments[0]}')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
