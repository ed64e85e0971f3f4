"""The tables of README and docs are those of the record."""

from pathlib import Path

import pytest

from voken_common.commands.main import main
from voken_common.published import table
from voken_common.published.models import MODELS

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if table.BEGIN in path.read_text()]


def test_the_readme_has_the_tables():
    assert ROOT / "README.md" in DOCUMENTS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_up_to_date(path):
    assert table.replaced(path.read_text()) == path.read_text(), f"python -m voken_common.published.table {path}"


def test_a_document_is_written_anew(tmp_path):
    file = tmp_path / "x.md"
    file.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert table.main([str(file)]) == 0
    assert file.read_text() == f"before\n{table.markdown()}\nafter\n"
    with pytest.raises(ValueError, match="found no"):
        table.replaced("without marks")


def test_every_model_has_a_row_with_its_figures():
    text = table.markdown()
    for model in MODELS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{model.name}` |")]
        assert model.repository in line
        assert f"{model.parameters:.1f}" in line


def test_the_command(capsys):
    assert main(["models"]) == 0
    assert capsys.readouterr().out == table.text() + "\n"
    assert main(["models", "TencentARC/Open-MAGVIT2-Tokenizer-262144-Video"]) == 0
    assert "2.76 GiB" in capsys.readouterr().out
    assert main(["models", "imagenet_ibqgan_1025"]) == 2
    assert "did you mean imagenet_ibqgan_1024" in capsys.readouterr().err
