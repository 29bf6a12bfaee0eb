"""Tables of the study of a boundary."""

from typing import Any

import numpy as np

from experiments.comparisons import geometric_mean, mean
from experiments.tables import markdown

BOUND = 'logit_gradient_norm'
OPTIMAL = 'gradient_norm'
BASELINE = 'uniform'
_NAMES = {
  'uniform': 'uniform',
  'uniform_large_batch': 'uniform, larger batch',
  BOUND: 'logit-gradient norm (the bound)',
  'loss': 'loss',
  OPTIMAL: '‖g‖, the optimum',
}

_GLOSSARY = """\
Points are uniform in the unit square; a point is of class 1 with the chance
sigmoid({smoothness:g} (y - f(x))), f(x) = sin(4 (x + 1/2)^5) / 3 + 1/2. A
network (dense layers {hidden}) is trained on {num_examples} of them, up to
{budget} forward-equivalents, at rates that fall to 0 by a cosine; {num_seeds}
seeds, which choose points, labels, parameters and draws. As the chances are
known, risks are integrals over the square and the labels' law, on {map_size} x
{map_size} points. The least possible: a loss of {bayes_loss:.4f}, an error of
{bayes_error:.2%}."""

_LAWS = """\
The law of each score, without any mix, while the network is trained by
{sampling}, at rate {rate:g}, on the first seed. *Within*: how much of the draws
is so close to the boundary, in %; of the area it is {areas}. *r*: correlation
of the score with the norm of the gradient, over examples. *Second moment*: of
the weighted gradient of one draw, that of a uniform draw being 1; no law has
less than the norm's, and ∞ means that an example that has a gradient is never
drawn. *Known*: by a network that knows the chances, the bound in the place of
the norm: the labels' noise leaves 4 / {smoothness:g} even to the best law."""

_RESULTS = """\
At the end, at equal cost. *Excess*: beyond the least possible. Each way to draw
at its best rate by geometric mean of the training loss. Differences to
"{baseline}" are paired by seed, with 95 % intervals."""


def sections(results: list[dict[str, Any]]) -> list[str]:
  """Returns the glossary, where draws fall, and what that is worth."""
  first = results[0]
  config = first['config']
  told = config | {name: first[name] for name in ('bayes_loss', 'bayes_error')}
  told['hidden'] = '-'.join(map(str, config['hidden']))
  shown = mapped(results)
  return [
    _GLOSSARY.format(**told),
    '## Where the draws fall',
    _LAWS.format(
      sampling=name(shown['config']['sampling']),
      rate=best_rate(shown),
      areas=_areas(shown),
      smoothness=config['smoothness'],
    ),
    _law_table(shown),
    '## What it is worth',
    _RESULTS.format(baseline=name(BASELINE)),
    _result_table(results),
  ]


def name(word: str) -> str:
  """How tables and figures call a score or a way to draw."""
  return _NAMES.get(word, word.replace('_', ' '))


def mapped(results: list[dict[str, Any]]) -> dict[str, Any]:
  """The run whose maps are shown: the one that draws by the bound."""
  by_sampling = {result['config']['sampling']: result for result in results}
  return by_sampling.get(BOUND, results[0])


def values(
  result: dict[str, Any], field: str, rate: float, stage: float = 1.0
) -> np.ndarray:
  """Returns a field of the rows of results, f64[seeds]."""
  return np.array(
    [
      row[field]
      for row in result['rows']
      if row['row'] == 'result'
      and row['learning_rate'] == rate
      and row['stage'] == stage
    ]
  )


def best_rate(result: dict[str, Any]) -> float:
  """Returns the rate of the least training loss, by geometric mean."""

  def loss(rate):
    return geometric_mean(values(result, 'train_loss', rate)).estimate

  return min(result['config']['learning_rates'], key=loss)


def _areas(result: dict[str, Any]) -> str:
  row = next(row for row in result['rows'] if row['row'] == 'known')
  distances = result['config']['distances']
  return ', '.join(
    f'{row[f"near_area_{i}"]:.1%} within {distance:g}'
    for i, distance in enumerate(distances)
  )


def _law_table(result: dict[str, Any]) -> str:
  distances = result['config']['distances']
  header = [
    *('stage', 'p by'),
    *(f'within {distance:g}' for distance in distances),
    *('r', 'second moment'),
  ]
  rate = best_rate(result)
  rows = [
    row
    for row in result['rows']
    if row['row'] == 'known'
    or (row['row'] == 'law' and row['learning_rate'] == rate)
  ]
  lines = [
    [
      f'{row["stage"]:.0%}' if 'stage' in row else 'known',
      name(row['score']),
      *(f'{100 * row[f"near_mass_{i}"]:.1f}' for i in range(len(distances))),
      f'{row["correlation"]:.2f}' if 'correlation' in row else '-',
      _moment(row),
    ]
    for row in rows
  ]
  return markdown(header, lines)


def _moment(row: dict[str, Any]) -> str:
  """JSON has no infinity: it is None there."""
  moment = row['second_moment']
  return '∞' if moment is None else f'{moment:.3f}'


def _result_table(results: list[dict[str, Any]]) -> str:
  header = [
    *('drawn by', 'rate', 'steps', 'train loss', 'excess loss'),
    *('difference', 'excess error, %', 'difference'),
  ]
  by_sampling = {result['config']['sampling']: result for result in results}
  baseline = by_sampling.get(BASELINE)
  lines = []
  for sampling, result in by_sampling.items():
    rate = best_rate(result)
    line = [
      name(sampling),
      f'{rate:g}',
      f'{values(result, "steps", rate).mean():.0f}',
      geometric_mean(values(result, 'train_loss', rate)).within('{:.4f}'),
    ]
    for field, factor, form in (
      ('excess_loss', 1, '{:.4f}'),
      ('excess_error', 100, '{:.2f}'),
    ):
      own = factor * values(result, field, rate)
      line.append(mean(own).within(form))
      line.append('-')
      if baseline is not None and result is not baseline:
        other = factor * values(baseline, field, best_rate(baseline))
        signed = form.replace(':', ':+')
        line[-1] = mean(own - other).within(signed)
    lines.append(line)
  return markdown(header, lines)
