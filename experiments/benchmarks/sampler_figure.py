"""The figure of the sampler's benchmark: what depends on N, and how."""

from collections.abc import Callable, Sequence
import pathlib

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from experiments import artifacts
from experiments.benchmarks import rivals
from experiments.benchmarks.rivals import Rival
from experiments.benchmarks.sampler_report import NUM_DRAWS, Case

# One colour a package, safe for the colour-blind (Okabe and Ito, 2008); of its
# rivals the first has a full line and full markers.
_COLOURS = {
  'isjax': '#000000',
  'jax': '#0072B2',
  'numpy': '#E69F00',
  'torch': '#D55E00',
  'scipy': '#009E73',
  'vose': '#CC79A7',
  'flashbax': '#56B4E9',
}
_MARKERS = dict(zip(rivals.CONTENDERS, 'oo*psD^vXPd<>', strict=True))
# The label of the vertical axis, and (case, rival) -> y, or None.
_PANELS: dict[str, Callable[[Case, type[Rival]], float | None]] = {
  f'seconds for {NUM_DRAWS} draws': lambda case, kind: (
    case.draws[kind].median if kind in case.draws else None
  ),
  'seconds to build': lambda case, kind: (
    case.builds[kind].median if kind in case.builds else None
  ),
  'total variation, law of the draws to weights': lambda case, kind: (
    case.exactness[0][kind].total_variation
    if kind in case.exactness[0]
    else None
  ),
}


def figure(cases: Sequence[Case]) -> plt.Figure:
  """Draws the panels side by side, log-log, above one legend."""
  drawn, axes = plt.subplots(
    1, len(_PANELS), figsize=(13.8, 5.6), layout='constrained'
  )
  lines = {}
  for axis, (label, value) in zip(axes, _PANELS.items(), strict=True):
    for kind in rivals.CONTENDERS:
      points = [(case.num_items, value(case, kind)) for case in cases]
      points = [(n, y) for n, y in points if y is not None]
      if points:
        lines[kind.name] = _line(axis, kind, points)
    axis.set(xscale='log', yscale='log', xlabel='items N', ylabel=label)
    axis.grid(alpha=0.25)
  drawn.legend(
    lines.values(), lines, loc='outside lower center', ncols=4, fontsize=9
  )
  return drawn


def _line(axis, kind, points):
  package = [k for k in rivals.CONTENDERS if k.package == kind.package]
  (line,) = axis.plot(
    *zip(*points, strict=True),
    color=_COLOURS[kind.package],
    linestyle='-' if kind is package[0] else '--',
    fillstyle='full' if kind is package[0] else 'none',
    marker=_MARKERS[kind],
    markersize=7,
    linewidth=2.4 if kind is rivals.AliasTable else 1.4,
  )
  return line


def write(cases: Sequence[Case], path: pathlib.Path) -> None:
  """Writes the figure as PNG, and prints where it lies."""
  drawn = figure(cases)
  with artifacts.atomic_write(path, 'wb') as file:
    drawn.savefig(file, dpi=140)
  plt.close(drawn)
  print(f'figure: {path}')
