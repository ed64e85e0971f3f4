"""Objectives of golden cases, written there as text: small arithmetic over named arrays."""

import ast
import operator
import re

import jax.numpy as jnp

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS = {"mean": jnp.mean, "sum": jnp.sum, "abs": jnp.abs, "sqrt": jnp.sqrt}


def evaluate(text, optional=False, **arrays):
    """Value of an objective such as `mean((y - x)**2), x = ...`; what follows a comma or `with` is explanation.

    A part in square brackets counts where `optional` is set.
    """
    text = re.split(r",| with ", text)[0]
    text = text.replace("[", "").replace("]", "") if optional else re.sub(r"\[.*?\]", "", text)
    return _value(ast.parse(text.strip(), mode="eval").body, arrays)


def _value(node, arrays):
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return arrays[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, arrays), _value(node.right, arrays))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, arrays)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _FUNCTIONS[node.func.id](*(_value(argument, arrays) for argument in node.args))
    raise ValueError(f"cannot read the objective at {ast.unparse(node)!r}")
