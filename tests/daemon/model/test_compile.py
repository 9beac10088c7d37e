"""The batch-norm rules and every structure, integer against float."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpcd.daemon.model.architectures import DenseNet
from mpcd.daemon.model.calibrate import integer_logits
from mpcd.daemon.model.compile import compile_graph, thresholds
from mpcd.daemon.model.floats import ranges, run
from mpcd.daemon.model.graph import from_module
from mpcd.daemon.model.nodes import ModelError
from mpcd.daemon.model.rewrite import rewrite
from mpcd.protocol import network as net


class Head(nn.Module):
    """``body``, then a mean over the image and a Linear."""

    def __init__(self, body: nn.Module, channels: int, outputs: int = 3) -> None:
        super().__init__()
        self.body = body
        self.fc = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.body(x).mean([2, 3]))
        return out


def lively(module: nn.Module) -> nn.Module:
    """Statistics and scales as a trained network has, in all sizes and signs."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.3, 1.5)
                part.weight.normal_(0, 1)
                part.bias.normal_(0, 0.5)
    return module.eval()


# The thresholds themselves.


@pytest.mark.parametrize("bits", [8, 13])
def test_thresholds_against_exact_arithmetic(bits: int) -> None:
    """relu(step x + offset) for every k-bit x within half the ring: off by at most half a step, exact when clamped."""
    rng = np.random.default_rng(0)
    step = rng.normal(size=400) * 10.0 ** rng.integers(-6, 3, 400)
    offset = rng.normal(size=400) * 10.0 ** rng.integers(-3, 4, 400)
    step[:20], offset[:10] = 0.0, -offset[:10]
    step[20:24] = [1e-310, -1e-310, 1e-30, -1e-30]  # offset / step overflows, or nearly
    offset[24:40] = np.tile([1e9, -1e9], 8)
    offset[40:50] = 0.0
    threshold, negative, out_step, out_offset = thresholds(step, offset, bits)
    half, limit = 1 << (bits - 1), 1 << (bits - 2)
    assert np.abs(threshold).max() <= limit
    x = np.arange(-limit + 1, limit)[None]
    t, n = threshold[:, None], negative[:, None]
    z = net.wrap(x + t - n, bits)
    out = np.where(n, np.minimum(z + 1, 0), np.maximum(z, 0))
    assert np.array_equal(out, np.where(n, np.minimum(x + t, 0), np.maximum(x + t, 0)))  # nothing wrapped
    assert out.min() >= -half + 1
    assert out.max() < half
    got = out_step[:, None] * out + out_offset[:, None]
    want = np.maximum(step[:, None] * x + offset[:, None], 0)
    error = np.abs(got - want)
    assert (error <= np.abs(step[:, None]) * 0.5 + 1e-9 * (1 + np.abs(want))).all()


# Batch-norms before ReLU, with slopes and thresholds of every kind.


