# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: binding=False, embedsignature=False
"""The C core behind a thin Cython face: programs, sessions, sampling, tokenizer, CPU dispatch.

Everything here checks its arguments, holds the buffers it was given, and releases the GIL once
per call; the work is done in C.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
cimport cython

import mmap
import os

from bitnet_edge import errors


cdef extern from "stdbool.h":
    ctypedef bint c_bool "bool"  # where a pointer to a function must be of C's very type


cdef extern from "status.h":
    ctypedef int be_status
    be_status BE_OK
    be_status BE_ERR_ARGUMENT
    be_status BE_ERR_INTERRUPTED
    const char *be_status_text(be_status status)


cdef extern from "kernels.h":
    ctypedef int be_isa
    int BE_ISA_COUNT
    int BE_KERNEL_COUNT

    ctypedef struct be_kernels:
        be_isa *isa

    uint32_t be_cpu_detect() nogil
    const char *be_isa_name(be_isa isa)
    const char *be_isa_requirement(be_isa isa)
    const char *be_kernel_name(int kernel)


cdef extern from "bitnet_edge.h":
    int BE_MAX_PORTS

    ctypedef struct be_instruction:
        uint16_t opcode
        uint16_t flags
        uint32_t *dim
        float *scalar
        uint64_t *operand

    ctypedef struct be_port:
        uint32_t dtype
        uint32_t width

    ctypedef struct be_program_header:
        uint32_t version
        uint32_t instruction_count
        uint32_t max_tokens
        uint32_t max_positions
        uint32_t window
        uint32_t sinks
        uint32_t input_count
        uint32_t output_count
        uint64_t arena_bytes
        uint64_t state_bytes

    ctypedef struct be_error:
        const char *what
        int32_t instruction
        int32_t operand
        uint64_t expected
        uint64_t found

    ctypedef struct be_program:
        pass

    ctypedef struct be_session:
        pass

    be_status be_program_open(be_program **out, const uint8_t *section, size_t section_size,
                              const uint8_t *weights, size_t weights_size, be_error *error) nogil
    void be_program_close(be_program *program) nogil
    const be_program_header *be_program_info(const be_program *program) nogil
    const be_port *be_program_port(const be_program *program, uint32_t index) nogil
    const be_instruction *be_program_instruction(const be_program *program, uint32_t index) nogil
    size_t be_program_bytes(const be_program *program) nogil
    uint32_t be_program_phase_count(const be_program *program) nogil

    be_status be_session_create(be_session **out, const be_program *program,
                                uint32_t threads) nogil
    void be_session_destroy(be_session *session) nogil
    size_t be_session_bytes(const be_session *session) nogil
    ctypedef enum be_region:
        BE_REGION_ARENA
        BE_REGION_STATE
    const void *be_session_block(const be_session *session, be_region region) nogil
    uint32_t be_session_position(const be_session *session) nogil
    ctypedef struct be_kv_layout:
        uint64_t row_bytes
        uint64_t scales_at
        uint64_t head_bytes
    be_kv_layout be_kv_layout_of(uint32_t dtype, uint32_t head_dim, uint32_t positions) nogil
    uint64_t be_kv_window_rows(uint32_t window, uint32_t sinks, uint32_t max_tokens) nogil
    uint64_t be_kv_cache_bytes(uint32_t dtype, uint32_t kv_heads, uint32_t head_dim,
                               uint32_t positions) nogil
    be_status be_session_run(be_session *session, uint32_t n_tokens, uint32_t position,
                             uint32_t output_rows, const void *const *inputs,
                             void *const *outputs, be_error *error) nogil
    be_status be_session_poll(be_session *session, c_bool (*poll)(void *) noexcept nogil,
                              void *context) nogil
    void be_session_screen(be_session *session, uint32_t best, float margin) nogil
    void be_session_screened(const be_session *session, uint64_t *rows,
                             uint64_t *rescored) nogil
    ctypedef enum be_residency:
        BE_RESIDENCY_MAPPED
    be_status be_session_residency(be_session *session, be_residency mode, int file,
                                   uint64_t file_offset, be_error *error) nogil
    be_status be_engine_init(const char *name)
    const be_kernels *be_engine_kernels()


cdef extern from "thread_pool.h":
    int BE_MAX_THREADS
    unsigned be_pool_workers() nogil
    unsigned be_cpu_available() nogil


cdef extern from "sampler.h":
    ctypedef struct be_sampling:
        float temperature
        uint32_t top_k
        float top_p
        float min_p
        float repetition_penalty

    ctypedef struct be_sampler:
        pass

    be_status be_sampler_create(be_sampler **out, uint32_t vocab_size, uint64_t seed) nogil
    void be_sampler_destroy(be_sampler *sampler) nogil
    size_t be_sampler_bytes(const be_sampler *sampler) nogil
    be_status be_sampler_next(be_sampler *sampler, const be_sampling *parameters,
                              const float *logits, const int32_t *recent, size_t n_recent,
                              int32_t *token) nogil
    void be_sampler_needs(const be_sampling *parameters, size_t n_recent, uint32_t *best,
                          float *margin) nogil


cdef extern from *:
    """
    #include "bitnet_edge.h"

    /* The .def tables as data, so that Python and C cannot disagree about them. */
    static const char *be_status_python_error(be_status status) {
      switch (status) {
    #define BE_STATUS(name, value, python_error, text) case name: return #python_error;
    #include "status.def"
    #undef BE_STATUS
      }
      return "BitnetEdgeError";
    }

    /* Session.run keeps its pointers in arrays of this size. */
    _Static_assert(BE_MAX_PORTS == 16, "arrays of Session.run");

    typedef struct be_op_row {
      const char *name;
      int opcode;
      const char *dims, *scalars, *operands;
    } be_op_row;

    static const be_op_row be_op_rows[] = {
    #define BE_OP(name, opcode, dims, scalars, operands) {#name, opcode, dims, scalars, operands},
    #include "op_table.def"
    #undef BE_OP
        {0, 0, 0, 0, 0}};
    """
    const char *be_status_python_error(be_status status)

    ctypedef struct be_op_row:
        const char *name
        int opcode
        const char *dims
        const char *scalars
        const char *operands

    const be_op_row *be_op_rows


cdef object error_class(be_status status):
    name = be_status_python_error(status).decode()
    return getattr(errors, name, None) or {
        "MemoryError": MemoryError, "RuntimeError": RuntimeError
    }.get(name, errors.BitnetEdgeError)


cdef int raise_status(be_status status, str context) except -1:
    """Raise the Python error of a status, unless it is BE_OK."""
    if status == BE_OK:
        return 0
    raise error_class(status)(f"[engine] {be_status_text(status).decode()}: {context}")


cdef int raise_error(be_status status, const be_error *error) except -1:
    """Raise the Python error of a status with the details the engine gave."""
    if status == BE_OK:
        return 0
    cdef str where = ""
    if error.instruction >= 0:
        where += f" (instruction {error.instruction}"
        where += f", operand {error.operand})" if error.operand >= 0 else ")"
    text = (f"[engine] {be_status_text(status).decode()}: {error.what.decode()}{where}: "
            f"expected {error.expected}, got {error.found}")
    cls = error_class(status)
    if cls is errors.InvalidProgram:
        raise errors.InvalidProgram(text, error.instruction)
    raise cls(text)


include "measure.pxi"


cdef const be_op_row *op_row(uint16_t opcode):
    """The row of an opcode that a verified program has."""
    cdef const be_op_row *row = be_op_rows
    while row.opcode != opcode:
        row += 1
    return row


cdef class Program:
    """A verified program over the weights section of a mapped file.

    Parameters
    ----------
    section : buffer
        The program section; copied.
    weights : buffer
        The weights section, 64-byte aligned; held (and its file mapped) as long as this object.

    Raises
    ------
    InvalidProgram, Truncated, UnsupportedVersion
        As `be_program_open` says.
    """

    cdef be_program *program
    cdef Py_buffer weights_view

    def __cinit__(self, section, weights):
        cdef Py_buffer view
        cdef be_status status
        cdef be_error error
        error.what = b""
        PyObject_GetBuffer(weights, &self.weights_view, PyBUF_SIMPLE)
        PyObject_GetBuffer(section, &view, PyBUF_SIMPLE)
        with nogil:
            status = be_program_open(&self.program, <const uint8_t *>view.buf, view.len,
                                     <const uint8_t *>self.weights_view.buf,
                                     self.weights_view.len, &error)
        PyBuffer_Release(&view)
        raise_error(status, &error)

    def __dealloc__(self):
        be_program_close(self.program)
        PyBuffer_Release(&self.weights_view)

    @property
    def arena_bytes(self):
        return be_program_info(self.program).arena_bytes

    @property
    def state_bytes(self):
        return be_program_info(self.program).state_bytes

    @property
    def max_tokens(self):
        return be_program_info(self.program).max_tokens

    @property
    def max_positions(self):
        return be_program_info(self.program).max_positions

    @property
    def window(self):
        return be_program_info(self.program).window

    @property
    def sinks(self):
        return be_program_info(self.program).sinks

    @property
    def instruction_count(self):
        return be_program_info(self.program).instruction_count

    @property
    def phase_count(self):
        return be_program_phase_count(self.program)

    @property
    def private_bytes(self):
        return be_program_bytes(self.program)

    cdef const be_instruction *_record(self, uint32_t index) except NULL:
        cdef const be_instruction *record = be_program_instruction(self.program, index)
        if record == NULL:
            raise IndexError(f"[engine] no instruction {index}")
        return record

    def instruction(self, uint32_t index):
        """(op, flags, dims, operands) of an instruction: dims and operands (region << 56 | port
        << 48 | offset, 0 where absent) by the names that `op_table` gives."""
        cdef const be_instruction *record = self._record(index)
        cdef const be_op_row *row = op_row(record.opcode)
        dims, operands = row.dims.decode().split(), row.operands.decode().split()
        return (
            row.name.decode(),
            record.flags,
            {dims[i]: record.dim[i] for i in range(len(dims))},
            {operands[i].rstrip("?"): record.operand[i] for i in range(len(operands))},
        )

    @property
    def weights(self):
        """(address, bytes) of the weights."""
        return <size_t>self.weights_view.buf, self.weights_view.len

    def scalars(self, uint32_t index):
        """Scalars of an instruction by the names that `op_table` gives."""
        cdef const be_instruction *record = self._record(index)
        cdef const be_op_row *row = op_row(record.opcode)
        names = row.scalars.decode().split()
        return {names[i]: record.scalar[i] for i in range(len(names))}

    @property
    def inputs(self):
        """(dtype code, width) of each input."""
        return [self._port(i) for i in range(be_program_info(self.program).input_count)]

    @property
    def outputs(self):
        """(dtype code, width) of each output."""
        first = be_program_info(self.program).input_count
        return [self._port(first + i) for i in range(be_program_info(self.program).output_count)]

    cdef tuple _port(self, uint32_t index):
        cdef const be_port *port = be_program_port(self.program, index)
        return (port.dtype, port.width)


include "signals.pxi"


cdef uint64_t row_bytes(const be_port *port):
    return <uint64_t>port.width * (2 if port.dtype in (1, 2) else 4)


RESIDENCIES = ("mapped", "resident", "streamed")  # in the order of be_residency


@cython.no_gc_clear  # the program is needed to the end: residency is given back in it
cdef class Session:
    """Arena and KV cache of one caller.

    Parameters
    ----------
    program : Program
    threads : int
        Participants per run, 1 .. `MAX_THREADS`.
    """

    cdef be_session *session
    cdef readonly Program program
    cdef Profile sink  # kept alive while the engine writes into it
    cdef float *logits_row  # one row of the first output, for step() and sample()
    cdef uint32_t logits_width
    cdef uint32_t best  # of the logits in logits_row: be_session_screen
    cdef float margin
    cdef bint busy  # a call is running without the GIL
    cdef object interruption  # what a signal handler raised during the run

    def __cinit__(self, Program program not None, uint32_t threads=1):
        self.program = program
        raise_status(be_session_create(&self.session, program.program, threads),
                     f"{threads} threads, {program.arena_bytes} + {program.state_bytes} bytes")
        cdef const be_program_header *header = be_program_info(program.program)
        cdef const be_port *port = be_program_port(program.program, header.input_count)
        self.logits_width = port.width
        be_session_poll(self.session, hear_signals, <void *>self)
        self.logits_row = <float *>calloc(port.width, sizeof(float))
        if self.logits_row == NULL:
            raise MemoryError(f"[engine] {port.width} logits")

    def __dealloc__(self):
        be_session_destroy(self.session)
        free(self.logits_row)

    @property
    def position(self):
        """Rows valid in the KV cache."""
        return be_session_position(self.session)

    @property
    def private_bytes(self):
        """Bytes beyond arena and state."""
        return be_session_bytes(self.session) + self.logits_width * sizeof(float)

    @property
    def blocks(self):
        """(address, bytes) of the arena and of the KV cache, each in mappings of its own."""
        return (
            (<size_t>be_session_block(self.session, BE_REGION_ARENA), self.program.arena_bytes),
            (<size_t>be_session_block(self.session, BE_REGION_STATE), self.program.state_bytes),
        )

    def profile(self, Profile profile):
        """Record the times of the runs from now on; ``None`` stops it.

        Raises
        ------
        ArgumentError
            When the profile has room for fewer threads.
        """
        self._enter()
        status = be_session_profile(self.session, NULL if profile is None else profile.profile)
        self.busy = False
        raise_status(status, "a profile of too few threads")
        self.sink = profile

    def residency(self, str mode not None, int file=-1, uint64_t file_offset=0):
        """Say what is kept of the weights in memory, once and before the first run.

        Parameters
        ----------
        mode : str
            One of `RESIDENCIES`.
        file : int
            Descriptor of the mapped file (duplicated), so that ``streamed`` can let go of its
            cached pages too; -1 to leave the page cache alone.
        file_offset : int
            Where its weights begin.

        Raises
        ------
        ArgumentError
            For an unknown mode, or when a mode has been set already; for streaming weights that
            are no view of an `mmap.mmap`: dropped pages of other memory are lost.
        DeviceUnsupported
            When the system, or its limit on locked memory, does not allow the mode.
        """
        cdef be_error error
        cdef be_status status
        cdef be_residency code
        error.what = b""
        if mode not in RESIDENCIES:
            raise errors.ArgumentError(
                f"[engine] expected residency {' or '.join(RESIDENCIES)}, got {mode!r}")
        code = <be_residency><int>RESIDENCIES.index(mode)
        owner = <object>self.program.weights_view.obj
        if mode == "streamed" and not (
                isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap)):
            raise errors.ArgumentError(
                "[engine] expected weights in a mapped file to stream them, got "
                f"{type(owner).__name__}")
        self._enter()
        with nogil:
            status = be_session_residency(self.session, code, file, file_offset, &error)
        self.busy = False
        raise_error(status, &error)

    def run(self, inputs, outputs, uint32_t n_tokens, uint32_t position=0, output_rows=None):
        """One forward pass.

        Parameters
        ----------
        inputs, outputs : sequence of buffers
            C-contiguous; input ``i`` holds ``n_tokens`` rows, output ``i`` (writable) has room for
            ``output_rows`` rows of the port's width.
        n_tokens, position : int
        output_rows : int, optional
            Trailing rows whose outputs are computed; all by default, 0 skips the tail.

        Raises
        ------
        ArgumentError
            Buffers too small or of the wrong number, or what `be_session_run` refuses.
        """
        cdef const be_program_header *header = be_program_info(self.program.program)
        cdef uint32_t rows = n_tokens if output_rows is None else output_rows
        cdef const void *in_pointers[16]
        cdef void *out_pointers[16]
        cdef Py_buffer views[16]
        cdef uint32_t held = 0
        cdef uint32_t i
        cdef be_status status
        cdef be_error error
        cdef bint writable
        cdef uint64_t needed
        error.what = b""
        if len(inputs) != header.input_count or len(outputs) != header.output_count:
            raise errors.ArgumentError(
                f"[engine] expected {header.input_count} inputs and {header.output_count} outputs, "
                f"got {len(inputs)} and {len(outputs)}")
        try:
            for i in range(header.input_count + header.output_count):
                writable = i >= header.input_count
                item = outputs[i - header.input_count] if writable else inputs[i]
                if not PyObject_CheckBuffer(item):
                    raise errors.ArgumentError(f"[engine] port {i} needs a buffer, got "
                                               f"{type(item).__name__}")
                PyObject_GetBuffer(item, &views[i], PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
                held += 1
                needed = row_bytes(be_program_port(self.program.program, i))
                needed *= rows if writable else n_tokens
                if <uint64_t>views[i].len < needed:
                    raise errors.ArgumentError(
                        f"[engine] port {i} expected {needed} bytes, got {views[i].len}")
                if writable:
                    out_pointers[i - header.input_count] = views[i].buf
                else:
                    in_pointers[i] = views[i].buf
            self._enter()
            be_session_screen(self.session, 0, 0)
            with nogil:
                status = be_session_run(self.session, n_tokens, position, rows, in_pointers,
                                        out_pointers, &error)
            self.busy = False
        finally:
            for i in range(held):
                PyBuffer_Release(&views[i])
        self._raise(status, &error)

    def step(self, int32_t token, uint32_t position, Sampler sampler=None, size_t n_recent=0):
        """Run one token through a token model; its logits stay in `logits`.

        Of a screened head only those are computed that ``sampler`` can depend on, with ``n_recent``
        ids to penalise; the others are -inf. Without a sampler, all.

        Raises
        ------
        ArgumentError
            For an id outside the vocabulary or a full context.
        """
        cdef const void *inputs[1]
        cdef void *outputs[1]
        cdef be_status status
        cdef be_error error
        error.what = b""
        self._require_token_model()
        inputs[0] = &token
        outputs[0] = self.logits_row
        self._enter()
        self._screen(sampler, n_recent)
        with nogil:
            status = be_session_run(self.session, 1, position, 1, inputs, outputs, &error)
        self._count(status, sampler, n_recent)
        self.busy = False
        self._raise(status, &error)

    def prefill(self, ids, uint32_t position, bint last=True, Sampler sampler=None,
                size_t n_recent=0):
        """Run one chunk of token ids (int32 buffer); the logits of its last row stay in `logits`
        when it is the last chunk (as those of `step`), otherwise the head is not computed at all.
        """
        cdef const void *inputs[1]
        cdef void *outputs[1]
        cdef Py_buffer view
        cdef be_status status
        cdef be_error error
        error.what = b""
        self._require_token_model()
        self._enter()
        try:
            PyObject_GetBuffer(ids, &view, PyBUF_SIMPLE)
            inputs[0] = view.buf
            outputs[0] = self.logits_row
            self._screen(sampler, n_recent)
            with nogil:
                status = be_session_run(self.session, <uint32_t>(view.len // 4), position, last,
                                        inputs, outputs, &error)
            if last:
                self._count(status, sampler, n_recent)
            PyBuffer_Release(&view)
        finally:
            self.busy = False
        self._raise(status, &error)

    cdef void _screen(self, Sampler sampler, size_t n_recent) noexcept:
        """Compute the logits the sampler needs in the next run, or all."""
        cdef uint32_t best = 0
        cdef float margin = 0
        if sampler is not None:
            be_sampler_needs(&sampler.parameters, n_recent, &best, &margin)
        be_session_screen(self.session, best, margin)

    cdef void _count(self, be_status status, Sampler sampler, size_t n_recent) noexcept:
        """Note what the logits of a run are good for, and its rows in the sampler's counts. A run
        that was refused leaves the logits as they were."""
        cdef uint64_t rows = 0
        cdef uint64_t rescored = 0
        if status == BE_ERR_ARGUMENT:
            return
        self.best = 0
        self.margin = 0
        be_session_screened(self.session, &rows, &rescored)
        if rows > 0 and sampler is not None:
            be_sampler_needs(&sampler.parameters, n_recent, &self.best, &self.margin)
            sampler.screened_rows += rows
            sampler.rescored_rows += rescored

    cdef int _require_logits(self, Sampler sampler, size_t n_recent) except -1:
        """Refuse to draw from what screening has left out."""
        cdef uint32_t best = 0
        cdef float margin = 0
        if self.best == 0:
            return 0
        be_sampler_needs(&sampler.parameters, n_recent, &best, &margin)
        if best == 0 or best > self.best or margin > self.margin:
            raise errors.ArgumentError(
                f"[engine] the logits were screened for the {self.best} largest, this sampler "
                f"needs {best if best else 'all'}")
        return 0

    cdef int _enter(self) except -1:
        """Refuse a second caller: another thread, a signal handler, the child of a fork."""
        if self.busy:
            raise errors.ArgumentError("[engine] this session is in use by another call")
        self.busy = True
        return 0

    cdef int _raise(self, be_status status, const be_error *error) except -1:
        """Raise what ended a run: the engine's error, or a signal handler's."""
        if status == BE_ERR_INTERRUPTED:
            interruption, self.interruption = self.interruption, None
            raise interruption
        return raise_error(status, error)

    cdef bint _hear_signals(self) noexcept:
        cdef long process = be_process_id()
        try:
            PyErr_CheckSignals()
            if be_process_id() != process:
                raise RuntimeError("[engine] a signal handler forked: this run is the parent's")
        except BaseException as interruption:
            self.interruption = interruption
            return False
        return True

    cdef int _require_token_model(self) except -1:
        cdef const be_program_header *header = be_program_info(self.program.program)
        cdef const be_port *port = be_program_port(self.program.program, 0)
        if (header.input_count != 1 or header.output_count != 1 or port.dtype != 3
                or port.width != 1):
            raise errors.ArgumentError("[engine] this model does not take token ids")
        return 0

    @property
    def logits(self):
        """The logits of the last `step` or `prefill`: a read-only float32 view, valid until the
        next one."""
        return memoryview(_LogitsView(self))

    def sample(self, Sampler sampler not None, recent=None):
        """Pick the next token from `logits`; ``recent`` is an int32 buffer of ids to penalise."""
        cdef Py_buffer view
        cdef int32_t token = 0
        cdef be_status status
        self._require_width(sampler)
        self._enter()
        try:
            view.buf = NULL
            view.len = 0
            if recent is not None:
                PyObject_GetBuffer(recent, &view, PyBUF_SIMPLE)
            try:
                self._require_logits(sampler, view.len // 4)
                with nogil:
                    status = be_sampler_next(sampler.sampler, &sampler.parameters,
                                             self.logits_row, <const int32_t *>view.buf,
                                             view.len // 4, &token)
            finally:
                if recent is not None:
                    PyBuffer_Release(&view)
        finally:
            self.busy = False
        raise_status(status, "no finite logit to choose from")
        return token

    def next(self, Sampler sampler not None, int32_t token, uint32_t position, recent=None):
        """`step` and `sample` in one: run a token, return the next one.

        Raises
        ------
        ArgumentError
            As for the two.
        """
        cdef const void *inputs[1]
        cdef void *outputs[1]
        cdef Py_buffer view
        cdef be_status status, sampled = BE_OK
        cdef be_error error
        error.what = b""
        self._require_token_model()
        self._require_width(sampler)
        self._enter()
        try:
            view.buf = NULL
            view.len = 0
            if recent is not None:
                PyObject_GetBuffer(recent, &view, PyBUF_SIMPLE)
            inputs[0] = &token
            outputs[0] = self.logits_row
            self._screen(sampler, view.len // 4)
            with nogil:
                status = be_session_run(self.session, 1, position, 1, inputs, outputs, &error)
                if status == BE_OK:
                    sampled = be_sampler_next(sampler.sampler, &sampler.parameters,
                                              self.logits_row, <const int32_t *>view.buf,
                                              view.len // 4, &token)
            self._count(status, sampler, view.len // 4)
            if recent is not None:
                PyBuffer_Release(&view)
        finally:
            self.busy = False
        self._raise(status, &error)
        raise_status(sampled, "no finite logit to choose from")
        return token

    cdef int _require_width(self, Sampler sampler) except -1:
        if sampler.vocab_size != self.logits_width:
            raise errors.ArgumentError(f"[engine] sampler for {sampler.vocab_size} tokens, model "
                                       f"has {self.logits_width}")
        return 0


cdef class _LogitsView:
    """Exports a session's logits row through the buffer protocol and keeps the session alive."""

    cdef Session owner
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]

    def __cinit__(self, Session owner):
        self.owner = owner

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("logits are read-only")
        self.shape[0] = self.owner.logits_width
        self.strides[0] = sizeof(float)
        buffer.buf = self.owner.logits_row
        buffer.format = b"f"
        buffer.internal = NULL
        buffer.itemsize = sizeof(float)
        buffer.len = self.owner.logits_width * sizeof(float)
        buffer.ndim = 1
        buffer.obj = self
        buffer.readonly = 1
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL


