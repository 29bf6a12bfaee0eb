"""ghost.py: squared norms against vmap(grad), and what must be refused."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import ghost
from isjax.models import MLP, ResNet

M = 4  # examples


class Scale(nn.Module):
  """A user's layer: x * exp(scale)."""

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.zeros, x.shape[-1:])
    return x * jnp.broadcast_to(jnp.exp(scale), x.shape)


class TwoLayers(nn.Module):
  """A user's layer with submodules."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.Dense(4)(x))


class Sequence(nn.Module):
  """Layers in a row."""

  layers: tuple[nn.Module, ...]

  @nn.compact
  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return x


class Twice(nn.Module):
  """A layer that is called two times."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(x.shape[-1])
    return layer(nn.tanh(layer(x)))


class Bare(nn.Module):
  """A parameter of the model itself, beside layers."""

  @nn.compact
  def __call__(self, x):
    offset = self.param('offset', nn.initializers.ones, x.shape[-1:])
    x += jnp.broadcast_to(offset, x.shape)
    return nn.Dense(3)(nn.tanh(nn.Dense(5)(x)))


class Tied(nn.Module):
  """The embedding is also the last layer."""

  @nn.compact
  def __call__(self, x):
    embed = nn.Embed(7, 6)
    return embed.attend(nn.tanh(nn.Dense(6)(embed(x))))


class TiedByHand(nn.Module):
  """As Tied, but the layer's parameter is taken out of it."""

  @nn.compact
  def __call__(self, x):
    embed = nn.Embed(7, 6)
    return nn.tanh(embed(x)) @ embed.embedding.T


class TiedKernel(nn.Module):
  """One of a layer's two parameters has a second use."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(5)
    x = nn.tanh(layer(x))
    return x @ layer.variables['params']['kernel'].T


class Looped(nn.Module):
  """A layer in a loop of jax itself, which knows nothing of modules."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(x.shape[-1])
    layer(x)
    return jax.lax.fori_loop(0, 2, lambda _, x: nn.tanh(layer(x)), x)


class Mapped(nn.Module):
  """A layer that jax itself maps over time."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(3)
    if self.is_initializing():
      return layer(x)
    return jax.vmap(layer, in_axes=1, out_axes=1)(x)


class Recurrent(nn.Module):
  """An LSTM: its layers lie within nn.scan."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.RNN(nn.LSTMCell(6))(x)[:, -1])


class Deep(nn.Module):
  """Layers whose parameters are stacked, by nn.scan."""

  @nn.compact
  def __call__(self, x):
    def body(layer, carry, _):
      return nn.tanh(layer(carry)), None

    scan = nn.scan(
      body, variable_axes={'params': 0}, split_rngs={'params': True}, length=2
    )
    return scan(nn.Dense(x.shape[-1]), x, None)[0]


class Remat(nn.Module):
  """Layers whose activations are computed anew."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.remat(TwoLayers)()(x))


class Transformer(nn.Module):
  """One block; the embedding of places knows nothing of the examples."""

  @nn.compact
  def __call__(self, x):
    x = nn.Embed(7, 8)(x) + nn.Embed(M, 8)(jnp.arange(M))[None]
    y = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y)
    y = nn.gelu(nn.Dense(20)(nn.RMSNorm()(x)))
    return nn.Dense(5)(nn.LayerNorm()(x + nn.Dense(8)(y)))


class TimeMajor(nn.Module):
  """The examples' axis goes second, then last into one with time."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(5)(x.swapaxes(0, 1))).swapaxes(0, 1)
    return nn.Dense(3)(x.reshape(-1, 5)).reshape(*x.shape[:2], 3)


def normal(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def tokens(*shape):
  values = np.random.default_rng(0).integers(-3, 4, size=shape)
  return jnp.asarray(values, jnp.int32)


IMAGES = normal(M, 6, 7, 4)
TEXT = normal(M, 9, 8)
conv = functools.partial(nn.Conv, 6, (3, 2))
# Programs run once: what counts is how long they compile.
quick_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)

