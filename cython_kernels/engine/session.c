// SPDX-License-Identifier: MIT
// Sessions: arena, KV cache, and the order in which a pass runs. Every phase's work items are
// shared out among the threads (work_share.h), a barrier separates phases that are shared.
#include <stdlib.h>

#include "block.h"
#include "profile.h"
#include "program_run.h"
#include "residency.h"
#include "thread_pool.h"
#include "work_share.h"

// Runs that touch less take some 20 ms on the slowest board, and are not polled.
#define POLLED_BYTES (UINT64_C(16) << 20)
#define POLL_NS (UINT64_C(20) * 1000 * 1000)

enum { ASKS = 16 };

struct be_session {
  const be_program *program;
  be_block arena, state;
  be_work_share *share; // of the phase that is running
  void *share_block;
  be_profile *profile; // NULL: not recorded
  be_poll *poll;       // NULL: not asked
  void *poll_context;
  be_residency residency;
  be_stream stream; // when the weights are streamed
  uint32_t threads;
  uint32_t valid_positions;
  uint32_t kept_from; // the first position that a cache with a window still holds, sinks aside
  uint32_t best;      // be_session_screen
  float margin;
  _Atomic uint64_t screened, rescored; // of the last run
};

// What the participants of one pass share.
typedef struct job {
  be_pass pass;
  be_work_share *share;
  be_profile *profile;
  be_poll *poll; // NULL: not in this run
  void *poll_context;
  uint64_t polled_ns;    // when, last; of the calling thread
  atomic_bool cancelled; // every participant walks on to the end, computing nothing
  be_stream *stream;     // NULL: the weights are not streamed
} job;

static be_kernels dispatch; // set by be_engine_init before the first run

be_status be_engine_init(const char *name) {
  uint32_t mask = be_cpu_detect();
  if (name) {
    be_status status = be_cpu_cap(name, mask, &mask);
    if (status != BE_OK)
      return status;
  }
  be_kernels_init(&dispatch, mask);
  return BE_OK;
}

const be_kernels *be_engine_kernels(void) { return &dispatch; }

// The phases to run: all, or those before the tail when no output row is wanted.
static bool phase_wanted(const job *j, uint32_t phase) {
  const be_program *program = j->pass.program;
  if (phase == program->phase_count)
    return false;
  const be_instruction *first = &program->instructions[program->phase_begin[phase]];
  return j->pass.output_rows > 0 || !(first->flags & BE_FLAG_OUTPUT_ROWS);
}

static void ask_to_go_on(job *j) {
  uint64_t now = be_profile_now();
  if (now - j->polled_ns < POLL_NS)
    return;
  if (!j->poll(j->poll_context))
    atomic_store_explicit(&j->cancelled, true, memory_order_relaxed);
  j->polled_ns = be_profile_now();
}

// What the calling thread (participant 0) does before each step that it takes part in; the others
// may be on their way to it, or ahead.
static void before_step(job *j, unsigned thread) {
  if (j->poll && thread == 0)
    ask_to_go_on(j);
}

// Items are numbered through the phase's instructions.
static size_t phase_items(const job *j, uint32_t phase) {
  const be_program *program = j->pass.program;
  size_t total = 0;
  for (uint32_t i = program->phase_begin[phase]; i < program->phase_begin[phase + 1]; i++)
    total += be_item_count(&j->pass, &program->instructions[i]);
  return total;
}

// A phase is done in one step, or, where its weights are streamed and many, in several: each a
// range of its items.
typedef struct step {
  uint32_t phase, index, count;
} step;

static uint32_t step_count(const job *j, uint32_t phase) {
  return j->stream ? be_stream_steps(j->stream, phase) : 1;
}

static size_t step_begin(step s, size_t items) {
  return (size_t)((uint64_t)items * s.index / s.count); // items < 2^32
}

static size_t step_end(step s, size_t items) {
  return step_begin((step){s.phase, s.index + 1, s.count}, items);
}

