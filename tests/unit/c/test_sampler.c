// SPDX-License-Identifier: MIT
// Tests of sampler.c, `test_sampler CASE`; run by test_engine_c.py. Linked with --wrap=malloc and
// --wrap=calloc.
//
// The reference below follows the definition in sampler.h word by word, with a sort and sums from
// scratch, and must agree token by token. A second one, in double precision with libm's exp and
// transformers' own formulation of the filters, checks that the definition means what it should.
#include "sampler.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitnet_edge.h"
#include "kernels.h"

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                              \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

enum { MAX_VOCAB = 5000 };

static const be_sampling plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};

// ---- The wrapped calls ------------------------------------------------------------------------

static int allocations_left = -1; // then malloc and calloc fail; -1: never

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) {
  return allocations_left == 0 || allocations_left-- == 0 ? NULL : __real_malloc(size);
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size) {
  return allocations_left == 0 || allocations_left-- == 0 ? NULL : __real_calloc(n, size);
}

// ---- Inputs: integers turned into floats, so that every machine has the same ones -------------

static uint64_t lcg_state = 1;

static uint32_t random_bits(void) {
  lcg_state = lcg_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(lcg_state >> 33);
}

static uint32_t random_below(uint32_t n) { return random_bits() % n; }

// A sum of four uniforms, about normal, of deviation `scale` * 0.58.
static float bell(float scale) {
  int32_t sum = -2 * (1 << 16);
  for (int i = 0; i < 4; i++)
    sum += (int32_t)random_below(1 << 16);
  return (float)sum * (1.0f / 65536) * scale;
}

typedef enum kind {
  BELL, // as a language model's
  PEAKED,
  FLAT,
  STEPS,    // few distinct values, many ties
  SPARSE,   // most are -inf
  BROKEN,   // NaN, both infinities' absence, zeros of both signs, denormals
  INFINITE, // some +inf
  EXTREME,  // the whole range of floats
  KINDS
} kind;

static void fill_logits(float *logits, uint32_t n, kind which) {
  static const float odd[] = {0.0f,    -0.0f,  FLT_MIN / 4, -FLT_MIN / 8,
                              FLT_MIN, 1e-20f, NAN,         -INFINITY};
  for (uint32_t i = 0; i < n; i++) {
    float x = bell(4);
    switch (which) {
    case BELL:
      break;
    case PEAKED:
      x = x - 6 + (random_below(50) == 0 ? 20 : 0);
      break;
    case FLAT:
      x = 3 + x * 1e-4f;
      break;
    case STEPS:
      x = (float)(int)(x / 2);
      break;
    case SPARSE:
      x = random_below(8) ? -INFINITY : x;
      break;
    case BROKEN:
      x = random_below(3) ? odd[random_below(8)] : -fabsf(x) * 1e-3f;
      break;
    case INFINITE:
      x = random_below(6) ? x : INFINITY;
      break;
    default:
      x = ldexpf(x, (int)random_below(256) - 130);
    }
    logits[i] = x;
  }
  if (which == SPARSE || which == BROKEN)
    logits[random_below(n)] = 1e-3f; // at least one
}

static be_sampling random_sampling(void) {
  static const float temperatures[] = {1, 0.7f, 1.3f, 0.1f, 5, 100, 1e-6f, FLT_MIN, 0};
  static const float top_ps[] = {1, 0.9f, 0.95f, 0.5f, 0.1f, 1e-3f, 1e-38f, 0x1.fffffep-1f};
  static const float min_ps[] = {0, 0, 0.05f, 0.5f, 0.999f, 1e-6f, 1e-39f};
  static const float penalties[] = {1, 1.1f, 1.5f, 0.8f, 1e-30f, 1e30f};
  static const uint32_t top_ks[] = {0, 0, 1, 2, 5, 40, 100, 1000, 4000000000u};
  be_sampling p = {.temperature = temperatures[random_below(9)],
                   .top_k = top_ks[random_below(9)],
                   .top_p = top_ps[random_below(8)],
                   .min_p = min_ps[random_below(7)],
                   .repetition_penalty = penalties[random_below(6)]};
  return p;
}

