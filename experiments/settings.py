"""From a command line to the configs of all runs of a sweep.

A config file defines `get_config()`, a ConfigDict of all settings, and
`sweep(config)`, which yields one dict of changes per run: dotted field ->
value. In place of the latter it may define `cells(config)`, name -> changes,
each of which runs with every rate of sweep.learning_rates and sweep.num_seeds
seeds; sweep.cells names those that are wanted.

Its settings are those of the scale 'cpu'; SCALES, scale -> changes, has the
others, which CONFIG.py:SCALE asks for. A change of the command line,
--config.field=value, wins over all.
"""

from collections.abc import Iterable, Iterator
import hashlib
import importlib.util
import json
import pathlib
import re
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

DEFAULT_SCALE = 'cpu'


class SettingsError(Exception):
  """What is wrong with the user's settings, in one line."""


class UnavailableError(SettingsError):
  """Why something cannot be run here, in one line; the rest still can."""


class Command(NamedTuple):
  """A command line.

  path:    of the config file, with its :SCALE if there is one.
  changes: '--config.field=value', one per change.
  workers: number of processes, or None.
  folder:  for results, or None.
  minutes: after which runs are stopped, or None.
  part:    (k, n): of n processes, the k-th, 1 <= k <= n; or None.
  """

  path: str
  changes: list[str]
  workers: int | None
  folder: str | None
  minutes: float | None = None
  part: tuple[int, int] | None = None


def parse(arguments: list[str]) -> Command:
  """Splits a command line: CONFIG, options, changes of the config.

  Raises:
    SettingsError: for an unknown option or anything but one config file.
  """
  values = flags.FlagValues()
  flags.DEFINE_integer('workers', None, '', 1, flag_values=values)
  flags.DEFINE_string('folder', None, '', flag_values=values)
  flags.DEFINE_float('minutes', None, '', 0.0, flag_values=values)
  flags.DEFINE_string('cell', None, '', flag_values=values)
  changes = [a for a in arguments if a.startswith('--config.')]
  ours = [a for a in arguments if a not in changes]
  try:
    positional = values(['isjax', *ours])[1:]
  except flags.Error as error:
    raise SettingsError(
      f'{_one_line(error)}; the options are --workers, --folder, --minutes, '
      '--cell, --deterministic and --config.FIELD.'
    ) from error
  if len(positional) != 1:
    raise SettingsError(
      f'expected one config file; got {" ".join(positional) or "none"}.'
    )
  return Command(
    positional[0],
    changes,
    values.workers,
    values.folder,
    values.minutes,
    None if values.cell is None else _part(values.cell),
  )


def _part(text: str) -> tuple[int, int]:
  """Reads 'k/n'."""
  match = re.fullmatch('([0-9]+)/([0-9]+)', text)
  part = match and tuple(map(int, match.groups()))
  if not part or not 1 <= part[0] <= part[1]:
    raise SettingsError(
      f'--cell must be k/n, 1 <= k <= n: part k of n; got {text!r}.'
    )
  return part


def load(
  path: str, arguments: Iterable[str]
) -> tuple[ModuleType, dict[str, Any], dict[str, Any]]:
  """Loads a config file and applies the changes of the command line.

  Args:
    path: of the config file; with ':' and a scale, at that scale, which its
      name then ends with.
    arguments: '--config.field=value', one per change.

  Returns:
    (module, config, changes): the file as a module, its config as nested
    dicts with the changes applied, and those changes, dotted field -> value.

  Raises:
    SettingsError: where file, scale, field or value is wrong.
  """
  path, _, scale = path.partition(':')
  module = _load_module(path)
  default = module.get_config()
  _set_scale(default, module, scale or DEFAULT_SCALE)
  fields = _flatten(default.to_dict())
  values = flags.FlagValues()
  command = ['isjax', *arguments]
  try:
    config_flags.DEFINE_config_dict(
      'config', default, flag_values=values, sys_argv=command
    )
    rest = values(command)[1:]
    changes = dict(config_flags.get_override_values(values['config']))
  except (AttributeError, KeyError, flags.UnrecognizedFlagError) as error:
    raise SettingsError(_unknown_field(arguments, fields)) from error
  except (flags.Error, TypeError, ValueError, SyntaxError) as error:
    raise SettingsError(f'{path}: {_one_line(error)}') from error
  if rest:
    raise SettingsError(
      f'cannot read the argument {rest[0]!r}; write --config.field=value.'
    )
  config = values.config.to_dict()
  if _flatten(config).keys() != fields.keys():
    raise SettingsError(_unknown_field(arguments, fields))
  return module, config, {k: _plain(v) for k, v in changes.items()}


