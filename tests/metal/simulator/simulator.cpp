// SPDX-License-Identifier: MIT
// Runs the grids of compute kernels on a CPU, one threadgroup after the other.
//
//   lanes     every thread of a threadgroup is a fiber with its own stack; with SIM_THREADS
//   defined,
//             an operating-system thread (for the thread sanitizer)
//   order     a schedule says in which order lanes, and threadgroups, get their turns
//   meetings  a barrier or a simdgroup operation lets nobody through before all its lanes have
//             come to the same line; a lane that ends or waits elsewhere makes that an error
//   traces    code compiled with -fsanitize=thread calls the functions at the end before each
//             access. With SIM_TRACED they check it against the buffers bound and the threadgroup
//             memory, count its bytes, and find data races: whatever order the lanes ran in, two
//             accesses to one byte, one of them a write, with no barrier in between
#include "simulator.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <vector>
#if defined(__x86_64__) && !defined(SIM_UCONTEXT)
#define SIM_OWN_SWITCH // some nanoseconds; swapcontext asks the system
#else
#include <ucontext.h>
#endif

enum { STACK_BYTES = 64 * 1024 };

// Lanes that meet: a threadgroup or a simdgroup.
struct meeting {
  unsigned size = 0, arrived = 0, generation = 0;
  const char *file = nullptr;
  int line = 0;
};

struct simdgroup_state {
  meeting gate;
  char slots[2][SIM_WIDTH][SIM_SLOT];
  unsigned sync[3]; // barriers passed, by memory bit
};

struct lane_state {
  sim_position here;
  meeting *waiting = nullptr; // for its generation to pass `since`
  unsigned since = 0;
  bool done = false;
  unsigned exchanges = 0;
  void *stack = nullptr;
  void *stack_pointer = nullptr; // x86-64; elsewhere `context`
#ifndef SIM_OWN_SWITCH
  ucontext_t context;
#endif
};

static sim_launch *launch;
static sim_kernel_fn *body;
static std::vector<lane_state> lanes;
static std::vector<simdgroup_state> simdgroups;
static std::vector<void *> bound;        // by buffer index
static std::vector<void *> group_memory; // by threadgroup index
static std::vector<unsigned> order;      // of lanes
static unsigned reduction_order[SIM_WIDTH];
static meeting whole;
static unsigned whole_sync[3];
static bool failed;

#ifdef SIM_THREADS
static thread_local lane_state *current;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
#else
static lane_state *current;
#ifdef SIM_OWN_SWITCH
static void *scheduler_pointer;
#else
static ucontext_t scheduler_context;
#endif
#endif

static void fail(const char *format, ...) {
  if (failed)
    return;
  failed = true;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(launch->error, sizeof launch->error, format, arguments);
  va_end(arguments);
}

const sim_position &sim_here() { return current->here; }

unsigned sim_reduction_lane(unsigned step) { return reduction_order[step]; }

// -- switching ------------------------------------------------------------------------------

#ifndef SIM_THREADS
#ifdef SIM_OWN_SWITCH
extern "C" void sim_switch(void **save, void *load);
__asm__(".text\n.globl sim_switch\n.type sim_switch,@function\nsim_switch:\n"
        "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n"
        ".size sim_switch,.-sim_switch\n");
#endif

static void to_scheduler() {
#ifdef SIM_OWN_SWITCH
  sim_switch(&current->stack_pointer, scheduler_pointer);
#else
  swapcontext(&current->context, &scheduler_context);
#endif
}

static void lane_main() {
  body(bound.data(), group_memory.data());
  current->done = true;
  for (;;)
    to_scheduler();
}

static void prepare(lane_state *lane) {
#ifdef SIM_OWN_SWITCH
  void **top = (void **)((char *)lane->stack + STACK_BYTES);
  *--top = nullptr; // keeps the stack 16-byte aligned at lane_main's entry
  *--top = (void *)lane_main;
  for (int i = 0; i < 6; i++)
    *--top = nullptr;
  lane->stack_pointer = top;
#else
  getcontext(&lane->context);
  lane->context.uc_stack.ss_sp = lane->stack;
  lane->context.uc_stack.ss_size = STACK_BYTES;
  makecontext(&lane->context, lane_main, 0);
#endif
}

static void resume(lane_state *lane) {
  current = lane;
#ifdef SIM_OWN_SWITCH
  sim_switch(&scheduler_pointer, lane->stack_pointer);
#else
  swapcontext(&scheduler_context, &lane->context);
#endif
}
#endif

// -- meetings -------------------------------------------------------------------------------

