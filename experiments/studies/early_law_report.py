"""Tables of the study of frozen laws."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.tables import markdown

UNIFORM = 'uniform'

_GLOSSARY = """\
How to read: a network is trained for a short window on shuffled epochs, in
batches of {batch_size}; of what its training passes showed, each score makes a
law p (the sampler `early_importance` at its window's end, mix = 0; with another
mix, every share below is averaged with that of uniform draws). Scores, with m
the mean of the label's probability: *focal* 1 - m, *focal, squared* (1 - m)²,
*confusion* m (1 - m), *std* its standard deviation, *el2n* the mean norm of the
logit gradient, *forgetting* how often an example went from right to wrong.
*Uniform*: the shares of the examples. All of {num_seeds} seeds, which choose
parameters, order, the rare examples and the wrong labels; ± standard deviation
over seeds."""

_BALANCE = """\
A long tail: the classes' sizes fall geometrically from the first to the last,
to a *factor* of the first. *Classes*: exp of the entropy of p over classes,
their effective number; *rarest*: how much of p falls on the last class. By
class-balanced sampling they would be {num_classes} and {share:.1f} %."""

_NOISE = """\
Labels of which a share is wrong, every other class equally likely: how much of
p falls on them, in %, and in brackets the effective share of the examples, 1 /
(N Σ p²), where no label is wrong and where most are."""

_MODELS = """\
Each cell: Spearman's correlation of the scores of two networks, mean over all
pairs of different seeds, *of* its ceiling: the geometric mean of the two
networks' correlations with themselves under another seed, which is what it
would be if they differed by noise alone. Behind it the difference, and a star
where its 95 % interval (over seeds) excludes 0. The ranks of *focal* are those
of its square. *Error*: in the last epoch of the window."""


def sections(results: list[dict[str, Any]]) -> list[str]:
  """Returns the glossary, and for each data set its tables and verdicts."""
  parts = [_GLOSSARY.format(**results[0]['config'])]
  for result in results:
    num_classes = result['num_classes']
    about = {'num_classes': num_classes, 'share': 100 / num_classes}
    parts += [
      f'## {title(result)}',
      _origin(result),
      '### Rare classes',
      _BALANCE.format(**about),
      _balance_table(result),
      _balance_verdict(result),
      '### Wrong labels',
      _NOISE,
      _noise_table(result),
      _noise_verdict(result),
      '### Other networks',
      _MODELS,
      _models_table(result),
      _models_verdict(result),
    ]
  return parts


def title(result: dict[str, Any]) -> str:
  """Returns the name of a run's data, as the reader sees it."""
  return result['config']['problem'].replace('_', ' ')


def networks(result: dict[str, Any]) -> list[str]:
  """Returns the networks of a run, the first of which is used throughout."""
  config = result['config']
  return list(config['problems'][config['problem']]['models'])


