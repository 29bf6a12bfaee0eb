"""The table of a sweep: Markdown to read, CSV to compute with.

Training losses span orders of magnitude and one bad seed rules their mean, so
they are summarised by the geometric mean with its 95 % interval; test errors
by mean, standard deviation and the paired difference to the baseline, seed by
seed. Rates are chosen by training loss, never by test error.
"""

import csv
import pathlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.markdown
from scipy import stats

from experiments import artifacts

UNIFORM_SAMPLERS = ('uniform', 'shuffle')


class Record(NamedTuple):
  """A finished run.

  config:  its settings.
  result:  its result.json.
  metrics: the lines of its metrics.jsonl.
  """

  config: dict[str, Any]
  result: dict[str, Any]
  metrics: list[dict[str, Any]]

  @property
  def rate(self) -> float:
    """Its learning rate."""
    return self.config['optimizer']['learning_rate']


class Interval(NamedTuple):
  """An estimate with its 95 % confidence interval (NaN at n = 1)."""

  estimate: float
  low: float
  high: float

  def within(self, template: str) -> str:
    """The estimate, and the interval in brackets."""
    text = template.format(self.estimate)
    if np.isnan(self.low):
      return text
    low, high = template.format(self.low), template.format(self.high)
    return f'{text} [{low}, {high}]'


class Row(NamedTuple):
  """All runs of one cell at one learning rate.

  cell, rate: what they share.
  records:    by seed; those that diverged are left out.
  diverged:   how many that are.
  """

  cell: str
  rate: float
  records: dict[int, Record]
  diverged: int

  def values(self, name: str) -> np.ndarray:
    """The named result of each run, f64[n], by seed."""
    return np.array(
      [self.records[seed].result[name] for seed in sorted(self.records)]
    )

  @property
  def train_loss(self) -> Interval:
    """Geometric mean."""
    return geometric_mean(self.values('train_loss'))

  @property
  def is_uniform(self) -> bool:
    """Whether its sampler uses no importance at all."""
    record = next(iter(self.records.values()))
    return record.config['sampler']['name'] in UNIFORM_SAMPLERS


def read(folder: pathlib.Path) -> Record:
  """Reads a finished run back from its folder."""
  result = artifacts.read_result(folder)
  if result is None:
    raise FileNotFoundError(f'{folder} holds no finished run.')
  return Record(result['config'], result, artifacts.read_metrics(folder))


def mean(values: np.ndarray) -> Interval:
  """Returns the mean with its t interval."""
  if len(values) < 2 or np.ptp(values) == 0:
    centre = float(np.mean(values)) if len(values) else np.nan
    return Interval(centre, np.nan, np.nan)
  interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  return Interval(float(np.mean(values)), interval.low, interval.high)


def geometric_mean(values: np.ndarray) -> Interval:
  """Returns the geometric mean, its interval that of the mean logarithm."""
  tiny = np.finfo(np.float32).tiny  # a float32 loss may be exactly 0
  return Interval(*np.exp(mean(np.log(np.maximum(values, tiny)))))


def paired(row: Row, baseline: Row, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the named results of both rows for the seeds they share."""
  seeds = sorted(row.records.keys() & baseline.records.keys())
  return tuple(
    np.array([r.records[seed].result[name] for seed in seeds])
    for r in (row, baseline)
  )


def rows(records: list[Record]) -> list[Row]:
  """Groups runs by cell and learning rate, in the sweep's order."""
  groups: dict[tuple[str, float], list[Record]] = {}
  for record in records:
    groups.setdefault((record.config['cell'], record.rate), []).append(record)
  result = []
  for (cell, rate), group in groups.items():
    finished = {
      r.config['seed']: r for r in group if r.result['status'] == 'finished'
    }
    diverged = sum(r.result['status'] == 'diverged' for r in group)
    result.append(Row(cell, rate, finished, diverged))
  return result


def best(table: list[Row]) -> dict[str, Row]:
  """Returns each cell's row of least training loss among its learning rates.

  A rate at which a run diverged counts only where all rates have such runs.
  """
  chosen: dict[str, Row] = {}
  for cell in dict.fromkeys(row.cell for row in table):
    candidates = [r for r in table if r.cell == cell and r.records]
    candidates = [r for r in candidates if not r.diverged] or candidates
    if candidates:
      chosen[cell] = min(candidates, key=lambda r: r.train_loss.estimate)
  return chosen


def shared_rate(table: list[Row]) -> float:
  """Returns the rate of least training loss, averaged over cells in logs."""
  rates = sorted({row.rate for row in table})

  def score(rate: float) -> float:
    here = [row for row in table if row.rate == rate]
    if any(row.diverged or not row.records for row in here):
      return np.inf
    return float(np.mean([np.log(r.train_loss.estimate) for r in here]))

  return min(rates, key=score)


def verdict(table: list[Row]) -> str:
  """Returns one line: whether importance sampling paid, and by how much.

  Compares the best importance-sampled cell with the best uniform one, each at
  its own best rate, by training loss.
  """
  chosen = best(table).values()
  uniform = [row for row in chosen if row.is_uniform]
  sampled = [row for row in chosen if not row.is_uniform]
  if not uniform or not sampled:
    return 'No verdict: it takes a uniform cell and an importance-sampled one.'
  ours = min(sampled, key=lambda r: r.train_loss.estimate)
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


def _markdown(table: list[Row], baseline: Row) -> str:
  lines = [_HEADER, ['---'] * len(_HEADER)]
  lines += [_cells(row, baseline) for row in table]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


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
  config = records[0].config
  return (
    f'Baseline: "{baseline}". b: batch size. Cost: forward-equivalents, '
    f'budget {config["budget"]}. Seconds: training only, without compiling '
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
  console = rich.console.Console()
  if console.is_terminal:
    console.print(rich.markdown.Markdown(text))
  else:
    print(text)
  print(f'table: {folder / "table.md"}, {folder / "runs.csv"}')
