import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.mix import shuffle
from stages.mix.draw import draw, training_order

COUNTS = {"chat": 3000, "instruct": 2500}


@pytest.fixture
def files(tmp_path):
    for source, count in COUNTS.items():
        rows = {
            "row": range(count),
            "record": [f"{source} {n}" for n in range(count)],
            "group": [None] * count,
        }
        pq.write_table(pa.table(rows), tmp_path / source)
    return tmp_path


def shuffled(folder, order):
    sources = [
        shuffle.SourceRows(source, folder / source, place) for source, place in shuffle.places(order).items()
    ]
    tables = list(shuffle.shuffled(sources, folder))
    return [
        (row["source"], row["row"], row["record"]) for table in tables for row in table.to_pylist()
    ], tables


@pytest.mark.parametrize("part_bytes", [1 << 20, 1])
def test_rows_come_in_the_order_asked_for_however_little_is_in_memory(files, monkeypatch, part_bytes):
    monkeypatch.setattr(shuffle, "PART_BYTES", part_bytes)
    drawn = [(source, row) for source, count in COUNTS.items() for row in draw(1, source, range(count), 1900)]
    order = training_order(1, drawn)
    rows, tables = shuffled(files, order)
    assert rows == [(source, row, f"{source} {row}") for source, row in order]
    assert {len(table) for table in tables[:-1]} == {1024}
    assert sorted(path.name for path in files.iterdir()) == sorted(COUNTS)  # nothing is left behind


def test_a_part_holds_fewer_rows_where_memory_is_less(files, monkeypatch):
    sources = [shuffle.SourceRows("chat", files / "chat", shuffle.places([("chat", 2999)])["chat"])]
    assert shuffle.rows_in_a_part(sources, 3000) == 3072
    monkeypatch.setattr(shuffle, "PART_BYTES", 1)
    assert shuffle.rows_in_a_part(sources, 3000) == 1024
