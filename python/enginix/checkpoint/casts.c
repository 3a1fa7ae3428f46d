/* The casts of numbers.py at the speed of memory, and its FP8 look-up; numbers.py holds the same in NumPy, and
 * the tests hold both against each other, bit by bit. Integers, and float32 additions and multiplications
 * that are exact or round once: the same bytes on every machine.
 *
 * A cast to float16 returns 1 where a value is not finite as float16; what it wrote is then not meant to be
 * used, and NumPy decides what becomes of that block. */
#define _XOPEN_SOURCE 700 /* pread */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#ifndef FOR_EVERY_CPU /* the tests compile one variant at a time */
#if defined(__x86_64__) && defined(__GLIBC__)
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

/* FP8: magnitudes through a table of 128, signs as they are. */
void fp8_lookup(const uint8_t *restrict x, uint8_t *restrict y, size_t n, const uint8_t *restrict table) {
  for (size_t i = 0; i < n; i++) y[i] = table[x[i] & 0x7F] | (x[i] & 0x80);
}

/* Whether an element has all bits of the mask: of an exponent, NaN or an infinity. */
#define ANY_WITH(name, type) \
  FOR_EVERY_CPU int name(const type *x, size_t n, type mask) { \
    type any = 0; \
    for (size_t i = 0; i < n; i++) any |= (type)((x[i] & mask) == mask); \
    return any != 0; \
  }

ANY_WITH(any_with_2, uint16_t)
ANY_WITH(any_with_4, uint32_t)

/* Reads `width` bytes at the beginning of each line of a file, lines `stride` bytes apart, one behind the other.
 * Returns how many lines it read; a caller reads the rest and finds out why. */
size_t read_lines(int file, int64_t begin, size_t stride, size_t width, size_t lines, char *out) {
  for (size_t line = 0; line < lines; line++) {
    off_t at = (off_t)(begin + (int64_t)(line * stride));
    if (pread(file, out + line * width, width, at) != (ssize_t)width) return line;
  }
  return lines;
}

/* y[c][r] = x[r][c]: rows of x are `stride` elements apart, rows of y `height`. Tiles stay in the cache. */
#define TILE 256
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define COPY_TILE(r0, r1, c0, c1) \
  for (size_t c = c0; c < c1; c++) \
    for (size_t r = r0; r < r1; r++) y[c * height + r] = x[r * stride + c];

void transpose_4(const uint32_t *restrict x, uint32_t *restrict y, size_t height, size_t width, size_t stride) {
  for (size_t c0 = 0; c0 < width; c0 += TILE)
    for (size_t r0 = 0; r0 < height; r0 += TILE)
      COPY_TILE(r0, LEAST(r0 + TILE, height), c0, LEAST(c0 + TILE, width))
}

typedef uint16_t eight __attribute__((vector_size(16)));
#ifdef __clang__
#define ZIP(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZIP(a, b, ...) __builtin_shuffle(a, b, (eight){__VA_ARGS__})
#endif

/* 8 by 8 in registers: three times, row i is zipped with row i + 4. */
static inline void transpose_block(const uint16_t *x, uint16_t *y, size_t height, size_t stride) {
  eight rows[8], zipped[8];
  for (int i = 0; i < 8; i++) memcpy(&rows[i], x + i * stride, 16);
  for (int step = 0; step < 3; step++) {
    for (int i = 0; i < 4; i++) {
      zipped[2 * i] = ZIP(rows[i], rows[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      zipped[2 * i + 1] = ZIP(rows[i], rows[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    memcpy(rows, zipped, sizeof rows);
  }
  for (int i = 0; i < 8; i++) memcpy(y + i * height, &rows[i], 16);
}

/* Tiles of whole cache lines, turned in a place of their own: with a stride that is a multiple of a page, lines
 * of x and y would drive each other out of the cache before they are complete. */
#define LINE 32
FOR_EVERY_CPU void transpose_2(
    const uint16_t *restrict x, uint16_t *restrict y, size_t height, size_t width, size_t stride) {
  size_t rows = height / LINE * LINE, columns = width / LINE * LINE;
  uint16_t tile[LINE * LINE];
  for (size_t c = 0; c < columns; c += LINE)
    for (size_t r = 0; r < rows; r += LINE) {
      for (size_t i = r + LINE; i < LEAST(r + 2 * LINE, rows); i++) __builtin_prefetch(x + i * stride + c);
      for (size_t i = 0; i < LINE; i += 8)
        for (size_t j = 0; j < LINE; j += 8)
          transpose_block(x + (r + i) * stride + c + j, tile + j * LINE + i, LINE, stride);
      for (size_t j = 0; j < LINE; j++) memcpy(y + (c + j) * height + r, tile + j * LINE, sizeof(uint16_t) * LINE);
    }
  COPY_TILE(rows, height, 0, width)
  COPY_TILE(0, rows, columns, width)
}
