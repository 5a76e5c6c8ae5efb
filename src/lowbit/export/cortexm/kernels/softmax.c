#define LOWBIT_SUM_BITS 12 /* before the point of a sum of exponentials */

static int32_t leading_zeros(uint32_t value) {
  int32_t count = 0;
  for (; count < 32 && !(value & 0x80000000u); count++) value <<= 1;
  return count;
}

static int32_t half_sum(int32_t a, int32_t b) {
  const int64_t sum = (int64_t)a + b;
  return (int32_t)((sum + (sum >= 0 ? 1 : -1)) / 2);
}

/* value * 2^2, saturated. */
static int32_t four_times(int32_t value) {
  if (value > (INT32_MAX >> 2)) return INT32_MAX;
  if (value < -(INT32_MAX >> 2) - 1) return INT32_MIN;
  return (int32_t)((uint32_t)value << 2);
}

/* 1 / (1 + x) for x in [0, 1), both with 31 bits after the point: three steps of Newton's method from 48/17 - 32/17 x. */
static int32_t reciprocal_of_one_plus(int32_t x) {
  const int32_t half_denominator = half_sum(x, INT32_MAX);
  int32_t guess = 1515870810 + high_product(half_denominator, -1010580540); /* 2 bits before the point */
  for (int32_t i = 0; i < 3; i++) {
    const int32_t missing = (1 << 29) - high_product(half_denominator, guess);
    guess += four_times(high_product(guess, missing));
  }
  return guess > (INT32_MAX >> 1) ? INT32_MAX : (guess < -(INT32_MAX >> 1) - 1 ? INT32_MIN : (int32_t)((uint32_t)guess << 1));
}

int lowbit_softmax(const lowbit_softmax_plan *plan, const int8_t *input, int8_t *output) {
  for (int32_t row = 0; row < plan->rows; row++, input += plan->width, output += plan->width) {
    int32_t highest = INT8_MIN;
    for (int32_t i = 0; i < plan->width; i++) highest = most(highest, input[i]);
    int32_t sum = 0;
    for (int32_t i = 0; i < plan->width; i++) sum += rounded_shift(plan->exponentials[highest - input[i]], LOWBIT_SUM_BITS);
    const int32_t zeros = leading_zeros((uint32_t)sum);
    const int32_t share = reciprocal_of_one_plus((int32_t)(((uint32_t)sum << zeros) - 0x80000000u));
    const int32_t exponent = LOWBIT_SUM_BITS - zeros + 31 - 8;
    for (int32_t i = 0; i < plan->width; i++) {
      const int32_t part = high_product(share, plan->exponentials[highest - input[i]]);
      output[i] = held(rounded_shift(part, exponent) + INT8_MIN, INT8_MIN, INT8_MAX);
    }
  }
  return 0;
}
