#ifdef LOWBIT_CMSIS_NN

int lowbit_depthwise_conv_2d(const lowbit_convolution *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  const cmsis_nn_dw_conv_params params = {.input_offset = -plan->input_zero_point,
                                          .output_offset = plan->output.zero_point,
                                          .ch_mult = w->out_channels / w->in_channels,
                                          .stride = {.w = w->stride_width, .h = w->stride_height},
                                          .padding = {.w = w->pad_left, .h = w->pad_top},
                                          .dilation = {.w = w->dilation_width, .h = w->dilation_height},
                                          .activation = {.min = plan->output.low, .max = plan->output.high}};
  const cmsis_nn_per_channel_quant_params quant = {.multiplier = (int32_t *)(uintptr_t)plan->output.multiplier,
                                                   .shift = (int32_t *)(uintptr_t)plan->output.shift};
  const cmsis_nn_dims in = {1, w->in_height, w->in_width, w->in_channels};
  const cmsis_nn_dims filter = {1, w->height, w->width, w->out_channels};
  const cmsis_nn_dims bias = {1, 1, 1, w->out_channels};
  const cmsis_nn_dims out = {1, w->out_height, w->out_width, w->out_channels};
  const cmsis_nn_context context = context_of(arm_depthwise_conv_wrapper_s8_get_buffer_size(&params, &in, &filter, &out));
  if (context.buf == NULL) return -1;
  return arm_depthwise_conv_wrapper_s8(&context, &params, &quant, &in, input, &filter, plan->weights, &bias, plan->bias, &out, output) ==
                 ARM_CMSIS_NN_SUCCESS
             ? 0
             : -1;
}

#else

/* Channels that are summed side by side: weights of one place lie side by side too. */
#define LOWBIT_STRIP 16

static inline void depthwise_strip(const lowbit_convolution *plan, const int8_t *input, int32_t origin_y, int32_t origin_x, int32_t first,
                                   int32_t count, int8_t *output) {
  const lowbit_window *w = &plan->window;
  const int32_t copies = w->out_channels / w->in_channels;
  int32_t sums[LOWBIT_STRIP];
  for (int32_t c = 0; c < count; c++) sums[c] = plan->bias ? plan->bias[first + c] : 0;
  for (int32_t ky = 0; ky < w->height; ky++) {
    const int32_t y = origin_y + ky * w->dilation_height;
    if (y < 0 || y >= w->in_height) continue;
    for (int32_t kx = 0; kx < w->width; kx++) {
      const int32_t x = origin_x + kx * w->dilation_width;
      if (x < 0 || x >= w->in_width) continue;
      const int8_t *pixel = input + (y * w->in_width + x) * w->in_channels;
      const int8_t *weights = plan->weights + (ky * w->width + kx) * w->out_channels + first;
      if (copies == 1) {
        for (int32_t c = 0; c < count; c++) sums[c] += (pixel[first + c] - plan->input_zero_point) * weights[c];
      } else {
        for (int32_t c = 0; c < count; c++) sums[c] += (pixel[(first + c) / copies] - plan->input_zero_point) * weights[c];
      }
    }
  }
  for (int32_t c = 0; c < count; c++) output[first + c] = requantized(sums[c], &plan->output, first + c);
}

int lowbit_depthwise_conv_2d(const lowbit_convolution *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  for (int32_t y = 0; y < w->out_height; y++) {
    for (int32_t x = 0; x < w->out_width; x++, output += w->out_channels) {
      for (int32_t first = 0; first < w->out_channels; first += LOWBIT_STRIP) {
        depthwise_strip(plan, input, y * w->stride_height - w->pad_top, x * w->stride_width - w->pad_left, first,
                        least(w->out_channels - first, LOWBIT_STRIP), output);
      }
    }
  }
  return 0;
}

#endif
