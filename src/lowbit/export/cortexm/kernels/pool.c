#ifdef LOWBIT_CMSIS_NN

static cmsis_nn_pool_params pool_params(const lowbit_pool *plan) {
  const lowbit_window *w = &plan->window;
  const cmsis_nn_pool_params params = {.stride = {.w = w->stride_width, .h = w->stride_height},
                                       .padding = {.w = w->pad_left, .h = w->pad_top},
                                       .activation = {.min = plan->low, .max = plan->high}};
  return params;
}

int lowbit_average_pool(const lowbit_pool *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  const cmsis_nn_pool_params params = pool_params(plan);
  const cmsis_nn_dims in = {1, w->in_height, w->in_width, w->in_channels}, filter = {1, w->height, w->width, 1};
  const cmsis_nn_dims out = {1, w->out_height, w->out_width, w->in_channels};
  const cmsis_nn_context context = context_of(arm_avgpool_s8_get_buffer_size(w->out_width, w->in_channels));
  if (context.buf == NULL) return -1;
  return arm_avgpool_s8(&context, &params, &in, input, &filter, &out, output) == ARM_CMSIS_NN_SUCCESS ? 0 : -1;
}

int lowbit_max_pool(const lowbit_pool *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  const cmsis_nn_pool_params params = pool_params(plan);
  const cmsis_nn_dims in = {1, w->in_height, w->in_width, w->in_channels}, filter = {1, w->height, w->width, 1};
  const cmsis_nn_dims out = {1, w->out_height, w->out_width, w->in_channels};
  const cmsis_nn_context context = context_of(0);
  return arm_max_pool_s8(&context, &params, &in, input, &filter, &out, output) == ARM_CMSIS_NN_SUCCESS ? 0 : -1;
}

#else

/* The part of a window that lies in the image. */
typedef struct {
  int32_t top, bottom, left, right;
} pool_part;

static pool_part part_of(const lowbit_window *w, int32_t y, int32_t x) {
  const int32_t top = y * w->stride_height - w->pad_top, left = x * w->stride_width - w->pad_left;
  const pool_part part = {most(top, 0), least(top + w->height, w->in_height), most(left, 0), least(left + w->width, w->in_width)};
  return part;
}

int lowbit_average_pool(const lowbit_pool *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  for (int32_t y = 0; y < w->out_height; y++) {
    for (int32_t x = 0; x < w->out_width; x++) {
      const pool_part part = part_of(w, y, x);
      const int32_t count = (part.bottom - part.top) * (part.right - part.left);
      for (int32_t c = 0; c < w->in_channels; c++) {
        int32_t sum = 0;
        for (int32_t row = part.top; row < part.bottom; row++) {
          for (int32_t column = part.left; column < part.right; column++) sum += input[(row * w->in_width + column) * w->in_channels + c];
        }
        *output++ = held((sum > 0 ? sum + count / 2 : sum - count / 2) / count, plan->low, plan->high);
      }
    }
  }
  return 0;
}

int lowbit_max_pool(const lowbit_pool *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  for (int32_t y = 0; y < w->out_height; y++) {
    for (int32_t x = 0; x < w->out_width; x++) {
      const pool_part part = part_of(w, y, x);
      for (int32_t c = 0; c < w->in_channels; c++) {
        int32_t highest = INT8_MIN;
        for (int32_t row = part.top; row < part.bottom; row++) {
          for (int32_t column = part.left; column < part.right; column++) {
            highest = most(highest, input[(row * w->in_width + column) * w->in_channels + c]);
          }
        }
        *output++ = held(highest, plan->low, plan->high);
      }
    }
  }
  return 0;
}

#endif
