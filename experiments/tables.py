"""The table of a sweep: Markdown to read, CSV to compute with."""

from collections.abc import Sequence
import csv
import pathlib
from types import ModuleType

import numpy as np
import rich.console
import rich.markdown

from experiments import artifacts
from experiments.comparisons import (
  Record,
  Row,
  best,
  geometric_mean,
  mean,
  paired,
  rows,
  shared_rate,
)


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


_HEADER = (
  'cell',
  'b',
  'rate',
  'train loss, geometric mean [95 %]',
  'test error %, mean (sd)',
  'paired difference to baseline [95 %]',
  'steps',
  'importance-sampled',
  'cost',
  'seconds',
  'n',
  'diverged',
)


def _cells(row: Row, baseline: Row) -> list[str]:
  """One row of the Markdown table; a dash where nothing was measured."""
  if not row.records:
    return [row.cell, '-', f'{row.rate:g}', *['-'] * 7, '0', str(row.diverged)]
  errors = 100 * row.values('test_error')
  spread = np.std(errors, ddof=1) if len(errors) > 1 else np.nan
  ours, theirs = paired(row, baseline, 'test_error')
  difference = mean(100 * (ours - theirs)).within('{:+.2f}')
  share = '-'
  if 'mean_importance_sampled' in next(iter(row.records.values())).result:
    share = f'{row.values("mean_importance_sampled").mean():.0%}'
  return [
    row.cell,
    str(next(iter(row.records.values())).config['sampler']['batch_size']),
    f'{row.rate:g}',
    row.train_loss.within('{:.2e}'),
    f'{errors.mean():.2f} ({spread:.2f})',
    '-' if row is baseline else difference,
    f'{row.values("steps").mean():.0f}',
    share,
    f'{row.values("cost").mean():.0f}',
    f'{row.values("seconds").mean():.2f}',
    str(len(row.records)),
    str(row.diverged),
  ]


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


def _markdown(table: list[Row], baseline: Row) -> str:
  return markdown(_HEADER, [_cells(row, baseline) for row in table])


def document(records: list[Record], module: ModuleType) -> str:
  """Returns the whole result of a sweep as Markdown.

  Args:
    records: of all its runs.
    module: the config file, whose BASELINE names the row to compare with.
  """
  table = rows(records)
  chosen = best(table)
  rate = shared_rate(table)
  shared = [row for row in table if row.rate == rate]
  parts = [f'# {records[0].config["name"]}', module.__doc__.strip()]
  baseline = chosen.get(module.BASELINE)
  if baseline is not None:
    parts += ['## Each cell at its best rate, by training loss']
    parts += [_markdown(list(chosen.values()), baseline)]
  at_rate = [row for row in shared if row.cell == module.BASELINE]
  if at_rate:
    parts += [f'## All cells at the best shared rate, {rate:g}']
    parts += [_markdown(shared, at_rate[0])]
  parts += [verdict(table), _provenance(records, module.BASELINE)]
  return '\n\n'.join(parts) + '\n'


def _provenance(records: list[Record], baseline: str) -> str:
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
  return (
    f'Baseline: "{baseline}". b: batch size. Cost: forward-equivalents, '
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
  records: list[Record], module: ModuleType, folder: pathlib.Path
) -> None:
  """Writes table.md and runs.csv to the folder, and prints the table."""
  text = document(records, module)
  with artifacts.atomic_write(folder / 'table.md') as file:
    file.write(text)
  write_csv(records, folder / 'runs.csv')
  show(text)
  print(f'table: {folder / "table.md"}, {folder / "runs.csv"}')
