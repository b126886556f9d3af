"""Reads raw tables with programs that know nothing of Freshet, and checks what Freshet promises of them.

    python3 -m venv /tmp/delta && /tmp/delta/bin/pip install deltalake pyarrow polars
    FRESHET_KEEP_RAW=/tmp/raw cargo test --release --test it raw::every_topic
    /tmp/delta/bin/python tests/delta/read.py /tmp/raw

For each table: delta-rs with DataFusion, pyarrow and polars see the same rows; every (topic, partition, offset) is there once; the `txn` action of
each partition is the next offset; files that are older than a column have it as null.
"""

import json
import pathlib
import sys

import deltalake
import polars
import pyarrow


def readings(path):
    table = deltalake.DeltaTable(str(path))
    query = deltalake.QueryBuilder().register("t", table).execute("select * from t")
    yield "datafusion", pyarrow.table(query.read_all())
    yield "pyarrow", table.to_pyarrow_table()
    yield "polars", polars.read_delta(str(path)).to_arrow()


def plain(rows):
    """Rows as JSON in the order of their offsets: readers differ in the width of their types alone."""
    rows = sorted(rows.to_pylist(), key=lambda row: (row["partition"], row["offset"]))
    return [json.dumps(row, default=str, sort_keys=True) for row in rows]


def transactions(path):
    """The last `txn` of each app, from the log itself."""
    last = {}
    for commit in sorted(path.glob("_delta_log/*.json")):
        for line in commit.read_text().splitlines():
            txn = json.loads(line).get("txn")
            if txn:
                last[txn["appId"]] = txn["version"]
    return last


def check(path):
    seen = {name: rows for name, rows in readings(path)}
    first = plain(seen["datafusion"])
    for name, rows in seen.items():
        assert plain(rows) == first, f"{path.name}: {name} reads something else"
    rows = seen["pyarrow"]
    places = list(zip(*(rows[c].to_pylist() for c in ("topic", "partition", "offset"))))
    assert len(places) == len(set(places)), f"{path.name}: an offset is there twice"
    for app, following in transactions(path).items():
        number = int(app.rsplit("/", 1)[1])
        offsets = [offset for _, partition, offset in places if partition == number]
        assert max(offsets) + 1 == following, f"{path.name}: {app} says {following}"
    kept = len(rows) - rows["value"].null_count
    columns = len(rows.schema.field("after").type)
    return {"table": path.name, "rows": rows.num_rows, "columns": columns, "kept_bytes": kept}


if __name__ == "__main__":
    # Snapshots and the quarantine lie beside them, with a dot in their names: they do not have every offset.
    tables = sorted(p for p in pathlib.Path(sys.argv[1]).iterdir() if (p / "_delta_log").is_dir() and "." not in p.name)
    assert tables, f"no Delta tables in {sys.argv[1]}"
    for path in tables:
        print(json.dumps(check(path)))
