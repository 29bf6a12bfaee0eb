"""Preparing a set for real, without TensorFlow, and all that can go wrong."""

import dataclasses
import errno
import hashlib
import http.server
import io
import os
import re
import socket
import subprocess
import sys
import threading

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from isjax import data
from isjax.data import prepare

NAME = 'isjax_digits'


class IsjaxDigits(tfds.core.GeneratorBasedBuilder):
  """The digits, downloaded as one .npz file and written as PNG."""

  VERSION = tfds.core.Version('1.0.0')
  url_infos = None
  # What comes with each example: tests raise errors here.
  before_each = staticmethod(lambda: None)
  encode = True

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 1)),
          'label': tfds.features.ClassLabel(num_classes=10),
          'id': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager):
    path = dl_manager.download(list(self.url_infos)[-1])
    with np.load(path) as arrays:
      arrays = dict(arrays)
    return {
      split: self._generate_examples(arrays[f'x_{split}'], arrays[f'y_{split}'])
      for split in ('train', 'test')
    }

  def _generate_examples(self, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      self.before_each()
      if self.encode:
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, 'PNG')
        image = file
        image.seek(0)
      yield i, {'image': image, 'label': label, 'id': f'{i:04d}'}


@pytest.fixture(scope='module')
def content():
  """The file to download: the digits as .npz, of about 120 kB."""
  file = io.BytesIO()
  arrays = {}
  for split in ('train', 'test'):
    batch, _ = data.load('digits', split)
    arrays |= {f'x_{split}': batch.inputs, f'y_{split}': batch.targets}
  np.savez(file, **arrays)
  return file.getvalue()


