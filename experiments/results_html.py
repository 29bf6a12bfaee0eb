"""The results as one page of HTML, which needs neither server nor network."""

from collections.abc import Iterator, Sequence
import html
import itertools
import os
import pathlib
import re
import struct

from markdown_it import MarkdownIt
from markdown_it.token import Token

from experiments.results_contents import FOLDER, Result, by_section, in_short
from experiments.tables import markdown

PAPER = 'the paper'  # the column of its numbers

_STYLE = pathlib.Path(__file__).with_suffix('.css')
_MARKDOWN = MarkdownIt('commonmark', {'html': False}).enable('table')
_MARKDOWN.add_render_rule(
  'table_open', lambda *_: '<div class="wide" tabindex="0"><table>\n'
)
_MARKDOWN.add_render_rule('table_close', lambda *_: '</table></div>\n')
_TITLE = re.compile(r'\A# .*\n+')
_IMAGE = re.compile(r'^!\[(.*)\]\((.*)\)\n+', re.M)
# Of columns: a mean, as its header says; numbers with signs, intervals and
# p-values, as all of their cells do; answers, which have colours.
_MEAN = re.compile(r', (geometric )?mean [\[(]')
_NUMBERS = re.compile(r'([^A-Za-z]|\b(x|p|to)\b|(?<=\d)e(?=[-+\d])|nan)*')
_LONG = 24  # characters; a cell with more of them has lines
_COLOURED = ('answer', 'met', PAPER)


def page(results: Sequence[Result], root: pathlib.Path) -> str:
  """Returns the whole page.

  Args:
    results: section by section.
    root: of the repository; links are relative to its folder of results.
  """
  sections = {'Claims': _claims(results), 'Beside the papers': _papers(results)}
  for title, group in by_section(results).items():
    sections[title] = '\n'.join(_article(result, root) for result in group)
  sections = {title: content for title, content in sections.items() if content}
  body = '\n'.join(
    f'<section id="{_slug(title)}">\n<h2>{html.escape(title)}</h2>\n'
    f'{content}\n</section>'
    for title, content in sections.items()
  )
  num_figures = sum(len(result.figures) for result in results)
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>isjax: results</title>
<style>
{_STYLE.read_text().strip()}
</style>
</head>
<body>
{_navigation(list(sections), results)}
<main>
<h1>Results of isjax</h1>
<p>{len(results)} results with {num_figures} figures. Each has the command that
made it, its config, its rows as CSV or JSON, and in its last lines commit,
device and versions. Cost is counted in forward-equivalents: forward 1, backward
2 per example, scoring charged.</p>
{body}
</main>
</body>
</html>
"""


def _slug(title: str) -> str:
  """A title as an anchor."""
  return '-'.join(re.findall(r'[a-z0-9]+', title.lower()))


def _words(name: str) -> str:
  """The last part of a path, as words."""
  return pathlib.PurePath(name).stem.replace('_', ' ')


def _anchor(result: Result) -> str:
  """A link to a result on the page, as Markdown."""
  return f'[{_words(result.name)}](#{result.name})'


def _navigation(titles: Sequence[str], results: Sequence[Result]) -> str:
  """The table of contents."""
  lines = []
  for title in titles:
    lines.append(f'- [{title}](#{_slug(title)})')
    group = by_section(results).get(title, [])
    lines += [f'  - {_anchor(result)}' for result in group]
  items = _MARKDOWN.render('\n'.join(lines))
  return f'<nav aria-label="Contents">\n{items}</nav>'


def _claims(results: Sequence[Result]) -> str:
  """What the runs say to all claims; '' where there are none."""
  rows = [
    [*claim, _anchor(result)] for result in results for claim in result.claims
  ]
  if not rows:
    return ''
  summary = in_short([claim for result in results for claim in result.claims])
  return _render(
    f'{summary} A claim holds where the whole 95 % interval of the comparison, '
    'paired by seed, is on its side, and does not hold where it is on the '
    'other.\n\n' + _table(['answer', 'claim', 'by how much', 'table'], rows)
  )


def _papers(results: Sequence[Result]) -> str:
  """The papers' numbers beside those found here; '' where there are none."""
  rows = [
    [*numbers, _anchor(result)]
    for result in results
    for numbers in _beside_paper(result.text)
  ]
  if not rows:
    return ''
  return _render(
    "Of each cell the means at its best rate, beside the paper's numbers.\n\n"
    + _table(['cell', 'here', PAPER, 'table'], rows)
  )


