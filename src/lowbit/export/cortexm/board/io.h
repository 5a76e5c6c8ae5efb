/* What the example needs of its surroundings: files and text. On a board they come by semihosting, on a PC from the C library. */
#ifndef LOWBIT_IO_H
#define LOWBIT_IO_H

#include <stdint.h>

/* A handle, or -1. */
int32_t io_open(const char *name, int32_t for_writing);
/* Bytes that were read: fewer than asked for at the end. */
int32_t io_read(int32_t handle, void *to, int32_t bytes);
/* 0, or -1 where not all of it was written. */
int32_t io_write(int32_t handle, const void *from, int32_t bytes);
void io_close(int32_t handle);
void io_say(const char *text, uint64_t number);
void io_exit(int32_t code);

/* Ticks of the core's clock since the start; 0 where there is none. */
uint64_t io_ticks(void);
/* Most bytes of stack that were ever in use; 0 where nobody knows. */
uint32_t io_stack(void);

#endif
