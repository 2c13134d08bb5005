// SPDX-License-Identifier: MIT
// Checks and times every kernel, in the manner of dav1d's checkasm.
//
// The mask of instruction sets is raised one set at a time and the real be_kernels_init is run
// again; whatever kernel it then takes from the new set is compared with the scalar one, bit for
// bit, over ragged sizes and extreme values. The scalar kernels are compared with independent
// references inside the checks. So the dispatch table itself is tested, and a new variant needs a
// row in kernel_table.def and no test code.
//
// Every buffer ends right before or begins right after an inaccessible page and has canaries on
// its other side. SIGSEGV, SIGBUS, SIGILL and SIGFPE inside a kernel are reported as its failure.
//
// Built with KC_EMULATE, the x86 kernels go through SIMDe instead of the CPU and its instructions;
// the program says which way each set is run.
//
// Exit code: 0 all passed, 1 a check failed, 2 wrong usage.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "guard.h"
#include "report.h"

typedef void kernel_function(const kc_variant *v);

static kernel_function *const checks[] = {
#define BE_KERNEL(name, parameters) check_##name,
#include "kernel_table.def"
#undef BE_KERNEL
};

static kernel_function *const benches[] = {
#define BE_KERNEL(name, parameters) bench_##name,
#include "kernel_table.def"
#undef BE_KERNEL
};

typedef struct options {
  const char *force, *kernel;
  uint64_t seed;
  bool bench, json, list, quick;
} options;

static sigjmp_buf recovery;

static void on_signal(int number) { siglongjmp(recovery, number); }

static void catch_signals(void) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_NODEFER};
  const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    sigaction(numbers[i], &action, NULL);
}

static bool wanted(const options *o, int kernel) {
  return !o->kernel || strstr(be_kernel_name(kernel), o->kernel);
}

