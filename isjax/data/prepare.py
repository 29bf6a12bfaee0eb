"""Downloads and prepares a set of tensorflow-datasets, once.

Usage: python -m isjax.data.prepare NAME[/CONFIG][:VERSION]

The set is written as array_record to the folder TFDS_DATA_DIR, where `load`
finds it. Most image sets are prepared by TensorFlow: pip install
'isjax[prepare]'; reading them needs none.
"""

import errno
import pathlib
import shutil
import sys
from typing import Any
import urllib.parse

from isjax.data import tfds

# Left alone, the library takes minutes to find that there is no network.
_SECONDS_TO_CONNECT = 5
# Sets name hosts of old versions too, some of which are gone.
_MAX_HOSTS = 3


def prepare(name: str) -> pathlib.Path:
  """Downloads and prepares a set, unless that is done.

  Whatever goes wrong, a set is there as a whole or not at all, and no part of
  a file stays behind; files that were downloaded as a whole are kept for the
  next attempt. One process at a time may prepare a set.

  Args:
    name: NAME[/CONFIG][:VERSION] of tensorflow-datasets.

  Returns:
    The folder that it lies in.

  Raises:
    ValueError: for a name, configuration or version that there is not.
    ImportError: where a module is missing; it says how to install it.
    OSError: where there is no network, or the disk is full.
    RuntimeError: where a download differs from its checksum, or the set cannot
      be prepared for another reason.
  """
  if not tfds.is_known(name):
    raise ValueError(tfds.unknown(name))
  builder = tfds.open_builder(name)
  folder = pathlib.Path(builder.data_path)
  if tfds.is_prepared(builder):
    return folder
  from tensorflow_datasets import download

  downloads = tfds.root() / 'downloads' / builder.name
  _remove_parts(folder, downloads)
  try:
    _expect_network(name, builder)
    builder.download_and_prepare(
      download_dir=str(downloads.parent),
      download_config=download.DownloadConfig(try_download_gcs=False),
    )
  except Exception as error:
    raise _in_one_line(name, error) from error
  finally:
    _remove_parts(folder, downloads)
  return folder


def _expect_network(name: str, builder: Any) -> None:
  """Raises OSError where the set is to be downloaded and no host answers."""
  urls = [url for url in builder.url_infos or () if url.startswith('http')]
  by_host = {urllib.parse.urlsplit(url).netloc: url for url in urls}
  if urls and not any(map(_answers, list(by_host.values())[:_MAX_HOSTS])):
    raise OSError(
      f'{name!r} is to be downloaded from {", ".join(by_host)}, and there is '
      'no answer. Prepare it where there is a network and copy '
      f'{tfds.root()} here.'
    )


def _answers(url: str) -> bool:
  """Whether a connection is made, whatever then comes through it."""
  import requests

  try:
    requests.head(url, timeout=_SECONDS_TO_CONNECT)
  except requests.ConnectionError:
    return False
  except requests.ReadTimeout:
    pass
  return True


def _remove_parts(folder: pathlib.Path, downloads: pathlib.Path) -> None:
  """Removes what an attempt that failed, or was killed, has left behind."""
  parts = [
    *folder.parent.glob('incomplete.*'),
    *downloads.glob('*.tmp.*'),
    *downloads.parent.glob('extracted/*.incomplete_*'),
  ]
  for part in parts:
    shutil.rmtree(part) if part.is_dir() else part.unlink()
  for empty in (downloads, folder.parent):
    if empty.is_dir() and not any(empty.iterdir()):
      empty.rmdir()


def _in_one_line(name: str, error: Exception) -> Exception:
  """What went wrong, as an error whose message is one line with a remedy."""
  from tensorflow_datasets.core.download.download_manager import (
    NonMatchingChecksumError,
  )

  text = ' '.join(str(error).split())
  if isinstance(error, ImportError):
    return tfds.needs_module(name, error)
  if _is_full(error):
    return OSError(
      f'the disk of {tfds.root()} is too full to prepare {name!r}. Make room, '
      'or let TFDS_DATA_DIR name another folder.'
    )
  if isinstance(error, NonMatchingChecksumError):
    return RuntimeError(
      f'a download of {name!r} differs from its checksum, and was removed. Try '
      f'again later, or another release of tensorflow-datasets. ({text})'
    )
  if isinstance(error, OSError):
    return OSError(text)
  return RuntimeError(f'{name!r} could not be prepared: {text}')


def _is_full(error: BaseException | None) -> bool:
  """The writer of array_record names the cause in its message alone."""
  if error is None:
    return False
  named = ('No space left on device', 'Not enough disk space')
  return (
    getattr(error, 'errno', None) == errno.ENOSPC
    or any(words in str(error) for words in named)
    or _is_full(error.__cause__)
  )


def main(arguments: list[str]) -> int:
  """Prepares the one set that the command line names.

  Returns:
    The exit status: 0, 1 where it went wrong, 2 for no such command line.
  """
  if len(arguments) != 1 or arguments[0].startswith('-'):
    print(__doc__, file=sys.stderr)
    return 2
  try:
    outcome = f'{arguments[0]} is prepared in {prepare(arguments[0])}'
    failed = False
  except (ValueError, ImportError, OSError, RuntimeError) as error:
    outcome = f'error: {error}'
    failed = True
  # By now the library's progress bars are gone, and cannot spoil the line.
  print(outcome, file=sys.stderr if failed else sys.stdout)
  return int(failed)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