# name -> (module, inputs of M examples); every parameter has a rule.
COVERED = {
  'dense': (nn.Dense(3), normal(M, 5)),
  'dense, no bias': (nn.Dense(3, use_bias=False), normal(M, 5)),
  'dense in time, by the gradient': (nn.Dense(3), TEXT),
  'dense in time, by Gram matrices': (nn.Dense(50), TEXT[:, :3]),
  'dense, two axes of time': (nn.Dense(30), normal(M, 2, 3, 20)),
  'dense, one output': (nn.Dense(1), TEXT),
  'dense general': (nn.DenseGeneral((2, 3), axis=(1, -1)), IMAGES),
  'dense general, batched': (
    nn.DenseGeneral(3, batch_dims=(0, 1)),
    normal(M, 5, 4),
  ),
  'conv': (conv(), IMAGES),
  'conv, no bias': (conv(use_bias=False), IMAGES),
  'conv, strided': (conv(strides=(2, 1)), IMAGES),
  'conv, one stride': (conv(strides=2, padding='VALID'), IMAGES),
  'conv, dilated': (conv(kernel_dilation=(1, 2)), IMAGES),
  'conv, input dilated': (conv(input_dilation=2, padding=1), IMAGES),
  'conv, grouped': (conv(feature_group_count=2), IMAGES),
  'conv, depthwise': (nn.Conv(4, (2, 2), feature_group_count=4), IMAGES),
  'conv, padded': (conv(padding=((2, 1), (0, 3))), IMAGES),
  'conv, cropped': (conv(padding=((-1, 0), (0, 0))), IMAGES),
  'conv, circular': (conv(padding='CIRCULAR'), IMAGES),
  'conv, causal': (nn.Conv(6, 3, padding='CAUSAL'), TEXT),
  'conv, masked': (conv(mask=jnp.ones((3, 2, 4, 6)).at[0].set(0)), IMAGES),
  'conv, in time': (nn.Conv(16, (3,), strides=(3,)), TEXT),
  'conv, by Gram matrices': (nn.Conv(16, (3, 3), strides=4), IMAGES),
  'conv, large image': (nn.Conv(2, (3, 3)), IMAGES[..., :2]),
  'conv, two batch axes': (nn.Conv(16, (3,), strides=(4,)), normal(M, 2, 8, 8)),
  'embed': (nn.Embed(7, 3), tokens(M, 9)),
  'embed, one a row': (nn.Embed(7, 3), tokens(M)),
  'embed, one row': (nn.Embed(1, 3), tokens(M, 9)),
  'layer norm': (nn.LayerNorm(), TEXT),
  'group norm': (nn.GroupNorm(2), IMAGES),
  'instance norm': (nn.InstanceNorm(), IMAGES),
  'rms norm': (nn.RMSNorm(), TEXT),
  'batch norm': (nn.BatchNorm(use_running_average=True), IMAGES),
  'prelu': (nn.PReLU(), TEXT),
  'norm without parameters': (
    Sequence((nn.LayerNorm(use_scale=False, use_bias=False), nn.Dense(3))),
    TEXT,
  ),
  'mlp': (MLP(3, (6, 5)), IMAGES),
  'resnet': (ResNet(3, width=4, num_groups=2), normal(M, 8, 8, 3)),
  'transformer': (Transformer(), tokens(M, M)),
  'time major': (TimeMajor(), normal(M, M, 6)),
}
# These need fallback='vmap'; with what the error must say.
UNCOVERED = {
  'a type without a rule': (
    Sequence((nn.Dense(5), Scale(), nn.Dense(3))),
    TEXT,
    r'layers_1 \(Scale, a type without a norm rule\)',
  ),
  'twice': (Twice(), TEXT, r'Dense_0 \(Dense, called more than once\)'),
  'bare': (Bare(), TEXT, r'the model itself \(Bare, a type without'),
  'tied': (Tied(), tokens(M, 9), r'Embed_0 \(Embed, .* used elsewhere\)'),
  'tied by hand': (
    TiedByHand(),
    tokens(M, 9),
    r'Embed_0 \(Embed, .* used elsewhere\)',
  ),
  'tied kernel': (TiedKernel(), TEXT, r'Dense_0 \(Dense, .* used elsewhere\)'),
  'looped': (Looped(), TEXT, r'Dense_0 \(Dense, called'),
  'mapped': (
    Mapped(),
    TEXT,
    r'Dense_0 \(Dense, called within nn.scan, nn.remat',
  ),
  'lstm': (
    Recurrent(),
    TEXT,
    r'LSTMCell_0/hf, .* \(Dense, called within nn.scan',
  ),
  'scanned': (Deep(), TEXT, r'Dense_0 \(Dense, called within nn.scan'),
  'remat': (Remat(), TEXT, r'TwoLayers_0/Dense_0, .* \(Dense, called within'),
  'weight norm': (
    nn.WeightNorm(nn.Dense(3)),
    TEXT,
    r'layer_instance \(Dense, .*changed before.*/kernel \(no call of a lay',
  ),
}


