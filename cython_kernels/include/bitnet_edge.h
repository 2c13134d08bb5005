// SPDX-License-Identifier: MIT
// The C API of the engine, callable from Cython, Swift and Kotlin alike.
//
//   be_program  verified, immutable, shared between threads; points into the caller's mapping
//   be_session  arena and KV cache of one caller; runs a program
//
// Nothing here prints, aborts, exits or keeps global state beyond the thread pool and the
// dispatch table. A program that be_program_open accepts can be run without any further check:
// every operand of every instruction lies inside its region for every legal run.
#ifndef BITNET_EDGE_H
#define BITNET_EDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define BE_PROGRAM_MAGIC "BEPR"

enum {
  BE_PROGRAM_VERSION = 1,
  BE_MAX_INSTRUCTIONS = 8192,
  BE_MAX_PORTS = 16,          // inputs + outputs
  BE_MAX_DIMENSION = 1 << 24, // of any width, rows or vocabulary
  BE_MAX_POSITIONS = 1 << 20, // of the KV cache
  BE_MAX_TOKENS = 1 << 16,    // of one run
  BE_MAX_BEST = 256,          // largest logits a screened head is asked for
  BE_SCREEN_ROWS = 32,        // rows a screened head has for each of them
  BE_OPERAND_ALIGNMENT = 64,
  BE_MAX_OPERANDS = 8
};

typedef enum be_dtype {
  BE_F32 = 0,
  BE_F16 = 1,
  BE_BF16 = 2,
  BE_I32 = 3,
  BE_PORT_DTYPE_COUNT, // inputs and outputs are of the types above
  BE_I8 = 4,           // codes with scales, of KV caches only: engine/kv_cache.h
  BE_I4 = 5
} be_dtype;

typedef enum be_region {
  BE_REGION_NONE = 0, // operand absent
  BE_REGION_WEIGHTS,  // the file's weights section, read only
  BE_REGION_ARENA,    // activations of one run
  BE_REGION_STATE,    // KV cache, kept between runs
  BE_REGION_INPUT,    // caller's buffers, bound at each run
  BE_REGION_OUTPUT,
  BE_REGION_COUNT
} be_region;

typedef enum be_opcode {
#define BE_OP(name, opcode, dims, scalars, operands) BE_OP_##name = opcode,
#include "op_table.def"
#undef BE_OP
} be_opcode;

// The instruction runs on the last `output_rows` tokens of the run only (final norm and head).
enum { BE_FLAG_OUTPUT_ROWS = 1 };

// 128 bytes, little-endian, as stored.
typedef struct be_instruction {
  uint16_t opcode;
  uint16_t flags;
  uint32_t dim[7];
  float scalar[4];
  uint32_t reserved[4];              // zero
  uint64_t operand[BE_MAX_OPERANDS]; // region << 56 | port << 48 | byte offset
} be_instruction;

// An input or output: n_tokens (or output_rows) rows of `width` elements.
typedef struct be_port {
  uint32_t dtype;
  uint32_t width;
} be_port;

// 64 bytes, little-endian, as stored; followed by BE_MAX_PORTS ports and the instructions.
typedef struct be_program_header {
  uint8_t magic[4];
  uint32_t version;
  uint32_t instruction_count;
  uint32_t max_tokens;    // of one run: the prefill chunk
  uint32_t max_positions; // of a sequence; without a window, rows of the KV cache
  uint32_t input_count;
  uint32_t output_count;
  uint32_t reserved0; // zero
  uint64_t arena_bytes;
  uint64_t state_bytes;
  uint32_t window;      // positions that a token sees, its own included; 0: all
  uint32_t sinks;       // with a window: first positions that are seen for ever
  uint8_t reserved1[8]; // zero
} be_program_header;

// Where and why a call failed: `what` is a static text, never NULL on failure.
typedef struct be_error {
  const char *what;
  int32_t instruction; // -1: not about one instruction
  int32_t operand;     // -1: not about one operand
  uint64_t expected;
  uint64_t found;
} be_error;

typedef struct be_program be_program;
typedef struct be_session be_session;

// Verifies `section` (the program) against `weights_size` and builds a program that points into
// the weights, which must outlive it and be 64-byte aligned; the section is copied.
be_status be_program_open(be_program **out, const uint8_t *section, size_t section_size,
                          const uint8_t *weights, size_t weights_size, be_error *error);
void be_program_close(be_program *program);
const be_program_header *be_program_info(const be_program *program);
// Port i: inputs first, then outputs. NULL beyond the last.
const be_port *be_program_port(const be_program *program, uint32_t index);
// Instruction `index`, as verified. NULL beyond the last.
const be_instruction *be_program_instruction(const be_program *program, uint32_t index);
size_t be_program_bytes(const be_program *program);         // private memory it holds
uint32_t be_program_phase_count(const be_program *program); // barriers of one run

