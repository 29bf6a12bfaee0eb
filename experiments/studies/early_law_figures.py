"""Figures of the study of frozen laws."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.studies.early_law_report import (
  UNIFORM,
  laws_of,
  networks,
  over_seeds,
  rows_of,
  title,
)

_STYLES = {
  UNIFORM: {'color': '0.15', 'ls': '--', 'marker': ''},
  'focal': {'color': '#d95f02', 'marker': 'o'},
  'focal, squared': {'color': '#a6241c', 'marker': 's'},
  'confusion': {'color': '#7570b3', 'marker': '^'},
  'std': {'color': '#1f78b4', 'marker': 'v'},
  'el2n': {'color': '#e6ab02', 'marker': 'D'},
  'forgetting': {'color': '#1b9e77', 'marker': 'P'},
}


def figures(results: list[dict[str, Any]]) -> dict[str, plt.Figure]:
  """Returns the classes under each law, wrong labels, and agreement."""
  made = {
    'balance': _balance_figure(results),
    'noise': _noise_figure(results),
  }
  if all(rows_of(result, 'models') for result in results):
    made['networks'] = _networks_figure(results)
  return made


def _style(law: str) -> dict[str, Any]:
  return {'lw': 1.5, 'ms': 4.5, 'label': law, 'mew': 0} | _STYLES[law]


def _tidy(axis) -> None:
  axis.grid(alpha=0.25)
  axis.spines[['top', 'right']].set_visible(False)


def _legend(figure: plt.Figure, axis, ncols: int, heading: str) -> None:
  figure.legend(
    *axis.get_legend_handles_labels(),
    loc='outside upper center',
    ncols=ncols,
    frameon=False,
    title=heading,
  )


def _balance_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """A row per data set: the mass of every class, then effective numbers."""
  factors = list(
    dict.fromkeys(row['factor'] for row in rows_of(results[0], 'balance'))
  )
  figure, axes = plt.subplots(
    len(results),
    len(factors) + 1,
    figsize=(3.1 * len(factors) + 3.1, 1.2 + 3 * len(results)),
    squeeze=False,
    layout='constrained',
  )
  for line, result in zip(axes, results, strict=True):
    rows = rows_of(result, 'balance')
    for axis, factor in zip(line, factors, strict=False):
      _draw_masses(axis, result, factor)
      axis.set_title(f'{title(result)}, factor {factor:g}', fontsize=10)
      axis.set_xlabel('class, largest first')
    line[0].set_ylabel('share of p, %')
    _draw_effective(line[-1], rows, factors, result['num_classes'])
    line[-1].set_title(f'{title(result)}, effective classes', fontsize=10)
  columns = len(laws_of(rows_of(results[0], 'balance')))
  _legend(figure, axes[0, 0], columns, 'p by (grey line: classes in balance)')
  return figure


def _draw_masses(axis, result: dict[str, Any], factor: float) -> None:
  rows = [r for r in rows_of(result, 'balance') if r['factor'] == factor]
  num_classes = result['num_classes']
  axis.axhline(100 / num_classes, color='0.6', lw=1, zorder=0)
  for law in laws_of(rows):
    masses = np.array(
      [
        [100 * row[f'class_{k}'] for k in range(num_classes)]
        for row in rows
        if row['law'] == law
      ]
    ).mean(0)
    shown = np.where(masses > 0, masses, np.nan)
    axis.plot(range(num_classes), shown, **_style(law))
  axis.set_yscale('log')
  axis.set_ylim(0.3, 60)
  axis.set_yticks([0.5, 1, 2, 5, 10, 20, 50], minor=False)
  axis.yaxis.set_major_formatter('{x:g}')
  axis.minorticks_off()
  axis.set_xticks(range(0, num_classes, max(1, num_classes // 10)))
  _tidy(axis)


def _draw_effective(axis, rows, factors, num_classes: int) -> None:
  axis.axhline(num_classes, color='0.6', lw=1, zorder=0)
  for i, law in enumerate(laws_of(rows)):
    found = over_seeds(rows, law, 'factor', 'effective_classes')
    values = [found[factor] for factor in factors]
    axis.errorbar(
      np.arange(len(factors)) + 0.03 * (i - 3),
      [v.mean() for v in values],
      [v.std(ddof=1) for v in values],
      **_style(law),
    )
  axis.set_xticks(range(len(factors)), [f'{factor:g}' for factor in factors])
  axis.set_xlabel('factor, rarest to largest class')
  _tidy(axis)


def _noise_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """The mass of wrong labels over their share."""
  figure, axes = plt.subplots(
    1,
    len(results),
    figsize=(1.5 + 4.2 * len(results), 5),
    squeeze=False,
    sharey=True,
    layout='constrained',
  )
  for axis, result in zip(axes[0], results, strict=True):
    rows = rows_of(result, 'noise')
    for law in laws_of(rows):
      found = over_seeds(rows, law, 'share', 'flipped_mass')
      axis.errorbar(
        [100 * share for share in found],
        [100 * masses.mean() for masses in found.values()],
        [100 * masses.std(ddof=1) for masses in found.values()],
        **_style(law),
      )
    axis.set_xticks([100 * share for share in found])
    axis.set_xlabel('labels that are wrong, %')
    axis.set_title(title(result), fontsize=11)
    _tidy(axis)
  axes[0, 0].set_ylabel('share of p on wrong labels, %')
  columns = -(-len(laws_of(rows)) // (1 if len(results) > 1 else 2))
  _legend(figure, axes[0, 0], columns, 'p by (± standard deviation)')
  return figure


def _networks_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """Correlations below the diagonal, their ceilings above it."""
  laws = laws_of(rows_of(results[0], 'models'))
  figure, axes = plt.subplots(
    len(results),
    len(laws),
    figsize=(1.6 + 2.7 * len(laws), 0.9 + 2.9 * len(results)),
    squeeze=False,
    layout='constrained',
  )
  for line, result in zip(axes, results, strict=True):
    names = networks(result)
    labels = [name.replace('_', ' ') for name in names]
    for axis, law in zip(line, laws, strict=True):
      image = _draw_matrix(axis, _matrix(result, law))
      axis.set_title(law, fontsize=11)
      axis.set_xticks(range(len(names)), labels, rotation=40, ha='right')
      axis.set_yticks(range(len(names)), labels if axis is line[0] else [])
    line[0].set_ylabel(title(result), fontsize=12)
  figure.colorbar(image, ax=axes, label="Spearman's correlation", pad=0.01)
  figure.suptitle(
    'How alike two networks rank the examples: below the diagonal; two seeds '
    'of one network: on it; the ceiling that these set: above it',
    fontsize=11,
  )
  return figure


def _matrix(result: dict[str, Any], law: str) -> np.ndarray:
  names = networks(result)
  matrix = np.full((len(names), len(names)), np.nan)
  for row in rows_of(result, 'models'):
    if row['law'] == law:
      i, j = names.index(row['first']), names.index(row['second'])
      matrix[i, j] = row['ceiling']
      matrix[j, i] = row['correlation']
  return matrix


def _draw_matrix(axis, matrix: np.ndarray):
  image = axis.imshow(matrix, vmin=-1, vmax=1, cmap='PuOr_r')
  for (i, j), value in np.ndenumerate(matrix):
    if np.isfinite(value):
      axis.text(
        j,
        i,
        f'{value:.2f}'.replace('0.', '.', 1),
        ha='center',
        va='center',
        fontsize=9,
        fontweight='bold' if i == j else 'normal',
        fontstyle='italic' if i < j else 'normal',
        color='white' if abs(value) > 0.7 else 'black',
      )
  axis.spines[:].set_visible(False)
  axis.tick_params(length=0, labelsize=9)
  return image