def forward_fn(module, state, x):
  """The outputs of one example, as a function of the parameters."""
  return lambda params: module.apply({'params': params, **state}, x[None])[0]


def variables(module, inputs):
  """Random parameters, and random statistics > 0."""
  random = np.random.default_rng(1)
  shapes = dict(jax.eval_shape(module.init, jax.random.key(0), inputs[:1]))
  params, state = jax.tree.map(
    lambda leaf: 0.5 * random.normal(size=leaf.shape).astype(np.float32),
    (shapes.pop('params'), shapes),
  )
  return params, jax.tree.map(lambda leaf: 0.1 + np.abs(leaf), state)


def gradients_of(outputs):
  """Any gradient in the outputs will do, if all its elements differ."""
  return jnp.sin(1 + jnp.arange(outputs.size)).reshape(outputs.shape)


def by_ghost(module, params, state, inputs, **options):
  def norm(x):
    outputs, squared_norm = ghost.vjp(
      forward_fn(module, state, x), params, **options
    )
    return squared_norm(gradients_of(outputs).astype(outputs.dtype))

  return jax.vmap(norm)(inputs)


def by_vmap(module, params, state, inputs):
  def norm(x):
    outputs, pullback = jax.vjp(forward_fn(module, state, x), params)
    [gradient] = pullback(gradients_of(outputs))
    return sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient))

  return jax.vmap(norm)(inputs)


@functools.cache
def results():
  """All squared norms, twice, in one program: name -> (by ghost, by vmap)."""
  cases = COVERED | {name: case[:2] for name, case in UNCOVERED.items()}

  @quick_jit
  def both(variables):
    norms = {}
    for name, (module, inputs) in cases.items():
      fallback = 'raise' if name in COVERED else 'vmap'
      args = module, *variables[name], inputs
      norms[name] = by_ghost(*args, fallback=fallback), by_vmap(*args)
    return norms

  return both({name: variables(*case) for name, case in cases.items()})


@pytest.mark.parametrize('name', COVERED | UNCOVERED)
def test_equals_vmap_of_grad(name):
  """Within 1e-5, example by example, for rules and for the fallback."""
  norms, expected = results()[name]
  assert norms.shape == (M,)
  assert expected.min() > 0
  np.testing.assert_allclose(norms, expected, rtol=1e-5)


def trace(module, inputs, **options):
  """Finds out whether a model is covered, without compiling."""
  by = functools.partial(by_ghost, module, **options)
  return jax.eval_shape(by, *variables(module, inputs), inputs)


def compiled(module, inputs, **options):
  """The squared norms, by a program that is quick to compile."""
  by = functools.partial(by_ghost, module, **options)
  return quick_jit(by)(*variables(module, inputs), inputs)


@pytest.mark.parametrize('name', UNCOVERED)
def test_what_no_rule_covers_is_refused(name):
  """With the layers, the reason, and both ways out."""
  module, inputs, reason = UNCOVERED[name]
  with pytest.raises(ValueError, match=reason) as refused:
    trace(module, inputs)
  for remedy in ('register_norm_rule', "fallback='vmap'"):
    assert remedy in str(refused.value)


def test_the_complaint_names_each_uncovered_layer_and_no_other():
  """A long list has one reason for many layers."""
  module, inputs, _ = UNCOVERED['a type without a rule']
  with pytest.raises(ValueError, match='no norm rule covers') as refused:
    trace(module, inputs)
  assert 'layers_0' not in str(refused.value)
  with pytest.raises(ValueError, match='called within nn.scan') as refused:
    trace(*UNCOVERED['lstm'][:2])
  assert str(refused.value).count('called within nn.scan') == 1


def assert_exact(forward, params, **options):
  """Compares with the gradient, for one example."""

  @quick_jit
  def both(params):
    outputs, squared_norm = ghost.vjp(forward, params, **options)
    _, pullback = jax.vjp(forward, params)
    g = gradients_of(outputs)
    return squared_norm(g), optax.tree.norm(pullback(g), squared=True)

  np.testing.assert_allclose(*both(params), rtol=1e-5)


def test_compiled_layers_are_not_seen():
  """A jitted model is refused, whether its program is new or in the cache."""
  apply = jax.jit(nn.Dense(3).apply)
  x, (params, _) = normal(5), variables(nn.Dense(3), normal(M, 5))
  apply({'params': params}, x[None])
  for _ in range(2):
    with pytest.raises(ValueError, match='jit|is seen'):
      ghost.vjp(lambda p: apply({'params': p}, x[None])[0], params)