cdef class Sampler:
    """Seeded sampling over one vocabulary (see ``sampler.h`` for the order of the filters)."""

    cdef be_sampler *sampler
    cdef be_sampling parameters
    cdef readonly uint32_t vocab_size
    cdef readonly uint64_t screened_rows  # rows of screened heads in the runs for this sampler
    cdef readonly uint64_t rescored_rows  # those of them that were computed exactly

    def __cinit__(self, uint32_t vocab_size, uint64_t seed=0, float temperature=0.0,
                  uint32_t top_k=0, float top_p=1.0, float min_p=0.0,
                  float repetition_penalty=1.0):
        self.vocab_size = vocab_size
        self.parameters = be_sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        raise_status(be_sampler_create(&self.sampler, vocab_size, seed), f"{vocab_size} tokens")

    def __dealloc__(self):
        be_sampler_destroy(self.sampler)

    @property
    def private_bytes(self):
        return be_sampler_bytes(self.sampler)

    def pick(self, const float[::1] logits not None, recent=None):
        """Pick the next token from a row of logits that no `Session` holds.

        Raises
        ------
        ArgumentError
            When the row has another width.
        OutOfRange
            When it has no finite logit.
        """
        cdef const int32_t[::1] ids
        cdef const int32_t *penalised = NULL
        cdef size_t n = 0
        cdef int32_t token = 0
        if logits.shape[0] != self.vocab_size:
            raise errors.ArgumentError(f"[engine] sampler for {self.vocab_size} tokens, logits of "
                                       f"{logits.shape[0]}")
        if recent is not None and len(recent) > 0:
            ids = recent
            penalised = &ids[0]
            n = ids.shape[0]
        raise_status(be_sampler_next(self.sampler, &self.parameters, &logits[0], penalised, n,
                                     &token), "no finite logit to choose from")
        return token