def norm_with(kind: str, channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.5)
        if kind == "negative":
            norm.weight.copy_(-norm.weight)
        elif kind == "mixed":
            norm.weight.normal_()
        elif kind == "tiny":
            norm.weight.normal_(0, 1e-5)
        elif kind == "zero":
            norm.weight.zero_()
            norm.bias[0] = -0.7
        elif kind == "always on":
            norm.weight.normal_()
            norm.bias.fill_(60.0)
        elif kind == "always off":
            norm.weight.normal_()
            norm.bias.fill_(-60.0)
        elif kind == "everything":
            norm.weight.copy_(torch.tensor([1.0, -1.0, 0.0, 1e-6, -1e-6, 0.5, -2.0, 1e-3]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, 0.9, 1.0, -1.0, 90.0, 90.0, -90.0]))
    return norm


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(
    "kind", ["positive", "negative", "mixed", "tiny", "zero", "always on", "always off", "everything"]
)
def test_norm_before_relu_before_a_padded_convolution(measure, kind: str, padding: int) -> None:
    """The norm's input has two users, so that it cannot be folded; the convolution after it sees padded borders."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 8, 3, padding=1)
            self.norm = norm_with(kind, 8)
            self.other = norm_with("mixed", 8)
            self.second = nn.Conv2d(8, 4, 3, stride=2, padding=padding)
            self.third = nn.Conv2d(8, 4, 3, stride=2, padding=padding)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return torch.cat([self.second(torch.relu(self.norm(x))), self.third(torch.relu(self.other(x)))], 1)

    found = measure(Head(Body(), 8), (2, 9, 9))
    # Up to a few parts in 10^5: large constants in the logits leave them fewer bits.
    assert found.difference < 2e-3 * max(1.0, np.abs(found.logits).max() / 10)
    assert Counter(found.kinds())["Relu"] == 2
    numbers = [n for n in found.compiled.numbers.values() if isinstance(n, net.LinearNumbers)]
    maps = [n.bias.shape[1] > 1 for n in numbers]
    assert any(maps) == (padding > 0 and kind in ("tiny", "zero", "always on", "everything"))


def test_threshold_beyond_the_calibrated_range_still_decides_rightly(measure) -> None:
    """Thresholds at 1.5 to 6 times the largest calibrated |x| are kept exactly, not taken for always on or off."""
    body = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.Identity())
    with torch.no_grad():
        body[0].weight.copy_(torch.linspace(0.5, 2.0, 8)[:, None, None, None])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body
            self.norm = nn.BatchNorm2d(8)
            self.fc = nn.Linear(16, 2)
            with torch.no_grad():
                self.norm.bias.copy_(torch.tensor([1.5, 2, 3, 4, -1.5, -2, -3, -4.0]) * 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            out: Tensor = self.fc(torch.cat([torch.relu(self.norm(x)), torch.relu(x)], 1).mean([2, 3]))
            return out

    model = Model().eval()
    shape = (1, 6, 6)
    graph = rewrite(from_module(model, shape))
    rng = np.random.default_rng(1)
    calibration = [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(4)]
    wilder = [3.5 * image for image in calibration]
    seen, _ = ranges(graph, calibration)
    seen[0].low[:], seen[0].high[:] = -4.0, 4.0
    compiled = compile_graph(graph, seen, name="t", findings=("a", "b"), bits=21, fraction=16)
    for image, want in zip(wilder, run(graph, wilder), strict=True):
        assert np.abs(integer_logits(compiled.network, compiled.numbers, image) - want).max() < 2e-3


# Structures.


def test_folded_norm_and_merged_relu(measure) -> None:
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6), nn.ReLU())
    found = measure(lively(Head(body, 6)), (3, 8, 8))
    assert found.kinds() == ["Input", "Linear", "TruncateRelu", "Grow", "SumPool", "Linear", "Truncate"]
    assert found.difference < 1e-3


def test_pool_before_relu(measure) -> None:
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    found = measure(lively(Head(body, 6)), (3, 11, 11))
    assert found.kinds()[1:6] == ["Linear", "Truncate", "MaxPool", "Relu", "Grow"]
    assert found.difference < 1e-3


def test_average_before_convolution(measure) -> None:
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AvgPool2d(2), nn.ReLU())
    found = measure(Head(body, 4), (3, 10, 10))
    assert found.kinds()[2:6] == ["TruncateRelu", "Grow", "SumPool", "Linear"]
    assert found.difference < 1e-3


def test_average_of_a_larger_convolution_is_extended(measure) -> None:
    found = measure(Head(nn.Sequential(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2), nn.Conv2d(6, 4, 3)), 4), (3, 10, 10))
    assert Counter(found.kinds())["Extend"] == 2
    assert found.difference < 1e-3


class Residual(nn.Module):
    """Two adds in one scale class, a norm before a ReLU, and a value used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.a = nn.Conv2d(6, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.c = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.b(self.relu(self.a(x))))
        return x + self.c(torch.relu(self.norm(x)))


def test_residual(measure) -> None:
    found = measure(lively(Head(Residual(), 6)), (2, 8, 8))
    kinds = Counter(found.kinds())
    assert (kinds["Add"], kinds["Relu"], kinds["Extend"]) == (2, 2, 1)
    assert found.difference < 1e-3


def test_a_value_is_grown_once(measure) -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            return torch.cat([torch.relu(self.b(x)), torch.relu(self.c(x))], 1)

    found = measure(Head(Fork(), 8), (2, 6, 6))
    assert Counter(found.kinds())["Grow"] == 2
    assert found.difference < 1e-3


