"""`POST /match`: what the library says, of a radius that is calibrated on the index."""

import asyncio
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from distillhash import Codes, HashModel, load_model, make_hasher
from distillhash.codes import hamming_distances
from distillhash.dedup.calibration import Calibration
from distillhash.index import open_index
from distillhash.serve import service
from distillhash.serve.analysis import lookup_calibration
from image_factory import make_jpeg, make_png
from serving import N_PHOTOS, Running, in_thread, problem


def test_an_upload_is_held_or_new(server: Running, client: httpx.Client) -> None:
    photo = (server.photos / "a" / "07.jpg").read_bytes()
    same = client.post("/match", files={"file": photo}).json()
    assert same["verdict"] == "same file" and same["matches"][0]["name"] == "a/07.jpg"
    assert same["matches"][0]["same_file"] and same["matches"][0]["distance"] == 0
    assert 0 < same["light_edits_found"] <= 1 and same["unknown"] is None
    low, high = same["interval"]
    assert low <= same["expected_false_matches"] <= high and 0 <= same["radius"] < same["n_bits"] == 64
    by_code = client.post("/match", params={"code": same["code"]}).json()
    assert by_code["verdict"] == "copy" and not by_code["matches"][0]["same_file"]
    new = client.post("/match", files={"file": make_jpeg(300, 200, seed=1000)}).json()
    with open_index(server.index) as index:
        items = index.get(list(range(N_PHOTOS)))
    codes = Codes.from_packed(np.concatenate([item.code.packed for item in items]), 64)
    for answer in (new, by_code):
        code = Codes.from_packed(np.frombuffer(bytes.fromhex(answer["code"]), np.uint8)[None], 64)
        away = hamming_distances(code, codes)[0]
        near = sorted((int(d), item.id) for d, item in zip(away, items, strict=True) if d <= answer["radius"])
        assert [(row["distance"], row["id"]) for row in answer["matches"]] == near[:10]
        assert answer["n_matches"] == len(near) and (answer["verdict"] == "new") == (not near)
    assert len(client.post("/match?k=1", params={"code": same["code"]}).json()["matches"]) == 1


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {}),
        ("code=00", {}),
        ("code=zzzzzzzzzzzzzzzz", {}),
        ("k=0", {"files": {"file": make_png()}}),
        ("k=501", {"files": {"file": make_png()}}),
        ("", {"files": {"file": b"no image"}}),
        ("code=0000000000000000", {"files": {"file": make_png()}}),
    ],
)
def test_what_cannot_be_matched_is_refused(client: httpx.Client, query: str, options: dict[str, Any]) -> None:
    problem(client.post(f"/match?{query}", **options), 422)


def test_embeddings_and_a_growing_index(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    place = tmp_path / "index"
    HashModel("embeddings", make_hasher("lsh", 64)).fit(x).save(place / "model")
    model = load_model(place / "model")
    index = open_index(place, n_bits=64, create=True, model_fingerprint=model.fingerprint)

    def ask(row: int) -> Any:
        return client.post("/match", json={"embedding": x[row].tolist()}).json()

    with index, in_thread(place) as url, httpx.Client(base_url=url, timeout=30) as client:
        nothing = ask(0)
        assert (nothing["verdict"], nothing["expected_false_matches"], nothing["matches"]) == ("new", None, [])
        assert "too few" in nothing["unknown"]
        index.add(model.encode(x))
        for _ in range(100):
            held = ask(7)  # the first ones get the radius of before
            if held["unknown"] is None:
                break
        assert held["verdict"] == "copy" and held["matches"][0]["id"] == 7 and held["light_edits_found"] is None
        assert held["expected_false_matches"] <= 1 and held["caution"] is None
        code = model.encode(x[:1]).packed.tobytes().hex()
        assert client.post(f"/match?code={code}").json()["matches"][0]["id"] == 0
        index.add(model.encode(-x[:100]))
        assert ask(7)["expected_false_matches"] == pytest.approx(4 / 3 * held["expected_false_matches"])


def test_without_a_model_codes_are_matched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And more false matches than the one in 1,000 are said."""

    def measured(*arguments: Any) -> Calibration:
        return replace(lookup_calibration(*arguments), expected_false_pairs=1.5, false_pairs_interval=(1, 2))

    monkeypatch.setattr(service, "lookup_calibration", measured)
    codes = Codes.from_packed(np.random.default_rng(0).integers(0, 256, (99, 3), np.uint8), 24)
    with open_index(tmp_path / "i", n_bits=24, create=True) as index:
        index.add(codes)
    with in_thread(tmp_path / "i") as url, httpx.Client(base_url=url, timeout=30) as client:
        answer = client.post(f"/match?code={codes[5].packed.tobytes().hex()}").json()
        assert answer["matches"][0]["id"] == 5 and answer["expected_false_matches"] == 1.5
        assert answer["caution"].startswith(
            "more false matches than the 1 per 1,000 accepted are expected, for codes of 24"
        )
        assert "keeps no model" in problem(client.post("/match", files={"file": make_png()}), 422)


def test_a_request_waits_for_the_calibration_and_not_forever(own_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    async def endless(self: service.Service, n_held: int) -> None:
        calls.append(n_held)
        await asyncio.sleep(1000)

    monkeypatch.setattr(service.Service, "_calibrate", endless)
    monkeypatch.setattr(service, "_CALIBRATION_SECONDS", 0.1)
    with in_thread(own_index) as url, httpx.Client(base_url=url, timeout=30) as client:
        for _ in range(2):
            answer = client.post("/match", params={"code": "0" * 16})
            assert "being calibrated" in problem(answer, 503) and answer.headers["retry-after"] == "5"
        assert calls == [N_PHOTOS]
        assert client.post("/search?id=1").status_code == 200


def test_a_calibration_that_fails_is_tried_again(own_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("no room")

    with in_thread(own_index) as url, httpx.Client(base_url=url, timeout=30) as client:
        with monkeypatch.context() as patch:
            patch.setattr(service, "lookup_calibration", broken)
            problem(client.post("/match", params={"code": "0" * 16}), 500)
        assert client.post("/match", params={"code": "0" * 16}).status_code == 200


def test_the_verdict_does_not_depend_on_k(own_index: Path) -> None:
    first, second = make_png(), BytesIO()
    Image.open(BytesIO(first)).convert("RGB").save(second, "BMP")
    with in_thread(own_index) as url, httpx.Client(base_url=url, timeout=30) as client:
        for data in (first, second.getvalue()):
            assert client.post("/items", files={"file": data}).status_code == 201
        answer = client.post("/match?k=1", files={"file": second.getvalue()}).json()
        assert [match["distance"] for match in answer["matches"]] == [0] and not answer["matches"][0]["same_file"]
        assert answer["verdict"] == "same file"


def test_without_scipy_it_says_so(own_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(own_index) as url, httpx.Client(base_url=url, timeout=30) as client:
        monkeypatch.setattr(service, "find_spec", lambda _: None)
        assert "distillhash[dedup]" in problem(client.post("/match", params={"code": "0" * 16}), 501)
