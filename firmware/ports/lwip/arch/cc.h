/* What lwIP asks of a compiler, for GCC and clang. */
#ifndef CERTDIST_LWIP_CC_H
#define CERTDIST_LWIP_CC_H

#include <stddef.h>
#include <stdint.h>

/* The initial sequence numbers of TCP and the transaction IDs of DHCP come from the board's source
 * of random numbers. Their functions return no error: a board without random numbers stops here. */
uint32_t certdist_lwip_random(void);
#define LWIP_RAND() certdist_lwip_random()

/* No printf: a message that fails a check ends the program. */
__attribute__((noreturn)) void certdist_lwip_assertion_failed(const char *message);
#define LWIP_PLATFORM_DIAG(message)
#define LWIP_PLATFORM_ASSERT(message) certdist_lwip_assertion_failed(message)

#endif
