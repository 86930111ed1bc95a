"""A run's use of the machine's resources."""

import os
import platform

import pytest

from processes import run_script

pytestmark = pytest.mark.slow

PAGES = """
import resource, sys, torch
from attnconv.training.device import keep_freed_memory
if sys.argv[1:]:
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
def test_freed_memory_is_reused_without_page_faults(tmp_path):
    (tmp_path / "pages.py").write_text(PAGES)
    plain, kept = (
        int(run_script("pages.py", *keep, cwd=tmp_path, env=os.environ).stdout) for keep in ([], ["keep_freed_memory"])
    )
    assert kept < plain / 4