// ---- The reference ----------------------------------------------------------------------------

typedef struct generator {
  uint64_t s[4];
} generator;

static generator seeded(uint64_t seed) {
  generator g;
  for (int i = 0; i < 4; i++) {
    seed += 0x9E3779B97F4A7C15u;
    uint64_t z = seed;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    g.s[i] = z ^ z >> 31;
  }
  return g;
}

static uint64_t rotated(uint64_t x, int k) { return x << k | x >> (64 - k); }

static uint64_t next(generator *g) {
  uint64_t *s = g->s, result = rotated(s[1] * 5, 7) * 9, t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotated(s[3], 45);
  return result;
}

// The high half of a * b, by long multiplication.
static uint64_t high_product(uint64_t a, uint64_t b) {
  uint64_t high = 0, low = 0;
  for (int bit = 0; bit < 64; bit++)
    if (b >> bit & 1) {
      high += bit ? a >> (64 - bit) : 0;
      low += a << bit;
      high += low < a << bit;
    }
  return high;
}

typedef struct candidate {
  float d;
  uint32_t id;
  float e; // exp(-d)
  uint64_t w;
} candidate;

static int in_order(const void *a, const void *b) {
  const candidate *x = a, *y = b;
  if (x->d != y->d)
    return x->d < y->d ? -1 : 1;
  return x->id < y->id ? -1 : 1;
}

static float penalised(const float *logits, uint32_t id, const be_sampling *p,
                       const int32_t *recent, size_t n_recent) {
  for (size_t i = 0; i < n_recent; i++)
    if ((uint32_t)recent[i] == id)
      return logits[id] > 0 ? logits[id] / p->repetition_penalty
                            : logits[id] * p->repetition_penalty;
  return logits[id];
}

static int32_t reference(generator *g, const be_sampling *p, const float *logits, uint32_t n,
                         const int32_t *recent, size_t n_recent) {
  static candidate list[MAX_VOCAB];
  static float l[MAX_VOCAB];
  float m = -INFINITY;
  int32_t greedy = -1;
  for (uint32_t i = 0; i < n; i++) {
    l[i] = penalised(logits, i, p, recent, n_recent);
    if (l[i] > m) {
      m = l[i];
      greedy = (int32_t)i;
    }
  }
  if (greedy < 0 || p->temperature == 0)
    return greedy;

  size_t count = 0;
  for (uint32_t i = 0; i < n; i++) {
    float d = (m - l[i]) / p->temperature;
    if (m == INFINITY)
      d = l[i] == INFINITY ? 0 : INFINITY;
    if (!(d < 28))
      continue;
    candidate *c = &list[count++];
    *c = (candidate){.d = d, .id = i, .e = -d};
    exp_f32_scalar(&c->e, &c->e, 1);
    c->w = (uint64_t)floor((double)c->e * 0x1p39);
  }
  qsort(list, count, sizeof *list, in_order);
  if (p->top_k > 0 && p->top_k < count)
    count = p->top_k;
  if (p->top_p < 1) {
    uint64_t sum = 0, before = 0;
    for (size_t i = 0; i < count; i++)
      sum += list[i].w;
    size_t kept = 0;
    while (kept < count && (kept == 0 || (double)before < (double)p->top_p * (double)sum))
      before += list[kept++].w;
    count = kept;
  }
  size_t kept = 0;
  for (size_t i = 0; i < count; i++)
    if (list[i].e >= p->min_p)
      list[kept++] = list[i];
  uint64_t sum = 0, before = 0;
  for (size_t i = 0; i < kept; i++)
    sum += list[i].w;
  uint64_t r = high_product(next(g), sum);
  for (size_t i = 0; i < kept; i++) {
    before += list[i].w;
    if (before > r)
      return (int32_t)list[i].id;
  }
  CHECK(!"a draw beyond the sum");
  return -1;
}

