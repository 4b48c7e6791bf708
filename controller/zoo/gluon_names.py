"""What Gluon's weight files call a network's parameters.

A file has the names of attributes (``features.5.0.conv1.weight``), or names that count what was made within a prefix
(``resnetv20_stage1_conv0_weight``), or both: GluonCV's detectors have the second kind below ``features.``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from controller.zoo import weights

#: Gluon's names of a batch norm's tensors, as layers write them and as MXNet's operator without a layer does.
_NORM = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
_OPERATOR_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_PLAIN = {"weight": "weight", "bias": "bias"}
#: Counts the networks that the process had made before.
_PREFIX = re.compile(r"(?:resnetv[12]|mobilenet)\d+_")
_STAGE = re.compile(r"(?:^|\.)(?:stages\.(\d+)|layer(\d+))\.")
#: So many differences are named.
_NAMED = 3


class Names:
    """Names of a network's parameters in Gluon's files, and in torch."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._absent: set[str] = set()

    def add(self, module: Any, torch_name: str, *gluon_names: Callable[[str], str], operator: bool = False) -> None:
        """A layer's tensors; each of ``gluon_names`` makes a name of what Gluon calls one of the tensors."""
        for gluon, attribute in _tensors(module, operator).items():
            tensor = getattr(module, attribute)
            for name in gluon_names:
                if tensor is None:
                    self._absent.add(name(gluon))
                else:
                    self._known[name(gluon)] = f"{torch_name}.{attribute}", tuple(tensor.shape)

    def tensor(self, name: str, tensor: Any) -> None:
        """One that both call the same."""
        self._known[name] = name, tuple(tensor.shape)

    def state(self, found: Mapping[str, Any], what: str) -> dict[str, Any]:
        """``found`` with torch's names; if no name in it is Gluon's, as it is.

        Raises :class:`WeightsError`, with Gluon's names, for what is missing, extra, misshapen or there twice.
        """
        given = {_PREFIX.sub("", name, count=1): name for name in found}
        if len(given) < len(found):
            raise weights.WeightsError(f"{what} holds the weights of several networks")
        if not given.keys() & self._known.keys():
            return dict(found)
        state: dict[str, Any] = {}
        wrong = []
        for name, full in given.items():
            if name in self._absent:
                # MXNet adds a shift that was left out: it is not trained, and stays zero.
                if name.endswith("beta") and found[full].any():
                    wrong.append(f"has {full}, which is not zero")
                continue
            torch_name, shape = self._known.get(name, (full, None))
            if shape is None or torch_name in state:
                wrong.append(f"has {full}, which the network does not")
            elif tuple(found[full].shape) != shape:
                wrong.append(f"{full} is {tuple(found[full].shape)}, the network's is {shape}")
            state[torch_name] = found[full]
        # Of a parameter's names, the one of the file's kind.
        dotted = sum("." in name for name in given) * 2 > len(given)
        for name, (torch_name, _) in self._known.items():
            if torch_name not in state and ("." in name) == dotted:
                wrong.append(f"lacks {name}")
        if wrong:
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            raise weights.WeightsError(f"{what} does not fit: it {'; '.join(wrong[:_NAMED])}{more}")
        return state


def of_classifier(network: Any, attributes: Mapping[str, str]) -> Names:
    """``attributes``: patterns of torch's names for modules, and how Gluon reaches the same; others have one name."""
    names = Names()
    for module_name, counted, module in layers(network):
        reached = module_name
        for pattern, gluon in attributes.items():
            if match := re.fullmatch(pattern, module_name):
                reached = match.expand(gluon)
        names.add(module, module_name, f"{reached}.{{}}".format, f"{counted}_{{}}".format)
    return names


def layers(network: Any) -> Iterator[tuple[str, str, Any]]:
    """Torch's name, Gluon's counted one (``stage1_conv0``) and the layer itself, in the order of their making."""
    from torch import nn

    kinds = {nn.Conv2d: "conv", nn.BatchNorm2d: "batchnorm", nn.Linear: "dense"}
    made: Counter[str] = Counter()
    for name, module in network.named_modules():
        if kind := kinds.get(type(module)):
            stage = _STAGE.search(name)
            scope = f"stage{int(stage[1]) + 1 if stage[1] else stage[2]}_" if stage else ""
            yield name, f"{scope}{kind}{made[scope + kind]}", module
            made[scope + kind] += 1


def _tensors(module: Any, operator: bool) -> Mapping[str, str]:
    from torch import nn

    if isinstance(module, nn.BatchNorm2d):
        return _OPERATOR_NORM if operator else _NORM
    return _PLAIN if module.bias is not None else {"weight": "weight"}
