"""The page of results and the README's tables say what the tables say."""

from collections import Counter
import html.parser
import itertools
import re
import struct

import PIL.Image
import pytest

from experiments import (
  claims,
  results_contents,
  results_html,
  results_page,
  tables,
)
from experiments.comparisons import Record, Row
from experiments.results_page import BEGIN, COMMAND, END, ROOT
from experiments.settings import SettingsError

RESULTS = ROOT / results_contents.FOLDER
VOID = {'img', 'meta', 'br', 'hr'}

TABLE = r"""# made_up

Is *anything* < nothing & `a|b` <b>bold</b>?

## Each cell at its best rate, by training loss

| cell | rate | test error %, mean (sd) | the paper | cost | said |
| --- | --- | --- | --- | --- | --- |
| uniform | 0.1 | 2.36 (0.39) | - | 1.2e+05 | a < b |
| loss & norm | 0.3 | 1.90 (0.20) | 1.8 % (table 2) | x 0.9, p 0.2 | c \| d |

## All cells at the best shared rate, 0.1

| cell | rate | test error %, mean (sd) | the paper | cost |
| --- | --- | --- | --- | --- |
| loss & norm | 0.1 | 9.99 (0.20) | 1.8 % (table 2) | - |

## Claims

- Holds: Loss is < uniform at .5. The test error of "a" differs by -1.00 [-2.00, -0.50] points from that of "b" (n = 3).
- Holds (mnist): Loss | norm. The training loss of "a" is 0.5 [0.4, 0.6] times that of "b" (n = 3).
- Undecided: A & B. The training loss of "a" is 0.5 [0.4, 1.6] times that of "b" (n = 3).
- Not run: Nothing.

Device: none.
"""  # noqa: E501

MADE_UP = """
[[result]]
name = "made_up"
section = "First & best"
what = "What <it>"
found = "Found."
command = "./launch.sh configs/made_up.py:smoke"
"""
CONTENTS = f"""
sections = ["Empty", "First & best", "Speed"]

[[result]]
name = "benchmarks/quick"
section = "Speed"
what = "How quick"
found = "Quick, a | b."
{MADE_UP}"""


class Reader(html.parser.HTMLParser):
  """What a page holds, if its tags match."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.tables, self.text = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'table':
      self.tables.append([])
    if tag == 'tr':
      self.tables[-1].append([])
    if tag in ('td', 'th'):
      self.tables[-1][-1].append('')

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, f'</{tag}> closes another one.'

  def handle_data(self, data):
    self.text.append(data)
    if {'td', 'th'} & set(self.open):
      self.tables[-1][-1][-1] += data

  def values(self, tag, name):
    """An attribute of all tags of a kind."""
    return [attrs[name] for t, attrs in self.tags if t == tag and name in attrs]

  def table(self, *header):
    """The rows of the one table whose header begins so."""
    (found,) = [
      table for table in self.tables if tuple(table[0][: len(header)]) == header
    ]
    return found[1:]


@pytest.fixture(scope='module')
def listed():
  """The results of this repository."""
  return results_contents.read(ROOT)


@pytest.fixture(scope='module')
def page(listed):
  """Their page."""
  return results_html.page(listed, ROOT)


@pytest.fixture
def root(tmp_path):
  """A repository with two made-up results."""
  files = {
    'README.md': f'before\n\n{BEGIN}\nold\n{END}\n\nafter\n',
    'configs/made_up.py': 'x = "<tag>" if 1 < 2 else "&amp;"\n',
    'experiments/benchmarks/quick.py': '',
    'experiments/results/contents.toml': CONTENTS,
    'experiments/results/made_up/table.md': TABLE,
    'experiments/results/made_up/rows.csv': 'a,b\n',
    'experiments/results/benchmarks/quick.md': (
      '# Quick\n\nText.\n\n![How < quick](quick.png)\n\nMore.\n'
    ),
  }
  for name, text in files.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  folder = tmp_path / results_contents.FOLDER
  head = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR'
  for name in ('made_up/a_b', 'made_up/loss_and_error', 'benchmarks/quick'):
    (folder / f'{name}.png').write_bytes(head + struct.pack('>II', 30, 20))
  return tmp_path


def made_up_page(root):
  return results_page.outputs(root)[
    root / results_contents.FOLDER / 'index.html'
  ]


def test_what_is_committed_is_what_the_command_writes():
  """The page and the README's tables are those of the files on disk."""
  written = results_page.outputs(ROOT)
  stale = [
    str(path.relative_to(ROOT))
    for path, text in written.items()
    if not path.exists() or path.read_text() != text
  ]
  assert not stale, f'{stale} must be written anew: {COMMAND}'


