# SPDX-License-Identifier: MIT
# The face of tokenizer.h, included by _engine.pyx. bitnet_edge/tokenizer.py is what users see.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.unicode cimport PyUnicode_DecodeUTF8Stateful
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc


cdef extern from "tokenizer.h":
    ctypedef struct be_tokenizer:
        pass

    unsigned BE_TOKEN_SPECIAL
    unsigned BE_TOK_ADD_SPECIAL
    unsigned BE_TOK_PARSE_SPECIAL
    int BE_TOK_ERR_CAPACITY "BE_ERR_CAPACITY"

    int be_tokenizer_open(be_tokenizer **out, const uint8_t *section, size_t size,
                          const char **what) nogil
    void be_tokenizer_close(be_tokenizer *tokenizer) nogil
    int32_t be_tokenizer_vocab_size(const be_tokenizer *tokenizer) nogil
    int32_t be_tokenizer_bos(const be_tokenizer *tokenizer) nogil
    size_t be_tokenizer_eos_count(const be_tokenizer *tokenizer) nogil
    int32_t be_tokenizer_eos(const be_tokenizer *tokenizer, size_t index) nogil
    size_t be_tokenizer_bytes(const be_tokenizer *tokenizer) nogil
    int be_tokenizer_encode(const be_tokenizer *tokenizer, const uint8_t *utf8, size_t n,
                            unsigned flags, int32_t *ids, size_t capacity, size_t *count) nogil
    int be_tokenizer_token_bytes(const be_tokenizer *tokenizer, int32_t token,
                                 const uint8_t **data, size_t *n, unsigned *token_flags) nogil


cdef class TokenizerCore:
    """A verified tokenizer section, read in place.

    Parameters
    ----------
    section : buffer
        Kept, and read where it lies, for as long as this object lives.

    Raises
    ------
    FormatError
        When the section is malformed; the message names the rule it breaks.
    """

    cdef be_tokenizer *tokenizer
    cdef Py_buffer view

    def __cinit__(self, section):
        cdef const char *what = NULL
        cdef int status
        PyObject_GetBuffer(section, &self.view, PyBUF_SIMPLE)
        with nogil:
            status = be_tokenizer_open(&self.tokenizer, <const uint8_t *>self.view.buf,
                                       <size_t>self.view.len, &what)
        if status != 0:
            raise_status(status, what.decode())

    def __dealloc__(self):
        be_tokenizer_close(self.tokenizer)
        PyBuffer_Release(&self.view)

    @property
    def vocab_size(self):
        return be_tokenizer_vocab_size(self.tokenizer)

    @property
    def bos_id(self):
        return be_tokenizer_bos(self.tokenizer)

    @property
    def eos_ids(self):
        cdef size_t count = be_tokenizer_eos_count(self.tokenizer)
        return tuple(be_tokenizer_eos(self.tokenizer, i) for i in range(count))

    @property
    def private_bytes(self):
        return be_tokenizer_bytes(self.tokenizer)

    def encode(self, bytes utf8, bint add_special, bint parse_special):
        """Return the ids of UTF-8 text."""
        cdef const uint8_t *text = utf8
        cdef size_t n = len(utf8)
        cdef unsigned flags = 0
        cdef size_t capacity = n // 2 + 64, count = 0
        cdef int32_t *ids = NULL
        cdef int status = BE_TOK_ERR_CAPACITY
        if add_special:
            flags |= BE_TOK_ADD_SPECIAL
        if parse_special:
            flags |= BE_TOK_PARSE_SPECIAL
        try:
            while status == BE_TOK_ERR_CAPACITY:  # at most twice: count is then what it takes
                capacity = max(capacity, count)
                free(ids)
                ids = <int32_t *>malloc(capacity * sizeof(int32_t))
                if ids == NULL:
                    raise MemoryError
                with nogil:
                    status = be_tokenizer_encode(self.tokenizer, text, n, flags, ids, capacity,
                                                 &count)
            if status != 0:
                raise_status(status, f"{n} bytes of text, at byte {count}")
            return [ids[i] for i in range(count)]
        finally:
            free(ids)

    def token_bytes(self, int32_t token):
        """Return the bytes a token decodes to."""
        cdef const uint8_t *data = NULL
        cdef size_t n = 0
        cdef unsigned flags = 0
        raise_status(be_tokenizer_token_bytes(self.tokenizer, token, &data, &n, &flags),
                     f"no token {token} in 0 .. {self.vocab_size - 1}")
        return data[:n]

    cdef int _find(self, int64_t token, const uint8_t **data, size_t *n,
                   unsigned *flags) except -1:
        """Look a token up; False where the vocabulary has none of the id."""
        if token < 0:
            raise errors.TokenizerError(f"[tokenizer] token ids are not negative, got {token}")
        return (token < be_tokenizer_vocab_size(self.tokenizer)
                and be_tokenizer_token_bytes(self.tokenizer, <int32_t>token, data, n, flags) == 0)

    def token_flags(self, int32_t token):
        """Return a token's flags: 1 special, 2 added, 4 absent."""
        cdef const uint8_t *data = NULL
        cdef size_t n = 0
        cdef unsigned flags = 0
        raise_status(be_tokenizer_token_bytes(self.tokenizer, token, &data, &n, &flags),
                     f"no token {token} in 0 .. {self.vocab_size - 1}")
        return flags


cdef class TextStream:
    """Text of token ids as they come, in whole characters."""

    cdef TokenizerCore core
    cdef bint skip_special
    cdef bytes begun  # of a character

    def __cinit__(self, TokenizerCore core not None, bint skip_special):
        self.core = core
        self.skip_special = skip_special
        self.begun = b""

    def push(self, int64_t token):
        """Return the text that a token completes."""
        cdef const uint8_t *data = NULL
        cdef size_t n = 0
        cdef unsigned flags = 0
        cdef Py_ssize_t used = 0
        if not self.core._find(token, &data, &n, &flags) or (
                self.skip_special and flags & BE_TOKEN_SPECIAL):
            return ""
        if not self.begun:
            text = PyUnicode_DecodeUTF8Stateful(<const char *>data, n, "replace", &used)
            if used < <Py_ssize_t>n:
                self.begun = data[used:n]
            return text
        together = self.begun + data[:n]
        text = PyUnicode_DecodeUTF8Stateful(together, len(together), "replace", &used)
        self.begun = together[used:]
        return text

    def flush(self):
        """End the text: U+FFFD for a character that was begun."""
        tail, self.begun = self.begun.decode(errors="replace"), b""
        return tail
