"""The figures of a sweep: what the runs did on the way to their results."""

import pathlib
from types import ModuleType

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from experiments import artifacts
from experiments.comparisons import Record, Row, best, rows

_GRID = 60  # points at which the runs of a row are averaged


def _curve(record: Record, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
  """The points of a run's metrics at which y was measured."""
  points = [(m[x], m[y]) for m in record.metrics if y in m]
  return tuple(np.array(points, np.float64).reshape(-1, 2).T)


def averaged(
  row: Row, x: str, y: str, *, logarithmic: bool
) -> tuple[np.ndarray, ...]:
  """Returns (x, centre, low, high) of the named metrics over a row's seeds.

  Curves are interpolated on a common grid, which ends where the shortest run
  does; centre and band are mean and mean +- one standard deviation, of the
  logarithm where `logarithmic`.
  """
  curves = [_curve(record, x, y) for record in row.records.values()]
  grid = np.linspace(
    max(c[0][0] for c in curves), min(c[0][-1] for c in curves), _GRID
  )
  tiny = np.finfo(np.float32).tiny
  values = np.array([np.interp(grid, *c) for c in curves])
  if logarithmic:
    values = np.log(np.maximum(values, tiny))
  centre, spread = values.mean(0), values.std(0)
  bands = np.stack([centre, centre - spread, centre + spread])
  return (grid, *(np.exp(bands) if logarithmic else bands))


def _draw(axis, row: Row, x: str, y: str, *, logarithmic: bool, scale=1.0):
  grid, centre, low, high = averaged(row, x, y, logarithmic=logarithmic)
  (line,) = axis.plot(
    grid, scale * centre, label=f'{row.cell} (rate {row.rate:g})', linewidth=1.6
  )
  axis.fill_between(
    grid, scale * low, scale * high, color=line.get_color(), alpha=0.12, lw=0
  )


def loss_and_error(chosen: list[Row]) -> plt.Figure:
  """Training loss and test error against cost, each cell at its best rate."""
  figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout='constrained')
  for row in chosen:
    _draw(axes[0], row, 'cost', 'train_loss', logarithmic=True)
    _draw(axes[1], row, 'cost', 'test_error', logarithmic=False, scale=100.0)
  axes[0].set(yscale='log', ylabel='training loss (geometric mean)')
  axes[1].set(ylabel='test error, %')
  final = max(100 * row.values('test_error').mean() for row in chosen)
  axes[1].set_ylim(0, 4 * final)
  for axis in axes:
    axis.set_xlabel('cost, forward-equivalents')
    axis.grid(alpha=0.25)
  axes[0].legend(fontsize=8)
  return figure


def gate(chosen: list[Row]) -> plt.Figure | None:
  """Tau and the share of importance-sampled steps; None without such rows."""
  chosen = [
    row
    for row in chosen
    if any('tau' in m for r in row.records.values() for m in r.metrics)
  ]
  if not chosen:
    return None
  figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout='constrained')
  for row in chosen:
    _draw(axes[0], row, 'step', 'tau', logarithmic=False)
    _draw(axes[1], row, 'step', 'importance_sampled', logarithmic=False)
  axes[0].set(ylabel='tau, moving average')
  axes[1].set(ylabel='share of steps importance-sampled', ylim=(-0.05, 1.05))
  for axis in axes:
    axis.set_xlabel('step')
    axis.grid(alpha=0.25)
  axes[0].legend(fontsize=8)
  return figure


def write(
  records: list[Record], module: ModuleType, folder: pathlib.Path
) -> None:
  """Writes the figures of a sweep to its folder and prints where they lie."""
  del module
  chosen = list(best(rows(records)).values())
  if not chosen:
    print('figures: none, no run finished')
    return
  names = []
  for name, figure in (
    ('loss_and_error', loss_and_error(chosen)),
    ('gate', gate(chosen)),
  ):
    if figure is not None:
      path = folder / f'{name}.png'
      with artifacts.atomic_write(path, 'wb') as file:
        figure.savefig(file, dpi=140)
      plt.close(figure)
      names.append(str(path))
  print(f'figures: {", ".join(names)}')
