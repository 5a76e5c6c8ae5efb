/* io.h on a PC. */
#include "io.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *files[4];

int32_t io_open(const char *name, int32_t for_writing) {
  for (int32_t i = 0; i < 4; i++) {
    if (files[i] == NULL) {
      files[i] = fopen(name, for_writing ? "wb" : "rb");
      return files[i] ? i : -1;
    }
  }
  return -1;
}

int32_t io_read(int32_t handle, void *to, int32_t bytes) { return (int32_t)fread(to, 1, (size_t)bytes, files[handle]); }

int32_t io_write(int32_t handle, const void *from, int32_t bytes) {
  return fwrite(from, 1, (size_t)bytes, files[handle]) == (size_t)bytes ? 0 : -1;
}

void io_close(int32_t handle) {
  if (fclose(files[handle]) != 0) io_exit(1);
  files[handle] = NULL;
}

void io_say(const char *text, uint64_t number) { printf("%s %" PRIu64 "\n", text, number); }

void io_exit(int32_t code) { exit(code); }

uint64_t io_ticks(void) { return 0; }

uint32_t io_stack(void) { return 0; }
