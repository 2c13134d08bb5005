# SPDX-License-Identifier: MIT
"""Profiles of sessions, and the yardsticks of `bitnet-edge bench`."""


cdef extern from "profile.h":
    ctypedef struct be_profile_event:
        uint64_t begin_ns
        uint64_t end_ns
        uint32_t instruction

    ctypedef struct be_profile:
        pass

    be_status be_profile_create(be_profile **out, uint32_t threads, uint32_t capacity) nogil
    void be_profile_destroy(be_profile *profile) nogil
    void be_profile_clear(be_profile *profile) nogil
    uint32_t be_profile_threads(const be_profile *profile) nogil
    uint64_t be_profile_runs(const be_profile *profile) nogil
    uint64_t be_profile_run_ns(const be_profile *profile) nogil
    uint64_t be_profile_count(const be_profile *profile, uint32_t thread) nogil
    size_t be_profile_read(const be_profile *profile, uint32_t thread, be_profile_event *events,
                           size_t max) nogil


cdef extern from "bitnet_edge.h":
    be_status be_session_profile(be_session *session, be_profile *profile) nogil


cdef extern from "calibrate.h":
    ctypedef struct be_ternary_work:
        uint32_t rows
        uint32_t k
        uint32_t m
        uint32_t repeats
        bint scalar

    be_status be_measure_read(const uint8_t *buffer, size_t size, uint32_t threads, bint prefetch,
                              uint64_t *ns) nogil
    void be_measure_clock(uint64_t cycles, uint64_t *ns) nogil
    be_status be_measure_ternary(const uint8_t *buffer, size_t size, const be_ternary_work *work,
                                 uint32_t threads, uint64_t *ns) nogil
    be_status be_measure_head(const uint8_t *buffer, size_t size, uint32_t k, uint32_t bits,
                              uint32_t threads, uint64_t *ns) nogil


cdef class Profile:
    """Times of the runs of the session it is given to (`Session.profile`).

    Parameters
    ----------
    threads : int
        At least the session's.
    capacity : int
        Events kept per thread, the latest ones; 0 counts runs only.
    """

    cdef be_profile *profile

    def __cinit__(self, uint32_t threads=1, uint32_t capacity=0):
        raise_status(be_profile_create(&self.profile, threads, capacity),
                     f"a profile of {threads} threads with {capacity} events each")

    def __dealloc__(self):
        be_profile_destroy(self.profile)

    @property
    def threads(self):
        return be_profile_threads(self.profile)

    @property
    def runs(self):
        """Runs since the last `clear`."""
        return be_profile_runs(self.profile)

    @property
    def run_ns(self):
        """Time inside the engine, of all runs together."""
        return be_profile_run_ns(self.profile)

    def clear(self):
        be_profile_clear(self.profile)

    def count(self, uint32_t thread):
        """Events that a thread recorded, those no longer kept included."""
        return be_profile_count(self.profile, thread)

    def events(self, uint32_t thread):
        """(instruction, begin_ns, end_ns) of a thread's events, in order."""
        cdef uint64_t count = be_profile_count(self.profile, thread)
        cdef size_t left, i
        cdef be_profile_event *events = <be_profile_event *>calloc(count + 1, sizeof(events[0]))
        if events == NULL:
            raise MemoryError(f"[engine] {count} events")
        try:
            left = be_profile_read(self.profile, thread, events, count)
            return [(events[i].instruction, events[i].begin_ns, events[i].end_ns)
                    for i in range(left)]
        finally:
            free(events)


def measure_read(buffer, uint32_t threads=1, bint prefetch=True):
    """Read a buffer once on the pool; return the nanoseconds.

    Raises
    ------
    ArgumentError
        For threads outside 1 .. 64.
    """
    cdef Py_buffer view
    cdef be_status status
    cdef uint64_t ns = 0
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    with nogil:
        status = be_measure_read(<const uint8_t *>view.buf, view.len, threads, prefetch, &ns)
    PyBuffer_Release(&view)
    raise_status(status, f"{threads} threads")
    return ns


def measure_clock(uint64_t cycles):
    """Run a chain of additions of one cycle each; return the nanoseconds."""
    cdef uint64_t ns = 0
    with nogil:
        be_measure_clock(cycles, &ns)
    return ns


def measure_ternary(buffer, uint32_t rows, uint32_t k, uint32_t m=1, uint32_t repeats=1,
                    uint32_t threads=1, bint scalar=False):
    """Multiply every (rows, k) matrix of a buffer, any bytes in P16, by m rows of activations,
    ``repeats`` times over; return the nanoseconds.

    Raises
    ------
    ArgumentError
        For sizes that are no multiples of 16 or out of range, or less than one matrix.
    """
    cdef Py_buffer view
    cdef be_status status
    cdef uint64_t ns = 0
    cdef be_ternary_work work = be_ternary_work(rows, k, m, repeats, scalar)
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    with nogil:
        status = be_measure_ternary(<const uint8_t *>view.buf, view.len, &work, threads, &ns)
    PyBuffer_Release(&view)
    raise_status(status, f"({rows}, {k}) x {m} in {len(buffer)} bytes, {threads} threads")
    return ns


def measure_head(buffer, uint32_t k, uint32_t bits, uint32_t threads=1):
    """Multiply a buffer once, as a head of k columns in int4, int8 or bfloat16 (``bits`` 16);
    return the nanoseconds.

    Raises
    ------
    ArgumentError
        For other bits, k beyond 65536, or less than 16 rows.
    """
    cdef Py_buffer view
    cdef be_status status
    cdef uint64_t ns = 0
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    with nogil:
        status = be_measure_head(<const uint8_t *>view.buf, view.len, k, bits, threads, &ns)
    PyBuffer_Release(&view)
    raise_status(status, f"{k} columns of {bits} bits in {len(buffer)} bytes, {threads} threads")
    return ns
