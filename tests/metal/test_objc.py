# SPDX-License-Identifier: MIT
"""The messages' calling convention, against a libobjc of four functions."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from bitnet_edge.metal import objc
from bitnet_edge.metal.objc import Runtime, Size

LIBRARY = """
#include <stdint.h>
#include <string.h>
void *objc_getClass(const char *name) { return strcmp(name, "Thing") ? 0 : (void *)0x100000040; }
const char *sel_registerName(const char *name) { return strdup(name); }
static uint64_t pools;
void *objc_autoreleasePoolPush(void) { return (void *)++pools; }
void objc_autoreleasePoolPop(void *pool) { pools -= pools == (uint64_t)pool; }
void *MTLCreateSystemDefaultDevice(void) { return (void *)0x100000080; }
uint64_t objc_msgSend(uint64_t self, const char *sel, uint64_t a, uint64_t b, uint64_t c) {
  if (!strcmp(sel, "sum:::"))
    return self + a + b + c;
  if (!strcmp(sel, "isEven:"))
    return a % 2 == 0;
  if (!strcmp(sel, "name"))
    return (uint64_t)"a thing";
  return 0;
}
"""
SIZES = """
#include <stdint.h>
typedef struct { uint64_t width, height, depth; } size;
uint64_t objc_msgSend(void *self, void *sel, size groups, size threads) {
  return groups.width + 10 * groups.height + 100 * groups.depth + 1000 * threads.width;
}
"""


def compiled(folder, code, name):
    (folder / f"{name}.c").write_text(code)
    library = folder / f"{name}.so"
    command = ["gcc", "-shared", "-fPIC", "-w", str(folder / f"{name}.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    return str(library)


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    path = compiled(tmp_path, LIBRARY, "objc")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(objc, "LIBOBJC", path)
    monkeypatch.setattr(objc, "FRAMEWORKS", (path,))
    return Runtime()


def test_messages(runtime):
    thing = runtime.named_class("Thing")
    assert thing == 0x100000040  # no pointer is cut to 32 bits
    assert runtime.default_device() == 0x100000080
    assert runtime.send(thing, "sum:::", 1, 2, 3, returns=ctypes.c_size_t) == thing + 6
    assert runtime.send(thing, "isEven:", 4, returns=ctypes.c_bool) is True
    assert runtime.send(thing, "name", returns=ctypes.c_char_p) == b"a thing"
    assert runtime.selector("name") == runtime.selector("name")
    pool = runtime.push_pool()
    assert runtime.push_pool() == pool + 1
    runtime.pop_pool(pool + 1)
    assert runtime.push_pool() == pool + 1


def test_structures_go_by_value(runtime, tmp_path):
    runtime._objc = ctypes.CDLL(compiled(tmp_path, SIZES, "sizes"))
    runtime._selectors["dispatch::"] = 1
    value = runtime.send(1, "dispatch::", Size(3, 2, 1), Size(128, 1, 1), returns=ctypes.c_size_t)
    assert value == 3 + 20 + 100 + 128_000
