"""Records of a variant -> token ids and labels.

Before anything imports pyarrow: Arrow and all threads allocate from one heap. With heaps of their own the stage's processes
kept 70 MB more from the system.
"""

import ctypes
import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's
    M_ARENA_MAX = -8
    mallopt(M_ARENA_MAX, 1)
