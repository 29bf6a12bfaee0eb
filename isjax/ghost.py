"""Exact norms of per-example gradients, without per-example gradients.

The gradient of a dense layer is the outer product of what enters it and of the
gradient that comes back, so that its norm is the product of two norms: it is
known as soon as the backward pass meets the layer, and the gradient itself is
never formed. `vjp` brings this to flax.linen models as they are. It intercepts
the calls of layers and ties to each a tag, the identity, whose backward pass
adds the layer's squared norm to one running sum. Only that sum is
differentiated, so that nobody asks for the gradients of the weights.

All here is said of ONE example, whose axes are all its own; `jax.vmap` makes
it many, and knows by itself which arrays differ between examples.

Exactness is checked, not assumed. The model is traced once with its layers cut
out, and a parameter that then still reaches the outputs has a use that no rule
knows of: its layer has none, is called twice, lies within nn.scan or nn.remat,
or shares its weights. Such a parameter is an error, or has its gradient formed
example by example where that is asked for.

Sources: Goodfellow (2015), arXiv:1510.01799, for dense layers; Rochette et al.
(2019), arXiv:1912.06015, for convolutions; Li et al. (2022), arXiv:2110.05679,
for sequences; Bu et al. (2022), arXiv:2205.10683, for the choice, layer by
layer, between Gram matrices and the gradient itself.
"""

import collections
from collections.abc import Callable, Iterable
import functools
import itertools
import math
from typing import Any, NamedTuple, TypeAlias

from flax import linen as nn
from flax.linen.linear import canonicalize_padding
import jax
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.extend.core import Var, get_opaque_trace_state
import jax.numpy as jnp

from isjax import _validate
from isjax.types import PyTree

NormRule: TypeAlias = Callable[
  [nn.Module, jax.Array, jax.Array], jax.Array | None
]


def vjp(
  forward: Callable[[PyTree], PyTree],
  params: PyTree,
  *,
  last_layer_only: bool = False,
  fallback: str = 'raise',
) -> tuple[PyTree, Callable[[PyTree], jax.Array]]:
  """Like `jax.vjp`, but pulls back to the squared norm of the gradient.

  Costs a forward pass and that part of a backward pass which leads from layer
  to layer. With T > 1 places, along time or in an image, each layer costs as
  much as its part of a forward pass again, and holds the lesser, in
  multiplications, of its gradient and of two Gram matrices f32[T, T]. Under a
  vmap over m examples memory is m times that of one, for the activations too.

  Args:
    forward: (params) -> outputs of ONE example, by flax.linen modules in
      evaluation mode. Not jitted: of compiled layers nothing can be seen.
    params: pytree of the arrays that are the modules' parameters.
    last_layer_only: the norm over the parameters of the last layer alone, for
      which a forward pass is nearly enough.
    fallback: for parameters that no rule covers: 'raise', or 'vmap', which
      forms their gradients, m of each under a vmap over m examples.

  Returns:
    (outputs, squared_norm); squared_norm takes a gradient in the outputs to
    f32[] >= 0, the squared 2-norm of the gradient in the parameters. Scale the
    former to about 1: squares leave the range of float32 before norms do.

  Raises:
    ValueError: for parameters that no rule covers, with their layers, reasons
      and remedies; for batch statistics, under which an example has no
      gradient of its own; for a rule that returns anything but one number;
      where parameters act past the last layer and only that one is asked for.
  """
  _validate.one_of(('raise', 'vmap'), fallback=fallback)
  if last_layer_only:
    plan = _plan_last_layer(forward, params)
  else:
    plan = _plan(forward, params, fallback)
  leaves, structure = jax.tree.flatten(params)

  def tagged(total, formed):
    merged = list(leaves)
    for position, leaf in zip(plan.formed, formed, strict=True):
      merged[position] = leaf

    def tag(call):
      if not call.positions <= plan.tagged:
        return call.outputs
      return _tag(call.rule, call.outputs, call.inputs, total)

    return _intercept(forward, structure.unflatten(merged), tag)

  outputs, pullback = jax.vjp(
    tagged, jnp.float32(0), [leaves[position] for position in plan.formed]
  )

  def squared_norm(gradient: PyTree) -> jax.Array:
    total, formed = pullback(gradient)
    return sum(map(squares, formed), total)

  return outputs, squared_norm


