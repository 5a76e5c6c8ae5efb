int lowbit_mean(const lowbit_mean_plan *plan, const int8_t *input, int8_t *output) {
  static const int32_t nothing[LOWBIT_AXES] = {0};
  int32_t at[LOWBIT_AXES] = {0}, start = 0, unused = 0;
  do {
    int32_t inner[LOWBIT_AXES] = {0}, from = start, sum = 0;
    do {
      sum += input[from];
    } while (stepped(plan->reduced, LOWBIT_AXES, inner, plan->step_reduced, &from, nothing, &unused));
    sum -= plan->input_zero_point * plan->count;
    *output++ = held(scaled(sum, plan->multiplier, plan->shift) + plan->zero_point, INT8_MIN, INT8_MAX);
  } while (stepped(plan->kept, LOWBIT_AXES, at, plan->step_kept, &start, nothing, &unused));
  return 0;
}
