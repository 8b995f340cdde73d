# SPDX-License-Identifier: Apache-2.0
"""What is freed stays for the next step, and goes back at the end; in a process of its own, whose memory is watched."""

import ctypes
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"), pytest.mark.slow]

TOLD = """
import os, sys
for name in [n for n in os.environ if n.startswith("MALLOC_")]:
    del os.environ[name]
os.environ.update(dict(a.split("=") for a in sys.argv[1:]))
import torch
from auto_round.run import allocator

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def take():
    torch.ones(50 << 18)  # 50 MiB, freed at once

take()
before = resident()
with allocator.freed_memory_kept():
    take()
    kept = resident() - before
    allocator.give_back_freed_memory(beyond=100 << 20)
    little = resident() - before
    allocator.give_back_freed_memory()
    given = resident() - before
    take()
take()
print(kept, little, given, resident() - before)
"""


def told(*variables):
    result = subprocess.run([sys.executable, "-c", TOLD, *variables], capture_output=True, text=True, check=True)
    return [int(number) for number in result.stdout.split()]


def tells_what_is_free():
    return hasattr(ctypes.CDLL(None), "mallinfo2")


# Of the 50 MiB some pages may be the library's own; 5 MiB are far from all and from none.
def test_freed_memory_is_kept_for_as_long_as_is_asked():
    kept, little, given, after = told()
    if kept < 45:
        pytest.skip("the C library is not glibc")
    assert little > 45 or not tells_what_is_free()
    assert given < 5
    assert after < 5


def test_the_users_own_setting_is_left_alone():
    kept, *_ = told("MALLOC_MMAP_THRESHOLD_=1048576")
    assert kept < 5