// ---- Cases ------------------------------------------------------------------------------------

static const uint32_t vocabs[] = {1, 2, 3, 17, 255, 256, 257, 300, 1000, 2048, 4999};
enum { N_VOCABS = sizeof vocabs / sizeof vocabs[0] };

static void random_recent(int32_t recent[16], size_t *n_recent, uint32_t vocab) {
  *n_recent = random_below(17);
  for (size_t i = 0; i < *n_recent; i++)
    recent[i] = (int32_t)random_below(vocab);
}

static void case_agrees_with_the_reference(void) {
  static float logits[MAX_VOCAB], copy[MAX_VOCAB];
  for (uint32_t v = 0; v < N_VOCABS; v++) {
    uint32_t n = vocabs[v];
    uint64_t seed = v * UINT64_C(0x123456789ABCDEF);
    be_sampler *sampler;
    CHECK(be_sampler_create(&sampler, n, seed) == BE_OK);
    generator g = seeded(seed);
    for (int trial = 0; trial < 1500; trial++) {
      fill_logits(logits, n, (kind)(trial % KINDS));
      memcpy(copy, logits, n * sizeof *logits);
      be_sampling p = random_sampling();
      int32_t recent[16], token = -7;
      size_t n_recent;
      random_recent(recent, &n_recent, n);
      be_status status = be_sampler_next(sampler, &p, logits, recent, n_recent, &token);
      int32_t expected = reference(&g, &p, logits, n, recent, n_recent);
      if (expected < 0) {
        CHECK(status == BE_ERR_OUT_OF_RANGE && token == -7);
      } else {
        CHECK(status == BE_OK);
        if (token != expected)
          fprintf(stderr, "vocab %u trial %d: token %d, expected %d\n", n, trial, token, expected);
        CHECK(token == expected);
      }
      CHECK(memcmp(copy, logits, n * sizeof *logits) == 0);
    }
    be_sampler_destroy(sampler);
  }
}

// As transformers does it, in double: scores / T, ascending sort, softmax, cumulative sums.
static size_t probable(double *probability, const be_sampling *p, const float *logits, size_t n) {
  double score[64], sum = 0;
  bool removed[64] = {false};
  for (size_t i = 0; i < n; i++)
    score[i] = (double)logits[i] / (double)p->temperature;
  for (size_t i = 0; i < n; i++) {
    size_t above = 0;
    for (size_t j = 0; j < n; j++)
      above += score[j] > score[i];
    removed[i] = p->top_k > 0 && above >= p->top_k;
  }
  for (size_t i = 0; i < n; i++)
    sum += probability[i] = removed[i] ? 0 : exp(score[i]);
  double most = 0;
  for (size_t i = 0; i < n; i++) {
    probability[i] /= sum;
    most = fmax(most, probability[i]);
  }
  bool dropped[64] = {false};
  for (size_t i = 0; i < n; i++) {
    double up_to = 0; // mass of this one and of all less probable ones
    for (size_t j = 0; j < n; j++)
      up_to += score[j] <= score[i] ? probability[j] : 0;
    dropped[i] = (up_to <= 1 - (double)p->top_p && probability[i] < most) ||
                 probability[i] < (double)p->min_p * most;
  }
  size_t kept = 0;
  sum = 0;
  for (size_t i = 0; i < n; i++) {
    probability[i] = dropped[i] ? 0 : probability[i];
    sum += probability[i];
    kept += probability[i] > 0;
  }
  for (size_t i = 0; i < n; i++)
    probability[i] /= sum;
  return kept;
}

