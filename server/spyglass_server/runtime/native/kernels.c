// What the text model computes on CPUs, and attention inside the vision encoder, for AVX2 and AVX-512.
//
// The sums of a row do not depend on the rows beside it: one accumulator for each output, in the order of the inputs,
// and attention in blocks of slots that are counted from the beginning of the row's own context.
// The threads are OpenMP's, and so torch's.

#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__AVX512F__)
#define LANES 16
#define MAX_ROWS 12 // 24 accumulators, 2 weights: of 32 registers
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define MAX_ROWS 6 // 12 accumulators, 2 weights, 1 input: of 16 registers
#else
#error "AVX2 is needed"
#endif
#define HAS_UNITS (LANES == 16 && (__GNUC__ >= 11 || __clang_major__ >= 12)) // what the compiler knows of matrix units
#define PANEL (2 * LANES)
#define BLOCK 64      // slots whose scores are computed before their values are read
#define CHUNK 512     // slots that one thread reads for a query
#define PATIENCE 4096 // turns for which a thread waits before it lets others run in its place
#define LOG2_E 1.44269504f
#define AHEAD 2048 // bytes of weights that are asked for before they are needed
#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64))) // to the lines that are read at once
#define UNALIGNED __attribute__((vector_size(4 * LANES), aligned(4), may_alias))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float loose UNALIGNED;

INLINE vec load(const float* from) { return *(const loose*)from; }
INLINE void store(float* to, vec value) { *(loose*)to = value; }
INLINE vec splat(float value) { return value - (vec){}; }

INLINE int any(ivec v) {
#if LANES == 16
  return _mm512_movepi32_mask((__m512i)v) != 0;
#else
  return _mm256_movemask_ps((__m256)v) != 0;
#endif
}

INLINE vec choose(ivec condition, vec yes, vec no) { return (vec)((condition & (ivec)yes) | (~condition & (ivec)no)); }

// The larger one; what is not a number in a stays so.
INLINE vec larger(vec a, vec b) {
#if LANES == 16
  return (vec)_mm512_max_ps((__m512)b, (__m512)a);
#else
  return (vec)_mm256_max_ps((__m256)b, (__m256)a);
#endif
}

