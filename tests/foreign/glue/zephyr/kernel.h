/* What the port for Zephyr calls, as Zephyr 3.7 declares it: its kernel is in no package registry. */
#include <stdint.h>
uint32_t k_uptime_get_32(void);
