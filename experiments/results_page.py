"""Writes the page of all results, and the README's tables of them.

    python -m experiments.results_page

Reads experiments/results/contents.toml, which says what there is, with the
tables, figures and configs that it names. Writes index.html beside it, and what
the README has between two comments.
"""

from collections.abc import Sequence
import os
import pathlib
import sys

from experiments import artifacts, results_contents, results_html
from experiments.results_contents import FOLDER, Result
from experiments.settings import SettingsError
from experiments.tables import markdown

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMAND = 'python -m experiments.results_page'
BEGIN = f'<!-- From here on written by `{COMMAND}` -->'
END = f'<!-- Written by `{COMMAND}` up to here -->'


def outputs(root: pathlib.Path) -> dict[pathlib.Path, str]:
  """Returns what the command writes: path -> text.

  Args:
    root: of the repository, or of a folder with the same layout.

  Raises:
    SettingsError: in one line, where the list of contents is wrong, a file is
      missing, or the README lacks the two comments.
  """
  results = results_contents.read(root)
  readme = root / 'README.md'
  before, begin, rest = readme.read_text().partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end:
    raise SettingsError(f'{readme} lacks the lines {BEGIN} and {END}.')
  block = readme_block(results, root)
  return {
    root / FOLDER / 'index.html': results_html.page(results, root),
    readme: f'{before}{begin}\n\n{block}\n\n{end}{after}',
  }


def readme_block(results: Sequence[Result], root: pathlib.Path) -> str:
  """Returns one table of Markdown for each section.

  Args:
    results: section by section.
    root: what links are relative to.
  """
  parts = []
  for section, group in results_contents.by_section(results).items():
    lines = [[one.what, f'`{one.command}`', _cell(one, root)] for one in group]
    lines = [[cell.replace('|', r'\|') for cell in line] for line in lines]
    parts += [f'### {section}', markdown(['what', 'command', 'result'], lines)]
  return '\n\n'.join(parts)


def _cell(result: Result, root: pathlib.Path) -> str:
  """Links to a result, what its claims come to, and what was found."""

  def link(word: str, path: pathlib.Path) -> str:
    return f'[{word}]({path.relative_to(root).as_posix()})'

  links = link('table', result.table)
  if len(result.figures) == 1:
    links += ', ' + link('figure', *result.figures)
  elif result.figures:
    named = [link(path.stem.replace('_', ' '), path) for path in result.figures]
    links += f', figures {", ".join(named)}'
  answer = results_contents.in_short(result.claims)
  return ' '.join(filter(None, [f'{links}.', answer, result.found]))


def main(arguments: Sequence[str]) -> int:
  """Writes both files; returns the exit status."""
  if arguments:
    print(__doc__, file=sys.stderr)
    return 2
  try:
    for path, text in outputs(ROOT).items():
      with artifacts.atomic_write(path) as file:
        file.write(text)
      print(f'written: {os.path.relpath(path)}')
  except SettingsError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
