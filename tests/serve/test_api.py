"""The HTTP API on a real server: answers are those of the library, errors are problem documents."""

import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from distillhash import Codes, load_model
from distillhash.cli import main
from distillhash.codes import hamming_distances
from distillhash.hamming.ranking import order
from distillhash.index import open_index
from distillhash.metrics.code_statistics import bit_statistics
from distillhash.sources import decode_image
from image_factory import encode, make_jpeg, make_pixels, make_png, make_rotated
from serving import N_PHOTOS, Running, encoders_of, in_thread, is_running, pairs, problem, running, starting


def all_codes(index: Path) -> tuple[np.ndarray, Codes]:
    with open_index(index) as opened:
        items = opened.get(list(range(N_PHOTOS)))
    packed = np.concatenate([item.code.packed for item in items])
    return np.array([item.id for item in items]), Codes.from_packed(packed, 64)


def brute_force(query: Codes, ids: np.ndarray, codes: Codes, k: int) -> list[tuple[int, int]]:
    distances = hamming_distances(query, codes)[0].astype(int)
    return sorted(zip(ids.tolist(), distances.tolist(), strict=True), key=lambda pair: (pair[1], pair[0]))[:k]


def test_search_by_id_is_the_exact_ranking(server: Running, client: httpx.Client) -> None:
    ids, codes = all_codes(server.index)
    for row in (0, 7, 59):
        found = client.post("/search", params={"id": int(ids[row]), "k": 25})
        assert pairs(found) == brute_force(codes[row], ids, codes, 25)
    assert found.json()["query"] == {"id": 59, "code": codes[59].packed.tobytes().hex()}
    assert len(pairs(client.post("/search", params={"id": 0}))) == 10
    assert len(pairs(client.post("/search", params={"id": 0, "k": 10_000}))) == N_PHOTOS


def test_search_by_upload_is_that_of_the_library(server: Running, client: httpx.Client) -> None:
    ids, codes = all_codes(server.index)
    content = make_jpeg(300, 200, seed=1000)
    path = server.photos.parent / "query.jpg"
    path.write_bytes(content)
    code = load_model(server.index / "model").encode([str(path)])
    found = client.post("/search", params={"k": 60}, files={"file": ("query.jpg", content)})
    assert pairs(found) == brute_force(code, ids, codes, 60)
    assert found.json()["query"]["code"] == code.packed.tobytes().hex()
    raw = client.post("/search", params={"k": 60}, content=content, headers={"content-type": "image/jpeg"})
    assert raw.json() == found.json()
    by_code = client.post("/search", params={"k": 60, "code": found.json()["query"]["code"]})
    assert by_code.json() == found.json()
    assert client.post("/encode", files={"file": content}).json() == {"code": code.packed.tobytes().hex(), "n_bits": 64}


def test_an_indexed_photo_finds_itself_at_distance_0(server: Running, client: httpx.Client) -> None:
    photo = server.photos / "a" / "07.jpg"
    best = client.post("/search", files={"file": photo.read_bytes()}).json()["results"][0]
    assert (best["distance"], best["name"], best["width"], best["height"]) == (0, "a/07.jpg", 100, 100)


def test_radius_cuts_the_ranking(server: Running, client: httpx.Client) -> None:
    ids, codes = all_codes(server.index)
    everything = brute_force(codes[3], ids, codes, 60)
    radius = everything[20][1]
    answer = client.post("/search", params={"id": 3, "radius": radius, "k": 60})
    assert pairs(answer) == [pair for pair in everything if pair[1] <= radius]
    assert answer.json()["truncated"] is False
    cut = client.post("/search", params={"id": 3, "radius": 64, "k": 5})
    assert pairs(cut) == everything[:5] and cut.json()["truncated"] is True