def test_parameters_changed_on_their_way_are_not_the_layers():
  """The rule knows the gradient in 2 p, not that in p."""
  x, (params, _) = normal(5), variables(nn.Dense(3), normal(M, 5))

  def forward(params):
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    return nn.Dense(3).apply({'params': doubled}, x)

  with pytest.raises(ValueError, match='used elsewhere'):
    ghost.vjp(forward, params)
  assert_exact(forward, params, fallback='vmap')


def test_frozen_parameters_do_not_count():
  """Those that forward closes over are not among params."""
  module, inputs = COVERED['mlp']
  params, _ = variables(module, inputs)
  head = {'Dense_2': params.pop('Dense_2')}
  assert_exact(
    lambda head: module.apply({'params': params | head}, inputs[:1])[0], head
  )


@pytest.mark.parametrize(
  'module',
  [
    nn.BatchNorm(use_running_average=False),
    Sequence((nn.Dense(3), nn.BatchNorm(use_running_average=False))),
  ],
)
@pytest.mark.parametrize('fallback', ['raise', 'vmap'])
def test_batch_statistics_are_refused(module, fallback):
  """Under them an example's gradient is not defined, whatever the means."""
  with pytest.raises(ValueError, match='BatchNorm.* no example has a grad'):
    trace(module, TEXT, fallback=fallback)


@pytest.mark.parametrize('args', [(True,), ()])
def test_batch_norm_is_told_at_the_call(args):
  """That it may use running averages: by position or by keyword."""
  module = nn.BatchNorm()
  keywords = {} if args else {'use_running_average': True}
  params, state = variables(nn.BatchNorm(use_running_average=True), TEXT)
  ghost.vjp(
    lambda p: module.apply({'params': p, **state}, TEXT[:1], *args, **keywords),
    params,
  )


@pytest.fixture
def rules(monkeypatch):
  """The registry, as it was once the test is over."""
  monkeypatch.setattr(ghost, 'NORM_RULES', dict(ghost.NORM_RULES))
  return ghost.NORM_RULES


def test_a_users_rule_is_used(rules):
  """Its number is the norm; inputs and gradient have one example's axes."""
  shapes = []

  def rule(layer, inputs, gradient):
    shapes.append((inputs.shape, gradient.shape))
    assert isinstance(layer, Scale)
    return 7

  ghost.register_norm_rule(Scale, rule)
  np.testing.assert_array_equal(compiled(Scale(), TEXT), [7] * M)
  assert set(shapes) == {((1, 9, 8), (1, 9, 8))}


def test_a_rule_of_none_has_the_gradient_formed(rules):
  """Right for any layer, linear in its parameters or not."""
  ghost.register_norm_rule(Scale, lambda layer, inputs, gradient: None)
  params, _ = variables(Scale(), TEXT)
  assert_exact(forward_fn(Scale(), {}, TEXT[0]), params)


def test_a_rule_speaks_for_the_layers_inside_too(rules):
  """These are not counted a second time."""
  ghost.register_norm_rule(TwoLayers, lambda layer, inputs, gradient: 7.0)
  np.testing.assert_array_equal(compiled(TwoLayers(), TEXT), [7] * M)


def test_a_subclass_needs_a_rule_of_its_own(rules):
  """It may compute anything; its parent's rule can be registered for it."""

  class Head(nn.Dense):
    pass

  with pytest.raises(ValueError, match='Head, a type without a norm rule'):
    trace(Head(3), TEXT)
  ghost.register_norm_rule(Head, rules[nn.Dense])
  trace(Head(3), TEXT)


def test_a_rule_must_return_one_number(rules):
  """The error names the layer."""
  ghost.register_norm_rule(Scale, lambda layer, inputs, gradient: inputs)
  with pytest.raises(ValueError, match='norm rule of Scale must return one nu'):
    trace(Scale(), TEXT)


@pytest.mark.parametrize('layer', [Scale(), int, 'Dense'])
def test_rules_are_for_types_of_modules(layer):
  """Not for modules themselves."""
  with pytest.raises(ValueError, match='layer must be a class of flax'):
    ghost.register_norm_rule(layer, lambda layer, inputs, gradient: None)


