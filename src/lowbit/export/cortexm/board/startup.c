/* From reset to main: memory, floating point and vector unit, a painted stack, and a clock that counts. */
#include <stddef.h>
#include <stdint.h>

#include "io.h"

extern uint32_t link_data_from[], link_data[], link_data_end[], link_bss[], link_bss_end[], link_stack[], link_stack_top[];

int main(void);
void on_reset(void);
void on_fault(void);
void on_tick(void);

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))
#define COPROCESSORS REGISTER(0xE000ED88u) /* CPACR */
#define CONFIGURATION REGISTER(0xE000ED14u) /* CCR */
#define TICK_CONTROL REGISTER(0xE000E010u)
#define TICK_RELOAD REGISTER(0xE000E014u)
#define TICK_VALUE REGISTER(0xE000E018u)
#define TICK_SPAN 0x1000000u

#define PAINT 0xA5A5A5A5u

static volatile uint32_t spans;

void on_tick(void) { spans++; }

void on_fault(void) { io_exit(2); }

uint64_t io_ticks(void) {
  for (;;) {
    const uint32_t before = spans;
    const uint32_t value = TICK_VALUE;
    if (before == spans) return (uint64_t)before * TICK_SPAN + (TICK_SPAN - 1u - value);
  }
}

uint32_t io_stack(void) {
  const uint32_t *at = link_stack;
  while (at < link_stack_top && *at == PAINT) at++;
  return (uint32_t)(link_stack_top - at) * 4u;
}

void on_reset(void) {
  COPROCESSORS |= 0xFu << 20;
#if defined(__ARM_FEATURE_MVE)
  CONFIGURATION |= 1u << 19; /* hardware loops */
#endif
  __asm__ volatile("dsb\n isb" ::: "memory");
  uint32_t *here;
  __asm__ volatile("mov %0, sp" : "=r"(here));
  for (volatile uint32_t *at = link_stack; at < here - 16; at++) *at = PAINT;
  const uint32_t *from = link_data_from;
  for (volatile uint32_t *to = link_data; to < link_data_end; to++) *to = *from++;
  for (volatile uint32_t *to = link_bss; to < link_bss_end; to++) *to = 0u;
  TICK_RELOAD = TICK_SPAN - 1u;
  TICK_VALUE = 0u;
  TICK_CONTROL = 7u; /* the core's clock, an interrupt at zero, on */
  io_exit(main());
}

typedef void (*handler)(void);

__attribute__((section(".vectors"), used)) static const struct {
  uint32_t *stack;
  handler handlers[15];
} vectors = {link_stack_top,
             {on_reset, on_fault, on_fault, on_fault, on_fault, on_fault, on_fault, NULL, NULL, NULL, on_fault, on_fault, NULL, on_fault,
              on_tick}};