def test_parameters_come_in_any_order_and_are_checked(client: httpx.Client) -> None:
    assert client.post("/search?id=5&k=12").content == client.post("/search?k=12&id=5").content
    upload = {"file": ("a.png", make_png(90, 70, 3))}
    assert client.post("/search", files=upload).content == client.post("/search?k=10", files=upload).content
    broken = client.post("/search", content=b"--b\r\nx", headers={"content-type": "multipart/form-data; boundary=c"})
    assert "multipart" in problem(broken, 400)
    for path in ("/search?id={}&k=0", "/search?id={}&k=10001", "/search?id=99999&k=3"):
        assert client.post(path.format(5)).status_code == (404 if "99999" in path else 422)


def test_where_keeps_the_items_for_which_it_holds(server: Running, client: httpx.Client) -> None:
    ids, codes = all_codes(server.index)
    ranking = brute_force(codes[3], ids, codes, N_PHOTOS)
    with open_index(server.index) as index:
        folder = {item.id: str((item.metadata or {})["key"])[0] for item in index.get(ids.tolist())}
    found = client.post("/search", params={"id": 3, "k": 60, "where": "metadata->>'key' LIKE 'a/%'"})
    assert pairs(found) == [pair for pair in ranking if folder[pair[0]] == "a"]
    found = client.post("/search", params={"id": 3, "k": 5, "where": "id % 2 = 0 AND NOT (id IN (4, 6))"})
    assert pairs(found) == [pair for pair in ranking if pair[0] % 2 == 0 and pair[0] not in (4, 6)][:5]
    upload = {"file": (server.photos / "a" / "07.jpg").read_bytes()}
    found = client.post("/search", params={"k": 60, "where": "id < 9"}, files=upload)
    assert sorted(identifier for identifier, _ in pairs(found)) == list(range(9))


@pytest.mark.parametrize(
    "where",
    [
        "(SELECT count(*) FROM items) > 0",
        "1) UNION SELECT id FROM items --",
        "id < 3; DROP TABLE items",
        "zeroblob(1000000000)",
        '"pg_sleep"(10)',
        '"pg_sleep" (10) is null',
        "id < 3 -- more",
        "id /* x */ < 3",
        "key = 'a\\' or 1=1",
        "1 = 1 \0",
        "name = 'x'",
    ],
)
def test_where_compares_and_does_nothing_else(client: httpx.Client, where: str) -> None:
    assert "where=" in problem(client.post("/search", params={"id": 1, "where": where}), 422)


def test_where_that_the_engine_does_not_take_is_refused(client: httpx.Client) -> None:
    for where in ("id <", "id = (", "metadata->>'a' LIKE"):
        assert "no condition that SQLite takes" in problem(
            client.post("/search", params={"id": 1, "where": where}), 422
        )
    problem(client.post("/search", params={"id": 1, "where": "(" * 999}), 422)
    problem(client.post("/search", params={"id": 1, "where": "x" * 1001}), 422)


def test_uploads_are_re_ranked_by_their_projection(server: Running, client: httpx.Client) -> None:
    ids, codes = all_codes(server.index)
    content = make_jpeg(300, 200, seed=1000)
    path = server.photos.parent / "reranked.jpg"
    path.write_bytes(content)
    model = load_model(server.index / "model")
    (batch,) = model.encode_batches([str(path)])
    nearest = [identifier for identifier, _ in brute_force(batch.codes, ids, codes, 30)]
    scores = codes.signs()[nearest].astype(float) @ model.hasher.project(batch.features)[0]
    expected = [nearest[place] for place in np.argsort(-scores, kind="stable")][:7]
    answer = client.post(
        "/search", params={"k": 7, "rerank": "projection", "candidates": 30}, files={"file": ("q.jpg", content)}
    )
    assert [row["id"] for row in answer.json()["results"]] == expected
    assert np.allclose([row["score"] for row in answer.json()["results"]], np.sort(scores)[::-1][:7], rtol=1e-4)
    assert "score" not in client.post("/search", params={"id": 1}).json()["results"][0]


