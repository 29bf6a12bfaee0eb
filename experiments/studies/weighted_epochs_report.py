"""Table and figure of the study of weighted epochs."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.tables import markdown

_GLOSSARY = """\
How to read: an epoch is as many draws as there are images, N = {size}. *iid*:
independent draws from the alias table. *systematic*: one systematic sample of N
in random order, in which an image of chance p is drawn N p times, rounded up or
down; under equal chances that is a shuffle. The classes lie mixed. *Never
seen*, *distinct*: images that an epoch does not show, and those that it does;
in closed form, and measured as the mean (standard deviation) of {num_epochs}
epochs. *Draws of the class*: how many of the N fall on it. *Most*: draws of the
image that is drawn most, the mean of all epochs (and the most in any)."""
_KINDS = {
  'uniform': 'no weights',
  'inverse_sqrt': 'weight 1 / sqrt(n)',
  'effective_number': 'weight (1 - β) / (1 - βⁿ), β = 0.9999',
  'inverse_frequency': 'weight 1 / n',
  'value_counts': 'a mistake: 1 / n, n sorted by size',
}
_COLORS = {'iid': '#d95f02', 'systematic': '#1b9e77'}
_HEADER = (
  'class',
  'images n',
  'method',
  'draws per image',
  'never seen %, exact',
  'measured',
  'distinct, exact',
  'measured',
  'draws of the class, exact',
  'measured',
  'most',
)


def sections(results: list[dict[str, Any]]) -> list[str]:
  """Returns the glossary, and for each kind its table in words."""
  config = results[0]['config']
  parts = [_GLOSSARY.format(size=sum(config['class_counts']), **config)]
  for result in results:
    kind = result['config']['kind']
    parts += [f'## {kind}: {_KINDS[kind]}', _table(result), _verdict(result)]
  return parts


def _table(result: dict[str, Any]) -> str:
  by_class = zip(*(_rows(result, name) for name in _COLORS), strict=True)
  return markdown(_HEADER, [_cells(row) for rows in by_class for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
  return [
    row['class'],
    str(row['images']),
    row['draws_by'],
    f'{row["exact_draws_per_image"]:.2f}',
    f'{100 * row["exact_never_seen"]:.1f}',
    f'{100 * row["never_seen"]:.1f} ({100 * row["never_seen_sd"]:.1f})',
    f'{row["exact_distinct"]:.0f}',
    f'{row["distinct"]:.0f} ({row["distinct_sd"]:.0f})',
    _exact_draws(row),
    f'{row["draws"]:.0f} ({row["draws_sd"]:.0f})',
    f'{row["most_draws_of_an_image"]:.1f} '
    f'({row["most_draws_of_an_image_ever"]})',
  ]


def _exact_draws(row: dict[str, Any]) -> str:
  if row['exact_draws_sd'] is None:
    return f'{row["exact_draws"]:.0f}'
  return f'{row["exact_draws"]:.0f} ({row["exact_draws_sd"]:.0f})'


def _rows(result: dict[str, Any], draws_by: str) -> list[dict[str, Any]]:
  return [row for row in result['rows'] if row['draws_by'] == draws_by]


def _verdict(result: dict[str, Any]) -> str:
  """What a reader should take from the table."""
  iid, systematic = (_rows(result, method) for method in ('iid', 'systematic'))
  size = iid[-1]['images']
  shares = ', '.join(
    f'{row["exact_draws"] / size:.1%} ({row["images"] / size:.1%})'
    for row in iid[:-1]
  )
  return (
    f'An epoch of independent draws never shows {iid[-1]["never_seen"]:.1%} of '
    f'the images, a systematic one {systematic[-1]["never_seen"]:.1%}. Shares '
    f'of the draws (of the images), by class: {shares}.'
  )


def figures(results: list[dict[str, Any]]) -> dict[str, plt.Figure]:
  """Returns one figure: what an epoch shows, one column per kind."""
  figure, axes = plt.subplots(
    2,
    len(results),
    figsize=(1.2 + 2.9 * len(results), 6.8),
    sharey='row',
    squeeze=False,
    layout='constrained',
  )
  for (top, bottom), result in zip(axes.T, results, strict=True):
    _draw_draws(top, result)
    _draw_never_seen(bottom, result)
  axes[0, 0].set_ylabel('draws in one epoch (×: draws per image)')
  axes[1, 0].set_ylabel('images never seen in one epoch, %')
  figure.legend(
    *axes[0, 0].get_legend_handles_labels(),
    loc='outside upper left',
    ncols=3,
    frameon=False,
  )
  return {'epochs': figure}


def _draw_draws(axis, result: dict[str, Any]) -> None:
  """Draws of each class, and above them what that makes per image."""
  kind = result['config']['kind']
  _bars(axis, result, 'draws', 1.0)
  rows = _rows(result, 'iid')[:-1]
  axis.plot(
    [row['images'] for row in rows],
    'kD',
    ms=5,
    label='images of the class (= draws of a shuffled epoch)',
  )
  for place, row in enumerate(rows):
    axis.text(
      place,
      max(row['draws'], row['images']),
      f'× {row["exact_draws_per_image"]:.2f}\n',
      ha='center',
      fontsize=8,
    )
  axis.set_title(f'{kind}\n{_KINDS[kind]}', fontsize=9)
  axis.margins(y=0.12)
  _label_classes(axis, rows)


def _draw_never_seen(axis, result: dict[str, Any]) -> None:
  _bars(axis, result, 'never_seen', 100.0)
  for bars in axis.containers[1::2]:  # each after its error bars
    axis.bar_label(bars, fmt='%.0f', padding=2, fontsize=7)
  axis.set_ylim(0, 100)
  _label_classes(axis, _rows(result, 'iid'))


def _bars(axis, result: dict[str, Any], value: str, scale: float) -> None:
  """Bars of both methods, with the standard deviation over epochs."""
  num_bars = len(result['config']['class_counts']) + (value == 'never_seen')
  for offset, (method, color) in zip((-0.2, 0.2), _COLORS.items(), strict=True):
    rows = _rows(result, method)[:num_bars]
    axis.bar(
      np.arange(num_bars) + offset,
      [scale * row[value] for row in rows],
      0.4,
      yerr=[scale * row[f'{value}_sd'] for row in rows],
      error_kw={'lw': 1},
      color=color,
      label=f'{method} draws (± sd over epochs)',
    )


def _label_classes(axis, rows: list[dict[str, Any]]) -> None:
  axis.set_xticks(
    range(len(rows)), [f'{row["class"]}\n{row["images"]}' for row in rows]
  )
  axis.set_xlabel('class, and its images', fontsize=8)
  axis.tick_params(labelsize=8)
  axis.spines[['top', 'right']].set_visible(False)
