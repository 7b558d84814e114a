"""The contract suite on the processors that a user may have: OpenBLAS computes differently on each, and so may a method's limits lie."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info

KERNELS = ("Sandybridge", "Nehalem", "Haswell")
SUITES = ("test_contract.py", "test_image_text_contract.py")


@pytest.mark.long
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_contract_holds_on(kernel: str) -> None:
    if not any(library.get("internal_api") == "openblas" for library in threadpool_info()):
        pytest.skip("NumPy uses another library than OpenBLAS")
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    asked = "import numpy, threadpoolctl as t; print({i.get('architecture') for i in t.threadpool_info()})"
    found = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    if kernel not in found.stdout:
        pytest.skip(f"this processor cannot run {kernel}: {found.stdout}")
    files = [str(Path(__file__).with_name(name)) for name in SUITES]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider", *files]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
