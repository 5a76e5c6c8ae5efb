/* io.h by semihosting: a debugger or QEMU does what is asked for. See Arm's "Semihosting for AArch32 and AArch64". */
#include "io.h"

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT_EXTENDED = 0x20 };
enum { MODE_READ_BINARY = 1, MODE_WRITE_BINARY = 5, APPLICATION_EXIT = 0x20026 };

static int32_t ask(int32_t what, const void *with) {
  register int32_t r0 __asm__("r0") = what;
  register const void *r1 __asm__("r1") = with;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static uintptr_t length_of(const char *text) {
  uintptr_t length = 0;
  while (text[length] != 0) length++;
  return length;
}

int32_t io_open(const char *name, int32_t for_writing) {
  const uintptr_t block[3] = {(uintptr_t)name, for_writing ? MODE_WRITE_BINARY : MODE_READ_BINARY, length_of(name)};
  return ask(SYS_OPEN, block);
}

int32_t io_read(int32_t handle, void *to, int32_t bytes) {
  const uintptr_t block[3] = {(uintptr_t)handle, (uintptr_t)to, (uintptr_t)bytes};
  const int32_t missing = ask(SYS_READ, block);
  return missing < 0 ? 0 : bytes - missing;
}

int32_t io_write(int32_t handle, const void *from, int32_t bytes) {
  const uintptr_t block[3] = {(uintptr_t)handle, (uintptr_t)from, (uintptr_t)bytes};
  return ask(SYS_WRITE, block) == 0 ? 0 : -1;
}

void io_close(int32_t handle) {
  const uintptr_t block[1] = {(uintptr_t)handle};
  ask(SYS_CLOSE, block);
}

void io_say(const char *text, uint64_t number) {
  char digits[24];
  char *at = digits + sizeof digits - 1;
  *at = 0;
  *--at = '\n';
  do {
    *--at = (char)('0' + (char)(number % 10u));
    number /= 10u;
  } while (number != 0u);
  *--at = ' ';
  ask(SYS_WRITE0, text);
  ask(SYS_WRITE0, at);
}

void io_exit(int32_t code) {
  const uintptr_t block[2] = {APPLICATION_EXIT, (uintptr_t)code};
  ask(SYS_EXIT_EXTENDED, block);
  for (;;) {
  }
}