def test_what_cannot_be_re_ranked_is_refused(client: httpx.Client) -> None:
    upload = {"file": ("a.png", make_png(90, 70, 3))}
    cases: list[tuple[dict[str, Any], Any, str]] = [
        ({"rerank": "projection", "id": 1}, None, "an id, a code or a text does not have"),
        ({"rerank": "vectors"}, upload, "keeps no vectors"),
        ({"rerank": "features"}, upload, "'projection', 'decoder' or 'vectors'"),
        ({"candidates": 20}, upload, "give rerank"),
        ({"candidates": 20, "rerank": "projection", "radius": 4}, upload, "no radius"),
        ({"candidates": 4, "rerank": "projection", "k": 5}, upload, "4 candidates cannot give 5"),
        ({"rerank": "projection", "k": 1001}, upload, "at most 1000"),
    ]
    for options, files, sentence in cases:
        assert sentence in problem(client.post("/search", params=options, files=files), 422)


def test_items_images_and_thumbnails(server: Running, client: httpx.Client) -> None:
    with open_index(server.index) as index:
        item = index.get([4])[0]
    assert item.key is not None
    found = client.get("/items/4").json()
    assert found["name"] == (item.metadata or {})["key"] and found["code"] == item.code.packed.tobytes().hex()
    assert str(server.photos) not in json.dumps(found)
    image = client.get("/items/4/image")
    assert image.content == Path(item.key).read_bytes() and image.headers["content-type"] == "image/jpeg"
    thumbnail = client.get("/items/4/thumbnail")
    shown = Image.open(io.BytesIO(thumbnail.content))
    assert shown.size == (found["width"], found["height"]) == decode_image(image.content).shape[1::-1]
    assert "max-age" in thumbnail.headers["cache-control"]
    problem(client.get("/items/999"), 404)
    problem(client.get("/items/999/image"), 404)


def test_sample_is_random_and_repeatable(client: httpx.Client) -> None:
    def ids(seed: int) -> list[int]:
        return [item["id"] for item in client.get("/items", params={"sample": 20, "seed": seed}).json()["items"]]

    assert ids(1) == ids(1) != ids(2)
    assert len(set(ids(1))) == 20


def test_concurrent_uploads_are_batched_and_each_gets_its_own_answer(server: Running, client: httpx.Client) -> None:
    contents = [make_png(50, 40, seed=2000 + i) for i in range(40)]
    alone = [client.post("/encode", files={"file": content}).json()["code"] for content in contents[:5]]
    with ThreadPoolExecutor(16) as pool:
        together = list(
            pool.map(
                lambda c: httpx.post(server.url + "encode", files={"file": c}, timeout=60).json()["code"], contents
            )
        )
    assert together[:5] == alone
    assert len(set(together)) > 20
    metrics = client.get("/metrics").text
    buckets = [
        line
        for line in metrics.splitlines()
        if line.startswith('distillhash_batch_size_bucket{le="1.0",queue="model"}')
    ]
    total = [line for line in metrics.splitlines() if line.startswith('distillhash_batch_size_count{queue="model"}')]
    assert float(buckets[0].split()[-1]) < float(total[0].split()[-1]), "no batch held more than one image"


def test_stats_health_metrics_and_quality(server: Running, client: httpx.Client) -> None:
    stats = client.get("/stats").json()
    assert (stats["n_items"], stats["n_bits"], stats["method"], stats["accepts"]) == (N_PHOTOS, 64, "lsh", "image")
    assert stats["exact"] is True
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    client.post("/search?id=1")
    assert 'distillhash_http_requests_total{method="POST",route="/search",status="200"}' in client.get("/metrics").text
    quality = client.get("/quality").json()
    _, codes = all_codes(server.index)
    expected = bit_statistics(codes)
    assert np.allclose(sorted(quality["balance"]), sorted(expected["balance"]))
    assert quality["effective_bits"] == pytest.approx(expected["effective_bits"])
    distances = hamming_distances(codes, codes)
    upper = distances[np.triu_indices(N_PHOTOS, 1)]
    assert quality["pair_distances"] == np.bincount(upper, minlength=65).tolist()
    np.fill_diagonal(distances, 65)
    assert quality["nearest_distances"] == np.bincount(distances.min(axis=1), minlength=65).tolist()


