/* Ties away from zero. Far beyond the grid any number will do: not-a-number becomes the lowest level. */
int lowbit_quantize(float scale, int32_t zero_point, const float *input, int8_t *output, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    float value = input[i] / scale;
    if (!(value > -1024.0f)) value = -1024.0f;
    if (value > 1024.0f) value = 1024.0f;
    int32_t whole = (int32_t)value;
    const float rest = value - (float)whole;
    if (rest >= 0.5f) whole++;
    if (rest <= -0.5f) whole--;
    output[i] = held(whole + zero_point, INT8_MIN, INT8_MAX);
  }
  return 0;
}

int lowbit_dequantize(float scale, int32_t zero_point, const int8_t *input, float *output, int32_t count) {
  for (int32_t i = 0; i < count; i++) output[i] = scale * (float)(input[i] - zero_point);
  return 0;
}
