/* Numbers that follow from the argument `seed`, so that a test can repeat a run. They protect
 * nothing. A product has a file that reads the chip's generator in this one's place. */
#include "arguments.h"

#include <certdist.h>

int cd_random(void *out, size_t length) {
  static uint32_t state;
  if (state == 0) state = argument_number("seed", 0);
  if (state == 0) return -1;
  for (uint8_t *byte = out; length-- > 0; byte++) {
    /* Marsaglia, "Xorshift RNGs", 2003. */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    *byte = (uint8_t)(state >> 11);
  }
  return 0;
}
