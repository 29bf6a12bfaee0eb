"""What experiments/results holds: contents.toml, and the files that it names.

The list has the titles of the `sections`, in order, and one table [[result]]
for each result; its own comments say what stands there.
"""

from collections import Counter
from collections.abc import Sequence
import pathlib
import re
import tomllib
from typing import Any, NamedTuple

from experiments.settings import SettingsError, choose

FOLDER = pathlib.PurePath('experiments/results')
# As experiments.claims words them: of one claim, of several.
ANSWERS = {
  'Holds': ('holds', 'hold'),
  'Does not hold': ('does not hold', 'do not hold'),
  'Undecided': ('is undecided', 'are undecided'),
  'Not run': ('was not run', 'were not run'),
}

_IS_REQUIRED = {
  'name': True,
  'section': True,
  'what': True,
  'found': False,
  'command': False,
}
_CLAIM = re.compile(
  rf'^- ({"|".join(ANSWERS)})( \(.*?\))?: (.+?)\.(?: (The .*))?$', re.M
)
# As experiments.tables words it, where a config states no claims.
_VERDICTS = {
  'Importance sampling paid': 'Holds',
  'Importance sampling did not pay': 'Does not hold',
  'Undecided whether importance sampling pays': 'Undecided',
}
_VERDICT = re.compile(rf'^({"|".join(_VERDICTS)}): (.*)$', re.M)


class Answer(NamedTuple):
  """What the runs say to a claim.

  answer: a key of ANSWERS.
  claim:  a sentence without its full stop, its group of cells at the end.
  how:    by how much, a sentence; '' where it was not run.
  """

  answer: str
  claim: str
  how: str


class Result(NamedTuple):
  """A table with all that belongs to it.

  name, section, what, found, command: as in contents.toml, defaults filled in.
  table:  path of the Markdown file.
  text:   what it holds.
  claims: in it, with their answers.
  source: path of the config, or of the benchmark.
  files:  paths of the figures, CSV and JSON files.
  """

  name: str
  section: str
  what: str
  found: str
  command: str
  table: pathlib.Path
  text: str
  claims: list[Answer]
  source: pathlib.Path
  files: list[pathlib.Path]

  @property
  def figures(self) -> list[pathlib.Path]:
    """Those of its files that are pictures."""
    return [path for path in self.files if path.suffix == '.png']


def read(root: pathlib.Path) -> list[Result]:
  """Returns the results, section by section.

  Args:
    root: of the repository, or of a folder with the same layout.

  Raises:
    SettingsError: in one line, where the list is wrong or misses a result, or
      a file is missing.
  """
  path = root / FOLDER / 'contents.toml'
  try:
    contents = tomllib.loads(path.read_text())
  except (OSError, tomllib.TOMLDecodeError) as error:
    raise SettingsError(f'{path}: {error}.') from None
  sections, entries = contents.get('sections'), contents.get('result')
  if not isinstance(sections, list) or not isinstance(entries, list):
    raise SettingsError(f'{path} must have sections, a list, and [[result]].')
  results = []
  for number, entry in enumerate(entries, 1):
    try:
      results.append(_result(_checked(entry, sections), root))
    except SettingsError as error:
      name = entry.get('name', f'number {number}')
      raise SettingsError(f'{path}: result {name}: {error}') from None
  _check_each_is_listed_once(results, path)
  return sorted(results, key=lambda result: sections.index(result.section))


def by_section(results: Sequence[Result]) -> dict[str, list[Result]]:
  """Returns the results of each section that has some."""
  sections: dict[str, list[Result]] = {}
  for result in results:
    sections.setdefault(result.section, []).append(result)
  return sections


def answers(text: str) -> list[Answer]:
  """Returns the claims of a table, or its verdict, as experiments.tables wrote.

  Args:
    text: the table as Markdown.
  """
  claims = [
    Answer(answer, claim + group, how)
    for answer, group, claim, how in _CLAIM.findall(text)
  ]
  return claims or [
    Answer(
      _VERDICTS[verdict],
      'Importance sampling pays',
      how[0].upper() + how[1:],
    )
    for verdict, how in _VERDICT.findall(text)
  ]


def in_short(claims: Sequence[Answer]) -> str:
  """Returns one sentence: the only claim, or how many there are by answer."""
  if len(claims) == 1:
    return f'{claims[0].answer}: {claims[0].claim}.'
  counts = Counter(claim.answer for claim in claims)
  parts = [
    f'{counts[answer]} {words[counts[answer] > 1]}'
    for answer, words in ANSWERS.items()
    if counts[answer]
  ]
  return f'Of {len(claims)} claims {", ".join(parts)}.' if parts else ''


def _checked(entry: dict[str, Any], sections: Sequence[str]) -> dict[str, str]:
  """The entry with its lines joined."""
  for key, value in entry.items():
    choose(_IS_REQUIRED, key, 'a key')
    if not isinstance(value, str):
      raise SettingsError(f'{key} must be text; got {value}.')
  for key, is_required in _IS_REQUIRED.items():
    if is_required and key not in entry:
      raise SettingsError(f'{key} is missing.')
  if entry['section'] not in sections:
    raise SettingsError(f'{entry["section"]!r} is not one of the sections.')
  return {key: ' '.join(value.split()) for key, value in entry.items()}


def _result(entry: dict[str, str], root: pathlib.Path) -> Result:
  """An entry with its files and its defaults."""
  name = entry['name']
  place = root / FOLDER / name
  if name.startswith('benchmarks/'):
    table = place.with_suffix('.md')
    files = place.parent.glob(f'{place.name}.*')
    source = f'experiments/{name}.py'
    command = f'python -m experiments.{name.replace("/", ".")}'
  else:
    table = place / 'table.md'
    files = place.glob('*')
    source = f'configs/{name}.py'
    command = f'./launch.sh {source}'
  if named := re.search(r'(?:configs|tests)/\w+\.py', entry.get('command', '')):
    source = named[0]
  for path in (table, root / source):
    if not path.is_file():
      raise SettingsError(f'there is no {path.relative_to(root)}.')
  text = table.read_text()
  claims = answers(text)
  found = claims[0].how if len(claims) == 1 else ''
  if not claims and 'found' not in entry:
    raise SettingsError('found is missing, and its table states no claims.')
  return Result(
    table=table,
    text=text,
    claims=claims,
    source=root / source,
    files=sorted(set(files) - {table}, key=_rank),
    **{'found': found, 'command': command} | entry,
  )


def _rank(path: pathlib.Path) -> tuple[bool, str]:
  """Sorts the loss before what explains it, all else by name."""
  return path.stem != 'loss_and_error', path.name


def _check_each_is_listed_once(
  results: Sequence[Result], path: pathlib.Path
) -> None:
  """Raises where a table is missing from the list, or twice in it."""
  listed = Counter(result.table for result in results)
  there = set(path.parent.glob('*/*.md'))
  for table in sorted(there - listed.keys()):
    raise SettingsError(f'{path} lacks {table.relative_to(path.parent)}.')
  for table, times in listed.items():
    if times > 1:
      raise SettingsError(
        f'{path} lists {table.relative_to(path.parent)} {times} times.'
      )
