// SPDX-License-Identifier: MIT
// Timing: the median of up to 21 samples, each long enough for the clock.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "report.h"

enum { MAX_ROWS = 1024 };

static const double SAMPLE_NS = 2e6; // one sample at least
static const double TOTAL_NS = 1e9;  // all samples together, about

typedef struct bench_row {
  char key[96]; // kernel and label
  double ns;    // of the scalar kernel
} bench_row;

static bench_row scalar_rows[MAX_ROWS];
static size_t scalar_count;
static bool json, first;

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

void kc_bench_begin(bool as_json) {
  json = as_json;
  first = true;
  scalar_count = 0;
  if (json)
    printf("[");
  else
    printf("%-22s %-12s %-28s %12s %6s %8s %8s %8s\n", "kernel", "isa", "shape", "ns", "+-%",
           "GB/s", "GMAC/s", "x scalar");
}

void kc_bench_end(void) {
  if (json)
    printf("\n]\n");
}

static double scalar_ns(const char *key, bool is_scalar, double ns) {
  for (size_t i = 0; i < scalar_count; i++)
    if (strcmp(scalar_rows[i].key, key) == 0)
      return scalar_rows[i].ns;
  if (is_scalar && scalar_count < MAX_ROWS) {
    snprintf(scalar_rows[scalar_count].key, sizeof scalar_rows->key, "%s", key);
    scalar_rows[scalar_count++].ns = ns;
  }
  return ns;
}

static int compare_double(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void print_row(const kc_timer *timer) {
  double sorted[sizeof timer->ns / sizeof *timer->ns];
  memcpy(sorted, timer->ns, sizeof sorted);
  qsort(sorted, timer->samples, sizeof *sorted, compare_double);
  double ns = sorted[timer->samples / 2];
  double spread = (sorted[timer->samples * 3 / 4] - sorted[timer->samples / 4]) / 2 / ns * 100;

  char key[96];
  snprintf(key, sizeof key, "%s/%s", kc_report_kernel(), timer->label);
  double ratio = scalar_ns(key, timer->v->isa == BE_ISA_scalar, ns) / ns;
  if (json) {
    printf("%s\n  {\"kernel\": \"%s\", \"isa\": \"%s\", \"shape\": \"%s\", \"ns\": %.1f, "
           "\"spread_percent\": %.1f, \"gb_per_s\": %.3f, \"gmac_per_s\": %.3f, "
           "\"x_scalar\": %.2f}",
           first ? "" : ",", kc_report_kernel(), kc_report_isa(), timer->label, ns, spread,
           timer->bytes / ns, timer->macs / ns, ratio);
  } else {
    printf("%-22s %-12s %-28s %12.1f %6.1f %8.2f %8.2f %8.2f\n", kc_report_kernel(),
           kc_report_isa(), timer->label, ns, spread, timer->bytes / ns, timer->macs / ns, ratio);
  }
  first = false;
  fflush(stdout);
}

kc_timer kc_timer_begin(const kc_variant *v, const char *label, double bytes, double macs) {
  return (kc_timer){.v = v, .label = label, .bytes = bytes, .macs = macs};
}

// The first samples only find how many repeats fill one; then samples are kept until there are
// enough of them or the time is up.
bool kc_timer_next(kc_timer *timer) {
  double now = now_ns();
  if (timer->repeats == 0) {
    timer->repeats = 1;
    timer->start = now_ns();
    return true;
  }
  double elapsed = now - timer->start;
  const size_t capacity = sizeof timer->ns / sizeof *timer->ns;
  if (timer->samples == 0 && elapsed < SAMPLE_NS) {
    double factor = elapsed > SAMPLE_NS / 100 ? 1.2 * SAMPLE_NS / elapsed : 100;
    timer->repeats = (size_t)((double)timer->repeats * factor) + 1;
  } else {
    timer->ns[timer->samples++] = elapsed / (double)timer->repeats;
    bool late = elapsed * (double)timer->samples > TOTAL_NS && timer->samples >= 3;
    if (timer->samples == capacity || late) {
      print_row(timer);
      return false;
    }
  }
  timer->start = now_ns();
  return true;
}
