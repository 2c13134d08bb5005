// SPDX-License-Identifier: MIT
// Token sampling (sampler.h states what is computed; this is how).
//
// Candidates are (distance, id) pairs in ascending id. Every filter, and the draw itself, is one
// question: in the order (distance, id), which candidate is the first at which the running sum of
// the weights exceeds a target? Weights are integers, so a sum does not depend on its order, and
// the question is answered without sorting, by a radix descent: distances are non-negative floats,
// whose bits ascend as they do. Sum the weights per bucket of the leading bits, walk to the bucket
// that crosses the target, drop what lies beyond it, look at the next bits of that bucket alone.
// Three passes, linear in the vocabulary whatever the distribution; a heap would need a step of
// log n, with its cache misses, for each of the thousands of candidates of a flat distribution.
//
//   key    30........20 19......10 9.......0      (bit 31, the sign, is 0)
//          1055 buckets  1024       1024          the first has fewer: distances end at 28
#include "sampler.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "bitnet_edge.h"
#include "kernels.h"
#include "scalar/float_bits.h"

enum {
  BLOCK = 256, // elements per vectorised step
  LANES = 16,
  KEY_BITS = 31,
  LEVEL_BITS = 10, // of the second and third level
  BUCKETS = 1056
};

#define FARTHEST 28.0f     // exp(-28) * WEIGHT_ONE < 1: no weight from here on
#define WEIGHT_ONE 0x1p39f // so that 2^24 of them do not overflow 64 bits

_Static_assert((uint64_t)BE_MAX_DIMENSION << 39 <= UINT64_C(1) << 63,
               "the sum of weights overflows");

typedef enum measure { BY_COUNT, BY_WEIGHT } measure;

struct be_sampler {
  uint64_t random[4];
  uint32_t vocab_size;
  uint32_t n;      // candidates
  float *distance; // [vocab_size], n in use
  uint32_t *id;    // [vocab_size], n in use
  uint64_t bucket[BUCKETS];
};

// ---- Random numbers: xoshiro256**, seeded by splitmix64 (Blackman and Vigna, public domain) ----

static uint64_t splitmix64(uint64_t *state) {
  uint64_t z = *state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static uint64_t rotate_left(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

static uint64_t next_random(uint64_t s[4]) {
  uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate_left(s[3], 45);
  return result;
}

// floor(a * b / 2^64), for compilers without a 128-bit type too.
static uint64_t multiply_high(uint64_t a, uint64_t b) {
  uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
  uint64_t middle = a1 * b0 + (a0 * b0 >> 32);
  return a1 * b1 + (middle >> 32) + ((a0 * b1 + (uint32_t)middle) >> 32);
}

// ---- Lists of candidates ----------------------------------------------------------------------

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

// The first index of the largest value; n when all are NaN or -inf.
static uint32_t find_largest(const float *x, uint32_t n) {
  float largest = -INFINITY;
  uint32_t block = n;
  for (uint32_t start = 0; start < n; start += BLOCK) {
    uint32_t end = start + smaller(BLOCK, n - start), i = start;
    float lane[LANES], m = -INFINITY;
    for (int j = 0; j < LANES; ++j)
      lane[j] = -INFINITY;
    for (; i + LANES <= end; i += LANES)
      for (int j = 0; j < LANES; ++j)
        lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j]; // NaN compares false
    for (; i < end; ++i)
      m = x[i] > m ? x[i] : m;
    for (int j = 0; j < LANES; ++j)
      m = lane[j] > m ? lane[j] : m;
    if (m > largest) {
      largest = m;
      block = start;
    }
  }
  if (block == n)
    return n;
  while (x[block] != largest)
    ++block;
  return block;
}

// Lists the tokens that have a weight. `logits` may be the distances' own buffer.
static void list_candidates(be_sampler *s, const float *logits, float largest, float temperature) {
  uint32_t n = 0;
  for (uint32_t start = 0; start < s->vocab_size; start += BLOCK) {
    uint32_t count = smaller(BLOCK, s->vocab_size - start);
    float d[BLOCK];
    for (uint32_t i = 0; i < count; ++i)
      d[i] = (largest - logits[start + i]) / temperature + 0.0f; // -0, of 0 and -0, becomes 0
    for (uint32_t i = 0; i < count; ++i) {
      s->distance[n] = d[i];
      s->id[n] = start + i;
      n += d[i] < FARTHEST; // false for NaN
    }
  }
  s->n = n;
}

// The limit of the above when logits are +inf: these are equal, the others have no weight.
static void list_infinite(be_sampler *s, const float *logits) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < s->vocab_size; ++i)
    if (logits[i] == INFINITY) {
      s->distance[n] = 0.0f;
      s->id[n++] = i;
    }
  s->n = n;
}

