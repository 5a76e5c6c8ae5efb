#include "lowbit_kernels.h"

/* Of the C library, or of board/memory.c where there is none. */
void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);

#if defined(__ARM_FEATURE_DSP) && !defined(__ARM_FEATURE_MVE)
#include <arm_acle.h>
#endif

#ifdef LOWBIT_CMSIS_NN
#include "arm_nnfunctions.h"

#ifndef LOWBIT_SCRATCH_BYTES
#error "LOWBIT_SCRATCH_BYTES: how much CMSIS-NN may borrow; the Makefile has it"
#endif
static int32_t scratch[(LOWBIT_SCRATCH_BYTES + 3) / 4];

/* Scratch memory of a call; NULL in `buf` where it does not suffice. */
static inline cmsis_nn_context context_of(int32_t bytes) {
  cmsis_nn_context context = {.buf = bytes <= (int32_t)sizeof scratch ? scratch : NULL, .size = bytes};
  return context;
}
#endif

static inline int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }

static inline int8_t held(int32_t value, int32_t low, int32_t high) { return (int8_t)least(most(value, low), high); }

/* High half of twice the product, rounded to nearest, ties away from zero; the one product that has no place is saturated. */
static inline int32_t high_product(int32_t a, int32_t b) {
  if (a == b && a == INT32_MIN) return INT32_MAX;
  const int64_t product = (int64_t)a * b;
  return (int32_t)((product + (product >= 0 ? ((int64_t)1 << 30) : 1 - ((int64_t)1 << 30))) / ((int64_t)1 << 31));
}

/* value / 2^exponent, rounded to nearest, ties away from zero. */
static inline int32_t rounded_shift(int32_t value, int32_t exponent) {
  const int32_t mask = (int32_t)(((uint32_t)1 << exponent) - 1u);
  const int32_t remainder = value & mask;
  return (value >> exponent) + (remainder > (mask >> 1) + (value < 0 ? 1 : 0) ? 1 : 0);
}

/* value * multiplier * 2^(shift - 31), rounded twice. */
static inline int32_t scaled(int32_t value, int32_t multiplier, int32_t shift) {
  const int32_t left = most(shift, 0);
  return rounded_shift(high_product((int32_t)((uint32_t)value << left), multiplier), left - shift);
}

static inline int8_t requantized(int32_t sum, const lowbit_scaling *to, int32_t channel) {
  return held(scaled(sum, to->multiplier[channel], to->shift[channel]) + to->zero_point, to->low, to->high);
}

/* One step through all axes but the last `inner`; returns 0 at the end. Offsets follow. */
static inline int stepped(const int32_t *extent, int32_t axes, int32_t *at, const int32_t *step_a, int32_t *a, const int32_t *step_b,
                          int32_t *b) {
  for (int32_t axis = axes - 1; axis >= 0; axis--) {
    *a += step_a[axis];
    *b += step_b[axis];
    if (++at[axis] < extent[axis]) return 1;
    *a -= step_a[axis] * extent[axis];
    *b -= step_b[axis] * extent[axis];
    at[axis] = 0;
  }
  return 0;
}

/* Sum of (value - zero point) * weight. Compilers turn the plain loop into the M55's vectors; the M4 and M7 have pairs of 16 bits. */
#if defined(__ARM_FEATURE_DSP) && !defined(__ARM_FEATURE_MVE)

typedef uint32_t loose_word __attribute__((may_alias, aligned(1))); /* four bytes, wherever they lie */

static inline int32_t dot(const int8_t *values, int32_t zero_point, const int8_t *weights, int32_t count) {
  const int16x2_t offset = (int16x2_t)(((uint32_t)-zero_point & 0xFFFFu) * 0x10001u);
  int32_t sum = 0;
  for (; count >= 4; count -= 4, values += 4, weights += 4) {
    const uint32_t v = *(const loose_word *)(const void *)values, w = *(const loose_word *)(const void *)weights;
    sum = __smlad(__sxtab16(offset, (int8x4_t)v), __sxtb16((int8x4_t)w), sum);
    sum = __smlad(__sxtab16(offset, (int8x4_t)(v >> 8)), __sxtb16((int8x4_t)(w >> 8)), sum);
  }
  for (; count > 0; count--) sum += (*values++ - zero_point) * *weights++;
  return sum;
}

#else

static inline int32_t dot(const int8_t *values, int32_t zero_point, const int8_t *weights, int32_t count) {
  int32_t sum = 0;
  for (int32_t i = 0; i < count; i++) sum += (values[i] - zero_point) * weights[i];
  return sum;
}

#endif
