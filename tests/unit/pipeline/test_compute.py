import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from pipeline.compute import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):
    torch.ones(16, 2**20)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_large_tensors_are_allocated_from_memory_that_was_freed():
    """Twenty tensors of 16,384 pages each: fresh memory costs a fault per page, kept memory only the first time."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True).stdout)
        for how in ("returned", "kept")
    }
    pages = 64 * 2**20 // resource.getpagesize()
    assert faults["returned"] - faults["kept"] > 10 * pages
