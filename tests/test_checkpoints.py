"""experiments/checkpoints.py: what is saved comes back, or is not believed."""

import functools
import hashlib
import io
import json
import os
import pathlib
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import checkpoints
from experiments.checkpoints import CheckpointError, Checkpoints, read
from experiments.settings import SettingsError
from isjax import (
  Batch,
  average_gradient,
  init_train_state,
  logit_gradient_norm,
  losses,
  make_train_step,
  memory,
  presample,
  scale_by_absgd,
  scale_by_importance,
)

CONFIG = {'seed': 1, 'optimizer': {'name': 'sgd', 'learning_rate': 0.1}}
POSITION = {'seconds': 0.1, 'lines': ['{"loss": 1.0}'], 'at': None}


def state_at(step):
  """A small state whose numbers tell the step; zstd cannot shrink it much."""
  key = jax.random.key(step)
  return {'w': jax.random.normal(key, (40, 30)), 'key': key}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with good checkpoints of steps 1 and 2; to be copied."""
  folder = tmp_path_factory.mktemp('saved')
  with Checkpoints(folder, CONFIG) as run:
    for step in (1, 2):
      run.save(step, state_at(step), POSITION | {'step': step})
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy of it."""
  return shutil.copytree(saved, tmp_path / 'run')


def restore(folder, like=None, config=CONFIG):
  """What a run that starts in the folder finds."""
  like = state_at(0) if like is None else like
  return Checkpoints(folder, config).restore(like)


def assert_old_or_new(folder):
  """Restores step 2 in silence, or 1 with a warning; returns which."""
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    restored = restore(folder)
  assert_same(restored.state, state_at(restored.step))
  assert restored.position == POSITION | {'step': restored.step}
  assert len(said) == (restored.step == 1)
  assert all('run (2: ' in str(warning.message) for warning in said)
  return restored.step


