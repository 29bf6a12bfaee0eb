"""Tables of the study of scores."""

from typing import Any

import numpy as np

from experiments.studies import score_quality_estimates as estimates
from experiments.tables import markdown
from isjax.weights import break_even

UNIFORM = 'uniform'
OPTIMAL = 'gradient_norm'
BOUND = 'logit_gradient_norm'
_NAMES = {
  UNIFORM: 'uniform',
  OPTIMAL: '‖g‖, the optimum',
  'last_layer_gradient_norm': 'last-layer gradient norm',
  BOUND: 'logit-gradient norm (the bound)',
  'loss': 'loss',
  'one_minus_label_probability': '1 - label probability',
}
USUAL_COST = 2.0  # of a backward pass, in forward passes
_LOOSE = 1.25  # times the least variance
_BETTER = 0.97  # times the variance of the bound
_WORSE = 1.01  # times the variance of uniform draws

_GLOSSARY = """\
How to read: p is the law proportional to a score, over {subset_size} fixed
examples of the training set, at some steps of a network's training on uniform
batches of {batch_size}. Loss: its mean over these examples. *Variance*: the
mean square error of the gradient that b = {batch_size} weighted draws from p
estimate, over that of b uniform draws; *exact* by the norms of all gradients
and their mean, *drawn* from {num_batches} batches off an alias table (±
standard error), *mixed* exact again with {mix} of the uniform law in p. *r*,
*rank r*: Pearson's and Spearman's correlation of p with the p of the true norm.
*Equal batch*: how many uniform draws are as precise as {batch_size} of this
law, by the formula b τ², τ² = M Σ p², and exactly. *Pool*: the same where the
batch is resampled from a uniform pool of {pool_size}: by the formula
1 / (1/(b τ²) + (1 - 1/b)/B) with the mean τ of the pools, exactly, and drawn by
the sampler `presample`. The formulas know neither the mean gradient nor how far
the score is from the norm; the exact values know both."""

_POOL_GLOSSARY = """\
*Gain*: the variance of the uniform batch that costs as much, over that of a
pool resampled by the logit-gradient norm; above 1 a pool pays. A pool of B has
the variance (1 - 1/B) ρ / b + 1 / B, in units of one uniform draw's, where ρ is
the variance by the tables above: this is exact, whatever scores and gradients
are. It costs B + (1 + c) b forward passes, c the cost of a backward pass, as
much as a uniform batch of b + B / (1 + c). So b itself hardly matters, the best
pool has B = b sqrt((1 + c) / ρ), and its gain is
1 / (sqrt ρ + 1 / sqrt(1 + c))², whose limits head the table. c = 2 is the usual
count; c well below 1 is a network whose trunk is frozen, c above 2 one whose
forward pass is cheap, by lower precision say. Cells: the gain of the best pool,
and its B / b."""


def sections(results: list[dict[str, Any]]) -> list[str]:
  """Returns the glossary, a table per problem, and where a pool pays."""
  config = results[0]['config']
  parts = [_GLOSSARY.format(**config), '## In short', _summary(results)]
  for result in results:
    parts += [f'## {title(result)}', _origin(result)]
    parts += [_score_table(result), _verdict(result)]
  return [
    *parts,
    '## Do formulas and draws agree?',
    _agreement(results),
    '## Where a pool pays',
    _POOL_GLOSSARY,
    _pool_table(results),
    _gates(results),
  ]


def title(result: dict[str, Any]) -> str:
  """Returns the data and the model of a run, as the reader sees them."""
  return result['config']['problem'].replace('_', ' ')


def _problem(result: dict[str, Any]) -> dict[str, Any]:
  config = result['config']
  return config['problems'][config['problem']]


def _origin(result: dict[str, Any]) -> str:
  problem = _problem(result)
  shape = ' x '.join(map(str, result['input_shape']))
  block = problem['block']
  averaged = f', averaged over {block} x {block} pixels' * (block > 1)
  rate = problem['optimizer']['learning_rate']
  return (
    f'{result["num_examples"]} training images {shape}{averaged}; '
    f'{result["num_params"]} parameters; {problem["optimizer"]["name"]} at '
    f'{rate:g}.'
  )


def name(score: str) -> str:
  """How the tables and figures call a score."""
  return _NAMES.get(score, score.replace('_', ' '))


def scores_of(result: dict[str, Any]) -> list[str]:
  """The scores that were measured, without the uniform one."""
  scores = [row['score'] for row in result['rows'] if row['row'] == 'score']
  return [score for score in dict.fromkeys(scores) if score != UNIFORM]


