int lowbit_resize_nearest(const lowbit_resize_plan *plan, const int8_t *input, int8_t *output) {
  for (int32_t y = 0; y < plan->out_height; y++) {
    for (int32_t x = 0; x < plan->out_width; x++, output += plan->channels) {
      memcpy(output, input + (plan->rows[y] * plan->in_width + plan->columns[x]) * plan->channels, (size_t)plan->channels);
    }
  }
  return 0;
}

#define LOWBIT_PARTS 1024

int lowbit_resize_bilinear(const lowbit_resize_plan *plan, const int8_t *input, int8_t *output) {
  for (int32_t y = 0; y < plan->out_height; y++) {
    const int8_t *above = input + plan->rows[y] * plan->in_width * plan->channels;
    const int8_t *below = input + plan->rows_below[y] * plan->in_width * plan->channels;
    const int32_t down = plan->row_parts[y], up = LOWBIT_PARTS - down;
    for (int32_t x = 0; x < plan->out_width; x++) {
      const int32_t left = plan->columns[x] * plan->channels, right = plan->columns_right[x] * plan->channels;
      const int32_t to_right = plan->column_parts[x], to_left = LOWBIT_PARTS - to_right;
      for (int32_t c = 0; c < plan->channels; c++) {
        const int64_t sum = (int64_t)above[left + c] * up * to_left + (int64_t)below[left + c] * down * to_left +
                            (int64_t)above[right + c] * up * to_right + (int64_t)below[right + c] * down * to_right;
        const int64_t half = (int64_t)LOWBIT_PARTS * LOWBIT_PARTS / 2;
        *output++ = (int8_t)((sum + (sum > 0 ? half : -half)) / ((int64_t)LOWBIT_PARTS * LOWBIT_PARTS));
      }
    }
  }
  return 0;
}