// Allocates arena and state, zeroed. `threads` >= 1 participants per run.
be_status be_session_create(be_session **out, const be_program *program, uint32_t threads);
void be_session_destroy(be_session *session);
size_t be_session_bytes(const be_session *session); // beyond arena and state
// Begin of the arena (BE_REGION_ARENA) or state (BE_REGION_STATE), for measuring its pages.
const void *be_session_block(const be_session *session, be_region region);
uint32_t be_session_position(const be_session *session); // rows valid in the KV cache

// What is kept of the weights in memory (engine/residency.h). A session is BE_RESIDENCY_MAPPED
// until told otherwise, once and before its first run. `file` is the mapped file (-1: unknown),
// whose weights begin at `file_offset`; it is duplicated. To stream weights they must lie in a
// mapping of a file: the pages that are dropped of other memory, with what lies beside the weights,
// lose their contents. Locks are not counted: the first resident session of a program to be
// destroyed unlocks the weights of all.
typedef enum be_residency {
  BE_RESIDENCY_MAPPED,
  BE_RESIDENCY_RESIDENT,
  BE_RESIDENCY_STREAMED,
  BE_RESIDENCY_COUNT
} be_residency;
be_status be_session_residency(be_session *session, be_residency mode, int file,
                               uint64_t file_offset, be_error *error);

// One head's part of a KV cache, in bytes (engine/kv_cache.h has the rows).
typedef struct be_kv_layout {
  uint64_t row_bytes;   // of elements or codes
  uint64_t scale_bytes; // of one row; 0 for floats
  uint64_t scales_at;   // from the head's start
  uint64_t head_bytes;
} be_kv_layout;

// `dtype` is BE_F32, BE_F16, BE_I8 or BE_I4.
be_kv_layout be_kv_layout_of(uint32_t dtype, uint32_t head_dim, uint32_t positions);

// Bytes of one cache tensor (keys or values of one layer) in the state; dtype is BE_F32, BE_F16,
// BE_I8 or BE_I4. Planner, verifier and engine all ask here or what this is made of.
uint64_t be_kv_cache_bytes(uint32_t dtype, uint32_t kv_heads, uint32_t head_dim,
                           uint32_t positions);

// Rows of a KV cache with a window; see engine/kv_cache.h.
uint64_t be_kv_window_rows(uint32_t window, uint32_t sinks, uint32_t max_tokens);

// One forward pass of n_tokens rows at `position` (<= rows valid so far; smaller rewinds).
// inputs[i] has n_tokens rows, outputs[i] has output_rows rows (0 skips the tail entirely).
// One caller at a time per session.
be_status be_session_run(be_session *session, uint32_t n_tokens, uint32_t position,
                         uint32_t output_rows, const void *const *inputs, void *const *outputs,
                         be_error *error);

// What runs from now on compute of a screened head (engine/head_screen.h; other heads are always
// computed whole): the `best` largest logits, all that equal one of these, and all less than
// `margin` below the last of them; -inf stands for the others, but for some that could not be told
// from the largest. With best = 0, one beyond BE_MAX_BEST or a negative margin: every logit; also
// in a run of which an output is narrower than BE_SCREEN_ROWS * best, where to find the largest
// would cost more than to compute all.
void be_session_screen(be_session *session, uint32_t best, float margin);
// Rows of screened heads in the last run, and how many of them were computed exactly. Both 0 when
// the run computed all logits, or none.
void be_session_screened(const be_session *session, uint64_t *rows, uint64_t *rescored);

// Asked during long runs, on the calling thread, about every 20 ms: false ends the run with
// BE_ERR_INTERRUPTED, within the time of one work item. The outputs are then undefined, and the KV
// cache is valid up to the run's position. Must not use the session; after a fork() in here, the
// child must get false.
typedef bool be_poll(void *context);
be_status be_session_poll(be_session *session, be_poll *poll, void *context); // NULL: not asked

// Records the times of the session's runs from now on (profile.h); NULL stops it. The profile must
// outlive its use and have room for the session's threads.
struct be_profile;
be_status be_session_profile(be_session *session, struct be_profile *profile);

// Sets the dispatch table for the whole process from the CPU's sets and the cap `name` (NULL: no
// cap). Called once before the first run; later calls are for tests, with no run in progress.
be_status be_engine_init(const char *name);

struct be_kernels;
const struct be_kernels *be_engine_kernels(void);

#endif