INLINE __m128 quarter(vec v) {
#if LANES == 16
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
  __m256 half = (__m256)v;
#endif
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

INLINE __m128 sums(vec a, vec b, vec c, vec d) {
  return _mm_hadd_ps(_mm_hadd_ps(quarter(a), quarter(b)), _mm_hadd_ps(quarter(c), quarter(d)));
}

INLINE float sum(vec v) { return _mm_cvtss_f32(sums(v, v, v, v)); }

// e^x, within 2 units in the last place; what is below -87 counts as that.
INLINE vec exponential(vec x) {
  const float magic = 12582912; // adding it leaves a whole number in the lowest bits
  x = larger(x, splat(-87.0f));
  x = -larger(-x, splat(-88.0f));
  vec shifted = x * LOG2_E + magic, whole = shifted - magic;
  vec rest = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  vec power = rest * 1.98756916e-4f + 1.39819995e-3f;
  power = power * rest + 8.33345205e-3f;
  power = power * rest + 4.16657962e-2f;
  power = power * rest + 1.66666657e-1f;
  power = power * rest + 0.5f;
  power = power * rest * rest + rest + 1.0f;
  return (vec)((ivec)power + ((ivec)shifted << 23));
}

// 2^x of what is not above 0, within 2 units in the last place; what is below -126 counts as that.
INLINE vec power_of_2(vec x) {
  const float magic = 12582912;
  x = larger(x, splat(-126.0f));
  vec shifted = x + magic, rest = x - (shifted - magic);
  vec power = rest * 1.53533619e-4f + 1.33988744e-3f;
  power = power * rest + 9.61843736e-3f;
  power = power * rest + 5.55033247e-2f;
  power = power * rest + 2.40226479e-1f;
  power = power * rest + 6.93147203e-1f;
  power = power * rest + 1.0f;
  return (vec)((ivec)power + ((ivec)shifted << 23));
}

INLINE long smaller(long a, long b) { return a < b ? a : b; }

// --- numbers in 16 and 8 bits ----------------------------------------------------------------------

enum { FLOAT32, BFLOAT16, INT8 };
static const int bytes[] = {[FLOAT32] = 4, [BFLOAT16] = 2, [INT8] = 1};

INLINE vec from_int(ivec v) {
#if LANES == 16
  return (vec)_mm512_cvtepi32_ps((__m512i)v);
#else
  return (vec)_mm256_cvtepi32_ps((__m256i)v);
#endif
}

// LANES whole numbers of 16 bits (without sign) or 8 bits (with it).
INLINE ivec wide16(const uint16_t* from) {
#if LANES == 16
  return (ivec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#else
  return (ivec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#endif
}

INLINE ivec wide8(const int8_t* from) {
#if LANES == 16
  return (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  return (ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#endif
}

INLINE float widened(uint16_t value) {
  uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

INLINE uint16_t narrowed(float value) { // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return bits >> 16 | 64;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// The caches are of float or bfloat16.
INLINE vec load_as(int form, const void* from, long at) {
  return form == FLOAT32 ? load((const float*)from + at) : (vec)(wide16((const uint16_t*)from + at) << 16);
}

INLINE float one_as(int form, const void* from, long at) {
  return form == FLOAT32 ? ((const float*)from)[at] : widened(((const uint16_t*)from)[at]);
}

INLINE void store_as(int form, void* to, long at, float value) {
  if (form == FLOAT32) ((float*)to)[at] = value;
  else ((uint16_t*)to)[at] = narrowed(value);
}

// --- linear layers ---------------------------------------------------------------------------------
//
// Weights lie in panels: for each PANEL outputs, input by input, their weights side by side. In bfloat16 each output
// has the weights of two inputs side by side, as the processor's matrix units read them.

INLINE void weights_of(int form, const char* panel, long input, vec weights[2]) {
  for (int i = 0; i < 2; i++) {
    long at = input * PANEL + i * LANES;
    if (form == FLOAT32) weights[i] = load((const float*)panel + at);
    if (form == INT8) weights[i] = from_int(wide8((const int8_t*)panel + at));
    if (form == BFLOAT16) {
      ivec pair = (ivec)load((const float*)panel + input / 2 * PANEL + i * LANES);
      weights[i] = (vec)(input % 2 ? pair & (int32_t)0xffff0000 : pair << 16);
    }
  }
}

// What becomes of a row's sums: they are scaled, and written or, gated, silu(low) * high. They come by value, so that
// they stay in registers until here.
static __attribute__((noinline)) void finish(vec low, vec high, const float* scales, float* out, long width,
                                             int is_gated) {
  if (scales) {
    low *= load(scales);
    high *= load(scales + LANES);
  }
  if (is_gated) {
    vec gate = larger(low, splat(-88.0f)); // below, nothing is left of it
    low = gate / (1.0f + exponential(-gate)) * high;
  }
  if (width == (is_gated ? LANES : PANEL)) {
    store(out, low);
    if (!is_gated) store(out + LANES, high);
  } else {
    float both[PANEL];
    store(both, low);
    store(both + LANES, high);
    memcpy(out, both, width * sizeof(float));
  }
}

// x [rows, depth] times weights of `form` in panels, whose scales [panels, PANEL] may be null: out [rows, columns].
// Gated, each panel has LANES gates and the LANES values that they are for, and there are half as many columns. x is
// float; for the matrix units, which want weights in bfloat16 and a depth in 32s, it is bfloat16.
typedef struct {
  const void* x;
  const char* weights;
  const float* scales;
  float* out;
  long rows, depth, columns;
  int form, is_gated, has_units;
} product;

// Some rows times a panel.
INLINE void tile(int rows, int form, const product* p, long first, const char* panel, const char* next, long step,
                 const float* scales, float* out, long width) {
  long depth = p->depth;
  const float* x = (const float*)p->x + first * depth;
  vec acc[MAX_ROWS][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (vec){};
#pragma GCC unroll 2
  for (long k = 0; k < depth; k += 2)
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; odd++) {
      vec weights[2];
      weights_of(form, panel, k + odd, weights);
      for (int i = 0; i < PANEL * bytes[form]; i += 64)
        __builtin_prefetch(panel + (k + odd) * PANEL * bytes[form] + AHEAD + i);
      for (int i = 0; i < PANEL * bytes[form]; i += 64)
        if (i < step) __builtin_prefetch(next + (k + odd) * step + i, 0, 2);
#pragma GCC unroll 12
      for (int r = 0; r < rows; r++) {
        vec input = splat(x[r * depth + k + odd]);
        acc[r][0] += weights[0] * input;
        acc[r][1] += weights[1] * input;
      }
    }
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++) finish(acc[r][0], acc[r][1], scales, out + r * p->columns, width, p->is_gated);
}

// As many rows at once as there is code for: 12, 8, 6, 4, 3, 2 or 1.
INLINE void tiles(int form, const product* p, long first, long last, const char* panel, const char* next, long step,
                  const float* scales, float* out, long width) {
  while (first < last) {
#define CASE(N)                                                     \
  if (last - first >= N) {                                          \
    tile(N, form, p, first, panel, next, step, scales, out, width); \
    first += N;                                                     \
    out += N * p->columns;                                          \
    continue;                                                       \
  }
#if MAX_ROWS == 12
    CASE(12)
    CASE(8)
#endif
    CASE(6) CASE(4) CASE(3) CASE(2) CASE(1)
  }
}

static void with_float32(const product* p, long first, long last, const char* panel, const char* next, long step,
                         const float* scales, float* out, long width) {
  tiles(FLOAT32, p, first, last, panel, next, step, scales, out, width);
}

static void with_bfloat16(const product* p, long first, long last, const char* panel, const char* next, long step,
                          const float* scales, float* out, long width) {
  tiles(BFLOAT16, p, first, last, panel, next, step, scales, out, width);
}

static void with_int8(const product* p, long first, long last, const char* panel, const char* next, long step,
                      const float* scales, float* out, long width) {
  tiles(INT8, p, first, last, panel, next, step, scales, out, width);
}

#if HAS_UNITS
#define UNITS __attribute__((target("amx-tile,amx-bf16")))
// What the units read must have been written: GCC's functions for them do not say that they read memory.
#define WRITTEN(WHERE) __asm__ volatile("" ::"r"(WHERE) : "memory")

// The matrix units: 16 rows times 16 columns at once, in tiles 0 to 3 the sums, 4 and 5 inputs, 6 and 7 weights. Of the
// two tiles of inputs the `upper` and the `lower` have so many rows.
UNITS static void prepare_units(long upper, long lower) {
  struct {
    uint8_t palette, start, none[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } __attribute__((aligned(64))) shape = {.palette = 1};
  const int held[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
  for (int i = 0; i < 8; i++) shape.rows[i] = held[i], shape.row_bytes[i] = held[i] ? 64 : 0;
  WRITTEN(&shape);
  _tile_loadconfig(&shape);
}

UNITS static void release_units(void) { _tile_release(); }

UNITS static void with_units(const product* p, long first, long last, const char* panel, const char* next, long step,
                             const float* scales, float* out, long width) {
  long depth = p->depth, rows = last - first, upper = smaller(rows, 16), lower = rows - upper;
  const uint16_t* x = (const uint16_t*)p->x + first * depth;
  prepare_units(upper, lower);
  _tile_zero(0);
  _tile_zero(1);
  if (lower) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long k = 0; k < depth; k += 32) {
    const char* weights = panel + k * PANEL * 2;
    for (int i = 0; i < 32 * step; i += 64) __builtin_prefetch(next + k * step + i, 0, 2);
    _tile_loadd(6, weights, PANEL * 4);
    _tile_loadd(7, weights + 64, PANEL * 4);
    _tile_loadd(4, x + k, depth * 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (lower) {
      _tile_loadd(5, x + 16 * depth + k, depth * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  vec sums[32][2];
  _tile_stored(0, &sums[0][0], PANEL * 4);
  _tile_stored(1, &sums[0][1], PANEL * 4);
  if (lower) {
    _tile_stored(2, &sums[16][0], PANEL * 4);
    _tile_stored(3, &sums[16][1], PANEL * 4);
  }
  release_units();
  for (long r = 0; r < rows; r++) finish(sums[r][0], sums[r][1], scales, out + r * p->columns, width, p->is_gated);
}
#endif

// Whether there are matrix units, and the system lets this process use them.
int matrix_units(void) {
#if HAS_UNITS
  unsigned a, b, c, features;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &features)) return 0;
  if (!(features >> 22 & 1) || !(features >> 24 & 1)) return 0; // amx-bf16, amx-tile
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;              // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
#else
  return 0;
#endif
}

typedef struct {
  long panels, blocks, parts; // blocks of rows, and parts with some of them where there are few panels
  int each, most;             // outputs of a panel, rows of a block
} division;

INLINE division divided(const product* p, int threads) {
  division d = {.each = p->is_gated ? LANES : PANEL, .most = p->has_units ? 32 : MAX_ROWS};
  d.blocks = (p->rows + d.most - 1) / d.most;
  d.panels = (p->columns + d.each - 1) / d.each;
  d.parts = d.panels >= 8 * threads ? 1 : d.blocks;
  return d;
}

static void multiply(const product* p, int threads, long task) {
  void (*compute)(const product*, long, long, const char*, const char*, long, const float*, float*, long) =
      p->form == FLOAT32 ? with_float32
      : p->form == INT8  ? with_int8
                         : with_bfloat16;
#if HAS_UNITS
  if (p->has_units) compute = with_units;
#endif
  division d = divided(p, threads);
  long panel = task / d.parts, part = task % d.parts, width = p->columns - panel * d.each;
  long begin = part * d.blocks / d.parts, end = (part + 1) * d.blocks / d.parts;
  long size = p->depth * PANEL * bytes[p->form];
  const char *weights = p->weights + panel * size, *next = weights + threads * size;
  // each block asks for a part of the panel that this thread is likely to take next
  long step = end - begin > 1 && end - begin <= 8 ? PANEL * bytes[p->form] / (end - begin) : 0;
  for (long block = begin; block < end; block++, next += p->depth * step) {
    long first = block * d.most, last = smaller(first + d.most, p->rows);
    compute(p, first, last, weights, next, step, p->scales ? p->scales + panel * PANEL : NULL,
            p->out + first * p->columns + panel * d.each, smaller(width, d.each));
  }
}

// --- norms and the rotary embedding ----------------------------------------------------------------

// Adds `added` * `gate` to the residual stream x [rows, size], where these are given; normed: its root-mean-square
// norm.
typedef struct {
  float* x;
  const float *added, *gate, *weight;
  float* normed;
  long rows, size;
  float eps;
} norm;

static void normalize(const norm* n, long row) {
  float *x = n->x + row * n->size, *normed = n->normed + row * n->size;
  if (n->added) {
    const float* added = n->added + row * n->size;
    float factor = n->gate ? *n->gate : 1.0f;
    for (long i = 0; i < n->size; i++) x[i] += factor * added[i];
  }
  vec squares[2] = {};
  long i = 0;
  for (; i + PANEL <= n->size; i += PANEL)
    for (int j = 0; j < 2; j++) {
      vec value = load(x + i + j * LANES);
      squares[j] += value * value;
    }
  float total = sum(squares[0] + squares[1]);
  for (; i < n->size; i++) total += x[i] * x[i];
  float factor = 1.0f / sqrtf(total / n->size + n->eps);
  for (i = 0; i < n->size; i++) normed[i] = x[i] * factor * n->weight[i];
}

// Copies some rows of `size` numbers: from those in `sources` to those in `targets`, of which null means 0, 1, 2, …
typedef struct {
  const float* from;
  float* to;
  const int64_t *sources, *targets;
  long rows, size;
} moving;

static void move(const moving* m, long row) {
  long source = m->sources ? m->sources[row] : row, target = m->targets ? m->targets[row] : row;
  memcpy(m->to + target * m->size, m->from + source * m->size, m->size * sizeof(float));
}

// x [rows, size] in bfloat16.
typedef struct {
  const float* x;
  uint16_t* narrow;
  long rows, size;
} narrowing;

static void narrow(const narrowing* n, long row) {
  for (long i = row * n->size; i < (row + 1) * n->size; i++) n->narrow[i] = narrowed(n->x[i]);
}

// Lays out weights [columns, depth] as products read them: [panels, depth, PANEL]. Where there are two, a panel is one
// half of each, side by side. An element is of 1 or 4 bytes, which may be a pair of numbers; columns that are missing
// in the last panel are zero.
typedef struct {
  const void* from[2];
  void* to;
  long columns, depth;
  int element_bytes;
} packing;

typedef uint32_t word __attribute__((aligned(1), may_alias));

// To [depth, PANEL] from [count, depth], a line of each row at once.
INLINE void to_panels(const char* from, char* to, long count, long depth, long size) {
  long some = 64 / size;
  for (long begin = 0; begin < depth; begin += some)
    for (long row = 0; row < count; row++)
      for (long i = begin; i < depth && i < begin + some; i++)
        if (size == 1) to[i * PANEL + row] = from[row * depth + i];
        else ((word*)to)[i * PANEL + row] = ((const word*)from)[row * depth + i];
}

static long num_panels(const packing* p) {
  long width = p->from[1] ? PANEL / 2 : PANEL;
  return (p->columns + width - 1) / width;
}

static void pack(const packing* p, long panel) {
  int halves = p->from[1] ? 2 : 1;
  long width = PANEL / halves, size = p->element_bytes;
  long count = p->columns - panel * width < width ? p->columns - panel * width : width;
  char* packed = (char*)p->to + panel * p->depth * PANEL * size;
  if (count < width) memset(packed, 0, p->depth * PANEL * size);
  for (int half = 0; half < halves; half++) {
    const char* from = (const char*)p->from[half] + panel * width * p->depth * size;
    char* to = packed + half * width * size;
    if (size == 1) to_panels(from, to, count, p->depth, 1);
    else to_panels(from, to, count, p->depth, 4);
  }
}

INLINE void rotate(int form, const float* restrict x, const float* restrict cosine, const float* restrict sine,
                   long dim, void* restrict to, long at) {
  long half = dim / 2;
  for (long i = 0; i < half; i++) store_as(form, to, at + i, x[i] * cosine[i] + x[i + half] * sine[i]);
  for (long i = half; i < dim; i++) store_as(form, to, at + i, x[i] * cosine[i] + x[i - half] * sine[i]);
}

// Splits qkv [tokens, (heads + 2 * kv_heads) * dim]: rotates queries into q and keys into the tokens' slots, and stores
// values. cosine and sine are [tokens, dim], keys and values of `form`.
typedef struct {
  const float *qkv, *cosine, *sine;
  const int64_t* slots;
  float* q;
  void *keys, *values;
  long tokens, heads, kv_heads, dim;
  int form;
} storing;

INLINE void store_token(int form, const storing* s, long token) {
  long dim = s->dim, slot = s->slots[token];
  const float* from = s->qkv + token * (s->heads + 2 * s->kv_heads) * dim;
  const float *cosine = s->cosine + token * dim, *sine = s->sine + token * dim;
  for (long head = 0; head < s->heads; head++, from += dim)
    rotate(FLOAT32, from, cosine, sine, dim, s->q, (token * s->heads + head) * dim);
  for (long head = 0; head < s->kv_heads; head++, from += dim)
    rotate(form, from, cosine, sine, dim, s->keys, (slot * s->kv_heads + head) * dim);
  for (long i = 0; i < s->kv_heads * dim; i++) store_as(form, s->values, slot * s->kv_heads * dim + i, from[i]);
}

static void rotate_and_store(const storing* s, long token) {
  if (s->form == FLOAT32) store_token(FLOAT32, s, token);
  else store_token(BFLOAT16, s, token);
}

// --- attention -------------------------------------------------------------------------------------

// A head's keys and values: where each slot has those of `dim` numbers, of a form, `step` from those of the next.
typedef struct {
  const void *keys, *values;
  long offset, step, dim;
} head_cache;

// Scores of a query to a block of slots.
INLINE void score_query(int form, const float* q, const head_cache* c, const int64_t* slots, long count, float scale,
                        float* scores) {
  for (long t = 0; t < count; t += 4) {
    long at[4], d = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) at[i] = slots[t + i < count ? t + i : count - 1] * c->step + c->offset;
    vec acc[4] = {};
    for (; d + LANES <= c->dim; d += LANES) {
      vec query = load(q + d);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) acc[i] += query * load_as(form, c->keys, at[i] + d);
    }
    float four[4];
    _mm_storeu_ps(four, sums(acc[0], acc[1], acc[2], acc[3]));
    for (; d < c->dim; d++)
      for (int i = 0; i < 4; i++) four[i] += q[d] * one_as(form, c->keys, at[i] + d);
    for (int i = 0; i < 4; i++) scores[t + i] = t + i < count ? four[i] * scale : -INFINITY;
  }
}

// out = out * factor + the weighted values, from dimension d on, of `vectors` vectors side by side.
INLINE void mix_query(int form, int vectors, const float* weights, const head_cache* c, long d, const int64_t* slots,
                      long count, float factor, float* out) {
  vec acc[4];
#pragma GCC unroll 4
  for (int i = 0; i < vectors; i++) acc[i] = load(out + d + i * LANES) * factor;
  for (long t = 0; t < count; t++) {
    long at = slots[t] * c->step + c->offset + d;
#pragma GCC unroll 4
    for (int i = 0; i < vectors; i++) acc[i] += splat(weights[t]) * load_as(form, c->values, at + i * LANES);
  }
#pragma GCC unroll 4
  for (int i = 0; i < vectors; i++) store(out + d + i * LANES, acc[i]);
}

// Attention of the queries that share a head to some slots; returns their largest scores and the sums of their weights,
// by which out is not divided yet.
INLINE void attend(int form, const float* q, long q_step, const head_cache* c, const int64_t* slots, long count,
                   long shared, float scale, float* highest, float* total, float* out) {
  long dim = c->dim;
  memset(out, 0, shared * dim * sizeof(float));
  for (long h = 0; h < shared; h++) highest[h] = -INFINITY, total[h] = 0;
  for (long begin = 0; begin < count; begin += BLOCK, slots += BLOCK) {
    long some = smaller(count - begin, BLOCK);
    for (long h = 0; h < shared; h++) {
      float weights[BLOCK], most = highest[h], *to = out + h * dim;
      score_query(form, q + h * q_step, c, slots, some, scale, weights);
      for (long t = (some + 3) / 4 * 4; t < BLOCK; t++) weights[t] = -INFINITY;
      for (long t = 0; t < some; t++) most = weights[t] > most ? weights[t] : most;
      vec here = {};
      for (long t = 0; t < BLOCK; t += LANES) {
        vec weight = exponential(load(weights + t) - most);
        store(weights + t, weight);
        here += weight; // those behind the last count less than rounding
      }
      float factor = expf(highest[h] - most);
      highest[h] = most, total[h] = total[h] * factor + sum(here);
      long d = 0;
      for (; d + 4 * LANES <= dim; d += 4 * LANES) mix_query(form, 4, weights, c, d, slots, some, factor, to);
      for (; d + LANES <= dim; d += LANES) mix_query(form, 1, weights, c, d, slots, some, factor, to);
      for (; d < dim; d++) {
        to[d] *= factor;
        for (long t = 0; t < some; t++)
          to[d] += weights[t] * one_as(form, c->values, slots[t] * c->step + c->offset + d);
      }
    }
  }
}

// Which slots each of some tokens reads: `counts` of them, from `begins` on in `slots`.
// Tokens runs[i] … runs[i + 1] - 1 read the same ones from the beginning on, so that they are read from memory once. Of
// the first `num_exact` runs each token is computed as if it were alone, in chunks; these read no more than `longest`.
// `parts` has room for heads * (dim + 2) numbers for each of their tokens and chunks, where there is more than one. The
// tokens of other runs are computed together.
typedef struct {
  const int64_t *slots, *begins, *counts, *runs;
  float* parts;
  long longest, num_exact, num_runs, num_chunks; // of the exact runs, all together
} reads;

// q [tokens, heads, dim] attends to keys and values [slots, kv_heads, dim] of `form`: out [tokens, heads, dim]. Tokens
// of q and their heads, slots and theirs, are so many numbers apart.
typedef struct {
  const float* q;
  const void *keys, *values;
  const reads* reads;
  float* out;
  long heads, kv_heads, dim, q_step, q_head_step, step, head_step;
  float scale;
  int form, has_units;
} attention;

INLINE long chunks_of(long count) { return (count + CHUNK - 1) / CHUNK; }

// The queries of a token that share a head, and a chunk of what they read.
static void attend_to_chunk(const attention* a, long token, long chunk, long head) {
  const reads* r = a->reads;
  long chunks = chunks_of(r->longest), shared = a->heads / a->kv_heads, size = a->heads * (a->dim + 2);
  long first = chunk * CHUNK, count = r->counts[token] - first;
  if (count <= 0) return;
  count = smaller(count, CHUNK);
  const float* q = a->q + token * a->q_step + head * shared * a->q_head_step;
  float* part = r->parts + (token * chunks + chunk) * size;
  float* to = (chunks == 1 ? a->out + token * a->heads * a->dim : part) + head * shared * a->dim;
  float highest[shared], total[shared];
  head_cache cache = {a->keys, a->values, head * a->head_step, a->step, a->dim};
  const int64_t* slots = r->slots + r->begins[token] + first;
  if (a->form == FLOAT32)
    attend(FLOAT32, q, a->q_head_step, &cache, slots, count, shared, a->scale, highest, total, to);
  else attend(BFLOAT16, q, a->q_head_step, &cache, slots, count, shared, a->scale, highest, total, to);
  for (long h = 0; h < shared; h++)
    if (chunks == 1)
      for (long d = 0; d < a->dim; d++) to[h * a->dim + d] /= total[h];
    else {
      float* notes = part + a->heads * a->dim + 2 * (head * shared + h);
      notes[0] = highest[h], notes[1] = total[h];
    }
}

// Many queries to the same slots lie side by side, PANEL of them: what is computed for one is computed for all of these
// with the same instructions.

#define EACH_HALF _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++)

// PANEL queries, which are scaled for powers of 2, and what they have found so far.
typedef struct {
  float *q, *found;                 // [dim, PANEL]
  float* scores;                    // of a block, and then its weights, [BLOCK, PANEL]
  uint32_t *q_parts, *weight_parts; // the same for the matrix units
  vec highest[2], total[2], factors[2];
  int32_t counts[PANEL];
} query_panel;

// What a head has in a block of slots: so many from the `begin`th on.
typedef struct {
  float *keys, *values;                  // [BLOCK, dim]
  uint32_t *key_parts, *value_parts;     // the same for the matrix units
  long begin, some, dim;                 // dim is filled up with zeros for these
  int has_units, num_parts, panel_parts; // of keys and values, and of queries and weights
} slot_block;

// out [rows, PANEL], scaled by `factors` or else from zero on, += x [rows, depth] times panel [depth, PANEL]; rows of
// x, and its numbers, are so far apart.
INLINE void multiply_panel(long rows, const float* x, long row, long step, long depth, const float* panel,
                           const vec* factors, float* out) {
  vec acc[MAX_ROWS][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < 2; i++) acc[r][i] = factors ? load(out + r * PANEL + i * LANES) * factors[i] : (vec){};
  for (long k = 0; k < depth; k++) {
    vec low = load(panel + k * PANEL), high = load(panel + k * PANEL + LANES);
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
      vec each = splat(x[r * row + k * step]);
      acc[r][0] += low * each;
      acc[r][1] += high * each;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < 2; i++) store(out + r * PANEL + i * LANES, acc[r][i]);
}

static void multiply_panels(long rows, const float* x, long row, long step, long depth, const float* panel,
                            const vec* factors, float* out) {
  while (rows) {
#define SOME(N)                                                  \
  if (rows >= N) {                                               \
    multiply_panel(N, x, row, step, depth, panel, factors, out); \
    rows -= N, x += N * row, out += N * PANEL;                   \
    continue;                                                    \
  }
    SOME(MAX_ROWS) SOME(4) SOME(1)
  }
}

#if HAS_UNITS
// The matrix units multiply numbers in bfloat16. A float is the sum of three of these; of the products of such parts
// those that are less than rounding are left out. What meets bfloat16 is rounded to the sum of two. Two numbers that
// are added up lie side by side.
#define MOST_PARTS 3
#define UNITS_DEPTH 32

typedef uint32_t pairs __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE void split(int num_parts, vec even, vec odd, uint32_t* to, long part) {
#pragma GCC unroll 3
  for (int i = 0; i < num_parts; i++) {
    uint32_t half = i + 1 < num_parts ? 0 : 0x8000; // the last one is rounded
    pairs low = ((pairs)even + half) & 0xffff0000, high = ((pairs)odd + half) & 0xffff0000;
    *(pairs*)(to + i * part) = low >> 16 | high;
    even -= (vec)low, odd -= (vec)high;
  }
}

INLINE void split_some_rows(int num_parts, const float* from, long count, long width, long apart, uint32_t* to) {
  for (long pair = 0; pair < count; pair++) {
    const float* even = from + (pair / apart * 2 * apart + pair % apart) * width;
    for (long d = 0; d < width; d += LANES)
      split(num_parts, load(even + d), load(even + apart * width + d), to + pair * width + d, count * width);
  }
}

// Of rows of numbers [2 * count, width], pairs of those that are so far apart: [parts, count, width].
static void split_rows(int num_parts, const float* from, long count, long width, long apart, uint32_t* to) {
  if (num_parts == 3) split_some_rows(3, from, count, width, apart, to);
  else if (num_parts == 2) split_some_rows(2, from, count, width, apart, to);
  else split_some_rows(1, from, count, width, apart, to);
}

// x [parts, rows, count], in pairs, times panel [panel_parts, count, PANEL]: out [rows, PANEL], or what is added to it.
// Rows and numbers are multiples of UNITS_DEPTH.
UNITS static void multiply_parts(const slot_block* b, long rows, const uint32_t* x, long count, const uint32_t* panel,
                                 int is_added, float* out) {
  WRITTEN(x);
  WRITTEN(panel);
  WRITTEN(out);
  for (long first = 0; first < rows; first += 32, out += 32 * PANEL) {
    if (is_added) {
      _tile_loadd(0, out, PANEL * 4);
      _tile_loadd(1, out + 16, PANEL * 4);
      _tile_loadd(2, out + 16 * PANEL, PANEL * 4);
      _tile_loadd(3, out + 16 * PANEL + 16, PANEL * 4);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int i = 0; i < b->num_parts; i++)
      for (long k = 0; k < count; k += 16) {
        const uint32_t* left = x + (i * rows + first) * count + k;
        _tile_loadd(4, left, count * 4);
        _tile_loadd(5, left + 16 * count, count * 4);
        for (int j = 0; j < b->panel_parts - i; j++) {
          const uint32_t* right = panel + (j * count + k) * PANEL;
          _tile_loadd(6, right, PANEL * 4);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(2, 5, 6);
          _tile_loadd(7, right + 16, PANEL * 4);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
    _tile_stored(0, out, PANEL * 4);
    _tile_stored(1, out + 16, PANEL * 4);
    _tile_stored(2, out + 16 * PANEL, PANEL * 4);
    _tile_stored(3, out + 16 * PANEL + 16, PANEL * 4);
  }
}

// A square of LANES numbers, whose rows are so far apart, with rows and columns exchanged.
INLINE void transpose_square(const uint32_t* from, long step, uint32_t* to, long to_step) {
  const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  ivec rows[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) rows[i] = (ivec)load((const float*)from + i * step);
#pragma GCC unroll 4
  for (int bit = 1; bit < LANES; bit *= 2)
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & bit)) {
        __m512i low = (__m512i)rows[i], high = (__m512i)rows[i + bit];
        ivec from_low = lanes + (((lanes & bit) != 0) & (LANES - bit));
        rows[i] = (ivec)_mm512_permutex2var_epi32(low, (__m512i)from_low, high);
        rows[i + bit] = (ivec)_mm512_permutex2var_epi32(low, (__m512i)(from_low + bit), high);
      }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) store((float*)to + i * to_step, (vec)rows[i]);
}

// Keys [parts, BLOCK, pairs of dim] and values [parts, dim, pairs of BLOCK].
static void split_block(slot_block* b) {
  long count = b->dim / 2, size = BLOCK * count;
  for (long t = 0; t < BLOCK; t++)
    for (long k = 0; k < count; k += LANES) {
      const float* from = b->keys + t * b->dim + 2 * k;
      split(b->num_parts, load(from), load(from + LANES), b->key_parts + t * count + k, size);
    }
  ALIGNED uint32_t rows[MOST_PARTS * size];
  split_rows(b->num_parts, b->values, BLOCK / 2, b->dim, 1, rows);
  for (long part = 0; part < b->num_parts; part++)
    for (long pair = 0; pair < BLOCK / 2; pair += LANES)
      for (long d = 0; d < b->dim; d += LANES)
        transpose_square(rows + part * size + pair * b->dim + d, b->dim,
                         b->value_parts + part * size + d * (BLOCK / 2) + pair, BLOCK / 2);
}
#endif

static void score(const query_panel* p, const slot_block* b) {
#if HAS_UNITS
  if (b->has_units) {
    multiply_parts(b, BLOCK, b->key_parts, b->dim / 2, p->q_parts, 0, p->scores);
    return;
  }
#endif
  multiply_panels(b->some, b->keys, b->dim, 1, b->dim, p->q, NULL, p->scores);
}

// Scores become weights, which are not divided by their sum yet.
INLINE void soften_some(query_panel* p, const slot_block* b, int is_masked) {
  vec most[2][2], sums[2] = {};
  ivec seen[2];
  float* scores = p->scores;
  EACH_HALF {
    seen[i] = (ivec)load((const float*)p->counts + i * LANES) - (int32_t)b->begin;
    most[0][i] = most[1][i] = p->highest[i];
  }
  for (int t = 0; t < BLOCK; t += 2)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) // for the processor to do more at once
      EACH_HALF {
        float* at = scores + (t + j) * PANEL + i * LANES;
        if (is_masked) store(at, choose(seen[i] > t + j, load(at), splat(-INFINITY)));
        most[j][i] = larger(most[j][i], load(at));
      }
  EACH_HALF most[0][i] = larger(most[0][i], most[1][i]);
  for (int t = 0; t < BLOCK; t++) EACH_HALF {
      float* at = scores + t * PANEL + i * LANES;
      vec weight = power_of_2(load(at) - most[0][i]);
      if (is_masked) weight = choose(seen[i] > t, weight, (vec){});
      store(at, weight);
      sums[i] += weight;
    }
  EACH_HALF {
    p->factors[i] = power_of_2(p->highest[i] - most[0][i]);
    p->highest[i] = most[0][i], p->total[i] = p->total[i] * p->factors[i] + sums[i];
  }
}

static void soften(query_panel* p, const slot_block* b) {
  int is_masked = 0;
  EACH_HALF is_masked |= any((ivec)load((const float*)p->counts + i * LANES) < (int32_t)b->begin + BLOCK);
  if (is_masked) soften_some(p, b, 1);
  else soften_some(p, b, 0);
#if HAS_UNITS
  if (b->has_units) split_rows(b->panel_parts, p->scores, BLOCK / 2, PANEL, 1, p->weight_parts);
#endif
}

// Adds the weighted values to what queries have found so far.
static void mix_in(query_panel* p, const slot_block* b) {
#if HAS_UNITS
  if (b->has_units) {
    if (any((p->factors[0] != 1.0f) | (p->factors[1] != 1.0f)))
      for (long d = 0; d < b->dim; d++) EACH_HALF {
          float* at = p->found + d * PANEL + i * LANES;
          store(at, load(at) * p->factors[i]);
        }
    multiply_parts(b, b->dim, b->value_parts, BLOCK / 2, p->weight_parts, 1, p->found);
    return;
  }
#endif
  multiply_panels(b->dim, b->values, 1, b->dim, b->some, p->scores, p->factors, p->found);
}

// What a head has in some slots, as floats [some, width].
static void copy_slots(const attention* a, const void* from, long head, const int64_t* slots, long some, long width,
                       float* restrict to) {
  for (long t = 0; t < some; t++) {
    long at = slots[t] * a->step + head * a->head_step;
    if (a->form == FLOAT32) memcpy(to + t * width, (const float*)from + at, a->dim * sizeof(float));
    else
      for (long d = 0; d < a->dim; d++) to[t * width + d] = widened(((const uint16_t*)from)[at + d]);
  }
}

// The tokens of a run, whose queries share a head.
static void attend_together(const attention* a, long run, long head) {
  const reads* r = a->reads;
  long first = r->runs[run], last = r->runs[run + 1], shared = a->heads / a->kv_heads, dim = a->dim;
  long rows = (last - first) * shared, num_panels = (rows + PANEL - 1) / PANEL, longest = 0;
  for (long token = first; token < last; token++) longest = r->counts[token] > longest ? r->counts[token] : longest;
  slot_block b = {.dim = dim};
  long parts = 0; // numbers in 16 bits, side by side, take no more room than half as many floats
#if HAS_UNITS
  if (a->has_units) {
    b.has_units = 1, b.dim = (dim + UNITS_DEPTH - 1) / UNITS_DEPTH * UNITS_DEPTH, parts = MOST_PARTS;
    b.num_parts = a->form == FLOAT32 ? 3 : 1, b.panel_parts = a->form == FLOAT32 ? 3 : 2;
    prepare_units(16, 16);
  }
#endif
  query_panel panels[num_panels];
  ALIGNED float block[2][BLOCK * b.dim], room[num_panels][2][b.dim * PANEL], scores[num_panels][BLOCK * PANEL];
  ALIGNED uint32_t block_parts[2][parts * BLOCK * b.dim / 2 + 16], q_parts[num_panels][parts * b.dim / 2 * PANEL + 16],
      weight_parts[num_panels][parts * BLOCK / 2 * PANEL + 16];
  b.keys = block[0], b.values = block[1], b.key_parts = block_parts[0], b.value_parts = block_parts[1];
  memset(block, 0, sizeof block);
  memset(room, 0, sizeof room);
  for (long i = 0; i < num_panels; i++) {
    query_panel* p = panels + i;
    *p = (query_panel){.q = room[i][0], .found = room[i][1], .scores = scores[i], .q_parts = q_parts[i]};
    p->weight_parts = weight_parts[i], p->highest[0] = p->highest[1] = splat(-INFINITY);
    for (long lane = 0; lane < PANEL; lane++) {
      long row = i * PANEL + lane, token = row < rows ? first + row / shared : last - 1;
      const float* q = a->q + token * a->q_step + (head * shared + row % shared) * a->q_head_step;
      p->counts[lane] = r->counts[token];
      for (long d = 0; d < dim && row < rows; d++) p->q[d * PANEL + lane] = q[d] * a->scale * LOG2_E;
    }
#if HAS_UNITS
    if (b.has_units) split_rows(b.panel_parts, p->q, b.dim / 2, PANEL, LANES, p->q_parts);
#endif
  }
  const int64_t* slots = r->slots + r->begins[first];
  for (; b.begin < longest; b.begin += BLOCK) {
    b.some = smaller(longest - b.begin, BLOCK);
    copy_slots(a, a->keys, head, slots + b.begin, b.some, b.dim, b.keys);
    copy_slots(a, a->values, head, slots + b.begin, b.some, b.dim, b.values);
#if HAS_UNITS
    if (b.has_units) split_block(&b);
#endif
    // one after the other, so that what they share stays near
    for (long i = 0; i < num_panels; i++) score(panels + i, &b);
    for (long i = 0; i < num_panels; i++) soften(panels + i, &b);
    for (long i = 0; i < num_panels; i++) mix_in(panels + i, &b);
  }
#if HAS_UNITS
  if (b.has_units) release_units();
#endif
  for (long row = 0; row < rows; row++) {
    query_panel* p = panels + row / PANEL;
    long lane = row % PANEL;
    float* out = a->out + ((first + row / shared) * a->heads + head * shared + row % shared) * dim;
    for (long d = 0; d < dim; d++) out[d] = p->found[d * PANEL + lane] / ((float*)p->total)[lane];
  }
}

// Of how many heads one thread reads a token's slots: of all, where all threads have enough to do, since what is
// brought near for one head has what the others need.
INLINE long heads_at_once(const attention* a, int threads) {
  return a->reads->num_chunks >= 4 * threads ? a->kv_heads : 1;
}

INLINE long num_exact_tasks(const attention* a, int threads) {
  return a->reads->num_exact * chunks_of(a->reads->longest) * (a->kv_heads / heads_at_once(a, threads));
}

INLINE long num_attention_tasks(const attention* a, int threads) {
  return num_exact_tasks(a, threads) + (a->reads->num_runs - a->reads->num_exact) * a->kv_heads;
}

// The longer tasks come first.
static void attend_in_part(const attention* a, int threads, long task) {
  const reads* r = a->reads;
  long exact = num_exact_tasks(a, threads), heads = heads_at_once(a, threads);
  task = num_attention_tasks(a, threads) - 1 - task;
  if (task >= exact) {
    attend_together(a, r->num_exact + (task - exact) / a->kv_heads, (task - exact) % a->kv_heads);
    return;
  }
  long parts = a->kv_heads / heads, first = task % parts * heads;
  long chunk = task / parts % chunks_of(r->longest), run = task / parts / chunks_of(r->longest);
  for (long token = r->runs[run]; token < r->runs[run + 1]; token++)
    for (long head = first; head < first + heads; head++) attend_to_chunk(a, token, chunk, head);
}

INLINE long num_joined(const attention* a) {
  return a->reads->longest > CHUNK ? a->reads->runs[a->reads->num_exact] * a->heads : 0;
}

// The parts of a query's attention.
static void join_parts(const attention* a, long task) {
  long token = task / a->heads, head = task % a->heads, size = a->heads * (a->dim + 2);
  long chunks = chunks_of(a->reads->longest), used = chunks_of(a->reads->counts[token]);
  const float *part = a->reads->parts + token * chunks * size, *notes = part + a->heads * a->dim + 2 * head;
  float most = -INFINITY, total = 0, *to = a->out + task * a->dim;
  for (long c = 0; c < used; c++) most = notes[c * size] > most ? notes[c * size] : most;
  memset(to, 0, a->dim * sizeof(float));
  for (long c = 0; c < used; c++) {
    float factor = expf(notes[c * size] - most);
    total += notes[c * size + 1] * factor;
    for (long d = 0; d < a->dim; d++) to[d] += part[c * size + head * a->dim + d] * factor;
  }
  for (long d = 0; d < a->dim; d++) to[d] /= total;
}

// --- sampling --------------------------------------------------------------------------------------
//
// As in kernels/sampling.py: filters by thresholds, then noise of each token's own. Few tokens can win against the best
// one so far, and only for these the noise is computed.

typedef uint64_t numbers __attribute__((vector_size(8 * LANES)));

// Draws from rows of logits [rows, size], which are `stride` apart: the row of each, temperature (0 takes the best),
// top_p and min_p, top_k (0 for all), and where its random numbers begin. out is -1 where logits are not finite; masked
// ones are minus infinity. `weights` has room for [draws, size] where any is filtered.
typedef struct {
  const float* logits;
  const int32_t *rows, *top_ks;
  const double* params;
  const uint64_t* starts;
  float* weights;
  int32_t* out;
  long draws, size, stride;
} drawing;

// A whole number for each logit, in the same order; zero has one, whatever its sign.
INLINE uint32_t key_of(float value) {
  uint32_t bits;
  value += 0.0f;
  memcpy(&bits, &value, sizeof bits);
  return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

// Where logits are cut: at the greatest key at which those with it or above are enough, by number and by weight.
typedef struct {
  uint32_t key;
  long above, at;
  double above_weight, at_weight;
} cut;

static cut find_cut(const float* logits, const float* weights, long size, long enough, double enough_weight) {
  static const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
  cut c = {};
  for (int level = 0; level < 3; level++) {
    long counts[2048] = {}, bucket = (1 << widths[level]) - 1;
    double sums[2048] = {};
    for (long i = 0; i < size; i++) {
      uint32_t key = key_of(logits[i]);
      if (level && key >> shifts[level - 1] != c.key) continue;
      uint32_t at = key >> shifts[level] & ((1 << widths[level]) - 1);
      counts[at]++;
      sums[at] += weights[i];
    }
    for (; bucket; bucket--) {
      if (c.above + counts[bucket] >= enough && c.above_weight + sums[bucket] >= enough_weight) break;
      c.above += counts[bucket];
      c.above_weight += sums[bucket];
    }
    c.key = c.key << widths[level] | bucket;
    c.at = counts[bucket];
    c.at_weight = sums[bucket];
  }
  return c;
}

// What top_k (size for all) and then top_p leave: all logits above a key, and of those at it the first so many.
static uint32_t filtered(const float* logits, const float* weights, long size, long top_k, double top_p, long* ties) {
  uint32_t lowest = 0;
  double kept = 0;
  *ties = size;
  if (top_k < size) {
    cut c = find_cut(logits, weights, size, top_k, 0);
    lowest = c.key;
    *ties = top_k - c.above;
    kept = c.above_weight + *ties * (c.at_weight / c.at);
  } else
    for (long i = 0; i < size; i++) kept += weights[i];
  if (top_p >= 1) return lowest;
  double needed = top_p * kept;
  cut c = find_cut(logits, weights, size, 1, needed);
  if (c.key < lowest || !c.at) return lowest; // of rounding
  long wanted = (long)ceil((needed - c.above_weight) / (c.at_weight / c.at));
  wanted = wanted < 1 ? 1 : wanted;
  *ties = c.key == lowest && *ties < wanted ? *ties : wanted;
  return c.key;
}

#define MIX(STATE)                                                                                          \
  STATE = (STATE ^ STATE >> 30) * 0xBF58476D1CE4E5B9u, STATE = (STATE ^ STATE >> 27) * 0x94D049BB133111EBu, \
  STATE = (STATE ^ STATE >> 31) >> 12
#define GOLDEN 0x9E3779B97F4A7C15u

// Standard Gumbel noise of a token, by SplitMix64.
INLINE double noise(uint64_t start, long token) {
  uint64_t state = start + (uint64_t)(token + 1) * GOLDEN;
  MIX(state);
  return -log(-log(((double)state + 0.5) * 0x1p-52));
}

// The largest logit of all, where it stands first, and whether all are numbers that can be sampled from.
INLINE int find_best(const float* logits, long size, float* best, long* where) {
  vec most = splat(-INFINITY), odd = {};
  long i = 0;
  for (; i + LANES <= size; i += LANES) {
    vec value = load(logits + i);
    most = larger(most, value);
    odd += (vec)((ivec)(value - value) & ((value > -INFINITY) | (value != value))); // of what is no number, or infinite
  }
  float parts[LANES], bad = sum(odd);
  store(parts, most);
  *best = -INFINITY;
  for (int lane = 0; lane < LANES; lane++) *best = parts[lane] > *best ? parts[lane] : *best;
  for (; i < size; i++) {
    *best = logits[i] > *best ? logits[i] : *best;
    if (logits[i] > -INFINITY || logits[i] != logits[i]) bad += logits[i] - logits[i];
  }
  for (*where = 0; *where < size - 1 && logits[*where] != *best;) ++*where;
  return bad == 0 && *best > -INFINITY;
}

static void draw(const drawing* d, long task) {
  const float* logits = d->logits + d->rows[task] * d->stride;
  double temperature = d->params[3 * task], top_p = d->params[3 * task + 1], min_p = d->params[3 * task + 2];
  uint64_t start = d->starts[task];
  long size = d->size, top_k = d->top_ks[task] ? smaller(d->top_ks[task], d->size) : d->size, best_at, last_tie = size;
  float best;
  int is_finite = find_best(logits, size, &best, &best_at);
  d->out[task] = is_finite ? best_at : -1;
  if (!is_finite || temperature <= 0) return;
  float factor = 1 / temperature;
  uint32_t key = 0;
  if (top_k < size || top_p < 1) {
    float* weights = d->weights + task * size;
    long i = 0, ties;
    for (; i + LANES <= size; i += LANES) store(weights + i, exponential((load(logits + i) - best) * factor));
    for (; i < size; i++) weights[i] = expf((logits[i] - best) * factor);
    key = filtered(logits, weights, size, top_k, top_p, &ties);
    for (last_tie = 0; last_tie < size; last_tie++)
      if (key_of(logits[last_tie]) == key && --ties <= 0) break;
  }
  double largest = noise(start, best_at);
  float ceiling = fmin(exp(-largest) * 1.001, 1e30);
  numbers counted;
  for (int lane = 0; lane < LANES; lane++) counted[lane] = lane + 1;
  for (long first = 0; first < size; first += LANES) {
    long count = smaller(size - first, LANES);
    vec value = splat(-INFINITY);
    if (count == LANES) value = load(logits + first);
    else memcpy(&value, logits + first, count * sizeof(float));
    numbers state = start + ((uint64_t)first + counted) * GOLDEN;
    MIX(state);
    // noise is above -log(w) at most for 1 - uniform <= w; of that the upper 31 bits are enough here
    vec rest = from_int(__builtin_convertvector((0xFFFFFFFFFFFFFu - state) >> 21, ivec)) * (0.999f * 0x1p-31f);
    ivec may_win = rest <= exponential((value - best) * factor) * ceiling;
    for (int lane = 0; any(may_win) && lane < count; lane++) {
      long token = first + lane;
      if (!may_win[lane] || token == best_at) continue;
      uint32_t own = key_of(logits[token]);
      double scaled = ((double)logits[token] - best) / temperature;
      if (own < key || (own == key && token > last_tie) || exp(scaled) < min_p) continue;
      double found = scaled + noise(start, token);
      if (found > largest) {
        largest = found;
        d->out[task] = token;
        ceiling = fmin(exp(-largest) * 1.001, 1e30);
      }
    }
  }
}

// --- programs --------------------------------------------------------------------------------------
//
// Operations one after the other, each in tasks that any thread takes. A thread that comes late, because the system has
// let another program run in its place, holds up nobody: only tasks that were taken are waited for.

enum { PRODUCT, NORM, NARROWING, STORING, ATTENTION, JOINING, DRAWING, MOVING, PACKING };

typedef struct {
  long kind;
  union {
    product product;
    norm norm;
    narrowing narrowing;
    storing storing;
    attention attention; // also of JOINING
    drawing drawing;
    moving moving;
    packing packing;
  };
} operation;

typedef struct {
  _Atomic long taken, done;
} __attribute__((aligned(64))) progress;

static long num_tasks(const operation* o, int threads) {
  switch (o->kind) {
    case PRODUCT: {
      division d = divided(&o->product, threads);
      return d.panels * d.parts;
    }
    case NORM: return o->norm.rows;
    case NARROWING: return o->narrowing.rows;
    case STORING: return o->storing.tokens;
    case ATTENTION: return num_attention_tasks(&o->attention, threads);
    case DRAWING: return o->drawing.draws;
    case MOVING: return o->moving.rows;
    case PACKING: return num_panels(&o->packing);
    default: return num_joined(&o->attention);
  }
}

static void do_task(const operation* o, int threads, long task) {
  switch (o->kind) {
    case PRODUCT: multiply(&o->product, threads, task); break;
    case NORM: normalize(&o->norm, task); break;
    case NARROWING: narrow(&o->narrowing, task); break;
    case STORING: rotate_and_store(&o->storing, task); break;
    case ATTENTION: attend_in_part(&o->attention, threads, task); break;
    case DRAWING: draw(&o->drawing, task); break;
    case MOVING: move(&o->moving, task); break;
    case PACKING: pack(&o->packing, task); break;
    default: join_parts(&o->attention, task);
  }
}

static void take_part(const operation* program, long count, int threads, progress* reached) {
  unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040); // numbers too small to be normal count as zero: they take a hundred times as long
  for (long i = 0; i < count; i++) {
    progress* here = reached + i;
    long tasks = num_tasks(program + i, threads), task;
    while (here->taken < tasks && (task = here->taken++) < tasks) {
      do_task(program + i, threads, task);
      here->done++;
    }
    for (int turns = 0; here->done < tasks; turns++)
      if (turns < PATIENCE) _mm_pause();
      else sched_yield();
  }
  _mm_setcsr(before);
}

// Runs a program of `count` operations.
void run(const operation* program, long count, int threads) {
  long most = 0;
  for (long i = 0; i < count; i++) most |= num_tasks(program + i, threads);
  if (most <= 1) threads = 1;
  progress reached[count];
  memset(reached, 0, sizeof reached);
#pragma omp parallel num_threads(threads)
  take_part(program, count, threads, reached);
}

long size_of_operation(void) { return sizeof(operation); }