// Comes to a meeting; `tag` is the line, and everyone must come by the same one.
static void meet(meeting *m, const char *file, int line) {
#ifdef SIM_THREADS
  pthread_mutex_lock(&mutex);
#endif
  if (m->arrived == 0) {
    m->file = file;
    m->line = line;
  } else if (m->line != line || strcmp(m->file, file) != 0) {
    fail("divergent: thread %u is at %s:%d, another of its group at %s:%d", current->here.index,
         file, line, m->file, m->line);
  }
  unsigned generation = m->generation;
  if (++m->arrived == m->size) {
    m->arrived = 0;
    m->generation++;
#ifdef SIM_THREADS
    pthread_cond_broadcast(&changed);
#endif
  } else {
#ifdef SIM_THREADS
    while (m->generation == generation && !failed) {
      timespec end;
      clock_gettime(CLOCK_REALTIME, &end);
      end.tv_sec += 10;
      if (pthread_cond_timedwait(&changed, &mutex, &end) != 0)
        fail("deadlock: thread %u waits at %s:%d", current->here.index, file, line);
    }
#else
    current->waiting = m;
    current->since = generation;
    to_scheduler();
#endif
  }
#ifdef SIM_THREADS
  bool stop = failed;
  pthread_mutex_unlock(&mutex);
  if (stop)
    pthread_exit(nullptr);
#else
  while (failed)
    to_scheduler(); // never to return
#endif
}

void sim_barrier(bool whole_threadgroup, unsigned memory, const char *file, int line) {
  simdgroup_state *group = &simdgroups[current->here.simdgroup];
  meeting *m = whole_threadgroup ? &whole : &group->gate;
  unsigned *sync = whole_threadgroup ? whole_sync : group->sync;
#ifdef SIM_THREADS
  (void)sync, (void)memory;
#else
  if (m->arrived + 1 == m->size) // the last one: nobody has left yet
    for (unsigned bit = 1; bit <= 2; bit++)
      sync[bit] += (memory & bit) != 0;
#endif
  meet(m, file, line);
}

const char (*sim_exchange(const void *value, size_t bytes, const char *file, int line)) [SIM_SLOT] {
  simdgroup_state *group = &simdgroups[current->here.simdgroup];
  // Two sets of slots: nobody writes the third time before all have met, and so read, the second.
  auto *slots = group->slots[current->exchanges++ % 2];
  memcpy(slots[current->here.lane], value, bytes);
  meet(&group->gate, file, line);
  return slots;
}

// -- grids ----------------------------------------------------------------------------------

static uint32_t random_state;
static uint32_t random_below(uint32_t n) {
  random_state = random_state * 1664525u + 1013904223u;
  return (uint32_t)(((uint64_t)random_state * n) >> 32);
}

static void arrange(unsigned *items, unsigned n) {
  for (unsigned i = 0; i < n; i++)
    items[i] = launch->schedule == SIM_REVERSE ? n - 1 - i : i;
  if (launch->schedule == SIM_SHUFFLED)
    for (unsigned i = n; i > 1; i--) {
      unsigned j = random_below(i), kept = items[i - 1];
      items[i - 1] = items[j];
      items[j] = kept;
    }
}

static void trace_begin_group();

#ifdef SIM_THREADS
static void *thread_main(void *lane) {
  current = (lane_state *)lane;
  body(bound.data(), group_memory.data());
  pthread_mutex_lock(&mutex);
  current->done = true;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
  return nullptr;
}

static void run_lanes() {
  std::vector<pthread_t> threads(lanes.size());
  for (unsigned i : order)
    if (pthread_create(&threads[i], nullptr, thread_main, &lanes[i]) != 0)
      abort();
  for (pthread_t t : threads)
    pthread_join(t, nullptr);
}
#else
static void run_lanes() {
  for (unsigned i : order)
    prepare(&lanes[i]);
  for (bool progress = true; progress && !failed;) {
    progress = false;
    for (unsigned i : order) {
      lane_state *lane = &lanes[i];
      if (lane->done || (lane->waiting && lane->waiting->generation == lane->since))
        continue;
      lane->waiting = nullptr;
      progress = true;
      resume(lane);
      if (failed)
        return;
    }
  }
  for (unsigned i : order)
    if (!lanes[i].done)
      fail("deadlock: thread %u waits at %s:%d for lanes that never come", i,
           lanes[i].waiting->file, lanes[i].waiting->line);
}
#endif

