// SPDX-License-Identifier: MIT
#define _GNU_SOURCE // madvise, posix_fadvise
#if defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif
#include "residency.h"

#include <string.h>

#if defined(__linux__) || defined(__APPLE__)
#define CAN_ADVISE 1
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

// Weights that an instruction reads from end to end, in the order of its operands, and the table of
// which it reads single rows: that one takes no part in reading ahead.
typedef struct weight_ranges {
  uint32_t count;
  uint64_t offset[BE_MAX_OPERANDS], bytes[BE_MAX_OPERANDS], total;
  uint64_t rows_offset, rows_bytes; // 0 bytes: none
} weight_ranges;

static weight_ranges ranges_of(const be_program *program, uint32_t instruction, bool screened) {
  const be_instruction *in = &program->instructions[instruction];
  be_operand_spec specs[BE_MAX_OPERANDS];
  be_instruction_specs(in, &program->header, specs, NULL); // verified already
  weight_ranges r = {0};
  for (uint32_t i = 0; i < BE_MAX_OPERANDS; i++) {
    if (specs[i].access == BE_UNUSED || be_operand_region(in->operand[i]) != BE_REGION_WEIGHTS)
      continue;
    uint64_t offset = be_operand_offset(in->operand[i]);
    // In a run that wants all logits a screened head is a dense one.
    if (specs[i].by_row && (screened || in->opcode != BE_OP_screened_linear)) {
      r.rows_offset = offset;
      r.rows_bytes = specs[i].bytes;
      continue;
    }
    r.offset[r.count] = offset;
    r.bytes[r.count] = specs[i].bytes;
    r.total += specs[i].bytes;
    r.count++;
  }
  return r;
}

static uint64_t phase_bytes(const be_stream *stream, uint32_t phase) {
  const uint32_t *begin = stream->program->phase_begin;
  uint64_t total = 0;
  for (uint32_t i = begin[phase]; i < begin[phase + 1]; i++)
    total += ranges_of(stream->program, i, stream->screened).total;
  return total;
}

uint32_t be_stream_steps(const be_stream *stream, uint32_t phase) {
  uint64_t steps = (phase_bytes(stream, phase) + BE_STREAM_STEP - 1) / BE_STREAM_STEP;
  return steps < 1 ? 1 : steps > UINT32_MAX ? UINT32_MAX : (uint32_t)steps;
}

#ifdef CAN_ADVISE

static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

// The pages that hold [offset, offset + bytes) of the weights: those that begin before the end.
static void *pages_of(const be_program *program, uint64_t offset, uint64_t bytes, size_t *size) {
  uintptr_t page = page_bytes(), begin = (uintptr_t)program->weights + (uintptr_t)offset;
  uintptr_t first = begin / page * page;
  *size = (size_t)(begin + (uintptr_t)bytes - first);
  return (void *)first;
}

static void advise(const be_program *program, uint64_t offset, uint64_t bytes, int advice) {
  size_t size;
  void *pages = pages_of(program, offset, bytes, &size);
  madvise(pages, size, advice); // a hint: where it is refused, pages are read and dropped later
}

// The page that holds the end stays: what follows is still to be used.
static void drop(const be_stream *stream, uint64_t offset, uint64_t bytes) {
  size_t size, page = page_bytes();
  uint8_t *pages = pages_of(stream->program, offset, bytes, &size);
  size = size / page * page;
  if (size == 0)
    return;
  madvise(pages, size, MADV_DONTNEED);
#ifdef __linux__
  if (stream->file >= 0)
    posix_fadvise(stream->file,
                  (off_t)(stream->file_offset + (uint64_t)(pages - stream->program->weights)),
                  (off_t)size, POSIX_FADV_DONTNEED);
#endif
}

// Tables of which rows are read here and there, unless a linear reads them too, from the first row
// to the last. All are told in one pass over the program, then the linears' in another: a hostile
// program has thousands of both.
static void advise_tables(const be_program *program) {
  for (uint32_t i = 0; i < program->header.instruction_count; i++) {
    weight_ranges r = ranges_of(program, i, true);
    if (r.rows_bytes > 0)
      advise(program, r.rows_offset, r.rows_bytes, MADV_RANDOM);
  }
  for (uint32_t i = 0; i < program->header.instruction_count; i++) {
    weight_ranges r = ranges_of(program, i, true);
    for (uint32_t j = 0; j < r.count; j++)
      advise(program, r.offset[j], r.bytes[j], MADV_NORMAL);
  }
}

