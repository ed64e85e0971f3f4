"""Token shards: records, the files of a data set, what is refused, and the order in which they are read."""

import itertools
import json
import pickle
import threading
import time

import numpy as np
import pytest

from voken_common.config.schema.generator import TokenDataConfig
from voken_common.config.schema.transformer import TransformerConfig
from voken_common.data.errors import DataError, ReadError
from voken_common.data.storage import retry
from voken_common.data.tokens import folder as token_folder
from voken_common.data.tokens.format import (
    Record,
    TokenInfo,
    TokenizerInfo,
    decode_record,
    encode_record,
    join_ids,
    split_ids,
)
from voken_common.data.tokens.pipeline import build_token_batches, build_token_iterator
from voken_common.data.tokens.shards import TokenShardSource, TokenShardWriter, write_token_shards

HEX = "0123456789abcdef" * 2
COUNT = 23


def info(**changes):
    fields = {
        "grid": (2, 3),
        "vocabularies": (64, 4096),
        "tokenizer": TokenizerInfo(name="tiny", reference="runs/tiny", fingerprint="a" * 64, config={}),
        "source": {"path": "images"},
        "samples": COUNT,
        "samples_per_shard": 10,
    }
    return TokenInfo(**fields | changes)


def records(count=COUNT, vocabularies=(64, 4096)):
    rng = np.random.default_rng(0)
    for i in range(count):
        yield Record(rng.integers(0, vocabularies, (6, len(vocabularies))), i % 5, f"bild_ä_{i}.png", i % 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "train"
    write_token_shards(path, info(), records())
    return path


@pytest.fixture
def copy(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("vocabularies", "size"), [((256,), 6), ((257,), 12), ((65536,), 12), ((65537,), 24), ((64, 4096), 18)]
)
def test_a_record_comes_back_in_the_smallest_type(vocabularies, size):
    largest = np.tile(np.array(vocabularies) - 1, (6, 1))
    data = encode_record(Record(largest, 999, "k", 7), vocabularies)
    assert len(data) == 12 + 1 + size
    found = decode_record(data, vocabularies, 6)
    np.testing.assert_array_equal(found.tokens, largest)
    assert (found.tokens.dtype, found.label, found.key, found.crop) == (np.int32, 999, "k", 7)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"k: ids run from \[64, 0\] to \[64, 0\], expected less than \[64, 4096\]"):
        encode_record(Record(np.array([[64, 0]]), 0, "k"), (64, 4096))
    with pytest.raises(ValueError, match=r"k: ids have shape \(6,\), expected \(T, 1\)"):
        encode_record(Record(np.zeros(6, int), 0, "k"), (64,))


def test_sub_tokens_are_the_lowest_and_the_other_bits():
    ids = np.array([[0, 63, 64], [2**18 - 1, 4096, 65]])
    expected = [[[0, 0], [63, 0], [0, 1]], [[63, 4095], [0, 64], [1, 1]]]
    np.testing.assert_array_equal(split_ids(ids, (64, 4096)), expected)
    np.testing.assert_array_equal(join_ids(split_ids(ids, (64, 4096)), (64, 4096)), ids)
    np.testing.assert_array_equal(join_ids(split_ids(ids, (2**18,)), (2**18,)), ids)


def test_every_sample_comes_back(folder):
    source = TokenShardSource(folder)
    assert len(source) == COUNT
    for index, record in enumerate(records()):
        found = source[index]
        np.testing.assert_array_equal(found["tokens"], record.tokens)
        assert (found["label"], found["key"], found["crop"]) == (record.label, record.key, record.crop)
    assert (source.info.classes, source.info.sizes, source.info.complete) == (5, (10, 10, 3), True)
    assert "23 samples of 2 x 3 tokens of 64 x 4096 codes by tiny, 5 classes" in source.describe()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["tokens.json", *(f"shard-0000{i}.{end}" for i in range(3) for end in ("array_record", "json"))]
    )
    with pytest.raises(IndexError):
        source[COUNT]


def test_a_source_travels_to_other_processes(folder):
    source = TokenShardSource(folder)
    first = source[12]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[12]["tokens"], first["tokens"])
    assert len(pickle.dumps(source)) < 10_000


def test_writing_twice_gives_the_same_bytes(folder, tmp_path):
    write_token_shards(tmp_path / "again", info(), records())
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_error_while_writing_leaves_no_shard(tmp_path):
    with pytest.raises(ValueError, match="9 records, expected 23"):
        write_token_shards(tmp_path, info(), records(9))
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.json"]
    with pytest.raises(DataError, match=r"are unfinished: 0 of 3 shards; run the same encode command again"):
        TokenShardSource(tmp_path)
    with pytest.raises(ValueError, match="more than 23 records"):
        write_token_shards(tmp_path, info(), records(24))


