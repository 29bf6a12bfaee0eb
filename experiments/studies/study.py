"""What a study is, and how its config becomes a table and figures."""

from collections.abc import Callable, Iterable, Sequence
import csv
import itertools
import pathlib
import re
import sys
from types import ModuleType
from typing import Any, NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from experiments import artifacts, settings, tables
from experiments.progress import Progress
from experiments.settings import SettingsError, UnavailableError

# report(fraction done, metrics), called every now and then
Report = Callable[[float, dict[str, float]], None]


class Study(NamedTuple):
  """A computation whose result is a table: what training sweeps are not.

  field:    of the config: what its sweep changes, and runs are known by.
  check:    (config) -> None; raises SettingsError where a setting is wrong.
  measure:  (config, report) -> result, of one run: a dict that JSON holds,
            with the lines of the CSV file, dicts, in result['rows'].
            Raises UnavailableError where it cannot be made here.
  sections: (results of all runs) -> paragraphs and tables of Markdown.
  figures:  (results of all runs) -> name -> figure.
  """

  field: str
  check: Callable[[dict[str, Any]], None]
  measure: Callable[[dict[str, Any], Report], dict[str, Any]]
  sections: Callable[[list[dict[str, Any]]], list[str]]
  figures: Callable[[list[dict[str, Any]]], dict[str, plt.Figure]]


def expect(
  config: dict[str, Any],
  field: str,
  requirement: str,
  holds: Callable[[Any], bool],
) -> None:
  """Raises SettingsError unless the dotted field meets the requirement."""
  value = config
  for name in field.split('.'):
    value = value[name]
  if not holds(value):
    raise SettingsError(f'{field} must be {requirement}; got {value}.')


def are_integers(values: Iterable[Any], least: int) -> bool:
  """Whether all values are integers of at least `least`."""
  return all(isinstance(value, int) and value >= least for value in values)


def are_steps(values: Sequence[Any]) -> bool:
  """Whether the values are increasing integers from 0 on, and there are any."""
  pairs = itertools.pairwise(values)
  return (
    len(values) > 0
    and are_integers(values, 0)
    and all(first < second for first, second in pairs)
  )


def run(
  study: Study,
  module: ModuleType,
  config: dict[str, Any],
  changes: dict[str, Any],
  folder: pathlib.Path,
) -> None:
  """Makes the unfinished runs of a study, then its table and its figures.

  Args:
    study: which one.
    module: the config file, whose `sweep(config)` yields the top-level fields
      that each run changes.
    config: its settings.
    changes: of the command line; a field among them is not swept.
    folder: for runs and results.

  Raises:
    SettingsError: where a setting is wrong, or no run can be made here.
  """
  configs = _runs(module, config, changes)
  for one in configs:
    study.check(one)
  places = [folder / _run_name(study, one) for one in configs]
  todo = [p for p in places if artifacts.read_result(p) is None]
  print(
    f'{len(places)} runs in {folder}, {len(places) - len(todo)} of them '
    f'finished before; device: {artifacts.provenance()["device"]}.',
    file=sys.stderr,
    flush=True,
  )
  left_out = {}
  with Progress(len(todo)) as progress:
    for one, place in zip(configs, places, strict=True):
      if place not in todo:
        continue
      try:
        _make(study, one, place, progress)
      except UnavailableError as reason:
        left_out[one[study.field]] = str(reason)
        progress.say(f'{one[study.field]}: left out. {reason}')
      progress.finish(place.name)
  results = [artifacts.read_result(place) for place in places]
  results = [result for result in results if result is not None]
  if not results:
    raise SettingsError(' '.join(left_out.values()))
  _write(study, module, results, left_out, folder)


def _runs(
  module: ModuleType, config: dict[str, Any], changes: dict[str, Any]
) -> list[dict[str, Any]]:
  """The config of each run, each one once."""
  shared = {k: v for k, v in config.items() if k != 'sweep'}
  configs = {}
  for entry in module.sweep(config):
    one = shared | {k: v for k, v in entry.items() if k not in changes}
    configs[settings.digest(one)] = one
  if not configs:
    raise SettingsError('the sweep has no run: check its fields in sweep.')
  return list(configs.values())


def _run_name(study: Study, config: dict[str, Any]) -> str:
  word = re.sub(r'[^a-z0-9.]+', '_', config[study.field].lower())
  return f'{word}-{settings.digest(config)}'


def _make(study, config, place: pathlib.Path, progress: Progress) -> None:
  """Makes one run; result.json appears in one piece."""

  def report(fraction, metrics):
    progress.update(place.name, fraction, metrics)

  result = study.measure(config, report)
  artifacts.write_json(
    place / 'result.json', result | {'config': config} | artifacts.provenance()
  )


def _write(study, module, results, left_out, folder: pathlib.Path) -> None:
  """Writes table, CSV file and figures, and prints the table."""
  text = '\n\n'.join(
    [
      f'# {results[0]["config"]["name"]}',
      (module.__doc__ or '').strip(),
      *study.sections(results),
      *(f'- {name}: left out. {why}' for name, why in left_out.items()),
      _provenance(results),
    ]
  )
  with artifacts.atomic_write(folder / 'table.md') as file:
    file.write(text + '\n')
  rows = [
    {study.field: result['config'][study.field]} | row
    for result in results
    for row in result['rows']
  ]
  with artifacts.atomic_write(folder / 'rows.csv') as file:
    fields = dict.fromkeys(field for row in rows for field in row)
    writer = csv.DictWriter(file, fields, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  paths = [folder / 'table.md', folder / 'rows.csv']
  for name, figure in study.figures(results).items():
    paths.append(folder / f'{name}.png')
    with artifacts.atomic_write(paths[-1], 'wb') as file:
      figure.savefig(file, dpi=140)
    plt.close(figure)
  tables.show(text)
  print(f'table and figures: {", ".join(map(str, paths))}')


def _provenance(results: list[dict[str, Any]]) -> str:
  """Where the numbers come from, each fact once."""

  def all_of(name: str) -> str:
    facts = {_fact(result[name]) for result in results if name in result}
    return '; '.join(sorted(facts))

  return ' '.join(
    f'{name.capitalize()}: {all_of(name)}.' for name in artifacts.provenance()
  )


def _fact(value: Any) -> str:
  if isinstance(value, dict):
    return ', '.join(f'{name} {version}' for name, version in value.items())
  return str(value)
