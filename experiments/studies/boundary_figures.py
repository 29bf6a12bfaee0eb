"""Figures of the study of a boundary."""

from typing import Any

import matplotlib.colors
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

from experiments.studies.boundary_report import (
  BOUND,
  OPTIMAL,
  best_rate,
  mapped,
  name,
  values,
)

_OCTAVES, _LEVELS = 8, 16  # of a map: from 2^-8 on, in steps of 2^(1/16)
_SCORES = (OPTIMAL, BOUND, 'loss')
_COLORS = {
  'uniform': '0.15',
  'uniform_large_batch': '0.6',
  BOUND: '#d95f02',
  'loss': '#1b9e77',
}
_RANGE = 2**-5, 2**4  # of the densities shown


def encode(density: np.ndarray) -> str:
  """Returns numbers in [2^-8, 2^7.9] to within 3 %, two hex digits each."""
  with np.errstate(divide='ignore'):
    levels = _LEVELS * (np.log2(density) + _OCTAVES)
  return np.clip(np.round(levels), 0, 255).astype(np.uint8).tobytes().hex()


def decode(text: str) -> np.ndarray:
  """Returns the numbers of a text of `encode`, f64[n]; smaller ones grew."""
  levels = np.frombuffer(bytes.fromhex(text), np.uint8)
  return 2.0 ** (levels / _LEVELS - _OCTAVES)


def figures(results: list[dict[str, Any]]) -> dict[str, plt.Figure]:
  """Returns the maps of the laws, and the risks over the cost."""
  return {'maps': _maps_figure(mapped(results)), 'risk': _risk_figure(results)}


def _maps_figure(result: dict[str, Any]) -> plt.Figure:
  """A row per score, a column per stage; last, by the true chances."""
  config = result['config']
  stages = config['stages']
  maps = result['maps'][str(best_rate(result))]
  figure, axes = plt.subplots(
    len(_SCORES),
    len(stages) + 1,
    figsize=(1.6 + 2.45 * (len(stages) + 1), 8.2),
    sharex=True,
    sharey=True,
    layout='constrained',
  )
  norm = matplotlib.colors.LogNorm(*_RANGE, clip=True)
  for line, score in zip(axes, _SCORES, strict=True):
    for axis, at in zip(line, maps, strict=False):
      image = axis.imshow(_square(at[score]), norm=norm, **_IMAGE)
    if score in result['known_maps']:
      known = _square(result['known_maps'][score])
      line[-1].imshow(known, norm=norm, **_IMAGE)
    line[0].set_ylabel(name(score), fontsize=11)
  chances = _square(result['chance_map'])
  axes[0, -1].imshow(chances, **_IMAGE | {'cmap': 'PuOr_r'}, vmin=0, vmax=1)
  for axis in axes.flat:
    _draw_boundary(axis)
  for axis, stage in zip(axes[0], stages, strict=False):
    axis.set_title(_stage(result, stage), fontsize=10)
  axes[0, -1].set_title('chance of class 1', fontsize=10)
  axes[1, -1].set_title('chances known: the bound', fontsize=10)
  axes[2, -1].set_title('chances known: the loss', fontsize=10)
  figure.colorbar(
    image,
    ax=axes,
    label='density of the draws, uniform draws = 1',
    ticks=[2.0**k for k in range(-5, 5)],
    format=lambda value, _: f'{value:g}' if value >= 1 else f'1/{1 / value:g}',
    pad=0.01,
    aspect=40,
  ).ax.minorticks_off()
  return figure


_IMAGE = {
  'origin': 'lower',
  'extent': (0, 1, 0, 1),
  'cmap': 'inferno',
  'interpolation': 'nearest',
}


def _square(text: str) -> np.ndarray:
  numbers = decode(text)
  side = round(len(numbers) ** 0.5)
  return numbers.reshape(side, side)


def _draw_boundary(axis) -> None:
  x = np.linspace(0, 1, 2000)
  y = np.sin(4 * (x + 0.5) ** 5) / 3 + 0.5
  axis.plot(x, y, color='#5ec8f2', lw=0.8)
  axis.set_xticks([0, 0.5, 1], ['0', '.5', '1'])
  axis.set_yticks([0, 0.5, 1], ['0', '.5', '1'])


def _stage(result: dict[str, Any], stage: float) -> str:
  rate = best_rate(result)
  steps = values(result, 'steps', rate, stage)[0]
  excess = values(result, 'excess_error', rate, stage)[0]
  return f'step {steps:.0f} ({stage:.0%})\nexcess error {excess:.1%}'


def _risk_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """Excess loss and error over the cost, each at its best rate."""
  figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout='constrained')
  for axis, field, label in (
    (axes[0], 'excess_loss', 'loss beyond the least possible'),
    (axes[1], 'excess_error', 'error beyond the least possible'),
  ):
    for i, result in enumerate(results):
      shift = 1.05 ** (i - (len(results) - 1) / 2)
      _draw_risk(axis, result, field, shift)
    axis.set_xlabel('share of the budget, %')
    axis.set_ylabel(label)
    axis.set_xscale('log')
    axis.set_yscale('log')
    axis.set_xticks(*_percent(results[0]['config']['stages']))
    axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter('{x:g}')
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.spines[['top', 'right']].set_visible(False)
  figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=len(results),
    frameon=False,
    title='drawn by (each seed; line: mean)',
  )
  return figure


def _percent(stages: list[float]) -> tuple[list[float], list[str]]:
  return stages, [f'{100 * stage:g}' for stage in stages]


def _draw_risk(axis, result: dict[str, Any], field: str, shift: float) -> None:
  """A line of means; the seeds' dots beside those of other results."""
  stages = np.array(result['config']['stages'])
  rate = best_rate(result)
  by_stage = np.array([values(result, field, rate, at) for at in stages])
  sampling = result['config']['sampling']
  color = _COLORS.get(sampling, '#7570b3')
  axis.plot(
    shift * stages,
    by_stage.mean(1),
    color=color,
    lw=1.8,
    label=name(sampling),
  )
  axis.plot(shift * stages, by_stage, 'o', color=color, ms=2.5, alpha=0.5)
