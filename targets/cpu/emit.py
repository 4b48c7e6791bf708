"""From a graph with layouts back to Relax: calls of kernels, conversions where layouts meet, and the rest as it was."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.cpu.database import Tuned
from targets.cpu.graph import Graph, Layer, Opaque, Value
from targets.cpu.kernels.convert import Convert, convert
from targets.cpu.kernels.program import OperandType, Program
from targets.cpu.layers import LayerRow
from targets.cpu.layout import PLAIN, ImageType, Layout
from targets.cpu.layouts import Layouts, wanted
from targets.cpu.lower import Call, lower, whole
from targets.cpu.memory import OVER
from targets.cpu.processors import Processor


def emit(
    module: Any, name: str, graph: Graph, layouts: Layouts, processor: Processor, tuned: Tuned
) -> tuple[Any, list[LayerRow]]:
    """The module with a function ``name`` that computes the graph by kernels for ``processor``, and what they are."""
    emitter = _Emitter(module, name, graph, layouts, processor, tuned)
    return emitter.run(), emitter.rows


class _Emitter:
    def __init__(
        self, module: Any, name: str, graph: Graph, layouts: Layouts, processor: Processor, tuned: Tuned
    ) -> None:
        self._function = module[name]
        # Callers know it by its variable, which is kept.
        self._variable = module.get_global_var(name)
        self._prefix = "" if name == "main" else f"{name}_"
        self._builder = relax.BlockBuilder(module)
        self._graph = graph
        self._layouts = layouts
        self._processor = processor
        self._tuned = tuned
        #: Relax variables that hold a value, by layout. Values that are no pictures have PLAIN alone.
        self._at: dict[Value, dict[Layout, Any]] = {value: {PLAIN: value.var} for value in graph.parameters}
        self._kernels: dict[Hashable, Any] = {}
        self._names: dict[str, int] = {}
        self.rows: list[LayerRow] = []

    def run(self) -> Any:
        """The module."""
        was, builder = self._function, self._builder
        dataflow = all(isinstance(block, relax.DataflowBlock) for block in was.body.blocks)
        with builder.function("emitted", list(was.params), attrs=dict(was.attrs or {}), pure=bool(was.is_pure)):
            if dataflow:
                with builder.dataflow():
                    self._nodes()
                    result = builder.emit_output(self._result())
            else:
                self._nodes()
                result = self._result()
            emitted = builder.emit_func_output(result)
        module = builder.finalize()
        functions = {var: each for var, each in module.functions_items() if var not in (emitted, self._variable)}
        functions[self._variable] = _named(module[emitted], was)
        return tvm.IRModule(functions, attrs=module.attrs)

    def _nodes(self) -> None:
        for node in self._graph.nodes:
            if isinstance(node, Layer):
                self._layer(node)
            else:
                self._opaque(node)

    def _result(self) -> Any:
        known = {value.var: self._plain(value) for value in self._graph.results}
        return _Substitution(known).visit_expr(self._function.body.body)

    def _opaque(self, node: Opaque) -> None:
        substitution = _Substitution({value.var: self._plain(value) for value in node.inputs})
        for binding in node.bindings:
            value = substitution.visit_expr(binding.value)
            if isinstance(binding, relax.MatchCast):
                substitution.known[binding.var] = self._builder.match_cast(value, binding.ty)
            else:
                substitution.known[binding.var] = self._builder.emit(value, str(binding.var.name))
        self._at[node.output] = {PLAIN: substitution.known[node.bindings[-1].var]}

    # --- Kernels --------------------------------------------------------------------------------

    def _layer(self, layer: Layer) -> None:
        inputs = [
            self._image(value, wanted(layer, value, self._layouts.blocked, self._layouts.lanes))
            for value in layer.inputs
        ]
        operands: list[Any] = []
        types: list[OperandType] = []
        shape = layer.output.shape
        assert shape is not None
        output = layer.output.image(self._layouts.home(layer.output))
        for operand in layer.operands:
            if isinstance(operand, Value):
                var, image = self._image(operand, Layout(self._layouts.lanes))
                types.append(OperandType("image" if image.shape == shape else "gate", image))
                operands.append(var)
            else:
                types.append(OperandType("channel", ImageType((1, shape[1], 1, 1), Layout(output.layout.block))))
                operands.append(relax.const(whole(operand, output)))
        program = Program(tuple(layer.steps), tuple(types))
        call = lower(layer, [image for _, image in inputs], output, program, self._processor, self._tuned)
        arguments = [*(var for var, _ in inputs), *map(relax.const, call.constants), *operands]
        operators = [_operator(binding.value) for binding in layer.bindings]
        self._at[layer.output] = {output.layout: self._call(call, arguments, output, layer.output.rank, operators)}

    def _call(self, call: Call, arguments: Sequence[Any], output: ImageType, rank: int, operators: list[str]) -> Any:
        spec = (call.build, call.spec)
        if spec not in self._kernels:
            number = self._names[call.name] = self._names.get(call.name, 0) + 1
            name = f"{self._prefix}{call.name}_{number}"
            function = call.build(call.spec, name)
            if call.over is not None:
                function = function.with_attr(OVER, call.over)
            self._kernels[spec] = self._builder.add_func(function, name)
        dimensions = output.physical[:rank] if output.layout == PLAIN else output.physical
        of_type = relax.TensorType(dimensions, output.dtype)
        moved = sum(_bytes(argument.ty) for argument in arguments) + _bytes(of_type)
        self.rows.append(
            LayerRow(
                kernel=str(self._kernels[spec].name_hint),
                operators=operators,
                output=list(output.shape[:rank]),
                flops=call.flops,
                bytes=moved,
                choice=call.choice,
            )
        )
        return self._builder.emit(relax.call_tir(self._kernels[spec], relax.Tuple(list(arguments)), of_type))

    # --- Layouts --------------------------------------------------------------------------------

    def _plain(self, value: Value) -> Any:
        return self._at[value][PLAIN] if value.shape is None else self._image(value, PLAIN, exact=True)[0]

    def _image(self, value: Value, want: Layout, exact: bool = False) -> tuple[Any, ImageType]:
        """A variable that holds ``value`` in a layout that serves where ``want`` is wanted."""
        shape = value.shape
        assert shape is not None
        held = self._at[value]
        for layout, var in held.items():
            if layout == want or (not exact and layout.covers(want)):
                return var, value.image(layout)
        layout = want if exact else self._layouts.shared(value, want)
        have = value.image(next(iter(held)))
        target = value.image(layout)
        source = held[have.layout]
        if (
            shape[2:] == (1, 1)
            and shape[1] % max(have.layout.block, layout.block) == 0
            and not (have.layout.bordered or layout.bordered)
        ):
            # One pixel of whole blocks: the same numbers in the same order.
            dimensions = shape[: value.rank] if layout == PLAIN else target.physical
            var = self._builder.emit(relax.op.reshape(source, dimensions))
        else:
            if have.layout == PLAIN and value.rank == 2:
                source = self._builder.emit(relax.op.reshape(source, shape))
            var = self._call(
                Call("convert", convert, Convert(have, target, value.zero_point)), [source], target, 4, ["layout"]
            )
            if layout == PLAIN and value.rank == 2:
                var = self._builder.emit(relax.op.reshape(var, shape[:2]))
        held[layout] = var
        return var, target


def _named(function: Any, like: Any) -> Any:
    """The function under the name of another one, if that has one outside of its module."""
    symbol = (like.attrs or {}).get("global_symbol")
    return function.with_attr("global_symbol", symbol) if symbol else function.without_attr("global_symbol")


def _operator(expr: Any) -> str:
    return getattr(getattr(expr, "op", None), "name", type(expr).__name__).removeprefix("relax.")


def _bytes(ty: Any) -> int:
    return math.prod(int(size) for size in ty.shape) * np.dtype(str(ty.dtype)).itemsize


@mutator
class _Substitution(PyExprMutator):  # type: ignore[misc]
    """Replaces variables by those that hold their values now."""

    def __init__(self, known: dict[Any, Any]) -> None:
        super().__init__()
        self.known = known

    def visit_var_(self, var: Any) -> Any:
        return self.known.get(var, var)

    def visit_dataflow_var_(self, var: Any) -> Any:
        return self.known.get(var, var)
