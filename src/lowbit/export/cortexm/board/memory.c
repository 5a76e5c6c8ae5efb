/* The four functions that compilers call by themselves, for programs without a C library. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

void *memcpy(void *to, const void *from, size_t bytes) {
  uint8_t *target = to;
  const uint8_t *source = from;
  while (bytes-- > 0) *target++ = *source++;
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  uint8_t *target = to;
  const uint8_t *source = from;
  if ((uintptr_t)target < (uintptr_t)source) return memcpy(to, from, bytes);
  while (bytes-- > 0) target[bytes] = source[bytes];
  return to;
}

void *memset(void *to, int value, size_t bytes) {
  uint8_t *target = to;
  while (bytes-- > 0) *target++ = (uint8_t)value;
  return to;
}

int memcmp(const void *a, const void *b, size_t bytes) {
  const uint8_t *left = a, *right = b;
  for (; bytes > 0; bytes--, left++, right++) {
    if (*left != *right) return *left - *right;
  }
  return 0;
}