// Chi-square of 20000 draws against exact probabilities; a token outside the set fails at once.
static void case_distribution(void) {
  static const be_sampling settings[] = {
      {1, 0, 1, 0, 1},    {0.7f, 0, 1, 0, 1}, {1.8f, 0, 1, 0, 1},     {1, 5, 1, 0, 1},
      {1, 0, 0.8f, 0, 1}, {1, 0, 1, 0.1f, 1}, {0.9f, 20, 0.9f, 0, 1}, {2, 12, 0.95f, 0.1f, 1}};
  enum { DRAWS = 20000, N = 48 };
  for (size_t s = 0; s < sizeof settings / sizeof settings[0]; s++)
    for (uint64_t seed = 0; seed < 4; seed++) {
      float logits[N];
      for (uint32_t i = 0; i < N; i++)
        logits[i] = bell(4);
      double probability[N];
      size_t kept = probable(probability, &settings[s], logits, N);
      be_sampler *sampler;
      CHECK(be_sampler_create(&sampler, N, seed) == BE_OK);
      uint32_t seen[N] = {0};
      for (int draw = 0; draw < DRAWS; draw++) {
        int32_t token;
        CHECK(be_sampler_next(sampler, &settings[s], logits, NULL, 0, &token) == BE_OK);
        seen[token]++;
      }
      be_sampler_destroy(sampler);
      // Rare tokens share a cell; each cell expects at least 10.
      double chi = 0, rare_expected = 0, rare_seen = 0;
      int cells = 0;
      for (int i = 0; i < N; i++) {
        CHECK(probability[i] > 0 || seen[i] == 0);
        double expected = probability[i] * DRAWS;
        if (expected < 10) {
          rare_expected += expected;
          rare_seen += seen[i];
          continue;
        }
        chi += (seen[i] - expected) * (seen[i] - expected) / expected;
        cells++;
      }
      if (rare_expected >= 10) {
        chi += (rare_seen - rare_expected) * (rare_seen - rare_expected) / rare_expected;
        cells++;
      }
      double freedom = cells - 1;
      printf("setting %zu seed %d: %zu tokens, chi-square %.1f of %g\n", s, (int)seed, kept, chi,
             freedom);
      CHECK(cells == 1 || chi < freedom + 4 * sqrt(2 * freedom) + 4); // p < 1e-4, about
    }
}

static int32_t pick(be_sampler *s, be_sampling p, const float *logits) {
  int32_t token;
  CHECK(be_sampler_next(s, &p, logits, NULL, 0, &token) == BE_OK);
  return token;
}

static void case_greedy(void) {
  be_sampler *s;
  CHECK(be_sampler_create(&s, 5, 0) == BE_OK);
  be_sampling greedy = plain;
  greedy.temperature = 0;
  CHECK(pick(s, greedy, (float[]){1, 3, 2, 3, 0}) == 1); // the lower of two equals
  CHECK(pick(s, greedy, (float[]){-INFINITY, NAN, -5, NAN, -6}) == 2);
  CHECK(pick(s, greedy, (float[]){NAN, INFINITY, 7, INFINITY, NAN}) == 1);
  CHECK(pick(s, greedy, (float[]){-0.0f, 0.0f, -1, -1, -1}) == 0);
  CHECK(pick(s, greedy, (float[]){-INFINITY, NAN, NAN, NAN, -FLT_MAX}) == 4);
  greedy.temperature = FLT_MIN / 2;
  CHECK(pick(s, greedy, (float[]){1, 3, 2, 3, 0}) == 1);
  be_sampler_destroy(s);
}

static void case_narrowest_filters_equal_greedy(void) {
  static float logits[MAX_VOCAB];
  be_sampling narrow[3] = {plain, plain, plain};
  narrow[0].top_k = 1;
  narrow[1].top_p = 1e-7f;
  narrow[2].min_p = 0x1.fffffep-1f; // ties with the largest would stay: none in these logits
  be_sampling greedy = plain;
  greedy.temperature = 0;
  be_sampler *s;
  CHECK(be_sampler_create(&s, MAX_VOCAB, 3) == BE_OK);
  for (int trial = 0; trial < 60; trial++) {
    kind which = (kind[]){BELL, PEAKED, STEPS}[trial % 3];
    fill_logits(logits, MAX_VOCAB, which);
    int32_t best = pick(s, greedy, logits);
    for (int i = 0; i < 3; i++) {
      if (i == 2)
        logits[best] += 1;
      narrow[i].temperature = trial % 2 ? 1 : 0.3f;
      CHECK(pick(s, narrow[i], logits) == best);
    }
  }
  be_sampler_destroy(s);
}

