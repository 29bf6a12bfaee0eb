"""The table of a sweep: Markdown to read, CSV to compute with."""

from collections.abc import Callable, Mapping, Sequence
import csv
import functools
import itertools
import pathlib
from types import ModuleType

import numpy as np
import rich.console
import rich.markdown

from experiments import artifacts, claims
from experiments.comparisons import (
  METRICS,
  Record,
  Row,
  add_target,
  best,
  compare,
  geometric_mean,
  groups,
  in_group,
  mean,
  paired,
  rows,
  shared_rate,
)
from experiments.settings import choose


def verdict(table: list[Row]) -> str:
  """Returns one line: whether importance sampling paid, and by how much.

  Compares the best importance-sampled cell with the best uniform one of the
  same budget, each at its own best rate, by training loss.
  """
  chosen = best(table).values()
  sampled = [row for row in chosen if not row.is_uniform]
  ours = min(sampled, key=lambda r: r.train_loss.estimate, default=None)
  uniform = [
    row
    for row in chosen
    if row.is_uniform and ours is not None and row.budget == ours.budget
  ]
  if not uniform:
    return (
      'No verdict: it takes a uniform cell and an importance-sampled one of '
      'the same budget.'
    )
  theirs = min(uniform, key=lambda r: r.train_loss.estimate)
  losses = paired(ours, theirs, 'train_loss')
  ratio = geometric_mean(losses[0] / losses[1])
  errors = paired(ours, theirs, 'test_error')
  difference = mean(100 * (errors[0] - errors[1]))
  if ratio.high < 1:
    answer = 'Importance sampling paid'
  elif ratio.low > 1:
    answer = 'Importance sampling did not pay'
  else:
    answer = 'Undecided whether importance sampling pays'
  return (
    f'{answer}: at equal cost the training loss of "{ours.cell}" is '
    f'{ratio.within("{:.3g}")} times that of "{theirs.cell}" (n = '
    f'{len(losses[0])}), and the test error differs by '
    f'{difference.within("{:+.2f}")} points. Both cells are the best of their '
    'kind by that loss, each at its best rate; the intervals do not count '
    'this choice.'
  )


_OF_DIVERGED = ('rate', 'n', 'diverged')  # known of a row without results
_DEFAULT_METRICS = ('train_loss', 'test_error')


def _columns(
  module: ModuleType, baseline: Row
) -> dict[str, Callable[[Row], str]]:
  """The table's columns: header -> cell of a row that has runs."""

  def mean_of(name: str, template: str) -> Callable[[Row], str]:
    def text(row):
      if name not in next(iter(row.records.values())).result:
        return '-'
      return template.format(row.values(name).mean())

    return text

  def compared(name: str) -> Callable[[Row], str]:
    def text(row):
      return '-' if row is baseline else compare(row, baseline, name).text

    return text

  columns = {
    'b': lambda row: str(
      next(iter(row.records.values())).config['sampler']['batch_size']
    ),
    'rate': lambda row: f'{row.rate:g}',
  }
  for name in _metrics(module):
    metric = METRICS[name]
    how = 'geometric mean [95 %]' if metric.is_ratio else 'mean (sd)'
    columns[f'{metric.label}, {how}'] = functools.partial(
      lambda name, row: row.summary(name), name
    )
    columns[f'{metric.label}, against the baseline'] = compared(name)
  if hasattr(module, 'TARGET'):
    columns['reached the target'] = mean_of('reached_target', '{:.0%}')
  columns |= {
    'steps': mean_of('steps', '{:.0f}'),
    'importance-sampled': mean_of('mean_importance_sampled', '{:.0%}'),
    'kept': mean_of('mean_kept_share', '{:.0%}'),
    'cost': mean_of('cost', '{:.0f}'),
    'seconds': mean_of('seconds', '{:.2f}'),
    'n': lambda row: str(len(row.records)),
    'diverged': lambda row: str(row.diverged),
  }
  if hasattr(module, 'PAPER'):
    columns['the paper'] = lambda row: module.PAPER.get(row.cell, '-')
  return columns


