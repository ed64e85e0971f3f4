"""voken_torch leaves alone what Ascend lacks: read from the source, as no machine here would notice."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[3] / "voken_torch"
MISSING = {
    "avg_pool3d": "not there on Ascend",
    "AvgPool3d": "not there on Ascend",
    "double": "an NPU may compute float64 as float32",
    "cuda": "device.py chooses devices",
    "npu": "device.py chooses devices",
}


def problems(source):
    """What a file calls that it should not."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in MISSING:
            yield f"{name}: {MISSING[name]}"
        if name == "interpolate" and "size" not in keywords:
            yield "interpolate: Ascend wants size=, not scale_factor"
        if name == "pad" and (len(node.args) > 2 or "mode" in keywords):
            yield "pad: other modes than constant have no bfloat16 on Ascend"
        if name == "multinomial" and "float" not in ast.unparse(node.args[0]):
            yield "multinomial: has no bfloat16 on Ascend; widen its argument in the call: multinomial(x.float(), 1)"
        if any(ast.unparse(value) == "torch.float64" and key == "dtype" for key, value in keywords.items()):
            yield "torch.float64: an NPU may compute it as float32"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_ascend_lacks(file):
    assert list(problems(file.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "F.interpolate(x, scale_factor=2.0)",
        "nn.AvgPool3d(2)",
        "F.pad(x, (1, 1), mode='reflect')",
        "F.pad(x, (1, 1), 'replicate')",
        "torch.multinomial(probabilities, 1)",
        "torch.zeros(3, dtype=torch.float64)",
        "x.double()",
        "x.cuda()",
    ],
)
def test_the_reader_sees(line):
    assert len(list(problems(line))) == 1


def test_what_is_allowed():
    assert not list(problems("F.interpolate(x, size=(2, 2)); F.pad(x, (0, 1)); torch.multinomial(x.float(), 1)"))
