"""The figures of a sweep: what the runs did on the way to their results."""

import pathlib
from types import ModuleType

import matplotlib

matplotlib.use('Agg')
from cycler import cycler
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter
import numpy as np

from experiments import artifacts
from experiments.comparisons import (
  METRICS,
  Record,
  Row,
  best,
  groups,
  rows,
)

_GRID = 60  # points at which the runs of a row are averaged
# More curves than colours are told apart by their dashes.
_STYLES = cycler(linestyle=['-', '--', ':']) * plt.rcParams['axes.prop_cycle']


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


def _draw(
  axis, row: Row, x: str, y: str, *, logarithmic: bool, scale=1.0
) -> np.ndarray:
  """Draws a row's curve and its band; returns the curve."""
  grid, centre, low, high = averaged(row, x, y, logarithmic=logarithmic)
  (line,) = axis.plot(
    grid,
    scale * centre,
    label=f'{row.cell.rpartition(": ")[2]} (rate {row.rate:g})',
    linewidth=1.6,
  )
  axis.fill_between(
    grid, scale * low, scale * high, color=line.get_color(), alpha=0.12, lw=0
  )
  return scale * centre


def _panels(chosen: list[Row]):
  """A line of two panels per group: figure, [(group, members, left, right)]."""
  by_group = groups(chosen)
  figure, axes = plt.subplots(
    len(by_group),
    2,
    figsize=(13, 4.2 * len(by_group)),
    layout='constrained',
    squeeze=False,
  )
  for axis in axes.flat:
    axis.set_prop_cycle(_STYLES)
  lines = zip(by_group.items(), axes, strict=True)
  return figure, [(name, rows, *pair) for (name, rows), pair in lines]


def _finish(left, right, group: str, x: str) -> None:
  left.set_title(group, loc='left', fontsize=10)
  for axis in (left, right):
    axis.set_xlabel(x)
    axis.xaxis.set_major_formatter(EngFormatter(sep=''))
    axis.grid(alpha=0.25)
  # Beside the panels: it covers no curve, however many there are.
  right.legend(fontsize=8, loc='center left', bbox_to_anchor=(1.0, 0.5))


def loss_and_error(chosen: list[Row], name: str = 'test_error') -> plt.Figure:
  """Training loss and a test metric against cost, each cell at its best rate.

  Args:
    chosen: the rows.
    name: of METRICS, one that is evaluated on the way.
  """
  metric = METRICS[name]
  figure, panels = _panels(chosen)
  for group, members, left, right in panels:
    curves = []
    for row in members:
      _draw(left, row, 'cost', 'train_loss', logarithmic=True)
      curves.append(
        _draw(right, row, 'cost', name, logarithmic=False, scale=metric.factor)
      )
    left.set(yscale='log', ylabel='training loss (geometric mean)')
    least, end = np.min(curves), max(curve[-1] for curve in curves)
    right.set(
      ylabel=metric.label, ylim=(0.9 * least, min(1.6 * end, metric.factor))
    )
    _finish(left, right, group, 'cost, forward-equivalents')
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
  figure, panels = _panels(chosen)
  for group, members, left, right in panels:
    for row in members:
      _draw(left, row, 'step', 'tau', logarithmic=False)
      _draw(right, row, 'step', 'importance_sampled', logarithmic=False)
    left.set(ylabel='tau, moving average')
    right.set(ylabel='share of steps importance-sampled', ylim=(-0.05, 1.05))
    _finish(left, right, group, 'step')
  return figure


def write(
  records: list[Record], module: ModuleType, folder: pathlib.Path
) -> None:
  """Writes the figures of a sweep to its folder and prints where they lie."""
  chosen = list(best(rows(records)).values())
  evaluated = ('test_error', 'test_balanced_error')
  names = getattr(module, 'METRICS', evaluated)
  metric = next((n for n in names if n in evaluated), 'test_error')
  if not chosen:
    print('figures: none, no run finished')
    return
  names = []
  for name, figure in (
    ('loss_and_error', loss_and_error(chosen, metric)),
    ('gate', gate(chosen)),
  ):
    if figure is not None:
      path = folder / f'{name}.png'
      with artifacts.atomic_write(path, 'wb') as file:
        figure.savefig(file, dpi=140)
      plt.close(figure)
      names.append(str(path))
  print(f'figures: {", ".join(names)}')
