"""What a release is called that somebody asks for."""

from __future__ import annotations

import pytest

from controller.cli.deployed import model_name


@pytest.mark.parametrize(
    ("asked", "called"),
    [
        ("resnet18", "resnet18"),
        ("maskrcnn_resnet50_fpn@300,pasted", "maskrcnn_resnet50_fpn@300,pasted"),
        ("nets/my_net.onnx", "my_net"),
        ("my_maskrcnn.pt2", "my_maskrcnn"),
        ("old.fleet", "old"),
        ("package.module:function", "function"),
        ("package.module:function@300", "function@300"),
        ("mobilenet1.0", "mobilenet1.0"),
    ],
)
def test_names(asked: str, called: str) -> None:
    assert model_name(asked) == called
