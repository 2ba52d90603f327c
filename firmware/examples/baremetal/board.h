/* What a board has: a clock, a network interface, and the emulator's semihosting in place of
 * flash and a serial port. */
#ifndef BOARD_H
#define BOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))

/* Bytes before each frame, as lwIP's ETH_PAD_SIZE, which put the IP header on a word. */
#define FRAME_PADDING 2
/* The longest frame with its padding, without its checksum: what DHCP and this device send. */
#define FRAME_MAX 608

/* Frequency of the processor's clock in Hz, after board_clock_start. */
extern const uint32_t board_clock_hz;

/* Brings the processor's clock to board_clock_hz. */
void board_clock_start(void);

/* Starts the network interface with this MAC address. */
void board_net_start(const uint8_t mac[6]);

/* Returns the length of the next received frame with its padding, or 0 if none has arrived. The
 * caller reads what it wants of the frame in words, and then calls board_net_end. */
size_t board_net_begin(void);
uint32_t board_net_read(void);
void board_net_end(void);

/* Sends a frame of this many bytes with its padding. Returns whether the interface has accepted it. */
bool board_net_send(const uint32_t *frame, size_t length);

/* Milliseconds since the start; wraps after 49 days. */
uint32_t clock_ms(void);

/* Sleeps until the next tick of the clock: a millisecond at most. */
void clock_sleep(void);

/* Bytes of the stack that have been used at most, painted at the start. */
size_t stack_used(void);

/* Bytes of the heap that have been used at most. */
size_t heap_used(void);

#endif