def squares(x: jax.Array) -> jax.Array:
  """Returns the sum of the squares of all elements, f32[]."""
  return jnp.sum(jnp.square(x.astype(jnp.float32)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tag(rule, outputs, inputs, total):
  """Returns the outputs; on the way back adds the squared norm to total."""
  del rule, inputs, total
  return outputs


def _tag_forward(rule, outputs, inputs, total):
  del rule, total
  return outputs, inputs


def _tag_backward(rule, inputs, gradient):
  return gradient, None, jnp.asarray(rule(inputs, gradient), jnp.float32)


_tag.defvjp(_tag_forward, _tag_backward)


class _Call(NamedTuple):
  """The call of a layer of a known type.

  rule:      (inputs, gradient) -> f32[], or None where the rule declines.
  positions: of the layer's parameters, among all leaves.
  inputs:    the first argument.
  outputs:   what the layer returns.
  """

  rule: Callable[[PyTree, PyTree], jax.Array | None]
  positions: frozenset[int]
  inputs: PyTree
  outputs: PyTree


def _intercept(
  forward: Callable[[PyTree], PyTree],
  params: PyTree,
  replace: Callable[[_Call], PyTree],
) -> PyTree:
  """Runs forward(params) with replace(call) for what each layer returns.

  A layer's parameters are known by identity: what has been changed on its way
  to the layer is no parameter. Within a layer of a known type, and in programs
  within the program (nn.scan, nn.remat, vmap, jit), no call counts.
  """
  positions = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(params))}
  level = get_opaque_trace_state()
  within = []

  def parameters_of(module):
    leaves = jax.tree.leaves(module.variables.get('params', {}))
    return frozenset(positions.get(id(leaf)) for leaf in leaves)

  def interceptor(call, args, kwargs, context):
    module = context.module
    if context.method_name != '__call__':
      return call(*args, **kwargs)
    _refuse_batch_statistics(module, args, kwargs)
    rule = NORM_RULES.get(type(module))
    if rule is None or not args or within or get_opaque_trace_state() != level:
      return call(*args, **kwargs)
    within.append(module)
    outputs = call(*args, **kwargs)
    within.pop()
    own = parameters_of(module)
    if not own or None in own:
      return outputs
    rule = functools.partial(rule, module)
    return replace(_Call(rule, own, args[0], outputs))

  with nn.intercept_methods(interceptor):
    return forward(params)


def _refuse_batch_statistics(module, args, kwargs) -> None:
  if not isinstance(module, nn.BatchNorm):
    return
  running = kwargs.get('use_running_average', any(args[1:2]))
  if not (module.use_running_average or running):
    raise ValueError(
      f'{"/".join(module.path)} (BatchNorm) uses the statistics of the batch, '
      'under which no example has a gradient of its own. Let it use running '
      'averages, as in evaluation, or put GroupNorm or LayerNorm in its place.'
    )


def _survey(
  forward: Callable[[PyTree], PyTree], params: PyTree, *, keep_inputs: bool
) -> tuple[list[_Call], set[int], set[int]]:
  """Traces the model with its layers cut out, and sees what is left.

  A layer that is cut out returns a number made of its inputs or, without
  keep_inputs, 0. Returns the calls, in order; the positions of the parameters
  whose layers decline a rule, and are left in; and the positions of those on
  which the outputs still depend.
  """
  calls, declined = [], set()

  def cut(call):
    if not _has_rule(call):
      declined.update(call.positions)
      return call.outputs
    calls.append(call)
    kept = 0.0
    if keep_inputs:
      kept = sum(map(jnp.sum, jax.tree.leaves(call.inputs)))
    return jax.tree.map(
      lambda y: jnp.full(y.shape, kept, y.dtype), call.outputs
    )

  program = jax.make_jaxpr(lambda p: _intercept(forward, p, cut))(params)
  return calls, declined, _reaching(program.jaxpr)


def _has_rule(call: _Call) -> bool:
  norm = jax.eval_shape(call.rule, call.inputs, call.outputs)
  if norm is None:
    return False
  if getattr(norm, 'shape', None) != ():
    raise ValueError(
      f'the norm rule of {type(call.rule.args[0]).__name__} must return one '
      f'number for one example, f32[], or None; got {norm}.'
    )
  return True


def _reaching(jaxpr) -> set[int]:
  """Positions of the inputs that some path of operations leads to outputs."""
  live = {v for v in jaxpr.outvars if isinstance(v, Var)}
  for equation in reversed(jaxpr.eqns):
    if not live.isdisjoint(equation.outvars):
      live.update(v for v in equation.invars if isinstance(v, Var))
  return {i for i, v in enumerate(jaxpr.invars) if v in live}


class _Plan(NamedTuple):
  """How the squared norm of each parameter's gradient is found.

  tagged: positions of those that the rules cover.
  formed: positions of those whose gradients are formed.
  """

  tagged: frozenset[int]
  formed: tuple[int, ...]


def _plan(forward, params, fallback: str) -> _Plan:
  """Covers all that it can by rules."""
  calls, declined, left = _survey(forward, params, keep_inputs=True)
  uncovered = left | _shared(calls)
  if fallback == 'raise' and not uncovered <= declined:
    raise ValueError(_complaint(forward, params, uncovered - declined))
  for call in calls:
    if not uncovered.isdisjoint(call.positions):
      uncovered |= call.positions
  covered = frozenset().union(*(call.positions for call in calls))
  return _Plan(covered - uncovered, tuple(sorted(uncovered)))