def assert_same(left, right):
  """Bit for bit, dtypes, kinds of keys and devices included."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert (a.committed, a.sharding) == (b.committed, b.sharding)
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def files(path):
  """All files below a path."""
  return sorted(p for p in path.rglob('*') if p.is_file())


@functools.cache
def training(name):
  """A first state, a compiled step that donates it, and data."""
  n, b = 50, 8
  sampler = {
    'presample': lambda: presample(n, b, pool_size=16),
    'memory': lambda: memory(n, b, rebuild_every=2),
  }[name]()
  tx = optax.chain(
    scale_by_importance(n),
    scale_by_absgd(1.0),
    average_gradient(),
    optax.adam(0.1),
  )

  def apply_fn(params, model_state, inputs, *, train, rngs):
    return inputs @ params['kernel'] + params['bias'][None], model_state

  loss_fn = losses.cross_entropy()
  score = logit_gradient_norm(loss_fn)
  step = make_train_step(apply_fn, loss_fn, sampler, tx, score=score)
  params = {'kernel': jnp.zeros((5, 3)), 'bias': jnp.zeros(3)}
  init = functools.partial(
    init_train_state, jax.random.key(3), params, {}, sampler, tx
  )
  rows = jax.random.normal(jax.random.key(4), (n, 5))
  data = Batch(rows, jnp.argmax(rows[:, :3], 1))
  compiled = jax.jit(step, donate_argnums=0).lower(init(), data).compile()
  return init, compiled, data


@pytest.mark.parametrize('name', ['presample', 'memory'])
def test_a_run_goes_on_bitwise(name, tmp_path):
  """Six steps are three, a checkpoint in a new run, and three more."""
  init, step, data = training(name)
  state = init()
  for _ in range(3):
    state, _ = step(state, data)
  with Checkpoints(tmp_path, CONFIG) as run:
    run.save(3, state, POSITION)
  restored = restore(tmp_path, init())
  assert (restored.step, restored.position) == (3, POSITION)
  assert_same(restored.state, state)
  again = restored.state
  for _ in range(3):
    state, _ = step(state, data)
    again, _ = step(again, data)
  assert_same(again, state)


def test_every_kind_of_leaf_comes_back_bitwise(tmp_path, key):
  """Odd bits, odd dtypes, no elements, no leaves, committed or not."""
  bits = jnp.array([0x7FC12345, 0x80000000, 1, 0xFF800000], jnp.uint32)
  state = {
    'nan payload, -0, denormal, -inf': jax.lax.bitcast_convert_type(
      bits, jnp.float32
    ),
    'types': [
      jnp.arange(-3, 3).astype(dtype)
      for dtype in ('bool', 'int8', 'uint32', 'bfloat16', 'float16', 'int4')
    ],
    'scalar': jnp.uint32(2**32 - 1),
    'keys': (key, jax.random.split(jax.random.key(0, impl='rbg'), (2, 3))),
    'raw key': jax.random.PRNGKey(0),
    'none': jnp.zeros((0, 3), jnp.bfloat16),
    'no keys': jax.random.split(key, 0),
    'empty': ({}, (), None, optax.EmptyState()),
    'committed': jax.device_put(jnp.ones(3), jax.devices()[0]),
    'columns first': jnp.asarray(np.asfortranarray(np.eye(3, 4))),
    "names/../with.['odd'] signs %2F é": {1: jnp.ones(1)},
  }
  with Checkpoints(tmp_path, CONFIG) as run:
    run.save(0, state, {})
  assert_same(restore(tmp_path, jax.tree.map(jnp.copy, state)).state, state)


@pytest.fixture
def held(monkeypatch):
  """Holds back what is to be written until the event is set."""
  gate, make = threading.Event(), checkpoints._checkpointer

  def wait_and_make():
    gate.wait(timeout=10)  # where a bug makes the test wait for itself
    return make()

  monkeypatch.setattr(checkpoints, '_checkpointer', wait_and_make)
  yield gate
  gate.set()


def test_training_goes_on_and_donates_while_files_are_written(tmp_path, held):
  """The buffer is free for the next step; the numbers are those at save."""
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  state = step(jnp.zeros(10**5))
  address = state.unsafe_buffer_pointer()
  position = {'lines': ['first']}
  with Checkpoints(tmp_path, CONFIG) as run:
    run.save(1, [state], position)
    position['lines'].append('second')
    for _ in range(3):
      state = step(state)
    was_written = (tmp_path / '1').exists()
    held.set()
  assert not was_written
  assert state.unsafe_buffer_pointer() == address
  restored = restore(tmp_path, [state])
  np.testing.assert_array_equal(restored.state[0], np.ones(10**5))
  assert restored.position == {'lines': ['first']}


def flip(place, path):
  """Turns one bit, at a share of the file."""
  content = bytearray(path.read_bytes())
  if content:
    content[int(place * (len(content) - 1))] ^= 1
  path.write_bytes(content)


DAMAGES = {
  'first bit': functools.partial(flip, 0.0),
  'bit in the middle': functools.partial(flip, 0.5),
  'last bit': functools.partial(flip, 1.0),
  'half': lambda path: os.truncate(path, path.stat().st_size // 2),
  'nothing': lambda path: os.truncate(path, 0),
  'missing': pathlib.Path.unlink,
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_no_damage_to_any_file_restores_other_numbers(folder, damage, capfd):
  """Either the newest as it was saved, or the one before it with a warning."""
  fallbacks = 0
  for path in files(folder / '2'):
    content = path.read_bytes()
    damage(path)
    fallbacks += assert_old_or_new(folder) == 1
    path.write_bytes(content)
  assert fallbacks >= 3
  assert capfd.readouterr() == ('', '')


def test_no_flip_in_the_contents_or_the_largest_file_goes_unseen(folder):
  """Wherever the bit is, the one before it is used."""
  largest = max(files(folder / '2'), key=lambda path: path.stat().st_size)
  for path in (largest, folder / '2/contents/metadata'):
    content = path.read_bytes()
    for place in np.linspace(0.1, 0.9, 7):
      flip(place, path)
      with pytest.warns(UserWarning, match=r'\(2: .*\); using 1\.'):
        assert restore(folder).step == 1
      path.write_bytes(content)


def empty(path):
  """As an interrupted copy may leave it."""
  shutil.rmtree(path)
  path.mkdir()


def link_out(path):
  """A whole checkpoint, but of another folder."""
  path.rename(path.parent / 'elsewhere')
  path.symlink_to(path.parent / 'elsewhere')


def link_inside(path):
  """A file of another folder in a whole checkpoint."""
  target = path.parent / 'metadata'
  (path / 'contents/metadata').rename(target)
  (path / 'contents/metadata').symlink_to(target)


@pytest.mark.parametrize(
  ('damage', 'reason'),
  [
    (empty, 'it is empty'),
    (lambda p: (shutil.rmtree(p), p.write_text('')), 'it is empty'),
    (link_out, 'it holds links'),
    (link_inside, 'it holds links'),
    (lambda p: shutil.rmtree(p / 'state'), '.*'),
    (lambda p: shutil.rmtree(p / 'contents'), '.*'),
    (lambda p: shutil.copytree(p / '../1/state', p / 'x'), None),
  ],
)
def test_what_is_no_whole_folder_is_passed_over(folder, damage, reason):
  """One message says which, why, and what is used instead."""
  damage(folder / '2')
  if reason is None:
    assert restore(folder).step == 2
    return
  with pytest.warns(
    UserWarning, match=rf'damaged .*run \(2: {reason}\); using 1\.'
  ):
    assert restore(folder).step == 1


def test_numbers_of_another_step_are_not_believed(folder):
  """Files that are sound by themselves, but not those of the contents."""
  shutil.rmtree(folder / '2/state')
  shutil.copytree(folder / '1/state', folder / '2/state')
  with pytest.warns(UserWarning, match=r"the numbers of \['key'\] are not"):
    assert restore(folder).step == 1


def test_the_same_bytes_of_another_kind_are_not_believed(folder):
  """Dtype and shape are part of what is proven."""
  state = state_at(2)
  w = state['w']
  for other in (jax.lax.bitcast_convert_type(w, jnp.int32), w.reshape(30, 40)):
    with Checkpoints(folder / 'other', CONFIG) as run:
      run.save(2, state | {'w': other}, {})
    shutil.rmtree(folder / '2/state')
    shutil.copytree(folder / 'other/2/state', folder / '2/state')
    with pytest.warns(UserWarning, match=r"numbers of \['w'\] are not those"):
      assert restore(folder).step == 1


def test_without_a_good_one_the_run_starts_anew(folder, tmp_path):
  """None, with one warning that names all; no folder is none, in silence."""
  empty(folder / '1')
  empty(folder / '2')
  with pytest.warns(UserWarning, match=r'2: .*; 1: .*\); starting anew'):
    assert restore(folder) is None
  assert restore(tmp_path / 'no folder') is None


def test_a_run_that_fell_back_replaces_what_was_damaged(folder):
  """Neither damaged nor later checkpoints take the place of good ones."""
  empty(folder / '2')
  shutil.copytree(folder / '1', folder / '9')
  os.truncate(folder / '9/contents/metadata', 0)
  with Checkpoints(folder, CONFIG, keep=2) as run:
    with pytest.warns(UserWarning, match='using 1'):
      assert run.restore(state_at(0)).step == 1
    run.save(3, state_at(3), {})
    run.wait()
    assert sorted(os.listdir(folder)) == ['1', '3']
    run.save(2, state_at(2), {})
  assert sorted(os.listdir(folder)) == ['1', '2']
  assert restore(folder).step == 2


@pytest.mark.parametrize('keep', [1, 3])
def test_the_newest_stay(tmp_path, keep):
  """By number, not by name; other files are left alone."""
  (tmp_path / 'notes').write_text('mine')
  (tmp_path / '099').mkdir()
  (tmp_path / '5.orbax-checkpoint-tmp').mkdir()
  with Checkpoints(tmp_path, CONFIG, keep) as run:
    for step in (8, 9, 10, 11):
      run.save(np.int64(step), state_at(step), {})
  kept = {str(step) for step in (11, 10, 9)[:keep]}
  assert set(os.listdir(tmp_path)) == kept | {'notes', '099'}
  assert restore(tmp_path).step == 11


def test_a_state_that_does_not_fit_is_an_error(folder):
  """Shape, dtype, kind of key, names: never a cast, never a fallback."""
  good = state_at(0)
  for change, message in (
    ({'w': jnp.zeros((30, 40))}, r"\['w'\] was float32\[40, 30\], is float32"),
    ({'w': good['w'].astype(jnp.bfloat16)}, r'is bfloat16\[40, 30\]'),
    ({'key': jax.random.key(0, impl='rbg')}, r'was key<fry>\[\], is key<rbg>'),
    ({'key': jax.random.key_data(good['key'])}, r'is uint32\[2\]'),
    ({'b': jnp.zeros(2)}, r"\['b'\] was absent, is float32\[2\]"),
    ({str(i): good['w'] for i in range(9)}, 'and 5 more'),
  ):
    with pytest.raises(SettingsError, match=message):
      restore(folder, good | change)
  with pytest.raises(SettingsError, match=r"\['key'\] was .*, is absent"):
    restore(folder, {'w': good['w']})


def test_another_config_is_an_error_that_names_the_fields(folder):
  """Fields of another value, and those that only one of them has."""
  sgd = CONFIG['optimizer']
  for config, message in (
    (CONFIG | {'seed': 2}, '/2 is of another config: seed was 1, is 2. Set'),
    (
      CONFIG | {'optimizer': sgd | {'name': 'adam'}, 'mix': None},
      'optimizer.name was sgd, is adam; mix was absent, is None',
    ),
    ({'seed': 1, 'optimizer': 'sgd'}, 'optimizer.learning_rate was 0.1, is ab'),
  ):
    with pytest.raises(SettingsError, match=message):
      restore(folder, config=config)
  assert restore(folder, config=json.loads(json.dumps(CONFIG))).step == 2


def test_read_takes_the_state_of_another_run(folder, tmp_path):
  """Whatever its config; damage and misfit are seen here, too."""
  assert_same(read(folder, state_at(0)).state, state_at(2))
  empty(folder / '2')
  with pytest.warns(UserWarning, match='using 1'):
    assert read(folder, state_at(0)).step == 1
  with pytest.raises(SettingsError, match='run/1 is of another kind of state'):
    read(folder, {})
  with pytest.raises(SettingsError, match='no good checkpoint to start from'):
    read(tmp_path / 'none', state_at(0))


def forge(path, **changes):
  """Rewrites the contents of a checkpoint, with the digest that fits them."""
  path = path / 'contents/metadata'
  contents = json.loads(path.read_text()) | changes
  del contents['digest']
  text = json.dumps(contents, sort_keys=True).encode()
  digest = hashlib.sha256(text).hexdigest()
  path.write_text(json.dumps(contents | {'digest': digest}))


def test_a_newer_format_is_an_error_that_says_so(folder):
  """Not a fallback, which would lose what the newer code has done."""
  forge(folder / '2', version=checkpoints.VERSION + 1, new='field')
  with pytest.raises(SettingsError, match='has format 2, and this .* up to 1'):
    restore(folder)
  forge(folder / '2', version=checkpoints.VERSION)
  assert restore(folder).step == 2


@pytest.mark.parametrize(
  'changes',
  [
    {'version': '1'},
    {'version': None},
    {'config': []},
    {'position': 'x'},
    {'leaves': None},
    {'leaves': {'a': 1}},
    {'leaves': {"['w']": [], "['key']": {}}},
  ],
)
def test_odd_contents_are_damaged_and_no_crash(folder, changes):
  """Even with a digest that fits them."""
  forge(folder / '2', **changes)
  with pytest.warns(UserWarning, match='using 1'):
    assert restore(folder).step == 1


@pytest.mark.parametrize(
  'text', ['', '[]', '{}', '1e999', 'null', '[' * 10**5, '{"digest": 1}', '\0']
)
def test_odd_json_is_damaged_and_no_crash(folder, text):
  """Whatever stands in place of the contents."""
  (folder / '2/contents/metadata').write_text(text)
  with pytest.warns(UserWarning, match='using 1'):
    assert restore(folder).step == 1


class _Intruder:
  """Leaves a mark where it is unpickled."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return pathlib.Path.touch, (self.mark,)


