"""Table and figure of the study of gradient variance."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.studies import variances
from experiments.tables import markdown

_LARGE_WEIGHT = 100.0  # one such draw rules its batch
_BEYOND_INTEREST = 1e6

_GLOSSARY = """\
How to read: a batch of b records is drawn independently from the law p, each
gradient is multiplied by w = (r/R) / p, and their mean estimates the gradient
of the objective, at some steps of the training of one network (seed {seed}) on
draws by r. *Relative variance*: the trace of the estimate's covariance over
that under uniform draws, which is the same for every b; 0.1 means that uniform
draws need ten times the batch for the same precision. All is exact but the
last row: that estimate has no closed form, and its figures are mean square
errors, bias included, over {num_batches} sampled batches of {batch_size}
(± standard error; under p = r/R all weights are alike, and dividing by their
sum would change nothing). *Equal uniform batch*: how many uniform draws are as
precise as {batch_size} of this law. *Largest weight*: the largest w that can be
drawn. *Effective sample size*: 1 / E[w^2] in percent of the draws. ‖g‖: norm
of a record's gradient, which takes a backward pass per record; the
logit-gradient norm takes a forward pass."""


def sections(results: list[dict[str, Any]]) -> list[str]:
  """Returns the glossary, and for each set of records its table in words."""
  parts = [_GLOSSARY.format(**results[0]['config'])]
  for result in results:
    parts += [f'## {result["config"]["data"]}', _origin(result)]
    parts += [_table(result), _verdict(result)]
  return parts


def _origin(result: dict[str, Any]) -> str:
  return (
    f'{result["origin"]} N = {result["num_records"]} records of total weight R '
    f'= {result["sum_of_weights"]:.0f}; the heaviest 2 % of them hold '
    f'{result["heaviest_share"]:.0%} of it.'
  )


def _steps(result: dict[str, Any]) -> list[int]:
  return list(dict.fromkeys(row['step'] for row in result['rows']))


def _by_law(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
  """The rows of each law, in the order of the steps."""
  laws: dict[str, list[dict[str, Any]]] = {}
  for row in result['rows']:
    laws.setdefault(row['law'], []).append(row)
  return laws


def _table(result: dict[str, Any]) -> str:
  steps = _steps(result)
  header = [
    'p proportional to',
    *(f'relative variance, step {step}' for step in steps),
    f'equal uniform batch, step {steps[-1]}',
    f'largest weight, step {steps[-1]}',
    f'effective sample size, step {steps[-1]}',
  ]
  lines = [[law, *_cells(rows)] for law, rows in _by_law(result).items()]
  return markdown(header, lines)


def _cells(rows: list[dict[str, Any]]) -> list[str]:
  if 'bias' in rows[0]:
    errors = [
      f'{row["relative_variance"]:.3g} (± {row["standard_error"]:.1g})'
      for row in rows
    ]
    return [*errors, '-', '-', '-']
  last = rows[-1]
  return [
    *(f'{row["relative_variance"]:.3g}' for row in rows),
    _number(last['equivalent_batch']),
    _number(last['largest_weight']),
    f'{last["effective_sample_size"]:.1%}',
  ]


def _number(value: float) -> str:
  if value >= _BEYOND_INTEREST:
    return f'> {_BEYOND_INTEREST:,.0f}'
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _verdict(result: dict[str, Any]) -> str:
  """What a reader should take from the table."""
  laws = _by_law(result)
  steps = ', '.join(map(str, _steps(result)))
  draws = '; '.join(
    f'{_percents(laws[law])} by {law}'
    for law in (
      variances.BY_RECORD_WEIGHT,
      variances.BY_SCORE,
      variances.OPTIMAL,
    )
  )
  biases = ', '.join(
    f'{row["bias"]:.1%} (± {row["bias_standard_error"]:.1%})'
    for row in laws[variances.SELF_NORMALISED]
  )
  return (
    f'The precision of 100 uniform draws takes, at the steps {steps}: {draws}. '
    "Dividing by the batch's own sum of weights has a bias that no number of "
    f'steps averages out: {biases} of the length of the true gradient.'
  )


def _percents(rows: list[dict[str, Any]]) -> str:
  return ', '.join(_number(100 * row['relative_variance']) for row in rows)


def figures(results: list[dict[str, Any]]) -> dict[str, plt.Figure]:
  """Returns one figure: variance and largest weight under each law."""
  figure, axes = plt.subplots(
    len(results),
    2,
    figsize=(12, 1 + 3.7 * len(results)),
    width_ratios=(1.7, 1),
    sharex='col',
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  for (left, right), result in zip(axes, results, strict=True):
    laws = _by_law(result)
    _draw_variances(left, laws)
    _draw_weights(right, laws)
    left.set_yticks(range(len(laws)), laws)
    left.set_ylabel('records drawn with p proportional to')
    left.set_title(
      f'{result["config"]["data"]}: {result["num_records"]} records, the '
      f'heaviest 2 % hold {result["heaviest_share"]:.0%} of the weight',
      loc='left',
      fontsize=10,
    )
    for axis in (left, right):
      axis.grid(axis='x', alpha=0.25)
      axis.spines[['top', 'right']].set_visible(False)
  axes[0, 0].invert_yaxis()
  axes[-1, 0].set_xlabel(
    'variance of the gradient estimate, uniform = 1 (less is better)'
  )
  last = _steps(results[-1])[-1]
  axes[-1, 1].set_xlabel(
    f'largest importance weight, step {last}\n(orange: > {_LARGE_WEIGHT:.0f})'
  )
  figure.legend(
    *axes[0, 0].get_legend_handles_labels(),
    loc='outside upper right',
    ncols=4,
    frameon=False,
  )
  return {'variance': figure}


def _draw_variances(axis, laws: dict[str, list[dict[str, Any]]]) -> None:
  """Dots of each law, darker as training goes on; biased ones are hollow."""
  steps = [row['step'] for row in laws[variances.UNIFORM]]
  colors = plt.get_cmap('viridis_r')(np.linspace(0.15, 0.95, len(steps)))
  for step, color in zip(steps, colors, strict=True):
    axis.scatter([], [], color=color, s=42, label=f'training step {step}')
  axis.scatter([], [], c='white', edgecolors='k', s=42, label='biased')
  for place, (law, rows) in enumerate(laws.items()):
    values = [row['relative_variance'] for row in rows]
    places = [place] * len(values)
    faces = 'white' if law == variances.SELF_NORMALISED else colors
    axis.plot(values, places, color='0.8', lw=1.5, zorder=1)
    axis.scatter(
      values, places, c=faces, edgecolors=colors, lw=1.5, s=42, zorder=2
    )
  axis.axvline(1, color='0.4', lw=1, ls='--', zorder=0)
  axis.set_xscale('log')


def _draw_weights(axis, laws: dict[str, list[dict[str, Any]]]) -> None:
  """Bars of the last step's weights, orange where large."""
  for place, rows in enumerate(laws.values()):
    weight = rows[-1].get('largest_weight')
    if weight is not None:
      length = min(weight, _BEYOND_INTEREST)
      color = '#d95f02' if weight > _LARGE_WEIGHT else '0.65'
      axis.barh(place, length, color=color, height=0.6)
      axis.text(1.25 * length, place, _number(weight), va='center', fontsize=8)
  axis.set_xscale('log')
  axis.set_xlim(0.7, 200 * _BEYOND_INTEREST)