def runs(
  module: ModuleType, config: dict[str, Any], changes: dict[str, Any]
) -> list[dict[str, Any]]:
  """Returns the config of each run of the sweep, each one once.

  Args:
    module: with `sweep(config)`.
    config: as `load` returns it, with the changes applied.
    changes: of the command line; a field among them is not swept.
  """
  resolved = {}
  for entry in entries(module, config):
    run = {k: v for k, v in config.items() if k != 'sweep'}
    for field, value in entry.items():
      if field not in changes:
        run = with_field(run, field, value)
    resolved[digest(run)] = run
  _expect_distinct(resolved.values())
  return list(resolved.values())


def entries(
  module: ModuleType, config: dict[str, Any]
) -> Iterator[dict[str, Any]]:
  """Yields the changes of each run: dotted field -> value.

  Args:
    module: with `sweep(config)` or `cells(config)`.
    config: whose `sweep` says how many there are.

  Raises:
    SettingsError: where sweep.cells names a cell that there is not.
  """
  if hasattr(module, 'sweep'):
    yield from module.sweep(config)
    return
  wanted = config['sweep']
  cells = module.cells(config)
  rates = wanted.get('learning_rates', (config['optimizer']['learning_rate'],))
  for cell in wanted.get('cells') or cells:
    changes = choose(cells, cell, 'sweep.cells')
    for rate in rates:
      for seed in range(wanted['num_seeds']):
        yield {
          'cell': cell,
          'optimizer.learning_rate': rate,
          'seed': seed,
          **changes,
        }


def _expect_distinct(configs: Iterable[dict[str, Any]]) -> None:
  """Tables tell runs apart by cell, learning rate and seed."""
  seen = set()
  for config in configs:
    place = config['cell'], config['optimizer']['learning_rate'], config['seed']
    if place in seen:
      raise SettingsError(
        f'two runs of the sweep are cell {place[0]!r}, learning rate '
        f'{place[1]}, seed {place[2]}: give them cells of different names.'
      )
    seen.add(place)
  if not seen:
    raise SettingsError('the sweep has no run: check its fields in sweep.')


def digest(config: dict[str, Any]) -> str:
  """Returns eight hex digits that tell one config from another."""
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(saved: dict[str, Any], given: dict[str, Any]) -> str:
  """Names the fields in which two configs differ; empty where none does.

  Args:
    saved: nested dicts, as JSON holds them.
    given: the same; tuples are lists.
  """
  saved, given = (_flatten(json.loads(json.dumps(c))) for c in (saved, given))
  return some(
    [
      f'{name} was {saved.get(name, "absent")}, is {given.get(name, "absent")}'
      for name in saved | given
      if saved.get(name, 'absent') != given.get(name, 'absent')
    ]
  )


def some(names: list[str]) -> str:
  """Returns the first four of them, and how many more there are."""
  more = [f'and {len(names) - 4} more'] if len(names) > 4 else []
  return '; '.join(names[:4] + more)


def options(settings: dict[str, Any]) -> dict[str, Any]:
  """Returns a component's settings without its name."""
  return {k: v for k, v in settings.items() if k != 'name'}


