/* certdist over lwIP's raw API (NO_SYS=1). Call these functions where lwIP runs: from the main loop
 * or from a callback of lwIP, never from an interrupt.
 *
 *   static struct cd_lwip lwip = {.server = ..., .load = cd_flash_load, .save = cd_flash_save, .store = &flash};
 *   cd_lwip_start(&lwip, &device, &settings, &cd_dtls_tinydtls);
 *   for (;;) sys_check_timeouts();   // and pass received frames to lwIP
 *
 * With threads, use certdist_lwip_thread.h instead. */
#ifndef CERTDIST_LWIP_H
#define CERTDIST_LWIP_H

#include <certdist.h>
#include <lwip/ip_addr.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cd_lwip {
  /* Address and port of certdist's server. */
  ip_addr_t server;
  uint16_t server_port;
  /* The store, as in struct cd_port, with an argument of its own. */
  int (*load)(void *store, void *record, size_t room);
  int (*save)(void *store, const void *record, size_t length);
  void *store;
  /* Called after each step. May be NULL. */
  void (*changed)(struct cd_device *, enum cd_state);

  /* The port's own. */
  struct cd_port port;
  struct cd_device *device;
  struct udp_pcb *pcb;
};

/* Starts the device; from then on, lwIP's timers and its UDP input drive it. Returns the state. The
 * three structures must outlive the device. The first datagram takes a UDP control block; while lwIP has
 * none, datagrams count as lost, and the device retries. */
enum cd_state cd_lwip_start(struct cd_lwip *, struct cd_device *, const struct cd_settings *, const struct cd_dtls *);

/* Reports that the interface has another address. */
void cd_lwip_network_changed(struct cd_lwip *);

/* Ends the session, and frees the control block and the timer. */
void cd_lwip_stop(struct cd_lwip *);

#ifdef __cplusplus
}
#endif
#endif