include "tokenizer.pxi"


def op_table():
    """Return the instruction set: name -> (opcode, dims, scalars, operands), names as tuples."""
    table = {}
    cdef const be_op_row *row = be_op_rows
    while row.name != NULL:
        table[row.name.decode()] = (
            row.opcode,
            tuple(row.dims.decode().split()),
            tuple(row.scalars.decode().split()),
            tuple(row.operands.decode().split()),
        )
        row += 1
    return table


def kv_layout(uint32_t dtype, uint32_t head_dim, uint32_t positions):
    """How one head lies in a KV cache, in bytes (``engine/kv_cache.h``): a dict of row_bytes,
    scales_at (from the head's start; the end of a head without scales) and head_bytes."""
    cdef be_kv_layout layout = be_kv_layout_of(dtype, head_dim, positions)
    return {
        "row_bytes": layout.row_bytes,
        "scales_at": layout.scales_at,
        "head_bytes": layout.head_bytes,
    }


def kv_window_rows(uint32_t window, uint32_t sinks, uint32_t max_tokens):
    """Return the rows of a KV cache with a window (``engine/kv_cache.h``)."""
    return be_kv_window_rows(window, sinks, max_tokens)


def kv_cache_bytes(uint32_t dtype, uint32_t kv_heads, uint32_t head_dim, uint32_t positions):
    """Return the bytes of one KV cache tensor in the state."""
    return be_kv_cache_bytes(dtype, kv_heads, head_dim, positions)