static void case_ties(void) {
  float logits[300];
  for (int i = 0; i < 300; i++)
    logits[i] = 2;
  be_sampler *s;
  CHECK(be_sampler_create(&s, 300, 5) == BE_OK);
  be_sampling p = plain;
  bool seen[300] = {false};
  p.top_k = 7; // of 300 equals: the seven lowest ids
  for (int draw = 0; draw < 500; draw++)
    seen[pick(s, p, logits)] = true;
  for (int i = 0; i < 300; i++)
    CHECK(seen[i] == (i < 7));
  p.top_k = 0;
  p.top_p = 0.1f; // float 0.1 lies above 1/10: 31 of 300
  memset(seen, 0, sizeof seen);
  for (int draw = 0; draw < 2000; draw++)
    seen[pick(s, p, logits)] = true;
  for (int i = 0; i < 300; i++)
    CHECK(seen[i] == (i < 31));
  be_sampler_destroy(s);
}

static void case_penalty(void) {
  be_sampler *s;
  CHECK(be_sampler_create(&s, 4, 0) == BE_OK);
  be_sampling p = plain;
  p.temperature = 0;
  p.repetition_penalty = 2;
  const float logits[] = {4, 3, -1, -3};
  int32_t token;
  CHECK(be_sampler_next(s, &p, logits, NULL, 0, &token) == BE_OK && token == 0);
  CHECK(be_sampler_next(s, &p, logits, (int32_t[]){0}, 1, &token) == BE_OK && token == 1);
  // Once however often it occurs: 4 / 2 / 2 would lose to 3 / 2.
  CHECK(be_sampler_next(s, &p, logits, (int32_t[]){0, 1, 0, 0}, 4, &token) == BE_OK && token == 0);
  const float negative[] = {-4, -2.5f, -1.5f, -9}; // -1.5 * 2 is less than -2.5
  CHECK(be_sampler_next(s, &p, negative, (int32_t[]){2, 3}, 2, &token) == BE_OK && token == 1);
  p.repetition_penalty = 0.5f; // encourages
  CHECK(be_sampler_next(s, &p, logits, (int32_t[]){1}, 1, &token) == BE_OK && token == 1);
  p.repetition_penalty = 1;
  CHECK(be_sampler_next(s, &p, logits, (int32_t[]){0}, 1, &token) == BE_OK && token == 0);
  be_sampler_destroy(s);
}

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

// The least logit that a draw with these needs can depend on, by a sort; -inf: all.
static float least_needed(const float *logits, uint32_t n, uint32_t best, float margin) {
  static float sorted[MAX_VOCAB];
  uint32_t valid = 0;
  for (uint32_t i = 0; i < n; i++)
    if (logits[i] == logits[i])
      sorted[valid++] = -logits[i];
  if (best == 0 || valid < best)
    return -INFINITY;
  qsort(sorted, valid, sizeof *sorted, ascending);
  return -sorted[best - 1] - margin;
}