def choose(registry: dict[str, Any], name: str, field: str) -> Any:
  """Returns registry[name].

  Raises:
    SettingsError: for a name that is not registered; it lists those that are.
  """
  if name not in registry:
    raise SettingsError(
      f'{field} must be one of {", ".join(sorted(registry))}; got {name!r}.'
    )
  return registry[name]


def _load_module(path: str) -> ModuleType:
  if not pathlib.Path(path).is_file():
    known = sorted(str(p) for p in pathlib.Path('configs').glob('*.py'))
    raise SettingsError(
      f'there is no config file {path!r}; there are {", ".join(known)}.'
    )
  spec = importlib.util.spec_from_file_location(
    f'configs.{pathlib.Path(path).stem}', path
  )
  if spec is None or spec.loader is None:
    raise SettingsError(f'{path!r} is not a Python file.')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise SettingsError(f'{path}: a config file defines get_config().')
  if not (hasattr(module, 'sweep') or hasattr(module, 'cells')):
    raise SettingsError(f'{path}: a config file defines sweep() or cells().')
  return module


def scales(module: ModuleType) -> tuple[str, ...]:
  """Returns the names of the scales that a config file has."""
  return (DEFAULT_SCALE, *getattr(module, 'SCALES', {}))


def _set_scale(config, module: ModuleType, scale: str) -> None:
  """Makes the changes of a scale in place; sub-dicts are replaced as a whole.

  Args:
    config: the ConfigDict of the scale 'cpu'.
    module: the config file.
    scale: one of its scales.
  """
  if scale not in scales(module):
    raise SettingsError(
      f'{config.name} has the scales {", ".join(scales(module))}; got '
      f'{scale!r}.'
    )
  if scale == DEFAULT_SCALE:
    return
  for field, value in module.SCALES[scale].items():
    *parents, name = field.split('.')
    place = config
    for parent in parents:
      place = place[parent]
    if name not in place:
      raise SettingsError(f'scale {scale!r} sets {field!r}, which is no field.')
    with place.ignore_type():
      place[name] = ConfigDict(value) if isinstance(value, dict) else value
  config.name = f'{config.name}_{scale}'


def _flatten(config: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for name, value in config.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      flat[f'{prefix}{name}'] = value
  return flat


def _plain(value: Any) -> Any:
  return value.to_dict() if hasattr(value, 'to_dict') else value


def _unknown_field(arguments: Iterable[str], fields: dict[str, Any]) -> str:
  """Names the first argument that is no field, and all that are."""
  known = ', '.join(sorted(fields))
  for argument in arguments:
    name = argument.split('=')[0].removeprefix('--')
    if name.removeprefix('config.') not in fields or '=' not in argument:
      return f'{argument!r} sets no field of the config; those are {known}.'
  return f'the config has the fields {known}.'


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split())


def with_field(
  config: dict[str, Any], field: str, value: Any
) -> dict[str, Any]:
  """Returns a copy of the config with one dotted field changed.

  Raises:
    SettingsError: where there is no such field.
  """
  head, _, tail = field.partition('.')
  if head not in config or (tail and not isinstance(config[head], dict)):
    raise SettingsError(
      f'{field!r} is to be set, which is no field of the config.'
    )
  if tail:
    value = with_field(config[head], tail, value)
  return config | {head: value}


def iterate_cells(
  configs: Iterable[dict[str, Any]], arguments: Iterable[str]
) -> Iterator[list[dict[str, Any]]]:
  """Groups the configs that differ in nothing but the named fields.

  Args:
    configs: of the runs.
    arguments: dotted fields that are arguments of the compiled program.
  """
  cells: dict[str, list[dict[str, Any]]] = {}
  for config in configs:
    same = config
    for field in arguments:
      same = with_field(same, field, None)
    cells.setdefault(digest(same), []).append(config)
  yield from cells.values()
