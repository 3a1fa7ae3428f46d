/* The casts and the FP8 look-up of numbers.py at the speed of memory; numbers.py holds the same in NumPy, and
 * the tests hold both against each other, bit by bit. Integers, and float32 additions and multiplications
 * that are exact or round once: the same bytes on every machine.
 *
 * A cast to float16 returns 1 where a value is not finite as float16; what it wrote is then not meant to be
 * used, and NumPy decides what becomes of that block. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__)
#include <immintrin.h>
#define X86
#endif
#ifndef FOR_EVERY_CPU /* the tests compile one variant at a time */
#ifdef X86
#define FOR_EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_CPU
#endif
#endif

static inline uint32_t bits_of(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }
static inline float float_of(uint32_t b) { float x; memcpy(&x, &b, 4); return x; }

/* A float16's exponent, moved to its place in a float32, is 112 too small: one multiplication mends that, for
 * subnormal numbers, too. */
static inline uint32_t from_half(uint32_t h) {
  uint32_t magnitude = (h & 0x7FFF) << 13;
  uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  return (h & 0x8000) << 16 | (magnitude >= 0x0F800000 ? magnitude | 0x7F800000 : finite);
}

/* Finite ones only. Half a unit, less one for even ones, is added below what is cut off; where the result is
 * subnormal, adding 0.5, whose unit is float16's smallest number, rounds. */
static inline uint16_t to_half(uint32_t b) {
  uint32_t magnitude = b & 0x7FFFFFFF;
  uint32_t normal = (magnitude + 0xFFF + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000;
  return (uint16_t)(b >> 16 & 0x8000) | (uint16_t)(magnitude < 113u << 23 ? subnormal : normal);
}

static inline uint16_t upper_half(uint32_t b) { return (uint16_t)((b + 0x7FFF + (b >> 16 & 1)) >> 16); }

static inline uint16_t to_bfloat(uint32_t b) {
  return (b & 0x7FFFFFFF) > 0x7F800000 ? (uint16_t)(b >> 16 & 0x8000) | 0x7FC0 : upper_half(b);
}

/* Processors fetch ahead too little by themselves to keep memory busy while they compute. */
#define AHEAD 8192 /* bytes */
#define BLOCK 2048
static inline void fetch_ahead(const void *x) {
  for (size_t at = 0; at < BLOCK; at += 64) __builtin_prefetch((const void *)((uintptr_t)x + AHEAD + at));
}

#define CAST(name, from, to, body) \
  FOR_EVERY_CPU int name(const from *restrict x, to *restrict y, size_t n) { \
    from beyond = 0; \
    for (size_t at = 0; at < n; at += BLOCK / sizeof(from)) { \
      size_t end = n - at < BLOCK / sizeof(from) ? n : at + BLOCK / sizeof(from); \
      fetch_ahead(x + at); \
      for (size_t i = at; i < end; i++) body \
    } \
    return beyond != 0; \
  }

CAST(bf16_f32, uint16_t, uint32_t, { y[i] = (uint32_t)x[i] << 16; })
CAST(f16_f32, uint16_t, uint32_t, { y[i] = from_half(x[i]); })
CAST(f32_bf16, uint32_t, uint16_t, { y[i] = to_bfloat(x[i]); })
CAST(f32_f16, uint32_t, uint16_t, {
  beyond |= (x[i] & 0x7FFFFFFF) >= 0x477FF000; /* 65520, which rounds to infinity */
  y[i] = to_half(x[i]);
})
CAST(f16_bf16, uint16_t, uint16_t, {
  uint16_t magnitude = x[i] & 0x7FFF;
  uint16_t normal = (uint16_t)((uint16_t)(magnitude + 3 + (magnitude >> 3 & 1)) >> 3) + (112 << 7);
  uint16_t subnormal = upper_half(bits_of((float)magnitude * 0x1p-24f));
  uint16_t finite = magnitude < 0x0400 ? subnormal : normal;
  uint16_t other = magnitude == 0x7C00 ? 0x7F80 : 0x7FC0;
  y[i] = (x[i] & 0x8000) | (magnitude < 0x7C00 ? finite : other);
})
CAST(bf16_f16, uint16_t, uint16_t, {
  uint16_t magnitude = x[i] & 0x7FFF;
  uint16_t normal = (uint16_t)((magnitude - (112 << 7)) << 3); /* exact */
  uint16_t subnormal = (uint16_t)bits_of(float_of((uint32_t)magnitude << 16) + 0.5f);
  beyond |= magnitude >= 0x4780;
  y[i] = (x[i] & 0x8000) | (magnitude < 113 << 7 ? subnormal : normal);
})

/* FP8: magnitudes through a table of 128, signs as they are. The variants look up 64 or 32 at once. */
static void lookup_plain(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *table) {
  for (size_t i = 0; i < n; i++) y[i] = table[x[i] & 0x7F] | (x[i] & 0x80);
}

#ifdef X86
__attribute__((target("avx512f,avx512bw,avx512vbmi"))) static void lookup_avx512(const uint8_t *x, uint8_t *y,
                                                                                 size_t n, const uint8_t *table) {
  __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 64);
  __m512i sign = _mm512_set1_epi8((char)0x80);
  size_t i = 0;
  for (; i + 64 <= n; i += 64) { /* the index's highest bit is not looked at */
    __m512i v = _mm512_loadu_si512(x + i);
    __builtin_prefetch((const void *)((uintptr_t)(x + i) + AHEAD));
    __m512i found = _mm512_permutex2var_epi8(low, v, high);
    _mm512_storeu_si512(y + i, _mm512_or_si512(found, _mm512_and_si512(v, sign)));
  }
  lookup_plain(x + i, y + i, n - i, table);
}

__attribute__((target("avx2"))) static void lookup_avx2(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *table) {
  __m256i part[8], sign = _mm256_set1_epi8((char)0x80);
  for (int k = 0; k < 8; k++) part[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + 16 * k)));
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    __m256i v = _mm256_loadu_si256((const __m256i *)(x + i)), found = _mm256_and_si256(v, sign);
    __m256i code = _mm256_andnot_si256(sign, v);
    __builtin_prefetch((const void *)((uintptr_t)(x + i) + AHEAD));
    /* +0x70 sets the highest bit, which makes the look-up give 0, for all codes but the first 16 */
    for (int k = 0; k < 8; k++) {
      __m256i index = _mm256_adds_epu8(_mm256_sub_epi8(code, _mm256_set1_epi8((char)(16 * k))), _mm256_set1_epi8(0x70));
      found = _mm256_or_si256(found, _mm256_shuffle_epi8(part[k], index));
    }
    _mm256_storeu_si256((__m256i *)(y + i), found);
  }
  lookup_plain(x + i, y + i, n - i, table);
}
#endif

/* widest: bytes at a time, at most; for tests. */
int fp8_lookup(const uint8_t *x, uint8_t *y, size_t n, const uint8_t *table, int widest) {
#ifdef X86
  __builtin_cpu_init();
  if (widest >= 64 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw"))
    return lookup_avx512(x, y, n, table), 64;
  if (widest >= 32 && __builtin_cpu_supports("avx2"))
    return lookup_avx2(x, y, n, table), 32;
#endif
  (void)widest;
  return lookup_plain(x, y, n, table), 1;
}