def test_what_an_interrupted_writer_left_is_removed(tmp_path):
    for name in (f"shard-00000.array_record.{HEX}.part", f"shard-00000.json.{HEX}.part"):
        (tmp_path / name).write_bytes(b"half")
    with TokenShardWriter(tmp_path, 0, info()) as writer:
        writer.add(next(records()))
    assert not list(tmp_path.glob("*.part"))
    assert token_folder.read_shard(tmp_path, 0).records == 1


def test_no_shards_there(tmp_path):
    with pytest.raises(DataError, match=r"no token shards in .*nowhere \(found: no such folder\); expected tokens"):
        TokenShardSource(tmp_path / "nowhere")
    (tmp_path / "cat.png").touch()
    with pytest.raises(DataError, match=r"found: cat.png"):
        TokenShardSource(tmp_path)


def test_damaged_description(copy):
    (copy / "tokens.json").write_text('{"format": "voken tokens", "layout": 2}')
    with pytest.raises(DataError, match=r"tokens.json is damaged, or of another version of voken"):
        TokenShardSource(copy)


def test_a_shard_is_missing_or_truncated(copy):
    file = copy / "shard-00001.array_record"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"shard-00001.array_record is missing or incomplete \(1000 bytes"):
        TokenShardSource(copy)
    file.unlink()
    with pytest.raises(DataError, match=r"is missing or incomplete \(no file; shard-00001.json says"):
        TokenShardSource(copy)


def test_a_damaged_record_is_named(copy):
    file = copy / "shard-00002.array_record"
    data = bytearray(file.read_bytes())
    data[data.index("bild_ä_21".encode())] ^= 0xFF
    file.write_bytes(data)
    source = TokenShardSource(copy)
    assert source[20]["key"] == "bild_ä_20.png"
    with pytest.raises(DataError, match=r"shard-00002.array_record, record 1: damaged \(.*Remove that file and run"):
        source[21]


class Broken:
    """A reader that met an error of the system, as array_record tells it: it fails from then on."""

    def read(self, positions):
        raise RuntimeError("pread() failed: Stale file handle; reading /x; at byte 0; Could not read from")


def test_a_shard_that_cannot_be_read_for_a_while_is_not_damaged(folder, monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.001)
    source = TokenShardSource(folder)
    source._readers[1] = Broken()
    assert source[12]["key"] == "bild_ä_12.png"
    source = TokenShardSource(folder, retry_seconds=0.1)
    monkeypatch.setattr(source, "_reader", lambda *_: Broken())
    with pytest.raises(ReadError, match=r"shard-00001\.array_record, record 2: cannot be read: Stale file handle\."):
        source[12]


def test_a_shard_that_is_gone_is_not_damaged(folder, copy, monkeypatch):
    source = TokenShardSource(copy, retry_seconds=0.1)
    (copy / "shard-00001.array_record").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.array_record, record 2: cannot be read: No such file") as caught:
        source[12]
    assert "emove" not in str(caught.value)
    assert "run the same command again" in str(caught.value)
    copy.rename(copy.with_name("unmounted"))
    with pytest.raises(ReadError, match=r"record 2: cannot be read: the folder .* is not there any more, or empty\."):
        source[12]
    copy.with_name("unmounted").rename(copy)


def test_batches_are_placed_ahead_and_counted_when_they_are_taken(folder):
    expected = joined(take(folder, 3)[0])
    iterator = build_token_iterator(TokenDataConfig(train=str(folder)), batch_size_per_process=5, seed=3)
    threads = []
    iterator.place = lambda batch: threads.append(threading.current_thread()) or batch
    found = [next(iterator)]
    until = time.monotonic() + 30
    while len(threads) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(threads) >= 2
    assert threading.current_thread() not in threads
    assert iterator.get_state()["position"] == 5
    found += [next(iterator) for _ in range(2)]
    iterator.close()
    np.testing.assert_array_equal(joined(found), expected)


def test_shards_of_two_tokenizers_are_refused(copy):
    file = copy / "shard-00001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "b" * 64}))
    with pytest.raises(DataError, match=r"mixes shards of different tokenizers: shard-00001.array_record is of .*bbb"):
        TokenShardSource(copy)


def test_another_run_does_not_write_into_the_folder(copy):
    token_folder.start(copy, info())
    moved = TokenizerInfo(name="tiny", reference="elsewhere", fingerprint="a" * 64, config={})
    token_folder.start(copy, info(tokenizer=moved))
    other = TokenizerInfo(name="tiny", reference="runs/tiny", fingerprint="b" * 64, config={})
    with pytest.raises(DataError, match=r"(?s)holds tokens of another run.*tokenizer: found aaa.*this run has bbb"):
        token_folder.start(copy, info(tokenizer=other))
    with pytest.raises(DataError, match=r"samples: found 23, this run has 24"):
        token_folder.start(copy, info(samples=24))
    (copy / "tokens.json").unlink()
    with pytest.raises(DataError, match=r"holds shard-00000.array_record but no tokens.json"):
        token_folder.start(copy, info())


