/* The network interface as lwIP sees it. */
#ifndef NET_H
#define NET_H

#include <stdbool.h>
#include <stdint.h>

/* Starts lwIP, the interface with this MAC address, and DHCP. */
void net_start(const uint8_t mac[6]);

/* Whether DHCP has given the board an address. */
bool net_has_address(void);

/* Whether the address has changed since the last call: a renewed lease may bring another one. */
bool net_address_changed(void);

/* Passes received frames to lwIP, runs its timers, and sleeps until the next tick if there was
 * nothing to do. */
void net_poll(void);

/* The board's clock runs this many times as fast as the second: a test waits less. Before net_start. */
void net_set_speed(uint32_t speed);

#endif
