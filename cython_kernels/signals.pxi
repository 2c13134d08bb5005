# SPDX-License-Identifier: MIT
# Ctrl-C during a run, included by _engine.pyx.

from cpython.exc cimport PyErr_CheckSignals


cdef extern from *:
    """
    #if defined(__linux__)
    #include <sys/syscall.h>
    #elif defined(__APPLE__)
    #include <pthread.h>
    #endif
    #include <unistd.h>

    /* Python hears signals on its main thread alone; the others need not wait for the GIL. */
    static int be_may_hear_signals(void) {
    #if defined(__linux__)
      return syscall(SYS_gettid) == getpid();
    #elif defined(__APPLE__)
      return pthread_main_np();
    #else
      return 1;
    #endif
    }

    static long be_process_id(void) { return getpid(); }
    """
    bint be_may_hear_signals() nogil
    long be_process_id()


cdef c_bool hear_signals(void *session) noexcept nogil:
    """Run the handlers of signals that have come (be_poll); False when one of them raised."""
    if not be_may_hear_signals():
        return True
    with gil:
        return (<Session>session)._hear_signals()
