"""What the commands that stay do to their process."""

import subprocess
import sys

PROGRAM = """
import resource, sys
from tools.running import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def use_buffers():
    buffers = [b"x" * (1 << 20) for _ in range(4)]

use_buffers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    use_buffers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_large_buffers_are_used_again_and_not_cleared_by_the_host_each_time() -> None:
    assert page_faults("kept") * 10 < page_faults("as usual")
