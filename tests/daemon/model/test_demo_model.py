"""The demonstration's model: deterministic, useful on phantoms, and with scales of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mpcd.daemon.image.phantom import FINDINGS
from mpcd.daemon.model import demo_model
from mpcd.daemon.report.auroc import auroc

SMALL = (2, 2, 2, 2)


@pytest.fixture(scope="module")
def training():
    images, labels = demo_model.training_set(40, 1001)
    return [np.ascontiguousarray(i[:1, ::3, ::3]) for i in images], labels  # a third of the size, one channel


def test_deterministic_and_better_than_chance(training) -> None:
    images, labels = training
    model = demo_model.build(images, labels, blocks=SMALL, seed=3)
    again = demo_model.build(images, labels, blocks=SMALL, seed=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    held_out, truth = demo_model.training_set(24, 5)
    with torch.inference_mode():
        scores = np.stack([model(torch.from_numpy(i[None, :1, ::3, ::3]))[0].numpy() for i in held_out])
    areas = [auroc(scores[:, j], truth[:, j]).auroc for j in range(len(FINDINGS))]
    assert min(a for a in areas if a is not None) > 0.6
    slopes = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert (slopes < 0).any()
    assert (slopes.abs() < 0.01).any()


def test_ridge_separates_what_is_separable() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 50))
    labels = features[:, :2] > 0
    weight, bias = demo_model.ridge(features, labels)
    assert weight.shape == (2, 50)
    assert ((features @ weight.T + bias > 0) == labels).mean() > 0.85


def test_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(demo_model, "build", lambda images, labels, **_: nn.Linear(1, 1))
    assert demo_model.main([str(tmp_path / "m.safetensors"), "--images", "8"]) == 0
    assert (tmp_path / "m.safetensors").stat().st_size > 0
    with pytest.raises(SystemExit):
        demo_model.main([str(tmp_path / "m.safetensors"), "--images", "2"])