def test_every_answer_has_the_security_headers_and_a_request_id(client: httpx.Client) -> None:
    for path in ("/", "/stats", "/items/1/thumbnail", "/nothing", "/static/app.js", "/openapi.json"):
        headers = client.get(path, headers={"x-request-id": "my-id.7"}).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-request-id"] == "my-id.7"
    assert client.get("/stats", headers={"x-request-id": "a\tb<script>"}).headers["x-request-id"] != "a\tb<script>"


def test_the_page_is_whole_and_asks_nobody_else(client: httpx.Client) -> None:
    page = client.get("/").text
    assert "<title>distillhash</title>" in page
    for name in ("app.js", "style.css", "grid.js", "icon.svg"):
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200 and "https://" not in answer.text
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")


def test_add_search_and_remove_while_serving(own_index: Path, photo_folder: Path) -> None:
    with in_thread(own_index) as url, httpx.Client(base_url=url, timeout=30) as client:
        content = make_rotated(6)
        added = client.post("/items", files={"file": ("../../evil/new.jpg", content)})
        item = added.json()
        assert added.status_code == 201 and added.headers["location"] == f"/items/{item['id']}"
        assert (item["name"], item["width"], item["height"]) == ("new.jpg", 24, 40)  # EXIF 6: turned by a quarter
        again = client.post("/items", files={"file": ("other.jpg", content)})
        assert again.status_code == 200 and again.json()["id"] == item["id"]
        assert client.get("/stats").json()["n_items"] == N_PHOTOS + 1
        assert pairs(client.post("/search", files={"file": content}))[0] == (item["id"], 0)
        assert client.get(f"/items/{item['id']}/image").content == content
        assert client.delete(f"/items/{item['id']}").status_code == 204
        problem(client.delete(f"/items/{item['id']}"), 404)
        problem(client.get(f"/items/{item['id']}/thumbnail"), 404)
        problem(client.post(f"/search?id={item['id']}"), 404)
        assert list((own_index / "uploads").iterdir()) == []
        assert client.delete("/items/0").status_code == 204
        assert len(list(photo_folder.rglob("*.jpg"))) == N_PHOTOS, "removing an item touched the user's files"

        # Another process adds: the next search sees it.
        extra = photo_folder.parent / "extra"
        extra.mkdir(exist_ok=True)
        (extra / "x.jpg").write_bytes(make_jpeg(90, 90, seed=5000))
        command = [sys.executable, "-m", "distillhash", "index", str(extra), "--index", str(own_index), "--quiet"]
        subprocess.run(command, check=True)
        best = client.post("/search", files={"file": (extra / "x.jpg").read_bytes()}).json()["results"][0]
        assert (best["name"], best["distance"]) == ("x.jpg", 0)


def test_searches_go_on_while_items_come_and_go(own_index: Path) -> None:
    with in_thread(own_index) as url:
        stop, failures = threading.Event(), []

        def look() -> None:
            with httpx.Client(base_url=url, timeout=30) as client:
                while not stop.is_set():
                    answer = client.post("/search?id=11&k=20")
                    if answer.status_code != 200 or answer.json()["results"][0]["distance"] != 0:
                        failures.append(answer.text)

        lookers = [threading.Thread(target=look) for _ in range(4)]
        for looker in lookers:
            looker.start()
        with httpx.Client(base_url=url, timeout=30) as client:
            for number in range(12):
                added = client.post("/items", files={"file": make_png(30, 30, seed=3000 + number)}).json()
                if number % 2:
                    assert client.delete(f"/items/{added['id']}").status_code == 204
        stop.set()
        for looker in lookers:
            looker.join()
        assert not failures
    with open_index(own_index) as index:
        assert len(index) == N_PHOTOS + 6


