int lowbit_move(const lowbit_move_plan *plan, const int8_t *input, int8_t *output) {
  const int32_t last = LOWBIT_AXES - 1;
  const int32_t count = plan->extent[last], step_in = plan->step_in[last], step_out = plan->step_out[last];
  int32_t at[LOWBIT_AXES] = {0}, from = plan->start_in, to = plan->start_out;
  do {
    if (step_in == 1 && step_out == 1) {
      memcpy(output + to, input + from, (size_t)count);
    } else {
      for (int32_t i = 0; i < count; i++) output[to + i * step_out] = input[from + i * step_in];
    }
  } while (stepped(plan->extent, last, at, plan->step_in, &from, plan->step_out, &to));
  return 0;
}

int lowbit_fill(int8_t *output, int8_t value, int32_t count) {
  memset(output, (uint8_t)value, (size_t)count);
  return 0;
}
