"""Well-known networks with torchvision's module names, so that its state dicts load. Random weights, eval or train."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpcd.daemon.model.nodes import ModelError


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        out: Tensor = self.conv2(self.relu2(self.norm2(x)))
        return out


class _DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        for i in range(layers):
            self[f"denselayer{i + 1}"] = _DenseLayer(channels + i * growth, growth, bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Huang et al. 2017. ``blocks``: layers of each dense block."""

    def __init__(
        self, num_outputs: int, in_channels: int, blocks: tuple[int, ...], growth: int = 32, stem: int = 64
    ) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv0"] = nn.Conv2d(in_channels, stem, 7, 2, 3, bias=False)
        parts["norm0"] = nn.BatchNorm2d(stem)
        parts["relu0"] = nn.ReLU(inplace=True)
        parts["pool0"] = nn.MaxPool2d(3, 2, 1)
        channels = stem
        for i, layers in enumerate(blocks):
            parts[f"denseblock{i + 1}"] = _DenseBlock(layers, channels, growth, 4)
            channels += layers * growth
            if i + 1 < len(blocks):
                transition: OrderedDict[str, nn.Module] = OrderedDict()
                transition["norm"] = nn.BatchNorm2d(channels)
                transition["relu"] = nn.ReLU(inplace=True)
                transition["conv"] = nn.Conv2d(channels, channels // 2, 1, bias=False)
                transition["pool"] = nn.AvgPool2d(2, 2)
                parts[f"transition{i + 1}"] = nn.Sequential(transition)
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(channels, num_outputs)

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier sees."""
        x = torch.relu(self.features(x))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(x, (1, 1)), 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pooled(x))
        return out


class _Residual(nn.Module):
    """BasicBlock (``expansion`` 1) or Bottleneck (4)."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        out = width * expansion
        if expansion == 1:
            shapes = [(channels, width, 3, stride), (width, width, 3, 1)]
        else:
            shapes = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        self.count = len(shapes)
        for i, (a, b, kernel, step) in enumerate(shapes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.count + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = self.relu(x if i < self.count else x + identity)
        return x


class ResNet(nn.Module):
    """He et al. 2016; the stride of a bottleneck sits in its 3x3 convolution, as in torchvision."""

    def __init__(self, num_outputs: int, in_channels: int, layers: tuple[int, ...], expansion: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for i, count in enumerate(layers):
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(_Residual(channels, 64 << i, stride, expansion))
                channels = (64 << i) * expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.depth = len(layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(1, self.depth + 1):
            x = getattr(self, f"layer{i}")(x)
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


_VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG(nn.Module):
    """Simonyan & Zisserman 2015. In ``plan`` a number is a 3x3 convolution's channels, 0 a 2x2 max pool."""

    def __init__(
        self, num_outputs: int, in_channels: int, plan: tuple[int, ...], batch_norm: bool, hidden: int = 4096
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = in_channels
        for width in plan:
            if width == 0:
                parts.append(nn.MaxPool2d(2, 2))
                continue
            parts.append(nn.Conv2d(channels, width, 3, padding=1))
            if batch_norm:
                parts.append(nn.BatchNorm2d(width))
            parts.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden), nn.ReLU(True), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, num_outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return out


class _Fire(nn.Module):
    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        one = self.expand1x1_activation(self.expand1x1(x))
        return torch.cat([one, self.expand3x3_activation(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Iandola et al. 2016, version 1.1."""

    def __init__(self, num_outputs: int, in_channels: int) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, 2), nn.ReLU(inplace=True), pool(),
            _Fire(64, 16, 64), _Fire(128, 16, 64), pool(),
            _Fire(128, 32, 128), _Fire(256, 32, 128), pool(),
            _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(512, num_outputs, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


_BUILDERS: dict[str, tuple[Callable[[int, int], nn.Module], str]] = {
    "densenet121": (lambda n, c: DenseNet(n, c, (6, 12, 24, 16)), "classifier"),
    "resnet18": (lambda n, c: ResNet(n, c, (2, 2, 2, 2), 1), "fc"),
    "resnet50": (lambda n, c: ResNet(n, c, (3, 4, 6, 3), 4), "fc"),
    "vgg11": (lambda n, c: VGG(n, c, _VGG11, False), "classifier.6"),
    "vgg11_bn": (lambda n, c: VGG(n, c, _VGG11, True), "classifier.6"),
    "vgg16": (lambda n, c: VGG(n, c, _VGG16, False), "classifier.6"),
    "squeezenet1_1": (SqueezeNet, "classifier.1"),
}
NAMES = tuple(_BUILDERS)


def build(arch: str, num_outputs: int, in_channels: int = 3) -> nn.Module:
    """The network in eval mode, with random weights. Raises ModelError for a name that is not in NAMES."""
    return _lookup(arch)[0](num_outputs, in_channels).eval()


def classifier(arch: str) -> str:
    """Name of the module that makes the outputs; its weight's first dimension counts them."""
    return _lookup(arch)[1]


def _lookup(arch: str) -> tuple[Callable[[int, int], nn.Module], str]:
    if arch not in _BUILDERS:
        raise ModelError(
            f"architecture {arch!r} is not known; known are {', '.join(NAMES)}; any other network as a .pt2 file"
        )
    return _BUILDERS[arch]
