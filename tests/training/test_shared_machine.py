"""A run's use of the machine's resources."""

import platform
import subprocess

import pytest

from conftest import PYTHON

pytestmark = pytest.mark.slow

PAGES = """
import resource, torch
from attnconv.training.device import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(1_000_000) for _ in range(40)]  # 160 MB
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())  # of the second step: after some more, glibc may happen to keep memory by itself
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere it does nothing")
def test_freed_memory_is_reused_without_page_faults():
    plain, kept = (
        int(subprocess.run([PYTHON, "-c", PAGES.format(keep=keep)], capture_output=True, text=True, check=True).stdout)
        for keep in (False, True)
    )
    assert kept < plain / 4