@pytest.mark.parametrize('kind', ['pickle', 'npy'])
def test_nothing_is_ever_unpickled(folder, tmp_path, kind):
  """A pickle in place of any file runs nothing."""
  mark = tmp_path / 'mark'
  stream = io.BytesIO()
  if kind == 'pickle':
    pickle.dump(_Intruder(mark), stream)
  else:
    np.save(stream, np.array([_Intruder(mark)], object), allow_pickle=True)
  for path in files(folder / '2'):
    content = path.read_bytes()
    path.write_bytes(stream.getvalue())
    assert_old_or_new(folder)
    path.write_bytes(content)
  for name in ('checkpoint', 'state/checkpoint', 'state/data.pkl'):
    (folder / '2' / name).write_bytes(stream.getvalue())
    assert_old_or_new(folder)
  assert not mark.exists()
  pickle.loads(pickle.dumps(_Intruder(mark)))
  assert mark.exists()


@pytest.fixture
def small_disk():
  """No file may grow beyond 20 kB, as if the disk was full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

  def grow():
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  yield grow
  grow()


def test_a_full_disk_is_told_once_and_leaves_the_last_good_one(
  folder, small_disk, key, capfd
):
  """At the next call, in one line and no more; then the run may go on."""
  large = [jax.random.normal(k, (10**4,)) for k in jax.random.split(key, 20)]
  with Checkpoints(folder, CONFIG) as run:
    for call in (run.wait, lambda: run.save(4, large, {})):
      run.save(3, large, POSITION)
      with pytest.raises(CheckpointError, match='run/3 was not written') as e:
        call()
      assert 'too large' in str(e.value)
      assert '\n' not in str(e.value)
    run.wait()
    assert run.restore(state_at(0)).step == 2
    small_disk()
    assert capfd.readouterr() == ('', '')
    run.save(3, large, POSITION)
  assert_same(restore(folder, large).state, large)
  assert sorted(os.listdir(folder)) == ['2', '3']


def test_the_end_of_a_run_tells_a_failed_save(folder, small_disk, key):
  """As an error of its own, or in a note to the run's."""
  large = [jax.random.normal(key, (10**5,))]
  with (
    pytest.raises(CheckpointError, match='run/3 was not written'),
    Checkpoints(folder, CONFIG) as run,
  ):
    run.save(3, large, {})
  run = Checkpoints(folder, CONFIG)
  run.save(3, large, {})
  error = KeyboardInterrupt()
  run.__exit__(KeyboardInterrupt, error, None)
  assert 'run/3 was not written' in error.__notes__[0]


