/* A UDP socket for the kit, by the sockets API of POSIX, lwIP, Zephyr and ESP-IDF. */
#ifndef CD_SOCKET_H
#define CD_SOCKET_H

#include "certdist.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The server, and the socket that is connected to it. */
struct cd_socket {
  const char *host;    /* a name or an address */
  const char *service; /* a port: "5684" */
  int descriptor;      /* -1: none */
};

/* Resolves the name and connects a new socket, which replaces an open one. Returns 0, or -1. */
int cd_socket_open(struct cd_socket *);
void cd_socket_close(struct cd_socket *);

/* Sends a datagram; opens the socket first if it is closed. Fits `send` of the port, with a struct
 * cd_socket as `arg`. */
int cd_socket_send(void *socket, const void *datagram, size_t length);

/* Runs a started device until it is done, or until `patience_ms` have passed; CD_FOREVER sets no
 * limit. Each session has a new socket, and the name is resolved again for it. Returns the state.
 * After CD_DONE, it takes up to 3 s more, so that a lost acknowledgement is sent again. */
enum cd_state cd_socket_run(struct cd_socket *, struct cd_device *, uint32_t patience_ms);

#ifdef __cplusplus
}
#endif
#endif
