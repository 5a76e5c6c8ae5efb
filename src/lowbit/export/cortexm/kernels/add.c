/* Bits that operands are moved up by, so that their common scale keeps them exact. */
#define LOWBIT_HEADROOM 20

static inline int8_t pair_sum(const lowbit_pair *plan, int32_t a, int32_t b) {
  const int32_t left = scaled((a - plan->zero_point_a) * (1 << LOWBIT_HEADROOM), plan->multiplier_a, plan->shift_a);
  const int32_t right = scaled((b - plan->zero_point_b) * (1 << LOWBIT_HEADROOM), plan->multiplier_b, plan->shift_b);
  return held(scaled(left + plan->sign * right, plan->multiplier, plan->shift) + plan->zero_point, plan->low, plan->high);
}

int lowbit_add(const lowbit_pair *plan, const int8_t *a, const int8_t *b, int8_t *output) {
  const int32_t last = LOWBIT_AXES - 1;
  const int32_t count = plan->extent[last], step_a = plan->step_a[last], step_b = plan->step_b[last];
  int32_t at[LOWBIT_AXES] = {0}, from_a = 0, from_b = 0;
#ifdef LOWBIT_CMSIS_NN
  if (count > 0 && plan->sign == 1 && step_a == 1 && step_b == 1 && plan->extent[last - 1] == 1) {
    return arm_elementwise_add_s8(a, b, -plan->zero_point_a, plan->multiplier_a, plan->shift_a, -plan->zero_point_b, plan->multiplier_b,
                                  plan->shift_b, LOWBIT_HEADROOM, output, plan->zero_point, plan->multiplier, plan->shift, plan->low,
                                  plan->high, count) == ARM_CMSIS_NN_SUCCESS
               ? 0
               : -1;
  }
#endif
  do {
    for (int32_t i = 0; i < count; i++) *output++ = pair_sum(plan, a[from_a + i * step_a], b[from_b + i * step_b]);
  } while (stepped(plan->extent, last, at, plan->step_a, &from_a, plan->step_b, &from_b));
  return 0;
}