def test_bad_arguments_are_named_at_once(tmp_path):
  """Before anything is written."""
  with pytest.raises(ValueError, match='keep must be at least 1; got 0'):
    Checkpoints(tmp_path, CONFIG, keep=0)
  run = Checkpoints(tmp_path, CONFIG)
  with pytest.raises(ValueError, match='step must not be negative; got -1'):
    run.save(-1, state_at(0), {})
  with pytest.raises(TypeError, match='not JSON serializable'):
    run.save(1, state_at(0), {'loss': np.float32(1)})
  with pytest.raises(TypeError, match='integer'):
    run.save('../1', state_at(0), {})
  run.wait()
  assert not os.listdir(tmp_path)


def test_orbax_says_nothing(tmp_path, caplog, capfd):
  """Neither to the logs nor to the terminal."""
  caplog.set_level('DEBUG')
  with Checkpoints(tmp_path, CONFIG) as run:
    run.save(1, state_at(1), {})
    assert run.restore(state_at(0)).step == 1
  assert not [r for r in caplog.records if 'orbax' in r.pathname]
  assert capfd.readouterr() == ('', '')


# Imports once, then forks a child for each line: a folder, and when the child
# is killed. Either by itself, after that many operations on files of its second
# save, or, with 0 of them, from outside, after that many seconds of saving.
KILLER = """
import os, pathlib, signal, sys, time
import numpy as np
from experiments.checkpoints import Checkpoints, _orbax

Checkpoints(pathlib.Path('none'), {}).restore([])
assert not any(name.startswith('orbax') for name in sys.modules)
_orbax()

def child(folder, operations):
  count = 0
  def hook(event, arguments):
    nonlocal count
    if event.startswith(('os.', 'shutil.', 'open')):
      if str(folder) in str(arguments):
        count += 1
        if count == operations:
          os.kill(os.getpid(), signal.SIGKILL)
  with Checkpoints(folder, {}, keep=1) as run:
    run.save(1, {'w': np.full(10**5, 1, 'f')}, {})
    run.wait()
    sys.addaudithook(hook)
    run.save(2, {'w': np.full(10**5, 2, 'f')}, {})
    step = 2
    while not operations:
      step += 1
      run.save(step, {'w': np.full(10**5, step, 'f')}, {})

for line in sys.stdin:
  folder, operations, seconds = line.split()
  pid = os.fork()
  if not pid:
    child(pathlib.Path(folder), int(operations))
    os._exit(0)
  if float(seconds):
    time.sleep(float(seconds))
    os.kill(pid, signal.SIGKILL)
  print(folder, os.WTERMSIG(os.waitpid(pid, 0)[1]))
"""


