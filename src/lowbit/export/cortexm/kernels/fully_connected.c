#ifdef LOWBIT_CMSIS_NN

int lowbit_fully_connected(const lowbit_dense *plan, const int8_t *input, int8_t *output) {
  const cmsis_nn_fc_params params = {.input_offset = -plan->input_zero_point,
                                     .filter_offset = 0,
                                     .output_offset = plan->output.zero_point,
                                     .activation = {.min = plan->output.low, .max = plan->output.high}};
  const cmsis_nn_quant_params quant = {.multiplier = (int32_t *)(uintptr_t)plan->output.multiplier,
                                       .shift = (int32_t *)(uintptr_t)plan->output.shift,
                                       .is_per_channel = !plan->uniform};
  const cmsis_nn_dims in = {plan->rows, 1, 1, plan->inputs};
  const cmsis_nn_dims filter = {plan->inputs, 1, 1, plan->outputs};
  const cmsis_nn_dims bias = {1, 1, 1, plan->outputs};
  const cmsis_nn_dims out = {plan->rows, 1, 1, plan->outputs};
  const cmsis_nn_context context = context_of(arm_fully_connected_s8_get_buffer_size(&filter));
  if (context.buf == NULL) return -1;
#if defined(ARM_MATH_MVEI)
  arm_vector_sum_s8(context.buf, plan->inputs, plan->outputs, plan->weights, params.input_offset, 0, plan->bias);
#endif
  return arm_fully_connected_wrapper_s8(&context, &params, &quant, &in, input, &filter, plan->weights, &bias, plan->bias, &out, output) ==
                 ARM_CMSIS_NN_SUCCESS
             ? 0
             : -1;
}

#else

int lowbit_fully_connected(const lowbit_dense *plan, const int8_t *input, int8_t *output) {
  for (int32_t row = 0; row < plan->rows; row++, input += plan->inputs) {
    const int8_t *weights = plan->weights;
    for (int32_t channel = 0; channel < plan->outputs; channel++, weights += plan->inputs) {
      const int32_t bias = plan->bias ? plan->bias[channel] : 0;
      const int32_t sum = bias + dot(input, plan->input_zero_point, weights, plan->inputs);
      *output++ = requantized(sum, &plan->output, channel);
    }
  }
  return 0;
}

#endif
