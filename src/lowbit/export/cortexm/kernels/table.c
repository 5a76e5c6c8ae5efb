int lowbit_table(const int8_t *table, const int8_t *input, int8_t *output, int32_t count) {
  for (int32_t i = 0; i < count; i++) output[i] = table[input[i] + 128];
  return 0;
}