static uint64_t to_weight(float exponential) {
  return (uint64_t)(int64_t)(exponential * WEIGHT_ONE);
}

// Fills the buckets with the measure of the candidates whose key begins with `prefix` (all bits
// from `above` on), by the bits from `shift` to `above`.
static void fill_buckets(be_sampler *s, measure by, uint32_t prefix, int above, int shift) {
  uint32_t mask = (1u << (above - shift)) - 1;
  memset(s->bucket, 0, sizeof s->bucket);
  for (uint32_t i = 0; i < s->n;) {
    uint32_t index[BLOCK], count = 0;
    float x[BLOCK];
    for (; i < s->n && count < BLOCK; ++i) {
      uint32_t key = be_float_bits(s->distance[i]);
      index[count] = (key >> shift) & mask;
      x[count] = -s->distance[i];
      count += key >> above == prefix;
    }
    if (by == BY_WEIGHT)
      exp_f32_scalar(x, x, count);
    for (uint32_t j = 0; j < count; ++j)
      s->bucket[index[j]] += by == BY_WEIGHT ? to_weight(x[j]) : 1;
  }
}

static uint64_t measure_all(be_sampler *s, measure by) {
  fill_buckets(s, by, 0, KEY_BITS, 2 * LEVEL_BITS);
  uint64_t sum = 0;
  for (int i = 0; i < BUCKETS; ++i)
    sum += s->bucket[i];
  return sum;
}

// Keeps the candidates up to and including the one at which the running sum first exceeds
// `target`, and returns its id. The buckets hold measure_all of the list; target < their sum.
static uint32_t cut_at(be_sampler *s, measure by, uint64_t target) {
  uint32_t prefix = 0;
  for (int shift = 2 * LEVEL_BITS;; shift -= LEVEL_BITS) {
    uint32_t bucket = 0;
    while (target >= s->bucket[bucket])
      target -= s->bucket[bucket++];
    prefix = prefix << LEVEL_BITS | bucket;
    if (shift == 0)
      break;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n; ++i) {
      float distance = s->distance[i];
      s->distance[n] = distance;
      s->id[n] = s->id[i];
      n += be_float_bits(distance) >> shift <= prefix;
    }
    s->n = n;
    fill_buckets(s, by, prefix, shift, shift - LEVEL_BITS);
  }

  // What is left of the target counts through equal distances, that is equal weights.
  float distance = be_bits_float(prefix), x = -distance;
  exp_f32_scalar(&x, &x, 1);
  uint64_t ties = by == BY_WEIGHT ? target / to_weight(x) : target;
  uint32_t n = 0, last = 0;
  for (uint32_t i = 0; i < s->n; ++i) {
    float d = s->distance[i];
    uint32_t id = s->id[i];
    if (d > distance || (d == distance && ties == UINT64_MAX))
      continue;
    if (d == distance) {
      last = id;
      --ties; // past the last: UINT64_MAX
    }
    s->distance[n] = d;
    s->id[n++] = id;
  }
  s->n = n;
  return last;
}

// The smallest set whose mass reaches top_p of `sum`: cut where the running sum exceeds this.
static uint64_t nucleus_target(float top_p, uint64_t sum) {
  double wanted = (double)top_p * (double)sum;
  uint64_t mass = (uint64_t)wanted;
  mass += (double)mass < wanted;
  if (mass > sum)
    mass = sum;
  return mass > 0 ? mass - 1 : 0;
}

static void drop_improbable(be_sampler *s, float min_p) {
  uint32_t n = 0;
  for (uint32_t start = 0; start < s->n; start += BLOCK) {
    uint32_t count = smaller(BLOCK, s->n - start);
    float x[BLOCK];
    for (uint32_t i = 0; i < count; ++i)
      x[i] = -s->distance[start + i];
    exp_f32_scalar(x, x, count);
    for (uint32_t i = 0; i < count; ++i) {
      s->distance[n] = s->distance[start + i];
      s->id[n] = s->id[start + i];
      n += x[i] >= min_p;
    }
  }
  s->n = n;
}