static void run_group(uint32_t x, uint32_t y, uint32_t z) {
  const uint32_t *threads = launch->threads;
  uint32_t count = threads[0] * threads[1] * threads[2], n_simd = count / SIM_WIDTH;
  whole = meeting();
  whole.size = count;
  memset(whole_sync, 0, sizeof whole_sync);
  for (simdgroup_state &group : simdgroups) {
    group.gate = meeting();
    group.gate.size = SIM_WIDTH;
    memset(group.sync, 0, sizeof group.sync);
  }
  for (uint32_t i = 0; i < count; i++) {
    sim_position &p = lanes[i].here;
    p = {{i % threads[0], i / threads[0] % threads[1], i / threads[0] / threads[1]},
         {threads[0], threads[1], threads[2]},
         {x, y, z},
         {launch->groups[0], launch->groups[1], launch->groups[2]},
         i,
         i % SIM_WIDTH,
         i / SIM_WIDTH,
         n_simd};
    lanes[i].waiting = nullptr;
    lanes[i].done = false;
    lanes[i].exchanges = 0;
  }
  for (size_t i = 0; i < group_memory.size(); i++) // what it holds at the start is anything
    memset(group_memory[i], 0xa5, launch->threadgroup_bytes[i]);
  arrange(order.data(), count);
  arrange(reduction_order, SIM_WIDTH);
  trace_begin_group();
  run_lanes();
}

static void trace_begin();
static void trace_end();

extern "C" int sim_run(sim_launch *what) {
  launch = what;
  failed = false;
  random_state = what->seed;
  body = nullptr;
  for (const sim_kernel *k = sim_kernels; k->name; k++)
    if (strcmp(k->name, what->kernel) == 0)
      body = k->run;
  uint32_t count = what->threads[0] * what->threads[1] * what->threads[2];
  if (!body)
    fail("no kernel named %s", what->kernel);
  if (count == 0 || count > 1024 || count % SIM_WIDTH != 0)
    fail("%u threads a threadgroup: expected a multiple of 32 up to 1024", count);
  if (failed)
    return -1;
#ifndef SIM_THREADS
  while (lanes.size() < count) { // stacks are kept from launch to launch
    lane_state lane;
    lane.stack =
        mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    lanes.push_back(lane);
  }
#else
  lanes.resize(count);
#endif

  simdgroups.resize(count / SIM_WIDTH);
  order.resize(count);
  bound.assign(32, nullptr);
  for (uint32_t i = 0; i < what->n_bindings; i++)
    bound[what->bindings[i].index] = what->bindings[i].data;
  group_memory.assign(4, nullptr);
  for (size_t i = 0; i < group_memory.size(); i++)
    group_memory[i] = malloc(what->threadgroup_bytes[i] ? what->threadgroup_bytes[i] : 1);
  trace_begin();
  uint32_t total = what->groups[0] * what->groups[1] * what->groups[2];
  std::vector<unsigned> groups(total);
  arrange(groups.data(), total);
  for (uint32_t i = 0; i < total && !failed; i++)
    run_group(groups[i] % what->groups[0], groups[i] / what->groups[0] % what->groups[1],
              groups[i] / what->groups[0] / what->groups[1]);
  trace_end();
  for (void *memory : group_memory)
    free(memory);
  return failed ? -1 : 0;
}

// -- traces ---------------------------------------------------------------------------------

#ifndef SIM_TRACED
static void trace_begin() {}
static void trace_end() {}
static void trace_begin_group() {}
#else

// The latest write and the latest read of a byte. `who` is the thread plus one, ANYBODY once two
// threads have read it with nothing in between.
static const uint32_t ANYBODY = UINT32_MAX;
struct touch {
  uint32_t who, group, whole, simd;
};
struct shadow {
  touch write, read;
};
struct region {
  unsigned char *begin, *end;
  sim_binding *binding; // null: threadgroup memory
  bool readable, writable;
  shadow *bytes; // of memory that may be written
};
static std::vector<region> regions;
static uint32_t group_number;

static void add_region(unsigned char *begin, uint64_t bytes, sim_binding *binding, bool writable) {
  region r = {begin, begin + bytes, binding, true, writable, nullptr};
  regions.push_back(r);
}

static void trace_begin() {
  regions.clear();
  group_number = 0;
  for (uint32_t i = 0; i < launch->n_bindings; i++) {
    sim_binding *b = &launch->bindings[i];
    b->read_bytes = b->written_bytes = 0;
    add_region(b->data, b->bytes, b, b->writable != 0);
  }
  for (size_t i = 0; i < group_memory.size(); i++)
    add_region((unsigned char *)group_memory[i], launch->threadgroup_bytes[i], nullptr, true);
  for (region &r : regions)
    if (r.writable)
      r.bytes = (shadow *)calloc((size_t)(r.end - r.begin) + 1, sizeof(shadow));
}

static void trace_end() {
  for (region &r : regions)
    free(r.bytes);
  regions.clear();
}

static void trace_begin_group() {
  group_number++;
  for (region &r : regions)
    if (!r.binding)
      memset((void *)r.bytes, 0, (size_t)(r.end - r.begin) * sizeof(shadow));
}