// Between the steps of a pass: one participant, while the others wait or have not begun. Nothing is
// read for what will not be computed.
static void step_done(const job *j, step s) {
  if (j->stream && !atomic_load_explicit(&j->cancelled, memory_order_relaxed))
    be_stream_done(j->stream, s.phase, s.index, s.count);
}

// What one participant remembers of the instruction whose items it is doing.
typedef struct worker {
  job *job;
  unsigned thread;
  uint32_t instruction;
  size_t first, count; // its items
  uint64_t begin;      // of its share of them, when that is recorded
} worker;

static worker worker_of(job *j, unsigned thread, uint32_t phase) {
  uint32_t first = j->pass.program->phase_begin[phase];
  size_t count = be_item_count(&j->pass, &j->pass.program->instructions[first]);
  return (worker){j, thread, first, 0, count, 0};
}

static void worker_leaves(worker *w) {
  if (w->begin)
    be_profile_add(w->job->profile, w->thread, w->instruction, w->begin);
  w->begin = 0;
}

static void run_phase_item(worker *w, uint32_t phase, size_t item) {
  const be_program *program = w->job->pass.program;
  if (item - w->first >= w->count) { // also when item < first
    worker_leaves(w);
    if (item < w->first)
      *w = worker_of(w->job, w->thread, phase);
    while (item - w->first >= w->count) {
      w->first += w->count;
      w->count = be_item_count(&w->job->pass, &program->instructions[++w->instruction]);
    }
  }
  if (w->job->profile && !w->begin)
    w->begin = be_profile_now();
  // Of many tokens an instruction may take long: it is asked about ASKS times within.
  if (w->job->poll && w->thread == 0 && w->job->pass.n_tokens > 1 &&
      (item - w->first) % (w->count / ASKS + 1) == 0)
    ask_to_go_on(w->job);
  if (!atomic_load_explicit(&w->job->cancelled, memory_order_relaxed))
    be_run_item(&w->job->pass, &program->instructions[w->instruction], item - w->first);
}

static void run_whole_phase(job *j, uint32_t phase, unsigned thread) {
  size_t items = phase_items(j, phase), item = 0;
  worker w = worker_of(j, thread, phase);
  step s = {phase, 0, step_count(j, phase)};
  for (; s.index < s.count; s.index++) {
    before_step(j, thread);
    for (size_t end = step_end(s, items); item < end; item++)
      run_phase_item(&w, phase, item);
    step_done(j, s);
  }
  worker_leaves(&w);
}

static void run_alone(job *j) {
  for (uint32_t phase = 0; phase_wanted(j, phase); phase++)
    run_whole_phase(j, phase, 0);
}

// Takes items of the step until none is left.
static void run_step_share(job *j, step s, size_t first, unsigned thread, unsigned n_threads) {
  worker w = worker_of(j, thread, s.phase);
  size_t item;
  while (be_work_take(j->share, thread, n_threads, &item))
    run_phase_item(&w, s.phase, first + item);
  worker_leaves(&w);
}

// The first phase from `phase` on with an instruction that can be shared out.
static uint32_t next_shared_phase(const job *j, uint32_t phase) {
  const be_program *program = j->pass.program;
  for (; phase_wanted(j, phase); phase++)
    for (uint32_t i = program->phase_begin[phase]; i < program->phase_begin[phase + 1]; i++)
      if (be_item_count(&j->pass, &program->instructions[i]) > 1)
        return phase;
  return phase;
}

// Phases of single items (of one token: norms, sums, rotations, appends) are not worth a barrier
// each: the last participant to leave the step before does them while the others wait.
static void run_share(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  job *j = context;
  if (n_threads == 1) {
    run_alone(j);
    return;
  }
  bool last = thread == 0;
  for (uint32_t phase = 0;; phase++) {
    uint32_t shared = next_shared_phase(j, phase);
    for (; last && phase < shared; phase++)
      run_whole_phase(j, phase, thread);
    phase = shared;
    if (!phase_wanted(j, phase))
      return;
    size_t items = phase_items(j, phase);
    for (step s = {phase, 0, step_count(j, phase)}; s.index < s.count; s.index++) {
      size_t first = step_begin(s, items);
      before_step(j, thread);
      if (last)
        be_work_begin(j->share, step_end(s, items) - first, n_threads);
      be_barrier_wait(barrier);
      run_step_share(j, s, first, thread, n_threads);
      last = be_work_leave(j->share, n_threads);
      if (last)
        step_done(j, s);
    }
  }
}

