"""Names and sizes are torchvision's."""

from __future__ import annotations

import pytest
import torch

from mpcd.daemon.model import architectures


@pytest.mark.parametrize(
    ("arch", "parameters", "some"),
    [
        ("densenet121", 7978856, "features.denseblock3.denselayer24.conv2.weight features.norm5.running_var"),
        ("resnet18", 11689512, "layer2.0.downsample.0.weight layer4.1.bn2.bias conv1.weight bn1.weight fc.bias"),
        ("resnet50", 25557032, "layer1.0.downsample.1.weight layer3.5.conv3.weight layer4.2.bn3.running_mean"),
        ("vgg11", 132863336, "features.0.bias features.18.weight classifier.0.weight classifier.6.bias"),
        ("vgg11_bn", 132868840, "features.1.running_mean features.25.weight classifier.3.bias"),
        ("vgg16", 138357544, "features.28.weight classifier.6.weight"),
        ("squeezenet1_1", 1235496, "features.3.squeeze.weight features.12.expand3x3.bias classifier.1.weight"),
    ],
)
def test_parameters_and_names(arch: str, parameters: int, some: str) -> None:
    with torch.device("meta"):
        model = architectures.build(arch, 1000)
        small = architectures.build(arch, 3, in_channels=1)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert set(some.split()) <= model.state_dict().keys()
    assert small.state_dict()[architectures.classifier(arch) + ".weight"].shape[0] == 3
    assert not model.training
    out = small.to_empty(device="meta")(torch.zeros(2, 1, 224, 224, device="meta"))
    assert out.shape == (2, 3)


def test_every_name_is_tested() -> None:
    assert architectures.NAMES == (
        "densenet121", "resnet18", "resnet50", "vgg11", "vgg11_bn", "vgg16", "squeezenet1_1",
    )  # fmt: skip
