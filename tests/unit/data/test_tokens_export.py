"""Exported token shards hold what the shards hold."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

import voken
from voken_common.data.errors import DataError
from voken_common.data.tokens.export import write_flat, write_parquet
from voken_common.data.tokens.format import Record, TokenInfo, TokenizerInfo
from voken_common.data.tokens.shards import TokenShardSource, write_token_shards
from voken_torch.generator.token_dataset import TokenDataset

ROOT = Path(__file__).resolve().parents[3]
COUNT, GRID = 23, (2, 3)
NAMES = ("ant", "bee", "cat")


def shards(folder, vocabularies=(64, 4096), label=lambda i: i % 3):
    info = TokenInfo(
        grid=GRID,
        vocabularies=vocabularies,
        tokenizer=TokenizerInfo(name="tiny", reference="runs/tiny", fingerprint="a" * 64, config={}),
        source={"path": "images"},
        samples=COUNT,
        samples_per_shard=10,
        class_names=NAMES,
    )
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, vocabularies, (6, len(vocabularies))) for _ in range(COUNT)]
    write_token_shards(folder, info, [Record(t, label(i), f"bild_ä_{i}.png", 0) for i, t in enumerate(tokens)])
    return TokenShardSource(folder), np.stack(tokens)


@pytest.mark.parametrize("vocabularies", [(64, 4096), (512,)])
def test_parquet_holds_every_sample(tmp_path, vocabularies):
    source, tokens = shards(tmp_path / "shards", vocabularies)
    assert write_parquet(source, tmp_path / "all.parquet") == COUNT
    table = parquet.read_table(tmp_path / "all.parquet")
    found = np.array(table["tokens"].to_pylist()).reshape(tokens.shape)
    np.testing.assert_array_equal(found, tokens)
    assert table["class"].to_pylist() == [NAMES[i % 3] for i in range(COUNT)]
    assert table["key"].to_pylist()[7] == "bild_ä_7.png"
    assert json.loads(table.schema.metadata[b"voken"])["vocabularies"] == list(vocabularies)


@pytest.mark.parametrize("vocabularies", [(64, 4096), (70000,)])
def test_a_flat_file_can_be_taken_apart_again(tmp_path, vocabularies):
    source, tokens = shards(tmp_path / "shards", vocabularies)
    write_flat(source, tmp_path / "train.bin")
    about = json.loads((tmp_path / "train.bin.json").read_text())
    rows = np.fromfile(tmp_path / "train.bin", about["dtype"]).reshape(about["samples"], about["sequence_length"])
    assert about["dtype"] == ("uint16" if sum(vocabularies) < 60000 else "uint32")
    assert rows.max() < about["vocabulary_size"] == sum(vocabularies) + len(NAMES)
    np.testing.assert_array_equal(rows[:, 0] - about["class_start"], np.arange(COUNT) % 3)
    sub_tokens = rows[:, 1:].astype(int).reshape(tokens.shape) - np.array(about["sub_token_starts"])
    np.testing.assert_array_equal(sub_tokens, tokens)


def test_a_flat_file_needs_labels(tmp_path):
    source, _ = shards(tmp_path / "shards", label=lambda i: -1)
    with pytest.raises(DataError, match="without a label"):
        write_flat(source, tmp_path / "train.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_torch_data_set(tmp_path):
    _, tokens = shards(tmp_path / "shards")
    loader = torch.utils.data.DataLoader(TokenDataset(tmp_path / "shards"), batch_size=8)
    found = torch.cat([batch["tokens"] for batch in loader])
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), tokens)


def test_the_loop_of_the_docs_trains(tmp_path, monkeypatch, capsys):
    source, _ = shards(tmp_path / "shards")
    write_flat(source, tmp_path / "train.bin")
    blocks = (ROOT / "docs" / "tokens.md").read_text().split("```python\n")[1:]
    (loop,) = [block.split("```")[0] for block in blocks if "class GPT" in block]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    capsys.readouterr()
    exec(compile(loop, "docs/tokens.md", "exec"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_the_command(tmp_path, capsys):
    shards(tmp_path / "shards")
    assert voken.main(["tokens", str(tmp_path / "shards"), "--to", "flat", "--output", str(tmp_path / "a.bin")]) == 0
    assert "23 samples" in capsys.readouterr().out
    assert voken.main(["tokens", str(tmp_path), "--to", "flat", "--output", str(tmp_path / "b.bin")]) == 2
    assert not (tmp_path / "b.bin").exists()