def rows_of(result: dict[str, Any], score: str) -> list[dict[str, Any]]:
  """The rows of a score, in the order of the steps."""
  return [
    row
    for row in result['rows']
    if row['row'] == 'score' and row['score'] == score
  ]


def _score_table(result: dict[str, Any]) -> str:
  header = [
    *('step (loss)', 'p by', 'variance: exact', 'drawn', 'mixed'),
    *('r', 'rank r', 'equal batch: formula', 'exact'),
    *('pool: formula', 'exact', 'drawn'),
  ]
  by_score = [rows_of(result, score) for score in scores_of(result)]
  lines = [_cells(row) for rows in zip(*by_score, strict=True) for row in rows]
  return markdown(header, lines)


def _cells(row: dict[str, Any]) -> list[str]:
  return [
    f'{row["step"]} ({row["loss"]:.2g})',
    name(row['score']),
    f'{row["relative_variance"]:.3g}',
    f'{row["drawn"]:.3g} (± {row["drawn_error"]:.1g})',
    f'{row["mixed"]:.3g}',
    f'{row["correlation"]:.2f}' if 'correlation' in row else '-',
    f'{row["rank_correlation"]:.2f}' if 'rank_correlation' in row else '-',
    f'{row["formula_batch"]:.0f}',
    f'{row["exact_batch"]:.0f}',
    f'{row["pool_formula_batch"]:.0f}',
    f'{row["pool_exact_batch"]:.0f}',
    f'{row["pool_drawn_batch"]:.0f} (± {row["pool_drawn_batch_error"]:.2g})',
  ]


def _excess(result: dict[str, Any]) -> list[float]:
  """The variance of the bound over that of the optimum, at each step."""
  return [
    bound['relative_variance'] / optimum['relative_variance']
    for bound, optimum in zip(
      rows_of(result, BOUND), rows_of(result, OPTIMAL), strict=True
    )
  ]


def _summary(results: list[dict[str, Any]]) -> str:
  """A line per problem."""
  header = [
    *('problem', 'loss, first to last', 'variance at the end: optimum'),
    *('bound', 'loss', 'bound over optimum, at most (step)'),
    *(
      'r of the bound, after step 0',
      f'best pool at c = {USUAL_COST:g} (step)',
    ),
  ]
  lines = []
  for result in results:
    bound, excess = rows_of(result, BOUND), _excess(result)
    steps = [row['step'] for row in bound]
    gains = [_best(r['relative_variance'], USUAL_COST)[0] for r in bound]
    correlations = [row.get('correlation', np.nan) for row in bound[1:]]
    ends = [
      rows_of(result, score)[-1]['relative_variance']
      for score in (OPTIMAL, BOUND, 'loss')
    ]
    lines.append(
      [
        title(result),
        f'{bound[0]["loss"]:.2g} to {bound[-1]["loss"]:.2g}',
        *(f'{end:.3g}' for end in ends),
        f'{max(excess):.2f} ({steps[int(np.argmax(excess))]})',
        f'{min(correlations):.2f} to {max(correlations):.2f}',
        f'{max(gains):.2f} ({steps[int(np.argmax(gains))]})',
      ]
    )
  return markdown(header, lines)


def _verdict(result: dict[str, Any]) -> str:
  """What a reader should take from the table."""
  bound = rows_of(result, BOUND)
  excess = _excess(result)
  correlations = ', '.join(
    f'{row.get("correlation", np.nan):.2f}' for row in bound
  )
  loose = [
    f'{row["step"]} ({times:.2f})'
    for row, times in zip(bound, excess, strict=True)
    if times > _LOOSE
  ]
  worse = [
    f'{name(row["score"])} at step {row["step"]} '
    f'({row["relative_variance"]:.3g})'
    for row in result['rows']
    if row['row'] == 'score' and row['relative_variance'] > _WORSE
  ]
  beaten = [
    f'{name(row["score"])} at step {row["step"]} '
    f'({row["relative_variance"]:.3g} against {b["relative_variance"]:.3g})'
    for score in ('loss', 'one_minus_label_probability')
    for row, b in zip(rows_of(result, score), bound, strict=True)
    if row['relative_variance'] < _BETTER * b['relative_variance']
  ]
  missed = rows_of(result, 'loss')[-1]['never_drawn']
  sentences = [
    f'The bound correlates with the norm by {correlations}, step by step, and '
    f'leaves {min(excess):.2f} to {max(excess):.2f} times the least variance.',
    f'It is loose, above {_LOOSE:g} times, at step {", ".join(loose)}.'
    if loose
    else f'It is nowhere loose, above {_LOOSE:g} times.',
    *([f'Below it are: {"; ".join(beaten)}.'] if beaten else []),
    *([f'Worse than uniform: {"; ".join(worse)}.'] if worse else []),
    *(
      [
        f'At the end {missed:.1%} of the examples have a float32 loss of '
        'exactly 0, so that drawing by loss never shows them.'
      ]
      if missed
      else []
    ),
  ]
  return ' '.join(sentences)