be_status be_residency_apply(const be_program *program, be_residency mode, int file,
                             uint64_t file_offset, be_stream *stream, be_error *error) {
  *stream = (be_stream){.program = program, .file = -1, .file_offset = file_offset};
  if (mode == BE_RESIDENCY_RESIDENT) {
    size_t size;
    void *pages = pages_of(program, 0, program->weights_bytes, &size);
    if (mlock(pages, size) != 0)
      return be_fail(error, BE_ERR_RESIDENCY, "mlock", -1, -1, size, 0);
    return BE_OK;
  }
  if (mode == BE_RESIDENCY_MAPPED) {
    advise_tables(program);
    return BE_OK;
  }
  // Only what is asked for: the system's own read-ahead, of megabytes on some storage, goes beyond
  // the window and brings back what was dropped.
  advise(program, 0, program->weights_bytes, MADV_RANDOM);
  if (file >= 0) {
    stream->file = fcntl(file, F_DUPFD_CLOEXEC, 0);
    if (stream->file < 0)
      return be_fail(error, BE_ERR_RESIDENCY, "file descriptor", -1, -1, 0, (uint64_t)file);
  }
  return BE_OK;
}

void be_residency_release(const be_program *program, be_residency mode, be_stream *stream) {
  if (mode == BE_RESIDENCY_RESIDENT) {
    size_t size;
    void *pages = pages_of(program, 0, program->weights_bytes, &size);
    munlock(pages, size);
  }
  if (mode == BE_RESIDENCY_STREAMED && stream->file >= 0)
    close(stream->file);
}

// Linux cuts a request silently at the read-ahead size of the storage, 128 KB by default.
static void request(const be_program *program, uint64_t offset, uint64_t bytes) {
  const uint64_t most = 128 << 10;
  for (; bytes > 0; offset += most, bytes -= bytes < most ? bytes : most)
    advise(program, offset, bytes < most ? bytes : most, MADV_WILLNEED);
}

static void read_ahead(be_stream *stream) {
  while (stream->ahead < BE_STREAM_AHEAD && stream->ahead_instruction < stream->end_instruction) {
    weight_ranges r = ranges_of(stream->program, stream->ahead_instruction, stream->screened);
    uint64_t position = 0, wanted = BE_STREAM_AHEAD - stream->ahead;
    for (uint32_t i = 0; i < r.count && wanted > 0; i++) {
      uint64_t skipped = stream->ahead_bytes > position ? stream->ahead_bytes - position : 0;
      if (skipped < r.bytes[i]) {
        uint64_t bytes = r.bytes[i] - skipped < wanted ? r.bytes[i] - skipped : wanted;
        request(stream->program, r.offset[i] + skipped, bytes);
        stream->ahead_bytes += bytes;
        stream->ahead += bytes;
        wanted -= bytes;
      }
      position += r.bytes[i];
    }
    if (stream->ahead_bytes >= r.total) {
      stream->ahead_instruction++;
      stream->ahead_bytes = 0;
    }
  }
}

void be_stream_begin(be_stream *stream, uint32_t end, bool screened) {
  stream->screened = screened;
  stream->ahead_instruction = 0;
  stream->end_instruction = end;
  stream->ahead_bytes = stream->ahead = 0;
  read_ahead(stream);
}

// total * step / steps, of which the product may be beyond 64 bits.
static uint64_t part_of(uint64_t total, uint32_t step, uint32_t steps) {
  return total / steps * step + total % steps * step / steps;
}

void be_stream_done(be_stream *stream, uint32_t phase, uint32_t step, uint32_t steps) {
  const be_program *program = stream->program;
  uint64_t total = phase_bytes(stream, phase), position = 0;
  uint64_t begin = part_of(total, step, steps), end = part_of(total, step + 1, steps);
  for (uint32_t i = program->phase_begin[phase]; i < program->phase_begin[phase + 1]; i++) {
    weight_ranges r = ranges_of(program, i, stream->screened);
    if (r.rows_bytes > 0) // few pages, but of every pass others
      drop(stream, r.rows_offset, r.rows_bytes);
    for (uint32_t j = 0; j < r.count; j++) {
      uint64_t low = begin > position ? begin - position : 0, high = end - position;
      if (end > position && low < r.bytes[j])
        drop(stream, r.offset[j] + low, (high < r.bytes[j] ? high : r.bytes[j]) - low);
      position += r.bytes[j];
    }
  }
  stream->ahead -= end - begin < stream->ahead ? end - begin : stream->ahead;
  read_ahead(stream);
}

#else

be_status be_residency_apply(const be_program *program, be_residency mode, int file,
                             uint64_t file_offset, be_stream *stream, be_error *error) {
  *stream = (be_stream){.program = program, .file = file, .file_offset = file_offset};
  if (mode != BE_RESIDENCY_MAPPED)
    return be_fail(error, BE_ERR_RESIDENCY, "this system", -1, -1, BE_RESIDENCY_MAPPED, mode);
  return BE_OK;
}

void be_residency_release(const be_program *program, be_residency mode, be_stream *stream) {
  (void)program, (void)mode, (void)stream;
}

void be_stream_begin(be_stream *stream, uint32_t end, bool screened) {
  (void)stream, (void)end, (void)screened;
}

void be_stream_done(be_stream *stream, uint32_t phase, uint32_t step, uint32_t steps) {
  (void)stream, (void)phase, (void)step, (void)steps;
}

#endif