def test_bad_fallbacks_are_named():
  """Argument, value, remedy."""
  with pytest.raises(ValueError, match="fallback must be .*; got 'none'"):
    trace(*COVERED['dense'], fallback='none')


def test_the_last_layer_alone():
  """Its own gradient's norm: || g ||^2 (|| h ||^2 + 1)."""
  module, inputs = COVERED['mlp']
  norms = compiled(module, inputs, last_layer_only=True)
  params, _ = variables(module, inputs)
  h = np.asarray(inputs).reshape(M, -1)
  for layer in ('Dense_0', 'Dense_1'):
    h = np.maximum(h @ params[layer]['kernel'] + params[layer]['bias'], 0)
  squares = np.sum(np.square(h), axis=1)
  g = gradients_of(jnp.zeros(3))
  np.testing.assert_allclose(norms, np.sum(g**2) * (squares + 1), rtol=1e-5)


@pytest.mark.parametrize(
  ('module', 'inputs', 'culprit'),
  [
    (Sequence((nn.Dense(3), nn.LayerNorm())), TEXT, 'layers_1/bias'),
    (Twice(), TEXT, 'Dense_0/bias'),
    (Tied(), tokens(M, 9), 'Embed_0/embedding'),
    (Scale(), TEXT, 'scale'),
  ],
)
def test_a_last_layer_is_one_that_all_parameters_act_through(
  module, inputs, culprit
):
  """Else the error names what acts past it."""
  with pytest.raises(ValueError, match=f'{culprit}.* past it'):
    trace(module, inputs, last_layer_only=True)


def sizes(jaxpr):
  """Yields the number of elements of every array of a program."""
  for equation in jaxpr.eqns:
    yield from (variable.aval.size for variable in equation.outvars)
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from sizes(inner)


def test_no_gradient_of_a_dense_layer_is_formed():
  """No array is as large as M gradients of the kernel; vmap(grad) has one."""
  module, inputs = nn.Dense(40), normal(M, 30)
  params, state = variables(module, inputs)
  largest = [
    max(sizes(jax.make_jaxpr(by)(params, state, inputs).jaxpr))
    for by in (
      functools.partial(by_ghost, module),
      functools.partial(by_vmap, module),
    )
  ]
  assert largest[0] <= 30 * 40 < M * 30 * 40 <= largest[1]


def test_a_flat_loss_has_norm_zero_and_a_scaled_one_a_scaled_norm():
  """|| c g ||^2 = c^2 || g ||^2, and no NaN at zero; rules and fallback."""
  names = 'dense in time, by Gram matrices', 'embed', 'layer norm'

  @quick_jit
  def norms(variables):
    rows = []
    for name in names:
      module, inputs = COVERED[name]
      params, state = variables[name]
      forward = forward_fn(module, state, inputs[0])
      outputs, squared_norm = ghost.vjp(forward, params)
      g = gradients_of(outputs)
      rows.append([squared_norm(scale * g) for scale in (0, 1, 3)])
    return rows

  for zero, one, nine in norms({n: variables(*COVERED[n]) for n in names}):
    assert zero == 0
    np.testing.assert_allclose(nine, 9 * one, rtol=1e-5)


@pytest.mark.parametrize('name', ['conv, grouped', 'conv, by Gram matrices'])
def test_convolutions_of_all_examples_at_once(name, monkeypatch):
  """As on accelerators: the same norms as one example at a time."""
  monkeypatch.setattr(ghost, 'sequential_vmap', lambda norm: norm)
  norms = compiled(*COVERED[name])
  np.testing.assert_allclose(norms, results()[name][1], rtol=1e-5)


def test_squares_are_added_in_float32():
  """A bfloat16 square would be off by 2e-5 here, its sum by more."""
  x = jnp.full(1000, 1.0078125, jnp.bfloat16)
  assert ghost.squares(x).dtype == jnp.float32
  np.testing.assert_allclose(ghost.squares(x), 1000 * 1.0078125**2, rtol=1e-6)


class Half(nn.Module):
  """As MLP(3, (6,)), in bfloat16."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(6, dtype=jnp.bfloat16)(x))
    return nn.Dense(3, dtype=jnp.bfloat16)(x)


def test_bfloat16_layers_have_float32_norms():
  """Within the 8 bits that bfloat16 keeps."""
  half = compiled(Half(), TEXT[:, 0])
  assert half.dtype == jnp.float32
  full = compiled(MLP(3, (6,)), TEXT[:, 0])
  np.testing.assert_allclose(half, full, rtol=0.03)