def _beside_paper(text: str) -> Iterator[tuple[str, str, str]]:
  """Cell, means found here, and the paper's number; each cell once."""
  seen = set()
  for header, *rows in _tables(_MARKDOWN.parse(text)):
    names = [name for _, name in header]
    for row in rows if PAPER in names else []:
      values = dict(zip(names, [value for _, value in row], strict=True))
      means = [
        f'{_MEAN.split(name)[0]} {value}'
        for name, value in values.items()
        if _MEAN.search(name)
      ]
      cell = row[0][1]
      if values[PAPER] != '-' and cell not in seen:
        seen.add(cell)
        yield cell, '; '.join(means), values[PAPER]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table of Markdown, whatever its cells hold."""
  return markdown(header, [[c.replace('|', r'\|') for c in r] for r in rows])


def _article(result: Result, root: pathlib.Path) -> str:
  """A result: what it is, what was found, figures, config and table."""
  files = ', '.join(
    _link(path, path.name, root)
    for path in (result.table, *result.files, result.source)
    if path not in result.figures
  )
  claims = in_short(result.claims)
  found = f'**{claims}** {result.found}' if claims else result.found
  text = _IMAGE.sub('', _TITLE.sub('', result.text))
  return f"""<article id="{result.name}">
<h3>{html.escape(_words(result.name))}</h3>
<p class="what">{_MARKDOWN.renderInline(result.what)}</p>
<p class="found">{_MARKDOWN.renderInline(found)}</p>
<p class="files"><code>{html.escape(result.command)}</code> {files}</p>
{_figures(result, root)}{_config(result, root)}<div class="text">
{_render(text)}</div>
</article>"""


def _link(path: pathlib.Path, content: str, root: pathlib.Path) -> str:
  """A link to a file."""
  href = pathlib.Path(os.path.relpath(path, root / FOLDER)).as_posix()
  return f'<a href="{html.escape(href)}">{content}</a>'


def _figures(result: Result, root: pathlib.Path) -> str:
  """The figures, each a link to itself in full size."""
  described = {name: text for text, name in _IMAGE.findall(result.text)}
  parts = []
  for path in result.figures:
    text = html.escape(described.get(path.name, _words(path.name)))
    width, height = struct.unpack('>II', path.read_bytes()[16:24])  # of a PNG
    image = (
      f'<img src="{path.relative_to(root / FOLDER).as_posix()}" alt="{text}" '
      f'width="{width}" height="{height}" loading="lazy">'
    )
    parts.append(
      f'<figure>\n{_link(path, image, root)}\n'
      f'<figcaption>{text}</figcaption>\n</figure>\n'
    )
  return ''.join(parts)


def _config(result: Result, root: pathlib.Path) -> str:
  """The config of a result, folded; '' for a benchmark, which has none."""
  name = result.source.relative_to(root).as_posix()
  if not name.startswith('configs/'):
    return ''
  return (
    f'<details>\n<summary>{name}</summary>\n'
    f'<pre><code>{html.escape(result.source.read_text())}</code></pre>\n'
    '</details>\n'
  )


def _render(text: str) -> str:
  """Markdown as HTML: numbers to the right, answers in their colours."""
  tokens = _MARKDOWN.parse(text)
  for token in tokens:
    if token.type in ('heading_open', 'heading_close'):
      token.tag = f'h{int(token.tag[1]) + 2}'  # below those of the page
  for table in _tables(tokens):
    for (head, name), *cells in zip(*table, strict=True):
      column = [head, *(token for token, _ in cells)]
      if all(_NUMBERS.fullmatch(value) for _, value in cells):
        for token in column:
          token.attrJoin('class', 'number')
      elif max(len(value) for _, value in cells) > _LONG:
        for token in column:
          token.attrJoin('class', 'long')
      if name in _COLOURED:
        for token, value in cells:
          kind = 'paper' if name == PAPER else _slug(value)
          token.attrJoin('class', kind or 'none')
  return _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})


def _tables(
  tokens: Sequence[Token],
) -> Iterator[list[list[tuple[Token, str]]]]:
  """The tables of a document: rows of cells, each with its Markdown."""
  table = []
  for token, inner in itertools.zip_longest(tokens, tokens[1:]):
    if token.type in ('th_open', 'td_open'):
      table[-1].append((token, inner.content))
    elif token.type == 'tr_open':
      table.append([])
    elif token.type == 'table_close':
      yield table
      table = []