// ---- The interface ----------------------------------------------------------------------------

be_status be_sampler_create(be_sampler **out, uint32_t vocab_size, uint64_t seed) {
  *out = NULL;
  if (vocab_size == 0 || vocab_size > BE_MAX_DIMENSION)
    return BE_ERR_ARGUMENT;
  be_sampler *s = calloc(1, sizeof *s); // the lists apart: their pages stay untouched until used
  if (!s)
    return BE_ERR_NO_MEMORY;
  s->vocab_size = vocab_size;
  s->distance = malloc(vocab_size * sizeof *s->distance);
  s->id = malloc(vocab_size * sizeof *s->id);
  for (int i = 0; i < 4; ++i)
    s->random[i] = splitmix64(&seed);
  if (!s->distance || !s->id) {
    be_sampler_destroy(s);
    return BE_ERR_NO_MEMORY;
  }
  *out = s;
  return BE_OK;
}

void be_sampler_destroy(be_sampler *s) {
  if (!s)
    return;
  free(s->distance);
  free(s->id);
  free(s);
}

size_t be_sampler_bytes(const be_sampler *s) {
  return sizeof *s + s->vocab_size * (sizeof *s->distance + sizeof *s->id);
}

// Comparisons are written so that NaN fails them.
static bool is_valid(const be_sampling *p) {
  return p->temperature >= 0 && p->temperature < INFINITY && p->top_p > 0 && p->top_p <= 1 &&
         p->min_p >= 0 && p->min_p < 1 && p->repetition_penalty > 0 &&
         p->repetition_penalty < INFINITY;
}

void be_sampler_needs(const be_sampling *p, size_t n_recent, uint32_t *best, float *margin) {
  bool greedy = p->temperature < FLT_MIN;
  uint64_t wanted = greedy ? 1 : p->top_k;
  *best = 0;
  *margin = greedy ? 0.0f : p->temperature * 0x1p-17f;
  if (wanted == 0 || !is_valid(p))
    return;
  if (p->repetition_penalty != 1 && n_recent > 0) {
    if (p->repetition_penalty < 1 || n_recent > BE_MAX_BEST)
      return;
    wanted += n_recent;
  }
  if (wanted <= BE_MAX_BEST)
    *best = (uint32_t)wanted;
}

be_status be_sampler_next(be_sampler *s, const be_sampling *p, const float *logits,
                          const int32_t *recent, size_t n_recent, int32_t *token) {
  if (!is_valid(p))
    return BE_ERR_ARGUMENT;
  for (size_t i = 0; i < n_recent; ++i)
    if (recent[i] < 0 || (uint32_t)recent[i] >= s->vocab_size)
      return BE_ERR_ARGUMENT;

  if (p->repetition_penalty != 1 && n_recent > 0) {
    memcpy(s->distance, logits, s->vocab_size * sizeof *logits);
    for (size_t i = 0; i < n_recent; ++i) { // from the original each time: duplicates count once
      float x = logits[recent[i]];
      s->distance[recent[i]] = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
    }
    logits = s->distance;
  }

  uint32_t best = find_largest(logits, s->vocab_size);
  if (best == s->vocab_size)
    return BE_ERR_OUT_OF_RANGE;
  if (p->temperature < FLT_MIN) { // smaller ones could count as 0, or not, by the thread's mode
    *token = (int32_t)best;
    return BE_OK;
  }

  if (logits[best] < INFINITY)
    list_candidates(s, logits, logits[best], p->temperature);
  else
    list_infinite(s, logits);
  if (p->top_k > 0 && p->top_k < s->n) {
    measure_all(s, BY_COUNT);
    cut_at(s, BY_COUNT, p->top_k - 1);
  }
  if (p->top_p < 1)
    cut_at(s, BY_WEIGHT, nucleus_target(p->top_p, measure_all(s, BY_WEIGHT)));
  if (p->min_p > 0)
    drop_improbable(s, p->min_p);
  uint64_t sum = measure_all(s, BY_WEIGHT);
  *token = (int32_t)cut_at(s, BY_WEIGHT, multiply_high(next_random(s->random), sum));
  return BE_OK;
}
