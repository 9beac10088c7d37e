"""Every operator that is supported, in the forms that torch.export gives it, and every refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpcd.daemon.model import floats
from mpcd.daemon.model.graph import from_module, from_program
from mpcd.daemon.model.load import load
from mpcd.daemon.model.nodes import ModelError

SHAPE = (3, 12, 12)


class Of(nn.Module):
    """A module of parts and a function of them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def flat(x: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(x, 1).flatten(1)


def kinds(module: nn.Module) -> list[str]:
    """Node kinds after checking that the graph computes what the module does."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                part.weight.data.normal_()
                part.bias.data.normal_()
    graph = from_module(module, SHAPE)
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    with torch.inference_mode():
        want = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(floats.run(graph, images), want, rtol=1e-4, atol=1e-5)
    return [node.kind for node in graph.nodes]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Of(lambda m, x: flat(m.c(x)), c=nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3)), ["conv", "avg_pool"]),
        (Of(lambda m, x: flat(m.c(x)), c=nn.Conv2d(3, 6, (1, 3), padding="same", bias=False)), ["conv", "avg_pool"]),
        (Of(lambda m, x: flat(m.c(x)), c=nn.Conv2d(3, 6, 3, padding="valid")), ["conv", "avg_pool"]),
        (Of(lambda m, x: flat(m.b(x)), b=nn.BatchNorm2d(3)), ["norm", "avg_pool"]),
        (Of(lambda m, x: flat(m.b(x)), b=nn.BatchNorm2d(3, affine=False)), ["norm", "avg_pool"]),
        (
            Of(lambda m, x: flat(m.r(m.c(x))), c=nn.Conv2d(3, 2, 1), r=nn.ReLU(inplace=True)),
            ["conv", "relu", "avg_pool"],
        ),
        (Of(lambda m, x: flat(functional.relu(x))), ["relu", "avg_pool"]),
        (Of(lambda m, x: flat(torch.relu_(m.c(x))), c=nn.Conv2d(3, 2, 1)), ["conv", "relu", "avg_pool"]),
        (Of(lambda m, x: flat(m.p(x)), p=nn.MaxPool2d(3, 2, 1)), ["max_pool", "avg_pool"]),
        (Of(lambda m, x: flat(m.p(x)), p=nn.MaxPool2d(2, ceil_mode=True)), ["max_pool", "avg_pool"]),
        (Of(lambda m, x: flat(m.p(x)), p=nn.AvgPool2d(2)), ["avg_pool", "avg_pool"]),
        (Of(lambda m, x: flat(m.p(x)), p=nn.AdaptiveAvgPool2d((4, 6))), ["avg_pool", "avg_pool"]),
        (Of(lambda m, x: x.mean([2, 3])), ["avg_pool"]),
        (Of(lambda m, x: x.mean((-1, -2), keepdim=True).flatten(1)), ["avg_pool"]),
        (Of(lambda m, x: m.l(x.flatten(1)), l=nn.Linear(432, 2)), ["flatten", "conv"]),
        (Of(lambda m, x: m.l(x.view(x.size(0), -1)), l=nn.Linear(432, 2, bias=False)), ["flatten", "conv"]),
        (Of(lambda m, x: m.l(m.d(flat(x))), l=nn.Linear(3, 2), d=nn.Dropout(0.5)), ["avg_pool", "conv"]),
        (Of(lambda m, x: flat(torch.cat([x, m.c(x)], 1)), c=nn.Conv2d(3, 2, 1)), ["conv", "concat", "avg_pool"]),
        (Of(lambda m, x: flat(x + m.i(x)), i=nn.Identity()), ["add", "avg_pool"]),
        (Of(lambda m, x: flat(m.c(x).add_(x)), c=nn.Conv2d(3, 3, 1)), ["conv", "add", "avg_pool"]),
        (Of(lambda m, x: m.b(m.l(flat(x))), l=nn.Linear(3, 4), b=nn.BatchNorm1d(4)), ["avg_pool", "conv", "norm"]),
    ],
)
def test_supported(module: nn.Module, expected: list[str]) -> None:
    assert kinds(module.eval()) == ["input", *expected]


def test_an_inplace_relu_is_seen_by_every_user_of_the_value() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        torch.relu_(y)
        return flat(torch.cat([y, m.c(y)], 1))

    assert kinds(Of(function, c=nn.Conv2d(3, 3, 1)).eval()) == ["input", "conv", "relu", "conv", "concat", "avg_pool"]


def test_what_the_output_does_not_need_is_left_out() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        torch.sin(m.c(x))
        return flat(m.c(x))

    assert kinds(Of(function, c=nn.Conv2d(3, 3, 1)).eval()) == ["input", "conv", "avg_pool"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Of(lambda m, x: flat(m.c(x)), c=nn.Conv2d(3, 3, 3, dilation=2)), r"at c \(conv2d\).*dilation 1"),
        (Of(lambda m, x: flat(m.c(x)), c=nn.Conv2d(3, 3, 2, padding="same")), "odd kernel"),
        (Of(lambda m, x: flat(m.c(x)), c=nn.ConvTranspose2d(3, 3, 3)), "transpose"),
        (Of(lambda m, x: flat(m.p(x)), p=nn.MaxPool2d(3, 2, ceil_mode=True)), "ceil_mode=False"),
        (Of(lambda m, x: flat(m.p(x)), p=nn.MaxPool2d(2, dilation=2)), "dilation"),
        (Of(lambda m, x: flat(m.p(x)), p=nn.AvgPool2d(3, padding=1)), "neither pad"),
        (Of(lambda m, x: flat(m.p(x)), p=nn.AvgPool2d(2, divisor_override=3)), "divisor"),
        (Of(lambda m, x: flat(m.p(x)), p=nn.AdaptiveAvgPool2d(5)), "equal windows"),
        (Of(lambda m, x: flat(m.p(x)), p=nn.AdaptiveAvgPool2d(24)), "equal windows"),
        (Of(lambda m, x: flat(x).sigmoid()), "aten.sigmoid.*leave the sigmoid out"),
        (Of(lambda m, x: flat(x).softmax(1)), "softmax.*reveal logits"),
        (Of(lambda m, x: flat(m.r(x)), r=nn.ReLU6()), "hardtanh.*ReLU6"),
        (Of(lambda m, x: flat(m.r(x)), r=nn.SiLU()), "silu.*ReLU and fine-tune"),
        (Of(lambda m, x: flat(m.r(x)), r=nn.GELU()), "gelu.*ReLU"),
        (Of(lambda m, x: flat(m.n(x)), n=nn.GroupNorm(1, 3)), "group_norm.*BatchNorm2d"),
        (Of(lambda m, x: flat(x * 2)), "mul.*fold a constant"),
        (Of(lambda m, x: flat(x + 1)), "not computed from the image"),
        (Of(lambda m, x: flat(torch.sin(x))), r"sin.*Conv2d, BatchNorm2d"),
        (Of(lambda m, x: flat(torch.cat([x, x], 2))), "dim=1"),
        (Of(lambda m, x: x.mean(2).flatten(1)), r"mean\(\[2, 3\]\)"),
        (Of(lambda m, x: flat(x.view(1, 12, 3, 12))), "only flattening"),
        (Of(lambda m, x: torch.add(flat(x), flat(x), alpha=2)), "alpha"),
        (Of(lambda m, x: x + x.mean([2, 3], keepdim=True)), "one shape"),
        (Of(lambda m, x: m.l(x).mean([2, 3]), l=nn.Linear(12, 2)), r"flatten\(1\)"),
        (Of(lambda m, x: m.c(x), c=nn.Conv2d(3, 2, 3)), "one number a finding"),
        (Of(lambda m, x: x), "one number a finding"),
        (Of(lambda m, x: (flat(x), flat(x))), "one tensor"),
        (Of(lambda m, x: torch.zeros(1, 3)), "one tensor|not supported"),
        (Of(lambda m, x: functional.conv2d(x, x)), "its weights|cannot trace|one number"),
    ],
)
def test_refused_by_name_with_a_way_out(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_module(module, SHAPE)


def test_the_place_of_a_functional_operator_is_its_source_line() -> None:
    with pytest.raises(ModelError, match=r"test_graph\.py"):
        from_module(Of(lambda m, x: flat(torch.sin(x))), SHAPE)


def test_wrong_inputs() -> None:
    model = Of(lambda m, x: flat(x))
    program = torch.export.export(model, (torch.zeros(1, *SHAPE),))
    with pytest.raises(ModelError, match="takes images"):
        from_program(program, (3, 16, 16))
    two = torch.export.export(Two(), (torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE)))
    with pytest.raises(ModelError, match="2 inputs"):
        from_program(two, SHAPE)
    size = torch.export.Dim("size", min=8, max=64)
    any_size = torch.export.export(model, (torch.zeros(1, 3, 12, 12),), dynamic_shapes=[{2: size}])
    with pytest.raises(ModelError, match="fixed"):
        from_program(any_size, SHAPE)


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return flat(x + y)


def test_training_mode_and_numbers_that_are_not_finite() -> None:
    model = Of(lambda m, x: flat(m.b(x)), b=nn.BatchNorm2d(3)).train()
    program = torch.export.export(model, (torch.zeros(2, *SHAPE),))
    with pytest.raises(ModelError, match="eval mode"):
        from_program(program, SHAPE)
    broken = Of(lambda m, x: flat(m.c(x)), c=nn.Conv2d(3, 2, 1))
    broken.c.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"c\.weight.*finite"):
        from_module(broken, SHAPE)


@pytest.mark.parametrize("core", [False, True])
def test_programs_from_files_also_as_core_aten_and_for_any_batch(tmp_path: Path, core: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2),
    ).eval()  # fmt: skip
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.zeros(2, *SHAPE),), dynamic_shapes=[{0: batch}])
    if core:
        program = program.run_decompositions()
    torch.export.save(program, tmp_path / "model.pt2")
    graph = load(tmp_path / "model.pt2", None, SHAPE, 2)
    assert [n.kind for n in graph.nodes] == ["input", "conv", "norm", "relu", "max_pool", "avg_pool", "conv"]
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    with torch.inference_mode():
        want = model(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(floats.run(graph, [image])[0], want, rtol=1e-4, atol=1e-5)