def test_requests_under_way_are_finished_at_the_end(own_index: Path, photo_folder: Path) -> None:
    with running(own_index, photo_folder) as server, ThreadPoolExecutor(20) as pool:
        contents = [make_png(400, 300, seed=i) for i in range(20)]
        answers = [
            pool.submit(httpx.post, server.url + "search", files={"file": content}, timeout=60) for content in contents
        ]
        with httpx.Client(base_url=server.url) as client:
            while 'distillhash_waiting{queue="model"} 0.0' in client.get("/metrics").text and not answers[-1].done():
                pass
        children = encoders_of(server.process.pid)
        server.process.terminate()
        done = [answer.result() for answer in answers if answer.exception() is None]
        assert [answer.status_code for answer in done] == [200] * len(done) and done
    assert not any(map(is_running, children))


def test_a_server_that_is_not_ready_yet_says_so_and_can_be_stopped(photo_index: Path) -> None:
    with starting(photo_index) as server:
        answer = httpx.get(server.url + "readyz")
        if answer.status_code != 200:  # it is quick, but hardly that quick
            assert "being loaded" in problem(answer, 503) and answer.headers["retry-after"]
        assert httpx.get(server.url + "healthz").status_code == 200


def test_embeddings_are_searched_too(vectors: Path, tmp_path: Path) -> None:
    model, index = tmp_path / "m", tmp_path / "i"
    assert main(["train", str(vectors), "--method", "itq", "--bits", "12", "--out", str(model), "--quiet"]) == 0
    words = ["--model", str(model), "--index", str(index), "--keep-vectors", "float16", "--quiet"]
    assert main(["index", str(vectors), *words]) == 0
    x = np.load(vectors)
    with in_thread(index) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/stats").json()["accepts"] == "embedding"
        found = client.post("/search?k=200", json={"embedding": x[17].tolist()})
        codes = load_model(model).encode(str(vectors))
        assert pairs(found) == brute_force(codes[17], np.arange(200), codes, 200)
        assert {row["picture"] for row in found.json()["results"]} == {False}
        for values, status in (([1.0, 2.0], 422), ([1e300] * 16, 422), (["1"] * 16, 422), ([], 422), ("x", 422)):
            problem(client.post("/search", json={"embedding": values}), status)
        body = '{"embedding": [' + ",".join(["NaN"] * 16) + "]}"
        json_type = {"content-type": "application/json"}
        problem(client.post("/search", content=body, headers=json_type), 400)
        problem(client.post("/search", files={"file": make_png()}), 422)
        added = client.post("/items", json={"embedding": (-x[0]).tolist(), "name": "minus"})
        assert added.status_code == 201 and added.json()["name"] == "minus"
        options: dict[str, Any] = {"k": 1, "rerank": "vectors", "candidates": 201}  # an added item has its vector, too
        (best,) = client.post("/search", params=options, json={"embedding": (-2 * x[0]).tolist()}).json()["results"]
        assert (best["id"], round(best["score"], 4)) == (added.json()["id"], 1)
        problem(client.get(f"/items/{added.json()['id']}/image"), 404)


def test_an_index_without_a_model_or_without_items(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (9, 3), np.uint8)
    with open_index(tmp_path / "i", n_bits=24, create=True) as index:
        index.add(Codes.from_packed(codes, 24))
    open_index(tmp_path / "empty", n_bits=24, create=True).close()
    with running(tmp_path / "i", tmp_path) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/stats").json()["accepts"] is None
        ranking = brute_force(Codes.from_packed(codes[2:3], 24), np.arange(9), Codes.from_packed(codes, 24), 9)
        assert pairs(client.post("/search?id=2&k=9")) == ranking
        assert "keeps no model" in problem(client.post("/search", files={"file": make_png()}), 422)
        problem(client.get("/items/1/thumbnail"), 404)
    with in_thread(tmp_path / "empty") as url, httpx.Client(base_url=url) as client:
        assert pairs(client.post("/search?code=00ff00")) == []
        assert client.get("/items").json() == {"items": []}
        assert client.get("/duplicates").json()["groups"] == []
        problem(client.get("/quality"), 422)
        problem(client.post("/search?id=0"), 404)