be_status be_session_create(be_session **out, const be_program *program, uint32_t threads) {
  *out = NULL;
  if (threads < 1 || threads > BE_MAX_THREADS)
    return BE_ERR_ARGUMENT;
  be_session *session = calloc(1, sizeof *session);
  if (!session)
    return BE_ERR_NO_MEMORY;
  session->program = program;
  session->threads = threads;
  session->share_block = calloc(1, be_work_share_bytes(threads) + BE_WORK_LINE);
  be_status status = session->share_block ? BE_OK : BE_ERR_NO_MEMORY;
  if (status == BE_OK)
    status = be_block_create(&session->arena, program->header.arena_bytes);
  if (status == BE_OK)
    status = be_block_create(&session->state, program->header.state_bytes);
  if (status == BE_OK && threads > 1)
    status = be_pool_reserve(threads);
  if (status != BE_OK) {
    be_session_destroy(session);
    return status;
  }
  session->share = be_work_share_in(session->share_block);
  *out = session;
  return BE_OK;
}

void be_session_destroy(be_session *session) {
  if (!session)
    return;
  be_residency_release(session->program, session->residency, &session->stream);
  be_block_destroy(&session->arena);
  be_block_destroy(&session->state);
  free(session->share_block);
  free(session);
}

size_t be_session_bytes(const be_session *session) {
  return sizeof *session + be_work_share_bytes(session->threads) + BE_WORK_LINE;
}

const void *be_session_block(const be_session *session, be_region region) {
  return region == BE_REGION_STATE ? session->state.data : session->arena.data;
}

uint32_t be_session_position(const be_session *session) { return session->valid_positions; }

be_status be_session_poll(be_session *session, be_poll *poll, void *context) {
  session->poll = poll;
  session->poll_context = context;
  return BE_OK;
}

be_status be_session_profile(be_session *session, be_profile *profile) {
  if (profile && be_profile_threads(profile) < session->threads)
    return BE_ERR_ARGUMENT;
  session->profile = profile;
  return BE_OK;
}

void be_session_screen(be_session *session, uint32_t best, float margin) {
  session->best = best <= BE_MAX_BEST && margin >= 0 ? best : 0;
  session->margin = margin;
}

void be_session_screened(const be_session *session, uint64_t *rows, uint64_t *rescored) {
  *rows = atomic_load_explicit(&session->screened, memory_order_relaxed);
  *rescored = atomic_load_explicit(&session->rescored, memory_order_relaxed);
}

// The largest logits a run computes of screened heads, 0 for all; the same for all its outputs.
static uint32_t best_of_run(const be_session *session) {
  const be_program_header *header = &session->program->header;
  for (uint32_t i = 0; i < header->output_count; i++)
    if (session->program->ports[header->input_count + i].width < BE_SCREEN_ROWS * session->best)
      return 0;
  return session->best;
}

be_status be_session_residency(be_session *session, be_residency mode, int file,
                               uint64_t file_offset, be_error *error) {
  if ((unsigned)mode >= BE_RESIDENCY_COUNT || session->residency != BE_RESIDENCY_MAPPED)
    return be_fail(error, BE_ERR_ARGUMENT, "residency", -1, -1, BE_RESIDENCY_COUNT - 1,
                   (uint64_t)mode);
  be_status status =
      be_residency_apply(session->program, mode, file, file_offset, &session->stream, error);
  if (status == BE_OK)
    session->residency = mode;
  return status;
}

// The first position, sinks aside, that the token at `position` sees.
static uint32_t first_seen(const be_program_header *header, uint32_t position) {
  uint64_t end = (uint64_t)position + 1, seen = (uint64_t)header->sinks + header->window;
  return header->window > 0 && end > seen ? (uint32_t)(end - header->window) : 0;
}

