"""torch.export graphs to nodes. What is not known is refused by name, with its place and what would do instead."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from mpcd.daemon.model.nodes import Floats, Graph, ModelError, Node, Pair, Shape, window_shape

SUPPORTED = (
    "Conv2d, BatchNorm2d, ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1), Linear, cat, add, flatten, Dropout "
    "and Identity are supported"
)
_HINTS = {
    "sigmoid": "leave the sigmoid out: scores are logits, and AUROC does not change under a monotone function",
    "softmax": "leave the softmax out and reveal logits",
    "hardtanh": "use ReLU instead of ReLU6 and fine-tune",
    "gelu": "use ReLU and fine-tune",
    "silu": "use ReLU and fine-tune",
    "leaky_relu": "use ReLU and fine-tune",
    "mul": "fold a constant factor into the weights before it",
    "batch_norm": "export the model in eval mode",
    "layer_norm": "use BatchNorm2d",
    "group_norm": "use BatchNorm2d",
    "instance_norm": "use BatchNorm2d",
    "upsample": "leave resizing to the recipe",
}


def from_module(module: nn.Module, input_shape: Shape) -> Graph:
    """Export ``module`` (set to eval) for one image of ``input_shape`` and read its graph."""
    example = torch.zeros(1, *input_shape)
    try:
        program = torch.export.export(module.eval(), (example,))
    except Exception as error:
        raise ModelError(f"torch.export cannot trace the model: {str(error).splitlines()[0]}") from error
    return from_program(program, input_shape)


def from_program(program: torch.export.ExportedProgram, input_shape: Shape) -> Graph:
    """Nodes of an exported program of one image in, one row of logits out. Raises ModelError."""
    return _Reader(program.run_decompositions({}), input_shape).read()


class _Reader:
    def __init__(self, program: torch.export.ExportedProgram, input_shape: Shape) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._made: dict[str, int] = {}  # fx node name -> index of the node that holds its value
        self._flat: set[str] = set()  # fx nodes whose value is (1, features), not (1, C, H, W)
        self._tensors: dict[str, Floats] = {}
        self._input_shape = input_shape
        self._readers: dict[str, Callable[[fx.Node], None]] = {
            "aten.conv2d.default": self._conv2d,
            "aten.conv2d.padding": self._conv2d,
            "aten.convolution.default": self._convolution,
            "aten.linear.default": self._linear,
            "aten.addmm.default": self._addmm,
            "aten.batch_norm.default": self._batch_norm,
            "aten._native_batch_norm_legit_no_training.default": self._batch_norm,
            "aten.relu.default": self._relu,
            "aten.max_pool2d.default": self._max_pool,
            "aten.max_pool2d_with_indices.default": self._max_pool,
            "aten.avg_pool2d.default": self._avg_pool,
            "aten.adaptive_avg_pool2d.default": self._adaptive_pool,
            "aten._adaptive_avg_pool2d.default": self._adaptive_pool,
            "aten.mean.dim": self._mean,
            "aten.add.Tensor": self._add,
            "aten.cat.default": self._concat,
            "aten.flatten.using_ints": self._reshape,
            "aten.view.default": self._reshape,
            "aten.reshape.default": self._reshape,
            "aten._unsafe_view.default": self._reshape,
            "aten.squeeze.dims": self._reshape,
            "aten.dropout.default": self._same,
            "aten.clone.default": self._same,
            "aten.alias.default": self._same,
            "aten.detach.default": self._same,
            "aten.contiguous.default": self._same,
        }

    def read(self) -> Graph:
        self._inputs()
        for fx_node in self._program.graph.nodes:
            if fx_node.op == "call_function":
                self._call(fx_node)
            elif fx_node.op == "output":
                return self._output(fx_node)
        raise ModelError("the program has no output")

    def _inputs(self) -> None:
        signature = self._program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = {**self._program.constants, **self._program.state_dict}
        lifted = signature.inputs_to_lifted_tensor_constants
        images = []
        for fx_node in self._program.graph.nodes:
            if fx_node.op != "placeholder":
                continue
            target = names.get(fx_node.name) or lifted.get(fx_node.name)
            if target is None:
                images.append(fx_node)
            elif isinstance(constants.get(target), Tensor):
                value = constants[target].detach()
                if value.is_floating_point():
                    if not torch.isfinite(value).all():
                        raise ModelError(f"{target} holds a number that is not finite")
                    self._tensors[fx_node.name] = value.to(torch.float64).numpy()
        if len(images) != 1:
            raise ModelError(f"the model takes {len(images)} inputs; it must take one image")
        shape = tuple(images[0].meta["val"].shape)
        if len(shape) != 4 or any(isinstance(s, torch.SymInt) for s in shape[1:]):
            raise ModelError(f"the model takes {_text(shape)}: export it for a fixed (1, channels, height, width)")
        if shape[1:] != self._input_shape:
            raise ModelError(f"the model takes images of {_text(shape[1:])}, the recipe makes {self._input_shape}")
        self._made[images[0].name] = 0
        self._nodes.append(Node("input", (), self._input_shape, "input"))

    def _call(self, fx_node: fx.Node) -> None:
        if fx_node.target is operator.getitem:
            if fx_node.args[1] != 0:
                raise self._refuse(fx_node, "only the first result of an operator can be used")
            self._same(fx_node)
            return
        target = str(fx_node.target)
        if target == "aten.permute.default" or target == "aten.t.default":
            weight = self._tensors.get(_name(fx_node.args[0]))
            if weight is not None and weight.ndim == 2:  # a Linear's weight on its way to addmm
                self._tensors[fx_node.name] = weight.T
                return
        if target.startswith("aten.sym_size") or not any(_name(i) in self._made for i in fx_node.all_input_nodes):
            return  # arithmetic on sizes and constants: refused where the image meets it
        reader = self._readers.get(target)
        if reader is None:
            base = target.removeprefix("aten.").split(".")[0].strip("_")
            hint = next((text for name, text in _HINTS.items() if name in base), None)
            raise self._refuse(fx_node, hint or SUPPORTED)
        reader(fx_node)

    def _output(self, fx_node: fx.Node) -> Graph:
        results = fx_node.args[0]
        if not isinstance(results, (tuple, list)) or len(results) != 1 or _name(results[0]) not in self._made:
            raise ModelError("the model must return one tensor, its logits")
        last = self._made[_name(results[0])]
        if self._nodes[last].shape[1:] != (1, 1):
            raise ModelError(f"the model returns {self._nodes[last].shape}; one number a finding is needed")
        if last == 0:
            raise ModelError("the model returns its input")
        return _reachable(self._nodes, last)

    # One method an operator.

    def _conv2d(self, fx_node: fx.Node) -> None:
        x, weight, bias, stride, padding, dilation, groups = _arguments(
            fx_node, (None, None, None, (1, 1), (0, 0), (1, 1), 1)
        )
        if isinstance(padding, str):
            kernel = self._tensor(fx_node, weight).shape[2:]
            same = tuple(k // 2 for k in kernel)
            if padding == "same" and any(k % 2 == 0 for k in kernel):
                raise self._refuse(fx_node, "padding='same' needs an odd kernel; pad by numbers")
            padding = same if padding == "same" else (0, 0)
        self._convolve(fx_node, x, weight, bias, stride, padding, dilation, groups)

    def _convolution(self, fx_node: fx.Node) -> None:
        x, weight, bias, stride, padding, dilation, transposed, _, groups = fx_node.args
        if transposed:
            raise self._refuse(fx_node, "a transposed convolution has no place in a classifier; use Conv2d")
        self._convolve(fx_node, x, weight, bias, stride, padding, dilation, groups)

    def _convolve(
        self, fx_node: fx.Node, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
    ) -> None:
        if _pair(dilation) != (1, 1):
            raise self._refuse(fx_node, "dilation is not supported; use dilation 1 (a larger kernel, or stride)")
        w = self._tensor(fx_node, weight)
        source = self._source(fx_node, x)
        stride, padding = _pair(stride), _pair(padding)
        kernel = (w.shape[2], w.shape[3])
        b = np.zeros(w.shape[0]) if bias is None else self._tensor(fx_node, bias)
        rows, columns = window_shape(self._nodes[source].shape, kernel, stride, padding)
        self._append(
            fx_node, "conv", (source,), (w.shape[0], rows, columns),
            kernel=kernel, stride=stride, padding=padding, groups=groups, weight=w, bias=b,
        )  # fmt: skip

    def _linear(self, fx_node: fx.Node) -> None:
        x, weight, bias = _arguments(fx_node, (None, None, None))
        self._dense(fx_node, x, self._tensor(fx_node, weight), bias)

    def _addmm(self, fx_node: fx.Node) -> None:
        if fx_node.kwargs:
            raise self._refuse(fx_node, "addmm with alpha or beta; use Linear")
        bias, x, weight = fx_node.args
        self._dense(fx_node, x, self._tensor(fx_node, weight).T, bias)

    def _dense(self, fx_node: fx.Node, x: Any, w: Floats, bias: Any) -> None:
        source = self._source(fx_node, x)
        if _name(x) not in self._flat:
            raise self._refuse(fx_node, "Linear needs a flat value: put flatten(1) before it")
        b = np.zeros(w.shape[0]) if bias is None else self._tensor(fx_node, bias)
        self._append(fx_node, "conv", (source,), (w.shape[0], 1, 1), weight=w[:, :, None, None], bias=b)
        self._flat.add(fx_node.name)

    def _batch_norm(self, fx_node: fx.Node) -> None:
        if "no_training" in str(fx_node.target):
            x, gamma, beta, mean, var, _, epsilon = fx_node.args
        else:
            x, gamma, beta, mean, var, training, _, epsilon, _ = fx_node.args
            if training or mean is None:
                raise self._refuse(fx_node, "export the model in eval mode, with running statistics")
        source = self._source(fx_node, x)
        scale = 1.0 / np.sqrt(self._tensor(fx_node, var) + float(epsilon))  # type: ignore[arg-type]
        if gamma is not None:
            scale = scale * self._tensor(fx_node, gamma)
        shift = -self._tensor(fx_node, mean) * scale
        if beta is not None:
            shift = shift + self._tensor(fx_node, beta)
        self._append(fx_node, "norm", (source,), self._nodes[source].shape, weight=scale, bias=shift)
        self._keep_flat(fx_node, x)

    def _relu(self, fx_node: fx.Node) -> None:
        source = self._source(fx_node, fx_node.args[0])
        self._append(fx_node, "relu", (source,), self._nodes[source].shape)
        self._keep_flat(fx_node, fx_node.args[0])

    def _max_pool(self, fx_node: fx.Node) -> None:
        x, kernel, stride, padding, dilation, ceil = _arguments(fx_node, (None, None, (), (0, 0), (1, 1), False))
        if _pair(dilation) != (1, 1):
            raise self._refuse(fx_node, "dilation is not supported in a pool")
        self._pool(fx_node, "max_pool", x, kernel, stride, padding, ceil)

    def _avg_pool(self, fx_node: fx.Node) -> None:
        x, kernel, stride, padding, ceil, _, divisor = _arguments(fx_node, (None, None, (), (0, 0), False, True, None))
        if _pair(padding) != (0, 0) or divisor is not None:
            raise self._refuse(fx_node, "an average pool may neither pad nor override its divisor")
        self._pool(fx_node, "avg_pool", x, kernel, stride, padding, ceil)

    def _pool(self, fx_node: fx.Node, kind: str, x: Any, kernel: Any, stride: Any, padding: Any, ceil: bool) -> None:
        source = self._source(fx_node, x)
        shape = self._nodes[source].shape
        kernel, padding = _pair(kernel), _pair(padding)
        stride = _pair(stride) if stride else kernel
        rows, columns = window_shape(shape, kernel, stride, padding)
        if ceil and any((s + 2 * p - k) % t for s, k, t, p in zip(shape[1:], kernel, stride, padding, strict=True)):
            raise self._refuse(
                fx_node, f"ceil_mode changes the size of a {shape[1]}x{shape[2]} image here; use ceil_mode=False"
            )
        self._append(fx_node, kind, (source,), (shape[0], rows, columns), kernel=kernel, stride=stride, padding=padding)

    def _adaptive_pool(self, fx_node: fx.Node) -> None:
        x, size = fx_node.args
        source = self._source(fx_node, x)
        shape = self._nodes[source].shape
        out = _pair(size)
        if any(o > s or s % o for s, o in zip(shape[1:], out, strict=True)):
            raise self._refuse(
                fx_node, f"a {shape[1]}x{shape[2]} image does not divide into {out[0]}x{out[1]} equal windows"
            )
        kernel = (shape[1] // out[0], shape[2] // out[1])
        self._append(fx_node, "avg_pool", (source,), (shape[0], *out), kernel=kernel, stride=kernel)

    def _mean(self, fx_node: fx.Node) -> None:
        x, dims, keep = _arguments(fx_node, (None, None, False))
        source = self._source(fx_node, x)
        if dims is None or sorted(d % 4 for d in dims) != [2, 3] or _name(x) in self._flat:
            raise self._refuse(fx_node, "only the mean over height and width, mean([2, 3]), is supported")
        shape = self._nodes[source].shape
        kernel = (shape[1], shape[2])
        self._append(fx_node, "avg_pool", (source,), (shape[0], 1, 1), kernel=kernel, stride=kernel)
        if not keep:
            self._flat.add(fx_node.name)

    def _add(self, fx_node: fx.Node) -> None:
        sources = [self._source(fx_node, a) for a in fx_node.args[:2]]
        if fx_node.kwargs.get("alpha", 1) != 1:
            raise self._refuse(fx_node, "add with alpha")
        shapes = [self._nodes[i].shape for i in sources]
        if shapes[0] != shapes[1]:
            raise self._refuse(fx_node, f"adds {shapes[0]} to {shapes[1]}; both must have one shape")
        self._append(fx_node, "add", tuple(sources), shapes[0])
        self._keep_flat(fx_node, fx_node.args[0])

    def _concat(self, fx_node: fx.Node) -> None:
        parts, dim = _arguments(fx_node, (None, 0))
        if dim not in (1, -3) or (dim == -3 and _name(parts[0]) in self._flat):
            raise self._refuse(fx_node, "only cat along channels (dim=1) is supported")
        sources = tuple(self._source(fx_node, p) for p in parts)
        shapes = [self._nodes[i].shape for i in sources]
        if len(sources) == 1:
            self._same(fx_node, parts[0])
            return
        self._append(fx_node, "concat", sources, (sum(s[0] for s in shapes), *shapes[0][1:]))
        self._keep_flat(fx_node, parts[0])

    def _reshape(self, fx_node: fx.Node) -> None:
        source = self._source(fx_node, fx_node.args[0])
        shape = self._nodes[source].shape
        want = tuple(fx_node.meta["val"].shape)[1:]
        if want == shape:
            self._same(fx_node)
        elif want == (math.prod(shape),):
            if shape[1:] == (1, 1):
                self._made[fx_node.name] = source
            else:
                self._append(fx_node, "flatten", (source,), (math.prod(shape), 1, 1))
            self._flat.add(fx_node.name)
        elif want == (shape[0], 1, 1):
            self._made[fx_node.name] = source
        else:
            raise self._refuse(fx_node, f"from {shape} to {_text(want)}; only flattening is supported")

    def _same(self, fx_node: fx.Node, source: Any = None) -> None:
        """An operator that changes nothing in eval mode."""
        source = fx_node.args[0] if source is None else source
        if "dropout" in str(fx_node.target) and fx_node.args[2]:
            raise self._refuse(fx_node, "export the model in eval mode")
        self._made[fx_node.name] = self._source(fx_node, source)
        self._keep_flat(fx_node, source)

    # Helpers.

    def _append(self, fx_node: fx.Node, kind: str, inputs: tuple[int, ...], shape: Shape, **fields: Any) -> None:
        if min(shape) < 1:
            raise self._refuse(fx_node, f"the image is too small here: nothing is left of it ({shape})")
        self._nodes.append(Node(kind, inputs, shape, _place(fx_node), **fields))
        self._made[fx_node.name] = len(self._nodes) - 1

    def _keep_flat(self, fx_node: fx.Node, source: Any) -> None:
        if _name(source) in self._flat:
            self._flat.add(fx_node.name)

    def _source(self, fx_node: fx.Node, argument: Any) -> int:
        if _name(argument) not in self._made:
            raise self._refuse(fx_node, "an operand is not computed from the image; fold constants into the weights")
        return self._made[_name(argument)]

    def _tensor(self, fx_node: fx.Node, argument: Any) -> Floats:
        if _name(argument) not in self._tensors:
            raise self._refuse(fx_node, "its weights must be the model's own parameters")
        return self._tensors[_name(argument)]

    def _refuse(self, fx_node: fx.Node, reason: str) -> ModelError:
        return ModelError(f"{fx_node.target} at {_place(fx_node)} is not supported: {reason}")


def _arguments(fx_node: fx.Node, defaults: tuple[Any, ...]) -> list[Any]:
    return [*fx_node.args, *defaults[len(fx_node.args) :]]


def _name(argument: Any) -> str:
    return argument.name if isinstance(argument, fx.Node) else ""


def _text(shape: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(s) for s in shape) + ")"


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    items = [int(v) for v in value]
    return items[0], items[-1]


def _place(fx_node: fx.Node) -> str:
    """Module path and, where it is not torch's own, the source line."""
    stack = fx_node.meta.get("nn_module_stack") or {}
    path = next((p for p, _ in reversed(stack.values()) if p and not p.startswith("_empty")), "the model itself")
    lines = [s.strip() for s in (fx_node.meta.get("stack_trace") or "").splitlines()]
    own = [s for s in lines if s.startswith("File") and "/torch/nn/" not in s]
    return f"{path} ({own[-1]})" if own and path == "the model itself" else f"{path} ({fx_node.name})"


def _reachable(nodes: list[Node], last: int) -> Graph:
    """Only what the output needs, the output last."""
    needed = {0, last}
    for index in range(last, 0, -1):
        if index in needed:
            needed.update(nodes[index].inputs)
    order = sorted(needed)
    renamed = {old: new for new, old in enumerate(order)}
    fields = [nodes[i] for i in order]
    return Graph(tuple(dataclasses.replace(n, inputs=tuple(renamed[i] for i in n.inputs)) for n in fields))