def _shared(calls: list[_Call]) -> set[int]:
  """Positions of the parameters that more than one call uses."""
  counts = collections.Counter(i for call in calls for i in call.positions)
  return {i for i, count in counts.items() if count > 1}


def _plan_last_layer(forward, params) -> _Plan:
  """Covers the last layer, if all else acts through it."""
  calls, _, left = _survey(forward, params, keep_inputs=False)
  last = calls[-1].positions if calls else frozenset()
  beyond = left | (last & _shared(calls))
  if beyond:
    names = ', '.join(_names(params)[i] for i in sorted(beyond))
    raise ValueError(
      'a model with a last layer ends in one call of a layer with a norm rule; '
      f'here {names} act on the outputs past it. Take the norm over all '
      'parameters instead.'
    )
  return _Plan(last, ())


def _names(params) -> list[str]:
  """Paths of the leaves, as Dense_0/kernel."""
  return [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree.leaves_with_path(params)
  ]


def _complaint(forward, params, uncovered: set[int]) -> str:
  """Tells which layers hold these parameters, and why no rule covers them."""
  calls = collections.defaultdict(list)

  def observed(params):
    level = get_opaque_trace_state()

    def interceptor(call, args, kwargs, context):
      if context.method_name == '__call__':
        inner = get_opaque_trace_state() != level
        path = '/'.join(context.module.path)
        calls[path].append((type(context.module), inner))
      return call(*args, **kwargs)

    with nn.intercept_methods(interceptor):
      return forward(params)

  jax.eval_shape(observed, params)
  names = _names(params)
  layers = collections.defaultdict(dict)
  for position in sorted(uncovered):
    path = names[position].rpartition('/')[0]
    layers[_reason(calls[path])][path or 'the model itself'] = None
  reasons = [f'{", ".join(paths)} ({why})' for why, paths in layers.items()]
  return (
    f'no norm rule covers all parameters: {"; ".join(reasons)}. Register a '
    'rule for the type, ghost.register_norm_rule(Type, rule), or form these '
    "gradients, as many as there are examples, with fallback='vmap'."
  )


def _reason(calls: list[tuple[type, bool]]) -> str:
  """Why no rule covers a layer; its calls' types, and if in inner programs."""
  if not calls:
    return 'no call of a layer by this path is seen'
  kind, inner = calls[0]
  if kind not in NORM_RULES:
    return f'{kind.__name__}, a type without a norm rule'
  if inner:
    return f'{kind.__name__}, called within nn.scan, nn.remat, vmap or jit'
  if len(calls) > 1:
    return f'{kind.__name__}, called more than once'
  return (
    f'{kind.__name__}, called by keyword, or whose parameters are changed '
    'before the call or used elsewhere'
  )


