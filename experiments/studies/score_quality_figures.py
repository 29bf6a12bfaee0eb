"""Figures of the study of scores."""

from typing import Any

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np

from experiments.studies import score_quality_estimates as estimates
from experiments.studies.score_quality_report import (
  BOUND,
  OPTIMAL,
  USUAL_COST,
  name,
  rows_of,
  scores_of,
  title,
)

_COLORS = {
  OPTIMAL: '0.15',
  'last_layer_gradient_norm': '#7570b3',
  BOUND: '#d95f02',
  'loss': '#1b9e77',
  'one_minus_label_probability': '#e7298a',
}
_FLOOR = 1e-4  # of M p in the scatter
_LARGE = 1e9  # a batch so large that B / b alone matters


def figures(results: list[dict[str, Any]]) -> dict[str, plt.Figure]:
  """Returns the variances, the scatter, and the map of where a pool pays."""
  return {
    'variance': _variance_figure(results),
    'scatter': _scatter_figure(results),
    'pool_map': _map_figure(results),
  }


def _variance_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """Over uniform draws above, over the optimum below, a column a problem."""
  figure, axes = plt.subplots(
    2,
    len(results),
    figsize=(1.5 + 2.4 * len(results), 6.4),
    height_ratios=(1.6, 1),
    squeeze=False,
    sharex='col',
    sharey='row',
    layout='constrained',
  )
  for (top, bottom), result in zip(axes.T, results, strict=True):
    least = np.array([r['relative_variance'] for r in rows_of(result, OPTIMAL)])
    for score in scores_of(result):
      _draw_variance(top, result, score, np.ones_like(least))
      _draw_variance(bottom, result, score, least)
    top.set_yscale('log')
    bottom.set_yscale('log')
    bottom.yaxis.set_major_formatter('{x:.3g}')
    bottom.yaxis.set_minor_formatter('{x:.3g}')
    top.axhline(1, color='0.6', lw=1, zorder=0)
    top.set_title(title(result), fontsize=10)
    bound = rows_of(result, BOUND)
    bottom.set_xticks(
      range(len(bound)),
      [f'{row["step"]}\n{row["loss"]:.2g}' for row in bound],
      fontsize=8,
    )
    for axis in (top, bottom):
      axis.grid(axis='y', alpha=0.25)
      axis.spines[['top', 'right']].set_visible(False)
  axes[0, 0].set_ylabel('variance, uniform = 1')
  axes[1, 0].set_ylabel('variance, optimum = 1')
  figure.supxlabel('training step, and below it the loss', fontsize=10)
  figure.legend(
    *axes[0, 0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=5 if len(results) > 3 else 2,
    frameon=False,
    title='p by (lines: exact; dots: drawn, ± 2 standard errors)',
  )
  return figure


def _draw_variance(
  axis, result: dict[str, Any], score: str, unit: np.ndarray
) -> None:
  """A line of exact variances and dots of drawn ones, side by side."""
  rows = rows_of(result, score)
  shift = 0.09 * (scores_of(result).index(score) - 2)
  style = {
    'color': _COLORS.get(score, '#66a61e'),
    'zorder': 3 if score == OPTIMAL else 2,
  }
  axis.plot(
    range(len(rows)),
    [row['relative_variance'] for row in rows] / unit,
    lw=1.5,
    ls='--' if score == OPTIMAL else '-',
    label=name(score),
    **style,
  )
  axis.errorbar(
    np.arange(len(rows)) + shift,
    [row['drawn'] for row in rows] / unit,
    [2 * row['drawn_error'] for row in rows] / unit,
    fmt='o',
    ms=3,
    lw=1,
    **style,
  )


def _scatter_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """M p of each score over M p of the norm, at an early and the last step."""
  scores = [score for score in scores_of(results[0]) if score != OPTIMAL]
  figure, axes = plt.subplots(
    len(scores),
    len(results),
    figsize=(1 + 2.2 * len(results), 1 + 2.1 * len(scores)),
    squeeze=False,
    sharex=True,
    sharey=True,
    layout='constrained',
  )
  for column, result in zip(axes.T, results, strict=True):
    column[0].set_title(title(result), fontsize=10)
    for axis, score in zip(column, scores, strict=True):
      _draw_scatter(axis, result, score)
  for axis, score in zip(axes[:, 0], scores, strict=True):
    axis.set_ylabel(name(score).replace(' (', '\n('), fontsize=9)
  figure.supxlabel('M p by the norm of the gradient', fontsize=10)
  figure.supylabel('M p by the score', fontsize=10)
  for color, label in (
    ('#92c5de', 'second step measured'),
    ('#b2182b', 'last step measured'),
  ):
    axes[0, 0].scatter([], [], color=color, s=18, label=label)
  figure.legend(
    *axes[0, 0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=2,
    frameon=False,
    title='r: correlation of the two laws, in the colour of its step',
  )
  return figure


def _draw_scatter(axis, result: dict[str, Any], score: str) -> None:
  rows = rows_of(result, score)
  stages = ((min(1, len(rows) - 1), '#92c5de'), (len(rows) - 1, '#b2182b'))
  for place, (stage, color) in enumerate(stages):
    points = result['points'][stage]
    x, y = (np.maximum(points[law], _FLOOR) for law in (OPTIMAL, score))
    axis.scatter(x, y, s=5, color=color, alpha=0.6, lw=0)
    axis.text(
      0.05,
      0.94 - 0.13 * place,
      f'r = {rows[stage].get("correlation", np.nan):.2f}',
      color=color if place else '#2166ac',
      fontsize=8,
      va='top',
      transform=axis.transAxes,
    )
  axis.plot([_FLOOR, 1e3], [_FLOOR, 1e3], color='0.5', lw=0.8, zorder=0)
  axis.set_xscale('log')
  axis.set_yscale('log')
  axis.set_xlim(_FLOOR / 2, 1e3)
  axis.set_ylim(_FLOOR / 2, 1e3)
  axis.tick_params(labelsize=8)


def _map_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """The map for each cost above, what was measured on it below."""
  figure = plt.figure(figsize=(15, 7.4), layout='constrained')
  above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
  norm = matplotlib.colors.LogNorm(1 / 4, 4)
  costs = results[0]['config']['backward_costs']
  axes = above.subplots(1, len(costs), sharey=True, squeeze=False)[0]
  for axis, cost in zip(axes, costs, strict=True):
    _draw_map(axis, cost, norm)
  axes[0].set_ylabel('ρ, variance by the score\nover uniform')
  above.suptitle(
    'Gain of a pool over a uniform batch of equal cost (thick: 1; dotted: the '
    'best pool)'
  )
  axes = below.subplots(1, len(results), squeeze=False)[0]
  for axis, result in zip(axes, results, strict=True):
    image = _draw_measured(axis, result, norm)
  axes[0].set_ylabel('training step, and below it ρ')
  below.suptitle(f'Measured with the logit-gradient norm, c = {USUAL_COST:g}')
  for part in (above, below):
    bar = part.colorbar(
      image,
      ax=part.axes,
      label='gain: above 1 a pool pays',
      ticks=[1 / 4, 1 / 2, 1, 2, 4],
      format='{x:g}',
      pad=0.01,
    )
    bar.ax.minorticks_off()
  return figure


def _draw_map(axis, cost: float, norm) -> None:
  """Gain over B / b and the relative variance, for large batches."""
  multiples = np.geomspace(1, 40, 64)
  rhos = np.geomspace(1e-3, 1, 64)
  gains = estimates.gain(rhos[:, None], _LARGE, _LARGE * multiples, cost)
  axis.pcolormesh(multiples, rhos, gains, norm=norm, cmap='PuOr_r')
  lines = axis.contour(
    multiples, rhos, gains, [0.5, 1, 2, 3], colors='k', linewidths=(1, 2, 1, 1)
  )
  axis.clabel(lines, fmt='%g', fontsize=8)
  best = estimates.best_multiple(rhos, cost)
  axis.plot(best, rhos, 'k:', lw=1.2)
  axis.set_xlim(1, 40)
  axis.set_xscale('log')
  axis.set_yscale('log')
  axis.set_xticks([1, 2, 5, 10, 20, 40], ['1', '2', '5', '10', '20', '40'])
  axis.minorticks_off()
  axis.set_xlabel('B / b')
  axis.set_title(f'backward / forward c = {cost:g}', fontsize=10)


def _draw_measured(axis, result: dict[str, Any], norm):
  """A cell per step and pool size."""
  config = result['config']
  b, multiples = config['batch_sizes'][0], config['pool_multiples']
  rows = rows_of(result, BOUND)
  gains = np.array(
    [
      [
        estimates.gain(row['relative_variance'], b, multiple * b, USUAL_COST)
        for multiple in multiples
      ]
      for row in rows
    ]
  )
  image = axis.imshow(gains, norm=norm, cmap='PuOr_r', aspect='auto')
  for (i, j), gain in np.ndenumerate(gains):
    axis.text(
      j,
      i,
      f'{gain:.2g}'.lstrip('0'),
      ha='center',
      va='center',
      fontsize=8,
      fontweight='bold' if gain > 1 else 'normal',
      color='white' if not 0.45 < gain < 2.2 else 'black',
    )
  axis.set_xticks(
    range(len(multiples)), [f'{m:g}' for m in multiples], fontsize=8
  )
  labels = [f'{row["step"]}\n{row["relative_variance"]:.2g}' for row in rows]
  axis.set_yticks(range(len(rows)), labels, fontsize=8)
  axis.set_xlabel('B / b')
  axis.set_title(title(result), fontsize=10)
  return image
