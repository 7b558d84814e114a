"""Vectors that a method must learn from or refuse, through the command line: one line on stderr, and never a traceback."""

from pathlib import Path

import numpy as np
import pytest

from degenerate import INPUTS
from distillhash.cli import main


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("method", ["distillhash-contrast", "sh"])
@pytest.mark.parametrize("name", ["a row of 1e25", "a row of 1e300", "two rows", "constant axes"])
def test_train_and_encode(name: str, method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, model = str(tmp_path / "x.npy"), str(tmp_path / "m")
    np.save(source, INPUTS[name])
    status = main(["train", source, "--method", method, "--bits", "12", "--out", model, "--quiet"])
    said = capfd.readouterr().err
    if status:
        assert status == 1 and said.count("\n") == 1 and "unexpected" not in said
        assert "1e" not in name or ("over the limit of 1e+12" in said and "row 0" in said)
        return
    assert said == ""
    assert main(["encode", source, "--model", model, "--out", str(tmp_path / "c.npz"), "--quiet"]) == 0
    assert capfd.readouterr().err == ""


def test_an_encoder_refuses_a_row_that_is_too_large_without_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", INPUTS["far from 0"])
    assert main(["train", str(tmp_path / "x.npy"), "--method", "lsh", "--out", str(tmp_path / "m"), "--quiet"]) == 0
    for value in (1e25, 1e300, -2e12):
        rows = np.array(INPUTS["far from 0"])
        rows[30, 5] = value
        np.save(tmp_path / "y.npy", rows)
        capfd.readouterr()
        words = ["encode", str(tmp_path / "y.npy"), "--model", str(tmp_path / "m"), "--out", str(tmp_path / "c.npz")]
        assert main([*words, "--quiet"]) == 1
        said = capfd.readouterr().err
        assert "row 30 holds" in said and f"{abs(value):.3g}" in said and said.count("\n") == 1