def test_every_file_of_the_results_belongs_to_one(listed):
  """Tables, figures and data; nothing is left that no result names."""
  named = [p for result in listed for p in (result.table, *result.files)]
  assert len(named) == len(set(named))
  there = {path for path in RESULTS.glob('*/*') if path.is_file()}
  assert set(named) == there


def test_every_row_of_every_table_is_on_the_page(listed, page):
  """Each line of a table of Markdown is a row, as often as it is there."""
  expected = Counter()
  for result in listed:
    for line in result.text.splitlines():
      cells = [plain(cell) for cell in line[1:-1].split(' | ')]
      if line.startswith('|') and not set(line) <= set('|- '):
        expected[tuple(cells)] += 1
  rows = itertools.chain(*Reader(page).tables)
  shown = Counter(tuple(plain(cell) for cell in row) for row in rows)
  assert sum(expected.values()) > 500
  assert not expected - shown


def plain(cell):
  """Without marks of Markdown."""
  return re.sub(r'[*`\\]', '', cell).strip()


def test_all_links_lead_somewhere(page):
  """To files that exist and to parts of the page; figures have their size."""
  reader = Reader(page)
  ids = reader.values('section', 'id') + reader.values('article', 'id')
  assert len(ids) == len(set(ids))
  for href in reader.values('a', 'href'):
    if href.startswith('#'):
      assert href[1:] in ids, href
    else:
      assert (RESULTS / href).is_file(), href
  images = [attrs for tag, attrs in reader.tags if tag == 'img']
  assert {image['src'] for image in images} == {
    path.relative_to(RESULTS).as_posix() for path in RESULTS.glob('*/*.png')
  }
  for image in images:
    with PIL.Image.open(RESULTS / image['src']) as picture:
      size = picture.size
    assert size == (int(image['width']), int(image['height']))
    assert image['alt']


def test_the_page_needs_nothing_else(page):
  """No scripts, no style sheets, nothing from another place."""
  reader = Reader(page)
  assert not {'script', 'link', 'iframe'} & {tag for tag, _ in reader.tags}
  used = reader.values('img', 'src') + reader.values('a', 'href')
  assert not [href for href in used if ':' in href]
  assert 'url(' not in page
  assert '=""' not in page
  assert '@import' not in page


def test_every_config_is_on_the_page(listed, page):
  """With each of its characters."""
  text = ''.join(Reader(page).text)
  configs = {r.source for r in listed if r.source.parent.name == 'configs'}
  assert len(configs) > 5
  for path in configs:
    assert path.read_text() in text


def test_claims_are_collected(root):
  """One row each, in the order of the sections, and counted."""
  reader = Reader(made_up_page(root))
  rows = reader.table('answer', 'claim')
  assert [row[0] for row in rows] == ['Holds', 'Holds', 'Undecided', 'Not run']
  assert rows[1] == [
    'Holds',
    'Loss | norm (mnist)',
    'The training loss of "a" is 0.5 [0.4, 0.6] times that of "b" (n = 3).',
    'made up',
  ]
  short = 'Of 4 claims 2 hold, 1 is undecided, 1 was not run.'
  text = ''.join(reader.text)
  assert text.count(short) == 2  # above all, and above their table
  assert f'{short} Found.' in text
  assert 'holds' in reader.values('td', 'class')
  assert 'not-run' in reader.values('td', 'class')


