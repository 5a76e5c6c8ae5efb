#ifdef LOWBIT_CMSIS_NN

int lowbit_conv_2d(const lowbit_convolution *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  const cmsis_nn_conv_params params = {.input_offset = -plan->input_zero_point,
                                       .output_offset = plan->output.zero_point,
                                       .stride = {.w = w->stride_width, .h = w->stride_height},
                                       .padding = {.w = w->pad_left, .h = w->pad_top},
                                       .dilation = {.w = w->dilation_width, .h = w->dilation_height},
                                       .activation = {.min = plan->output.low, .max = plan->output.high}};
  const cmsis_nn_per_channel_quant_params quant = {.multiplier = (int32_t *)(uintptr_t)plan->output.multiplier,
                                                   .shift = (int32_t *)(uintptr_t)plan->output.shift};
  const cmsis_nn_dims in = {1, w->in_height, w->in_width, w->in_channels};
  const cmsis_nn_dims filter = {w->out_channels, w->height, w->width, w->in_channels};
  const cmsis_nn_dims bias = {1, 1, 1, w->out_channels};
  const cmsis_nn_dims out = {1, w->out_height, w->out_width, w->out_channels};
  const cmsis_nn_context context = context_of(arm_convolve_wrapper_s8_get_buffer_size(&params, &in, &filter, &out));
  if (context.buf == NULL) return -1;
  return arm_convolve_wrapper_s8(&context, &params, &quant, &in, input, &filter, plan->weights, &bias, plan->bias, &out, output) ==
                 ARM_CMSIS_NN_SUCCESS
             ? 0
             : -1;
}

#else

/* Taps of a window that lie in the image, along one axis. What lies outside is the zero point and adds nothing. */
static inline void taps_inside(int32_t origin, int32_t extent, int32_t taps, int32_t dilation, int32_t *first, int32_t *end) {
  *first = origin < 0 ? (dilation - origin - 1) / dilation : 0;
  *end = least(taps, (extent - origin + dilation - 1) / dilation);
}

static inline void conv_pixel(const lowbit_convolution *plan, const int8_t *input, int32_t origin_y, int32_t origin_x, int8_t *output) {
  const lowbit_window *w = &plan->window;
  const int32_t channels = w->in_channels;
  int32_t top, bottom, left, right;
  taps_inside(origin_y, w->in_height, w->height, w->dilation_height, &top, &bottom);
  taps_inside(origin_x, w->in_width, w->width, w->dilation_width, &left, &right);
  const int32_t together = w->dilation_width == 1 ? right - left : 1; /* neighbouring taps lie side by side, as their weights do */
  const int8_t *corner = input + (origin_y * w->in_width + origin_x) * channels;
  const int8_t *weights = plan->weights;
  for (int32_t channel = 0; channel < w->out_channels; channel++, weights += w->height * w->width * channels) {
    int32_t sum = plan->bias ? plan->bias[channel] : 0;
    for (int32_t y = top; y < bottom; y++) {
      for (int32_t x = left; x < right; x += together) {
        const int8_t *pixel = corner + (y * w->dilation_height * w->in_width + x * w->dilation_width) * channels;
        sum += dot(pixel, plan->input_zero_point, weights + (y * w->width + x) * channels, together * channels);
      }
    }
    output[channel] = requantized(sum, &plan->output, channel);
  }
}

int lowbit_conv_2d(const lowbit_convolution *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  for (int32_t y = 0; y < w->out_height; y++) {
    for (int32_t x = 0; x < w->out_width; x++, output += w->out_channels) {
      conv_pixel(plan, input, y * w->stride_height - w->pad_top, x * w->stride_width - w->pad_left, output);
    }
  }
  return 0;
}

#endif