def _agreement(results: list[dict[str, Any]]) -> str:
  """How far the draws are from the exact values, in standard errors."""
  rows = [
    row for result in results for row in result['rows'] if row['row'] == 'score'
  ]
  tables = [
    (row['drawn'] - row['relative_variance']) / row['drawn_error']
    for row in rows
  ]
  pools = [
    (1 / row['pool_drawn_batch'] - 1 / row['pool_exact_batch'])
    * row['pool_drawn_batch'] ** 2
    / row['pool_drawn_batch_error']
    for row in rows
  ]
  norms = max(row.get('norm_difference', 0.0) for row in rows)
  return (
    f'Of the {len(rows)} variances of a table, {_within(tables)} of the exact '
    f'one; of the {len(rows)} variances of a pool, {_within(pools)}. The '
    'exact norms that the optimum is drawn by are found without forming a '
    'gradient and differ from those of the gradients by at most '
    f'{norms:.1g} of the largest. {_formulas(rows)}'
  )


def _within(z: list[float]) -> str:
  sizes = np.abs(z)
  return (
    f'{np.mean(sizes < 2):.0%} as drawn lie within two standard errors (the '
    f'farthest {sizes.max():.1f})'
  )


def _formulas(rows: list[dict[str, Any]]) -> str:
  """How far the formulas of tau are from the exact equal batches."""
  said = []
  for score in (OPTIMAL, BOUND, 'loss'):
    own = [row for row in rows if row['score'] == score]
    table = [row['formula_batch'] / row['exact_batch'] for row in own]
    pool = [row['pool_formula_batch'] / row['pool_exact_batch'] for row in own]
    said.append(
      f'{min(table):.2f} to {max(table):.2f} times ({min(pool):.2f} to '
      f'{max(pool):.2f} for the pool) under {name(score)}'
    )
  return f'The formulas give {"; ".join(said)}, of the exact equal batch.'


def _best(relative_variance: float, cost: float) -> tuple[float, float]:
  """The gain of the best pool, of a large batch, and its B / b >= 1."""
  multiple = max(1.0, estimates.best_multiple(relative_variance, cost))
  large = 1e9
  return (
    estimates.gain(relative_variance, large, multiple * large, cost),
    multiple,
  )


def _pool_table(results: list[dict[str, Any]]) -> str:
  costs = results[0]['config']['backward_costs']
  header = ['problem', 'step', 'ρ', *(f'c = {cost:g}' for cost in costs)]
  roots = [(1 + cost) ** -0.5 for cost in costs]
  lines = [
    [
      'a pool can pay for ρ below',
      '',
      '',
      *(f'{(1 - x) ** 2:.2g}' for x in roots),
    ],
    ['no pool gains more than', '', '', *(f'{x**-2:.3g}' for x in roots)],
  ]
  for result in results:
    for row in rows_of(result, BOUND):
      rho = row['relative_variance']
      best = [_best(rho, cost) for cost in costs]
      cells = [f'{gain:.2f} ({multiple:.1f})' for gain, multiple in best]
      lines.append([title(result), str(row['step']), f'{rho:.3g}', *cells])
  return markdown(header, lines)


def _gates(results: list[dict[str, Any]]) -> str:
  """Whether tau tells where a pool pays."""
  config = results[0]['config']
  b, size = config['batch_size'], config['pool_size']
  ratio = (size + 3 * b) / (3 * b)
  rows = [row for result in results for row in rows_of(result, BOUND)]
  pays = np.array(
    [
      estimates.gain(r['relative_variance'], b, size, USUAL_COST) > 1
      for r in rows
    ]
  )
  taus = np.array([row['pool_tau'] for row in rows])
  said = []
  for name, threshold in (
    ('the break-even', float(break_even(size, b, ratio))),
    ("the paper's", ratio),
  ):
    on = taus > threshold
    said.append(
      f'{name} {threshold:.2f}, decides rightly in {np.sum(on == pays)} '
      f'(wrongly on in {np.sum(on & ~pays)}, wrongly off in '
      f'{np.sum(~on & pays)})'
    )
  return (
    f'A pool of {size} for batches of {b} pays at c = {USUAL_COST:g} in '
    f'{pays.sum()} of the {len(rows)} stages measured. The gate that is to '
    'find them opens where τ of the pool is above a threshold: '
    f'{"; ".join(said)}.'
  )