def test_pictures_come_from_tables_and_schemes_too(own_index: Path, tmp_path: Path) -> None:
    contents = [make_jpeg(40, 30, seed=700 + i) for i in range(3)] + [encode(make_pixels(20, 10), "TIFF")]
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"image": [{"bytes": content, "path": None} for content in contents]}), table)
    assert main(["index", str(table), "--index", str(own_index), "--quiet"]) == 0
    assert main(["index", "digits:#0:2", "--index", str(own_index), "--quiet"]) == 0
    with in_thread(own_index) as url, httpx.Client(base_url=url, timeout=30) as client:
        for number, content in enumerate(contents):
            image = client.get(f"/items/{N_PHOTOS + number}/image")
            if number < 3:
                assert image.content == content
            else:  # browsers do not show TIFF
                assert image.headers["content-type"] == "image/png"
                assert np.array_equal(decode_image(image.content), make_pixels(20, 10))
        digit = client.get(f"/items/{N_PHOTOS + 4}").json()
        assert (digit["name"], digit["picture"]) == ("digits/0", True)
        shown = decode_image(client.get(f"/items/{N_PHOTOS + 4}/thumbnail").content)
        assert np.array_equal(shown[..., 0], np.rint(load_digits().images[0] * 255 / 16))


def test_a_changed_file_is_not_shown(own_index: Path, tmp_path: Path) -> None:
    """Whatever is put behind an indexed path later, the server does not hand it out."""
    copy = tmp_path / "one.jpg"
    copy.write_bytes(make_jpeg(50, 50, seed=77))
    assert main(["index", str(copy), "--index", str(own_index), "--quiet"]) == 0
    with in_thread(own_index) as url, httpx.Client(base_url=url, timeout=30) as client:
        identifier = client.post("/search", files={"file": copy.read_bytes()}).json()["results"][0]["id"]
        assert client.get(f"/items/{identifier}/image").status_code == 200
        copy.unlink()
        copy.symlink_to("/etc/passwd")
        assert "changed since" in problem(client.get(f"/items/{identifier}/image"), 404)
        copy.unlink()
        problem(client.get(f"/items/{identifier}/thumbnail"), 404)


@pytest.mark.long
def test_codes_of_two_parts_are_ranked_as_asked(vectors: Path, tmp_path: Path) -> None:
    model, index = tmp_path / "m", tmp_path / "i"
    options = ["--method", "distillhash-nested", "--bits", "32", "--quiet"]
    assert main(["train", str(vectors), "--out", str(model), *options]) == 0
    assert main(["index", str(vectors), "--model", str(model), "--index", str(index), "--quiet"]) == 0
    codes = load_model(model).encode(str(vectors))
    differing = codes.signs()[5] != codes.signs()
    far, of_class = differing.sum(axis=1), differing[:, : codes.class_bits].sum(axis=1)
    with in_thread(index) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/stats").json()["class_bits"] == codes.class_bits > 0
        for by in ("both", "nearest", "kind"):
            found = client.post("/search", params={"id": 5, "k": 90, "by": by})
            assert pairs(found) == [(row, far[row]) for row in order(far, of_class, by)[:90]]
        problem(client.post("/search", params={"id": 5, "by": "near"}), 422)


def test_codes_of_one_part_have_one_ranking(client: httpx.Client) -> None:
    assert client.get("/stats").json()["class_bits"] == 0
    assert "one ranking" in problem(client.post("/search", params={"id": 1, "by": "kind"}), 422)