def kill_saves(folder, moments):
  """Kills a run for each (operations, seconds).

  Returns whether it was killed, and what is then found; a warning would fail.
  """
  root = pathlib.Path(__file__).resolve().parent.parent
  lines = [f'{folder / str(i)} {o} {s}' for i, (o, s) in enumerate(moments)]
  outcome = subprocess.run(
    [sys.executable, '-c', KILLER],
    input='\n'.join(lines),
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(root)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  killed, steps = [], []
  for line in outcome.stdout.splitlines():
    name, number = line.split()
    run = Checkpoints(pathlib.Path(name), {}, keep=1)
    like = {'w': jnp.zeros(10**5)}
    restored = run.restore(like)
    killed.append(int(number) == signal.SIGKILL)
    steps.append(restored.step if restored else 0)
    if restored:
      np.testing.assert_array_equal(restored.state['w'], restored.step)
    run.save(steps[-1] + 1, like, {})
    run.wait()
    assert os.listdir(name) == [str(steps[-1] + 1)]
  return killed, steps


def test_a_killed_save_leaves_nothing_that_counts_as_good(tmp_path):
  """From the first file operation to past the last: the old or the new."""
  operations = (1, 3, 6, 10, 15, 21, 24, 25, 26, 27, 99)
  killed, steps = kill_saves(tmp_path, [(n, 0) for n in operations])
  assert killed[0]
  assert not killed[-1]
  assert steps == sorted(steps)
  assert set(steps) == {1, 2}
  assert any(k and s == 2 for k, s in zip(killed, steps, strict=True))


@pytest.mark.faults
def test_saves_killed_at_any_time_leave_nothing_that_counts_as_good(tmp_path):
  """At 200 times within the first few saves."""
  rng = np.random.default_rng(0)
  killed, steps = kill_saves(
    tmp_path, [(0, seconds) for seconds in rng.uniform(0.01, 0.4, 200)]
  )
  assert all(killed)
  assert len(set(steps)) > 2