def rows_of(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
  """The rows of one of the three questions: 'balance', 'noise', 'models'."""
  return [row for row in result['rows'] if row['row'] == kind]


def laws_of(rows: list[dict[str, Any]]) -> list[str]:
  """The laws, in the order of the rows."""
  return list(dict.fromkeys(row['law'] for row in rows))


def over_seeds(
  rows: list[dict[str, Any]], law: str, setting: str, field: str
) -> dict[float, np.ndarray]:
  """Returns setting -> the values of a field under a law, one per seed."""
  found: dict[float, list[float]] = {}
  for row in rows:
    if row['law'] == law:
      found.setdefault(row[setting], []).append(row[field])
  return {at: np.array(values) for at, values in found.items()}


def _origin(result: dict[str, Any]) -> str:
  config = result['config']
  problem = config['problems'][config['problem']]
  shape = ' x '.join(map(str, result['input_shape']))
  return (
    f'{result["num_examples"]} training images {shape}; a window of '
    f'{problem["warmup_epochs"]:g} epochs; {_name(networks(result)[0])}, where '
    'no other network is named.'
  )


def _name(network: str) -> str:
  return network.replace('_', ' ')


def _within(values: np.ndarray, form: str) -> str:
  """Mean ± standard deviation; without it where that rounds to 0."""
  spread = form.format(values.std(ddof=1))
  mean = form.format(values.mean())
  return mean if float(spread) == 0 else f'{mean} ± {spread}'


def _balance_table(result: dict[str, Any]) -> str:
  rows = rows_of(result, 'balance')
  factors = list(dict.fromkeys(row['factor'] for row in rows))
  header = ['p by']
  for factor in factors:
    header += [f'factor {factor:g}: classes', 'rarest, %']
  lines = []
  for law in laws_of(rows):
    classes = over_seeds(rows, law, 'factor', 'effective_classes')
    rarest = over_seeds(rows, law, 'factor', 'rarest_mass')
    line = [law]
    for factor in factors:
      line.append(_within(classes[factor], '{:.2f}'))
      line.append(_within(100 * rarest[factor], '{:.2f}'))
    lines.append(line)
  sizes = {row['factor']: row['size'] for row in rows}
  errors = over_seeds(rows, UNIFORM, 'factor', 'error')
  said = '; '.join(
    f'{sizes[f]} examples at factor {f:g} (error {errors[f].mean():.1%})'
    for f in factors
  )
  return f'{markdown(header, lines)}\n\nOf {said} at the end of the window.'


def _balance_verdict(result: dict[str, Any]) -> str:
  """How far each law goes from the class shares to balance."""
  rows = rows_of(result, 'balance')
  factor = min(row['factor'] for row in rows)
  num_classes = result['num_classes']
  classes = {
    law: over_seeds(rows, law, 'factor', 'effective_classes')[factor].mean()
    for law in laws_of(rows)
  }
  start = classes.pop(UNIFORM)
  if num_classes - start < 0.01:
    return 'No set has rare classes.'
  said = ', '.join(
    f'{law} {(found - start) / (num_classes - start):.0%}'
    for law, found in classes.items()
  )
  return (
    f'At factor {factor:g}, of the way from the {start:.2f} effective classes '
    f'of the examples to {num_classes}: {said}.'
  )


def _noise_table(result: dict[str, Any]) -> str:
  rows = rows_of(result, 'noise')
  shares = list(dict.fromkeys(row['share'] for row in rows))
  header = ['p by', *(f'{share:.0%} wrong' for share in shares)]
  lines = []
  for law in laws_of(rows):
    masses = over_seeds(rows, law, 'share', 'flipped_mass')
    effective = over_seeds(rows, law, 'share', 'effective_share')
    cells = [_within(100 * masses[share], '{:.1f}') for share in shares]
    for i in {0, len(shares) - 1}:
      cells[i] += f' ({effective[shares[i]].mean():.2f})'
    lines.append([law, *cells])
  return markdown(header, lines)


def _noise_verdict(result: dict[str, Any]) -> str:
  """Which laws seek wrong labels, and which avoid them."""
  rows = [row for row in rows_of(result, 'noise') if row['share'] > 0]
  sought, avoided, mixed = [], [], []
  for law in laws_of(rows):
    if law == UNIFORM:
      continue
    masses = over_seeds(rows, law, 'share', 'flipped_mass')
    lifts = [masses[share].mean() / share for share in masses]
    group = sought if min(lifts) > 1 else avoided if max(lifts) < 1 else mixed
    group.append(f'{law} ({min(lifts):.2f} to {max(lifts):.2f})')
  parts = [
    f'{verb}: {", ".join(group)}.'
    for verb, group in (
      ('Drawn to wrong labels, in times their share', sought),
      ('Away from them', avoided),
      ('Sometimes the one, sometimes the other', mixed),
    )
    if group
  ]
  return ' '.join(parts) or 'No set has wrong labels.'


def pairs_of(result: dict[str, Any], law: str) -> Iterator[dict[str, Any]]:
  """The rows of pairs of different networks under a law."""
  for row in rows_of(result, 'models'):
    if row['law'] == law and row['first'] != row['second']:
      yield row


def _models_table(result: dict[str, Any]) -> str:
  rows = rows_of(result, 'models')
  errors = {row['first']: row['error'] for row in rows}
  laws = laws_of(rows)
  cells: dict[tuple[str, str], dict[str, str]] = {}
  for row in rows:
    pair = row['first'], row['second']
    cells.setdefault(pair, {})[row['law']] = _cell(row)
  lines = [
    [
      _name(first) if first == second else f'{_name(first)}, {_name(second)}',
      f'{errors[first]:.1%}' if first == second else '',
      *(by_law.get(law, '-') for law in laws),
    ]
    for (first, second), by_law in cells.items()
  ]
  return markdown(['networks', 'error', *laws], lines)


def _cell(row: dict[str, Any]) -> str:
  if row['first'] == row['second']:
    return f'{row["correlation"]:.2f}'
  star = '' if row['low'] <= 0 <= row['high'] else '\\*'
  return (
    f'{row["correlation"]:.2f} of {row["ceiling"]:.2f} '
    f'({row["difference"]:+.2f}{star})'
  )


def _models_verdict(result: dict[str, Any]) -> str:
  """Whether the scores depend on the network, or on how far it has come."""
  models = result['config']['models']
  groups: dict[str, list[dict[str, Any]]] = {
    'Of two networks under one optimiser': [],
    'Of one network under two optimisers': [],
    'Of networks that differ in both': [],
  }
  alike, same, neither = groups.values()
  for law in laws_of(rows_of(result, 'models')):
    for row in pairs_of(result, law):
      first, second = models[row['first']], models[row['second']]
      if first['optimizer'] == second['optimizer']:
        alike.append(row)
      elif first['model'] == second['model']:
        same.append(row)
      else:
        neither.append(row)
  said = [_below(name, rows) for name, rows in groups.items() if rows]
  if not said:
    return 'There is no pair of networks to compare.'
  return (
    f'{" ".join(said)} The intervals do not count how many they are, and a '
    'network that has learnt less differs by that, too.'
  )


def _below(name: str, rows: list[dict[str, Any]]) -> str:
  below = sum(row['high'] < 0 for row in rows)
  differences = []
  for law in laws_of(rows):
    own = [row['difference'] for row in rows if row['law'] == law]
    low, high = f'{min(own):+.2f}', f'{max(own):+.2f}'
    differences.append(f'{law} {low if low == high else f"{low} to {high}"}')
  return (
    f'{name}, {below} of {len(rows)} comparisons are below the ceiling, by '
    f'{", ".join(differences)}.'
  )
