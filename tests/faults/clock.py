"""A Redis whose clock a test can step, by a library that is loaded before the C library."""

from __future__ import annotations

import atexit
import functools
import mmap
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from redisagg.testing.embedded import EmbeddedRedis

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *offset;  /* microseconds, in a file that the test writes */

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("TEST_CLOCK");
  int file = path ? open(path, O_RDONLY) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) offset = mapped;
  close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, clock, now);
  if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    long long by = *offset, ns = now->tv_nsec + by % 1000000 * 1000;
    now->tv_sec += by / 1000000 + ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
    if (now->tv_nsec < 0) { now->tv_nsec += 1000000000; now->tv_sec -= 1; }
  }
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec precise;
  if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *stored) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (stored) *stored = precise.tv_sec;
  return precise.tv_sec;
}
"""


def can_step_clocks() -> bool:
    """Whether this machine can build and load the library: Linux with a C compiler."""
    return sys.platform == "linux" and _library() is not None


@functools.cache
def _library() -> Path | None:
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="redisagg-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "clock.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(library)]
    built = subprocess.run(command, input=_SOURCE.encode(), capture_output=True, check=False)
    return library if built.returncode == 0 else None


class SteppedRedis(EmbeddedRedis):
    """A server whose clock can be stepped, if `can_step_clocks`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "clock"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)

    def step_clock(self, seconds: float) -> None:
        """Sets the difference between its clock and that of the machine."""
        struct.pack_into("q", self._offset, 0, round(seconds * 1_000_000))

    def _command(self, port: int) -> list[str]:
        command = super()._command(port)
        library = _library()
        if library is None:
            return command
        clock = self.directory / "clock"
        return ["/usr/bin/env", f"LD_PRELOAD={library}", f"TEST_CLOCK={clock}", *command]