// Whatever lies below what be_sampler_needs says can be anything that is not larger.
static void case_needs(void) {
  static float logits[MAX_VOCAB], masked[MAX_VOCAB];
  int screened = 0;
  for (uint32_t v = 0; v < N_VOCABS; v++) {
    be_sampler *s, *twin;
    CHECK(be_sampler_create(&s, vocabs[v], v) == BE_OK);
    CHECK(be_sampler_create(&twin, vocabs[v], v) == BE_OK);
    for (int trial = 0; trial < 1000; trial++) {
      fill_logits(logits, vocabs[v], (kind)(trial % KINDS));
      be_sampling p = random_sampling();
      int32_t recent[16], token = -1, again = -1;
      size_t n_recent;
      random_recent(recent, &n_recent, vocabs[v]);
      uint32_t best;
      float margin;
      be_sampler_needs(&p, n_recent, &best, &margin);
      CHECK(best <= BE_MAX_BEST && margin >= 0);
      float least = least_needed(logits, vocabs[v], best, margin);
      screened += least > -INFINITY;
      for (uint32_t i = 0; i < vocabs[v]; i++)
        masked[i] = logits[i] >= least || least == -INFINITY ? logits[i] : -INFINITY;
      be_status status = be_sampler_next(s, &p, logits, recent, n_recent, &token);
      CHECK(be_sampler_next(twin, &p, masked, recent, n_recent, &again) == status);
      CHECK(token == again);
    }
    be_sampler_destroy(s);
    be_sampler_destroy(twin);
  }
  CHECK(screened > 1000);

  const struct {
    be_sampling p;
    size_t n_recent;
    uint32_t best;
  } rows[] = {
      {{0, 0, 1, 0, 1}, 0, 1},        {{0, 9, 0.5f, 0, 1}, 7, 1}, {{0, 0, 1, 0, 2}, 255, 256},
      {{0, 0, 1, 0, 2}, 256, 0},      {{0, 0, 1, 0, 2}, 300, 0},  {{0, 0, 1, 0, 0.9f}, 1, 0},
      {{0, 0, 1, 0, 0.9f}, 0, 1},     {{1, 0, 1, 0, 1}, 0, 0},    {{1, 0, 0.5f, 0.1f, 1}, 0, 0},
      {{1, 256, 1, 0, 1}, 0, 256},    {{1, 257, 1, 0, 1}, 0, 0},  {{1, UINT32_MAX, 1, 0, 2}, 9, 0},
      {{1, 40, 1, 0, 1.1f}, 64, 104}, {{NAN, 40, 1, 0, 1}, 0, 0},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    uint32_t best;
    float margin;
    be_sampler_needs(&rows[i].p, rows[i].n_recent, &best, &margin);
    CHECK(best == rows[i].best);
    if (rows[i].p.temperature == 0)
      CHECK(margin == 0);
  }
}

static void case_errors(void) {
  be_sampler *s, *twin, *none = (be_sampler *)&s;
  CHECK(be_sampler_create(&none, 0, 0) == BE_ERR_ARGUMENT && none == NULL);
  CHECK(be_sampler_create(&none, (1 << 24) + 1, 0) == BE_ERR_ARGUMENT && none == NULL);
  for (int possible = 0; possible < 3; possible++) {
    allocations_left = possible;
    CHECK(be_sampler_create(&none, 10, 0) == BE_ERR_NO_MEMORY && none == NULL);
  }
  allocations_left = -1;
  be_sampler_destroy(NULL);

  CHECK(be_sampler_create(&s, 3, 9) == BE_OK && be_sampler_create(&twin, 3, 9) == BE_OK);
  const float logits[] = {1, 2, 3}, hopeless[] = {NAN, -INFINITY, NAN};
  const float bad[][4] = {// temperature, top_p, min_p, repetition_penalty
                          {-1, 1, 0, 1},       {NAN, 1, 0, 1},  {INFINITY, 1, 0, 1}, {1, 0, 0, 1},
                          {1, -0.5f, 0, 1},    {1, 1.5f, 0, 1}, {1, NAN, 0, 1},      {1, 1, -1, 1},
                          {1, 1, 1, 1},        {1, 1, NAN, 1},  {1, 1, 0, 0},        {1, 1, 0, -1},
                          {1, 1, 0, INFINITY}, {1, 1, 0, NAN}};
  int32_t token = -7;
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    be_sampling p = {bad[i][0], 0, bad[i][1], bad[i][2], bad[i][3]};
    CHECK(be_sampler_next(s, &p, logits, NULL, 0, &token) == BE_ERR_ARGUMENT);
  }
  CHECK(be_sampler_next(s, &plain, logits, (int32_t[]){0, 3}, 2, &token) == BE_ERR_ARGUMENT);
  CHECK(be_sampler_next(s, &plain, logits, (int32_t[]){-1}, 1, &token) == BE_ERR_ARGUMENT);
  CHECK(be_sampler_next(s, &plain, hopeless, NULL, 0, &token) == BE_ERR_OUT_OF_RANGE);
  be_sampling greedy = plain;
  greedy.temperature = 0;
  CHECK(be_sampler_next(s, &greedy, hopeless, NULL, 0, &token) == BE_ERR_OUT_OF_RANGE);
  CHECK(token == -7);
  for (int i = 0; i < 100; i++) // the generator has not moved
    CHECK(pick(s, plain, logits) == pick(twin, plain, logits));
  be_sampler_destroy(s);
  be_sampler_destroy(twin);
}