class Awkward(nn.Module):
    """Operators in places where a value must first be given a scale of its own."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.which == "norm of the input":
            return self.a(self.first(x))
        if self.which == "relu of the input":
            return torch.relu(self.first(x))
        if self.which == "pool of the input":
            return nn.functional.max_pool2d(x, 2)
        y = self.a(x)
        if self.which == "add of a norm":
            return self.norm(y) + y
        if self.which == "maximum of a norm":
            return torch.cat([nn.functional.max_pool2d(self.norm(y), 2), nn.functional.max_pool2d(y, 2)], 1)
        if self.which == "norm of an average":
            return torch.relu(self.norm(nn.functional.avg_pool2d(y, 2)))
        if self.which == "concatenation of an average":
            pooled = nn.functional.avg_pool2d(torch.relu(y), 2)
            return torch.cat([pooled, nn.functional.max_pool2d(y, 2)], 1)
        if self.which == "norm after norm and relu":
            y = y + y
            return self.b(torch.relu(self.norm(torch.relu(self.norm(y)))))
        if self.which == "sum of relus of norms":
            return torch.relu(self.norm(y)) + torch.relu(y)
        if self.which == "add to itself":
            return y + y
        raise AssertionError(self.which)


@pytest.mark.parametrize(
    ("which", "channels"),
    [
        ("norm of the input", 4), ("relu of the input", 2), ("pool of the input", 2), ("add of a norm", 4),
        ("maximum of a norm", 8), ("norm of an average", 4), ("concatenation of an average", 8),
        ("norm after norm and relu", 4), ("sum of relus of norms", 4), ("add to itself", 4),
    ],
)  # fmt: skip
def test_awkward_places(measure, which: str, channels: int) -> None:
    found = measure(lively(Head(Awkward(which), channels)), (2, 8, 8))
    assert found.difference < 2e-3


def test_flatten_of_an_image(measure) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2),
    )  # fmt: skip
    found = measure(lively(model), (2, 8, 8))
    assert "Reshape" in found.kinds()
    assert found.difference < 1e-3


@pytest.mark.parametrize("last", ["average", "relu", "convolution", "norm"])
def test_every_ending_gets_one_scale(measure, last: str) -> None:
    layers: list[nn.Module] = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 4)]
    if last == "average":
        layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    elif last == "relu":
        layers += [nn.AdaptiveAvgPool2d(1), nn.ReLU()]
    elif last == "norm":
        layers += [nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)]
    size = 8 if last != "convolution" else 6
    found = measure(lively(nn.Sequential(*layers, nn.Flatten())), (2, size, size))
    assert found.kinds()[-1] in ("Truncate", "TruncateRelu")
    assert found.difference < 1e-3


def test_dead_and_outsized_channels(measure) -> None:
    """A channel that is always zero, and weights whose sizes differ by 10^6, keep the public bound."""
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    with torch.no_grad():
        body[0].weight[0] = 0
        body[0].bias[0] = 0
        body[0].weight[1] *= 1e-6
        body[0].bias[1] *= 1e-6
        body[2].weight[:, 1] *= 1e6
    found = measure(Head(body, 4), (2, 8, 8))
    assert max(found.compiled.network.weight_l1.values()) <= 1 << 24
    assert found.difference < 2e-3


def test_small_densenet(measure) -> None:
    model = lively(DenseNet(3, 1, (2, 3), growth=4, stem=8))
    found = measure(model, (1, 32, 32))
    kinds = Counter(found.kinds())
    # conv0 and transition.conv are followed by no ReLU (a pool comes first); the classifier ends in Truncate.
    assert kinds == Counter(
        Input=1, Linear=13, TruncateRelu=5, Truncate=8, MaxPool=1, Relu=8, Grow=12, SumPool=2, Concat=5
    )
    assert found.difference < 5e-3


def test_structure_does_not_depend_on_the_weights(measure) -> None:
    first = measure(lively(DenseNet(2, 1, (2, 2), growth=4, stem=8)), (1, 32, 32)).compiled.network
    torch.manual_seed(99)
    model = lively(DenseNet(2, 1, (2, 2), growth=4, stem=8))
    with torch.no_grad():
        model.features.norm5.weight.zero_()
    second = measure(model, (1, 32, 32)).compiled.network
    assert first.ops == second.ops
    assert first.values == second.values


def test_report_per_layer(measure) -> None:
    found = measure(lively(Head(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), 6)), (3, 8, 8), bits=17, fraction=12)
    first, last = found.compiled.layers
    assert first["place"].startswith("body.0")
    assert (first["bits"], first["wide_bits"], first["shape"]) == (17, 29, [6, 6, 6])
    assert 2.0 <= first["headroom_bits"] < 2.1
    network = found.compiled.network
    public = [network.input_scale, network.output_scale, *network.weight_l1.values()]
    assert all(np.log2(number) % 1 == 0 for number in public)  # no more of the model than powers of two
    assert max(first["weight_l1"], last["weight_l1"]) == network.weight_l1[first["op"]]
    assert len(set(network.weight_l1.values())) == 1, "no layer's own size is public"
    assert last["place"].startswith("fc")


def test_a_mean_over_too_many_pixels_and_wrong_findings() -> None:
    model = Head(nn.Conv2d(1, 2, 1), 2)
    graph = rewrite(from_module(model, (1, 20, 20)))
    seen, _ = ranges(graph, [np.ones((1, 20, 20), np.float32)])
    with pytest.raises(ModelError, match="400 pixels"):
        compile_graph(graph, seen, name="t", findings=("a", "b", "c"), bits=17, fraction=8)
    with pytest.raises(ModelError, match="3 outputs, 1 findings"):
        compile_graph(graph, seen, name="t", findings=("a",), bits=17, fraction=12)
