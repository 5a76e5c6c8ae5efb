int lowbit_mul(const lowbit_pair *plan, const int8_t *a, const int8_t *b, int8_t *output) {
  const int32_t last = LOWBIT_AXES - 1;
  const int32_t count = plan->extent[last], step_a = plan->step_a[last], step_b = plan->step_b[last];
  int32_t at[LOWBIT_AXES] = {0}, from_a = 0, from_b = 0;
  do {
    for (int32_t i = 0; i < count; i++) {
      const int32_t product = (a[from_a + i * step_a] - plan->zero_point_a) * (b[from_b + i * step_b] - plan->zero_point_b);
      *output++ = held(scaled(product, plan->multiplier, plan->shift) + plan->zero_point, plan->low, plan->high);
    }
  } while (stepped(plan->extent, last, at, plan->step_a, &from_a, plan->step_b, &from_b));
  return 0;
}