// Whether the memory's barriers put `then` before now.
static bool ordered(const touch &then, unsigned memory_bit) {
  if (then.group != group_number)
    return false; // threadgroups of one dispatch have no order
  if (then.whole != whole_sync[memory_bit])
    return true;
  if (then.who == ANYBODY)
    return false;
  const sim_position &here = current->here;
  return (then.who - 1) / SIM_WIDTH == here.simdgroup &&
         then.simd != simdgroups[here.simdgroup].sync[memory_bit];
}

static bool races(const touch &then, unsigned memory_bit) {
  if (then.who == 0 || (then.group == group_number && then.who == current->here.index + 1))
    return false;
  return !ordered(then, memory_bit);
}

static bool within(const unsigned char *at, const void *begin, size_t bytes) {
  return at >= (const unsigned char *)begin && at < (const unsigned char *)begin + bytes;
}

static void check(const void *address, size_t bytes, bool writes) {
  unsigned char *at = (unsigned char *)address;
  const char *verb = writes ? "write" : "read";
  if (within(at, current->stack, STACK_BYTES) ||
      within(at, lanes.data(), sizeof lanes[0] * lanes.size()) ||
      within(at, simdgroups.data(), sizeof simdgroups[0] * simdgroups.size()))
    return; // not the shader's memory
  region *inside = nullptr, *shadowed = nullptr;
  for (region &r : regions)
    if (at >= r.begin && at + bytes <= r.end) {
      if (r.binding && r.binding->touched)
        for (size_t i = 0; i < bytes; i++)
          r.binding->touched[at - r.begin + i] |= writes ? 2 : 1;
      if (r.bytes && !shadowed)
        shadowed = &r;
      if (!inside && (writes ? r.writable : r.readable))
        inside = &r;
    }
  if (!inside) {
    const region *near = nullptr;
    for (const region &r : regions)
      if (at + bytes > r.begin && at < r.end + 4096 && (!near || r.begin > near->begin))
        near = &r;
    if (near && near->binding)
      fail("out of bounds: %s of %zu bytes at offset %ld of buffer %u (%llu bytes%s)", verb, bytes,
           (long)(at - near->begin), near->binding->index, (unsigned long long)near->binding->bytes,
           near->writable ? "" : ", read only");
    else if (near)
      fail("out of bounds: %s of %zu bytes at offset %ld of threadgroup memory of %ld", verb, bytes,
           (long)(at - near->begin), (long)(near->end - near->begin));
    else
      fail("out of bounds: %s of %zu bytes far from every buffer", verb, bytes);
  } else {
    if (inside->binding)
      (writes ? inside->binding->written_bytes : inside->binding->read_bytes) += bytes;
    const sim_position &here = current->here;
    for (size_t i = 0; shadowed && i < bytes && !failed; i++) {
      shadow *s = &shadowed->bytes[at - shadowed->begin + i];
      unsigned bit = shadowed->binding ? 1 : 2;
      touch now = {here.index + 1, group_number, whole_sync[bit],
                   simdgroups[here.simdgroup].sync[bit]};
      const char *what = shadowed->binding ? "device" : "threadgroup";
      long offset = (long)(at - shadowed->begin + i);
      if (!writes && !shadowed->binding && s->write.who == 0)
        fail("uninitialised: thread %u reads threadgroup byte %ld", here.index, offset);
      else if (races(s->write, bit) || (writes && races(s->read, bit)))
        fail("race: thread %u of group %u,%u: %s of %s byte %ld, no barrier since thread %d's",
             here.index, here.group[0], here.group[1], verb, what, offset,
             (int)(races(s->write, bit) ? s->write.who : s->read.who) - 1);
      if (writes)
        s->write = now;
      else if (s->read.who != 0 && s->read.who != now.who && !ordered(s->read, bit))
        s->read = {ANYBODY, group_number, now.whole, 0};
      else
        s->read = now;
    }
  }
  while (failed)
    to_scheduler();
}

extern "C" {
#define TRACE(bytes)                                                                               \
  void __tsan_read##bytes(void *p) { check(p, bytes, false); }                                     \
  void __tsan_write##bytes(void *p) { check(p, bytes, true); }                                     \
  void __tsan_unaligned_read##bytes(void *p) { check(p, bytes, false); }                           \
  void __tsan_unaligned_write##bytes(void *p) { check(p, bytes, true); }
TRACE(1)
TRACE(2)
TRACE(4)
TRACE(8)
TRACE(16)
void __tsan_read_range(void *p, size_t n) { check(p, n, false); }
void __tsan_write_range(void *p, size_t n) { check(p, n, true); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void *__tsan_memcpy(void *to, const void *from, size_t n) {
  check(from, n, false);
  check(to, n, true);
  return memcpy(to, from, n);
}
void *__tsan_memset(void *to, int value, size_t n) {
  check(to, n, true);
  return memset(to, value, n);
}
}
#endif
