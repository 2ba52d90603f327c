/* What the port for ESP-IDF calls, as ESP-IDF 5 declares it: it is in no package registry. */
#include <stddef.h>
void esp_fill_random(void *buf, size_t len);
