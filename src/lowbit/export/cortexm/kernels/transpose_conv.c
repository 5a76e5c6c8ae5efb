/* Gathers what the usual scattering would bring to each output: no memory for sums is needed. */
int lowbit_transpose_conv(const lowbit_convolution *plan, const int8_t *input, int8_t *output) {
  const lowbit_window *w = &plan->window;
  const int32_t channels = w->in_channels;
  for (int32_t y = 0; y < w->out_height; y++) {
    for (int32_t x = 0; x < w->out_width; x++) {
      const int8_t *weights = plan->weights;
      for (int32_t channel = 0; channel < w->out_channels; channel++) {
        int32_t sum = plan->bias ? plan->bias[channel] : 0;
        for (int32_t ky = 0; ky < w->height; ky++) {
          const int32_t up = y + w->pad_top - ky;
          for (int32_t kx = 0; kx < w->width; kx++, weights += channels) {
            const int32_t left = x + w->pad_left - kx;
            if (up < 0 || left < 0 || up % w->stride_height != 0 || left % w->stride_width != 0) continue;
            const int32_t in_y = up / w->stride_height, in_x = left / w->stride_width;
            if (in_y >= w->in_height || in_x >= w->in_width) continue;
            const int8_t *pixel = input + (in_y * w->in_width + in_x) * channels;
            sum += dot(pixel, plan->input_zero_point, weights, channels);
          }
        }
        *output++ = requantized(sum, &plan->output, channel);
      }
    }
  }
  return 0;
}