def cpu_isas():
    """Return the instruction sets of this CPU that have kernels, as name -> requirement."""
    cdef uint32_t mask = be_cpu_detect()
    return {be_isa_name(i).decode(): be_isa_requirement(i).decode()
            for i in range(BE_ISA_COUNT) if mask >> i & 1}


def kernel_isas():
    """Return which instruction set serves each kernel, as kernel -> ISA name."""
    cdef const be_kernels *kernels = be_engine_kernels()
    return {be_kernel_name(i).decode(): be_isa_name(kernels.isa[i]).decode()
            for i in range(BE_KERNEL_COUNT)}


def set_cpu(name=None):
    """Cap the instruction set (``None``: all of this CPU's). Not while a session is running.

    Raises
    ------
    DeviceUnsupported
        For an unknown name, or one this CPU lacks.
    """
    raw = None if name is None else name.encode()
    cdef const char *text = NULL
    if raw is not None:
        text = raw
    raise_status(be_engine_init(text), f"BITNET_EDGE_CPU={name}, this CPU has "
                 f"{', '.join(cpu_isas())}")


def cpu_available():
    """CPUs this process may use, by affinity and cgroup quota."""
    return be_cpu_available()


def pool_workers():
    """Worker threads in existence."""
    return be_pool_workers()


MAX_THREADS = BE_MAX_THREADS  # of a session

set_cpu(os.environ.get("BITNET_EDGE_CPU") or None)