def _metrics(module: ModuleType) -> Sequence[str]:
  names = getattr(module, 'METRICS', _DEFAULT_METRICS)
  for name in names:
    choose(METRICS, name, 'METRICS')
  return names


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table."""
  table = [header, ['---'] * len(header), *lines]
  return '\n'.join(f'| {" | ".join(line)} |' for line in table)


def show(text: str) -> None:
  """Prints Markdown: laid out on a terminal, as it is elsewhere."""
  console = rich.console.Console()
  if console.is_terminal:
    console.print(rich.markdown.Markdown(text))
  else:
    print(text)


def _markdown(table: list[Row], baseline: Row, module: ModuleType) -> str:
  """The table of the rows, without columns in which nothing was measured."""
  columns = _columns(module, baseline)

  def cell(row: Row, header: str) -> str:
    known = row.records or (row.diverged and header in _OF_DIVERGED)
    return columns[header](row) if known else '-'

  cells = [[cell(row, header) for header in columns] for row in table]
  filled = [set(column) != {'-'} for column in zip(*cells, strict=True)]
  header = ['cell', *itertools.compress(columns, filled)]
  lines = [
    [row.cell, *itertools.compress(line, filled)]
    for row, line in zip(table, cells, strict=True)
  ]
  return markdown(header, lines)


def document(
  records: list[Record], module: ModuleType, left_out: Mapping[str, str] = {}
) -> str:
  """Returns the whole result of a sweep as Markdown.

  Args:
    records: of all its runs.
    module: the config file. BASELINE names the row to compare with; METRICS,
      TARGET, CLAIMS and PAPER, where there are any, the metrics of the table,
      the one whose end by the baseline is the target of all, what the paper
      claims, and its numbers by cell.
    left_out: cells that could not be run, with the reason.
  """
  table = rows(records)
  table += [Row(cell, np.nan, {}, 0) for cell in left_out]
  name = records[0].config['name']
  parts = [f'# {name}', (module.__doc__ or '').strip()]
  answers = []
  for group, members in groups(table).items():
    parts += _sections(group, members, module)
    answers += _answers(group, members, module)
  parts += [f'- {cell}: left out. {why}' for cell, why in left_out.items()]
  if claims.of(module):
    parts += ['## Claims']
  parts += ['\n'.join(answers), _provenance(records, module)]
  return '\n\n'.join(parts) + '\n'


def _sections(group: str, table: list[Row], module: ModuleType) -> list[str]:
  """The tables of a group, each with its heading."""
  baseline = best(table).get(in_group(group, module.BASELINE))
  if baseline is None:
    return []
  table = _with_target(group, table, module)
  chosen = best(table)
  rest = [row for row in table if row.cell not in chosen]  # without results
  title = f'{group}: each' if group else 'Each'
  several = len(table) > len(chosen) + len(rest)
  parts = [
    f'## {title} cell at its best rate, by training loss'
    if several
    else f'## {group or "All cells"}',
    _markdown([*chosen.values(), *rest], chosen[baseline.cell], module),
  ]
  if not several:
    return parts
  rate = shared_rate(table)
  shared = [row for row in table if row.rate == rate or np.isnan(row.rate)]
  at_rate = [row for row in shared if row.cell == baseline.cell]
  if at_rate:
    title = f'{group}: all' if group else 'All'
    parts += [f'## {title} cells at the best shared rate, {rate:g}']
    parts += [_markdown(shared, at_rate[0], module)]
  return parts


def _with_target(group: str, table: list[Row], module: ModuleType) -> list[Row]:
  baseline = best(table).get(in_group(group, module.BASELINE))
  if baseline is None or not hasattr(module, 'TARGET'):
    return table
  return add_target(table, baseline, module.TARGET)


def _answers(group: str, table: list[Row], module: ModuleType) -> list[str]:
  """What the claims of the config come to; without any, the verdict."""
  stated = claims.of(module)
  if not stated:
    return [verdict(table)]
  chosen = best(_with_target(group, table, module))
  return [claims.judge(claim, chosen, group) for claim in stated]


def _provenance(records: list[Record], module: ModuleType) -> str:
  """Where the numbers come from, each fact once."""

  def all_of(name: str) -> str:
    return ', '.join(sorted({str(r.result[name]) for r in records}))

  versions = sorted(
    {
      f'{package} {version}'
      for record in records
      for package, version in record.result['versions'].items()
    }
  )
  budgets = ', '.join(sorted({str(r.config['budget']) for r in records}))
  target = ''
  if hasattr(module, 'TARGET'):
    target = (
      f'Target: the {METRICS[module.TARGET].label} at the end of the '
      "baseline's run of the same seed; a run that does not reach it counts "
      'with all that it spent. '
    )
  return (
    f'Baseline: "{module.BASELINE}". b: batch size. Against the baseline: '
    'paired by seed, with the 95 % interval and the p-value of the t test. '
    f'{target}Cost: forward-equivalents, '
    f'budget {budgets}. Seconds: training only, without compiling '
    f'and evaluating. Device: {all_of("device")}. Commit: {all_of("commit")}. '
    f'Python {all_of("python")}; {", ".join(versions)}.'
  )


def write_csv(records: list[Record], path: pathlib.Path) -> None:
  """Writes one line per run: its swept settings and all of its results."""
  results = [
    {
      'cell': r.config['cell'],
      'learning_rate': r.rate,
      'seed': r.config['seed'],
    }
    | {k: v for k, v in r.result.items() if not isinstance(v, dict)}
    for r in records
  ]
  fields = list(dict.fromkeys(k for result in results for k in result))
  with artifacts.atomic_write(path) as file:
    writer = csv.DictWriter(file, fields, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(results)


def write(
  records: list[Record],
  module: ModuleType,
  folder: pathlib.Path,
  left_out: Mapping[str, str] = {},
) -> None:
  """Writes table.md and runs.csv to the folder, and prints the table."""
  text = document(records, module, left_out)
  with artifacts.atomic_write(folder / 'table.md') as file:
    file.write(text)
  write_csv(records, folder / 'runs.csv')
  show(text)
  print(f'table: {folder / "table.md"}, {folder / "runs.csv"}')