def row(cell, losses, sampler='presample'):
  config = {'sampler': {'name': sampler}, 'budget': 1}
  records = {
    seed: Record(config, {'train_loss': loss, 'test_error': loss}, [])
    for seed, loss in enumerate(losses)
  }
  return Row(cell, 0.1, records, 0)


@pytest.mark.parametrize('group', ['', 'mnist'])
def test_claims_are_read_as_they_are_written(group):
  """Those of experiments.claims, with each of its answers."""
  prefix = f'{group}: ' * bool(group)
  values = {'low': [1, 1.1, 1.2], 'high': [2, 2.3, 2.1], 'wild': [0.1, 9, 1]}
  rows = {prefix + cell: row(cell, losses) for cell, losses in values.items()}
  pairs = [('low', 'high'), ('high', 'low'), ('wild', 'low'), ('low', 'none')]
  for metric in ('train_loss', 'test_error'):
    stated = [claims.Claim('See fig. 1 (.5)', *p, metric) for p in pairs]
    lines = [claims.judge(claim, rows, group) for claim in stated]
    read = results_contents.answers('\n'.join(['## Claims', '', *lines]))
    assert [one.answer for one in read] == list(results_contents.ANSWERS)
    place = f' ({group})' if group else ''
    assert {one.claim for one in read} == {f'See fig. 1 (.5){place}'}
    for one, line in zip(read, lines, strict=True):
      assert line.endswith(one.how or 'See fig. 1 (.5).')
    assert read[0].how.startswith(
      f'The {metric.replace("train", "training")[:4]}'
    )


@pytest.mark.parametrize(
  ('losses', 'answer'),
  [
    ([1, 1.1, 1.2], 'Holds'),
    ([5, 5.1, 5.2], 'Does not hold'),
    ([1, 9, 2], 'Undecided'),
  ],
)
def test_a_verdict_is_read_as_a_claim(losses, answer):
  """That of experiments.tables, with each of its answers."""
  table = [row('uniform', [2, 2.3, 2.1], 'uniform'), row('ours', losses)]
  (one,) = results_contents.answers(f'# x\n\n{tables.verdict(table)}\n\nEnd.')
  assert one[:2] == (answer, 'Importance sampling pays')
  assert one.how.startswith('At equal cost the training loss of "ours" is ')


def test_the_papers_numbers_stand_beside_those_found(root):
  """Each cell that has one, once, with its means at its best rate."""
  (found,) = Reader(made_up_page(root)).table('cell', 'here')
  assert found == [
    'loss & norm',
    'test error % 1.90 (0.20)',
    '1.8 % (table 2)',
    'made up',
  ]


def test_numbers_stand_to_the_right(root):
  """Columns of numbers and dashes do, words do not."""
  header = [
    attrs.get('class')
    for tag, attrs in Reader(made_up_page(root)).tags
    if tag == 'th'
  ]
  best = header[8:14]  # after those of claims and of papers
  assert best == [None, 'number', 'number', None, 'number', None]


def test_text_is_escaped(root):
  """Signs of HTML and Markdown come out as they went in."""
  text = made_up_page(root)
  shown = ''.join(Reader(text).text)
  for line in (
    'Is anything < nothing & a|b <b>bold</b>?',
    'Loss is < uniform at .5',
    'x = "<tag>" if 1 < 2 else "&amp;"',
    'What <it>',
    'First & best',
    'c | d',
  ):
    assert line in shown, line
  assert '<b>' not in text
  assert 'alt="How &lt; quick"' in text


