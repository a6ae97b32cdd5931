"""A process that keeps its memory takes no page faults in calls that allocate and free."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MIB = 48
SCRIPT = f"""
import resource
from gsbench.measure import heap

def faults(call):
    call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def call():
    return len(bytearray(b"x") * ({MIB} << 20))

before = faults(call)
assert heap.kept() is False
assert heap.keep() is True and heap.kept() is True
after = faults(call)
heap.give_back()
print(before, after, faults(lambda: None), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_was_freed_is_not_cleared_again_by_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after, nothing, _ = map(int, done.stdout.split())
    pages = MIB * 256
    assert before > pages / 2  # every call gets fresh pages: this is what the timed calls waited for
    assert after < pages / 100
    assert nothing < pages / 100
