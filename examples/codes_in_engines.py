"""Codes of handwritten digits in FAISS, in Postgres with pgvector and in Milvus: the same codes, the same nearest items.

python examples/codes_in_engines.py faiss                                       (pip install 'distillhash[train,faiss]')
python examples/codes_in_engines.py 'postgresql://localhost/images?table=digits'        (... 'distillhash[train,postgres]')
python examples/codes_in_engines.py milvus://localhost:19530/digits                       (... 'distillhash[train,milvus]')
"""

import sys
import tempfile
from pathlib import Path

from sklearn.datasets import load_digits

from distillhash import Codes
from distillhash.export import export_codes
from distillhash.index import open_index
from distillhash.methods import ITQ


def main(engine: str) -> list[list[tuple[int, int]]]:
    """Print and return the 5 nearest of the first 1,700 digits, ids and distances, for each of the last 97."""
    x, digits = load_digits(return_X_y=True)
    hasher = ITQ(n_bits=32).fit(x[:1700])
    database, queries = hasher.encode(x[:1700]), hasher.encode(x[1700:])
    found = search_faiss(database, queries) if engine == "faiss" else search_server(engine, database, queries, digits)
    for digit, neighbours in zip(digits[1700:1705], found, strict=False):
        print(digit, [(int(digits[row]), f"{distance} bits") for row, distance in neighbours])
    return found


def search_faiss(database: Codes, queries: Codes) -> list[list[tuple[int, int]]]:
    """A file of codes, read by FAISS. Its ids are row numbers."""
    import faiss

    with tempfile.TemporaryDirectory() as folder:
        export_codes(database, None, "faiss", Path(folder) / "digits.faiss")
        index = faiss.read_index_binary(str(Path(folder) / "digits.faiss"))
    distances, rows = index.search(queries.packed, 5)
    return [list(zip(*pair, strict=True)) for pair in zip(rows.tolist(), distances.tolist(), strict=True)]


def search_server(address: str, database: Codes, queries: Codes, digits: list[int]) -> list[list[tuple[int, int]]]:
    """A table of Postgres or a collection of Milvus. ``upsert`` lets the script be run again."""
    with open_index(address, n_bits=database.n_bits, create=True) as index:
        metadata = [{"digit": int(digit)} for digit in digits[: len(database)]]
        index.add(database, ids=range(len(database)), metadata=metadata, upsert=True)
        return list(index.search(queries, k=5))


if __name__ == "__main__":
    main(*sys.argv[1:])