static void case_seeds(void) {
  float logits[1000];
  for (int i = 0; i < 1000; i++)
    logits[i] = bell(1);
  int equal = 0;
  be_sampler *a, *b, *c;
  CHECK(be_sampler_create(&a, 1000, 42) == BE_OK && be_sampler_create(&b, 1000, 42) == BE_OK &&
        be_sampler_create(&c, 1000, 43) == BE_OK);
  for (int i = 0; i < 200; i++) {
    int32_t token = pick(a, plain, logits);
    CHECK(token == pick(b, plain, logits));
    equal += token == pick(c, plain, logits);
  }
  CHECK(equal < 10);
  be_sampler_destroy(a);
  be_sampler_destroy(b);
  be_sampler_destroy(c);
}

static void case_memory(void) {
  be_sampler *s;
  CHECK(be_sampler_create(&s, 128256, 0) == BE_OK);
  CHECK(be_sampler_bytes(s) >= 128256 * 8 && be_sampler_bytes(s) <= 128256 * 8 + 16384);
  be_sampler_destroy(s);
}

// The largest vocabulary there can be, all tokens alike: the sum of weights is 2^63.
static void case_largest_vocabulary(void) {
  uint32_t n = 1 << 24;
  float *logits = calloc(n, sizeof *logits);
  be_sampler *s;
  CHECK(logits && be_sampler_create(&s, n, 77) == BE_OK);
  generator g = seeded(77);
  for (int i = 0; i < 3; i++)
    CHECK((uint32_t)pick(s, plain, logits) == next(&g) >> 40);
  be_sampler_destroy(s);
  free(logits);
}

// For comparison between machines.
static void case_print_tokens(void) {
  static float logits[MAX_VOCAB];
  for (uint32_t v = 0; v < N_VOCABS; v++) {
    be_sampler *s;
    CHECK(be_sampler_create(&s, vocabs[v], v) == BE_OK);
    for (int trial = 0; trial < 600; trial++) {
      fill_logits(logits, vocabs[v], (kind)(trial % KINDS));
      be_sampling p = random_sampling();
      int32_t recent[16], token = -1;
      size_t n_recent;
      random_recent(recent, &n_recent, vocabs[v]);
      be_status status = be_sampler_next(s, &p, logits, recent, n_recent, &token);
      printf("%d:%d\n", (int)status, (int)token);
    }
    be_sampler_destroy(s);
  }
}

#define CASE(name) {#name, case_##name}
static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
    CASE(agrees_with_the_reference),
    CASE(distribution),
    CASE(greedy),
    CASE(narrowest_filters_equal_greedy),
    CASE(ties),
    CASE(penalty),
    CASE(needs),
    CASE(errors),
    CASE(seeds),
    CASE(memory),
    CASE(largest_vocabulary),
    CASE(print_tokens),
};

int main(int argc, char **argv) {
  for (size_t i = 0; argc == 2 && i < sizeof cases / sizeof cases[0]; i++)
    if (strcmp(argv[1], cases[i].name) == 0) {
      cases[i].run();
      return 0;
    }
  fprintf(stderr, "usage: %s CASE\n", argv[0]);
  return 2;
}