def test_tokens_must_fit_the_generator(folder):
    model = TransformerConfig(
        network="factorized", vocabularies=(64, 4096), grid=2, layers=1, factorized_layers=1, heads=1, width=4
    )
    own = TokenShardSource(folder).info
    with pytest.raises(DataError, match=r"grid \[2, 3\], model.grid expects \[2, 2\]"):
        own.require_fits(model, "DIR")
    square = own.model_copy(update={"grid": (2, 2)})
    square.require_fits(model, "DIR")
    with pytest.raises(DataError, match=r"vocabularies \[64, 4096\], model.vocabularies expects \[32, 4096\]"):
        square.require_fits(model.model_copy(update={"vocabularies": (32, 4096)}), "DIR")
    with pytest.raises(DataError, match=r"DIR has labels up to 4, model.classes 4 expects less: set .* to 5"):
        square.require_fits(model.model_copy(update={"classes": 4}), "DIR")


def take(folder, steps, *, batch_size=5, state=None, workers=0, **options):
    config = TokenDataConfig(train=str(folder), workers=workers)
    iterator = build_token_iterator(config, batch_size_per_process=batch_size, seed=3, **options)
    if state is not None:
        iterator.set_state(state)
    batches, state = list(itertools.islice(iterator, steps)), iterator.get_state()
    iterator.close()
    return batches, state


def joined(batches):
    return np.concatenate([batch["tokens"] for batch in batches])


def test_batches_of_an_epoch_are_a_permutation(folder):
    batches, state = take(folder, 2 * COUNT)
    assert set(batches[0]) == {"tokens", "labels"}
    assert (batches[0]["tokens"].shape, batches[0]["tokens"].dtype) == ((5, 6, 2), np.int32)
    assert (batches[0]["labels"].shape, batches[0]["labels"].dtype) == ((5,), np.int32)
    source = TokenShardSource(folder)
    everything = sorted((source[i]["tokens"].tobytes(), source[i]["label"]) for i in range(COUNT))
    labels = np.concatenate([batch["labels"] for batch in batches])
    for epoch in range(2):
        part = slice(epoch * COUNT, (epoch + 1) * COUNT)
        found = [(t.tobytes(), int(label)) for t, label in zip(joined(batches)[part], labels[part], strict=True)]
        assert sorted(found) == everything
    assert (joined(batches)[:COUNT] != joined(batches)[COUNT : 2 * COUNT]).any()
    order = state.pop("source_order")
    assert state == {"version": 1, "position": 10 * COUNT, "seed": 3, "source_length": COUNT}
    assert order == source.order_fingerprint()


def test_resuming_on_other_processes_continues_the_order(folder):
    order = joined(take(folder, 12)[0])
    _, state = take(folder, 7)
    parts = [
        take(folder, 3, batch_size=4, process_index=i, process_count=2, state=state, workers=i)[0] for i in range(2)
    ]
    continued = np.concatenate([joined(pair) for pair in zip(*parts, strict=True)])
    np.testing.assert_array_equal(continued, order[35:59])


def test_tokens_of_another_tokenizer_do_not_continue_the_order(folder, copy, tmp_path):
    _, state = take(folder, 1)
    take(copy, 1, state=state)
    another = TokenizerInfo(name="tiny", reference="runs/tiny", fingerprint="b" * 64, config={})
    write_token_shards(tmp_path / "other", info(tokenizer=another), records())
    with pytest.raises(DataError, match=r"the checkpoint has source_order \d+, this run has \d+; restore the configur"):
        take(tmp_path / "other", 1, state=state)


def test_too_few_samples(folder):
    with pytest.raises(DataError, match=r"1 epochs of 23 samples do not fill one batch of 24; use a smaller batch"):
        take(folder, 1, batch_size=24, epochs=1)


def test_validation_batches_cover_every_sample_once(folder):
    config = TokenDataConfig(train="unused", validation=str(folder))
    source = TokenShardSource(folder)
    for count in (1, 2):
        parts = [
            list(build_token_batches(config, batch_size=4, process_index=i, process_count=count)) for i in range(count)
        ]
        assert len({len(part) for part in parts}) == 1
        seen = [
            row.tobytes() for part in parts for b in part for row, m in zip(b["tokens"], b["mask"], strict=True) if m
        ]
        assert sorted(seen) == sorted(source[i]["tokens"].tobytes() for i in range(COUNT))
    few = build_token_batches(config, batch_size=4, max_samples=6)
    batches = list(few)
    assert (len(few), few.num_samples) == (2, 6)
    assert [b["mask"].tolist() for b in batches] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert all(b["tokens"].shape == (4, 6, 2) for b in batches)
    with pytest.raises(DataError, match=r"data.validation is not set: name a folder of token shards"):
        build_token_batches(TokenDataConfig(train="unused"), batch_size=4)
