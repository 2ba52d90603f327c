/* certdist over lwIP's sockets, for a thread of its own (NO_SYS=0). ports/posix/cd_socket.c, compiled
 * with CD_LWIP, does the work:
 *
 *   static struct cd_lwip_thread thread = {.load = cd_flash_load, .save = cd_flash_save, .store = &flash};
 *   cd_lwip_thread_init(&thread, "certdist.example.com", "5684");
 *   cd_start(&device, &settings, &thread.port, &cd_dtls_mbedtls);
 *   cd_socket_run(&thread.socket, &device, CD_FOREVER);
 */
#ifndef CERTDIST_LWIP_THREAD_H
#define CERTDIST_LWIP_THREAD_H

#include "../posix/cd_socket.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cd_lwip_thread {
  /* The store, as in struct cd_port, with an argument of its own. */
  int (*load)(void *store, void *record, size_t room);
  int (*save)(void *store, const void *record, size_t length);
  void *store;

  /* The port's own. */
  struct cd_port port;
  struct cd_socket socket;
};

/* Sets the port up for a server: a name or an address, and a port. The texts must outlive it. */
void cd_lwip_thread_init(struct cd_lwip_thread *, const char *host, const char *service);

#ifdef __cplusplus
}
#endif
#endif