def _product_squares(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
  """Returns sum_g || sum_t inputs[t, g] gradient[t, g]^T ||_F^2.

  By two Gram matrices over t, or by the product itself: what multiplies less.

  Args:
    inputs: f32[T, G, K], what meets the kernel.
    gradient: f32[T, G, O].
  """
  length, _, fan_in = inputs.shape
  features = gradient.shape[-1]
  inputs = inputs.astype(jnp.float32)
  gradient = gradient.astype(jnp.float32)
  if length * (fan_in + features) > fan_in * features:
    return squares(jnp.einsum('tgo,tgk->gok', gradient, inputs))
  gram = jnp.einsum('tgk,sgk->gts', inputs, inputs)
  products = gram * jnp.einsum('tgo,sgo->gts', gradient, gradient)
  return jnp.maximum(jnp.sum(products), 0.0)


def _dense(layer, inputs, gradient):
  """Of nn.Dense; all axes but the last are time."""
  if layer.dot_general or layer.dot_general_cls:
    return None
  x = inputs.reshape(-1, 1, inputs.shape[-1])
  g = gradient.reshape(-1, 1, gradient.shape[-1])
  return _product_squares(x, g) + _bias_squares(layer, g)


def _bias_squares(layer, gradient: jax.Array) -> jax.Array | float:
  """Of a bias that is added at all T places of gradient [T, ...]."""
  if not layer.use_bias:
    return 0.0
  return squares(gradient.sum(0, dtype=jnp.float32))


def _dense_general(layer, inputs, gradient):
  """Of nn.DenseGeneral, the layer within attention."""
  if layer.batch_dims or layer.dot_general or layer.dot_general_cls:
    return None
  axes = _tuple(layer.axis)
  last = tuple(range(-len(axes), 0))
  x = jnp.moveaxis(inputs, axes, last)
  x = x.reshape(-1, 1, math.prod(x.shape[-len(axes) :]))
  g = gradient.reshape(-1, 1, math.prod(_tuple(layer.features)))
  return _product_squares(x, g) + _bias_squares(layer, g)


def _conv(layer, inputs, gradient):
  """Of nn.Conv: a dense layer, of the windows that the kernel looks through."""
  if (
    layer.mask is not None
    or layer.conv_general_dilated
    or layer.conv_general_dilated_cls
    or layer.padding in ('CIRCULAR', 'REFLECT', 'CAUSAL')
  ):
    return None

  def norm(inputs, gradient):
    groups = layer.feature_group_count
    places = [
      x.reshape(-1, groups, x.shape[-1] // groups)
      for x in _windows(layer, inputs, gradient.shape)
    ]
    g = gradient.reshape(-1, groups, layer.features // groups)
    x = jnp.concatenate(places, axis=-1)
    return _product_squares(x, g) + _bias_squares(layer, g)

  # On CPU windows of one example at a time, which stay in the caches, take a
  # third of the time.
  return lax.platform_dependent(
    inputs, gradient, cpu=sequential_vmap(norm), default=norm
  )


def _windows(
  layer: nn.Conv, inputs: jax.Array, shape: tuple[int, ...]
) -> Iterable[jax.Array]:
  """Yields what meets each place of the kernel: [n, *spatial, C]."""
  kernel = _tuple(layer.kernel_size)
  rank = len(kernel)
  strides, gaps, holes = (
    _tuple(1 if value is None else value, rank)
    for value in (layer.strides, layer.input_dilation, layer.kernel_dilation)
  )
  reach = [(k - 1) * hole + 1 for k, hole in zip(kernel, holes, strict=True)]
  x = inputs.reshape(-1, *inputs.shape[-rank - 1 :])
  pads = canonicalize_padding(layer.padding, rank)
  if isinstance(pads, str):
    pads = lax.padtype_to_pads(x.shape[1:-1], reach, strides, pads)
  interior = [
    (low, high, gap - 1) for (low, high), gap in zip(pads, gaps, strict=True)
  ]
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *interior, (0, 0, 0)])
  out = shape[-rank - 1 : -1]
  for place in itertools.product(*map(range, kernel)):
    start = [i * hole for i, hole in zip(place, holes, strict=True)]
    stop = [
      first + (size - 1) * stride + 1
      for first, size, stride in zip(start, out, strides, strict=True)
    ]
    yield lax.slice(
      x, (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1)
    )


def _tuple(value: Any, length: int = 1) -> tuple[int, ...]:
  return (value,) * length if isinstance(value, int) else tuple(value)


def _embed(layer, inputs, gradient):
  """Of nn.Embed: rows that are looked up again get the sum of gradients."""
  rows = inputs.reshape(-1) % layer.num_embeddings  # negative ones wrap
  first = jnp.argmax(rows[:, None] == rows[None, :], axis=1)
  g = gradient.reshape(-1, gradient.shape[-1]).astype(jnp.float32)
  return squares(jax.ops.segment_sum(g, first, len(rows)))


def _form(layer, inputs, gradient):
  """Of layers with few parameters, whose gradients may well be formed."""
  del layer, inputs, gradient


# Type of the layer -> its rule; see `register_norm_rule`. A subclass needs an
# entry of its own.
NORM_RULES: dict[type[nn.Module], NormRule] = {
  nn.Dense: _dense,
  nn.DenseGeneral: _dense_general,
  nn.Conv: _conv,
  nn.Embed: _embed,
  nn.BatchNorm: _form,
  nn.GroupNorm: _form,
  nn.InstanceNorm: _form,
  nn.LayerNorm: _form,
  nn.PReLU: _form,
  nn.RMSNorm: _form,
}


def register_norm_rule(layer: type[nn.Module], rule: NormRule) -> None:
  """Tells `vjp` how to find the squared norm of a type of layer.

  Args:
    layer: the type itself; a subclass needs a rule of its own, for which that
      of its parent, NORM_RULES[nn.Dense] say, may do.
    rule: (module, inputs, gradient) -> f32[] >= 0, the squared norm of the
      gradient of ONE example in all parameters of the layer, those of its
      submodules included. `inputs` is the first argument of the call, and all
      its axes belong to the example; `gradient` is that in what the call
      returned. `module` has the layer's fields, but no variables: it is a rule
      for layers that are linear in their parameters. None in place of a norm,
      decided by shapes and fields alone, has the gradient formed instead, which
      is right for any layer, and costs little where parameters are few.

  Raises:
    ValueError: where `layer` is not a type of flax.linen module.
  """
  if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
    raise ValueError(
      f'layer must be a class of flax.linen modules; got {layer!r}.'
    )
  NORM_RULES[layer] = rule
