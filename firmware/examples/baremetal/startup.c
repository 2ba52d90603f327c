/* Vectors, start, and the millisecond clock of a Cortex-M. Paints the stack, so that the depth it
 * reached can be read later. */
#include "board.h"
#include "semihosting.h"

#include <errno.h>
#include <string.h>

#define STACK_PAINT 0xdeadbeefu

#define SYSTICK_CONTROL REGISTER(0xe000e010)
#define SYSTICK_RELOAD REGISTER(0xe000e014)
#define SYSTICK_VALUE REGISTER(0xe000e018)

extern uint32_t stack_bottom[], stack_top[], data_start[], data_end[], data_load[], bss_start[], bss_end[];
extern char heap_start[], heap_end[];

int main(void);

static volatile uint32_t now_ms;
static char *heap_top = heap_start;

static void tick(void) { now_ms++; }

void reset(void);
void report_fault(void);

/* Ends the test with a line that says so; a product would restart. */
__attribute__((used)) void report_fault(void) { semihosting_fail("fault"); }

/* The fault may be that the stack is full, so the handler begins with an empty one. */
__attribute__((naked)) static void fault(void) {
  __asm__ volatile("ldr r0, =stack_top\n mov sp, r0\n b report_fault");
}

__attribute__((section(".vectors"), used)) static const struct {
  uint32_t *stack;
  void (*handlers[15])(void);
} vectors = {stack_top,
             {reset, fault, fault, fault, fault, fault, fault, NULL, NULL, NULL, fault, fault, NULL, fault, tick}};

/* Paints the stack below its own frame, which is small. */
__attribute__((noinline)) static void paint_stack(void) {
  uint32_t *here = __builtin_frame_address(0);
  for (uint32_t *word = stack_bottom; word < here - 8; word++) *word = STACK_PAINT;
}

/* Runs before .data and .bss have their values. */
void reset(void) {
  paint_stack();
  for (uint32_t *from = data_load, *to = data_start; to < data_end;) *to++ = *from++;
  for (uint32_t *word = bss_start; word < bss_end;) *word++ = 0;

  board_clock_start();
  SYSTICK_RELOAD = board_clock_hz / 1000 - 1;
  SYSTICK_VALUE = 0;
  SYSTICK_CONTROL = 7; /* enabled, with an interrupt, from the processor's clock */
  semihosting_exit(main());
}

uint32_t clock_ms(void) { return now_ms; }

void clock_sleep(void) { __asm__ volatile("wfi"); }

size_t stack_used(void) {
  const uint32_t *word = stack_bottom;
  while (word < stack_top && *word == STACK_PAINT) word++;
  return (size_t)((const char *)stack_top - (const char *)word);
}

size_t heap_used(void) { return (size_t)(heap_top - heap_start); }

/* Newlib's malloc asks here for memory. It gives none back, so the top is the most ever used. */
__attribute__((used)) void *_sbrk(ptrdiff_t more) {
  char *before = heap_top;
  if (more > heap_end - heap_top) {
    errno = ENOMEM;
    return (void *)-1;
  }
  heap_top += more;
  return before;
}