// The table itself: no kernel from outside the mask, and the pointer is the one its ISA names.
static void check_dispatch(uint32_t mask) {
  be_kernels k, scalar;
  kc_report_begin("dispatch", mask == 1u << BE_ISA_scalar ? "scalar" : "variants");
  kc_begin(KC_EDGE_END, "mask=0x%x", (unsigned)mask);
  be_kernels_init(&k, mask);
  be_kernels_init(&scalar, 1u << BE_ISA_scalar);
  for (int kernel = 0; kernel < BE_KERNEL_COUNT; kernel++)
    if (!(mask >> k.isa[kernel] & 1))
      kc_fail("%s comes from %s", be_kernel_name(kernel), be_isa_name(k.isa[kernel]));
#define BE_KERNEL(name, parameters)                                                                \
  if (scalar.name != name##_scalar ||                                                              \
      (k.isa[BE_KERNEL_##name] == BE_ISA_scalar) != (k.name == name##_scalar))                     \
    kc_fail("%s is not the kernel that its instruction set names", #name);
#include "kernel_table.def"
#undef BE_KERNEL
  kc_end();
  kc_report_end();
}

// One kernel at one mask. Random numbers begin anew, so that a failure is repeated by the same
// seed whatever ran before it.
static void run_check(const options *o, const be_kernels *k, int kernel) {
  const kc_variant v = {k, k->isa[kernel], o->quick};
  kc_report_begin(be_kernel_name(kernel), be_isa_name(v.isa));
  kc_random_seed(o->seed ^ (uint64_t)kernel << 32);
  int number = sigsetjmp(recovery, 1);
  if (number == 0)
    checks[kernel](&v);
  else
    kc_report_crash(strsignal(number));
  kc_report_end();
}

static void run_checks(const options *o, uint32_t mask) {
  be_kernels k;
  if (o->force) {
    be_kernels_init(&k, mask);
    for (int kernel = 0; kernel < BE_KERNEL_COUNT; kernel++)
      if (wanted(o, kernel))
        run_check(o, &k, kernel);
    return;
  }
  for (int isa = 0; isa < BE_ISA_COUNT; isa++) {
    if (!(mask >> isa & 1))
      continue;
    uint32_t raised = mask & ((2u << isa) - 1);
    check_dispatch(raised);
    be_kernels_init(&k, raised);
    for (int kernel = 0; kernel < BE_KERNEL_COUNT; kernel++)
      if ((int)k.isa[kernel] == isa && wanted(o, kernel))
        run_check(o, &k, kernel);
  }
}

static void run_benches(const options *o, uint32_t mask) {
  kc_bench_begin(o->json);
  for (int kernel = 0; kernel < BE_KERNEL_COUNT; kernel++)
    for (int isa = 0; wanted(o, kernel) && isa < BE_ISA_COUNT; isa++) {
      be_kernels k;
      be_kernels_init(&k, mask & ((2u << isa) - 1));
      if (!(mask >> isa & 1) || (int)k.isa[kernel] != isa)
        continue;
      const kc_variant v = {&k, isa, o->quick};
      kc_report_begin(be_kernel_name(kernel), be_isa_name(isa));
      kc_random_seed(o->seed);
      benches[kernel](&v);
    }
  kc_bench_end();
}

static const char *way_to_run(int isa) {
#ifdef KC_EMULATED
  return isa == BE_ISA_scalar ? "native" : "emulated (SIMDe)";
#else
  (void)isa;
  return "native";
#endif
}

static void list(uint32_t mask) {
  for (int isa = 0; isa < BE_ISA_COUNT; isa++) {
    bool here = mask >> isa & 1;
    printf("%-12s %s (%s)\n", be_isa_name(isa), here ? way_to_run(isa) : "not on this CPU",
           be_isa_requirement(isa));
  }
  be_kernels k;
  be_kernels_init(&k, mask);
  for (int kernel = 0; kernel < BE_KERNEL_COUNT; kernel++)
    printf("  %-24s %s\n", be_kernel_name(kernel), be_isa_name(k.isa[kernel]));
}

static int usage(const char *program, const char *why) {
  fprintf(stderr,
          "%s: %s\n"
          "usage: kernel_check [--seed N] [--force ISA] [--kernel TEXT] [--quick]\n"
          "                    [--list | --bench [--json]]\n",
          program, why);
  return 2;
}

static bool parse_seed(const char *text, uint64_t *seed) {
  char *end;
  *seed = strtoull(text, &end, 0);
  return *text != '\0' && *end == '\0';
}

int main(int argc, char **argv) {
  options o = {.seed = (uint64_t)time(NULL)};
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (strcmp(argv[i], "--bench") == 0)
      o.bench = true;
    else if (strcmp(argv[i], "--json") == 0)
      o.json = true;
    else if (strcmp(argv[i], "--list") == 0)
      o.list = true;
    else if (strcmp(argv[i], "--quick") == 0)
      o.quick = true;
    else if (!value)
      return usage(argv[i], "unknown option or missing value");
    else if (strcmp(argv[i], "--force") == 0)
      o.force = argv[++i];
    else if (strcmp(argv[i], "--kernel") == 0)
      o.kernel = argv[++i];
    else if (strcmp(argv[i], "--seed") == 0) {
      if (!parse_seed(argv[++i], &o.seed))
        return usage(argv[i], "not a number");
    } else
      return usage(argv[i], "unknown option");
  }

  uint32_t mask = be_cpu_detect();
  if (o.force && be_cpu_cap(o.force, mask, &mask) != BE_OK)
    return usage(o.force, "unknown instruction set, or not on this CPU (see --list)");
  if (o.list) {
    list(mask);
    return 0;
  }
  if (!kc_guard_init()) {
    fprintf(stderr, "kernel_check: cannot map the guarded buffers\n");
    return 1;
  }
  if (o.bench) {
    run_benches(&o, mask);
    return 0;
  }
  printf("seed %llu\n", (unsigned long long)o.seed);
  for (int isa = 0; isa < BE_ISA_COUNT; isa++)
    if (mask >> isa & 1)
      printf("%-12s %s\n", be_isa_name(isa), way_to_run(isa));
  catch_signals();
  run_checks(&o, mask);
  return kc_report_total() ? 0 : 1;
}