def test_the_contents_are_in_order(root):
  """Sections as listed, without empty ones; the loss is the first figure."""
  reader = Reader(made_up_page(root))
  assert reader.values('section', 'id') == [
    'claims',
    'beside-the-papers',
    'first-best',
    'speed',
  ]
  assert reader.values('article', 'id') == ['made_up', 'benchmarks/quick']
  assert reader.values('img', 'src') == [
    'made_up/loss_and_error.png',
    'made_up/a_b.png',
    'benchmarks/quick.png',
  ]


def test_the_readme_has_a_table_for_each_section(root):
  """Between its two comments; the rest stays, and again changes nothing."""
  readme = root / 'README.md'
  text = results_page.outputs(root)[readme]
  folder = 'experiments/results/'
  assert text == (
    f"""before

{BEGIN}

### First & best

| what | command | result |
| --- | --- | --- |
| What <it> | `./launch.sh configs/made_up.py:smoke` | """
    f'[table]({folder}made_up/table.md), '
    f'figures [loss and error]({folder}made_up/loss_and_error.png), '
    f'[a b]({folder}made_up/a_b.png). '
    'Of 4 claims 2 hold, 1 is undecided, 1 was not run. Found. |'
    f"""

### Speed

| what | command | result |
| --- | --- | --- |
| How quick | `python -m experiments.benchmarks.quick` | """
    f'[table]({folder}benchmarks/quick.md), '
    f'[figure]({folder}benchmarks/quick.png). '
    rf'Quick, a \| b. |'
    f"""

{END}

after
"""
  )
  readme.write_text(text)
  assert results_page.outputs(root)[readme] == text


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('sections = [', 'sections = ', 'contents.toml: '),
    ('sections', 'parts', 'contents.toml must have sections, a list'),
    ('"What <it>"', '1', 'result made_up: what must be text; got 1'),
    ('"made_up"', '"absent"', 'result absent: there is no .*/absent/table.md'),
    ('quick"', 'slow"', 'result benchmarks/slow: there is no .*/slow.md'),
    ('name = "made_up"', '', 'result number 2: name is missing'),
    ('what = "What <it>"', '', 'result made_up: what is missing'),
    ('what', 'waht', 'a key must be one of command, .* got .waht'),
    ('section = "Speed"', 'section = "Sped"', "'Sped' is not one of the sec"),
    (
      'found = "Quick, a | b."',
      '',
      'found is missing, and its table states no',
    ),
    (MADE_UP, '', 'contents.toml lacks made_up/table.md'),
    (MADE_UP, 2 * MADE_UP, 'lists made_up/table.md 2 times'),
    ('made_up.py', 'unmade.py', 'there is no configs/unmade.py'),
  ],
)
def test_mistakes_in_the_list_are_told_in_a_line(root, old, new, message):
  """Which result, what is wrong."""
  path = root / results_contents.FOLDER / 'contents.toml'
  assert old in CONTENTS
  path.write_text(CONTENTS.replace(old, new, 1))
  with pytest.raises(SettingsError, match=message) as caught:
    results_page.outputs(root)
  assert len(str(caught.value).splitlines()) == 1


def test_the_command_writes_or_says_why_not(root, monkeypatch, capsys):
  """One line and status 2 for what is missing, usage for arguments."""
  monkeypatch.setattr(results_page, 'ROOT', root)
  assert results_page.main([]) == 0
  assert capsys.readouterr().out.count('written: ') == 2
  for path, text in results_page.outputs(root).items():
    assert path.read_text() == text
  (root / 'experiments/results/made_up/table.md').unlink()
  assert results_page.main([]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert 'made_up/table.md' in error
  assert len(error.splitlines()) == 1
  assert results_page.main(['--check']) == 2
  assert COMMAND in capsys.readouterr().err


def test_a_readme_without_the_comments_is_refused(root):
  """Rather than written somewhere in it."""
  readme = root / 'README.md'
  readme.write_text(readme.read_text().replace(END, ''))
  with pytest.raises(SettingsError, match='README.md lacks the lines'):
    results_page.outputs(root)