// What the ring loses to a run; a run from position 0 needs nothing of what it held.
static void note_kept(be_session *session, uint32_t position, uint32_t n_tokens) {
  const be_program_header *header = &session->program->header;
  uint32_t rows = be_kv_rows(header) - header->sinks, end = position + n_tokens;
  uint32_t kept = position == 0 ? 0 : session->kept_from;
  session->kept_from = header->window > 0 && end > rows && end - rows > kept ? end - rows : kept;
}

static be_status check_run(const be_session *session, const be_pass *p, be_error *error) {
  const be_program *program = session->program;
  const be_program_header *header = &program->header;
  if (p->n_tokens < 1 || p->n_tokens > header->max_tokens)
    return be_fail(error, BE_ERR_ARGUMENT, "n_tokens", -1, -1, header->max_tokens, p->n_tokens);
  if (p->output_rows > p->n_tokens)
    return be_fail(error, BE_ERR_ARGUMENT, "output_rows", -1, -1, p->n_tokens, p->output_rows);
  if (p->position > session->valid_positions)
    return be_fail(error, BE_ERR_ARGUMENT, "position", -1, -1, session->valid_positions,
                   p->position);
  uint32_t seen_from = first_seen(header, p->position);
  if (p->position > 0 && session->kept_from > seen_from)
    return be_fail(error, BE_ERR_ARGUMENT, "position before the window", -1, -1, 0, p->position);
  if (header->max_positions > 0 && p->n_tokens > header->max_positions - p->position)
    return be_fail(error, BE_ERR_ARGUMENT, "context", -1, -1, header->max_positions,
                   (uint64_t)p->position + p->n_tokens);
  for (uint32_t i = 0; i < header->input_count; i++) {
    const int32_t *ids = p->inputs[i];
    for (uint32_t t = 0; program->vocab[i] != 0 && t < p->n_tokens; t++)
      if (ids[t] < 0 || (uint32_t)ids[t] >= program->vocab[i])
        return be_fail(error, BE_ERR_ARGUMENT, "token id", -1, (int32_t)t, program->vocab[i],
                       (uint64_t)(int64_t)ids[t]);
  }
  return BE_OK;
}

// One past the last instruction of the pass.
static uint32_t end_instruction(const job *j) {
  uint32_t phase = 0;
  while (phase_wanted(j, phase))
    phase++;
  return j->pass.program->phase_begin[phase];
}

be_status be_session_run(be_session *session, uint32_t n_tokens, uint32_t position,
                         uint32_t output_rows, const void *const *inputs, void *const *outputs,
                         be_error *error) {
  job j = {
      .pass = {session->program, &dispatch, session->arena.data, session->state.data, inputs,
               outputs, n_tokens, position, output_rows, best_of_run(session), session->margin,
               &session->screened, &session->rescored},
      .share = session->share,
      .profile = session->profile,
      .poll_context = session->poll_context,
      .stream = session->residency == BE_RESIDENCY_STREAMED ? &session->stream : NULL,
  };
  be_status status = check_run(session, &j.pass, error);
  if (status != BE_OK)
    return status;
  if (session->program->token_bytes >= POLLED_BYTES / n_tokens)
    j.poll = session->poll;
  atomic_store_explicit(&session->screened, 0, memory_order_relaxed);
  atomic_store_explicit(&session->rescored, 0, memory_order_relaxed);
  uint64_t begin = session->profile || j.poll ? be_profile_now() : 0;
  j.polled_ns = begin;
  note_kept(session, position, n_tokens);
  if (j.stream)
    be_stream_begin(j.stream, end_instruction(&j), j.pass.best > 0);
  // Also for one thread: the pool sets the floating-point mode that the numerics are defined in.
  be_pool_run(run_share, &j, session->threads);
  if (session->profile)
    be_profile_add_run(session->profile, begin);
  bool whole = !atomic_load_explicit(&j.cancelled, memory_order_relaxed);
  if (session->program->header.max_positions > 0)
    session->valid_positions = whole ? position + n_tokens : position;
  return whole ? BE_OK : be_fail(error, BE_ERR_INTERRUPTED, "run", -1, -1, n_tokens, 0);
}
