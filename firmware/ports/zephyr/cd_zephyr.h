/* The port for Zephyr: sockets, the settings subsystem, and the kernel's clock and random numbers. */
#ifndef CD_ZEPHYR_H
#define CD_ZEPHYR_H

#include "../posix/cd_socket.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Returns the port. settings_subsys_init has been called. The socket must outlive it. */
struct cd_port cd_zephyr_port(struct cd_socket *socket);

#ifdef __cplusplus
}
#endif

#endif
