"""Exports read by the engines they are for, where one runs here: Postgres through psql, Milvus through its API."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from distillhash import Codes
from distillhash.codes import hamming_distances
from distillhash.export import export_codes
from distillhash.index import open_index
from engine_servers import MilvusServer, postgres_program

N_BITS = 33
CODES = Codes.from_signs(np.random.default_rng(0).choice([-1, 1], (500, N_BITS)))
KEYS = [f"photo {row}\\\t'\"" for row in range(500)]
DISTANCES = hamming_distances(CODES[:4], CODES).astype(int)


def expected(query: int, k: int) -> list[tuple[int, int]]:
    order = np.lexsort((np.arange(500), DISTANCES[query]))[:k]
    return [(int(row), int(DISTANCES[query][row])) for row in order]


def test_psql_loads_the_file_and_the_result_is_an_index(postgres: str, tmp_path: Path) -> None:
    import psycopg

    out = tmp_path / "photos.sql"
    export_codes(CODES, KEYS, "pgvector", out, name="photos_export")
    done = subprocess.run([postgres_program("psql"), postgres, "-q", "-f", out], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(postgres) as connection:
        bits = "".join("1" if sign > 0 else "0" for sign in CODES.signs()[2])
        query = "SELECT id, (code <~> %s::bit(33))::int FROM photos_export ORDER BY 2, 1 LIMIT 20"
        assert connection.execute(query, [bits]).fetchall() == expected(2, 20)
    with open_index(f"{postgres}&table=photos_export") as index:
        assert (len(index), index.n_bits) == (500, N_BITS)
        assert list(index.search(CODES[:4], 10)) == [expected(query, 10) for query in range(4)]
        assert index.get([7])[0].key == KEYS[7] and index.known([KEYS[7]]) == {KEYS[7]: (7, None)}
        assert index.add(CODES[:1]).tolist() == [500]
    again = subprocess.run([postgres_program("psql"), postgres, "-q", "-f", out], capture_output=True, text=True)
    assert again.returncode != 0 and "already exists" in again.stderr


def test_milvus_takes_the_rows_of_both_files(milvus: MilvusServer, tmp_path: Path) -> None:
    """The server here has no bulk import: the rows of the files go in by its API, bytes for lists of bytes."""
    import pyarrow.parquet as pq
    from pymilvus import MilvusClient

    export_codes(CODES, KEYS, "milvus", tmp_path / "codes.json")
    export_codes(CODES, KEYS, "milvus", tmp_path / "codes.parquet")
    from_json: list[dict[str, Any]] = json.loads((tmp_path / "codes.json").read_text())["rows"]
    from_parquet = pq.read_table(tmp_path / "codes.parquet").to_pylist()
    for row in from_parquet:
        row["metadata"] = json.loads(row["metadata"])
    assert from_json == from_parquet
    client = MilvusClient(f"http://{milvus.address}")
    with open_index(milvus.uri("imported"), N_BITS, create=True) as index:
        client.insert("imported", [{**row, "code": bytes(row["code"])} for row in from_json])
        assert list(index.search(CODES[:4], 10)) == [expected(query, 10) for query in range(4)]
        assert index.get([7])[0].key == KEYS[7] and index.known([KEYS[7]]) == {KEYS[7]: (7, None)}
        assert index.add(CODES[:1]).tolist() == [500]  # not the id of an imported item
    client.close()