@pytest.fixture
def server(content, monkeypatch):
  """A server of this file, with `fault` to set and what was asked of it."""

  class Handler(http.server.BaseHTTPRequestHandler):
    asked = []
    fault = None

    def do_GET(self):
      self.asked.append(self.command)
      self.send_response(404 if self.fault == 'missing' else 200)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      if self.command == 'GET':
        end = 1000 if self.fault == 'cut off' else len(content)
        self.wfile.write(content[:end])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
      del args

  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  url = f'http://127.0.0.1:{server.server_port}/digits.npz'
  info = checksums.UrlInfo(
    size=tfds.core.utils.Size(len(content)),
    checksum=hashlib.sha256(content).hexdigest(),
    filename='digits.npz',
  )
  monkeypatch.setattr(IsjaxDigits, 'url_infos', {url: info})
  yield Handler
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def root(tmp_path, monkeypatch):
  """The folder that sets are prepared in, empty."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  monkeypatch.delenv('ISJAX_DATA_DIR', raising=False)
  return tmp_path


def files(folder):
  """All files in a folder, by their suffixes: downloads have long names."""
  return sorted(path.suffix for path in folder.rglob('*') if not path.is_dir())


DOWNLOADED = ['.INFO', '.npz']


def fails(capsys):
  """Runs the command, which must fail, and returns its one line."""
  assert prepare.main([NAME]) == 1
  line = capsys.readouterr().err.rpartition('error: ')[2]
  assert line.count('\n') == 1
  with pytest.raises(FileNotFoundError, match='not prepared'):
    data.load(NAME, 'train')
  return line


def expect_digits():
  """What was prepared is the digits, in their order."""
  for split in ('train', 'test'):
    batch, metadata = data.load(NAME, split)
    expected, facts = data.load('digits', split)
    np.testing.assert_array_equal(batch.inputs, expected.inputs)
    np.testing.assert_array_equal(batch.targets, expected.targets)
    assert metadata == facts._replace(name=NAME, max_value=255)


def test_a_set_is_downloaded_prepared_and_read_back(root, server, capsys):
  """Once: the second call asks nothing of the network and changes nothing."""
  assert prepare.main([NAME]) == 0
  folder = root / NAME / '1.0.0'
  last_line = capsys.readouterr().out.splitlines()[-1]
  assert last_line == f'{NAME} is prepared in {folder}'
  expect_digits()
  assert server.asked == ['HEAD', 'GET']
  before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
  assert prepare.prepare(NAME) == folder
  assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before
  assert server.asked == ['HEAD', 'GET']


@pytest.mark.usefixtures('server')
def test_without_a_network_one_line_says_what_to_do(root, monkeypatch, capsys):
  def refuse(*args, **kwargs):
    raise OSError('no network')

  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  monkeypatch.setattr(socket.socket, 'connect', refuse)
  line = fails(capsys)
  assert f"'{NAME}' is to be downloaded from 127.0.0.1:" in line
  assert f'where there is a network and copy {root} here' in line
  assert files(root) == []


@pytest.mark.usefixtures('root', 'server')
def test_a_host_that_is_gone_does_not_hide_another(monkeypatch):
  """Checksums name those of old versions too."""
  ((url, info),) = IsjaxDigits.url_infos.items()
  gone = {'http://127.0.0.1:1/old.npz': info, url: info}
  monkeypatch.setattr(IsjaxDigits, 'url_infos', gone)
  assert prepare.main([NAME]) == 0


@pytest.mark.parametrize(
  ('fault', 'message'),
  [
    ('missing', 'could not be prepared: Failed to get url .* code: 404'),
    ('cut off', ''),
  ],
)
def test_a_bad_answer_leaves_no_part_of_a_file(
  fault, message, root, server, capsys, monkeypatch
):
  """And the next attempt succeeds."""
  monkeypatch.setattr(server, 'fault', fault)
  assert re.search(message, fails(capsys))
  assert files(root) == []
  monkeypatch.setattr(server, 'fault', None)
  assert prepare.main([NAME]) == 0


@pytest.mark.usefixtures('server')
def test_a_download_of_another_checksum_is_removed(root, monkeypatch, capsys):
  ((url, info),) = IsjaxDigits.url_infos.items()
  wrong = {url: dataclasses.replace(info, checksum='0' * 64)}
  with monkeypatch.context() as patch:
    patch.setattr(IsjaxDigits, 'url_infos', wrong)
    line = fails(capsys)
  assert f"'{NAME}' differs from its checksum, and was removed" in line
  assert url in line
  assert files(root) == []
  assert prepare.main([NAME]) == 0


@pytest.fixture
def tiny_disk(root):
  """A file system of 100 kB at `root`; returns what changes its size."""
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=100k', 'tmpfs', str(root)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('no file system can be mounted')
  try:
    yield lambda size: subprocess.run(
      ['mount', '-o', f'remount,size={size}', str(root)], check=True
    )
  finally:
    subprocess.run(['umount', '-l', str(root)], check=True)


@pytest.mark.usefixtures('server')
def test_a_full_disk_leaves_no_part_of_a_file(root, tiny_disk, capsys):
  """Be it full while downloading or writing; with room, it goes on."""
  too_full = f"the disk of {root} is too full to prepare '{NAME}'. Make room"
  assert too_full in fails(capsys)
  assert files(root) == []
  tiny_disk('300k')
  assert too_full in fails(capsys)
  assert files(root) == DOWNLOADED
  tiny_disk('10m')
  assert prepare.main([NAME]) == 0
  expect_digits()


@pytest.mark.usefixtures('server')
@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (OSError(errno.ENOSPC, 'No space left on device'), 'is too full to prep'),
    (OSError(errno.EIO, 'Input/output error'), 'Input/output error'),
    (AssertionError('put a.zip\n  into manual'), 'prepared: put a.zip into m'),
    (
      ModuleNotFoundError("No module named 'pandas'", name='pandas'),
      "needs the module 'pandas': pip install pandas.",
    ),
  ],
  ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_set_is_one_line(
  error, message, root, monkeypatch, capsys
):
  """Whatever is raised among the examples; the download is kept."""

  def fail():
    raise error

  monkeypatch.setattr(IsjaxDigits, 'before_each', staticmethod(fail))
  assert message in fails(capsys)
  assert files(root) == DOWNLOADED


@pytest.mark.usefixtures('server')
def test_an_interrupt_passes_and_leaves_no_part_of_a_file(root, monkeypatch):
  def interrupt():
    raise KeyboardInterrupt

  monkeypatch.setattr(IsjaxDigits, 'before_each', staticmethod(interrupt))
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare(NAME)
  assert files(root) == DOWNLOADED


@pytest.mark.usefixtures('server')
def test_what_a_killed_process_left_is_removed(root, monkeypatch):
  """It is no prepared set meanwhile, and makes room before anything else."""
  for part in (
    f'{NAME}/incomplete.ABC123_1.0.0/{NAME}-train.array_record',
    f'downloads/{NAME}/digits.npz.tmp.0123/digits.npz',
    'downloads/extracted/ZIP.digits.incomplete_0123/digits.npz',
  ):
    (root / part).parent.mkdir(parents=True)
    (root / part).write_bytes(b'half')
  with pytest.raises(FileNotFoundError, match='not prepared'):
    data.load(NAME, 'train')

  def expect_room():
    left = [path for path in root.rglob('*') if _content(path) == b'half']
    assert not left

  monkeypatch.setattr(IsjaxDigits, 'before_each', staticmethod(expect_room))
  prepare.prepare(NAME)
  expect_digits()


def _content(path):
  return path.read_bytes() if path.is_file() else b''


@pytest.mark.usefixtures('server')
def test_images_that_tensorflow_must_encode_name_the_extra(
  root, monkeypatch, capsys
):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  monkeypatch.setattr(IsjaxDigits, 'encode', False)
  assert "pip install 'isjax[prepare]'" in fails(capsys)
  assert files(root) == DOWNLOADED


@pytest.mark.usefixtures('root')
@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('mnits', "no set of tensorflow-datasets is called 'mnits'. Did you mean"),
    ('digits', "no set of tensorflow-datasets is called 'digits'"),
    (f'{NAME}:2.0.0', f"cannot read '{NAME}:2.0.0'"),
  ],
)
def test_a_name_that_there_is_not_is_one_line(name, message, capsys):
  assert prepare.main([name]) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert message in error
  assert error.count('\n') == 1


@pytest.mark.parametrize('arguments', [[], ['a', 'b'], ['--help']])
def test_another_command_line_shows_how_it_is_used(arguments, capsys):
  assert prepare.main(arguments) == 2
  assert 'Usage: python -m isjax.data.prepare NAME' in capsys.readouterr().err


def test_it_runs_as_a_module(root):
  """Without a warning, such as that it was imported before."""
  result = subprocess.run(
    [sys.executable, '-W', 'error', '-m', 'isjax.data.prepare', 'mnits'],
    env=os.environ | {'TFDS_DATA_DIR': str(root)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 1
  assert result.stderr.startswith('error: no set of tensorflow-datasets is ca')
